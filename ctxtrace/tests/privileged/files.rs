//! Function names come from the file that was executed or mapped, even if another file is at its path by then.
//!
//! The programs are written in C, so that every nap is in one function, whose name identifies the build.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::privileges::{as_unprivileged_user, copy_for_unprivileged_user};
use crate::support::{at_work, command, said, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_program_that_is_replaced_while_it_runs_keeps_its_names",
        a_program_that_is_replaced_while_it_runs_keeps_its_names,
    ),
    (
        "a_program_that_was_deleted_before_the_attach_has_names",
        a_program_that_was_deleted_before_the_attach_has_names,
    ),
    (
        "two_programs_at_one_path_have_their_own_names",
        two_programs_at_one_path_have_their_own_names,
    ),
    (
        "a_program_in_another_mount_namespace_has_its_own_names",
        a_program_in_another_mount_namespace_has_its_own_names,
    ),
    (
        "a_program_on_overlayfs_has_names_after_it_was_replaced",
        a_program_on_overlayfs_has_names_after_it_was_replaced,
    ),
    (
        "a_program_that_is_bound_over_another_one_has_its_own_names",
        a_program_that_is_bound_over_another_one_has_its_own_names,
    ),
    (
        "without_map_files_a_library_is_found_by_its_path_or_not_named",
        without_map_files_a_library_is_found_by_its_path_or_not_named,
    ),
    (
        "a_program_in_a_changed_root_has_names",
        a_program_in_a_changed_root_has_names,
    ),
    ("a_program_without_a_path_has_names", a_program_without_a_path_has_names),
    (
        "libraries_at_one_address_do_not_get_each_others_names",
        libraries_at_one_address_do_not_get_each_others_names,
    ),
    (
        "mappings_of_other_programs_cost_no_name_and_are_no_loss",
        mappings_of_other_programs_cost_no_name_and_are_no_loss,
    ),
    (
        "a_flood_of_mappings_does_not_fill_the_capture",
        a_flood_of_mappings_does_not_fill_the_capture,
    ),
    (
        "a_process_with_odd_names_in_its_maps_is_attached_to",
        a_process_with_odd_names_in_its_maps_is_attached_to,
    ),
    (
        "a_program_named_like_shared_memory_is_attached_to",
        a_program_named_like_shared_memory_is_attached_to,
    ),
    (
        "a_pipe_in_place_of_the_program_is_not_opened",
        a_pipe_in_place_of_the_program_is_not_opened,
    ),
    (
        "the_program_is_examined_and_not_its_loader",
        the_program_is_examined_and_not_its_loader,
    ),
];

/// The number of naps of each program.
pub(crate) const NAPS: usize = 60;

/// A program that naps in the function `NAME`. Before, it waits for a line if its first argument is `wait`, replaces its own file
/// by that of the second argument if the first is `replace`, and replaces its own file by a FIFO if the first is `pipe`.
const NAPPER: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
__attribute__((noinline)) void nap(void) { struct timespec t = {0, 2000000}; nanosleep(&t, 0); __asm__ volatile(""); }
__attribute__((noinline)) void NAME(void) { nap(); __asm__ volatile(""); }
int main(int argc, char **argv) {
    char line[8];
    if (argc > 1 && !strcmp(argv[1], "wait") && !fgets(line, sizeof line, stdin)) return 1;
    if (argc > 2 && !strcmp(argv[1], "replace") && rename(argv[2], argv[0])) return 2;
    if (argc > 1 && !strcmp(argv[1], "pipe") && (unlink(argv[0]) || mkfifo(argv[0], 0666))) return 3;
    for (int i = 0; i < 60; i++) NAME();
    return 0;
}
"#;

/// A library with the function `play`, which naps in the function `NAME`.
const LIBRARY: &str = r#"
#include <time.h>
__attribute__((noinline)) void nap(void) { struct timespec t = {0, 1000000}; nanosleep(&t, 0); __asm__ volatile(""); }
__attribute__((noinline)) void NAME(void) { nap(); __asm__ volatile(""); }
void play(int n) { for (int i = 0; i < n; i++) NAME(); }
"#;

/// A program that loads each library of its arguments, naps in it, and unloads it.
const LOADS: &str = r#"
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    sleep(1);
    for (int i = 1; i < argc; i++) {
        void *lib = dlopen(argv[i], RTLD_NOW);
        if (!lib) return 1;
        ((void (*)(int))dlsym(lib, "play"))(60);
        dlclose(lib);
    }
    char *last = getenv("LAST_FIFO"), letter;
    if (last) read(open(last, O_RDONLY), &letter, 1);
    return 0;
}
"#;

/// A program that maps and unmaps code, as often as its argument says, or until it is killed if it has no argument.
const MAPS: &str = r#"
#include <stdlib.h>
#include <sys/mman.h>
int main(int argc, char **argv) {
    for (long i = 0; argc < 2 || i < atol(argv[1]); i++)
        munmap(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
    return 0;
}
"#;

/// A program that copies the file of its argument to memory and executes the copy.
const FROM_MEMORY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    int from = open(argv[1], O_RDONLY), to = memfd_create("napper", MFD_CLOEXEC);
    while (sendfile(to, from, 0, 1 << 20) > 0);
    char *args[] = {"napper", 0};
    return fexecve(to, args, environ);
}
"#;

pub(crate) struct Builds {
    folder: TempDir,
}

impl Builds {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn build(&self, name: &str, source: &str, options: &[&str]) -> PathBuf {
        let (file, built) = (self.path(&format!("{name}.c")), self.path(name));
        std::fs::write(&file, source).expect("the file is written");
        let flags = [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fno-optimize-sibling-calls",
            "-w",
        ];
        let status = Command::new("cc")
            .args(flags)
            .arg("-o")
            .arg(&built)
            .arg(&file)
            .args(options)
            .status();
        assert!(status.expect("a C compiler is installed").success());
        built
    }

    fn napper(&self, name: &str) -> PathBuf {
        self.build(name, NAPPER, &[&format!("-DNAME={name}_nap")])
    }

    pub(crate) fn library(&self, name: &str) -> PathBuf {
        self.build(name, LIBRARY, &[&format!("-DNAME={name}_nap"), "-shared", "-fPIC"])
    }
}

/// What a recording printed and the stacks that it wrote.
pub(crate) struct FileRecording {
    pub(crate) table: String,
    pub(crate) stacks: String,
}

impl FileRecording {
    /// Records a command.
    fn record_command<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Self {
        Self::record_command_with(words, "UNUSED", Path::new(""))
    }

    /// Records a command with this environment variable.
    fn record_command_with<S: AsRef<std::ffi::OsStr>>(words: &[S], variable: &str, value: &Path) -> Self {
        let folded = tempfile::NamedTempFile::new().expect("a file");
        let output = command("record --weight count --folded")
            .env(variable, value)
            .arg(folded.path())
            .arg("--")
            .args(words)
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        Self {
            table: said(&output),
            stacks: std::fs::read_to_string(folded.path()).expect("valid UTF-8"),
        }
    }

    /// Attaches to a process that waits for a line, sends the line, and records the process to its end.
    fn attached(waiting: &mut Child, options: &str) -> Self {
        Self::attached_by(command(""), waiting, options)
    }

    /// Does the same as [`FileRecording::attached`] with this command, which starts ctxtrace.
    fn attached_by(mut recorder: Command, waiting: &mut Child, options: &str) -> Self {
        use std::io::Write as _;

        let folder = tempfile::tempdir().expect("a temporary folder");
        // The recorder may run as another user.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), everybody).expect("the permissions are set");
        let folded = folder.path().join("folded");
        let line = format!("record -p {} {options} --weight count --folded", waiting.id());
        recorder.args(line.split_whitespace()).arg(&folded);
        let recorder = at_work(recorder);
        waiting
            .stdin
            .take()
            .expect("the stream is piped")
            .write_all(b"go\n")
            .expect("the line is sent");
        waiting.wait().expect("the program ends");
        let output = recorder.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        Self {
            table: said(&output),
            stacks: std::fs::read_to_string(folded).expect("valid UTF-8"),
        }
    }

    /// Returns the number of naps in stacks that contain this function.
    pub(crate) fn naps_in(&self, function: &str) -> usize {
        self.stacks
            .lines()
            // A nap that is preempted before its sleep has a second switch, of another class.
            .filter(|line| line.starts_with("thread blocked;"))
            .filter(|line| line.contains(function) && line.contains("nanosleep"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok())
            .sum()
    }

    #[track_caller]
    fn assert_naps(&self, of: &str, not_of: &str) {
        let naps = (
            self.naps_in(&format!("{of}_nap")),
            self.naps_in(&format!("{not_of}_nap")),
        );
        assert_eq!(naps, (NAPS, 0), "{}\n{}", self.table, self.stacks);
    }
}

fn waiting(program: &mut Command) -> Child {
    program.stdin(Stdio::piped()).spawn().expect("the program starts")
}

fn a_program_that_is_replaced_while_it_runs_keeps_its_names() {
    let builds = Builds::new();
    let (alpha, omega) = (builds.napper("alpha"), builds.napper("omega"));
    FileRecording::record_command(&[alpha.as_os_str(), "replace".as_ref(), omega.as_os_str()])
        .assert_naps("alpha", "omega");
}

fn a_program_that_was_deleted_before_the_attach_has_names() {
    let builds = Builds::new();
    let (alpha, omega) = (builds.napper("alpha"), builds.napper("omega"));
    let mut process = waiting(Command::new(&alpha).arg("wait"));
    std::fs::rename(&omega, &alpha).expect("the file is replaced");
    FileRecording::attached(&mut process, "").assert_naps("alpha", "omega");
}

fn two_programs_at_one_path_have_their_own_names() {
    let builds = Builds::new();
    let (alpha, omega) = (builds.napper("alpha"), builds.napper("omega"));
    let server = builds.path("server");
    let line = format!(
        "mv {} {server}; {server}; mv {} {server}; {server}",
        alpha.display(),
        omega.display(),
        server = server.display()
    );
    let recorded = FileRecording::record_command(&["sh", "-c", &line]);
    let naps = (recorded.naps_in("alpha_nap"), recorded.naps_in("omega_nap"));
    assert_eq!(naps, (NAPS, NAPS), "{}", recorded.stacks);
}

fn a_program_in_another_mount_namespace_has_its_own_names() {
    let builds = Builds::new();
    let (alpha, omega) = (builds.napper("alpha"), builds.napper("omega"));
    let (inside, outside) = (alpha.display(), omega.display());
    let bind = format!("mount --make-rprivate / && mount --bind {inside} {outside}");
    let line = format!("{bind} && exec {outside}");
    FileRecording::record_command(&["unshare", "-m", "sh", "-c", &line]).assert_naps("alpha", "omega");
    let line = format!("{bind} && read line && exec {outside}");
    let mut process = waiting(Command::new("unshare").args(["-m", "sh", "-c", &line]));
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/mnt")).expect("readable");
    let pid = process.id().to_string();
    wait_until("the process has its own namespace", || {
        namespace(&pid) != namespace("self")
    });
    FileRecording::attached(&mut process, "").assert_naps("alpha", "omega");
    // A child creates the namespace while the process is recorded.
    let line = format!("read line; unshare -m sh -c '{bind} && {outside}'; true");
    let mut process = waiting(Command::new("sh").args(["-c", &line]));
    FileRecording::attached(&mut process, "--children").assert_naps("alpha", "omega");
}

fn a_program_on_overlayfs_has_names_after_it_was_replaced() {
    let builds = Builds::new();
    let (alpha, omega) = (builds.napper("alpha"), builds.napper("omega"));
    for folder in ["lower", "layers", "merged"] {
        std::fs::create_dir(builds.path(folder)).expect("the folder is created");
    }
    std::fs::copy(&alpha, builds.path("lower/server")).expect("the file is copied");
    let layers = builds.path("layers").display().to_string();
    let line = format!(
        "mount --make-rprivate / && mount -t tmpfs none {layers} && mkdir {layers}/upper {layers}/work && \
         mount -t overlay none -o lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work {merged} && \
         cp {omega} {merged}/new && exec {merged}/server replace {merged}/new",
        lower = builds.path("lower").display(),
        merged = builds.path("merged").display(),
        omega = omega.display(),
    );
    FileRecording::record_command(&["unshare", "-m", "sh", "-c", &line]).assert_naps("alpha", "omega");
}

/// The bind mount is in the mount namespace of the tracer. So the tracer finds the executed file at the path while the program
/// runs, and another file after the program has ended.
fn a_program_that_is_bound_over_another_one_has_its_own_names() {
    let builds = Builds::new();
    let (alpha, omega) = (builds.napper("alpha"), builds.napper("omega"));
    let (inside, outside) = (alpha.display(), omega.display());
    let line = format!("mount --bind {inside} {outside} && {outside}; umount -l {outside}");
    FileRecording::record_command(&["sh", "-c", &line]).assert_naps("alpha", "omega");
    // The same file has another path in a folder that is bound to another mount point.
    std::fs::create_dir(builds.path("elsewhere")).expect("the folder is created");
    let (folder, elsewhere) = (builds.folder.path().display(), builds.path("elsewhere"));
    let elsewhere = elsewhere.display();
    let line = format!("mount --bind {folder} {elsewhere} && {elsewhere}/alpha; umount -l {elsewhere}");
    FileRecording::record_command(&["sh", "-c", &line]).assert_naps("alpha", "omega");
}

/// A program that loads the library of its argument, waits for a line, and naps in the library.
const WAITS_LOADED: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    char line[8];
    void *lib = dlopen(argv[1], RTLD_NOW);
    if (!lib || !fgets(line, sizeof line, stdin)) return 1;
    ((void (*)(int))dlsym(lib, "play"))(60);
    return 0;
}
"#;

/// A tracer that has only `CAP_BPF`, `CAP_PERFMON` and `CAP_SYSLOG` may not open the files in `/proc/PID/map_files`.
fn without_map_files_a_library_is_found_by_its_path_or_not_named() {
    use std::os::unix::fs::PermissionsExt as _;

    let (_folder, ctxtrace) = copy_for_unprivileged_user();
    let builds = Builds::new();
    std::fs::set_permissions(builds.folder.path(), std::fs::Permissions::from_mode(0o755))
        .expect("the permissions are set");
    let program = builds.build("program", WAITS_LOADED, &["-ldl"]);
    let recorded = |is_replaced: bool, recorder: Command| {
        let (red, blue) = (builds.library("red"), builds.library("blue"));
        let mut process = waiting(as_unprivileged_user(&program, None).arg(&red));
        let maps = format!("/proc/{}/maps", process.id());
        wait_until("the program has loaded the library", || {
            std::fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("red"))
        });
        if is_replaced {
            std::fs::rename(&blue, &red).expect("the file is replaced");
        }
        FileRecording::attached_by(recorder, &mut process, "")
    };
    let by_unprivileged_user = || as_unprivileged_user(&ctxtrace, Some("+bpf,+perfmon,+syslog"));
    recorded(false, by_unprivileged_user()).assert_naps("red", "blue");
    let replaced = recorded(true, by_unprivileged_user());
    let unknown = replaced.naps_in("red was replaced while it ran");
    assert_eq!(unknown, NAPS, "{}", replaced.stacks);
    assert_eq!(replaced.naps_in("_nap"), 0, "{}", replaced.stacks);
    // Root may open the file in `map_files`, which is the library that was mapped.
    recorded(true, command("")).assert_naps("red", "blue");
}

fn a_program_in_a_changed_root_has_names() {
    let builds = Builds::new();
    let alpha = builds.build("alpha", NAPPER, &["-DNAME=alpha_nap", "-static"]);
    let root = builds.path("root");
    std::fs::create_dir(&root).expect("the folder is created");
    std::fs::copy(&alpha, root.join("server")).expect("the file is copied");
    FileRecording::record_command(&["chroot".as_ref(), root.as_os_str(), "/server".as_ref()])
        .assert_naps("alpha", "omega");
}

fn a_program_without_a_path_has_names() {
    let builds = Builds::new();
    let alpha = builds.napper("alpha");
    let starter = builds.build("starter", FROM_MEMORY, &[]);
    let recorded = FileRecording::record_command(&[starter.as_os_str(), alpha.as_os_str()]);
    recorded.assert_naps("alpha", "omega");
}

fn libraries_at_one_address_do_not_get_each_others_names() {
    let builds = Builds::new();
    let (red, blue) = (builds.library("red"), builds.library("blue"));
    let loads = builds.build("loads", LOADS, &["-ldl"]);
    let recorded = FileRecording::record_command(&[&loads, &red, &blue]);
    for name in ["red_nap", "blue_nap"] {
        let naps = recorded.naps_in(name);
        assert!(naps == 0 || naps == NAPS, "{name} {naps}: {}", recorded.stacks);
    }
    let reason = "unknown: several files were mapped there one after the other";
    let known = recorded.naps_in("red_nap") + recorded.naps_in("blue_nap");
    assert_eq!(known + recorded.naps_in(reason), 2 * NAPS, "{}", recorded.stacks);
    // A library that is loaded twice is the same file at the same addresses.
    let recorded = FileRecording::record_command(&[&loads, &red, &red]);
    assert_eq!(recorded.naps_in("red_nap"), 2 * NAPS, "{}", recorded.stacks);
}

/// The reports of the other program's mappings overflow the rings all the time. The recorded program ends later than the other one, so its
/// mappings can be read once more.
fn mappings_of_other_programs_cost_no_name_and_are_no_loss() {
    let builds = Builds::new();
    let last = builds.path("last");
    nix::unistd::mkfifo(&last, nix::sys::stat::Mode::S_IRWXU).expect("the FIFO is made");
    let mut noise = Command::new(builds.build("noise", MAPS, &[]))
        .spawn()
        .expect("the program starts");
    let words = [builds.build("loads", LOADS, &["-ldl"]), builds.library("late")];
    let recorded = std::thread::scope(|scope| {
        let recording = scope.spawn(|| FileRecording::record_command_with(&words, "LAST_FIFO", &last));
        // The program opens the other end when it has finished its naps.
        let mut end = None;
        wait_until("the program has finished its naps", || {
            let mut options = std::fs::OpenOptions::new();
            end = options.write(true).custom_flags(libc::O_NONBLOCK).open(&last).ok();
            end.is_some()
        });
        noise.kill().expect("the signal is sent");
        noise.wait().expect("the program ends");
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(end);
        recording.join().expect("the recording succeeds")
    });
    assert_eq!(recorded.naps_in("late_nap"), NAPS, "{}", recorded.stacks);
    assert!(!recorded.table.contains("mapping"), "{}", recorded.table);
}

fn a_flood_of_mappings_does_not_fill_the_capture() {
    let builds = Builds::new();
    let maps = builds.build("maps", MAPS, &[]);
    let capture = builds.path("flood.ctx");
    let output = command("record -o")
        .arg(&capture)
        .arg("--")
        .arg(maps)
        .arg("200000")
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let bytes = std::fs::metadata(&capture).expect("the file exists").len();
    assert!(
        bytes < 200_000,
        "the capture has {bytes} bytes for 200,000 identical mappings"
    );
}

fn a_process_with_odd_names_in_its_maps_is_attached_to() {
    use std::os::unix::ffi::OsStrExt as _;

    let builds = Builds::new();
    let alpha = builds.build("alpha", NAPPER, &["-DNAME=alpha_nap", "-static"]);
    for name in [&b"\xff\xfe bytes"[..], b"new\nline", b"server (deleted)"] {
        let folder = builds.folder.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir(&folder).expect("the folder is created");
        let path = folder.join("napper");
        std::fs::copy(&alpha, &path).expect("the file is copied");
        let mut process = waiting(Command::new(&path).arg("wait"));
        FileRecording::attached(&mut process, "").assert_naps("alpha", "omega");
    }
}

/// The process has its own root, in which the path of the executable is `/SYSV`. In `maps`, names of System V shared memory begin
/// with this text.
fn a_program_named_like_shared_memory_is_attached_to() {
    let builds = Builds::new();
    let alpha = builds.build("alpha", NAPPER, &["-DNAME=alpha_nap", "-static"]);
    let root = builds.path("root");
    std::fs::create_dir_all(root.join("old")).expect("the folder is created");
    let line = format!(
        "mount --make-rprivate / && mount -t tmpfs none {root} && cp {alpha} {root}/SYSV && cd {root} && mkdir old && \
         pivot_root . old && exec /SYSV wait",
        root = root.display(),
        alpha = alpha.display()
    );
    let mut process = waiting(Command::new("unshare").args(["-m", "sh", "-c", &line]));
    let executable = format!("/proc/{}/exe", process.id());
    wait_until("the process runs /SYSV", || {
        std::fs::read_link(&executable).is_ok_and(|path| path.ends_with("SYSV"))
    });
    FileRecording::attached(&mut process, "").assert_naps("alpha", "omega");
}

fn a_pipe_in_place_of_the_program_is_not_opened() {
    let builds = Builds::new();
    let alpha = builds.napper("alpha");
    FileRecording::record_command(&[alpha.as_os_str(), "pipe".as_ref()]).assert_naps("alpha", "omega");
}

fn the_program_is_examined_and_not_its_loader() {
    let tests = std::env::current_exe().expect("the path of this executable");
    let output = command("record --json -")
        .arg("--")
        .args([Path::new("/lib64/ld-linux-x86-64.so.2"), &tests])
        .env(crate::programs::VARIABLE, "sleeper")
        .output()
        .expect("the program starts");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let locators = json["locators"].as_array().expect("an array");
    let program = tests.display().to_string();
    let examined = locators.iter().find(|locator| locator["program"] == program.as_str());
    let locator = examined.unwrap_or_else(|| panic!("{program} is not among {locators:?}"));
    let found = locator["locator"].as_str().expect("a string");
    assert!(found.contains("tokio"), "{locator}");
    assert!(!said(&output).contains("shared object"), "{}", said(&output));
}
