//! A program that knows nothing of ctxtrace. `cargo xtask test` builds it with several releases of tokio.
//!
//! The first task blocks 40 times in its polls, the second one 20 times, and the root future 10 times, for 2 ms each.

use std::thread::sleep;
use std::time::Duration;

const NAP: Duration = Duration::from_millis(2);

/// Sleeps in a function with its own frame. The caller of the C library's `clock_nanosleep` is missing in stacks
/// (`docs/SEMANTICS.md`, "Stacks"), and without this function that would be the future.
#[inline(never)]
fn nap() {
    sleep(NAP);
    std::hint::black_box(());
}

async fn blocking(times: u32) {
    for _ in 0..times {
        tokio::task::yield_now().await;
        nap();
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    let tasks = [runtime.spawn(blocking(40)), runtime.spawn(blocking(20))];
    runtime.block_on(async {
        for _ in 0..10 {
            sleep(NAP);
        }
        for task in tasks {
            task.await.expect("the task ends");
        }
    });
}
