//! Runs a program to its end and measures its time and memory.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The interval at which the memory of a running program is read.
const ASKED: Duration = Duration::from_millis(20);

/// A program that has ended.
pub(crate) struct Finished {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) wall: Duration,
    /// The maximum resident memory of the program, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Runs a program. The memory is that of the program or of one of its children, whichever is larger.
pub(crate) fn run(command: &mut Command) -> Result<Finished> {
    finish(command, |_| 0)
}

/// Runs a program and measures its own memory only, not that of its children. The memory is read while the program runs, so an
/// increase in its last milliseconds may be missed.
pub(crate) fn run_and_watch(command: &mut Command) -> Result<Finished> {
    finish(command, |pid| {
        let mut peak_bytes = 0;
        // A program that has ended but was not waited for has no memory, so `VmHWM` is missing and the loop ends.
        while let Some(bytes) = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()
            .and_then(|status| high_water_bytes(&status))
        {
            peak_bytes = bytes;
            thread::sleep(ASKED);
        }
        peak_bytes
    })
}

/// Runs a program and calls `watch` with its process id; `watch` returns the maximum memory in bytes. If it returns 0, the kernel's
/// `ru_maxrss` is used.
fn finish(command: &mut Command, watch: impl FnOnce(u32) -> u64) -> Result<Finished> {
    let program = command.get_program().to_string_lossy().into_owned();
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let seen_bytes = watch(child.id());
    let (status, usage) = wait(child.id()).with_context(|| format!("cannot wait for {program}"))?;
    let wall = began.elapsed();
    let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().unwrap_or_default());
    if status != 0 {
        bail!("{program} failed (wait status {status:#x}): {}", last_line(&stderr));
    }
    let peak_bytes = match seen_bytes {
        // `ru_maxrss` is in units of 1,024 bytes.
        0 => usage.ru_maxrss as u64 * 1_024,
        seen => seen,
    };
    Ok(Finished {
        stdout,
        stderr,
        wall,
        peak_bytes,
    })
}

/// Reads a stream to its end in a thread, so that the program never blocks on a full pipe.
pub(crate) fn read_all(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a child of this process, and returns its wait status and its resource usage.
fn wait(pid: u32) -> io::Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: `rusage` consists of numbers, for which zero is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for writes of the kernel.
        let waited = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, &raw mut usage) };
        if waited >= 0 {
            return Ok((status, usage));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Returns `VmHWM`, the maximum resident memory, from the text of `/proc/PID/status`, in bytes.
fn high_water_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

/// Returns the last line of a text that is not blank.
fn last_line(text: &str) -> &str {
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("the program printed no error message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_run_to_its_end() {
        let finished = run(Command::new("sh").args(["-c", "echo out; echo err >&2"])).expect("sh runs");
        assert_eq!(finished.stdout, "out\n");
        assert_eq!(finished.stderr, "err\n");
        assert!(finished.peak_bytes > 100_000, "{}", finished.peak_bytes);
    }

    #[test]
    fn a_program_that_fails_has_its_last_word() {
        let error = run(Command::new("sh").args(["-c", "echo no such luck >&2; echo; exit 3"])).err();
        let said = error.expect("the program fails").to_string();
        assert_eq!(said, "sh failed (wait status 0x300): no such luck");
    }

    #[test]
    fn memory_is_that_of_the_program_itself() {
        let finished = run_and_watch(Command::new("sleep").arg("0.2")).expect("sleep runs");
        assert!(
            (100_000..50_000_000).contains(&finished.peak_bytes),
            "{}",
            finished.peak_bytes
        );
        assert_eq!(high_water_bytes("Name:\tx\nVmHWM:\t  12 kB\n"), Some(12 * 1_024));
        assert_eq!(
            high_water_bytes("Name:\tx\n"),
            None,
            "the status of a program that has ended lacks VmHWM"
        );
    }
}
