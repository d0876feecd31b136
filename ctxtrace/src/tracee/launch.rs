//! Starts a program suspended.
//!
//! The child is forked, switches to the invoking user, and blocks in a `read` on the *go* pipe before it executes the program.
//! While it sleeps there, the tracer reads the kernel's count of its switches and attaches. Then the tracer resumes the child,
//! and its first traced event is the wakeup from that read. If `execve` fails, the child sends the error over the *status* pipe;
//! if `execve` succeeds, it closes this pipe (`samply` starts its targets in the same way).
//!
//! If the tracer is not root but has capabilities, the child drops all of them. `PR_SET_NO_NEW_PRIVS` also prevents it from
//! gaining capabilities from the file that it executes: the tracer's own executable may have file capabilities, and it also runs
//! workloads.
//!
//! The child never outlives the tracer: `PR_SET_PDEATHSIG` kills it when the thread that forked it ends, so the tracer forks from
//! its main thread. The signal is requested after the change of user, because that would clear the request.

use std::ffi::{CString, OsStr};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ctxtrace_common::thread::KernelCount;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, geteuid, getpid, pipe2};

use super::environment::Environment;
use super::user::{self, Invoker};
use super::{descriptors, pidfd, procfs};
use crate::error::{Error, Result};
use ctxtrace_format::run::Exit;

/// The time that a child may take until it sleeps at the go pipe; usually it needs microseconds. After this time the start fails.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A program to start, and how to start it.
pub struct Command<'a> {
    /// The path of the program.
    pub program: &'a Path,
    /// The arguments; the first one is the name of the program.
    pub args: &'a [&'a OsStr],
    /// The environment of the program.
    pub env: &'a Environment,
    /// The descriptors that the program inherits, with the same numbers.
    pub inherit: &'a [BorrowedFd<'a>],
    /// The user that the program runs as; `None` for the tracer's own user.
    pub user: Option<&'a Invoker>,
    /// Whether the program gets its own process group. If so, Ctrl-C reaches only the tracer, which then ends the whole group.
    /// Otherwise the program shares the terminal, and Ctrl-C reaches both.
    pub own_group: bool,
}

/// The arguments of `execve` and of the change of user in C's form. They are prepared before the fork.
struct Prepared<'a> {
    program: &'a CString,
    argv: &'a [*const libc::c_char],
    /// The arguments that replace `argv` if a shell has to run the program.
    by_shell: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    groups: &'a [libc::gid_t],
    /// Whether the tracer traces with capabilities instead of as root. The child must drop them.
    by_capabilities: bool,
    /// The limits of descriptors that the tracer was started with, if it has raised them.
    descriptors: Option<libc::rlimit>,
}

/// A child that sleeps before its first instruction.
///
/// Dropping this value kills the child.
#[derive(Debug)]
pub struct Suspended {
    child: Child,
    program: PathBuf,
    user: Option<u32>,
    go: io::PipeWriter,
    status: io::PipeReader,
    /// The kernel's count of the child's switches before tracing starts.
    pub switches_before: KernelCount,
}

/// A running child. Dropping this value kills the child and its process group, and reaps the child.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

/// The exit of a child, and its resource usage from `wait4`.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The exit status, or the signal that killed the child.
    pub exit: Exit,
    /// The switches of the child and of its own children that it has waited for.
    pub rusage: KernelCount,
}

impl Command<'_> {
    /// Forks the child and waits until it sleeps.
    ///
    /// # Errors
    ///
    /// If no process, pipe or pidfd can be created, or if the child ends before it sleeps.
    pub fn launch_suspended(&self) -> Result<Suspended> {
        let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::errno("pipe2"))?;
        let (status_read, status_write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::errno("pipe2"))?;
        // All allocations are made before the fork, because after it the child may call only async-signal-safe functions.
        let program = c_string(self.program.as_os_str())?;
        let args: Vec<CString> = self.args.iter().map(|arg| c_string(arg)).collect::<Result<_>>()?;
        let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
        argv.push(std::ptr::null());
        let environment = self.env.to_c()?;
        // A script without an interpreter line is run by a shell, as POSIX specifies for `execvp`.
        let shell = [c_string(OsStr::new("/bin/sh"))?, program.clone()];
        let mut by_shell: Vec<*const libc::c_char> = shell.iter().map(|arg| arg.as_ptr()).collect();
        by_shell.extend(argv.iter().skip(1));
        if by_shell.last() != Some(&std::ptr::null()) {
            by_shell.push(std::ptr::null());
        }
        let mut envp: Vec<*const libc::c_char> = environment.iter().map(|entry| entry.as_ptr()).collect();
        envp.push(std::ptr::null());
        let groups: Vec<libc::gid_t> = self
            .user
            .map(|user| user.groups.iter().map(|group| group.as_raw()).collect())
            .unwrap_or_default();
        let by_capabilities = !geteuid().is_root() && procfs::effective_capabilities() != 0;
        let tracer = getpid();

        // SAFETY: the child calls only async-signal-safe functions until it executes the program or exits.
        match unsafe { fork() }.map_err(Error::errno("fork"))? {
            ForkResult::Child => {
                // The tracer must hold the only writing end, so that the read in the child ends if the tracer dies.
                drop(go_write);
                let prepared = Prepared {
                    program: &program,
                    argv: &argv,
                    by_shell: &by_shell,
                    envp: &envp,
                    groups: &groups,
                    by_capabilities,
                    descriptors: descriptors::at_start(),
                };
                let errno = self.become_program(&prepared, tracer, &go_read);
                // SAFETY: both calls are async-signal-safe; the descriptor is open and the buffer has four bytes. An error of the
                // write is ignored, because it means that the tracer has ended.
                unsafe {
                    libc::write(status_write.as_raw_fd(), (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            ForkResult::Parent { child: pid } => {
                // The child must hold the only writing end, so that the pipe ends with the child.
                drop(status_write);
                // The child has not been reaped, so its id cannot belong to another process.
                let pidfd = match pidfd::open(pid.as_raw() as u32) {
                    Ok(pidfd) => pidfd,
                    Err(source) => {
                        let status = &mut 0;
                        // SAFETY: the child has not been reaped, and the pointer is to a local of the right type.
                        unsafe {
                            libc::kill(pid.as_raw(), libc::SIGKILL);
                            libc::waitpid(pid.as_raw(), status, 0);
                        }
                        return Err(Error::system("pidfd_open")(source));
                    }
                };
                let mut suspended = Suspended {
                    child: Child {
                        pid,
                        pidfd,
                        reaped: false,
                    },
                    program: self.program.to_owned(),
                    user: self.user.map(|user| user.uid.as_raw()),
                    go: go_write.into(),
                    status: status_read.into(),
                    switches_before: KernelCount::default(),
                };
                suspended.switches_before = suspended.wait_until_asleep()?;
                Ok(suspended)
            }
        }
    }

    /// Runs in the child: does everything up to `execve`. Returns only if a step failed, with its `errno`.
    fn become_program(&self, prepared: &Prepared<'_>, tracer: Pid, go: &OwnedFd) -> i32 {
        // SAFETY: all calls are async-signal-safe, and they use only memory and descriptors that the fork has copied.
        unsafe {
            if self.own_group && libc::setpgid(0, 0) != 0 {
                return *libc::__errno_location();
            }
            if let Some(user) = self.user
                && (libc::setgroups(prepared.groups.len(), prepared.groups.as_ptr()) != 0
                    || libc::setgid(user.gid.as_raw()) != 0
                    || libc::setuid(user.uid.as_raw()) != 0)
            {
                return *libc::__errno_location();
            }
            if prepared.by_capabilities
                && (user::give_up_capabilities() != 0 || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
            {
                return *libc::__errno_location();
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return *libc::__errno_location();
            }
            // The tracer may have ended before `prctl` took effect.
            if libc::getppid() != tracer.as_raw() {
                return libc::ESRCH;
            }
            // Undo the settings that the tracer and Rust's runtime have made for themselves: limits, signal mask, signal actions.
            if descriptors::restore(prepared.descriptors.as_ref()).is_err() {
                return *libc::__errno_location();
            }
            let mut signals: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut signals);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            for fd in self.inherit {
                if libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) != 0 {
                    return *libc::__errno_location();
                }
            }
            let mut byte = 0_u8;
            if libc::read(go.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
                return libc::ECANCELED;
            }
            let envp = prepared.envp.as_ptr();
            libc::execve(prepared.program.as_ptr(), prepared.argv.as_ptr(), envp);
            if *libc::__errno_location() == libc::ENOEXEC {
                libc::execve(prepared.by_shell[0], prepared.by_shell.as_ptr(), envp);
                return libc::ENOEXEC;
            }
            *libc::__errno_location()
        }
    }
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::Usage(format!("{text:?} contains a NUL byte")))
}

impl Suspended {
    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Waits until the child sleeps at the go pipe, and returns the kernel's count of its switches at that point.
    fn wait_until_asleep(&mut self) -> Result<KernelCount> {
        const SUSPENDING: &str = "suspending the program before its start";
        let pid = self.child.pid.as_raw() as u32;
        let deadline = Instant::now() + SUSPEND_TIMEOUT;
        let mut before = None;
        while Instant::now() < deadline {
            let status = procfs::status(pid, pid).map_err(Error::system(SUSPENDING))?;
            match status {
                // Two equal readings show that the child sleeps at the pipe and is not in a short sleep on the way there.
                Some(status) if status.is_sleeping() && before.as_ref() == Some(&status) => return Ok(status.switches),
                Some(status) if status.has_ended() => {
                    let killed = || Error::system(SUSPENDING)(io::Error::other("it was killed"));
                    return Err(self.why_it_ended().unwrap_or_else(killed));
                }
                _ => before = status,
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Err(Error::system(SUSPENDING)(io::ErrorKind::TimedOut.into()))
    }

    /// Waits for the error of the child's start; `None` if the child executes its program, because `execve` closes the pipe.
    fn why_it_ended(&mut self) -> Option<Error> {
        let mut errno = [0; 4];
        self.status.read_exact(&mut errno).ok()?;
        Some(Error::Launch {
            program: self.program.clone(),
            user: self.user,
            source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
        })
    }

    /// Resumes the child and waits until it executes its program.
    ///
    /// # Errors
    ///
    /// If the program cannot be executed.
    pub fn resume(mut self) -> Result<Child> {
        self.go.write_all(&[1]).map_err(Error::system("resuming the program"))?;
        match self.why_it_ended() {
            None => Ok(self.child),
            Some(error) => Err(error),
        }
    }
}

impl Child {
    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of the child, which becomes readable when the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Detaches from a child that cannot be killed: dropping this value does not wait for it.
    pub fn leave(mut self) {
        self.reaped = true;
    }

    /// Sends the child a signal.
    pub fn signal(&self, signal: Signal) {
        if !self.reaped {
            // SAFETY: the child has not been reaped, so its id cannot belong to another process.
            unsafe { libc::kill(self.pid.as_raw(), signal as i32) };
        }
    }

    /// Kills the child and the process group that it leads.
    pub fn kill(&self) {
        if !self.reaped {
            // SAFETY: the child has not been reaped, so its id, and the id of its group, cannot belong to another process. If the
            // child leads no group, or has ended, one of the two calls fails without an effect.
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
    /// If `wait4` fails, for example because the child was already reaped.
    pub fn wait(&mut self) -> Result<Ended> {
        let mut status = 0;
        // SAFETY: all-zero bytes are a valid value of this plain structure.
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
            exit: Exit {
                status: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            },
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
    use std::sync::LazyLock;

    fn command<'a>(program: &'a Path, args: &'a [&'a OsStr]) -> Command<'a> {
        static ENV: LazyLock<Environment> =
            LazyLock::new(|| Environment::for_user(None).with("CTXTRACE_TEST_OF_LAUNCH", "7"));
        Command {
            program,
            args,
            env: &ENV,
            inherit: &[],
            user: None,
            own_group: true,
        }
    }

    #[test]
    fn a_suspended_program_has_done_nothing_and_then_runs() {
        let args = ["sh", "-c", "exit 7"].map(OsStr::new);
        let suspended = command(Path::new("/bin/sh"), &args).launch_suspended().expect("forked");
        let pid = suspended.pid().as_raw() as u32;
        let status = procfs::status(pid, pid).expect("readable").expect("alive");
        assert!(status.is_sleeping());
        assert_eq!(status.switches, suspended.switches_before);
        let mut child = suspended.resume().expect("executed");
        let ended = child.wait().expect("ended");
        assert_eq!((ended.exit.status, ended.exit.signal), (Some(7), None));
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
        let pid = child.pid().as_raw() as u32;
        drop(child);
        assert_eq!(procfs::status(pid, pid).expect("readable"), None);
    }

    #[test]
    fn a_child_has_our_environment_and_what_is_added() {
        let args = ["sh", "-c", "test -n \"$PATH\" && exit $CTXTRACE_TEST_OF_LAUNCH"].map(OsStr::new);
        let mut child = command(Path::new("/bin/sh"), &args)
            .launch_suspended()
            .expect("forked")
            .resume()
            .expect("executed");
        assert_eq!(child.wait().expect("ended").exit.status, Some(7));
    }

    #[test]
    fn a_killed_child_reports_its_signal() {
        let args = ["sh", "-c", "kill -SEGV $$"].map(OsStr::new);
        let mut child = command(Path::new("/bin/sh"), &args)
            .launch_suspended()
            .expect("forked")
            .resume()
            .expect("executed");
        assert_eq!(child.wait().expect("ended").exit.signal, Some(libc::SIGSEGV));
    }

    #[test]
    fn a_child_that_dies_before_it_sleeps_says_why() {
        // The kernel rejects this user id (kernel: `kernel/sys.c`, `__sys_setuid()`), and without root `setgroups` fails.
        let invalid_user = Invoker {
            uid: nix::unistd::Uid::from_raw(u32::MAX),
            gid: nix::unistd::getegid(),
            groups: Vec::new(),
        };
        let unable = Command {
            user: Some(&invalid_user),
            ..command(Path::new("/bin/true"), &[])
        };
        let error = unable.launch_suspended().expect_err("the child has ended").to_string();
        assert!(error.starts_with("cannot start /bin/true: "), "{error}");
    }

    #[test]
    fn a_child_that_is_killed_before_its_start_is_no_child_that_runs() {
        let args = ["sleep", "1000"].map(OsStr::new);
        let suspended = command(Path::new("/bin/sleep"), &args)
            .launch_suspended()
            .expect("forked");
        let pid = suspended.pid().as_raw() as u32;
        suspended.child.signal(Signal::SIGKILL);
        while !procfs::is_gone(pid) {
            std::thread::yield_now();
        }
        let error = suspended.resume().expect_err("a killed child").to_string();
        assert!(error.contains("resuming the program"), "{error}");
        assert_eq!(
            procfs::status(pid, pid).expect("readable"),
            None,
            "the child was reaped"
        );
    }

    #[test]
    fn a_script_without_an_interpreter_is_the_shells() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("script");
        std::fs::write(&script, "exit $(($1 + 1))\n").expect("written");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("made executable");
        let args = [script.as_os_str(), OsStr::new("4")];
        let mut child = command(&script, &args)
            .launch_suspended()
            .expect("forked")
            .resume()
            .expect("executed");
        assert_eq!(child.wait().expect("ended").exit.status, Some(5));
    }
}
