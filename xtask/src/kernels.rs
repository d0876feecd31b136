//! `cargo xtask test --kernel 5.10|6.1|6.12`: runs privileged tests on another kernel than this machine's.
//!
//! Debian's cloud kernels are unpacked, not installed, and boot in QEMU with a root file system in memory. It contains busybox,
//! the tests, and the executables and libraries that they start, each at the same path as on this machine. TCG emulates the
//! processor, so neither KVM nor root is needed, but everything is about twenty times slower. Only those tests run that need no
//! other programs.
//!
//! The packages come from the archive that this machine's apt uses. A separate list of sources is used, so the system's apt state
//! stays unchanged.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup::FOR_KERNELS;

/// A kernel, which comes from a Debian suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KernelImage {
    /// Linux 5.10, Debian 11
    #[value(name = "5.10")]
    V5_10,
    /// Linux 6.1, Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12, Debian 13
    #[value(name = "6.12")]
    V6_12,
}

impl KernelImage {
    fn release(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }
}

/// A privileged test that runs on other kernels. The harness of the tests marks these tests by their kind. They test what must be
/// the same on every kernel, need no other programs, and work on a processor that is twenty times slower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelTest {
    name: String,
    /// Whether the test also passes on a fully preemptible kernel (`preempt=full`).
    preemptible: bool,
}

impl KernelTest {
    /// Parses a line of `--list`, `[KIND] NAME`. Returns `None` if the test is of another kind.
    pub(crate) fn read(listed: &str) -> Option<Self> {
        let (kind, name) = listed.strip_prefix("[kernel")?.split_once("] ")?;
        Some(Self {
            name: name.to_owned(),
            preemptible: kind == " preemptible",
        })
    }
}

/// The beginning of the guest's last line, which ends with 0 if all tests passed and with 1 otherwise.
const MARK: &str = "ctxtrace tests ended: ";

/// A text that a kernel prints when it panics (`vpanic` in kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// The memory of the guest in MiB. It holds the root file system, twice while it is unpacked. The guest panics if the memory is
/// too small.
const MEMORY_MB: u32 = 3_072;

/// The parts of the kernel that the tests use and that Debian builds as modules.
const MODULES: [&str; 1] = ["overlay"];

/// The cgroup hierarchies that the tests use: the folder in `/sys/fs/cgroup`, and the options of `mount`.
const CGROUPS: [(&str, &str); 3] = [
    ("cpu", "-t cgroup -o cpu"),
    ("freezer", "-t cgroup -o freezer"),
    ("unified", "-t cgroup2"),
];

/// The maximum run time of a guest in seconds. After this time it is killed and the command fails.
const LIMIT_S: u32 = 900;

/// How a kernel is tested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way<'a> {
    /// Words that are added to the command line of the kernel.
    pub(crate) append: Option<&'a str>,
    /// The names of the tests to run; all of them if it is empty.
    pub(crate) only: &'a [String],
    /// All tests that run on other kernels.
    pub(crate) tests: &'a [KernelTest],
}

impl Way<'_> {
    fn tests(&self) -> Result<Vec<&str>> {
        let preempts = self
            .append
            .is_some_and(|words| words.split(' ').any(|word| word == "preempt=full"));
        let able = self.tests.iter().filter(|test| test.preemptible || !preempts);
        let names: Vec<&str> = able.map(|test| test.name.as_str()).collect();
        if names.is_empty() {
            bail!("there is no privileged test that runs on other kernels");
        }
        if let Some(unknown) = self.only.iter().find(|name| !names.contains(&name.as_str())) {
            bail!(
                "`{unknown}` is not a test that runs on this kernel; the tests are {}",
                names.join(", ")
            );
        }
        let wanted = |test: &&str| self.only.is_empty() || self.only.iter().any(|name| name == test);
        Ok(names.into_iter().filter(wanted).collect())
    }
}

/// Boots the kernel and runs the tests of the executable `privileged`, which starts the executables `others`.
pub(crate) fn test(kernel: KernelImage, privileged: &Path, others: &[PathBuf], way: &Way<'_>) -> Result<()> {
    let tests = way.tests()?;
    for (program, package) in FOR_KERNELS {
        if process::programs(program).is_empty() {
            bail!(
                "testing on Linux {} needs {program} (Debian: apt install {package})",
                kernel.release()
            );
        }
    }
    if let Some(strange) = others
        .iter()
        .map(PathBuf::as_path)
        .chain([privileged])
        .find(|path| !is_plain(path))
    {
        bail!(
            "{} contains characters that have a meaning in a shell; build in another folder",
            strange.display()
        );
    }
    let folder = process::root().join("target").join("kernels").join(kernel.release());
    let image = image(kernel, &folder)?;
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    fill(&root, privileged, others, &tests)?;
    for module in MODULES {
        add_module(&root, &folder.join("package"), module)?;
    }
    let initramfs = folder.join("initramfs.cpio");
    pack(&root, &initramfs)?;
    fs::remove_dir_all(&root).context("cannot remove the guest's files")?;
    boot(kernel, &image, &initramfs, way.append)
}

/// Returns the path of the kernel's image. Downloads and unpacks the package if that was not done before.
fn image(kernel: KernelImage, folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join("package");
    if let Some(image) = vmlinuz(&unpacked) {
        return Ok(image);
    }
    let apt = Apt::new(kernel, folder)?;
    process::run(apt.command("apt-get").arg("update"))?;
    let depends = process::output(apt.command("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("linux-image-cloud-amd64 depends on no package, so the package of the kernel is unknown")?
        .to_owned();
    process::run(apt.command("apt-get").current_dir(folder).args(["download", &package]))?;
    let archive = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .context("apt-get has downloaded no package")?;
    process::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
    vmlinuz(&unpacked).context("the package contains no kernel image")
}

fn vmlinuz(unpacked: &Path) -> Option<PathBuf> {
    fs::read_dir(unpacked.join("boot"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
}

/// apt with its own lists and cache, separate from the system's.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(kernel: KernelImage, folder: &Path) -> Result<Self> {
        let folder = folder.join("apt");
        for part in ["state/lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(folder.join(part)).context("cannot create a folder for apt")?;
        }
        // Use the archive or mirror of this machine's apt, with the suite of the kernel.
        let targets = process::output(process::clean("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
        let archive = targets
            .lines()
            .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
            .context("this machine's apt has no Debian archive in its sources, which the other kernels come from")?;
        let source = format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {archive} {} main\n",
            kernel.suite()
        );
        fs::write(folder.join("etc/sources.list"), source).context("cannot write apt's sources")?;
        fs::write(folder.join("state/status"), "").context("cannot write apt's state")?;
        Ok(Self { folder })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = process::clean(program);
        let of = |name: &str, part: &str| format!("{name}={}", self.folder.join(part).display());
        for setting in [
            of("Dir::Etc::sourcelist", "etc/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            of("Dir::State", "state"),
            of("Dir::State::status", "state/status"),
            of("Dir::Cache", "cache"),
            // Download as the calling user, because apt's own user may not enter these folders.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }
}

/// Creates the root file system of the guest, except for the modules.
fn fill(root: &Path, privileged: &Path, others: &[PathBuf], tests: &[&str]) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).context("cannot create the guest's folders")?;
    }
    let busybox = process::programs("busybox")
        .into_iter()
        .next()
        .context("there is no busybox")?;
    fs::copy(busybox, root.join("bin/busybox")).context("cannot copy busybox")?;
    for name in [
        "cat", "echo", "false", "grep", "insmod", "ip", "mkdir", "mount", "poweroff", "sh", "sleep", "true", "umount",
    ] {
        symlink("busybox", root.join("bin").join(name)).context("cannot create the guest's commands")?;
    }
    for executable in others.iter().map(PathBuf::as_path).chain([privileged]) {
        add(root, executable)?;
        let libraries = process::output(Command::new("ldd").arg(executable)).unwrap_or_default();
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            add(root, Path::new(library))?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").context("cannot write the guest's users")?;
    fs::write(root.join("etc/group"), "root:x:0:\n").context("cannot write the guest's groups")?;
    let init = root.join("init");
    fs::write(&init, script(privileged, tests)).context("cannot write the guest's script")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("cannot make the script executable")
}

/// Copies a file to the guest, at the same path as on this machine.
fn add(root: &Path, file: &Path) -> Result<()> {
    let there = root.join(file.strip_prefix("/").unwrap_or(file));
    if let Some(folder) = there.parent() {
        fs::create_dir_all(folder).context("cannot create the guest's folders")?;
    }
    fs::copy(file, &there)
        .map(drop)
        .with_context(|| format!("cannot copy {} for the guest", file.display()))
}

/// Copies a module of the kernel to `lib/modules` of the guest, unpacked.
fn add_module(root: &Path, package: &Path, name: &str) -> Result<()> {
    let names = [format!("{name}.ko"), format!("{name}.ko.xz")];
    let mut find = process::clean("find");
    find.arg(package);
    find.args(["-name", &names[0], "-o", "-name", &names[1]]);
    let found = process::output(&mut find)?;
    let module = found
        .lines()
        .next()
        .with_context(|| format!("the kernel's package has no module {name}"))?;
    let there = root.join("lib/modules").join(&names[0]);
    fs::create_dir_all(root.join("lib/modules")).context("cannot create the guest's folders")?;
    if !module.ends_with(".xz") {
        fs::copy(module, &there).context("cannot copy a module for the guest")?;
        return Ok(());
    }
    let unpacked = fs::File::create(&there).context("cannot unpack a module for the guest")?;
    let status = process::clean("xz")
        .args(["--decompress", "--stdout", module])
        .stdout(unpacked)
        .status();
    if !status.context("cannot run xz")?.success() {
        bail!("cannot unpack {module}");
    }
    Ok(())
}

/// Returns the guest's init script, which runs the tests and powers the guest off.
fn script(privileged: &Path, tests: &[&str]) -> String {
    let program = privileged.display();
    // A file system on `/tmp` would hide the executables of a clone that is below it.
    let temporary = if privileged.starts_with("/tmp") {
        ""
    } else {
        "mount -t tmpfs none /tmp; "
    };
    let mut script = format!(
        "#!/bin/sh\n\
         mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev\n\
         mount -t tracefs none /sys/kernel/tracing; mount -t debugfs none /sys/kernel/debug; ip link set lo up\n\
         export PATH=/bin HOME=/root CTXTRACE_REQUIRE_PRIVILEGED=1 RUST_BACKTRACE=0\n\
         for module in /lib/modules/*.ko; do insmod $module; done\n\
         cat /proc/version; failed=0\n\
         for word in $(cat /proc/cmdline); do case $word in preempt=*) \
         grep -qF \"(${{word#preempt=}})\" /sys/kernel/debug/sched/preempt || {{ echo this kernel does not support $word; failed=1; }};; esac; done\n\
         {temporary}cd {}\n",
        privileged.parent().unwrap_or(Path::new("/")).display()
    );
    // Without a hierarchy its tests would be skipped, so a missing one is a failure.
    script.push_str("mount -t tmpfs none /sys/fs/cgroup\n");
    for (folder, options) in CGROUPS {
        script.push_str(&format!(
            "mkdir /sys/fs/cgroup/{folder}; mount {options} none /sys/fs/cgroup/{folder} || \
             {{ echo this kernel has no cgroup hierarchy {folder}; failed=1; }}\n"
        ));
    }
    for test in tests {
        script.push_str(&format!("{program} --test-threads=1 --exact {test} || failed=1\n"));
    }
    script.push_str(&format!("echo '{MARK}'$failed\npoweroff -f\n"));
    script
}

/// Packs the files as an initramfs (a cpio archive).
fn pack(root: &Path, initramfs: &Path) -> Result<()> {
    let archive = fs::File::create(initramfs).context("cannot create the initramfs")?;
    let mut list = Command::new("find")
        .current_dir(root)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run find")?;
    let names = list.stdout.take().context("find has no output")?;
    let status = Command::new("cpio")
        .current_dir(root)
        .args(["--create", "--format=newc", "--quiet"])
        .stdin(names)
        .stdout(archive)
        .status()
        .context("cannot run cpio")?;
    if !status.success() || !list.wait()?.success() {
        bail!("cannot pack the guest's files");
    }
    Ok(())
}

fn boot(kernel: KernelImage, image: &Path, initramfs: &Path, append: Option<&str>) -> Result<()> {
    let mut qemu = Command::new("timeout");
    qemu.arg(LIMIT_S.to_string()).arg("qemu-system-x86_64");
    // With one thread per processor QEMU executes breakpoints that the kernel has already removed from its code (docs/FAULTS.md).
    qemu.args([
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        &MEMORY_MB.to_string(),
    ]);
    qemu.args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
    qemu.arg("-append");
    qemu.arg(format!("console=ttyS0 quiet panic=-1 {}", append.unwrap_or_default()));
    process::announce(&qemu);
    let mut guest = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run qemu")?;
    let console = guest.stdout.take().context("qemu has no output")?;
    let end = listen(BufReader::new(console));
    if end == End::Panicked {
        // A kernel that has panicked does not always reboot.
        guest.kill().context("cannot kill qemu")?;
    }
    guest.wait().context("cannot wait for qemu")?;
    let release = kernel.release();
    match end {
        End::Passed => Ok(()),
        End::Failed => bail!("tests failed on Linux {release}"),
        End::Panicked => bail!("Linux {release} panicked"),
        End::Silent => bail!("Linux {release} did not finish the tests within {LIMIT_S} s"),
        End::NotBooted => bail!("Linux {release} did not boot"),
    }
}

/// The result of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// The kernel panicked.
    Panicked,
    /// The console ended before the tests did.
    Silent,
    NotBooted,
}

/// Prints the console of a guest while it runs, and returns the result.
fn listen(console: impl BufRead) -> End {
    let mut end = End::NotBooted;
    // The output of the firmware, which comes first, is not printed: it contains control sequences that move the cursor.
    for line in console.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if end == End::NotBooted && line.contains("Linux version") {
            end = End::Silent;
        }
        if end != End::NotBooted {
            eprintln!("{line}");
        }
        match line.trim().strip_prefix(MARK) {
            Some("0") => end = End::Passed,
            Some(_) => end = End::Failed,
            None if line.contains(PANIC) => return End::Panicked,
            None => {}
        }
    }
    end
}

/// Returns whether a path can be used in the guest's script without quoting.
fn is_plain(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|path| path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_runs_every_test_and_says_how_it_went() {
        let tests = ["one_test", "another_test"];
        let script = script(Path::new("/x/deps/privileged-1"), &tests);
        for test in tests {
            assert!(script.contains(&format!("--exact {test} || failed=1")), "{test}");
        }
        assert!(script.contains("mount -t tmpfs none /tmp; cd /x/deps\n"));
        for (folder, options) in CGROUPS {
            let mounts = format!("mount {options} none /sys/fs/cgroup/{folder}");
            assert!(script.contains(&mounts), "{folder}");
        }
        assert!(script.trim_end().ends_with("poweroff -f") && script.contains(MARK));
    }

    #[test]
    fn the_guest_does_not_hide_a_clone_below_tmp() {
        let script = script(Path::new("/tmp/x/deps/privileged-1"), &["one_test"]);
        assert!(!script.contains("none /tmp") && script.contains("cd /tmp/x/deps\n"));
    }

    #[test]
    fn a_guest_is_heard_to_its_end() {
        let of = |said: &str| listen(said.as_bytes());
        let booted = "\x1b[2J\x1bcLinux version 6.1.0 (gcc) #1 SMP\r\n";
        assert_eq!(of("SeaBIOS\r\n"), End::NotBooted);
        assert_eq!(of(booted), End::Silent);
        assert_eq!(
            of(&format!("{booted}{MARK}0\r\n[ 1.0] reboot: Power down\r\n")),
            End::Passed
        );
        assert_eq!(of(&format!("{booted}{MARK}1\r\n")), End::Failed);
        assert_eq!(
            of(&format!("{booted}[ 1.0] {PANIC}: Fatal exception\r\n{MARK}0\r\n")),
            End::Panicked
        );
    }

    #[test]
    fn a_path_that_a_shell_would_take_apart_is_refused() {
        assert!(is_plain(Path::new("/a/b-1.2/c_d+e")));
        assert!(!is_plain(Path::new("/a b")) && !is_plain(Path::new("/a;b")) && !is_plain(Path::new("/$a")));
    }

    #[test]
    fn tests_are_chosen_by_kind_and_by_name() {
        let listed = [
            "[kernel] sleeps",
            "[kernel preemptible] switches",
            "[long] soak",
            "other",
        ];
        let tests: Vec<KernelTest> = listed.into_iter().filter_map(KernelTest::read).collect();
        let chosen = |only: &[&str], append| {
            let only: Vec<String> = only.iter().copied().map(str::to_owned).collect();
            let way = Way {
                append,
                only: &only,
                tests: &tests,
            };
            way.tests().map(|tests| tests.join(" ")).ok()
        };
        assert_eq!(chosen(&[], None).as_deref(), Some("sleeps switches"));
        assert_eq!(chosen(&[], Some("quiet preempt=full")).as_deref(), Some("switches"));
        assert_eq!(chosen(&["switches"], None).as_deref(), Some("switches"));
        assert_eq!(chosen(&["no_such_test"], None), None);
        let none = Way {
            append: None,
            only: &[],
            tests: &[],
        };
        assert!(none.tests().is_err(), "having no tests must be an error");
    }

    #[test]
    fn each_kernel_has_its_suite() {
        let all: Vec<_> = [KernelImage::V5_10, KernelImage::V6_1, KernelImage::V6_12]
            .map(|kernel| (kernel.release(), kernel.suite()))
            .into();
        assert_eq!(all, [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")]);
    }
}
