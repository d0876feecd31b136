//! Harmful files, read in the same way as the tracer reads them.

use std::io::Write;
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal;

use super::*;
use crate::tracee::locate::examine_bytes;
use ctxtrace_format::symbols::FrameKind;

/// Set in the environment of the process that is to run as the reading process.
pub(super) const VARIABLE: &str = "CTXTRACE_TEST_READER";

/// Runs as the reading process of all tests. In the process that runs the tests it does nothing.
#[test]
fn be_the_reading_process() {
    if std::env::var_os(VARIABLE).is_some() {
        // SAFETY: this ends the process at once, as a release's reading process ends; the test runner has nothing left to do.
        unsafe { libc::_exit(i32::from(serve())) }
    }
}

fn own() -> File {
    File::open("/proc/self/exe").expect("the test executable is readable")
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("the file is written");
    file
}

/// Offset in the file of a function's code in this executable.
fn offset_of(function: *const ()) -> u64 {
    let address = function as u64;
    let mappings = crate::tracee::mappings::FollowedMappings::of_process(std::process::id());
    let image = ctxtrace_common::process::Image {
        tgid: std::process::id(),
        number: 0,
    };
    let mapping = mappings.recorded().find(image, address).expect("the address is mapped");
    mapping.offset_of(address)
}

/// Places of code.
fn code(offsets: &[u64]) -> Places {
    Places {
        code: offsets.to_vec(),
        starts: vec![],
    }
}

fn names(reader: &mut FileReader, file: &File) -> (Vec<Vec<Frame>>, Option<ReadFailure>) {
    let offset = offset_of(names as *const ());
    reader.functions(file, Path::new("/x/program"), &code(&[offset]), far(), None)
}

#[test]
fn a_file_is_examined_as_in_this_process() {
    let mut reader = FileReader::new();
    let bytes = std::fs::read("/proc/self/exe").expect("the executable is readable");
    assert_eq!(reader.examine(&own(), Path::new("own")), examine_bytes(&bytes));
    assert!(matches!(reader.look(&own()), Ok((Look::Executable(_), _))));
    assert_eq!(reader.mentions(&own(), true, false, far()), Ok(true));
    assert_eq!(reader.mentions(&own(), false, true, far()), Ok(false));
    let empty = reader.examine(&file_of(b""), Path::new("empty"));
    assert_eq!(empty, examine_bytes(b""));
}

#[test]
fn functions_are_named_in_their_order() {
    let mut reader = FileReader::new();
    let here = offset_of(functions_are_named_in_their_order as *const ());
    let there = offset_of(names as *const ());
    // At a goroutine's start, too, a function that is not a Go wrapper gets its own name.
    let places = Places {
        code: vec![there; 300],
        starts: vec![here, 1 << 40],
    };
    let (named, failure) = reader.functions(&own(), Path::new("own"), &places, far(), None);
    assert_eq!((named.len(), failure), (302, None));
    assert!(named[0][0].name.ends_with("::names"), "{named:?}");
    assert!(
        named[300][0].name.ends_with("::functions_are_named_in_their_order"),
        "{named:?}"
    );
    assert_eq!(named[301][0].kind, FrameKind::Reason);
    assert_eq!(
        reader.functions(&own(), Path::new("own"), &code(&[]), far(), None),
        (vec![], None)
    );
}

fn held(path: &str) -> Arc<HeldFile> {
    Arc::new(HeldFile::open_as(Path::new(path), Path::new("/x/own")).expect("the file is opened"))
}

#[test]
fn an_examination_that_nothing_waits_for_comes_later() {
    let mut reader = FileReader::new();
    assert!(reader.examination_fd().is_none());
    let files = [held("/proc/self/exe"), held("/bin/sh")];
    for file in &files {
        assert_eq!(reader.examine_within(file, Duration::ZERO), None);
        assert!(reader.is_examining(file.identity()));
    }
    // A synchronous request waits for the examination that is under way.
    assert!(reader.look(&own()).is_ok());
    for file in &files {
        let found = reader
            .examine_within(file, EXAMINATION_TIME)
            .expect("the examination is complete");
        assert_eq!(found, reader.examine(file.file(), file.shown_path()));
    }
    assert!(reader.examination_fd().is_none());
    assert!(files.iter().all(|file| !reader.is_examining(file.identity())));
}

#[test]
fn waiting_examinations_are_limited() {
    let mut reader = FileReader::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files: Vec<Arc<HeldFile>> = (0..2 * MAX_WAITING)
        .map(|number| {
            let path = folder.path().join(number.to_string());
            std::fs::write(&path, "text").expect("the file is written");
            Arc::new(HeldFile::open(&path).expect("the file is opened"))
        })
        .collect();
    assert!(reader.look(&own()).is_ok());
    reader
        .process
        .as_ref()
        .expect("the process runs")
        .signal(Signal::SIGSTOP);
    for file in &files {
        assert_eq!(reader.examine_within(file, Duration::ZERO), None);
    }
    assert_eq!(reader.waiting.len(), MAX_WAITING);
    reader
        .process
        .as_ref()
        .expect("the process runs")
        .signal(Signal::SIGCONT);
    for file in &files {
        assert!(reader.examine_within(file, EXAMINATION_TIME).is_some());
    }
}

#[test]
fn what_is_no_regular_file_is_not_handed_over() {
    let mut reader = FileReader::new();
    let null = File::open("/dev/null").expect("the file is opened");
    let found = reader.examine(&null, Path::new("null"));
    assert_eq!(
        found.detail.as_deref(),
        Some("null was not read: it is not a regular file")
    );
    let large = tempfile::tempfile().expect("a temporary file");
    large
        .set_len(sandbox::MAX_FILE_BYTES + 1)
        .expect("the file is extended");
    assert_eq!(reader.look(&large), Err(ReadFailure::TooLarge));
    assert!(reader.process.is_none(), "no process was started");
}

#[test]
fn a_deadline_ends_the_request_and_the_next_one_works() {
    let mut reader = FileReader::new();
    let (named, failure) = reader.functions(&own(), Path::new("/x/own"), &code(&[1]), Instant::now(), None);
    assert_eq!(failure, Some(ReadFailure::TookTooLong(Duration::ZERO)));
    assert_eq!(named, [[Frame::reason("unknown: reading own took longer than 0 s")]]);
    assert_eq!(names(&mut reader, &own()).1, None);
}

#[test]
fn a_process_that_ends_costs_one_answer_and_the_answer_says_why() {
    let mut reader = FileReader::new();
    for (signal, why) in [
        (Signal::SIGKILL, "the process that read own was killed by SIGKILL"),
        (
            Signal::SIGABRT,
            "own needs more memory to be read than ctxtrace allows (4 GiB)",
        ),
    ] {
        // The process is stopped first, so that it cannot answer before it is killed.
        assert!(reader.look(&own()).is_ok());
        reader
            .process
            .as_ref()
            .expect("the process runs")
            .signal(Signal::SIGSTOP);
        let file = held("/proc/self/exe");
        assert_eq!(reader.examine_within(&file, Duration::ZERO), None);
        for signal in [signal, Signal::SIGCONT] {
            reader.process.as_ref().expect("the process runs").signal(signal);
        }
        let found = reader
            .examine_within(&file, EXAMINATION_TIME)
            .expect("the examination is complete");
        assert_eq!(found.detail.as_deref(), Some(why));
    }
    assert_eq!(names(&mut reader, &own()).1, None);
}

/// A copy of this executable whose debug information is replaced by a section that claims to be compressed.
fn with_compressed_debug_info(data: &[u8], size: u64) -> File {
    use object::read::elf::{ElfFile64, FileHeader, SectionHeader};
    let bytes = std::fs::read("/proc/self/exe").expect("the executable is readable");
    let endian = object::LittleEndian;
    let elf = ElfFile64::<object::LittleEndian>::parse(&*bytes).expect("the file is an ELF executable");
    let sections = elf.elf_section_table();
    let (index, _) = sections
        .section_by_name(endian, b".debug_info")
        .expect("tests have debug information");
    let header_at = elf.elf_header().e_shoff(endian) + 64 * index.0 as u64;
    let flags = sections.section(index).expect("the section exists").sh_flags(endian);
    let mut section = Vec::new();
    for field in [1_u64, size, 1] {
        section.extend(field.to_le_bytes());
    }
    section.extend(data);
    let file = file_of(&bytes);
    file.write_all_at(&section, bytes.len() as u64)
        .expect("the file is written");
    // sh_flags, sh_offset and sh_size (System V ABI, "Section Header").
    let fields = [
        (8, flags | u64::from(object::elf::SHF_COMPRESSED)),
        (24, bytes.len() as u64),
        (32, section.len() as u64),
    ];
    for (offset, value) in fields {
        file.write_all_at(&value.to_le_bytes(), header_at + offset)
            .expect("the file is written");
    }
    file
}

#[test]
fn a_section_of_an_impossible_size_costs_its_own_names() {
    let mut reader = FileReader::new();
    for size in [1 << 62, 1 << 63, u64::MAX] {
        let file = with_compressed_debug_info(b"", size);
        let (named, failure) = names(&mut reader, &file);
        let failure = failure.expect("the section cannot be read");
        assert!(
            matches!(failure, ReadFailure::TooMuchMemory | ReadFailure::Contradiction),
            "{size}: {failure:?}"
        );
        assert!(named[0][0].name.starts_with("[unknown: program "), "{named:?}");
        let found = reader.examine(&file, Path::new("program"));
        assert_ne!(found.reason(), ctxtrace_common::locator::Reason::None);
    }
    assert_eq!(names(&mut reader, &own()).1, None);
}
