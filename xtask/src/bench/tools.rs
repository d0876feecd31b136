//! The tools that people use for the same: whether they are there, and running them beside a target. Nothing is installed: what is
//! missing is named with its Debian package.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::losses::Losses;
use crate::process;

/// How long a tool may take until it traces: some compile their program first.
const READY: Duration = Duration::from_secs(10);
/// What it is given to begin, where it does not say that it has.
const BEGINNING: Duration = Duration::from_millis(1_500);
/// How long it may take to say what it has found: some look up every symbol.
const ENDING: Duration = Duration::from_secs(30);

/// The Debian package that `perf` is in.
pub(super) const OF_PERF: &str = "linux-perf";

/// Where a program is.
pub(super) fn find(program: &str, package: &str) -> Result<PathBuf> {
    let in_sbin = PathBuf::from("/usr/sbin").join(program);
    let found = process::programs(program).into_iter().next();
    found
        .or_else(|| in_sbin.is_file().then_some(in_sbin))
        .with_context(|| format!("there is no {program} (Debian: apt install {package})"))
}

/// A tool that traces the whole system until it is told to end.
pub(super) struct Tool {
    pub(super) words: &'static [&'static str],
    /// The Debian package it is in.
    pub(super) package: &'static str,
    /// What it says when it traces.
    pub(super) says: Option<&'static str>,
    /// What its words for something lost contain, and what that is; a tool without such words does not say.
    pub(super) loses: Option<(&'static str, &'static str)>,
}

impl Tool {
    /// Does something while it traces: the result, and what it says it lost.
    pub(super) fn beside<T>(&self, something: impl FnOnce() -> Result<T>) -> Result<(T, Losses)> {
        let mut command = Command::new(find(self.words[0], self.package)?);
        let mut running = Running::start(command.args(&self.words[1..]))?;
        running.wait_for(self.says)?;
        let result = something();
        let said = running.end();
        Ok((result?, self.losses(&said)))
    }

    fn losses(&self, said: &str) -> Losses {
        self.loses.map_or_else(Losses::not_told, |(words, what)| {
            Losses::of(what, said.lines().filter(|line| line.contains(words)).count() as u64)
        })
    }
}

/// A program that runs beside; it is ended as Ctrl-C would end it, and then reaped.
pub(super) struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts it.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("it cannot be started")?;
        let said = Arc::new(Mutex::new(String::new()));
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        let listen = |stream| {
            let said = Arc::clone(&said);
            thread::spawn(move || listen(stream, &said))
        };
        Ok(Self {
            readers: streams.into_iter().flatten().map(listen).collect(),
            child,
            said,
        })
    }

    /// Waits until it says that it traces, or gives it the time to begin. It must not have ended then.
    pub(super) fn wait_for(&mut self, says: Option<&str>) -> Result<()> {
        let since = Instant::now();
        match says {
            None => thread::sleep(BEGINNING),
            Some(says) => {
                while !self.said().contains(says) {
                    if since.elapsed() > READY {
                        bail!("it did not say within {} s that it traces", READY.as_secs());
                    }
                    self.must_run()?;
                    thread::sleep(Duration::from_millis(20));
                }
                thread::sleep(Duration::from_millis(300));
            }
        }
        self.must_run()
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it: everything that it said.
    pub(super) fn end(mut self) -> String {
        self.interrupt();
        self.said()
    }

    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.listen_to_the_end();
            bail!(
                "it ended by itself: {status} {}",
                self.said().lines().next().unwrap_or_default()
            );
        }
        Ok(())
    }

    fn interrupt(&mut self) {
        let since = Instant::now();
        let has_ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)) | Err(_));
        if !has_ended(&mut self.child) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        }
        while !has_ended(&mut self.child) {
            if since.elapsed() > ENDING {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.listen_to_the_end();
    }

    fn listen_to_the_end(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.interrupt();
    }
}

/// Reads a stream to its end, so that the tool never waits for somebody to read what it says.
fn listen(mut stream: Box<dyn Read + Send>, said: &Mutex<String>) {
    let mut buffer = [0; 16_384];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let more = String::from_utf8_lossy(&buffer[..count]);
        said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = find("no-such-tool", "some-package").expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "there is no no-such-tool (Debian: apt install some-package)"
        );
    }

    #[test]
    fn a_tool_runs_beside_and_is_ended() {
        let tool = Tool {
            words: &[
                "sh",
                "-c",
                "trap 'echo lost one; echo lost two; exit' INT; echo ready; while :; do sleep 0.02; done",
            ],
            package: "dash",
            says: Some("ready"),
            loses: Some(("lost", "events")),
        };
        let (result, lost) = tool.beside(|| Ok(7)).expect("a shell");
        assert_eq!(result, 7);
        assert_eq!(lost, Losses::of("events", 2));
    }

    #[test]
    fn a_tool_that_ends_by_itself_says_so() {
        let tool = Tool {
            words: &["sh", "-c", "echo no rights; exit 3"],
            package: "dash",
            says: Some("ready"),
            loses: None,
        };
        let error = tool.beside(|| Ok(())).expect_err("it ended");
        assert_eq!(error.to_string(), "it ended by itself: exit status: 3 no rights");
    }
}
