//! What this machine allows: inspected and, as far as the user's rights allow, tried. Used by `ctxtrace doctor`.

use std::fs;
use std::io::{self, ErrorKind};

use aya::maps::MapType;
use aya::sys::is_map_supported;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use perf_event::Builder;
use perf_event::events::Hardware;

use super::offsets::{BTF_PATH, Description};
use super::{EXIT, PROGRAMS, RENAME, RunningKernel, Tried, WAKEUP_TIMER, events, preflight, sampling, tried};
use crate::error::{Error, Result};
use crate::tracee::procfs::effective_capabilities;
use ctxtrace_format::Level;
use ctxtrace_format::machine::{Answer, Machine, Wanted};

/// Types of maps that ctxtrace creates, with their names in the kernel.
const MAPS: [(MapType, &str); 4] = [
    (MapType::Hash, "BPF_MAP_TYPE_HASH"),
    (MapType::Array, "BPF_MAP_TYPE_ARRAY"),
    (MapType::PerCpuArray, "BPF_MAP_TYPE_PERCPU_ARRAY"),
    (MapType::RingBuf, "BPF_MAP_TYPE_RINGBUF"),
];

/// Helper functions that the BPF programs call. Those not listed are older than everything else that is needed.
const HELPERS: [&str; 8] = [
    "probe_read_user",
    "probe_read_kernel",
    "get_stack",
    "get_current_task",
    "ringbuf_output",
    "ringbuf_reserve",
    "ringbuf_submit",
    "ringbuf_discard",
];

/// Helper functions that have a replacement, with the effect of their absence.
const BETTER_HELPERS: [(&str, &str); 2] = [
    (
        "task_pt_regs",
        "a thread's system call is read from the end of its kernel stack instead",
    ),
    (
        "get_current_task_btf",
        "samples of a thread begin with its first switch",
    ),
];

/// Memory of the tables with default settings in bytes, mostly for stacks and threads.
const TABLE_BYTES: u64 = 48 << 20;

/// Inspects the machine that this process runs on.
///
/// # Errors
///
/// If the kernel's release or the list of CPUs cannot be read.
pub fn this_machine() -> Result<Machine> {
    let described = Description::of_running_kernel();
    let kernel = RunningKernel::discover();
    let may_trace = preflight::may_trace();
    let online = aya::util::online_cpus().map_err(|(what, error)| Error::system(what)(error))?;
    let per_cpu = 1 << 20;
    Ok(Machine {
        kernel: proc_sys("kernel/osrelease").ok_or_else(|| {
            Error::system("reading the kernel's release in /proc/sys/kernel")(ErrorKind::NotFound.into())
        })?,
        architecture: std::env::consts::ARCH.to_owned(),
        program: std::env::current_exe().unwrap_or_else(|_| "ctxtrace".into()),
        user: geteuid().as_raw(),
        capabilities: effective_capabilities(),
        first_pid_namespace: preflight::is_first_pid_namespace(),
        btf_problem: kernel.as_ref().err().map(ToString::to_string),
        distinguishes_interrupts: kernel
            .as_ref()
            .ok()
            .map(|kernel| kernel.offsets.can_identify_interrupts()),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .map(|text| chosen(&text)),
        perf_event_paranoid: proc_sys_number("kernel/perf_event_paranoid"),
        kptr_restrict: proc_sys_number("kernel/kptr_restrict"),
        unprivileged_bpf_disabled: proc_sys_number("kernel/unprivileged_bpf_disabled"),
        bpf_stats_enabled: proc_sys_number("kernel/bpf_stats_enabled"),
        kernel_symbols: shows_addresses(),
        memlock_bytes: memlock(),
        available_bytes: procfs::Current::current()
            .ok()
            .and_then(|memory: procfs::Meminfo| memory.mem_available),
        needed_bytes: TABLE_BYTES + (events::DEFAULT_RING_BYTES as u64).max(per_cpu * online.len() as u64),
        cpus_online: online.len(),
        cpus_allowed: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        hardware_counters: hardware_counters(),
        maps: maps(may_trace, described.as_ref()),
        helpers: helpers(described.as_ref()),
        programs: programs(may_trace, kernel.as_ref().ok(), described.as_ref()),
    })
}

fn proc_sys(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.trim().to_owned())
}

fn proc_sys_number(name: &str) -> Option<i64> {
    proc_sys(name)?.parse().ok()
}

/// The word in brackets, as in `none [integrity] confidentiality`.
fn chosen(text: &str) -> String {
    let in_brackets = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    in_brackets.map_or(text, |(word, _)| word).trim().to_owned()
}

/// Whether the kernel shows the addresses of its symbols; hidden addresses are zeroes.
fn shows_addresses() -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let mut addresses = symbols.lines().filter_map(|line| line.split(' ').next());
    addresses.any(|address| address.bytes().any(|digit| digit != b'0'))
}

fn memlock() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

fn hardware_counters() -> Answer {
    let opened = Builder::new(Hardware::CPU_CYCLES).exclude_kernel(true).build();
    opened.map_or_else(|error| Answer::Missing(why_not_counted(&error)), |_| Answer::Works)
}

fn why_not_counted(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "this processor, or the virtual machine, has no such counters".to_owned(),
        ErrorKind::PermissionDenied => {
            "kernel.perf_event_paranoid does not allow this user to use hardware counters".to_owned()
        }
        _ => error.to_string(),
    }
}

fn maps(may_trace: bool, described: Option<&Description>) -> Vec<Wanted> {
    let answer = |map: MapType, name: &str| {
        if may_trace {
            return match is_map_supported(map) {
                Ok(true) => Answer::Works,
                Ok(false) => Answer::Missing("the kernel does not have this type of map".to_owned()),
                Err(error) => Answer::Missing(error.to_string()),
            };
        }
        by_description(described, |types| types.maps.iter().any(|known| known == name))
    };
    MAPS.into_iter()
        .map(|(map, name)| Wanted {
            name: name.to_owned(),
            without: None,
            answer: answer(map, name),
        })
        .collect()
}

fn helpers(described: Option<&Description>) -> Vec<Wanted> {
    let wanted = |name: &str, without| Wanted {
        name: format!("bpf_{name}"),
        without,
        answer: by_description(described, |types| {
            types
                .helpers
                .iter()
                .any(|known| known.strip_prefix("BPF_FUNC_") == Some(name))
        }),
    };
    let needed = HELPERS.into_iter().map(|name| wanted(name, None));
    let better = BETTER_HELPERS
        .into_iter()
        .map(|(name, without)| wanted(name, Some(without)));
    needed.chain(better).collect()
}

/// What is unavailable without this program; `None` if nothing works without it.
fn without(program: &str) -> Option<&'static str> {
    match program {
        WAKEUP_TIMER => Some("the cost of making a wakeup is not reported"),
        RENAME => Some("no --level timeline"),
        sampling::SAMPLER => Some("no --sample"),
        EXIT => Some("the final numbers of ended threads are missing, which `lost.handovers` counts"),
        _ => None,
    }
}

fn programs(may_trace: bool, kernel: Option<&RunningKernel>, described: Option<&Description>) -> Vec<Wanted> {
    let wanted = |name: &str, answer| Wanted {
        name: name.to_owned(),
        without: without(name),
        answer,
    };
    if let (true, Some(kernel)) = (may_trace, kernel) {
        return all_tried(tried(kernel));
    }
    let attached_to = PROGRAMS.into_iter().chain([WAKEUP_TIMER, RENAME]);
    let mut programs: Vec<Wanted> = attached_to
        .map(|name| {
            let answer = by_description(described, |types| types.tracepoints.iter().any(|known| known == name));
            wanted(name, answer)
        })
        .collect();
    programs.push(wanted(
        sampling::SAMPLER,
        by_description(described, |types| {
            types.programs.iter().any(|known| known == "BPF_PROG_TYPE_PERF_EVENT")
        }),
    ));
    programs
}

/// One answer for each program. A program that is refused only in its variant for a timeline makes only the timeline unavailable.
fn all_tried(tried: Vec<Tried>) -> Vec<Wanted> {
    let mut programs: Vec<Wanted> = Vec::new();
    for Tried { name, level, loaded } in tried {
        let answer = loaded.map_or_else(|error| Answer::Missing(reason(&error.to_string())), |()| Answer::Works);
        match programs.iter().find(|program| program.name == name) {
            Some(_) if answer == Answer::Works => {}
            Some(_) => programs.push(Wanted {
                name: format!("{name} of events"),
                without: Some("no --level timeline"),
                answer,
            }),
            None => programs.push(Wanted {
                name: name.to_owned(),
                without: without(name).or((level == Level::Timeline).then_some("no --level timeline")),
                answer,
            }),
        }
    }
    programs
}

/// The reason in a verifier's message: its last line, not counting the statistics at its end.
fn reason(text: &str) -> String {
    const HOW_IT_FARED: [&str; 3] = ["verification time", "stack depth", "processed "];
    let fared = |line: &&str| HOW_IT_FARED.iter().any(|begin| line.trim_start().starts_with(begin));
    // The text after an empty line is advice.
    let said = text.split("\n\n").next().unwrap_or_default();
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default();
    match lines.take_while(|line| !fared(line)).last() {
        Some(last) => format!(
            "{}: {}",
            first.split(". Verifier output:").next().unwrap_or(first),
            last.trim()
        ),
        None => first.to_owned(),
    }
}

fn by_description(described: Option<&Description>, is_there: impl Fn(&Description) -> bool) -> Answer {
    match described {
        Some(types) if is_there(types) => Answer::Described,
        Some(_) => Answer::Missing("this kernel's BTF does not have it".to_owned()),
        None => Answer::Missing(format!("{BTF_PATH} cannot be read, so this is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_is_the_word_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality\n"), "integrity");
        assert_eq!(chosen("[none] integrity confidentiality\n"), "none");
        assert_eq!(chosen("odd\n"), "odd");
    }

    #[test]
    fn the_verifiers_last_word_is_the_reason() {
        let text = "the kernel refused to load the BPF program x: Permission denied. Verifier output: arg#0 type is not a struct\n\
                    ; \n33: (bf) r1 = r2\ninvalid read from stack\nverification time 99 usec\nstack depth 8\n\
                    processed 3 insns\n\n  If this is a container, do something";
        assert_eq!(
            reason(text),
            "the kernel refused to load the BPF program x: Permission denied: invalid read from stack"
        );
        assert_eq!(reason("no such file"), "no such file");
    }

    #[test]
    fn a_program_that_only_a_timeline_cannot_have_leaves_out_that() {
        let tried = |level, loaded| Tried {
            name: "sched_switch",
            level,
            loaded,
        };
        let refused = || Err(Error::Workload("refused".to_owned()));
        let programs = all_tried(vec![tried(Level::Stacks, Ok(())), tried(Level::Timeline, refused())]);
        assert_eq!((programs[0].without, &programs[0].answer), (None, &Answer::Works));
        assert_eq!(programs[1].without, Some("no --level timeline"));
        let programs = all_tried(vec![tried(Level::Stacks, refused()), tried(Level::Timeline, Ok(()))]);
        assert_eq!(programs.len(), 1);
        assert_eq!(programs[0].without, None, "nothing works without the program");
    }

    #[test]
    fn the_machine_can_be_inspected_without_privileges() {
        let machine = this_machine().expect("the machine has a /proc");
        assert!(!machine.kernel.is_empty());
        assert!(machine.cpus_online >= 1 && machine.cpus_allowed >= 1);
        assert_eq!(machine.maps.len(), MAPS.len());
        assert!(machine.programs.iter().any(|program| program.name == "sched_switch"));
    }
}
