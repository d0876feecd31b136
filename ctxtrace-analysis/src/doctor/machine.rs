//! The lines about a machine.

use super::{CheckLine, Standing};
use ctxtrace_format::machine::{Answer, Machine, Wanted};

const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYSLOG: u64 = 1 << 34;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// The capabilities that lines mention, with their names.
const CAPABILITIES: [(u64, &str); 5] = [
    (CAP_BPF, "CAP_BPF"),
    (CAP_PERFMON, "CAP_PERFMON"),
    (CAP_SYSLOG, "CAP_SYSLOG"),
    (CAP_SYS_PTRACE, "CAP_SYS_PTRACE"),
    (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
];

/// Returns the lines about this machine.
#[must_use]
pub fn machine(facts: &Machine) -> Vec<CheckLine> {
    let mut lines = vec![
        kernel(facts),
        btf(facts),
        rights(facts),
        pid_namespace(facts),
        lockdown(facts),
        kinds("map types", &facts.maps, facts),
        kinds("helpers", &facts.helpers, facts),
        kinds("BPF programs", &facts.programs, facts),
    ];
    lines.extend([
        wakers(facts),
        kernel_names(facts),
        others_processes(facts),
        cost(facts),
        unprivileged_bpf(facts),
        perf_event_paranoid(facts),
        locked_memory(facts),
        free_memory(facts),
        hardware_counters(facts),
        cpus(facts),
    ]);
    lines
}

fn may_trace(facts: &Machine) -> bool {
    let has = |capability| facts.capabilities & capability != 0;
    facts.user == 0 || has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON))
}

/// Returns the path of this program, quoted for a shell if necessary.
fn program(facts: &Machine) -> String {
    let path = facts.program.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    if path.chars().all(plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

fn kernel(facts: &Machine) -> CheckLine {
    let found = format!("Linux {} on {}", facts.kernel, facts.architecture);
    if facts.architecture == "x86_64" {
        CheckLine::ok("kernel", found)
    } else {
        CheckLine::new("kernel", Standing::Missing, format!("{found}: ctxtrace is for x86-64"))
    }
}

fn btf(facts: &Machine) -> CheckLine {
    match &facts.btf_problem {
        None => CheckLine::ok(
            "BTF",
            "the kernel's BTF describes every type and field that ctxtrace needs",
        ),
        Some(problem) => CheckLine::new("BTF", Standing::Missing, problem.clone()).fixed_by(
            "sudo apt install linux-image-amd64 && sudo reboot   # Debian; elsewhere the distribution's own kernel",
        ),
    }
}

fn rights(facts: &Machine) -> CheckLine {
    let held: Vec<&str> = CAPABILITIES
        .into_iter()
        .filter(|(capability, _)| facts.capabilities & capability != 0)
        .map(|(_, name)| name)
        .collect();
    let held = if held.is_empty() {
        "none of the capabilities that ctxtrace uses".to_owned()
    } else {
        held.join(", ")
    };
    let who = if facts.user == 0 {
        format!("running as root, with {held}")
    } else {
        format!("running as user {}, with {held}", facts.user)
    };
    if may_trace(facts) {
        return CheckLine::ok("rights", who);
    }
    let program = program(facts);
    CheckLine::new(
        "rights",
        Standing::Missing,
        format!("{who}; tracing requires root, or CAP_BPF and CAP_PERFMON"),
    )
    .fixed_by(format!(
        "sudo {program} doctor   # or, for every user of this file: sudo setcap \
         cap_bpf,cap_perfmon,cap_syslog=ep {program}"
    ))
}

fn pid_namespace(facts: &Machine) -> CheckLine {
    if facts.first_pid_namespace {
        return CheckLine::ok(
            "pid namespace",
            "process ids here are the same as in the kernel's events",
        );
    }
    CheckLine::new(
        "pid namespace",
        Standing::Missing,
        "ctxtrace runs in a PID namespace of its own (a container), where process ids differ from those in the kernel's events",
    )
    .fixed_by("docker run --pid=host …   # or run ctxtrace on the host")
}

fn lockdown(facts: &Machine) -> CheckLine {
    match facts.lockdown.as_deref() {
        None => CheckLine::ok("lockdown", "this kernel has no lockdown, or does not show it"),
        Some("confidentiality") => CheckLine::new(
            "lockdown",
            Standing::Missing,
            "[confidentiality]: BPF programs may not read the kernel's memory",
        )
        .fixed_by("boot without lockdown=confidentiality on the kernel's command line"),
        Some(level) => CheckLine::ok("lockdown", format!("[{level}]: does not prevent tracing")),
    }
}

/// Groups related requirements into one line that names what is missing and what will be unavailable because of that.
fn kinds(about: &'static str, wanted: &[Wanted], facts: &Machine) -> CheckLine {
    let missing: Vec<(&Wanted, &str)> = wanted
        .iter()
        .filter_map(|one| match &one.answer {
            Answer::Missing(reason) => Some((one, reason.as_str())),
            Answer::Works | Answer::Described => None,
        })
        .collect();
    if missing.is_empty() {
        let names = wanted
            .iter()
            .map(|one| one.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        // Helpers cannot be tested one by one: the kernel's list is the only source. Programs that load have used them.
        if about == "helpers" || wanted.iter().all(|one| one.answer == Answer::Works) {
            return CheckLine::ok(about, names);
        }
        return CheckLine::new(
            about,
            Standing::Unknown,
            format!("the kernel reports that it has {names}; this user may not test whether they work"),
        )
        .fixed_by(format!("sudo {} doctor", program(facts)));
    }
    let sentences = missing.iter().map(|(one, reason)| match one.without {
        Some(without) => format!("{}: {reason} (without it: {without})", one.name),
        None => format!("{}: {reason}", one.name),
    });
    let standing = if missing.iter().any(|(one, _)| one.without.is_none()) {
        Standing::Missing
    } else {
        Standing::Less
    };
    let line = CheckLine::new(about, standing, sentences.collect::<Vec<_>>().join("; "));
    if standing == Standing::Missing {
        line.fixed_by("sudo apt install linux-image-amd64 && sudo reboot   # Linux 5.10 or later, with BPF")
    } else {
        line
    }
}

fn wakers(facts: &Machine) -> CheckLine {
    match facts.distinguishes_interrupts {
        Some(true) => CheckLine::ok("wakers", "wakeups by interrupts are distinguished from wakeups by the interrupted thread"),
        Some(false) => CheckLine::new(
            "wakers",
            Standing::Less,
            "the kernel's per-CPU variables are neither in BTF nor readable in /proc/kallsyms: the wakers are not reported",
        )
        .fixed_by(if facts.user == 0 {
            root_lacks("CAP_SYSLOG")
        } else {
            format!("sudo {} doctor   # root can read them", program(facts))
        }),
        None => CheckLine::new("wakers", Standing::Unknown, "this requires BTF"),
    }
}

/// Advises root what to do about a capability that it lacks, as in a container.
fn root_lacks(capability: &str) -> String {
    format!("run ctxtrace on the host, or give the container {capability}")
}

fn kernel_names(facts: &Machine) -> CheckLine {
    let setting = facts.kptr_restrict.map_or("kernel.kptr_restrict".to_owned(), |value| {
        format!("kernel.kptr_restrict = {value}")
    });
    if facts.kernel_symbols {
        return CheckLine::ok(
            "kernel names",
            format!("kernel functions have names in stacks ({setting})"),
        );
    }
    let line = CheckLine::new(
        "kernel names",
        Standing::Less,
        format!(
            "kernel functions have no names in stacks: /proc/kallsyms hides the addresses from this user ({setting})"
        ),
    );
    match facts.kptr_restrict {
        // From 2 on, the kernel hides the addresses from all users, including root.
        Some(value) if value >= 2 => line.fixed_by("sudo sysctl kernel.kptr_restrict=1"),
        _ if facts.user == 0 => line.fixed_by(root_lacks("CAP_SYSLOG")),
        _ => line.fixed_by(format!(
            "sudo setcap cap_bpf,cap_perfmon,cap_syslog=ep {}   # or run it as root",
            program(facts)
        )),
    }
}

fn others_processes(facts: &Machine) -> CheckLine {
    if facts.capabilities & (CAP_SYS_PTRACE | CAP_SYS_ADMIN) != 0 {
        return CheckLine::ok("attaching", "ctxtrace can attach to any process (record -p)");
    }
    let line = CheckLine::new(
        "attaching",
        Standing::Less,
        "ctxtrace can attach only to processes of this user (record -p): the programs and libraries of other users' processes cannot be read",
    );
    if facts.user == 0 {
        return line.fixed_by(root_lacks("CAP_SYS_PTRACE"));
    }
    line.fixed_by(format!(
        "sudo setcap cap_bpf,cap_perfmon,cap_syslog,cap_sys_ptrace=ep {}   # or run it as root",
        program(facts)
    ))
}

fn cost(facts: &Machine) -> CheckLine {
    if facts.user == 0 || facts.capabilities & CAP_SYS_ADMIN != 0 || facts.bpf_stats_enabled == Some(1) {
        return CheckLine::ok("cost", "the kernel measures the cost of tracing");
    }
    CheckLine::new(
        "cost",
        Standing::Less,
        "the cost of tracing is not measured: the kernel times BPF programs only with CAP_SYS_ADMIN",
    )
    .fixed_by("sudo sysctl kernel.bpf_stats_enabled=1")
}

fn unprivileged_bpf(facts: &Machine) -> CheckLine {
    let value = facts
        .unprivileged_bpf_disabled
        .map_or("not available".to_owned(), |value| value.to_string());
    CheckLine::ok(
        "unprivileged BPF",
        format!(
            "kernel.unprivileged_bpf_disabled is {value}; it does not affect users who have the rights for tracing"
        ),
    )
}

fn perf_event_paranoid(facts: &Machine) -> CheckLine {
    let value = facts
        .perf_event_paranoid
        .map_or("not available".to_owned(), |value| value.to_string());
    CheckLine::ok(
        "perf events",
        format!("kernel.perf_event_paranoid is {value}; CAP_PERFMON overrides it"),
    )
}

fn locked_memory(facts: &Machine) -> CheckLine {
    let limit = facts.memlock_bytes.map_or("no limit".to_owned(), |bytes| {
        format!("a limit of {}", mebibytes(bytes))
    });
    CheckLine::ok(
        "locked memory",
        format!(
            "{limit} for this user; BPF maps do not count towards it since Linux 5.11, and ctxtrace raises it on older kernels"
        ),
    )
}

fn free_memory(facts: &Machine) -> CheckLine {
    let needed = mebibytes(facts.needed_bytes);
    match facts.available_bytes {
        Some(available) if available < 2 * facts.needed_bytes => CheckLine::new(
            "memory",
            Standing::Less,
            format!(
                "{} are available; maps and ring buffers need {needed}, which cannot be swapped out",
                mebibytes(available)
            ),
        )
        .fixed_by("use smaller maps: --max-threads 1024 --max-stacks 1024, and --ring-size 4MiB for --level timeline"),
        Some(available) => CheckLine::ok(
            "memory",
            format!(
                "{} are available, of which maps and ring buffers need {needed}",
                mebibytes(available)
            ),
        ),
        None => CheckLine::new(
            "memory",
            Standing::Unknown,
            "/proc/meminfo does not say how much memory is available",
        ),
    }
}

fn hardware_counters(facts: &Machine) -> CheckLine {
    match &facts.hardware_counters {
        Answer::Works | Answer::Described => {
            CheckLine::ok("hardware counters", "cycles and instructions can be counted")
        }
        Answer::Missing(reason) => {
            let line = CheckLine::new(
                "hardware counters",
                Standing::Less,
                format!("{reason}; only the counters that `explain` reports need them"),
            );
            if reason.contains("paranoid") {
                line.fixed_by("sudo sysctl kernel.perf_event_paranoid=2")
            } else {
                line
            }
        }
    }
}

fn cpus(facts: &Machine) -> CheckLine {
    let (allowed, online) = (facts.cpus_allowed, facts.cpus_online);
    if allowed < 2 {
        return CheckLine::new(
            "CPUs",
            Standing::Less,
            format!(
                "{allowed} of {online} CPUs may be used: the workers of a pool run one at a time, and --pin split-cpus does not work"
            ),
        );
    }
    CheckLine::ok(
        "CPUs",
        format!("{online} CPUs are online, of which {allowed} may be used"),
    )
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Diagnosis;
    use crate::fixtures::machines::{bad, good};

    fn line(facts: &Machine, about: &str) -> CheckLine {
        let mut lines = machine(facts).into_iter();
        lines
            .find(|line| line.about == about)
            .expect("there is a line about it")
    }

    #[test]
    fn where_all_is_there_nothing_is_to_be_fixed() {
        let lines = machine(&good());
        assert!(
            lines
                .iter()
                .all(|line| line.standing == Standing::Ok && line.fix.is_none())
        );
        assert!(Diagnosis::new(lines, None).tracing_works);
    }

    #[test]
    fn every_line_that_stops_tracing_has_its_fix() {
        let lines = machine(&bad());
        assert!(!Diagnosis::new(lines.clone(), None).tracing_works);
        for line in lines.iter().filter(|line| line.standing == Standing::Missing) {
            assert!(line.fix.is_some(), "{line:?}");
        }
    }

    #[test]
    fn two_capabilities_are_enough() {
        let facts = Machine {
            capabilities: CAP_BPF | CAP_PERFMON,
            ..Machine { user: 1_000, ..good() }
        };
        assert_eq!(line(&facts, "rights").standing, Standing::Ok);
        assert_eq!(line(&facts, "cost").standing, Standing::Less);
        assert_eq!(line(&facts, "attaching").standing, Standing::Less);
        assert!(Diagnosis::new(machine(&facts), None).tracing_works);
        let half = Machine {
            capabilities: CAP_BPF,
            ..facts
        };
        assert_eq!(line(&half, "rights").standing, Standing::Missing);
    }

    #[test]
    fn root_that_lacks_capabilities_is_not_advised_to_be_root() {
        let facts = Machine {
            capabilities: 0,
            kernel_symbols: false,
            kptr_restrict: Some(1),
            distinguishes_interrupts: Some(false),
            ..good()
        };
        for (about, capability) in [
            ("wakers", "CAP_SYSLOG"),
            ("kernel names", "CAP_SYSLOG"),
            ("attaching", "CAP_SYS_PTRACE"),
        ] {
            let line = line(&facts, about);
            assert_eq!(line.standing, Standing::Less, "{line:?}");
            assert!(line.fix.is_some_and(|fix| fix.ends_with(capability)), "{about}");
        }
        for line in machine(&facts) {
            let fix = line.fix.unwrap_or_default();
            assert!(!fix.contains("root") && !fix.contains("sudo"), "{fix}");
        }
    }

    #[test]
    fn a_program_that_does_not_load_stops_tracing_if_it_is_needed() {
        let refused = || Answer::Missing("the verifier refused it".to_owned());
        let mut facts = good();
        facts.programs[1].answer = refused();
        let less = line(&facts, "BPF programs");
        assert_eq!(less.standing, Standing::Less);
        assert!(less.found.contains("without it: no --sample"), "{less:?}");
        facts.programs[0].answer = refused();
        assert_eq!(line(&facts, "BPF programs").standing, Standing::Missing);
    }

    #[test]
    fn what_cannot_be_tried_is_unknown_and_not_missing() {
        let programs = line(&bad(), "BPF programs");
        assert_eq!(programs.standing, Standing::Unknown);
        assert_eq!(
            programs.fix.as_deref(),
            Some("sudo /home/joe/.cargo/bin/ctxtrace doctor")
        );
    }

    #[test]
    fn the_program_is_a_word_for_a_shell() {
        let facts = Machine {
            program: "/home/joe's/ctx trace".into(),
            ..bad()
        };
        assert_eq!(program(&facts), r"'/home/joe'\''s/ctx trace'");
    }
}
