//! Tests with real, synthetic and corrupted executables.

use std::os::unix::fs::FileExt;
use std::path::Path;

use ctxtrace_common::locator::{
    Doing, Field, GoLayout, Locator, MAX_CONTEXT_BYTES, ROOT_TASK, TOKIO_TASK, TokioLayout,
};

use super::buildinfo::tests::{inline, pointers};
use super::synthetic::{CONTEXT, CONTEXT_BYTES, Info, Program, SLOT, Tls};
use super::*;
use ctxtrace_format::executable::reason_in_words;

fn own() -> Vec<u8> {
    std::fs::read("/proc/self/exe").expect("a test has an executable")
}

fn bin_true() -> Vec<u8> {
    std::fs::read("/bin/true").expect("a program without a runtime")
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

/// Decodes from this thread's memory what the thread is doing.
fn doing(layout: &TokioLayout) -> Doing {
    // SAFETY: the function has no preconditions. On x86-64 Linux its result is the thread pointer.
    let thread_pointer = unsafe { libc::pthread_self() };
    let memory = File::open("/proc/self/mem").expect("a process may read itself");
    let mut bytes = [0; MAX_CONTEXT_BYTES];
    memory
        .read_exact_at(&mut bytes[..layout.size as usize], thread_pointer - layout.below_tp)
        .expect("a thread-local is mapped");
    layout.decode(&bytemuck::cast(bytes), false)
}

#[test]
fn this_programs_own_tasks_are_found_where_they_are() {
    let found = examine_bytes(&own());
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
    for bytes in [&b""[..], b"root:x:0:0:root:/root:/bin/sh", b"\x7fELF"] {
        assert_eq!(examine_bytes(bytes), Found::because(Reason::Unreadable));
        assert!(!mentions_tokio(bytes));
    }
}

#[test]
fn a_script_is_no_elf() {
    let open = |path| File::open(path).expect("a file that exists on every system");
    assert!(is_elf(&open("/bin/true")));
    assert!(!is_elf(&open("/etc/passwd")));
    assert!(!is_elf(&open("/etc")));
}

#[test]
fn a_program_without_tokio_has_nothing_to_find() {
    let found = examine_bytes(&bin_true());
    // Distributions add a build id to every program.
    let build_id = found.build_id.clone().expect("a build id");
    assert!(
        build_id.len() >= 16 && build_id.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "{build_id}"
    );
    assert_eq!(
        Found {
            build_id: None,
            ..found
        },
        Found::default()
    );
    assert!(!mentions_tokio(&bin_true()));
}

#[test]
fn a_layout_is_read_from_the_types() {
    let program = Program::with_tokio(Some(Info::of_tokio("")));
    let found = examine_bytes(&program.bytes());
    assert_eq!(found.detail, None);
    assert_eq!(found.locator.tokio, layout());
    assert_eq!((found.reason(), found.locator.flags), (Reason::None, HAS_TOKIO));
    assert_eq!(found.tokio_version.as_deref(), Some("1.54.1"));
    assert!(mentions_tokio(&program.bytes()));
}

#[test]
fn what_is_missing_is_named() {
    for name in ["current", "scheduler", "current_task_id", "budget", "runtime"] {
        let found = examine_bytes(&Program::with_tokio(Some(Info::of_tokio(name))).bytes());
        assert_eq!((found.reason(), found.locator.flags), (Reason::UnknownLayout, 0));
        assert_eq!(found.detail, Some(format!("`Context` has no `{name}`")));
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
        "the program has symbols, but none of tokio"
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
    assert_eq!(found.detail.as_deref(), Some("the program contains two tokio versions"));
}

#[test]
fn a_tokio_without_runtime_has_no_tasks() {
    let found = examine_bytes(&Program::with_tokio(Some(Info::of_tokio_without_runtime())).bytes());
    assert_eq!(found.locator, Locator::default());
    assert_eq!(found.detail.as_deref(), Some("tokio is linked without its runtime"));
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
    // The segment keeps its address modulo the alignment, so the padding is only 40 bytes: 0x4010 + 200 + 40 is a multiple of 64.
    assert_eq!(below(0x4010, 200, 64), 240 - 40);
    assert_eq!(below(0x4000, 200, 3), 0, "the alignment is not a power of two");
    assert_eq!(
        below(0x4000, 100, 8),
        0,
        "the segment is too small for the thread-local"
    );
}

const GO: GoLayout = GoLayout {
    below_tp: 8,
    goid: 152,
    m: 48,
    curg: 184,
    startpc: 304,
};

#[test]
fn goroutines_are_found_by_types_or_by_version() {
    // The table does not contain this version, so the layout comes from the types.
    let found = examine_bytes(&Program::of_go(Some(Info::of_go("")), inline("go1.99")).bytes());
    assert_eq!(
        (found.detail, found.locator.go, found.locator.flags),
        (None, GO, HAS_GO)
    );
    assert_eq!((found.go_version.as_deref(), found.tokio_version), (Some("1.99"), None));
    let found = examine_bytes(&Program::of_go(None, inline("go1.27.3")).bytes());
    assert_eq!((found.locator.go, found.locator.flags), (GO, HAS_GO));
    assert_eq!(found.go_version.as_deref(), Some("1.27.3"));
}

#[test]
fn an_unknown_go_version_is_not_guessed() {
    for (buildinfo, detail) in [
        (inline("go1.99"), "Go 1.99"),
        (inline("devel go1.27-0123"), "Go devel go1.27-0123"),
        (vec![], "it does not contain its version"),
    ] {
        let found = examine_bytes(&Program::of_go(None, buildinfo).bytes());
        assert_eq!(
            (found.reason(), found.locator.flags),
            (Reason::GoVersion, 0),
            "{detail}"
        );
        assert_eq!(found.detail.as_deref(), Some(detail));
    }
}

#[test]
fn a_missing_field_of_gos_is_named() {
    for (name, owner) in [("m", "g"), ("goid", "g"), ("startpc", "g"), ("curg", "m")] {
        let found = examine_bytes(&Program::of_go(Some(Info::of_go(name)), inline("go1.27.3")).bytes());
        assert_eq!((found.reason(), found.locator.flags), (Reason::GoUnknownLayout, 0));
        assert_eq!(found.detail, Some(format!("`runtime.{owner}` has no `{name}`")));
    }
}

#[test]
fn g_lies_where_its_symbol_says() {
    let mut program = Program::of_go(None, inline("go1.27.3"));
    let below = |program: &Program| {
        let found = examine_bytes(&program.bytes());
        (found.reason(), found.locator.go.below_tp)
    };
    // If the Go linker has linked the program as position-independent, the segment contains only `g`.
    program.tls = Tls {
        address: 0x4000,
        size: 8,
        align: 8,
    };
    assert_eq!(below(&program), (Reason::None, 8));
    // If the C linker has linked it, the segment also contains thread-locals of C.
    program.tls.size = 40;
    program.locals = vec![("errno".into(), 0, 4), ("runtime.tlsg".into(), 16, 8)];
    assert_eq!(below(&program), (Reason::None, 24));
    program.locals.clear();
    assert_eq!(below(&program), (Reason::GoStripped, 0));
    program.locals = vec![("errno".into(), 0, 4)];
    assert_eq!(below(&program), (Reason::GoUnknownLayout, 0));
}

#[test]
fn the_build_information_may_point_to_the_version() {
    // The file is loaded at address 0. The section contains the structure, followed by the Go string and its text.
    let mut program = Program::of_go(None, vec![]);
    program.others[0].1 = pointers(0);
    let file = program.bytes();
    let at = memchr::memmem::find(&file, b"\xff Go buildinf:").expect("written") as u64;
    let mut buildinfo = pointers(at + 32);
    buildinfo.extend((at + 48).to_le_bytes());
    buildinfo.extend(8_u64.to_le_bytes());
    buildinfo.extend(b"go1.17.9");
    program.others[0].1 = buildinfo;
    let found = examine_bytes(&program.bytes());
    assert_eq!(found.go_version.as_deref(), Some("1.17.9"));
    assert_eq!(found.reason(), Reason::GoVersion);
}

#[test]
fn go_and_tokio_are_distinguished_and_may_be_together() {
    let mut both = Program::with_tokio(Some(Info::of_tokio("")));
    let found = examine_bytes(&both.bytes());
    assert_eq!((found.locator.flags, found.go_version), (HAS_TOKIO, None));
    // The same bytes may be a constant in a program that is not a Go program.
    both.text.extend(vec![0; 16]);
    both.text.extend(inline("go1.27.3"));
    assert_eq!(examine_bytes(&both.bytes()).go_version, None);
    both.others = vec![(".go.buildinfo", inline("go1.27.3"))];
    both.locals.push(("runtime.tlsg".into(), 0, 8));
    let found = examine_bytes(&both.bytes());
    assert_eq!(
        (found.locator.flags, found.reason()),
        (HAS_TOKIO | HAS_GO, Reason::None)
    );
    let bytes = Program::of_go(None, vec![]).bytes();
    assert!(mentions_go(&bytes) && !mentions_tokio(&bytes));
    assert!(!mentions_go(&own()) && !mentions_go(&bin_true()));
}

#[test]
fn a_go_program_for_another_machine_is_reported() {
    let mut bytes = Program::of_go(None, inline("go1.27.3")).bytes();
    bytes[18] = 183;
    assert_eq!(examine_bytes(&bytes), Found::because(Reason::NotX86_64));
}

#[test]
fn no_file_makes_it_panic() {
    let mut go = Program::of_go(Some(Info::of_go("")), inline("go1.27.3"));
    go.locals = vec![("runtime.tlsg".into(), 0, 8)];
    go.tls.size = 8;
    for whole in [Program::with_tokio(Some(Info::of_tokio(""))), go] {
        spoil(&whole.bytes());
    }
    // The pointer form of the build information must not panic either; its pointers may point anywhere.
    spoil(&Program::of_go(None, pointers(64 + 2 * 56)).bytes());
}

/// The synthetic programs are the seeds of the fuzzer of `examine_bytes`; `CTXTRACE_BLESS=1 cargo test seeds` writes them.
#[test]
fn seeds_of_the_fuzzer_are_these_programs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/locate");
    let tokio = Program::with_tokio(Some(Info::of_tokio(""))).bytes();
    let go = Program::of_go(Some(Info::of_go("")), inline("go1.27.3")).bytes();
    for (name, bytes) in [("tokio", tokio), ("go", go)] {
        let path = folder.join(name);
        if std::env::var_os("CTXTRACE_BLESS").is_some() {
            std::fs::write(&path, &bytes).expect("blessed");
        }
        assert!(std::fs::read(&path).unwrap_or_default() == bytes, "{}", path.display());
    }
}

fn spoil(whole: &[u8]) {
    for length in 0..whole.len() {
        let found = examine_bytes(&whole[..length]);
        assert_eq!(found.locator.flags & HAS_TOKIO, 0, "the section table is at the end");
    }
    let mut bytes = whole.to_vec();
    for at in 0..bytes.len() {
        for change in [1, 0x40, 0x80, 0xff] {
            bytes[at] ^= change;
            let layout = examine_bytes(&bytes).locator.tokio;
            assert!(layout.size as usize <= MAX_CONTEXT_BYTES, "byte {at}");
            bytes[at] = whole[at];
        }
    }
    // Change two bytes at once, chosen by a xorshift generator, so that every run of the test makes the same changes.
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
        let _ = examine_bytes(&bytes);
        for place in places {
            bytes[place] = whole[place];
        }
    }
}

#[test]
fn every_reason_is_a_sentence() {
    for number in 0..=12 {
        assert!(reason_in_words(Reason::from_number(number)).len() > 20);
    }
}
