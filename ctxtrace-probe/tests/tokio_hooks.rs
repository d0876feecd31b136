//! Tests of tokio's hooks. tokio has hooks only with `RUSTFLAGS="--cfg tokio_unstable" cargo test -p ctxtrace-probe`.
#![allow(unexpected_cfgs, reason = "the cfg is tokio's")]
#![cfg(tokio_unstable)]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ctxtrace_probe::{hook, runtime_thread, snapshot, traced};
use tokio::runtime::{Builder, Runtime};

fn hooked(mut builder: Builder) -> Runtime {
    builder
        .on_thread_start(runtime_thread)
        .on_before_task_poll(|task| hook::before_poll(&task.id()))
        .on_after_task_poll(|_| hook::after_poll())
        .build()
        .expect("a runtime can be built")
}

/// Pending at its first poll, then ready with the task that the thread's slot names.
struct Twice(bool);

impl Future for Twice {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(snapshot().slot.task);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[test]
fn polls_are_announced_on_one_thread() {
    let before = snapshot().slot;
    let runtime = hooked(Builder::new_current_thread());
    let task = runtime.spawn(Twice(false));
    let id = task.id().to_string();
    let seen = runtime.block_on(task).expect("no panic");
    assert_eq!(format!("{}", seen & !ctxtrace_abi::HOOKED), id);
    assert_ne!(seen & ctxtrace_abi::HOOKED, 0);
    let slot = snapshot().slot;
    assert_eq!(
        (slot.task, slot.polls - before.polls, slot.repolls - before.repolls),
        (0, 2, 1)
    );
}

#[test]
fn a_traced_future_in_a_task_goes_by_its_name() {
    let runtime = hooked(Builder::new_multi_thread());
    let task = runtime.spawn(async {
        let inner = traced("inner", Twice(false)).await;
        (inner, snapshot().slot.task)
    });
    let (inner, outer) = runtime.block_on(task).expect("no panic");
    assert_eq!(inner & ctxtrace_abi::HOOKED, 0);
    assert_ne!(outer & ctxtrace_abi::HOOKED, 0);
}

#[test]
fn a_task_that_panics_is_over_when_tokio_has_caught_it() {
    let runtime = hooked(Builder::new_current_thread());
    let panic = runtime.spawn(async { panic!("deliberate panic of the test") });
    assert!(runtime.block_on(panic).is_err());
    assert_eq!(snapshot().slot.task, 0);
    let before = snapshot().slot;
    let seen = runtime.block_on(runtime.spawn(Twice(true))).expect("no panic");
    assert_ne!(seen, 0);
    let slot = snapshot().slot;
    assert_eq!(
        (slot.task, slot.polls - before.polls, slot.nested_polls),
        (0, 1, before.nested_polls)
    );
}

#[test]
fn the_threads_of_a_pool_are_known_before_they_poll() {
    let runtime = hooked(Builder::new_multi_thread());
    let slot = runtime
        .block_on(runtime.spawn(async { snapshot().slot }))
        .expect("no panic");
    assert_eq!(slot.flags, ctxtrace_abi::RUNTIME_THREAD);
    assert_eq!(slot.magic, ctxtrace_abi::MAGIC);
}
