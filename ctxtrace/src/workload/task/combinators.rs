//! The article's tasks, which use `forward` and `fold` on `futures` channels, ported to `futures` 0.3.

use std::future::{Future, ready};

use ctxtrace_probe::message;
use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt, stream};

use super::super::progress::Progress;
use super::script::Script;
use super::{Altered, Players};

/// Returns the futures of the three tasks. Each of their two channels holds `buffer` messages plus one for its sender.
pub(super) fn players<S: Script>(
    iterations: u64,
    buffer: usize,
    script: S,
    progress: Progress,
) -> Players<
    impl Future<Output = Result<(), mpsc::SendError>> + Send + 'static,
    impl Future<Output = Result<(), mpsc::SendError>> + Send + 'static,
    impl Future<Output = Result<u64, Altered>> + Send + 'static,
> {
    let (to_repeater, from_sender) = mpsc::channel::<S::Message>(buffer);
    let (to_receiver, from_repeater) = mpsc::channel::<S::Message>(buffer);

    let mut of_sender = script.clone();
    let messages = stream::iter(0..iterations).map(move |_| {
        message();
        Ok(of_sender.send())
    });
    let mut of_repeater = script.clone();
    let repeated = from_sender.map(move |sent| {
        message();
        of_repeater.repeat();
        Ok(sent)
    });
    Players {
        sender: messages.forward(to_repeater),
        repeater: repeated.forward(to_receiver),
        receiver: receive(from_repeater, script, progress),
    }
}

/// Receives all messages, checks each, and returns their number.
fn receive<S: Script>(
    messages: mpsc::Receiver<S::Message>,
    mut script: S,
    progress: Progress,
) -> impl Future<Output = Result<u64, Altered>> {
    messages.map(Ok).try_fold(0, move |count, sent| {
        message();
        ready(if script.receive(sent) {
            progress.reached(count + 1);
            Ok(count + 1)
        } else {
            Err(Altered(count))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::MESSAGE;
    use super::super::script::Plain;
    use super::*;

    #[test]
    fn an_altered_message_ends_the_run() {
        let (progress, _fd) = Progress::create().expect("a page");
        let (mut sender, receiver) = mpsc::channel(8);
        sender.try_send(MESSAGE).expect("room");
        sender.try_send("jim0").expect("room");
        drop(sender);
        let received = futures::executor::block_on(receive(receiver, Plain, progress));
        assert_eq!(received, Err(Altered(1)));
    }
}
