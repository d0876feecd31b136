//! Threads that do nothing.
//!
//! A process with one thread is a special case: the C library and allocators leave out locks and atomic operations there. With
//! an idle thread beside it, it is not, and everything else stays as it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};

/// Threads that are asleep until this goes.
#[derive(Debug, Default)]
pub(super) struct IdleThreads {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl IdleThreads {
    /// Starts this many; they all are there when it returns.
    ///
    /// # Errors
    ///
    /// If the machine has no more threads to give.
    pub(super) fn start(count: usize) -> Result<Self> {
        let mut all = Self::default();
        for _ in 0..count {
            let (is_over, here) = (all.is_over.clone(), Arc::new(Barrier::new(2)));
            let arrived = here.clone();
            let sleep = move || {
                arrived.wait();
                while !is_over.load(Ordering::Relaxed) {
                    thread::park();
                }
            };
            let builder = thread::Builder::new().name("idle".to_owned());
            all.threads
                .push(builder.spawn(sleep).map_err(Error::system("starting a thread"))?);
            here.wait();
        }
        Ok(all)
    }
}

impl Drop for IdleThreads {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // All it can do is sleep, so it cannot have panicked.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_there_and_then_they_are_not() {
        let idle = IdleThreads::start(3).expect("threads");
        assert_eq!(idle.threads.len(), 3);
        assert!(idle.threads.iter().all(|thread| !thread.is_finished()));
        // Were they not to end, this would not either.
        drop(idle);
        assert!(IdleThreads::start(0).expect("none").threads.is_empty());
    }
}
