//! Programs whose switches are known in advance.

#[path = "programs/tasks.rs"]
pub(crate) mod tasks;
#[path = "programs/unseen.rs"]
pub(crate) mod unseen;

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ctxtrace::workload::pin::{Pin, Pinning};

/// Set to the name of a program, this executable is that program.
pub(crate) const VARIABLE: &str = "CTXTRACE_TEST_PROGRAM";

/// Sleeps of `sleeper`.
pub(crate) const SLEEPS: u64 = 100;
/// How long each is at least.
pub(crate) const SLEEP: Duration = Duration::from_millis(5);
/// Yields of `yielder`.
pub(crate) const YIELDS: u64 = 5_000;
/// Threads of `thread-storm`.
pub(crate) const THREADS: u64 = 10_000;
/// Processes of `fork-storm`.
pub(crate) const FORKS: u64 = 1_000;
/// Processes of `reused-id`, one after the other under the same id.
const REUSES: u64 = 20;
/// Threads of `thread-crowd` at a time.
pub(crate) const CROWD: usize = 200;
/// Threads of `many-threads`.
const MANY_THREADS: usize = 300;
/// Round trips of `storm`, on each CPU.
pub(crate) const STORM: u64 = 20_000;

pub(crate) fn run(name: &OsStr) -> ExitCode {
    match name.to_str() {
        Some("sleeper") => sleeper(),
        Some("yielder") => yielder(),
        Some("thread-storm") => thread_storm(),
        Some("fork-storm") => fork_storm(),
        Some("exec-by-thread") => exec_by_thread(),
        Some("reused-id") => reused_id(),
        Some("thread-crowd") => thread_crowd(),
        Some("many-threads") => many_threads(),
        Some("storm") => storm(),
        Some("endless-storm") => endless_storm(),
        Some("half-and-half") => half_and_half(),
        Some("server") => server(),
        Some("replaced") => crate::hostile_files::replaced(),
        Some("maps-large-files") => crate::hostile_files::maps_large_files(),
        Some(name) if tasks::run(name) || unseen::run(name) => {}
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// A thread that sleeps a hundred times and does nothing else, beside a main thread that waits for it.
fn sleeper() {
    let sleeper = std::thread::Builder::new().name("sleeper".to_owned()).spawn(|| {
        for _ in 0..SLEEPS {
            std::thread::sleep(SLEEP);
        }
    });
    sleeper.expect("started").join().expect("ended");
}

/// CPU time of each half of `half-and-half`.
const SPIN: Duration = Duration::from_millis(400);

/// Computes for a while, and then reads for as long.
fn half_and_half() {
    spin_in_user();
    let mut zeroes = std::fs::File::open("/dev/zero").expect("a device");
    let mut buffer = vec![0_u8; 1 << 20];
    let end = cpu_time() + SPIN;
    while cpu_time() < end {
        std::io::Read::read_exact(&mut zeroes, &mut buffer).expect("read");
    }
}

#[inline(never)]
fn spin_in_user() {
    let end = cpu_time() + SPIN;
    let mut sum = 0_u64;
    while cpu_time() < end {
        // Long enough for the reading of the clock, a system call, to be nothing beside it.
        for number in 0..1_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
        }
    }
}

/// What this thread has used.
pub(crate) fn cpu_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    now.into()
}

/// A thread that yields in a loop, beside one that is always busy on the same CPU.
fn yielder() {
    static DONE: AtomicBool = AtomicBool::new(false);
    Pinning::new(Pin::SameCpu, 2)
        .and_then(|pinning| pinning.apply(0))
        .expect("pinned");
    let busy = std::thread::Builder::new().name("busy".to_owned()).spawn(|| {
        while !DONE.load(Ordering::Relaxed) {
            // Gives way as well, or the yielder would wait for whole time slices.
            std::thread::yield_now();
        }
    });
    let yielder = std::thread::Builder::new().name("yielder".to_owned()).spawn(|| {
        for _ in 0..YIELDS {
            std::thread::yield_now();
        }
    });
    yielder.expect("started").join().expect("ended");
    DONE.store(true, Ordering::Relaxed);
    busy.expect("started").join().expect("ended");
}

/// Many threads that live for an instant.
fn thread_storm() {
    for _ in 0..THREADS / 4 {
        let batch: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| std::hint::black_box(Instant::now())))
            .collect();
        for thread in batch {
            thread.join().expect("ended");
        }
    }
}

/// Many processes that live for an instant; each executes a program.
fn fork_storm() {
    for _ in 0..FORKS {
        let status = std::process::Command::new("/bin/true").status().expect("started");
        assert!(status.success());
    }
}

/// A thread that is not the first one executes a program: it takes over the process, and the process's id.
fn exec_by_thread() {
    use std::os::unix::process::CommandExt;
    let thread = std::thread::spawn(|| {
        let error = std::process::Command::new("/bin/sleep").arg("0.01").exec();
        panic!("could not execute: {error}");
    });
    // Never returns: the process is sleep(1) now.
    thread.join().expect("ended");
}

/// Processes one after the other, of which [`REUSES`] get the id of the one before; others get another one, if another program starts
/// processes at the same time. Prints how many processes there were.
fn reused_id() {
    let mut last = 0;
    let mut reused = 0;
    let mut children = 0;
    while reused < REUSES {
        assert!(children < 50 * REUSES, "ids are not given again here");
        if last != 0 {
            // The next id given is the one behind this (kernel: kernel/pid_namespace.c, pid_ns_ctl_handler()).
            std::fs::write("/proc/sys/kernel/ns_last_pid", (last - 1).to_string())
                .expect("root, and CHECKPOINT_RESTORE");
        }
        let mut child = std::process::Command::new("/bin/true").spawn().expect("started");
        let id = child.id();
        child.wait().expect("ended");
        reused += u64::from(id == last);
        children += 1;
        last = id;
    }
    #[expect(clippy::print_stdout, reason = "the test reads it")]
    {
        println!("{children}");
    }
}

/// Many threads alive at the same time.
fn thread_crowd() {
    static OVER: AtomicBool = AtomicBool::new(false);
    let threads: Vec<_> = (0..CROWD)
        .map(|_| {
            std::thread::spawn(|| {
                while !OVER.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    OVER.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("ended");
    }
}

/// Runs until its standard input ends: three threads that sleep, a child of its own that sleeps too, and another child every
/// twenty milliseconds.
fn server() {
    for number in 0..3 {
        let name = format!("server-{number}");
        let sleep = || {
            loop {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        std::thread::Builder::new().name(name).spawn(sleep).expect("started");
    }
    let mut script = std::process::Command::new("sh");
    script.args(["-c", "while sleep 0.02; do :; done"]);
    let mut child = script.spawn().expect("started");
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    child.kill().expect("killed");
    child.wait().expect("ended");
}

/// Many threads at once, which yield, wait for a lock, sleep, and take another name.
fn many_threads() {
    let lock = std::sync::Arc::new(std::sync::Mutex::new(0_u64));
    let threads: Vec<_> = (0..MANY_THREADS)
        .map(|number| {
            let lock = lock.clone();
            std::thread::spawn(move || {
                let name = std::ffi::CString::new(format!("thread-{number}")).expect("no zero in it");
                nix::sys::prctl::set_name(&name).expect("named");
                for _ in 0..20 {
                    *lock.lock().expect("not poisoned") += 1;
                    std::thread::yield_now();
                    std::thread::sleep(Duration::from_micros(50));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("ended");
    }
}

/// On each CPU two threads that do nothing but wake each other and go to sleep.
fn storm() {
    use std::io::{Read, Write};
    let pinning = Pinning::new(Pin::SplitCpus, 2).expect("two CPUs");
    let bounce = |mut from: std::io::PipeReader, mut to: std::io::PipeWriter, pinning: Pinning, cpu| {
        std::thread::spawn(move || {
            pinning.apply(cpu).expect("pinned");
            let mut byte = [0];
            for _ in 0..STORM {
                to.write_all(&byte).expect("written");
                from.read_exact(&mut byte).expect("read");
            }
        })
    };
    let mut threads = Vec::new();
    for cpu in 0..2 {
        let (there, back) = (std::io::pipe().expect("a pipe"), std::io::pipe().expect("a pipe"));
        threads.push(bounce(back.0, there.1, pinning.clone(), cpu));
        threads.push(bounce(there.0, back.1, pinning.clone(), cpu));
    }
    for thread in threads {
        thread.join().expect("ended");
    }
}

/// Two pairs of threads that do nothing but wake each other and go to sleep, until somebody ends the process.
fn endless_storm() {
    use std::io::{Read, Write};
    let bounce = |mut from: std::io::PipeReader, mut to: std::io::PipeWriter| {
        std::thread::spawn(move || {
            let mut byte = [0];
            while to.write_all(&byte).is_ok() && from.read_exact(&mut byte).is_ok() {}
        })
    };
    let mut threads = Vec::new();
    for _ in 0..2 {
        let (there, back) = (std::io::pipe().expect("a pipe"), std::io::pipe().expect("a pipe"));
        threads.push(bounce(back.0, there.1));
        threads.push(bounce(there.0, back.1));
    }
    for thread in threads {
        thread.join().expect("ended");
    }
}
