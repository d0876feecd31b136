//! What the code of a stack is for (the allocator, a channel, the scheduler and so on), determined from the crates or libraries
//! of its functions.
//!
//! A sample is attributed to its innermost function that has a category. Code of the standard library that any code may call for
//! any purpose (`core::ptr`, `Option::map`, a `memcpy`) counts as part of its caller. The rules name only libraries, and nothing
//! of any particular program: code that matches no rule is the program's own.

use serde::{Deserialize, Serialize};

use ctxtrace_format::symbols::{Frame, FrameKind};

/// What code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Category {
    /// Allocating and freeing memory
    Allocator,
    /// Channels between tasks or threads
    Channel,
    /// Wakeups of tasks
    Wakers,
    /// The runtime that polls tasks
    Scheduler,
    /// Futures, streams and sinks composed of others
    Combinators,
    /// Mutexes and other locks
    Locks,
    /// Sleeping on purpose
    Sleep,
    /// Input and output
    Io,
    /// The kernel
    Kernel,
    /// The C library, and the language's standard library
    StandardLibrary,
    /// The program's own code
    Program,
    /// Code without a known name
    Unknown,
}

impl Category {
    /// The category's name in sentences and tables.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Allocator => "allocator",
            Self::Channel => "channel",
            Self::Wakers => "wakers",
            Self::Scheduler => "scheduler",
            Self::Combinators => "combinators",
            Self::Locks => "locks",
            Self::Sleep => "sleep",
            Self::Io => "input and output",
            Self::Kernel => "kernel",
            Self::StandardLibrary => "standard library",
            Self::Program => "the program's own code",
            Self::Unknown => "unknown code",
        }
    }
}

/// What a stack is attributed to, and the function that decides it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Belongs {
    /// The category.
    pub category: Category,
    /// The function, without its generic arguments; for a system call, the call's name.
    pub function: String,
}

/// What a thread did on its CPU, from its stack, outermost frame first. If it was in the kernel, the category is the kernel;
/// otherwise it is that of the innermost function of the program that has a category.
#[must_use]
pub fn on_cpu(frames: &[Frame], in_kernel: bool) -> Belongs {
    if in_kernel {
        return Belongs {
            category: Category::Kernel,
            function: kernel_entry(frames),
        };
    }
    in_program(frames)
}

/// The category to which time in the kernel is attributed: that of the calling code if such code calls the kernel by its nature
/// (locks, I/O and so on), otherwise the kernel.
#[must_use]
pub fn calls_from(frames: &[Frame]) -> Category {
    match in_program(frames).category {
        from @ (Category::Allocator
        | Category::Channel
        | Category::Wakers
        | Category::Scheduler
        | Category::Locks
        | Category::Sleep
        | Category::Io) => from,
        Category::Combinators
        | Category::Kernel
        | Category::StandardLibrary
        | Category::Program
        | Category::Unknown => Category::Kernel,
    }
}

/// Why a thread left its CPU, from its stack at the switch-out: the innermost function of the program that has a category, or the
/// system call if no function has a name.
#[must_use]
pub fn off_cpu(frames: &[Frame]) -> Belongs {
    let belongs = in_program(frames);
    if belongs.category != Category::Unknown {
        return belongs;
    }
    Belongs {
        category: Category::Unknown,
        function: kernel_entry(frames),
    }
}

fn in_program(frames: &[Frame]) -> Belongs {
    let user = || {
        frames
            .iter()
            .rev()
            .filter(|frame| matches!(frame.kind, FrameKind::User | FrameKind::Inlined))
    };
    let mut known = user().filter_map(|frame| Some((of_function(&frame.name)?, frame)));
    let innermost = known.next();
    // A runtime or channel that sleeps does so with a lock of its own.
    let known = match innermost {
        Some((Category::Locks, _)) => known
            .find(|(category, _)| *category != Category::Locks)
            .filter(|(category, _)| matches!(category, Category::Scheduler | Category::Channel))
            .or(innermost),
        other => other,
    };
    let (category, frame) = match known {
        Some(known) => known,
        None => match user().next() {
            Some(innermost) => (Category::StandardLibrary, innermost),
            None => {
                let why = frames.iter().rev().find(|frame| frame.kind == FrameKind::Reason);
                return Belongs {
                    category: Category::Unknown,
                    function: why.map_or_else(|| "[no stack]".to_owned(), |frame| frame.name.to_string()),
                };
            }
        },
    };
    Belongs {
        category,
        function: without_generics(&frame.name),
    }
}

/// The name of the system call, or of the outermost kernel function that is not entry code.
fn kernel_entry(frames: &[Frame]) -> String {
    const ENTRY_CODE: [&str; 9] = [
        "entry_SYSCALL_64_after_hwframe",
        "do_syscall_64",
        "x64_sys_call",
        "asm_sysvec_apic_timer_interrupt",
        "asm_sysvec_hyperv_stimer0",
        "asm_common_interrupt",
        "asm_exc_page_fault",
        "ret_from_fork",
        "ret_from_fork_asm",
    ];
    let kernel = || frames.iter().filter(|frame| frame.kind == FrameKind::Kernel);
    let system_call = kernel().find_map(|frame| {
        let name = frame.name.trim_start_matches('_');
        let call = ["x64_sys_", "ia32_sys_", "arm64_sys_", "se_sys_", "do_sys_", "ksys_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))?;
        (call != "call").then(|| call.to_owned())
    });
    system_call
        .or_else(|| {
            let first = kernel().find(|frame| !ENTRY_CODE.contains(&&*frame.name));
            first.or_else(|| kernel().next()).map(|frame| frame.name.to_string())
        })
        .unwrap_or_else(|| "[no stack]".to_owned())
}

/// The names that a rule matches.
enum NamePattern {
    /// Paths with these prefixes. The leading bracket of `<Type as Trait>::function` is ignored.
    Begin(&'static [&'static str]),
    /// Functions without a path that have one of these names; a `*` at the end stands for any suffix.
    Are(&'static [&'static str]),
}

/// The first rule that matches decides, so the more specific rules come first.
const RULES: [(Category, NamePattern); 14] = [
    (
        Category::Allocator,
        NamePattern::Are(&[
            "malloc",
            "free",
            "calloc",
            "realloc",
            "cfree",
            "aligned_alloc",
            "posix_memalign",
            "memalign",
            "_int_*",
            "__libc_malloc*",
            "__libc_free*",
            "__libc_calloc*",
            "__libc_realloc*",
            "__GI___libc_malloc",
            "__GI___libc_free",
            "malloc_*",
            "unlink_chunk*",
            "tcache_*",
            "sysmalloc*",
            "systrim*",
            "arena_get*",
            "je_*",
            "_rjem_*",
            "mi_*",
            "tc_malloc",
            "tc_free",
            "__rust_alloc*",
            "__rust_dealloc",
            "__rust_realloc",
            "__rdl_*",
            "__rg_*",
            "operator new*",
            "operator delete*",
            "runtime.mallocgc*",
            "runtime.newobject",
            "runtime.gcBgMarkWorker*",
            "runtime.makeslice",
            "runtime.growslice",
            "do_rallocx",
            "arena_*",
            "large_*",
            "tcache*",
            "rtree_*",
            "isalloc*",
        ]),
    ),
    (
        Category::Allocator,
        NamePattern::Begin(&[
            "alloc::alloc::",
            "std::alloc::",
            "tikv_jemallocator::",
            "jemallocator::",
            "mimalloc::",
            "std::sys::alloc::",
            "snmalloc_rs::",
            "alloc::raw_vec::",
        ]),
    ),
    (
        Category::Channel,
        NamePattern::Begin(&[
            "futures_channel::",
            "tokio::sync::mpsc",
            "tokio::sync::oneshot",
            "tokio::sync::broadcast",
            "tokio::sync::watch",
            "tokio_util::sync::mpsc",
            "std::sync::mpsc",
            "std::sync::mpmc",
            "crossbeam_channel::",
            "flume::",
            "async_channel::",
            "kanal::",
            "tokio::sync::batch_semaphore",
            "tokio::sync::semaphore",
        ]),
    ),
    (
        Category::Channel,
        NamePattern::Are(&[
            "runtime.chansend*",
            "runtime.chanrecv*",
            "runtime.send",
            "runtime.recv",
            "runtime.selectgo*",
            "runtime.closechan",
            "runtime.sendDirect",
            "runtime.recvDirect",
        ]),
    ),
    (
        Category::Wakers,
        NamePattern::Begin(&[
            "core::task::wake",
            "alloc::task::",
            "futures_core::task::",
            "futures_task::",
            "tokio::runtime::task::waker",
            "tokio::sync::task::atomic_waker",
            "futures_util::task::",
            "tokio::util::wake",
            "atomic_waker::",
        ]),
    ),
    (
        Category::Wakers,
        NamePattern::Are(&["runtime.ready*", "runtime.goready*", "runtime.wakep"]),
    ),
    (
        Category::Scheduler,
        NamePattern::Begin(&[
            "tokio::runtime::",
            "tokio::task::",
            "tokio::loom::",
            "async_executor::",
            "smol::",
            "rayon_core::",
        ]),
    ),
    (
        Category::Scheduler,
        NamePattern::Are(&[
            "runtime.schedule",
            "runtime.findRunnable",
            "runtime.findrunnable",
            "runtime.mcall",
            "runtime.park_m",
            "runtime.execute",
            "runtime.gogo*",
            "runtime.goschedImpl",
            "runtime.gopark*",
            "runtime.runq*",
            "runtime.stopm",
            "runtime.startm",
            "runtime.casgstatus",
            "runtime.mPark",
            "runtime.stealWork",
            "runtime.resetspinning",
            "runtime.lock*",
            "runtime.unlock*",
            "runtime.futex*",
            "runtime.note*",
        ]),
    ),
    (
        Category::Locks,
        NamePattern::Begin(&[
            "std::sync::mutex",
            "std::sync::poison",
            "std::sync::rwlock",
            "std::sys::sync::",
            "std::sync::condvar",
            "std::sys_common::mutex",
            "parking_lot",
            "lock_api::",
            "tokio::sync::mutex",
            "tokio::sync::rwlock",
            "std::sync::barrier",
            "std::sys::locks",
            "futures_util::lock",
        ]),
    ),
    (
        Category::Locks,
        NamePattern::Are(&[
            "pthread_mutex_*",
            "__pthread_mutex_*",
            "___pthread_mutex_*",
            "pthread_cond_*",
            "___pthread_cond_*",
            "__pthread_cond_*",
            "__lll_lock*",
            "__lll_unlock*",
            "lll_mutex*",
            "pthread_rwlock_*",
            "___pthread_rwlock_*",
            "sem_wait",
            "sem_post",
            "__new_sem_*",
            "futex_wait",
            "__futex_*",
            "pthread_spin_*",
        ]),
    ),
    (
        Category::Sleep,
        NamePattern::Begin(&[
            "std::thread::sleep",
            "std::sys::thread",
            "std::sys::pal::unix::thread::Thread::sleep",
        ]),
    ),
    (
        Category::Sleep,
        NamePattern::Are(&[
            "nanosleep",
            "__nanosleep",
            "__GI___nanosleep",
            "clock_nanosleep*",
            "__clock_nanosleep*",
            "__GI___clock_nanosleep",
            "usleep",
            "sleep",
            "___clock_nanosleep*",
        ]),
    ),
    (
        Category::Combinators,
        NamePattern::Begin(&[
            "futures_util::",
            "futures_sink::",
            "tokio_stream::",
            "futures_lite::",
            "futures::",
            "tokio::macros::",
        ]),
    ),
    (
        Category::Io,
        NamePattern::Are(&[
            "read",
            "write",
            "__read*",
            "__write*",
            "__GI___libc_read",
            "__GI___libc_write",
            "__libc_read",
            "__libc_write",
            "recv",
            "send",
            "__libc_recv*",
            "__libc_send*",
            "recvmsg",
            "sendmsg",
            "poll",
            "__poll",
            "__GI___poll",
            "epoll_wait",
            "epoll_pwait",
            "readv",
            "writev",
            "fsync",
            "fdatasync",
            "pread64",
            "pwrite64",
            "accept4",
        ]),
    ),
];

/// Crates and types whose code counts as part of its caller.
const GENERAL_PURPOSE: [&str; 22] = [
    "core",
    "alloc",
    "std",
    "pin_project_lite",
    "hashbrown",
    "smallvec",
    // Types of the language, whose methods have a path, too.
    "bool",
    "char",
    "str",
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "usize",
    "i8",
    "i16",
    "i32",
    "i64",
    "i128",
    "isize",
    "f64",
];

/// The category of a function; `None` for general-purpose code, which gets the category of its caller.
fn of_function(name: &str) -> Option<Category> {
    let path = bare(name);
    for (category, names) in &RULES {
        let fits = match names {
            NamePattern::Begin(prefixes) => prefixes.iter().any(|prefix| path.starts_with(prefix)),
            NamePattern::Are(functions) => functions.iter().any(|function| match function.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == *function,
            }),
        };
        if fits {
            return Some(*category);
        }
    }
    // In `u64 as core::cmp::PartialOrd>::lt` the type comes before the trait.
    let krate = path.split([':', ' ', '>']).next().unwrap_or(path);
    if GENERAL_PURPOSE.contains(&krate) && path.contains("::") {
        return None;
    }
    match path.split_once("::") {
        // The probe is part of the measurement; the code it wraps runs inside it.
        Some(("ctxtrace_probe", _)) => Some(Category::Program),
        Some(_) => Some(Category::Program),
        None if is_of_the_c_library(name) || name.starts_with('[') => None,
        None => Some(Category::Program),
    }
}

/// Whether this is a name that the C library or the start of a program uses, and that a program itself should not use.
fn is_of_the_c_library(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "_start",
        "clone",
        "clone3",
        "start_thread",
        "syscall",
        "memcpy",
        "memmove",
        "memset",
        "memcmp",
        "runtime.goexit",
    ];
    NAMES.contains(&name) || name.starts_with("__")
}

/// The path without leading brackets, references and pointers: for `<&mut a::B<C> as d::E>::f` it is `a::B<C> as d::E>::f`.
fn bare(name: &str) -> &str {
    let mut path = name;
    loop {
        let shorter = ["<", "&", "*", "mut ", "const ", "dyn ", "(", "["]
            .iter()
            .find_map(|prefix| path.strip_prefix(prefix));
        match shorter {
            Some(shorter) => path = shorter,
            None => return path,
        }
    }
}

/// Shortens `<a::B<C> as d::E<F>>::f::<G>` to `a::B as d::E::f`, as people write the name.
fn without_generics(name: &str) -> String {
    let implements = name.starts_with('<');
    let mut plain = String::with_capacity(name.len());
    let mut depth = 0_usize;
    // 1 while inside the leading `<…>` of a qualified path.
    let mut outer = usize::from(implements);
    let mut previous = ' ';
    for character in name.chars() {
        match character {
            '<' => depth += 1,
            // The `>` of an arrow (`->`) does not close a bracket.
            '>' if previous != '-' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    outer = 0;
                }
            }
            _ if depth <= outer => plain.push(character),
            _ => {}
        }
        previous = character;
    }
    // Remove what remains of `::<G>`.
    plain.replace("::::", "::").trim_end_matches(':').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &[&str]) -> Vec<Frame> {
        let kind = |name: &str| match name.strip_prefix("k:") {
            Some(name) => (FrameKind::Kernel, name.to_owned()),
            None if name.starts_with('[') => (FrameKind::Reason, name.to_owned()),
            None => (FrameKind::User, name.to_owned()),
        };
        let frame = |name: &&str| {
            let (kind, name) = kind(name);
            Frame {
                kind,
                name: name.into(),
            }
        };
        names.iter().map(frame).collect()
    }

    #[test]
    fn a_sample_belongs_to_its_innermost_function_that_belongs_anywhere() {
        let outer = [
            "clone3",
            "tokio::runtime::scheduler::multi_thread::worker::run",
            "tokio::runtime::task::core::Core<T,S>::poll",
            "<futures_util::stream::stream::forward::Forward<St,Si> as core::future::future::Future>::poll",
        ];
        for (inner, category) in [
            (&[][..], Category::Combinators),
            (&["core::option::Option<T>::map"], Category::Combinators),
            (&["futures_channel::mpsc::Sender<T>::poll_ready"], Category::Channel),
            (
                &[
                    "<futures_channel::mpsc::Receiver<T> as futures_core::stream::Stream>::poll_next",
                    "core::ptr::drop_in_place",
                ],
                Category::Channel,
            ),
            (
                &["futures_channel::mpsc::x", "alloc::alloc::dealloc", "__libc_free"],
                Category::Allocator,
            ),
            (&["malloc", "_int_malloc"], Category::Allocator),
            (
                &["futures_core::task::__internal::atomic_waker::AtomicWaker::wake"],
                Category::Wakers,
            ),
            (&["core::task::wake::Waker::wake"], Category::Wakers),
            (&["tokio::runtime::task::waker::wake_by_val"], Category::Wakers),
            (
                &["tokio::runtime::scheduler::multi_thread::worker::Context::schedule"],
                Category::Scheduler,
            ),
            (
                &[
                    "std::sync::poison::mutex::Mutex<T>::lock",
                    "core::sync::atomic::compare_exchange",
                ],
                Category::Locks,
            ),
            (&["app::parse", "memcpy"], Category::Program),
            (&["app::parse", "<u64 as core::cmp::PartialOrd>::lt"], Category::Program),
            (&["futures_channel::mpsc::x", "u64::wrapping_mul"], Category::Channel),
            (&["<app::Thing as core::fmt::Display>::fmt"], Category::Program),
        ] {
            let names = [&outer[..], inner].concat();
            assert_eq!(on_cpu(&stack(&names), false).category, category, "{inner:?}");
        }
    }

    #[test]
    fn what_is_in_the_kernel_goes_by_its_system_call() {
        let call = stack(&[
            "app::f",
            "syscall",
            "k:entry_SYSCALL_64_after_hwframe",
            "k:do_syscall_64",
            "k:__x64_sys_futex",
            "k:do_futex",
        ]);
        let expected = |category, function: &str| Belongs {
            category,
            function: function.to_owned(),
        };
        assert_eq!(on_cpu(&call, true), expected(Category::Kernel, "futex"));
        let read = stack(&["app::f", "read", "k:do_syscall_64", "k:ksys_read", "k:vfs_read"]);
        assert_eq!(on_cpu(&read, true), expected(Category::Kernel, "read"));
        let fault = stack(&[
            "app::f",
            "k:asm_exc_page_fault",
            "k:exc_page_fault",
            "k:handle_mm_fault",
        ]);
        assert_eq!(on_cpu(&fault, true), expected(Category::Kernel, "exc_page_fault"));
        assert_eq!(off_cpu(&call), expected(Category::Program, "app::f"));
    }

    #[test]
    fn a_thread_that_left_its_cpu_did_so_for_something() {
        for (names, category) in [
            (
                &[
                    "tokio::runtime::scheduler::multi_thread::park::Parker::park",
                    "std::sys::sync::condvar::futex::Condvar::wait",
                    "k:__x64_sys_futex",
                ][..],
                Category::Scheduler,
            ),
            (
                &[
                    "app::f",
                    "std::thread::sleep",
                    "clock_nanosleep@@GLIBC_2.17",
                    "k:__x64_sys_clock_nanosleep",
                ][..],
                Category::Sleep,
            ),
            (
                &[
                    "app::f",
                    "std::sys::sync::mutex::futex::Mutex::lock_contended",
                    "syscall",
                    "k:__x64_sys_futex",
                ],
                Category::Locks,
            ),
            (
                &["app::f", "std::io::Read::read", "read", "k:__x64_sys_read"],
                Category::Io,
            ),
            (&["[unknown: no symbols (app)]", "k:__x64_sys_futex"], Category::Unknown),
        ] {
            assert_eq!(off_cpu(&stack(names)).category, category, "{names:?}");
        }
        assert_eq!(
            off_cpu(&stack(&["[no symbols]", "k:__x64_sys_futex"])).function,
            "futex"
        );
    }

    #[test]
    fn a_stack_without_names_says_why() {
        let belongs = on_cpu(&stack(&["[unknown: no symbols (app)]"]), false);
        assert_eq!(
            (belongs.category, belongs.function.as_str()),
            (Category::Unknown, "[unknown: no symbols (app)]")
        );
        assert_eq!(on_cpu(&[], true).function, "[no stack]");
    }

    #[test]
    fn a_function_is_called_what_a_person_calls_it() {
        for (name, plain) in [
            (
                "futures_channel::mpsc::Sender<T>::poll_ready",
                "futures_channel::mpsc::Sender::poll_ready",
            ),
            ("<a::B<C> as d::E<F>>::f::<G>", "a::B as d::E::f"),
            ("a::f::{{closure}}", "a::f::{{closure}}"),
            ("a::call::<fn(u8) -> u8>", "a::call"),
            ("malloc", "malloc"),
            ("<", ""),
        ] {
            assert_eq!(without_generics(name), plain);
        }
    }
}
