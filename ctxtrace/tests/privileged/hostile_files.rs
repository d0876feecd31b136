//! Executables that harm the process that reads them. A recording must survive them and lose only the names of these files.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use flate2::{Compress, Compression, FlushCompress};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use object::LittleEndian;
use object::read::elf::{ElfFile64, FileHeader, SectionHeader};
use procfs::process::Process;

use crate::files::Builds;
use crate::support::{CTXTRACE, SpawnPiped, stderr, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "an_executable_replaced_by_a_fifo_is_not_waited_for",
        an_executable_replaced_by_a_fifo_is_not_waited_for,
    ),
    (
        "an_executable_replaced_by_a_device_is_not_opened",
        an_executable_replaced_by_a_device_is_not_opened,
    ),
    (
        "debug_information_of_an_impossible_size_costs_its_own_names",
        debug_information_of_an_impossible_size_costs_its_own_names,
    ),
    (
        "a_debug_link_to_a_fifo_is_not_followed",
        a_debug_link_to_a_fifo_is_not_followed,
    ),
    (
        "files_that_are_truncated_at_the_end_are_survived",
        files_that_are_truncated_at_the_end_are_survived,
    ),
    ("a_signal_ends_the_look_up_of_names", a_signal_ends_the_look_up_of_names),
    (
        "the_reading_process_has_no_privileges",
        the_reading_process_has_no_privileges,
    ),
    (
        "a_reading_process_that_is_killed_costs_no_recording",
        a_reading_process_that_is_killed_costs_no_recording,
    ),
];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[(
    "debug_information_beyond_the_memory_costs_its_own_names",
    debug_information_beyond_the_memory_costs_its_own_names,
)];

/// A folder with a copy of this executable, which runs one of [`crate::programs`].
pub(crate) struct HostileTarget {
    pub(crate) folder: tempfile::TempDir,
    program: &'static str,
}

impl HostileTarget {
    pub(crate) fn new(program: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("the permissions are set");
        let target = Self { folder, program };
        fs::copy("/proc/self/exe", target.path()).expect("the file is copied");
        target
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    pub(crate) fn folded(&self) -> PathBuf {
        self.folder.path().join("folded")
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).expect("the file exists")
    }

    /// Returns a command that records the executable with `ctxtrace record` and is killed after two minutes.
    fn record(&self) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-s", "KILL", "120", CTXTRACE, "record", "--quiet", "--folded"])
            .arg(self.folded())
            .arg("--")
            .arg(self.path())
            .env(crate::programs::VARIABLE, self.program)
            .env_remove("SUDO_UID")
            .env_remove("SUDO_GID")
            .stdin(Stdio::null());
        command
    }

    /// Records the executable and returns the folded stacks. Panics if the recording fails.
    pub(crate) fn stacks(&self) -> String {
        let output = self.record().output().expect("the program starts");
        self.stacks_of(&output)
    }

    fn stacks_of(&self, output: &Output) -> String {
        assert_eq!(output.status.code(), Some(0), "{:?}: {}", output.status, stderr(output));
        fs::read_to_string(self.folded()).expect("the file exists")
    }

    /// Replaces `.debug_info` by a compressed section of these bytes, whose header declares this size of the unpacked data.
    pub(crate) fn compress_debug_info(&self, data: &[u8], size: u64) {
        self.compress_section(b".debug_info", data, size);
    }

    /// Does the same with any section.
    pub(crate) fn compress_section(&self, name: &[u8], data: &[u8], size: u64) {
        let bytes = self.bytes();
        let header = [1, size, 1].map(u64::to_le_bytes).concat();
        self.replace_section(
            name,
            &[&header, data].concat(),
            object::elf::SHF_COMPRESSED.into(),
            &bytes,
        );
    }

    /// Appends new data of a section to the file, whose bytes are `bytes`, and sets these flags of the section.
    fn replace_section(&self, name: &[u8], data: &[u8], flags: u64, bytes: &[u8]) {
        let end = bytes.len() as u64;
        let file = fs::OpenOptions::new().write(true).open(self.path()).expect("writable");
        file.write_all_at(data, end).expect("written");
        self.set_section(name, flags, end, data.len() as u64, bytes);
    }

    /// Says that a section has these flags besides its own, and is so long and at this place in the file. `bytes` is the file as it was.
    pub(crate) fn set_section(&self, name: &[u8], flags: u64, offset: u64, size: u64, bytes: &[u8]) {
        let elf = ElfFile64::<LittleEndian>::parse(bytes).expect("an executable");
        let sections = elf.elf_section_table();
        let (index, section) = sections
            .section_by_name(LittleEndian, name)
            .expect("the executable has this section");
        let header = elf.elf_header().e_shoff(LittleEndian) + 64 * index.0 as u64;
        let flags = section.sh_flags(LittleEndian) & !u64::from(object::elf::SHF_COMPRESSED) | flags;
        let file = fs::OpenOptions::new()
            .write(true)
            .open(self.path())
            .expect("a writable file");
        // sh_flags, sh_offset and sh_size (System V ABI, "Section Header").
        for (field, value) in [(8, flags), (24, offset), (32, size)] {
            file.write_all_at(&value.to_le_bytes(), header + field)
                .expect("the file is written");
        }
    }
}

/// The program `replaced`: replaces its own executable by the file `replacement` in the same folder, if there is one, and then
/// sleeps in [`sleep_in_own_code`].
pub(crate) fn replaced() {
    let executable = std::env::current_exe().expect("the path of this executable");
    let replacement = executable.with_file_name("replacement");
    if replacement.symlink_metadata().is_ok() {
        fs::rename(&replacement, &executable).expect("the file is replaced");
    }
    for _ in 0..20 {
        sleep_in_own_code();
    }
}

/// Sleeps by its own system call instruction, so that this function is the innermost user function of the stack and its name comes
/// from this executable.
#[inline(never)]
fn sleep_in_own_code() {
    let time = [0_u64, 2_000_000];
    // SAFETY: `nanosleep(2)` reads the time, and the second argument is null, so it writes nothing.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_nanosleep => _,
            in("rdi") time.as_ptr(),
            in("rsi") 0,
            out("rcx") _,
            out("r11") _,
        );
    }
}

/// A program without a runtime that maps the files of its arguments as code, so that they are searched for one after it has ended.
const MAPPER: &str = r#"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (int number = 1; number < argc; number++) {
        int file = open(argv[number], O_RDONLY);
        if (file < 0 || mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED)
            return 1;
    }
    return 0;
}
"#;

/// Size in bytes of the files that [`MAPPER`] maps.
const LARGE_BYTES: u64 = 1 << 30;

/// Creates a library for x86-64 with one segment that spans the whole file (System V ABI, "ELF Header", "Program Header").
fn create_large_library(path: &Path) {
    let file = File::create(path).expect("the file is created");
    let mut header = [0_u8; 120];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [
        (16, 3_u64),
        (18, 62),
        (20, 1),
        (32, 64),
        (52, 64),
        (54, 56),
        (56, 1),
        (64, 1),
        (68, 5),
    ] {
        header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    for at in [96, 104] {
        header[at..at + 8].copy_from_slice(&LARGE_BYTES.to_le_bytes());
    }
    (&file).write_all(&header).expect("the file is written");
    file.set_len(LARGE_BYTES).expect("the size of the file is set");
}

fn an_executable_replaced_by_a_fifo_is_not_waited_for() {
    let target = HostileTarget::new("replaced");
    let fifo = target.path().with_file_name("replacement");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("the FIFO is created");
    let stacks = target.stacks();
    assert!(stacks.contains("target"), "{stacks}");
}

fn an_executable_replaced_by_a_device_is_not_opened() {
    let target = HostileTarget::new("replaced");
    let device = target.path().with_file_name("replacement");
    mknod(&device, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).expect("the device is created");
    let opened = opened_events(&device);
    let stacks = target.stacks();
    assert!(stacks.contains("target"), "{stacks}");
    let event = nix::unistd::read(&opened, &mut [0; 64]);
    assert_eq!(event, Err(nix::errno::Errno::EAGAIN), "ctxtrace has opened the device");
}

/// Returns an inotify descriptor that becomes readable when this file is opened.
fn opened_events(path: &Path) -> OwnedFd {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without a zero byte");
    // SAFETY: `inotify_init1` returns a new descriptor, which nothing else owns.
    let events = unsafe { OwnedFd::from_raw_fd(libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC)) };
    // SAFETY: the descriptor is open, and the path ends with a zero byte.
    let watch = unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) };
    assert!(watch > 0, "{}", std::io::Error::last_os_error());
    events
}

fn debug_information_of_an_impossible_size_costs_its_own_names() {
    for size in [1 << 62, u64::MAX] {
        let target = HostileTarget::new("replaced");
        target.compress_debug_info(b"", size);
        let stacks = target.stacks();
        assert!(stacks.contains("[unknown: target "), "{stacks}");
        assert!(
            stacks.contains("nanosleep"),
            "the names of kernel functions are missing: {stacks}"
        );
    }
}

/// Returns a zlib stream of about 5 MB that unpacks to 5 GiB of zeros, which is more than the memory limit of the reading process.
/// It repeats one block.
fn bomb() -> Vec<u8> {
    let zeros = vec![0; 16 << 20];
    let mut block = Vec::with_capacity(1 << 20);
    let mut compress = Compress::new(Compression::best(), false);
    compress
        .compress_vec(&zeros, &mut block, FlushCompress::Full)
        .expect("the data is compressed");
    [&[0x78, 0x01], block.repeat(320).as_slice()].concat()
}

fn debug_information_beyond_the_memory_costs_its_own_names() {
    let target = HostileTarget::new("replaced");
    target.compress_debug_info(&bomb(), 1 << 20);
    let stacks = target.stacks();
    // A slow machine reaches the time limit first.
    let reasons = [
        "[unknown: target needs more memory to be read than ctxtrace allows (4 GiB)]",
        "[unknown: reading target took longer than 20 s]",
    ];
    assert!(reasons.iter().any(|reason| stacks.contains(reason)), "{stacks}");
    assert!(
        stacks.contains("nanosleep"),
        "the names of kernel functions are missing: {stacks}"
    );
}

fn a_debug_link_to_a_fifo_is_not_followed() {
    let target = HostileTarget::new("replaced");
    let fifo = target.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("the FIFO is created");
    let data = [fifo.as_os_str().as_encoded_bytes(), &[0; 8]].concat();
    let data = &data[..data.len() / 4 * 4];
    let link = target.folder.path().join("link");
    fs::write(&link, data).expect("the file is written");
    let status = Command::new("objcopy")
        .arg("--add-section")
        .arg(format!(".gnu_debuglink={}", link.display()))
        .arg(target.path())
        .status()
        .expect("objcopy is installed (Debian package binutils)");
    assert!(status.success());
    let stacks = target.stacks();
    assert!(
        stacks.contains("sleep_in_own_code"),
        "the names of the executable are missing: {stacks}"
    );
}

/// Number of recordings. A file is truncated by chance while it is read, which happens in most recordings.
const TRUNCATED_RECORDINGS: usize = 4;

/// The tracer searches the mapped libraries for a runtime after the program has ended. Meanwhile they are truncated behind their
/// headers and extended again: reading a mapping beyond the end of its file ends a process with SIGBUS.
fn files_that_are_truncated_at_the_end_are_survived() {
    let builds = Builds::new();
    let mapper = builds.build("mapper", MAPPER, &[]);
    let libraries: Vec<PathBuf> = (0..8)
        .map(|number| builds.path(&format!("large-{number}.so")))
        .collect();
    for library in &libraries {
        create_large_library(library);
    }
    for _ in 0..TRUNCATED_RECORDINGS {
        record_while_truncated(&mapper, &libraries);
    }
}

fn record_while_truncated(mapper: &Path, libraries: &[PathBuf]) {
    let recording = Command::new(CTXTRACE)
        .args(["record", "--json", "-", "--"])
        .arg(mapper)
        .args(libraries)
        .spawn_piped();
    let pid = Pid::from_raw(recording.id() as i32);
    for length in [4_096, LARGE_BYTES].into_iter().cycle() {
        if kill(pid, None).is_err() || is_zombie(pid) {
            break;
        }
        for library in libraries {
            let file = fs::OpenOptions::new().write(true).open(library);
            file.and_then(|file| file.set_len(length))
                .expect("the size of the file is set");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = recording.wait_with_output().expect("the program ends");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{:?}: {}",
        output.status,
        stderr(&output)
    );
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    assert_eq!(json["reconciliation"]["difference"], 0);
}

fn is_zombie(pid: Pid) -> bool {
    let state = Process::new(pid.as_raw()).and_then(|process| process.stat());
    state.is_ok_and(|stat| stat.state == 'Z')
}

/// Starts a recording and waits until its reading process looks up names in a file, which takes seconds. Returns the child, the
/// tracer and the reading process.
fn slow_look_up(target: &HostileTarget) -> (Child, Pid, Pid) {
    target.compress_debug_info(&bomb(), 1 << 20);
    let recording = target.record().spawn_piped();
    let mut tracer = None;
    wait_until("ctxtrace runs", || {
        tracer = children(recording.id() as i32).into_iter().next();
        tracer.is_some()
    });
    let tracer = tracer.expect("the tracer was found above");
    // The first reading process examines programs and starts before the target. The second one looks up the names of functions.
    let mut first = None;
    let mut second = None;
    wait_until("the names of functions are looked up", || {
        let reader = children(tracer).into_iter().find(|&pid| is_reader(pid));
        match (first, reader) {
            (None, Some(_)) => first = reader,
            (Some(examining), Some(naming)) if examining != naming => second = reader,
            _ => {}
        }
        second.is_some()
    });
    (
        recording,
        Pid::from_raw(tracer),
        Pid::from_raw(second.expect("the reading process was found above")),
    )
}

fn children(parent: i32) -> Vec<i32> {
    let all = procfs::process::all_processes().expect("/proc is readable");
    all.filter_map(|process| process.ok()?.stat().ok())
        .filter(|stat| stat.ppid == parent && stat.state != 'Z')
        .map(|stat| stat.pid)
        .collect()
}

fn is_reader(pid: i32) -> bool {
    let line = Process::new(pid).and_then(|process| process.cmdline());
    line.is_ok_and(|line| line.get(1).is_some_and(|word| word == "read-files"))
}

fn a_signal_ends_the_look_up_of_names() {
    let target = HostileTarget::new("replaced");
    let (recording, tracer, _) = slow_look_up(&target);
    kill(tracer, Signal::SIGTERM).expect("the process is alive");
    let output = recording.wait_with_output().expect("the program ends");
    let stacks = target.stacks_of(&output);
    assert!(stacks.contains("a signal ended the look-up"), "{stacks}");
    assert!(
        stderr(&output).contains("SIGTERM ended the look-up of names"),
        "{}",
        stderr(&output)
    );
}

fn a_reading_process_that_is_killed_costs_no_recording() {
    let target = HostileTarget::new("replaced");
    let (recording, _, reader) = slow_look_up(&target);
    kill(reader, Signal::SIGKILL).expect("the process is alive");
    let output = recording.wait_with_output().expect("the program ends");
    let stacks = target.stacks_of(&output);
    assert!(
        stacks.contains("[unknown: the process that read target was killed by SIGKILL]"),
        "{stacks}"
    );
}

fn the_reading_process_has_no_privileges() {
    let target = HostileTarget::new("replaced");
    let (recording, tracer, reader) = slow_look_up(&target);
    // The seccomp filter is the last restriction that the reading process applies to itself.
    let mut status = String::new();
    wait_until("the reading process has its filter", || {
        status = fs::read_to_string(format!("/proc/{reader}/status")).expect("the process is alive");
        status.contains("Seccomp:\t2")
    });
    let limits = fs::read_to_string(format!("/proc/{reader}/limits")).expect("the process is alive");
    kill(tracer, Signal::SIGKILL).expect("the process is alive");
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t \n",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line:?} is not in {status}");
    }
    let memory = limits
        .lines()
        .find(|line| line.starts_with("Max address space"))
        .expect("the process has an address space limit");
    assert!(memory.contains(&(4_u64 << 30).to_string()), "{memory}");
    // The reading process ends when the tracer is killed.
    let output = recording.wait_with_output().expect("the program ends");
    assert_ne!(output.status.signal().or(output.status.code()), Some(0));
    wait_until("the reading process has ended", || !is_reader(reader.as_raw()));
}
