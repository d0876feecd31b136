//! Tests of recordings with many simultaneous programs that have different layouts: the current task is at another offset in each.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ctxtrace::capture::Settings;
use ctxtrace::run::watch::{Observer, Underway};
use ctxtrace::tracee::environment::Environment;
use ctxtrace::tracee::locate::examine_bytes;
use ctxtrace_abi::{MAGIC, ThreadState};
use ctxtrace_common::event::Event;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{HAS_PROBE, MAX_LOCATORS};
use ctxtrace_common::process::Image;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::programs::Program;
use ctxtrace_format::run::Run;
use object::LittleEndian;
use object::elf::PT_TLS;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use crate::large::build;
use crate::support::{launch_command, with_recorder};

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "eighty_layouts_at_a_time_are_all_attributed",
    eighty_layouts_at_a_time_are_all_attributed,
)];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[(
    "layouts_beyond_the_table_are_counted",
    layouts_beyond_the_table_are_counted,
)];

/// The number of sleeps of each program in its task.
const SLEEPS: u64 = 5;

/// A program that contains a probe's slot, and sleeps while the slot says that a task is polled. Its arguments are the distance of the
/// slot below the thread pointer in bytes, and a FIFO; it waits until the FIFO has a writer. The program cannot access the slot by
/// name, because the tests change the size of the TLS segment after linking.
const PROBED: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
__thread char state[STATE_BYTES] __asm__("_ZN14ctxtrace_probe4slot4SLOT17h0123456789abcdefE") __attribute__((aligned(64), used));
static long sleeps(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}
int main(int count, char **words) {
    if (count != 3) return 1;
    char *thread_pointer;
    __asm__("mov %%fs:0, %0" : "=r"(thread_pointer));
    volatile unsigned long *slot = (volatile unsigned long *)(thread_pointer - atol(words[1]));
    if (open(words[2], O_RDONLY) < 0) return 2;
    slot[0] = MAGIC;
    slot[2] = 1;
    slot[1] = 1;
    for (int i = 0; i < 5; i++)
        for (long before = sleeps(); sleeps() == before;) usleep(500);
    slot[1] = 0;
    return 0;
}"#;

/// Builds the program once and creates `count` copies of it, each with a TLS segment of another size. Returns the path of each copy and
/// the distance of its slot below the thread pointer in bytes.
fn programs(folder: &Path, count: u64) -> Vec<(PathBuf, u64)> {
    let bytes = size_of::<ThreadState>();
    let source = format!("#define STATE_BYTES {bytes}\n#define MAGIC {MAGIC}UL\n{PROBED}");
    let program = fs::read(build("probed", &source, folder)).expect("the file exists");
    let elf = ElfFile64::<LittleEndian>::parse(&*program).expect("an executable");
    let header = elf.elf_header();
    let segments = elf.elf_program_headers();
    let index = segments
        .iter()
        .position(|segment| segment.p_type(LittleEndian) == PT_TLS);
    let index = index.expect("it has a TLS segment");
    let size = segments[index].p_memsz(LittleEndian);
    // The field p_memsz (System V ABI, "Program Header").
    let place = header.e_phoff(LittleEndian) as usize + 56 * index + 40;
    let copies = (0..count).map(|number| {
        let mut copy = program.clone();
        copy[place..place + 8].copy_from_slice(&(size + 64 * number).to_le_bytes());
        let found = examine_bytes(&copy).locator;
        assert_eq!(found.flags, HAS_PROBE);
        let path = folder.join(format!("probed-{number}"));
        fs::write(&path, copy).expect("the file is written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the permissions are set");
        (path, found.probe_below_tp)
    });
    copies.collect()
}

fn is_probed(program: &Program) -> bool {
    program.found.locator.flags & HAS_PROBE != 0
}

/// Opens the FIFO, and thereby lets the programs continue, once all of them were examined.
struct LayoutGate {
    fifo: PathBuf,
    programs: usize,
    open: Option<File>,
}

impl EventSink for LayoutGate {
    fn events(&mut self, _batch: &[Event]) {}
}

impl Observer for LayoutGate {
    fn tick(&mut self, underway: &Underway<'_>) {
        if self.open.is_some() {
            return;
        }
        let known = |run: &Run| {
            let programs = run.aggregates.programs.all().iter();
            programs.filter(|program| is_probed(program)).count()
        };
        if underway.so_far().is_ok_and(|run| known(&run) == self.programs) {
            // Opening for reading and writing does not block, and wakes the processes that wait for a writer.
            let fifo = File::options().read(true).write(true).open(&self.fifo);
            self.open = Some(fifo.expect("the file is opened"));
        }
    }
}

/// Records `count` programs that run at the same time.
fn record(count: u64) -> Run {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("the path is created");
    let mut script = String::new();
    for (program, below_tp) in programs(folder.path(), count) {
        script += &format!("{} {below_tp} {} &\n", program.display(), fifo.display());
    }
    let file = folder.path().join("script");
    fs::write(&file, script + "wait\n").expect("the file is written");
    let words = [OsStr::new("sh"), file.as_os_str()];
    let environment = Environment::for_user(None);
    let command = launch_command(Path::new("/bin/sh"), &words, &environment);
    let mut gate = LayoutGate {
        fifo,
        programs: count as usize,
        open: None,
    };
    // The duration ends the programs if they are not all examined, so that the test fails and does not hang.
    let duration = Some(std::time::Duration::from_secs(120));
    let recorded = with_recorder(Settings::default(), duration, |recorder| {
        recorder.command(&command, &mut gate)
    });
    let recorded = recorded.expect("the command is recorded");
    assert!(gate.open.is_some(), "not all programs were examined in time");
    let layouts: BTreeSet<u64> = probed(&recorded.run)
        .map(|program| program.found.locator.probe_below_tp)
        .collect();
    assert_eq!(layouts.len() as u64, count, "each has a layout of its own");
    recorded.run
}

fn probed(run: &Run) -> impl Iterator<Item = &Program> {
    run.aggregates
        .programs
        .all()
        .iter()
        .filter(|program| is_probed(program))
}

/// Returns the number of processes all of whose sleeps are attributed to the task.
fn attributed(run: &Run) -> usize {
    let programs = &run.aggregates.programs;
    let images: BTreeSet<Image> = run
        .aggregates
        .switch_sums
        .iter()
        .map(|(key, _)| Image {
            tgid: key.tgid,
            number: key.image,
        })
        .filter(|&image| programs.get(image).is_some_and(is_probed))
        .collect();
    let sleeps = |image: Image| -> u64 {
        let sums = run.aggregates.switch_sums.iter();
        sums.filter(|(key, _)| (key.tgid, key.image) == (image.tgid, image.number))
            .filter(|(key, _)| key.class == Class::TaskBlocked as u8 && key.task == 1)
            .map(|(_, sum)| sum.count)
            .sum()
    };
    images.into_iter().filter(|&image| sleeps(image) >= SLEEPS).count()
}

fn eighty_layouts_at_a_time_are_all_attributed() {
    const PROGRAMS: u64 = 80;
    let run = record(PROGRAMS);
    assert_eq!(attributed(&run) as u64, PROGRAMS);
    assert_eq!(run.aggregates.lost_programs, 0);
}

/// The table has space for 1,023 layouts, one of which is that of programs without tasks, such as the shell.
fn layouts_beyond_the_table_are_counted() {
    const PROGRAMS: u64 = 1_100;
    const ROOM: u64 = MAX_LOCATORS as u64 - 2;
    let run = record(PROGRAMS);
    assert_eq!(attributed(&run) as u64, ROOM);
    assert_eq!(run.aggregates.lost_programs, PROGRAMS - ROOM);
}
