//! Examines programs beside the recording: an executable of some hundred megabytes takes seconds, in which others are executed,
//! whose files have to be opened before they are gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::held::{FileIdentity, HeldFile, MissingFile};
use super::locate::{Found, examine};

/// How long the recording waits for a program, so that its tasks are found from its first switches on. Most take less.
const PATIENCE: Duration = Duration::from_millis(20);

/// What was found in a file.
type Answer = (FileIdentity, Found);

/// A thread that examines files one after the other, started for the first one.
#[derive(Debug, Default)]
pub struct Examiner {
    thread: Option<(Sender<Arc<HeldFile>>, Receiver<Answer>)>,
    asked: HashSet<FileIdentity>,
    answers: HashMap<FileIdentity, Found>,
}

impl Examiner {
    /// What was found in a file; `None` if that takes longer than the recording can wait.
    pub fn ask(&mut self, file: &Arc<HeldFile>) -> Option<Found> {
        self.send(file);
        let until = Instant::now() + PATIENCE;
        while !self.answers.contains_key(&file.identity()) {
            let (_, answers) = self.thread.as_ref()?;
            let patience = until.saturating_duration_since(Instant::now());
            let (identity, found) = answers.recv_timeout(patience).ok()?;
            self.answers.insert(identity, found);
        }
        self.answers.get(&file.identity()).cloned()
    }

    /// What was found in a file, however long it takes.
    pub fn wait(&mut self, file: &Arc<HeldFile>) -> Found {
        self.send(file);
        while !self.answers.contains_key(&file.identity()) {
            // A thread that has panicked answers no more.
            let Some(Ok((identity, found))) = self.thread.as_ref().map(|(_, answers)| answers.recv()) else {
                return Found::missing(file.shown_path(), MissingFile::OutOfReach);
            };
            self.answers.insert(identity, found);
        }
        self.answers[&file.identity()].clone()
    }

    fn send(&mut self, file: &Arc<HeldFile>) {
        if self.asked.insert(file.identity()) {
            let (requests, _) = self.thread.get_or_insert_with(start);
            // If the thread has panicked there is no answer either.
            let _ = requests.send(Arc::clone(file));
        }
    }
}

/// Starts the thread, which ends when no more requests can come.
fn start() -> (Sender<Arc<HeldFile>>, Receiver<Answer>) {
    let (requests, asked) = channel::<Arc<HeldFile>>();
    let (sender, answers) = channel();
    std::thread::spawn(move || {
        let mut waiting: Vec<Arc<HeldFile>> = Vec::new();
        loop {
            if waiting.is_empty() {
                waiting.extend(asked.recv());
            }
            waiting.extend(asked.try_iter());
            // The last one first: those before it have run for a while, and may have ended.
            let Some(file) = waiting.pop() else {
                return;
            };
            if sender.send((file.identity(), examine(&file.path()))).is_err() {
                return;
            }
        }
    });
    (requests, answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_file_is_examined_once_and_answers_come_for_each() {
        let mut examiner = Examiner::default();
        for path in ["/bin/sh", "/proc/self/exe", "/bin/sh"] {
            let file = Arc::new(HeldFile::open(Path::new(path)).expect("opened"));
            assert_eq!(examiner.wait(&file), examine(&file.path()), "{path}");
            assert_eq!(examiner.ask(&file), Some(examine(&file.path())), "{path}");
        }
        assert_eq!(examiner.asked.len(), 2);
    }
}
