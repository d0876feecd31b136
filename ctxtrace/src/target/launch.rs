//! Starting a program suspended.
//!
//! The child is forked, becomes the invoking user, and blocks in a `read` on the *go* pipe before it executes anything.
//! While it sleeps there the tracer notes the kernel's count of its switches and attaches; then it is let go, and its first
//! traced event is the wakeup out of that read. Should `execve` fail, the reason comes back over the *status* pipe, which
//! an `execve` that works closes (`samply` starts its targets in the same way).
//!
//! The child never outlives the tracer: `PR_SET_PDEATHSIG` kills it when the thread that forked it ends, so the tracer
//! forks from its main thread. The request is made after the change of user, which would clear it.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ctxtrace_common::thread::KernelCount;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2};

use super::procfs;
use super::user::Invoker;
use crate::error::{Error, Result};

/// How long a child may take to fall asleep at the go pipe; it needs microseconds.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What to start, and how.
pub struct Command<'a> {
    /// The program's path.
    pub program: &'a Path,
    /// Its arguments, the first one being its own name.
    pub args: &'a [&'a OsStr],
    /// What its environment has beside the tracer's own: names and values.
    pub env: &'a [(&'a str, &'a str)],
    /// Descriptors it inherits, under the same numbers.
    pub inherit: &'a [BorrowedFd<'a>],
    /// Whom it runs as; `None` for the tracer's own user.
    pub user: Option<&'a Invoker>,
}

/// A child that sleeps before its first instruction.
///
/// Dropping it kills the child.
#[derive(Debug)]
pub struct Suspended {
    child: Child,
    program: PathBuf,
    user: Option<u32>,
    go: io::PipeWriter,
    status: io::PipeReader,
    /// The kernel's count of its switches so far, all of them before tracing.
    pub switches_before: KernelCount,
}

/// A child that runs. Dropping it kills it, with its process group, and reaps it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

/// How a child ended, and what `wait4` says it used.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Exit status, if it was not killed.
    pub exit_status: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Its switches, and those of the children it has waited for.
    pub rusage: KernelCount,
}

impl Command<'_> {
    /// Forks the child and waits until it sleeps.
    ///
    /// # Errors
    ///
    /// If there is no process, pipe or pidfd to be had, or if the child dies at once.
    pub fn launch_suspended(&self) -> Result<Suspended> {
        let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::errno("pipe2"))?;
        let (status_read, status_write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::errno("pipe2"))?;
        // Everything that allocates is done before the fork: after it the child may call only what is async-signal-safe.
        let program = c_string(self.program.as_os_str())?;
        let args: Vec<CString> = self.args.iter().map(|arg| c_string(arg)).collect::<Result<_>>()?;
        let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
        argv.push(std::ptr::null());
        let environment = self.environment()?;
        let mut envp: Vec<*const libc::c_char> = environment.iter().map(|entry| entry.as_ptr()).collect();
        envp.push(std::ptr::null());
        let groups: Vec<libc::gid_t> = self
            .user
            .map(|user| user.groups.iter().map(|group| group.as_raw()).collect())
            .unwrap_or_default();
        let tracer = getpid();

        // SAFETY: the child calls nothing but async-signal-safe functions until it executes or exits.
        match unsafe { fork() }.map_err(Error::errno("fork"))? {
            ForkResult::Child => {
                // If the tracer dies, its end of the pipe must be the last one.
                drop(go_write);
                let errno = self.become_program(&program, &argv, &envp, &groups, tracer, &go_read);
                // SAFETY: async-signal-safe; the descriptor is open, the buffer is four bytes. Should the write fail there
                // is nobody left to tell.
                unsafe {
                    libc::write(status_write.as_raw_fd(), (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            ForkResult::Parent { child: pid } => {
                // SAFETY: asks for a descriptor of a child that has not been reaped, so the pid is its own.
                let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
                if pidfd < 0 {
                    let source = io::Error::last_os_error();
                    // SAFETY: as above.
                    unsafe { libc::kill(pid.as_raw(), libc::SIGKILL) };
                    return Err(Error::system("pidfd_open")(source));
                }
                let child = Child {
                    pid,
                    // SAFETY: the kernel has just given us this descriptor.
                    pidfd: unsafe { OwnedFd::from_raw_fd(pidfd as i32) },
                    reaped: false,
                };
                let switches_before = wait_until_asleep(pid)?;
                Ok(Suspended {
                    child,
                    program: self.program.to_owned(),
                    user: self.user.map(|user| user.uid.as_raw()),
                    go: go_write.into(),
                    status: status_read.into(),
                    switches_before,
                })
            }
        }
    }

    /// The tracer's environment with the additions, as `name=value`.
    fn environment(&self) -> Result<Vec<CString>> {
        let added = self
            .env
            .iter()
            .map(|&(name, value)| (OsString::from(name), OsString::from(value)));
        let is_added = |name: &OsStr| self.env.iter().any(|(added, _)| OsStr::new(added) == name);
        std::env::vars_os()
            .filter(|(name, _)| !is_added(name))
            .chain(added)
            .map(|(mut entry, value)| {
                entry.push("=");
                entry.push(value);
                c_string(&entry)
            })
            .collect()
    }

    /// In the child: everything up to `execve`. Returns only if something failed, with its `errno`.
    fn become_program(
        &self,
        program: &CString,
        argv: &[*const libc::c_char],
        envp: &[*const libc::c_char],
        groups: &[libc::gid_t],
        tracer: Pid,
        go: &OwnedFd,
    ) -> i32 {
        // SAFETY: all of these are async-signal-safe system calls, on memory and descriptors that the fork has copied.
        unsafe {
            // A group of its own: Ctrl-C reaches the tracer alone, which then ends the whole group.
            if libc::setpgid(0, 0) != 0 {
                return *libc::__errno_location();
            }
            if let Some(user) = self.user
                && (libc::setgroups(groups.len(), groups.as_ptr()) != 0
                    || libc::setgid(user.gid.as_raw()) != 0
                    || libc::setuid(user.uid.as_raw()) != 0)
            {
                return *libc::__errno_location();
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return *libc::__errno_location();
            }
            // The tracer may have died before the request took effect.
            if libc::getppid() != tracer.as_raw() {
                return libc::ESRCH;
            }
            // What the tracer and Rust's runtime have set for themselves is not for the child.
            let mut signals: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut signals);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            for fd in self.inherit {
                if libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) != 0 {
                    return *libc::__errno_location();
                }
            }
            let mut byte = 0_u8;
            if libc::read(go.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
                return libc::ECANCELED;
            }
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            *libc::__errno_location()
        }
    }
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::Usage(format!("{text:?} contains a NUL byte")))
}

/// Waits until the child sleeps at the go pipe, and returns the kernel's count of its switches at that point.
fn wait_until_asleep(pid: Pid) -> Result<KernelCount> {
    let deadline = Instant::now() + SUSPEND_TIMEOUT;
    let mut before = None;
    while Instant::now() < deadline {
        let status = procfs::status(pid.as_raw(), pid.as_raw());
        match status {
            // Twice the same: it sleeps, and did not merely pass through a short sleep on its way.
            Some(status) if status.sleeping && before == Some(status) => return Ok(status.switches),
            _ => before = status,
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Err(Error::System {
        action: "suspending the program before its start",
        source: io::ErrorKind::TimedOut.into(),
    })
}

impl Suspended {
    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Lets the child go and waits until it executes its program.
    ///
    /// # Errors
    ///
    /// If the program cannot be executed.
    pub fn resume(mut self) -> Result<Child> {
        self.go.write_all(&[1]).map_err(Error::system("resuming the program"))?;
        let mut errno = [0; 4];
        match self.status.read_exact(&mut errno) {
            // End of file: `execve` has closed the other end.
            Err(_) => Ok(self.child),
            Ok(()) => Err(Error::Launch {
                program: self.program,
                user: self.user,
                source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
            }),
        }
    }
}

impl Child {
    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Becomes readable when the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills the child and its process group.
    pub fn kill(&self) {
        if !self.reaped {
            // SAFETY: the child has not been reaped, so the pid, and the group it leads, are its own. If it has not made
            // its group yet, or has ended, one of the two calls finds nothing.
            unsafe {
                libc::kill(-self.pid.as_raw(), libc::SIGKILL);
                libc::kill(self.pid.as_raw(), libc::SIGKILL);
            }
        }
    }

    /// Waits for the child's end.
    ///
    /// # Errors
    ///
    /// If it was reaped by somebody else.
    pub fn wait(&mut self) -> Result<Ended> {
        let mut status = 0;
        // SAFETY: all zeroes is a value of this plain structure.
        let mut rusage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: both pointers are to locals of the right type.
            let pid = unsafe { libc::wait4(self.pid.as_raw(), &raw mut status, 0, &raw mut rusage) };
            if pid == self.pid.as_raw() {
                break;
            }
            let source = io::Error::last_os_error();
            if source.kind() != io::ErrorKind::Interrupted {
                return Err(Error::system("wait4")(source));
            }
        }
        self.reaped = true;
        Ok(Ended {
            exit_status: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            rusage: KernelCount {
                voluntary: rusage.ru_nvcsw as u64,
                involuntary: rusage.ru_nivcsw as u64,
            },
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command<'a>(program: &'a Path, args: &'a [&'a OsStr]) -> Command<'a> {
        Command {
            program,
            args,
            env: &[("CTXTRACE_TEST_OF_LAUNCH", "7")],
            inherit: &[],
            user: None,
        }
    }

    #[test]
    fn a_suspended_program_has_done_nothing_and_then_runs() {
        let args = ["sh", "-c", "exit 7"].map(OsStr::new);
        let suspended = command(Path::new("/bin/sh"), &args).launch_suspended().expect("forked");
        let status = procfs::status(suspended.pid().as_raw(), suspended.pid().as_raw()).expect("alive");
        assert!(status.sleeping);
        assert_eq!(status.switches, suspended.switches_before);
        let mut child = suspended.resume().expect("executed");
        let ended = child.wait().expect("ended");
        assert_eq!((ended.exit_status, ended.signal), (Some(7), None));
    }

    #[test]
    fn a_program_that_cannot_be_executed_says_why() {
        let suspended = command(Path::new("/nowhere/at/all"), &[])
            .launch_suspended()
            .expect("forked");
        let error = suspended.resume().expect_err("no such file");
        assert!(
            error
                .to_string()
                .starts_with("cannot start /nowhere/at/all: No such file"),
            "{error}"
        );
    }

    #[test]
    fn dropping_a_child_ends_it() {
        let args = ["sleep", "1000"].map(OsStr::new);
        let child = command(Path::new("/bin/sleep"), &args)
            .launch_suspended()
            .expect("forked")
            .resume()
            .expect("executed");
        let pid = child.pid();
        drop(child);
        assert_eq!(procfs::status(pid.as_raw(), pid.as_raw()), None);
    }

    #[test]
    fn a_child_has_our_environment_and_what_is_added() {
        let args = ["sh", "-c", "test -n \"$PATH\" && exit $CTXTRACE_TEST_OF_LAUNCH"].map(OsStr::new);
        let mut child = command(Path::new("/bin/sh"), &args)
            .launch_suspended()
            .expect("forked")
            .resume()
            .expect("executed");
        assert_eq!(child.wait().expect("ended").exit_status, Some(7));
    }

    #[test]
    fn a_killed_child_tells_its_signal() {
        let args = ["sh", "-c", "kill -SEGV $$"].map(OsStr::new);
        let mut child = command(Path::new("/bin/sh"), &args)
            .launch_suspended()
            .expect("forked")
            .resume()
            .expect("executed");
        assert_eq!(child.wait().expect("ended").signal, Some(libc::SIGSEGV));
    }
}
