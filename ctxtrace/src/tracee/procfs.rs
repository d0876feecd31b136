//! Reads processes and threads from `/proc`: their identities, their states, and the kernel's own counts of their switches.
//!
//! Files are parsed as bytes: the kernel cuts a name after 15 bytes, possibly inside a UTF-8 character, and a name need not be
//! UTF-8. A file that does not exist is distinguished from a file that cannot be opened: only the first case means that a thread
//! is gone.

use std::io;
use std::path::{Path, PathBuf};

use ctxtrace_common::thread::KernelCount;
use procfs::process::Process;

/// One reading of `/proc/PID/task/TID/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The letter of the state, as in `ps`.
    pub state: char,
    /// The id of the process that the thread belongs to.
    pub tgid: u32,
    /// The id of the process that traces the thread with `ptrace`, as a debugger does; 0 for none.
    pub tracer_pid: u32,
    /// The effective user id.
    pub effective_uid: u32,
    /// The id of the thread in its innermost pid namespace.
    pub innermost_pid: Option<u32>,
    /// `voluntary_ctxt_switches` and `nonvoluntary_ctxt_switches`.
    pub switches: KernelCount,
}

impl Status {
    /// Whether the thread sleeps in the kernel and waits for an event (interruptible sleep).
    #[must_use]
    pub fn is_sleeping(&self) -> bool {
        self.state == 'S'
    }

    /// Whether the thread has ended but was not reaped yet (a zombie).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        is_ended(self.state)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = text.split(|&byte| byte == b'\n');
            lines.find_map(|line| std::str::from_utf8(line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?).ok())
        };
        let number = |name: &str, index: usize| field(name)?.split_whitespace().nth(index)?.parse().ok();
        let count = |name: &str| field(name)?.trim().parse::<u64>().ok();
        Some(Self {
            state: field("State")?.trim_start().chars().next()?,
            tgid: number("Tgid", 0)?,
            tracer_pid: number("TracerPid", 0).unwrap_or(0),
            effective_uid: number("Uid", 1)?,
            innermost_pid: field("NSpid").and_then(|ids| ids.split_whitespace().last()?.parse().ok()),
            switches: KernelCount {
                voluntary: count("voluntary_ctxt_switches")?,
                involuntary: count("nonvoluntary_ctxt_switches")?,
            },
        })
    }
}

/// One reading of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// The letter of the state, as in `ps`.
    pub state: char,
    /// The process id of the parent.
    pub parent: u32,
    /// The flags of the thread (`task_struct.flags`).
    flags: u32,
    /// The start time in clock ticks since the boot of the machine.
    start_ticks: u64,
}

/// The length of a clock tick of [`Stat`] in nanoseconds: `USER_HZ` is 100 on every machine that ctxtrace runs on.
const TICK_NS: u64 = 10_000_000;
/// The flag of kernel threads (kernel: `include/linux/sched.h`).
const PF_KTHREAD: u32 = 0x0020_0000;

impl Stat {
    /// Whether the thread is a kernel thread.
    #[must_use]
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Whether a `task_struct.start_boottime` (nanoseconds) is this start time, in the resolution of `/proc`.
    #[must_use]
    pub fn started_at(&self, start_boottime_ns: u64) -> bool {
        self.start_ticks == start_boottime_ns / TICK_NS
    }

    /// Parses the file. Only the name may contain spaces and parentheses.
    fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|&byte| byte == b'(')?;
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let name = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(&text[close + 1..]).ok()?;
        // The state is the third field of the file (`man 5 proc`).
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            name,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

fn is_ended(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// Turns the error of a file that does not exist, or whose thread is gone, into `None`.
fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parsed<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
    let Some(text) = unless_gone(std::fs::read(path))? else {
        return Ok(None);
    };
    let unknown = || io::Error::other(format!("{} does not have the expected format", path.display()));
    parse(&text).map(Some).ok_or_else(unknown)
}

/// Reads the status of a thread; `None` if the thread is gone.
///
/// # Errors
///
/// If the status cannot be read. This does not mean that the thread is gone.
pub fn status(pid: u32, tid: u32) -> io::Result<Option<Status>> {
    parsed(Path::new(&format!("/proc/{pid}/task/{tid}/status")), Status::parse)
}

/// Reads the `stat` file of the main thread of a process; `None` if there is no such process.
///
/// # Errors
///
/// If the file cannot be read. This does not mean that the process is gone.
pub fn stat(pid: u32) -> io::Result<Option<Stat>> {
    parsed(Path::new(&format!("/proc/{pid}/stat")), Stat::parse)
}

/// Reads the `stat` file of any thread of a process; `None` if there is no such thread.
///
/// # Errors
///
/// If the file cannot be read. This does not mean that the thread is gone.
pub fn thread_stat(pid: u32, tid: u32) -> io::Result<Option<Stat>> {
    parsed(Path::new(&format!("/proc/{pid}/task/{tid}/stat")), Stat::parse)
}

fn ids(folder: &str) -> io::Result<Vec<u32>> {
    let id = |entry: io::Result<std::fs::DirEntry>| match entry {
        Ok(entry) => entry.file_name().to_str()?.parse().ok().map(Ok),
        Err(error) => Some(Err(error)),
    };
    std::fs::read_dir(folder)?.filter_map(id).collect()
}

/// Returns the ids of all threads of a process, including those that have ended but were not reaped yet. The list is empty if
/// there is no such process.
///
/// # Errors
///
/// If the ids cannot be read.
pub fn threads(pid: u32) -> io::Result<Vec<u32>> {
    Ok(unless_gone(ids(&format!("/proc/{pid}/task")))?.unwrap_or_default())
}

/// Returns the ids of all processes.
///
/// # Errors
///
/// If the ids cannot be read.
pub fn processes() -> io::Result<Vec<u32>> {
    ids("/proc")
}

/// Returns a living thread of a process: the main thread if it lives, otherwise any other; `None` if the process has ended.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn living_thread(pid: u32) -> io::Result<Option<u32>> {
    let lives = |tid| thread_stat(pid, tid).map(|stat| stat.is_some_and(|stat| !is_ended(stat.state)));
    if lives(pid)? {
        return Ok(Some(pid));
    }
    for tid in threads(pid)? {
        if tid != pid && lives(tid)? {
            return Ok(Some(tid));
        }
    }
    Ok(None)
}

/// Returns the folder in `/proc` with the links of a process (`exe`, `root`, `ns`). If the main thread has ended while the
/// process continues, this is the folder of another thread, because that of the main thread no longer has these links.
#[must_use]
pub fn process_folder(pid: u32) -> PathBuf {
    match living_thread(pid) {
        Ok(Some(tid)) if tid != pid => PathBuf::from(format!("/proc/{pid}/task/{tid}")),
        _ => PathBuf::from(format!("/proc/{pid}")),
    }
}

/// Whether a process has ended, that is, does not exist or is a zombie. If `/proc` cannot be read, the answer is `false`.
#[must_use]
pub fn is_gone(pid: u32) -> bool {
    matches!(living_thread(pid), Ok(None))
}

/// Returns the effective capabilities of this process as the kernel's bit mask; 0 if they cannot be read.
#[must_use]
pub fn effective_capabilities() -> u64 {
    Process::myself()
        .and_then(|process| process.status())
        .map_or(0, |status| status.capeff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_has_a_status_and_thread_0_has_none() {
        let pid = std::process::id();
        let status_of = |tid| status(pid, tid).expect("readable");
        assert_eq!(status_of(pid).expect("it lives").tgid, pid);
        assert_eq!(status_of(0), None);
        let stat = stat(pid).expect("readable").expect("it lives");
        assert!(stat.start_ticks > 0 && !stat.is_kernel_thread());
        assert!(threads(pid).expect("readable").contains(&pid));
        assert!(!is_gone(pid));
        assert_eq!(process_folder(pid), PathBuf::from(format!("/proc/{pid}")));
    }

    #[test]
    fn a_name_that_is_no_text_is_a_name() {
        let text = b"7 (a) b\xe3\x82) S 4 5 6 0 -1 2097152 8 9 10 11 12 13 14 15 16 17 18 19 4321 23 24";
        let stat = Stat::parse(text).expect("the format of the kernel");
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a) b\u{fffd}", 'S', 4));
        assert!(stat.is_kernel_thread() && stat.started_at(43_219_999_999) && !stat.started_at(43_220_000_000));
        let text =
            b"Name:\tw\xe6\x97\nUmask:\t0022\nState:\tt (tracing stop)\nTgid:\t7\nPid:\t8\nPPid:\t1\nTracerPid:\t9\n\
            Uid:\t0\t5\t0\t0\nNSpid:\t8\t2\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n";
        let status = Status::parse(text).expect("the format of the kernel");
        let switches = KernelCount {
            voluntary: 3,
            involuntary: 4,
        };
        let expected = Status {
            state: 't',
            tgid: 7,
            tracer_pid: 9,
            effective_uid: 5,
            innermost_pid: Some(2),
            switches,
        };
        assert_eq!(status, expected);
    }

    #[test]
    fn what_cannot_be_opened_is_not_gone() {
        let error = |errno| unless_gone::<()>(Err(io::Error::from_raw_os_error(errno)));
        assert!(matches!(error(libc::ENOENT), Ok(None)));
        assert!(matches!(error(libc::ESRCH), Ok(None)));
        assert!(error(libc::EMFILE).is_err() && error(libc::EACCES).is_err());
    }
}
