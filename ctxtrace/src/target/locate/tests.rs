//! Executables as they are and as they should not be.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ctxtrace_common::locator::{Doing, Field, MAX_CONTEXT_BYTES, ROOT_TASK, TOKIO_TASK, TokioLayout};

use super::synthetic::{CONTEXT, CONTEXT_BYTES, Info, Program, SLOT, Tls};
use super::*;

fn own() -> PathBuf {
    std::env::current_exe().expect("a test has an executable")
}

fn field(special: u64, offset: u32, size: u32) -> Field {
    Field { special, offset, size }
}

/// The layout of [`Info::of_tokio`] in [`Program::with_tokio`].
fn layout() -> TokioLayout {
    TokioLayout {
        below_tp: 160,
        state: field(1, 72, 1),
        budget: field(0, 68, 1),
        task_id: field(0, 48, 8),
        scheduler: field(0, 40, 8),
        runtime: field(2, 70, 1),
        block_in_place: field(0, 70, 1),
        handle: field(2, 8, 8),
        depth: field(1, 24, 8),
        task_id_offset: 48,
        size: 80,
    }
}

/// What this thread is doing, by its own memory.
fn doing(layout: &TokioLayout) -> Doing {
    // SAFETY: it has no preconditions. On x86-64 Linux what it returns is the thread pointer.
    let thread_pointer = unsafe { libc::pthread_self() };
    let memory = std::fs::File::open("/proc/self/mem").expect("a process may read itself");
    let mut bytes = [0; MAX_CONTEXT_BYTES];
    memory
        .read_exact_at(&mut bytes[..layout.size as usize], thread_pointer - layout.below_tp)
        .expect("a thread-local is mapped");
    layout.decode(&bytes, false)
}

#[test]
fn this_programs_own_tasks_are_found_where_they_are() {
    let found = examine(&own());
    if found.reason() == Reason::NoTypeInfo && !cfg!(debug_assertions) {
        return;
    }
    assert_eq!((found.reason(), found.detail), (Reason::None, None));
    assert_ne!(found.locator.flags & HAS_TOKIO, 0);
    assert!(found.tokio_version.is_some_and(|version| version.starts_with("1.")));
    let layout = found.locator.tokio;
    assert!(layout.size as usize <= MAX_CONTEXT_BYTES && layout.task_id_offset + 8 <= layout.size);
    for field in [
        layout.state,
        layout.budget,
        layout.task_id,
        layout.scheduler,
        layout.runtime,
        layout.block_in_place,
        layout.handle,
        layout.depth,
    ] {
        assert!(field.offset + field.size <= layout.size);
    }
    let inside = std::thread::spawn(move || {
        let runtime = ::tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime of one thread");
        let outside = doing(&layout);
        let (root, task) = runtime.block_on(async {
            let task = ::tokio::spawn(async move { (doing(&layout), ::tokio::task::id().to_string()) });
            (doing(&layout), task.await.expect("the task does not panic"))
        });
        (outside, root, task)
    });
    let (outside, root, (task, id)) = inside.join().expect("the thread does not panic");
    assert_eq!(outside, Doing::Other);
    assert_eq!(root, Doing::Task(ROOT_TASK));
    let id: u64 = id.parse().expect("a task's id is a number");
    assert_eq!(task, Doing::Task(id | TOKIO_TASK));
}

#[test]
fn what_is_no_executable_is_unreadable() {
    for path in ["/etc/passwd", "/etc", "/dev/null", "/nowhere"] {
        assert_eq!(examine(Path::new(path)), Found::because(Reason::Unreadable), "{path}");
        assert!(!mentions_tokio(Path::new(path)), "{path}");
    }
    let text = tempfile::NamedTempFile::new().expect("a temporary file");
    assert_eq!(examine(text.path()), Found::because(Reason::Unreadable));
}

#[test]
fn a_script_is_no_elf() {
    assert!(is_elf(Path::new("/bin/true")));
    assert!(!is_elf(Path::new("/etc/passwd")));
    assert!(!is_elf(Path::new("/nowhere")));
}

#[test]
fn a_program_without_tokio_has_nothing_to_find() {
    assert_eq!(examine(Path::new("/bin/true")), Found::default());
    assert!(!mentions_tokio(Path::new("/bin/true")));
}

#[test]
fn a_layout_is_read_from_the_types() {
    let program = Program::with_tokio(Some(Info::of_tokio("")));
    let found = examine_bytes(&program.bytes());
    assert_eq!(found.detail, None);
    assert_eq!(found.locator.tokio, layout());
    assert_eq!((found.reason(), found.locator.flags), (Reason::None, HAS_TOKIO));
    assert_eq!(found.tokio_version.as_deref(), Some("1.54.1"));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), program.bytes()).expect("a temporary file can be written");
    assert_eq!(examine(file.path()), found);
    assert!(mentions_tokio(file.path()));
}

#[test]
fn what_is_missing_is_named() {
    for name in ["current", "scheduler", "current_task_id", "budget", "runtime"] {
        let found = examine_bytes(&Program::with_tokio(Some(Info::of_tokio(name))).bytes());
        assert_eq!((found.reason(), found.locator.flags), (Reason::UnknownLayout, 0));
        assert_eq!(found.detail, Some(format!("`Context`: `{name}`")));
        assert_eq!(found.locator.tokio, TokioLayout::default());
    }
}

#[test]
fn the_reason_says_what_the_build_took_away() {
    let mut program = Program::with_tokio(None);
    let found = examine_bytes(&program.bytes());
    assert_eq!(
        (found.reason(), found.tokio_version.as_deref()),
        (Reason::NoTypeInfo, Some("1.54.1"))
    );

    program.locals.clear();
    let found = examine_bytes(&program.bytes());
    assert_eq!(
        (found.reason(), found.tokio_version.as_deref()),
        (Reason::Stripped, Some("1.54.1"))
    );

    program.text.clear();
    assert_eq!(examine_bytes(&program.bytes()), Found::default());

    program.text = b"/registry/tokio-1.54.1/src/runtime/park.rs".to_vec();
    program
        .locals
        .push(("_ZN3std6thread7CURRENT17h0123456789abcdefE".into(), 0, 8));
    assert_eq!(
        examine_bytes(&program.bytes()),
        Found::default(),
        "its symbols are there, and tokio's is not"
    );
}

#[test]
fn another_machines_program_has_a_reason_only_with_tokio_inside() {
    let mut program = Program::with_tokio(None);
    let mut bytes = program.bytes();
    bytes[18] = 183;
    assert_eq!(examine_bytes(&bytes), Found::because(Reason::NotX86_64));
    program.text.clear();
    let mut bytes = program.bytes();
    bytes[4] = 1;
    assert_eq!(examine_bytes(&bytes), Found::default());
}

#[test]
fn two_releases_of_tokio_are_one_too_many() {
    let mut program = Program::with_tokio(Some(Info::of_tokio("")));
    program
        .locals
        .push((CONTEXT.replace("0123", "4567"), 120, CONTEXT_BYTES));
    let found = examine_bytes(&program.bytes());
    assert_eq!(found.reason(), Reason::UnknownLayout);
    assert_eq!(found.detail.as_deref(), Some("two tokio versions"));
}

#[test]
fn a_tokio_without_runtime_has_no_tasks() {
    let found = examine_bytes(&Program::with_tokio(Some(Info::of_tokio_without_runtime())).bytes());
    assert_eq!(found.locator, Locator::default());
    assert_eq!(found.detail.as_deref(), Some("tokio without its runtime"));
}

#[test]
fn the_probe_is_found_by_its_symbol_and_size() {
    let mut program = Program::with_tokio(None);
    let size = size_of::<ThreadState>() as u64;
    program.tls.size = size + 8;
    program.locals = vec![(SLOT.into(), 8, size)];
    program.text.clear();
    let found = examine_bytes(&program.bytes());
    assert_eq!((found.locator.flags, found.locator.probe_below_tp), (HAS_PROBE, size));
    program.locals[0].2 += 8;
    program.locals[0].1 = 0;
    let found = examine_bytes(&program.bytes());
    assert_eq!((found.locator.flags, found.reason()), (0, Reason::None));
    assert!(found.detail.is_some_and(|detail| detail.contains("another release")));
}

#[test]
fn the_thread_pointer_is_where_the_segment_ends_once_aligned() {
    let below = |address, size, align| {
        let mut program = Program::with_tokio(Some(Info::of_tokio("")));
        program.tls = Tls { address, size, align };
        examine_bytes(&program.bytes()).locator.tokio.below_tp
    };
    assert_eq!(below(0x4000, 200, 8), 200 - 40);
    assert_eq!(below(0x4000, 200, 64), 256 - 40);
    assert_eq!(below(0x4000, 200, 0), 200 - 40);
    // The segment keeps its place modulo the alignment, so the padding is smaller: 0x4010 + 200 + 40 is a multiple of 64.
    assert_eq!(below(0x4010, 200, 64), 240 - 40);
    assert_eq!(below(0x4000, 200, 3), 0, "no power of two");
    assert_eq!(below(0x4000, 100, 8), 0, "too small for the thread-local");
}

#[test]
fn no_file_makes_it_panic() {
    let whole = Program::with_tokio(Some(Info::of_tokio(""))).bytes();
    for length in 0..whole.len() {
        let found = examine_bytes(&whole[..length]);
        assert_eq!(found.locator.flags & HAS_TOKIO, 0, "the section table is at the end");
    }
    let mut bytes = whole.clone();
    for at in 0..bytes.len() {
        for change in [1, 0x40, 0x80, 0xff] {
            bytes[at] ^= change;
            let layout = examine_bytes(&bytes).locator.tokio;
            assert!(layout.size as usize <= MAX_CONTEXT_BYTES, "byte {at}");
            bytes[at] = whole[at];
        }
    }
    // Two bytes at once, by a generator of its own (xorshift): the same ones every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2_000 {
        let mut places = [0; 2];
        for place in &mut places {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *place = state as usize % bytes.len();
            bytes[*place] = (state >> 32) as u8;
        }
        examine_bytes(&bytes);
        for place in places {
            bytes[place] = whole[place];
        }
    }
}

#[test]
fn every_reason_is_a_sentence() {
    for number in 0..=9 {
        assert!(in_words(Reason::from_number(number)).len() > 20);
    }
}
