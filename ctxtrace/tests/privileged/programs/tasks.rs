//! Programs whose tasks' switches are known in advance.

use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::pin::Pin as Pinned;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ctxtrace::target::locate::examine_bytes;
use ctxtrace::workload::pin::{Pin, Pinning};
use ctxtrace_probe::{runtime_thread, traced};
use tokio::runtime::{Builder, Runtime};

/// Sleeps of everything that sleeps within a poll.
pub(crate) const SLEEPS: u64 = 40;
/// Reads of `reader`, each of which finds an empty pipe.
pub(crate) const READS: u64 = 25;
/// Tasks of `many`; number n sleeps 1 + n % 3 times.
pub(crate) const TASKS: u64 = 64;
/// Tasks of `crowd`.
pub(crate) const CROWD: u64 = 600;
/// Programs that `launcher` starts.
pub(crate) const LAUNCHED: u64 = 10;
/// How much CPU time `spinner` uses.
const SPIN: Duration = Duration::from_millis(400);
const SLEEP: Duration = Duration::from_millis(2);

/// Runs the program of this name, if there is one.
pub(crate) fn run(name: &str) -> bool {
    match name {
        "blocker" => blocker(true),
        "blocker-without-probe" => blocker(false),
        "spinner" => spinner(),
        "resting-pool" => resting_pool(),
        "many" => many(),
        "launcher" => launcher(),
        "crowd" => crowd(),
        "root" => one_thread().block_on(async { sleep_in_poll() }),
        "root-of-a-pool" => pool().block_on(async { sleep_in_poll() }),
        "current-thread" => one_thread().block_on(async { tokio::spawn(sleeping()).await.expect("ended") }),
        "local-set" => {
            let local = tokio::task::LocalSet::new();
            let runtime = one_thread();
            local.block_on(&runtime, async {
                tokio::task::spawn_local(sleeping()).await.expect("ended");
            });
        }
        "spawn-blocking" => pool().block_on(async {
            tokio::task::spawn_blocking(sleep_in_poll).await.expect("ended");
        }),
        "block-in-place" => pool().block_on(async {
            let task = tokio::spawn(async { tokio::task::block_in_place(sleep_in_poll) });
            task.await.expect("ended");
        }),
        "unconstrained" => {
            let pool = pool();
            // Until the workers have parked: by that their launch tasks become known, and others are told from them.
            wait_for_sleeping_workers();
            let task = pool.spawn(tokio::task::unconstrained(sleeping()));
            pool.block_on(task).expect("ended");
        }
        "sleeper-beside-spinner" => sleeper_beside_spinner(),
        "scribbler" => scribbler(),
        "ring-scribbler" => ring_scribbler(),
        "polling-fork" => polling_fork(),
        _ => return false,
    }
    true
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

fn pool() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("worker")
        .on_thread_start(runtime_thread)
        .build()
        .expect("a runtime")
}

fn wait_for_sleeping_workers() {
    let tasks = || std::fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let is_awake = |stat: &String| stat.contains("(worker)") && !stat.contains(") S ");
    let stats = || tasks().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    while stats().filter(|stat| stat.contains("(worker)")).count() < 2 || stats().any(|stat| is_awake(&stat)) {
        std::thread::sleep(SLEEP);
    }
    // Their first sleep may have been another one than parking.
    std::thread::sleep(20 * SLEEP);
}

/// A task that starts programs (`posix_spawn`). Each child sleeps before its `execve`, while it has its parent's memory and
/// thread pointer: it opens a FIFO of its own, which a thread opens for writing only when the child sleeps.
fn launcher() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifos: Vec<_> = (0..LAUNCHED)
        .map(|number| folder.path().join(number.to_string()))
        .collect();
    for fifo in &fifos {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    }
    let places = fifos.clone();
    let opener = std::thread::Builder::new().name("opener".to_owned()).spawn(move || {
        let mut before = Vec::new();
        for place in places {
            crate::support::wait_until("a child sleeps in its open", || {
                let child = sleeping_child(&before);
                before.extend(child);
                child.is_some()
            });
            drop(std::fs::OpenOptions::new().write(true).open(place).expect("opened"));
        }
    });
    let task = async move {
        for fifo in fifos {
            launch(&fifo);
        }
    };
    one_thread().block_on(async { tokio::spawn(traced("launcher", task)).await.expect("ended") });
    opener.expect("started").join().expect("ended");
}

/// A child of this process that sleeps, has not executed a program yet, and is none of these.
fn sleeping_child(others: &[i32]) -> Option<i32> {
    let this = std::process::id() as i32;
    let own = std::env::current_exe().expect("a path");
    let children = procfs::process::all_processes().expect("/proc").flatten();
    let mut sleeping = children.filter(|process| {
        let sleeps = process.stat().is_ok_and(|stat| stat.ppid == this && stat.state == 'S');
        sleeps && process.exe().is_ok_and(|exe| exe == own)
    });
    let found = sleeping.find(|child| !others.contains(&child.pid()));
    found.map(|child| child.pid())
}

/// Starts `true` with the FIFO as its standard input, and waits for its end.
fn launch(fifo: &std::path::Path) {
    use std::ffi::CString;
    use std::mem::MaybeUninit;
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(fifo.as_os_str().as_bytes()).expect("no zero in it");
    let mut actions = MaybeUninit::uninit();
    let mut pid = 0;
    let mut arguments = [c"true".as_ptr().cast_mut(), std::ptr::null_mut()];
    let mut environment = [c"PATH=/usr/bin:/bin".as_ptr().cast_mut(), std::ptr::null_mut()];
    // SAFETY: `actions` is initialized before its other uses; both lists end with a null, and they and all texts outlive the calls.
    let result = unsafe {
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        libc::posix_spawn_file_actions_addopen(actions.as_mut_ptr(), 0, path.as_ptr(), libc::O_RDONLY, 0);
        let result = libc::posix_spawnp(
            &raw mut pid,
            c"true".as_ptr(),
            actions.as_ptr(),
            std::ptr::null(),
            arguments.as_mut_ptr(),
            environment.as_mut_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        result
    };
    assert_eq!(result, 0, "started");
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).expect("a child");
}

fn sleep_in_poll() {
    for _ in 0..SLEEPS {
        std::thread::sleep(SLEEP);
    }
}

async fn sleeping() {
    // Not in its first poll, so that a runtime has had the time to be between polls.
    tokio::task::yield_now().await;
    sleep_in_poll();
}

/// Two tasks that block in their polls: one sleeps, the other reads a pipe that a thread fills only now and then.
fn blocker(with_probe: bool) {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // The reader says which thread is about to read, so the filler can wait until that thread sleeps.
    let (asks, asked) = std::sync::mpsc::channel();
    let filler = std::thread::spawn(move || {
        for tid in asked {
            while !sleeps(tid) {
                std::thread::sleep(SLEEP);
            }
            writer.write_all(b"x").expect("written");
        }
    });
    let reading = async move {
        let mut byte = [0];
        for _ in 0..READS {
            asks.send(nix::unistd::gettid()).expect("the filler listens");
            reader.read_exact(&mut byte).expect("read");
            tokio::task::yield_now().await;
        }
    };
    let blocking = async {
        for _ in 0..SLEEPS {
            std::thread::sleep(SLEEP);
            tokio::task::yield_now().await;
        }
    };
    let runtime = pool();
    let (blocking, reading): (Task, Task) = if with_probe {
        (
            Box::pin(traced("blocker", blocking)),
            Box::pin(traced("reader", reading)),
        )
    } else {
        (Box::pin(blocking), Box::pin(reading))
    };
    runtime.block_on(async {
        let (a, b) = (tokio::spawn(blocking), tokio::spawn(reading));
        a.await.expect("ended");
        b.await.expect("ended");
    });
    filler.join().expect("ended");
}

/// Whether a thread of this process sleeps.
fn sleeps(tid: nix::unistd::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"));
    stat.is_ok_and(|stat| stat.contains(") S "))
}

type Task = Pinned<Box<dyn Future<Output = ()> + Send>>;

/// A task that spins while a thread of no runtime does so on the same CPU.
fn spinner() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let pinning = Pinning::new(Pin::SameCpu, 1).expect("a CPU");
    pinning.apply(0).expect("pinned");
    let competitor = std::thread::Builder::new().name("competitor".to_owned()).spawn(|| {
        while !DONE.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    runtime_thread();
    one_thread().block_on(traced("spinner", async {
        let end = super::cpu_time() + SPIN;
        while super::cpu_time() < end {
            std::hint::spin_loop();
        }
    }));
    DONE.store(true, Ordering::Relaxed);
    competitor.expect("started").join().expect("ended");
}

/// A pool with nothing to do but an empty task now and then.
fn resting_pool() {
    let runtime = pool();
    for _ in 0..SLEEPS {
        std::thread::sleep(SLEEP);
        runtime.spawn(async {});
    }
    std::thread::sleep(SLEEP);
}

/// Tasks of which each blocks a number of times of its own.
fn many() {
    let runtime = pool();
    let tasks = (0..TASKS).map(|number| {
        let blocking = async move {
            for _ in 0..=number % 3 {
                std::thread::sleep(SLEEP);
                tokio::task::yield_now().await;
            }
        };
        runtime.spawn(traced(format!("task-{number}"), blocking))
    });
    let tasks: Vec<_> = tasks.collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.expect("ended");
        }
    });
}

/// More tasks than have a place in the probe's tables; each is polled once and blocks in it.
fn crowd() {
    let runtime = pool();
    let tasks: Vec<_> = (0..CROWD)
        .map(|number| {
            runtime.spawn(traced(format!("task-{number}"), async {
                std::thread::sleep(Duration::from_micros(50));
            }))
        })
        .collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.expect("ended");
        }
    });
}

/// A thread that sleeps beside one that spins, on one CPU: the timers that wake the sleeper interrupt the spinner.
fn sleeper_beside_spinner() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let pinning = Pinning::new(Pin::SameCpu, 2).expect("a CPU");
    pinning.apply(0).expect("pinned");
    let spinner = std::thread::Builder::new().name("spinner".to_owned()).spawn(|| {
        while !DONE.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let sleeper = std::thread::Builder::new()
        .name("sleeper".to_owned())
        .spawn(sleep_in_poll);
    sleeper.expect("started").join().expect("ended");
    DONE.store(true, Ordering::Relaxed);
    spinner.expect("started").join().expect("ended");
}

/// A thread that writes over its own slot while it polls.
fn scribbler() {
    let executable = std::fs::read("/proc/self/exe").expect("readable");
    let below_tp = examine_bytes(&executable).locator.probe_below_tp;
    one_thread().block_on(traced("scribbler", async move {
        for n in 0..SLEEPS {
            // SAFETY: asks for the calling thread's own handle, which is its thread pointer on x86-64 Linux.
            let thread_pointer = unsafe { libc::pthread_self() } as u64;
            let slot = (thread_pointer - below_tp) as *mut u64;
            for word in 0..8 {
                // SAFETY: the slot is eight words of this thread's own memory, made of integers for which any value will do.
                unsafe { slot.add(word).write_volatile(0x5c71_bb1e_0000_0000 ^ n << word) };
            }
            std::thread::sleep(SLEEP);
        }
    }));
}

/// How long `ring-scribbler` scribbles.
const SCRIBBLE: Duration = Duration::from_millis(600);

/// Writes anything into the rings of polls, and would take their memory away if it could.
fn ring_scribbler() {
    let variable = std::env::var(ctxtrace_abi::rings::VARIABLE).expect("started with --polls");
    let fd = variable
        .split(',')
        .next()
        .and_then(|fd| fd.parse().ok())
        .expect("a number");
    // SAFETY: it was inherited, and nobody else uses it: no task is polled here.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    assert!(file.set_len(0).is_err(), "it is sealed");
    // SAFETY: shared memory, which is what this is about.
    let mut memory = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("mapped");
    let mut random = fastrand::Rng::with_seed(7);
    let states = ctxtrace_abi::rings::STATES_AT / 8;
    let end = Instant::now() + SCRIBBLE;
    let (_, words, _) = bytemuck::pod_align_to_mut::<u8, u64>(&mut memory);
    while Instant::now() < end {
        for _ in 0..1_000 {
            // Among the states of the rings, among the first records, anywhere in the first part.
            let most = [states + 4_096, states + 20_000, 1 << 22][random.usize(0..3)];
            words[random.usize(states..most)] = [random.u64(..), random.u64(..1 << 20), u64::MAX][random.usize(0..3)];
        }
    }
}

/// Polls of the two processes of `polling-fork`.
pub(crate) const FORKED_POLLS: [u64; 2] = [20, 30];

/// Polls a task, and then another process of it does.
fn polling_fork() {
    let mut task = Box::pin(traced("forked", std::future::pending::<()>()));
    let mut poll = |times: u64| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..times {
            assert!(task.as_mut().poll(&mut context).is_pending());
        }
    };
    poll(FORKED_POLLS[0]);
    // SAFETY: there is one thread.
    match unsafe { nix::unistd::fork() }.expect("a process") {
        nix::unistd::ForkResult::Child => poll(FORKED_POLLS[1]),
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("ended");
        }
    }
}
