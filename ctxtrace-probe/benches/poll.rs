//! Measures what the probe adds to a poll: `cargo bench -p ctxtrace-probe`.
//!
//! Each case is compared with the same loop over the same futures without wrappers. Many short rounds of both are run
//! alternately. Each pair of rounds gives a difference, and the figure is the median of these differences, so that
//! drift of the machine affects both sides alike. The futures are polled through a pointer, as a runtime does it. They
//! do almost nothing, so that little of the cost can overlap with other work; in a real program the cost is lower.
//! Usually the compiler inlines a future's code into its wrapper. If it does not, a poll makes one more call, which is
//! measured as a separate case.
#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ctxtrace_probe::{hook, message, traced};

const POLLS: u64 = 100_000;
const PAIRS: usize = 401;
/// Messages marked per poll. The cost of a single one is too small to be measured.
const MESSAGES: u32 = 16;
/// Highest cost of a traced poll that is acceptable, in nanoseconds.
const LIMIT_NS: f64 = 3.0;

/// Counts its polls, and is never ready.
struct Counting(u64);

impl Future for Counting {
    type Output = ();

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.0 = black_box(self.0 + 1);
        Poll::Pending
    }
}

/// The same future, not inlined, as is usual for a large future.
struct Called(Counting);

impl Future for Called {
    type Output = ();

    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

type BenchTask = Pin<Box<dyn Future<Output = ()>>>;

fn plain(number: usize) -> Vec<BenchTask> {
    (0..number).map(|_| Box::pin(Counting(0)) as BenchTask).collect()
}

fn wrapped(number: usize) -> Vec<BenchTask> {
    (0..number)
        .map(|n| Box::pin(traced(format!("task {n}"), Counting(0))) as BenchTask)
        .collect()
}

fn plain_called(number: usize) -> Vec<BenchTask> {
    (0..number)
        .map(|_| Box::pin(Called(Counting(0))) as BenchTask)
        .collect()
}

fn wrapped_called(number: usize) -> Vec<BenchTask> {
    (0..number)
        .map(|n| Box::pin(traced(format!("called {n}"), Called(Counting(0)))) as BenchTask)
        .collect()
}

/// Futures that are wrapped twice, so that each poll has a nested poll in it.
fn nested(number: usize) -> Vec<BenchTask> {
    (0..number)
        .map(|n| {
            let inner = traced(format!("inner {n}"), Counting(0));
            Box::pin(traced(format!("outer {n}"), inner)) as BenchTask
        })
        .collect()
}

/// Returns the nanoseconds per poll of [`POLLS`] polls, which go through the tasks in turn.
fn round(tasks: &mut [BenchTask], before: impl Fn(u64), after: impl Fn()) -> f64 {
    let mut context = Context::from_waker(Waker::noop());
    let start = Instant::now();
    let mut polls = 0;
    while polls < POLLS {
        for task in &mut *tasks {
            polls += 1;
            before(polls & 1);
            black_box(task.as_mut().poll(&mut context)).is_ready();
            after();
        }
    }
    start.elapsed().as_nanos() as f64 / polls as f64
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Measures a case against its base, prints a line, and returns the difference.
fn compare(name: &str, mut base: impl FnMut() -> f64, mut subject: impl FnMut() -> f64) -> f64 {
    let mut bases = Vec::with_capacity(PAIRS);
    let mut subjects = Vec::with_capacity(PAIRS);
    let mut differences = Vec::with_capacity(PAIRS);
    base();
    subject();
    for pair in 0..PAIRS {
        // The order alternates, so that neither side is always the first.
        let (b, s) = if pair % 2 == 0 {
            let b = base();
            (b, subject())
        } else {
            let s = subject();
            (base(), s)
        };
        bases.push(b);
        subjects.push(s);
        differences.push(s - b);
    }
    let (base, subject, difference) = (median(&mut bases), median(&mut subjects), median(&mut differences));
    println!("{name:<34} {base:>6.2} ns  {subject:>6.2} ns  {difference:>+6.2} ns");
    difference
}

fn main() {
    println!("{:<34} {:>9}  {:>9}  {:>9}", "per poll", "plain", "probed", "added");
    let mut worst = f64::MIN;
    for tasks in [1, 3] {
        let (mut base, mut subject) = (plain(tasks), wrapped(tasks));
        let added = compare(
            &format!("traced, {tasks} task{} in turn", if tasks == 1 { "" } else { "s" }),
            || round(&mut base, |_| (), || ()),
            || round(&mut subject, |_| (), || ()),
        );
        worst = worst.max(added);
    }
    let (mut base, mut subject) = (plain_called(3), wrapped_called(3));
    let added = compare(
        "traced, 3 tasks, not inlined",
        || round(&mut base, |_| (), || ()),
        || round(&mut subject, |_| (), || ()),
    );
    worst = worst.max(added);
    let (mut base, mut subject) = (plain(3), nested(3));
    compare(
        "traced in traced, 3 tasks in turn",
        || round(&mut base, |_| (), || ()),
        || round(&mut subject, |_| (), || ()),
    );
    let (mut base, mut subject) = (plain(3), plain(3));
    compare(
        "hooks, 3 tasks in turn",
        || round(&mut base, |_| (), || ()),
        || round(&mut subject, |id| hook::before_poll(&id), hook::after_poll),
    );
    let (mut base, mut subject) = (plain(3), plain(3));
    let marked = compare(
        &format!("{MESSAGES} messages per poll, not traced"),
        || round(&mut base, |_| (), || ()),
        || round(&mut subject, |_| (), || (0..MESSAGES).for_each(|_| message())),
    ) / f64::from(MESSAGES);
    println!("a message adds {marked:.2} ns");
    println!("a traced poll adds at most {worst:.2} ns (limit: {LIMIT_NS:.0} ns)");
}
