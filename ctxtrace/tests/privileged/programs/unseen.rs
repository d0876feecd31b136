//! Programs in which a recording misses the beginning or the end of an interval or thread, or with unusual thread names.

use std::io::Write;
use std::time::Duration;

/// The exit status of `headless`.
pub(crate) const HEADLESS_STATUS: i32 = 7;

/// Runs the program with this name. Returns false if there is none.
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

/// Prints `ready`, for which the tests wait.
fn ready() {
    let mut stdout = ctxtrace::terminal::data_output();
    stdout
        .write_all(b"ready\n")
        .and_then(|()| stdout.flush())
        .expect("standard output is writable");
}

/// Starts a thread that sleeps once, for a minute. The main thread sleeps repeatedly for 10 ms if `naps`, and otherwise once for a
/// minute.
fn deep_sleeper(naps: bool) {
    let minute = || std::thread::sleep(Duration::from_secs(60));
    let thread = std::thread::Builder::new().name("deepsleeper".to_owned());
    thread.spawn(minute).expect("the thread starts");
    std::thread::sleep(Duration::from_millis(100));
    ready();
    if !naps {
        return minute();
    }
    loop {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sleeps for 1.5 seconds, and then for a minute in another function. The end of the first sleep is the switch-in that a recording
/// needs to know when the second one begins.
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

/// Ends the first thread at once. Another thread sleeps 300 times for 10 ms and then ends the process.
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
    thread.spawn(work).expect("the thread starts");
    // SAFETY: the system call ends only this thread; what is on its stack stays valid.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Starts two threads with a name that the kernel truncates in the middle of a character.
fn torn_name() {
    let naps = || {
        // SAFETY: the name ends with a zero byte.
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
