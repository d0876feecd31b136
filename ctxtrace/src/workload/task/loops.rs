//! Variants of the article's tasks, written as plain loops over either type of channel.
//!
//! tokio's channel has no combinators, and an adapter could itself cause a difference in speed. The lock-step mode needs no
//! combinators.

use std::fmt;
use std::future::Future;

use ctxtrace_probe::message;
use futures::{SinkExt, StreamExt};

use super::super::progress::Progress;
use super::script::Script;
use super::{Altered, Players};

/// The error for a channel whose other side was dropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other end of the channel was dropped")
    }
}

/// The sending end of a channel.
pub(super) trait Sends<T>: Send + 'static {
    /// Waits until the channel has room and sends the message.
    fn send_one(&mut self, message: T) -> impl Future<Output = Result<(), Closed>> + Send;
}

/// The receiving end of a channel.
pub(super) trait Receives<T>: Send + 'static {
    /// Waits for a message; `None` if the channel is closed and empty.
    fn receive_one(&mut self) -> impl Future<Output = Option<T>> + Send;
}

impl<T: Send + 'static> Sends<T> for futures::channel::mpsc::Sender<T> {
    #[inline]
    async fn send_one(&mut self, message: T) -> Result<(), Closed> {
        // `send` would also flush, that is, wait until there is room for another message.
        self.feed(message).await.map_err(|_| Closed)
    }
}

impl<T: Send + 'static> Receives<T> for futures::channel::mpsc::Receiver<T> {
    #[inline]
    async fn receive_one(&mut self) -> Option<T> {
        self.next().await
    }
}

impl<T: Send + 'static> Sends<T> for tokio::sync::mpsc::Sender<T> {
    #[inline]
    async fn send_one(&mut self, message: T) -> Result<(), Closed> {
        self.send(message).await.map_err(|_| Closed)
    }
}

impl<T: Send + 'static> Receives<T> for tokio::sync::mpsc::Receiver<T> {
    #[inline]
    async fn receive_one(&mut self) -> Option<T> {
        self.recv().await
    }
}

/// The sending and the receiving end of a channel.
type Ends<A, B> = (A, B);

/// Returns the tasks of the pipelined protocol, whose sender waits only for room in the channel.
pub(super) fn pipelined<S: Script>(
    iterations: u64,
    (mut to_repeater, from_sender): Ends<impl Sends<S::Message>, impl Receives<S::Message>>,
    (to_receiver, mut from_repeater): Ends<impl Sends<S::Message>, impl Receives<S::Message>>,
    script: S,
    progress: Progress,
) -> Players<
    impl Future<Output = Result<(), Closed>> + Send + 'static,
    impl Future<Output = Result<(), Closed>> + Send + 'static,
    impl Future<Output = Result<u64, Altered>> + Send + 'static,
> {
    let mut of_sender = script.clone();
    let mut of_receiver = script.clone();
    Players {
        sender: async move {
            for _ in 0..iterations {
                message();
                to_repeater.send_one(of_sender.send()).await?;
            }
            Ok(())
        },
        repeater: repeat(from_sender, to_receiver, script),
        receiver: async move {
            let mut count = 0;
            while let Some(sent) = from_repeater.receive_one().await {
                message();
                if !of_receiver.receive(sent) {
                    return Err(Altered(count));
                }
                count += 1;
                progress.reached(count);
            }
            Ok(count)
        },
    }
}

/// Returns the tasks of the lock-step protocol, whose sender waits after every message until the receiver has acknowledged it.
pub(super) fn in_lock_step<S: Script>(
    iterations: u64,
    (mut to_repeater, from_sender): Ends<impl Sends<S::Message>, impl Receives<S::Message>>,
    (to_receiver, mut from_repeater): Ends<impl Sends<S::Message>, impl Receives<S::Message>>,
    (mut had, mut was_had): Ends<impl Sends<()>, impl Receives<()>>,
    script: S,
    progress: Progress,
) -> Players<
    impl Future<Output = Result<(), Closed>> + Send + 'static,
    impl Future<Output = Result<(), Closed>> + Send + 'static,
    impl Future<Output = Result<u64, Altered>> + Send + 'static,
> {
    let mut of_sender = script.clone();
    let mut of_receiver = script.clone();
    Players {
        sender: async move {
            for _ in 0..iterations {
                message();
                to_repeater.send_one(of_sender.send()).await?;
                was_had.receive_one().await.ok_or(Closed)?;
            }
            Ok(())
        },
        repeater: repeat(from_sender, to_receiver, script),
        receiver: async move {
            let mut count = 0;
            while let Some(sent) = from_repeater.receive_one().await {
                message();
                if !of_receiver.receive(sent) {
                    return Err(Altered(count));
                }
                count += 1;
                progress.reached(count);
                if had.send_one(()).await.is_err() {
                    // The sender ended before the last message; its own error gives the reason.
                    break;
                }
            }
            Ok(count)
        },
    }
}

/// Passes all messages on, until the sender closes its channel.
async fn repeat<S: Script>(
    mut from: impl Receives<S::Message>,
    mut to: impl Sends<S::Message>,
    mut script: S,
) -> Result<(), Closed> {
    while let Some(sent) = from.receive_one().await {
        message();
        script.repeat();
        to.send_one(sent).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::MESSAGE;
    use super::super::script::Plain;
    use super::*;
    use tokio::sync::mpsc;

    fn received(messages: &[&'static str]) -> Result<u64, Altered> {
        let (progress, _fd) = Progress::create().expect("a page");
        let (to_receiver, from_repeater) = mpsc::channel(8);
        for text in messages {
            to_receiver.try_send(*text).expect("room");
        }
        let (unused, _) = mpsc::channel(1);
        let players = pipelined(0, mpsc::channel(1), (unused, from_repeater), Plain, progress);
        drop((to_receiver, players.sender, players.repeater));
        futures::executor::block_on(players.receiver)
    }

    #[test]
    fn an_altered_message_ends_the_run() {
        assert_eq!(received(&[MESSAGE, MESSAGE]), Ok(2));
        assert_eq!(received(&[MESSAGE, "jim0", MESSAGE]), Err(Altered(1)));
    }
}
