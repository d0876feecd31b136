//! Programs of which a part is not seen to begin or to end.

use std::io::Write;
use std::time::Duration;

/// Status of `headless`.
pub(crate) const HEADLESS_STATUS: i32 = 7;

/// Tells whether there is such a program, having run it.
pub(super) fn run(name: &str) -> bool {
    match name {
        "deep-sleeper" => deep_sleeper(true),
        "idle" => deep_sleeper(false),
        "long-sleeper" => long_sleeper(),
        "headless" => headless(),
        "torn-name" => torn_name(),
        _ => return false,
    }
    true
}

/// Says that the program is at work.
fn ready() {
    let mut stdout = ctxtrace::terminal::data_output();
    stdout
        .write_all(b"ready\n")
        .and_then(|()| stdout.flush())
        .expect("written");
}

/// A thread that sleeps once, for a minute, beside one that naps all the time or sleeps, too.
fn deep_sleeper(naps: bool) {
    let minute = || std::thread::sleep(Duration::from_secs(60));
    let thread = std::thread::Builder::new().name("deepsleeper".to_owned());
    thread.spawn(minute).expect("started");
    std::thread::sleep(Duration::from_millis(100));
    ready();
    if !naps {
        return minute();
    }
    loop {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sleeps for a minute, in one function, after a nap that says when it has begun.
fn long_sleeper() {
    ready();
    std::thread::sleep(Duration::from_millis(1_500));
    sleep_for_a_minute();
}

#[inline(never)]
fn sleep_for_a_minute() {
    std::thread::sleep(Duration::from_secs(60));
    std::hint::black_box(());
}

/// The first thread ends at once, and another one naps, and ends the process later.
#[expect(clippy::exit, reason = "the first thread is gone and cannot return a status")]
fn headless() {
    let work = || {
        ready();
        for _ in 0..300 {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::process::exit(HEADLESS_STATUS);
    };
    let thread = std::thread::Builder::new().name("worker".to_owned());
    thread.spawn(work).expect("started");
    // SAFETY: ends this thread and no other; what it has on its stack stays where it is.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Its threads have names that the kernel has cut in the middle of a letter.
fn torn_name() {
    let naps = || {
        // SAFETY: the name is ended by a zero.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"w\u{65e5}\u{672c}\u{8a9e}\u{30b9}\u{30ec}".as_ptr()) };
        loop {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    std::thread::spawn(naps);
    std::thread::sleep(Duration::from_millis(100));
    ready();
    naps();
}
