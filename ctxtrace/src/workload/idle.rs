//! Threads that do nothing but sleep.
//!
//! A process with one thread is a special case: the C library and allocators omit locks and atomic operations in it. An additional
//! idle thread removes this special case and changes nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};

/// Threads that sleep until this value is dropped.
#[derive(Debug, Default)]
pub(super) struct IdleThreads {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl IdleThreads {
    /// Starts `count` threads and returns after all of them run.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
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
            // The thread only sleeps, so it cannot have panicked.
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
        // Dropping joins the threads: if they did not end, the test would hang here.
        drop(idle);
        assert!(IdleThreads::start(0).expect("no threads").threads.is_empty());
    }
}
