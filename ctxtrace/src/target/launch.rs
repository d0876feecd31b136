//! Starting a program suspended.
//!
//! The child is forked, becomes the invoking user, and blocks in a `read` on the *go* pipe before it executes anything.
//! While it sleeps there the tracer notes the kernel's count of its switches and attaches; then it is let go, and its first
//! traced event is the wakeup out of that read. Should `execve` fail, the reason comes back over the *status* pipe, which
//! an `execve` that works closes (`samply` starts its targets in the same way).
//!
//! Where the tracer is not root and has capabilities, the child gives them all up, and can get none by executing a program that has
//! some (`PR_SET_NO_NEW_PRIVS`): the tracer's own executable may be one, and is a workload too.
//!
//! The child never outlives the tracer: `PR_SET_PDEATHSIG` kills it when the thread that forked it ends, so the tracer
//! forks from its main thread. The request is made after the change of user, which would clear it.

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
use crate::trace::run::Exit;

/// How long a child may take to fall asleep at the go pipe; it needs microseconds.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What to start, and how.
pub struct Command<'a> {
    /// The program's path.
    pub program: &'a Path,
    /// Its arguments, the first one being its own name.
    pub args: &'a [&'a OsStr],
    /// Its environment.
    pub env: &'a Environment,
    /// Descriptors it inherits, under the same numbers.
    pub inherit: &'a [BorrowedFd<'a>],
    /// Whom it runs as; `None` for the tracer's own user.
    pub user: Option<&'a Invoker>,
    /// Whether it gets a process group of its own. Then Ctrl-C reaches the tracer alone, which ends the whole group; without
    /// it the program has the terminal, and Ctrl-C reaches both.
    pub own_group: bool,
}

/// What `execve` and the change of user want, in C's form. All of it is there before the fork.
struct Prepared<'a> {
    program: &'a CString,
    argv: &'a [*const libc::c_char],
    /// In place of `argv` where a shell has to run the program.
    by_shell: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    groups: &'a [libc::gid_t],
    /// Whether the tracer may trace by capabilities, which are not for the child.
    by_capabilities: bool,
    /// The limits of descriptors that the tracer was started with, if it has others now.
    descriptors: Option<libc::rlimit>,
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
    /// By itself or by a signal.
    pub exit: Exit,
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
        let environment = self.env.to_c()?;
        // What a shell would do with a script that does not name its interpreter (POSIX, `execvp`).
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

        // SAFETY: the child calls nothing but async-signal-safe functions until it executes or exits.
        match unsafe { fork() }.map_err(Error::errno("fork"))? {
            ForkResult::Child => {
                // If the tracer dies, its end of the pipe must be the last one.
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
                // SAFETY: async-signal-safe; the descriptor is open, the buffer is four bytes. Should the write fail there
                // is nobody left to tell.
                unsafe {
                    libc::write(status_write.as_raw_fd(), (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            ForkResult::Parent { child: pid } => {
                // The tracer's copy goes first, so that the end of the child is the end of the pipe.
                drop(status_write);
                // The child has not been reaped, so the id is its own.
                let pidfd = match pidfd::open(pid.as_raw() as u32) {
                    Ok(pidfd) => pidfd,
                    Err(source) => {
                        let status = &mut 0;
                        // SAFETY: as above; the pointer is to a local of the right type.
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

    /// In the child: everything up to `execve`. Returns only if something failed, with its `errno`.
    fn become_program(&self, prepared: &Prepared<'_>, tracer: Pid, go: &OwnedFd) -> i32 {
        // SAFETY: all of these are async-signal-safe system calls, on memory and descriptors that the fork has copied.
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
            // The tracer may have died before the request took effect.
            if libc::getppid() != tracer.as_raw() {
                return libc::ESRCH;
            }
            // What the tracer and Rust's runtime have set for themselves is not for the child.
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
                // Twice the same: it sleeps, and did not merely pass through a short sleep on its way.
                Some(status) if status.is_sleeping() && before.as_ref() == Some(&status) => return Ok(status.switches),
                Some(status) if status.has_ended() => {
                    let killed = || Error::system(SUSPENDING)(io::Error::other("it has been killed"));
                    return Err(self.why_it_ended().unwrap_or_else(killed));
                }
                _ => before = status,
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Err(Error::system(SUSPENDING)(io::ErrorKind::TimedOut.into()))
    }

    /// Waits for what the child has to say of its start: nothing, if it executes its program, which closes the pipe.
    fn why_it_ended(&mut self) -> Option<Error> {
        let mut errno = [0; 4];
        self.status.read_exact(&mut errno).ok()?;
        Some(Error::Launch {
            program: self.program.clone(),
            user: self.user,
            source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
        })
    }

    /// Lets the child go and waits until it executes its program.
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

    /// Becomes readable when the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Leaves a child that cannot be ended to itself: it is not waited for.
    pub fn leave(mut self) {
        self.reaped = true;
    }

    /// Sends the child a signal.
    pub fn signal(&self, signal: Signal) {
        if !self.reaped {
            // SAFETY: the child has not been reaped, so the pid is its own.
            unsafe { libc::kill(self.pid.as_raw(), signal as i32) };
        }
    }

    /// Kills the child and the process group it leads.
    pub fn kill(&self) {
        if !self.reaped {
            // SAFETY: the child has not been reaped, so the pid, and the group it leads, are its own. If it leads no group,
            // or has ended, one of the two calls finds nothing.
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
    fn a_killed_child_tells_its_signal() {
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
        // No system call takes this id (kernel: `kernel/sys.c`, `__sys_setuid()`), and who is not root may not set groups.
        let nobody = Invoker {
            uid: nix::unistd::Uid::from_raw(u32::MAX),
            gid: nix::unistd::getegid(),
            groups: Vec::new(),
        };
        let unable = Command {
            user: Some(&nobody),
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
        let error = suspended.resume().expect_err("it is dead").to_string();
        assert!(error.contains("resuming the program"), "{error}");
        assert_eq!(procfs::status(pid, pid).expect("readable"), None, "it was waited for");
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
