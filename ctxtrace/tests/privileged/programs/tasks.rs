//! Programs with tokio tasks whose switches are known in advance.

use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::pin::Pin as Pinned;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ctxtrace::tracee::locate::examine_bytes;
use ctxtrace::workload::pin::Pinning;
use ctxtrace_format::workload::Pin;
use ctxtrace_probe::{runtime_thread, traced};
use tokio::runtime::{Builder, Runtime};

/// The number of sleeps of each task that sleeps in its polls, and of each such function.
pub(crate) const SLEEPS: u64 = 40;
/// The number of reads of the task `reader`, each of which finds an empty pipe.
pub(crate) const READS: u64 = 25;
/// The number of tasks of `many`. Task n sleeps 1 + n % 3 times.
pub(crate) const TASKS: u64 = 64;
/// The number of tasks of `crowd`.
pub(crate) const CROWD: u64 = 600;
/// The number of programs that `launcher` starts.
pub(crate) const LAUNCHED: u64 = 10;
/// The CPU time that `spinner` uses.
const SPIN: Duration = Duration::from_millis(400);
/// The length of each sleep.
const SLEEP: Duration = Duration::from_millis(2);

/// Runs the program with this name. Returns false if there is none.
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
        "current-thread" => one_thread().block_on(async { tokio::spawn(sleeping()).await.expect("the task ends") }),
        "local-set" => {
            let local = tokio::task::LocalSet::new();
            let runtime = one_thread();
            local.block_on(&runtime, async {
                tokio::task::spawn_local(sleeping()).await.expect("the task ends");
            });
        }
        "spawn-blocking" => pool().block_on(async {
            tokio::task::spawn_blocking(sleep_in_poll).await.expect("the task ends");
        }),
        "block-in-place" => pool().block_on(async {
            let task = tokio::spawn(async { tokio::task::block_in_place(sleep_in_poll) });
            task.await.expect("the task ends");
        }),
        "unconstrained" => {
            let pool = pool();
            // When a worker parks for the first time, ctxtrace learns which task is its launch task, and can distinguish it from
            // others.
            wait_for_sleeping_workers();
            let task = pool.spawn(tokio::task::unconstrained(sleeping()));
            pool.block_on(task).expect("the task ends");
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
    let tasks = || {
        std::fs::read_dir("/proc/self/task")
            .expect("/proc is readable")
            .flatten()
    };
    let is_awake = |stat: &String| stat.contains("(worker)") && !stat.contains(") S ");
    let stats = || tasks().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    while stats().filter(|stat| stat.contains("(worker)")).count() < 2 || stats().any(|stat| is_awake(&stat)) {
        std::thread::sleep(SLEEP);
    }
    // A worker's first sleep may have been for another reason than parking, so wait longer.
    std::thread::sleep(20 * SLEEP);
}

/// Runs a task that starts programs by `posix_spawn`. Each child sleeps before its `execve`, while it still shares the memory and
/// the thread pointer of its parent: it opens its own FIFO for reading, which another thread opens for writing only when the child
/// sleeps.
fn launcher() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifos: Vec<_> = (0..LAUNCHED)
        .map(|number| folder.path().join(number.to_string()))
        .collect();
    for fifo in &fifos {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).expect("the FIFO is created");
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
            let writer = std::fs::OpenOptions::new().write(true).open(place);
            drop(writer.expect("the FIFO is opened"));
        }
    });
    let task = async move {
        for fifo in fifos {
            launch(&fifo);
        }
    };
    one_thread().block_on(async { tokio::spawn(traced("launcher", task)).await.expect("the task ends") });
    opener
        .expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
}

/// Returns a child of this process that sleeps, has not executed a program yet, and is not among `others`.
fn sleeping_child(others: &[i32]) -> Option<i32> {
    let this = std::process::id() as i32;
    let own = std::env::current_exe().expect("the path of this executable");
    let children = procfs::process::all_processes().expect("/proc is readable").flatten();
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
    let path = CString::new(fifo.as_os_str().as_bytes()).expect("no zero byte");
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
    assert_eq!(result, 0, "posix_spawnp failed");
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).expect("the program ends");
}

fn sleep_in_poll() {
    for _ in 0..SLEEPS {
        std::thread::sleep(SLEEP);
    }
}

async fn sleeping() {
    // The sleeps are not in the first poll, so that the runtime has been between two polls before.
    tokio::task::yield_now().await;
    sleep_in_poll();
}

/// Runs two tasks that block in their polls. One sleeps; the other reads from a pipe that a thread fills slowly.
fn blocker(with_probe: bool) {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // The reader sends the id of the thread that is about to read, so that the filler can wait until this thread sleeps.
    let (asks, asked) = std::sync::mpsc::channel();
    let filler = std::thread::spawn(move || {
        for tid in asked {
            while !sleeps(tid) {
                std::thread::sleep(SLEEP);
            }
            writer.write_all(b"x").expect("the byte is sent");
        }
    });
    let reading = async move {
        let mut byte = [0];
        for _ in 0..READS {
            asks.send(nix::unistd::gettid()).expect("the filler runs");
            reader.read_exact(&mut byte).expect("the byte is received");
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
        a.await.expect("the task ends");
        b.await.expect("the task ends");
    });
    filler.join().expect("the thread ends without a panic");
}

/// Returns whether a thread of this process sleeps.
fn sleeps(tid: nix::unistd::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"));
    stat.is_ok_and(|stat| stat.contains(") S "))
}

type Task = Pinned<Box<dyn Future<Output = ()> + Send>>;

/// Runs a task that spins, while a thread that belongs to no runtime spins on the same CPU.
fn spinner() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let pinning = Pinning::new(Pin::SameCpu, 1).expect("a CPU");
    pinning.apply(0).expect("the thread is pinned");
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
    competitor
        .expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
}

/// Runs a pool that is idle except for an empty task every 2 ms.
fn resting_pool() {
    let runtime = pool();
    for _ in 0..SLEEPS {
        std::thread::sleep(SLEEP);
        runtime.spawn(async {});
    }
    std::thread::sleep(SLEEP);
}

/// Runs [`TASKS`] tasks that block one, two or three times.
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
            task.await.expect("the task ends");
        }
    });
}

/// Runs more tasks than the tables of the probe can hold. Each task is polled once and blocks in this poll.
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
            task.await.expect("the task ends");
        }
    });
}

/// Starts a thread that sleeps and a thread that spins on the same CPU. The timers that wake the sleeper interrupt the spinner.
fn sleeper_beside_spinner() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let pinning = Pinning::new(Pin::SameCpu, 2).expect("a CPU");
    pinning.apply(0).expect("the thread is pinned");
    let spinner = std::thread::Builder::new().name("spinner".to_owned()).spawn(|| {
        while !DONE.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let sleeper = std::thread::Builder::new()
        .name("sleeper".to_owned())
        .spawn(sleep_in_poll);
    sleeper
        .expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
    DONE.store(true, Ordering::Relaxed);
    spinner
        .expect("the thread starts")
        .join()
        .expect("the thread ends without a panic");
}

/// Polls a task that overwrites the probe's slot of its thread.
fn scribbler() {
    let executable = std::fs::read("/proc/self/exe").expect("/proc is readable");
    let below_tp = examine_bytes(&executable).locator.probe_below_tp;
    one_thread().block_on(traced("scribbler", async move {
        for n in 0..SLEEPS {
            // SAFETY: `pthread_self` only returns the handle of the calling thread, which is its thread pointer on x86-64 Linux.
            let thread_pointer = unsafe { libc::pthread_self() } as u64;
            let slot = (thread_pointer - below_tp) as *mut u64;
            for word in 0..8 {
                // SAFETY: the slot consists of eight words in this thread's own memory, which are integers that may have any value.
                unsafe { slot.add(word).write_volatile(0x5c71_bb1e_0000_0000 ^ n << word) };
            }
            std::thread::sleep(SLEEP);
        }
    }));
}

/// The time for which `ring-scribbler` writes to the rings.
const SCRIBBLE: Duration = Duration::from_millis(600);

/// Tries to truncate the memory of the poll rings, and then writes random values into it.
fn ring_scribbler() {
    let variable = std::env::var(ctxtrace_abi::rings::VARIABLE).expect("the recording has --polls");
    let fd = variable
        .split(',')
        .next()
        .and_then(|fd| fd.parse().ok())
        .expect("the number of a descriptor");
    // SAFETY: the descriptor was inherited, and nothing else in this process uses it, because no task is polled.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    assert!(file.set_len(0).is_err(), "the memory is not sealed against truncation");
    // SAFETY: ctxtrace changes the memory at the same time, but this program only writes plain numbers to it.
    let mut memory = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("the file is mapped");
    let mut random = fastrand::Rng::with_seed(7);
    let states = ctxtrace_abi::rings::STATES_AT / 8;
    let end = Instant::now() + SCRIBBLE;
    let (_, words, _) = bytemuck::pod_align_to_mut::<u8, u64>(&mut memory);
    while Instant::now() < end {
        for _ in 0..1_000 {
            // Choose a word among the states of the rings, among the first records, or anywhere in the first 32 MiB.
            let most = [states + 4_096, states + 20_000, 1 << 22][random.usize(0..3)];
            words[random.usize(states..most)] = [random.u64(..), random.u64(..1 << 20), u64::MAX][random.usize(0..3)];
        }
    }
}

/// The numbers of polls of the two processes of `polling-fork`.
pub(crate) const FORKED_POLLS: [u64; 2] = [20, 30];

/// Polls a task, forks, and polls the same task in the child.
fn polling_fork() {
    let mut task = Box::pin(traced("forked", std::future::pending::<()>()));
    let mut poll = |times: u64| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..times {
            assert!(task.as_mut().poll(&mut context).is_pending());
        }
    };
    poll(FORKED_POLLS[0]);
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.expect("the process is forked") {
        nix::unistd::ForkResult::Child => poll(FORKED_POLLS[1]),
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("the program ends");
        }
    }
}
