//! Minimal programs that do the same as the built-in workloads, without options, checks and progress, and without sharing code with
//! them. `cargo xtask bench workloads` runs both by turns, to show that the harness of the workloads costs nothing.
//!
//! `plain MODE ITERATIONS [BUFFER]` prints the elapsed nanoseconds. Processes and threads are pinned to the last CPU;
//! `plain process ITERATIONS free` leaves the processes to the scheduler.

use std::time::Instant;

use futures::channel::mpsc;
use futures::{StreamExt, stream};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let iterations: u64 = args[2].parse().expect("ITERATIONS is a number");
    if args[1] == "process" {
        let free = args.get(3).is_some_and(|placing| placing == "free");
        print(process(iterations, free));
        return;
    }
    let buffer: usize = args
        .get(3)
        .map_or(0, |buffer| buffer.parse().expect("BUFFER is a number"));
    print(match args[1].as_str() {
        "thread" => thread(iterations),
        "task" => tasks(
            &tokio::runtime::Builder::new_current_thread().build(),
            iterations,
            buffer,
        ),
        "task-pool" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
            tasks(&runtime, iterations, buffer)
        }
        other => panic!("there is no mode {other}"),
    });
}

#[expect(clippy::print_stdout, reason = "the figure is the output of the program")]
fn print(elapsed_ns: u128) {
    println!("{elapsed_ns}");
}

fn pipe() -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    fds
}

fn pin_to_last_cpu() {
    // SAFETY: `set` is plain data on the stack, and the call is given its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        libc::CPU_SET(last, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
    }
}

fn ping(from: i32, to: i32, iterations: u64) -> u128 {
    let mut buffer = [0_u8; 4];
    let start = Instant::now();
    for _ in 0..iterations {
        // SAFETY: both calls transfer four bytes, which both buffers hold, on open pipes.
        unsafe {
            libc::write(to, c"joe0".as_ptr().cast(), 4);
            libc::read(from, buffer.as_mut_ptr().cast(), 4);
        }
    }
    start.elapsed().as_nanos()
}

fn pong(from: i32, to: i32, iterations: u64) {
    let mut buffer = [0_u8; 4];
    for _ in 0..iterations {
        // SAFETY: both calls transfer four bytes, which both buffers hold, on open pipes.
        unsafe {
            libc::read(from, buffer.as_mut_ptr().cast(), 4);
            libc::write(to, buffer.as_ptr().cast(), 4);
        }
    }
}

fn process(iterations: u64, free: bool) -> u128 {
    let (there, back) = (pipe(), pipe());
    if !free {
        pin_to_last_cpu();
    }
    // SAFETY: this process has one thread.
    if unsafe { libc::fork() } == 0 {
        pong(there[0], back[1], iterations);
        // SAFETY: `_exit` ends the child without running code of this program.
        unsafe { libc::_exit(0) };
    }
    ping(back[0], there[1], iterations)
}

fn thread(iterations: u64) -> u128 {
    let (there, back) = (pipe(), pipe());
    pin_to_last_cpu();
    let echo = std::thread::spawn(move || pong(there[0], back[1], iterations));
    let elapsed = ping(back[0], there[1], iterations);
    echo.join().expect("the thread ends without a panic");
    elapsed
}

fn tasks(runtime: &std::io::Result<tokio::runtime::Runtime>, iterations: u64, buffer: usize) -> u128 {
    let runtime = runtime.as_ref().expect("a runtime");
    let (to_repeater, from_sender) = mpsc::channel(buffer);
    let (to_receiver, from_repeater) = mpsc::channel(buffer);
    let sender = stream::iter(0..iterations).map(|_| Ok("joe0")).forward(to_repeater);
    let repeater = from_sender.map(Ok).forward(to_receiver);
    let receiver = from_repeater.fold(0, |count: u64, message: &str| {
        std::future::ready(if message == "joe0" { count + 1 } else { count })
    });
    let start = Instant::now();
    let received = runtime.block_on(async {
        tokio::spawn(sender);
        tokio::spawn(repeater);
        tokio::spawn(receiver).await
    });
    let elapsed = start.elapsed().as_nanos();
    assert_eq!(received.expect("the receiver does not panic"), iterations);
    elapsed
}
