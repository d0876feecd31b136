//! Programs under test whose switches are known in advance.

#[path = "programs/tasks.rs"]
pub(crate) mod tasks;
#[path = "programs/unseen.rs"]
pub(crate) mod unseen;

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ctxtrace::workload::pin::Pinning;
use ctxtrace_format::workload::Pin;

/// The name of an environment variable. If it is set to the name of a program, this executable runs that program instead of the
/// tests.
pub(crate) const VARIABLE: &str = "CTXTRACE_TEST_PROGRAM";

/// The number of sleeps of `sleeper`.
pub(crate) const SLEEPS: u64 = 100;
/// The minimum length of each sleep.
pub(crate) const SLEEP: Duration = Duration::from_millis(5);
/// The number of yields of `yielder`.
pub(crate) const YIELDS: u64 = 5_000;
/// The number of threads of `thread-storm`.
pub(crate) const THREADS: u64 = 10_000;
/// The number of processes of `fork-storm`.
pub(crate) const FORKS: u64 = 1_000;
/// The number of processes of `reused-id` that get the id of the process before them.
const REUSES: u64 = 20;
/// The number of threads of `thread-crowd`, which all live at the same time.
pub(crate) const CROWD: usize = 200;
/// The number of threads of `many-threads`.
const MANY_THREADS: usize = 300;
/// The number of round trips of `storm` on each CPU.
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
        Some(name) if tasks::run(name) || unseen::run(name) => {}
        Some(name) if crate::locators::run(name) || crate::names::run(name) => {}
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Starts a thread that only sleeps, a hundred times, and waits for it.
fn sleeper() {
    let sleeper = std::thread::Builder::new().name("sleeper".to_owned()).spawn(|| {
        for _ in 0..SLEEPS {
            std::thread::sleep(SLEEP);
        }
    });
    sleeper
        .expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
}

/// The CPU time of each half of `half-and-half`.
const SPIN: Duration = Duration::from_millis(400);

/// Computes in user space for [`SPIN`] of CPU time, and then reads from `/dev/zero` for as long.
fn half_and_half() {
    spin_in_user();
    let mut zeroes = std::fs::File::open("/dev/zero").expect("a device");
    let mut buffer = vec![0_u8; 1 << 20];
    let end = cpu_time() + SPIN;
    while cpu_time() < end {
        std::io::Read::read_exact(&mut zeroes, &mut buffer).expect("the device is readable");
    }
}

#[inline(never)]
fn spin_in_user() {
    let end = cpu_time() + SPIN;
    let mut sum = 0_u64;
    while cpu_time() < end {
        // This loop takes so long that the system call that reads the clock is negligible.
        for number in 0..1_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
        }
    }
}

/// Returns the CPU time that the calling thread has used.
pub(crate) fn cpu_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    now.into()
}

/// Starts a thread that yields in a loop, and a thread on the same CPU that is always runnable.
fn yielder() {
    static DONE: AtomicBool = AtomicBool::new(false);
    Pinning::new(Pin::SameCpu, 2)
        .and_then(|pinning| pinning.apply(0))
        .expect("the thread is pinned");
    let busy = std::thread::Builder::new().name("busy".to_owned()).spawn(|| {
        while !DONE.load(Ordering::Relaxed) {
            // This thread yields too; otherwise the yielder would wait for whole time slices.
            std::thread::yield_now();
        }
    });
    let yielder = std::thread::Builder::new().name("yielder".to_owned()).spawn(|| {
        for _ in 0..YIELDS {
            std::thread::yield_now();
        }
    });
    yielder
        .expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
    DONE.store(true, Ordering::Relaxed);
    busy.expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
}

/// Starts [`THREADS`] threads that exit at once.
fn thread_storm() {
    for _ in 0..THREADS / 4 {
        let batch: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| std::hint::black_box(Instant::now())))
            .collect();
        for thread in batch {
            thread.join().expect("the thread ends without a panic");
        }
    }
}

/// Starts [`FORKS`] processes, each of which executes `true`, one after the other.
fn fork_storm() {
    for _ in 0..FORKS {
        let status = std::process::Command::new("/bin/true")
            .status()
            .expect("the program starts");
        assert!(status.success());
    }
}

/// Executes a program in a thread that is not the main thread. That thread takes over the process and its id.
fn exec_by_thread() {
    use std::os::unix::process::CommandExt;
    let thread = std::thread::spawn(|| {
        let error = std::process::Command::new("/bin/sleep").arg("0.01").exec();
        panic!("cannot execute /bin/sleep: {error}");
    });
    // `join` never returns, because the process becomes sleep(1).
    thread.join().expect("the thread ends without a panic");
}

/// Starts processes one after the other until [`REUSES`] of them have had the id of the process before. A process gets another id
/// if another program starts a process at that moment. Prints the number of processes.
fn reused_id() {
    let mut last = 0;
    let mut reused = 0;
    let mut children = 0;
    while reused < REUSES {
        assert!(children < 50 * REUSES, "the kernel does not reuse process ids");
        if last != 0 {
            // The next process gets the id after this one (kernel: kernel/pid_namespace.c, pid_ns_ctl_handler()).
            std::fs::write("/proc/sys/kernel/ns_last_pid", (last - 1).to_string())
                .expect("root may write ns_last_pid, and the kernel has CONFIG_CHECKPOINT_RESTORE");
        }
        let mut child = std::process::Command::new("/bin/true")
            .spawn()
            .expect("the program starts");
        let id = child.id();
        child.wait().expect("the program ends");
        reused += u64::from(id == last);
        children += 1;
        last = id;
    }
    #[expect(clippy::print_stdout, reason = "the test reads it")]
    {
        println!("{children}");
    }
}

/// Starts [`CROWD`] threads that are alive at the same time.
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
        thread.join().expect("the thread ends without a panic");
    }
}

/// Runs until its standard input ends. It has three threads that sleep repeatedly, and a child that starts a `sleep` process every
/// twenty milliseconds.
fn server() {
    for number in 0..3 {
        let name = format!("server-{number}");
        let sleep = || {
            loop {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(sleep)
            .expect("the thread starts");
    }
    let mut script = std::process::Command::new("sh");
    script.args(["-c", "while sleep 0.02; do :; done"]);
    let mut child = script.spawn().expect("the program starts");
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    child.kill().expect("the signal is sent");
    child.wait().expect("the program ends");
}

/// Starts [`MANY_THREADS`] threads, which change their names, wait for a lock, yield, and sleep.
fn many_threads() {
    let lock = std::sync::Arc::new(std::sync::Mutex::new(0_u64));
    let threads: Vec<_> = (0..MANY_THREADS)
        .map(|number| {
            let lock = lock.clone();
            std::thread::spawn(move || {
                let name = std::ffi::CString::new(format!("thread-{number}")).expect("no zero byte");
                nix::sys::prctl::set_name(&name).expect("the name of the thread is set");
                for _ in 0..20 {
                    *lock.lock().expect("the lock is not poisoned") += 1;
                    std::thread::yield_now();
                    std::thread::sleep(Duration::from_micros(50));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("the thread ends without a panic");
    }
}

/// Starts two threads on each of two CPUs. The two threads of a CPU wake each other by turns, [`STORM`] times.
fn storm() {
    use std::io::{Read, Write};
    let pinning = Pinning::new(Pin::SplitCpus, 2).expect("two CPUs");
    let bounce = |mut from: std::io::PipeReader, mut to: std::io::PipeWriter, pinning: Pinning, cpu| {
        std::thread::spawn(move || {
            pinning.apply(cpu).expect("the thread is pinned");
            let mut byte = [0];
            for _ in 0..STORM {
                to.write_all(&byte).expect("the byte is sent");
                from.read_exact(&mut byte).expect("the byte is received");
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
        thread.join().expect("the thread ends without a panic");
    }
}

/// Starts two pairs of threads. The threads of a pair wake each other by turns until the process is killed.
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
        thread.join().expect("the thread ends without a panic");
    }
}
