//! Finds other tracing tools and runs them at the same time as a target. Nothing is installed; the error for a missing tool names
//! its Debian package.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::losses::Losses;
use crate::process;

/// The maximum time until a tool prints that it traces. Some tools compile their program first. After this time the run fails.
const READY: Duration = Duration::from_secs(10);
/// The time that a tool gets to begin if it does not print that it traces.
const BEGINNING: Duration = Duration::from_millis(1_500);
/// The maximum time until a tool has printed its results after SIGINT. Some tools look up every symbol. After this time it is
/// killed.
const ENDING: Duration = Duration::from_secs(30);

/// The Debian package that contains `perf`.
pub(crate) const OF_PERF: &str = "linux-perf";

/// Returns the path of a program. The error names the Debian package that contains it.
pub(crate) fn find(program: &str, package: &str) -> Result<PathBuf> {
    let in_sbin = PathBuf::from("/usr/sbin").join(program);
    let found = process::programs(program).into_iter().next();
    found
        .or_else(|| in_sbin.is_file().then_some(in_sbin))
        .with_context(|| format!("there is no {program} (Debian: apt install {package})"))
}

/// A tool that traces the whole system until it is interrupted.
pub(crate) struct Tool {
    pub(crate) words: &'static [&'static str],
    /// The Debian package that contains the tool.
    pub(crate) package: &'static str,
    /// A text that the tool prints when it traces, if there is one.
    pub(crate) says: Option<&'static str>,
    /// A text that is in each line about lost data, and the name of what is lost. `None` if the tool does not report losses.
    pub(crate) loses: Option<(&'static str, &'static str)>,
}

impl Tool {
    /// Calls a function while the tool traces, and returns its result and the losses that the tool reports.
    pub(crate) fn beside<T>(&self, function: impl FnOnce() -> Result<T>) -> Result<(T, Losses)> {
        let mut command = Command::new(find(self.words[0], self.package)?);
        let mut running = Running::start(command.args(&self.words[1..]))?;
        running.wait_for(self.says)?;
        let result = function();
        let said = running.end();
        Ok((result?, self.losses(&said)))
    }

    fn losses(&self, said: &str) -> Losses {
        self.loses.map_or_else(Losses::unreported, |(words, what)| {
            Losses::single(what, said.lines().filter(|line| line.contains(words)).count() as u64)
        })
    }
}

/// A program that runs in the background. When the value is dropped, the program is interrupted (SIGINT) and waited for.
pub(crate) struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts a program.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the program")?;
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

    /// Waits until the program has printed `says`, or for [`BEGINNING`] if there is no such text. Fails if the program has ended
    /// by then.
    pub(crate) fn wait_for(&mut self, says: Option<&str>) -> Result<()> {
        let since = Instant::now();
        match says {
            None => thread::sleep(BEGINNING),
            Some(says) => {
                while !self.said().contains(says) {
                    if since.elapsed() > READY {
                        bail!("the program did not print `{says}` within {} s", READY.as_secs());
                    }
                    self.must_run()?;
                    thread::sleep(Duration::from_millis(20));
                }
                thread::sleep(Duration::from_millis(300));
            }
        }
        self.must_run()
    }

    /// Returns the process id of the program.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Interrupts the program, waits until it has ended, and returns everything that it has printed.
    pub(crate) fn end(mut self) -> String {
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
                "the program ended early: {status} {}",
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

/// Appends a stream to `said` until its end, so that the program never blocks on a full pipe.
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
        let error = find("no-such-tool", "some-package").expect_err("the tool does not exist");
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
        let (result, lost) = tool.beside(|| Ok(7)).expect("sh runs");
        assert_eq!(result, 7);
        assert_eq!(lost, Losses::single("events", 2));
    }

    #[test]
    fn a_tool_that_ends_early_is_an_error() {
        let tool = Tool {
            words: &["sh", "-c", "echo no rights; exit 3"],
            package: "dash",
            says: Some("ready"),
            loses: None,
        };
        let error = tool.beside(|| Ok(())).expect_err("the tool ends early");
        assert_eq!(error.to_string(), "the program ended early: exit status: 3 no rights");
    }
}
