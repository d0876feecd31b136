//! The interventions. Each changes one property, in both cases if both have it, and leaves everything else as it is.
//!
//! The list is generic: it has every property of a case that can be set. The runs show which of them matter.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use ctxtrace_format::workload::Pin;
use ctxtrace_format::workload::{Allocator, Channel, Language, Mode, Protocol, Root, Spec};

/// What an intervention shows if it closes the gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InterventionKind {
    /// The intervention exchanges a part of the program: that part is in the cause.
    Part,
    /// The intervention removes or adds concurrency: the cause needs concurrency, whatever the cause is.
    Concurrency,
    /// The intervention changes how many messages are sent or in which order: the cause depends on that load.
    Load,
}

/// One intervention. `C` is the type that describes a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervention<C> {
    /// Name on the command line and in the JSON.
    pub name: String,
    /// What is changed, in a form that can follow "with".
    pub what: String,
    /// What the intervention can show.
    pub kind: InterventionKind,
    /// The base with the change. `None` if the intervention does not change it.
    pub base: Option<C>,
    /// The subject with the change. `None` if the intervention does not change it.
    pub subject: Option<C>,
}

/// Buffer sizes that are tried, in messages.
const BUFFERS: [usize; 5] = [0, 16, 256, 4_096, 65_536];

/// Returns everything that can be changed in two workloads. The interventions from which most can be learned come first.
#[must_use]
pub fn of_workloads(base: &Spec, subject: &Spec) -> Vec<Intervention<Spec>> {
    let mut list = Vec::new();
    let mut add = |name: &str, what: &str, kind, change: &dyn Fn(&Spec) -> Option<Spec>| {
        let changed = |spec: &Spec| change(spec).filter(|changed| changed != spec);
        list.push(Intervention {
            name: name.to_owned(),
            what: what.to_owned(),
            kind,
            base: changed(base),
            subject: changed(subject),
        });
    };
    let with = |spec: &Spec, set: &dyn Fn(&mut Spec)| {
        let mut changed = spec.clone();
        set(&mut changed);
        Some(changed)
    };
    add("one-worker", "one worker", InterventionKind::Concurrency, &|spec| {
        spec.workers?;
        with(spec, &|spec| {
            spec.workers = Some(1);
            if spec.pin == Pin::SplitCpus {
                spec.pin = Pin::None;
            }
        })
    });
    add(
        "one-cpu",
        "all threads on one CPU",
        InterventionKind::Concurrency,
        &|spec| with(spec, &|spec| spec.pin = Pin::SameCpu),
    );
    add(
        "jemalloc",
        "jemalloc as the allocator",
        InterventionKind::Part,
        &|spec| {
            (spec.language == Language::Rust).then_some(())?;
            with(spec, &|spec| spec.allocator = Allocator::Jemalloc)
        },
    );
    add(
        "lock-step",
        "one message in flight at a time",
        InterventionKind::Load,
        &|spec| {
            spec.protocol()?;
            with(spec, &|spec| spec.protocol = Some(Protocol::LockStep))
        },
    );
    add(
        "pipelined",
        "messages sent as soon as there is room",
        InterventionKind::Load,
        &|spec| {
            spec.protocol()?;
            with(spec, &|spec| spec.protocol = Some(Protocol::Pipelined))
        },
    );
    add(
        "tokio-channel",
        "tokio's mpsc in place of futures'",
        InterventionKind::Part,
        &|spec| {
            spec.channel()?;
            (spec.buffer? > 0).then_some(())?;
            with(spec, &|spec| spec.channel = Some(Channel::Tokio))
        },
    );
    add(
        "separate-cpus",
        "each worker on a CPU of its own",
        InterventionKind::Concurrency,
        &|spec| {
            (spec.mode == Mode::TaskPool && spec.workers? > 1).then_some(())?;
            with(spec, &|spec| spec.pin = Pin::SplitCpus)
        },
    );
    add(
        "block-on-root",
        "the receiver as the root of block_on",
        InterventionKind::Part,
        &|spec| {
            spec.root?;
            with(spec, &|spec| spec.root = Some(Root::BlockOn))
        },
    );
    // Only the base gets an idle thread. The subject has several threads anyway.
    if base.language == Language::Rust && base.idle_threads == 0 && base.mode == Mode::Task {
        // It comes early in the list because allocators and C libraries treat a program with one thread specially.
        list.insert(
            2.min(list.len()),
            Intervention {
                name: "idle-thread".to_owned(),
                what: "an idle second thread beside the base".to_owned(),
                kind: InterventionKind::Part,
                base: with(base, &|spec| spec.idle_threads = 1),
                subject: None,
            },
        );
    }
    for buffer in BUFFERS {
        let room = |spec: &Spec| {
            let fits = spec.buffer.is_some_and(|now| now != buffer);
            let is_possible = buffer > 0 || spec.channel() != Some(Channel::Tokio);
            (fits && is_possible)
                .then(|| with(spec, &|spec| spec.buffer = Some(buffer)))
                .flatten()
        };
        list.push(Intervention {
            name: format!("buffer-{buffer}"),
            what: format!("a buffer of {buffer}"),
            kind: InterventionKind::Load,
            // If the cases differ in their buffers, only the subject's buffer is changed.
            base: if base.buffer == subject.buffer {
                room(base)
            } else {
                None
            },
            subject: room(subject),
        });
    }
    list.retain(|each| each.base.is_some() || each.subject.is_some());
    list
}

/// A command given by the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandCase {
    /// The command and its arguments.
    pub words: Vec<String>,
    /// Environment variables that are set in addition to those of the invoking user.
    pub variables: Vec<(String, String)>,
    /// The only CPU that the command may use. `None` if it may use all CPUs.
    pub cpu: Option<usize>,
}

/// Returns everything that can be changed in two commands without knowing them. `allocators` are the names and paths of the
/// allocators that are installed on this machine. `cpu` is a CPU that may be used.
#[must_use]
pub fn of_commands(
    base: &CommandCase,
    subject: &CommandCase,
    cpu: usize,
    allocators: &[(&str, String)],
) -> Vec<Intervention<CommandCase>> {
    let both = |name: String, what: String, kind, set: &dyn Fn(&mut CommandCase)| {
        let changed = |case: &CommandCase| {
            let mut changed = case.clone();
            set(&mut changed);
            Some(changed).filter(|changed| changed != case)
        };
        Intervention {
            name,
            what,
            kind,
            base: changed(base),
            subject: changed(subject),
        }
    };
    let mut list = vec![
        both(
            "one-cpu".to_owned(),
            "all threads on one CPU".to_owned(),
            InterventionKind::Concurrency,
            &|case| {
                case.cpu = Some(cpu);
            },
        ),
        both(
            "one-worker".to_owned(),
            "TOKIO_WORKER_THREADS=1".to_owned(),
            InterventionKind::Concurrency,
            &|case| case.variables.push(("TOKIO_WORKER_THREADS".to_owned(), "1".to_owned())),
        ),
    ];
    for (name, path) in allocators {
        list.push(both(
            (*name).to_owned(),
            format!("{name} preloaded as the allocator"),
            InterventionKind::Part,
            &|case| {
                case.variables.push(("LD_PRELOAD".to_owned(), path.clone()));
            },
        ));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(base: &Spec, subject: &Spec) -> Vec<String> {
        of_workloads(base, subject).into_iter().map(|each| each.name).collect()
    }

    fn case(mode: Mode, buffer: usize) -> Spec {
        Spec {
            buffer: Some(buffer),
            ..Spec::new(mode)
        }
    }

    #[test]
    fn what_touches_neither_side_is_not_tried() {
        let (base, subject) = (case(Mode::Task, 4_096), case(Mode::TaskPool, 4_096));
        let list = names(&base, &subject);
        for name in [
            "one-worker",
            "one-cpu",
            "jemalloc",
            "lock-step",
            "tokio-channel",
            "idle-thread",
            "buffer-0",
        ] {
            assert!(list.contains(&name.to_owned()), "{name} is not in {list:?}");
        }
        for name in ["pipelined", "buffer-4096"] {
            assert!(!list.contains(&name.to_owned()), "{name} changes nothing");
        }
        let go = names(&case(Mode::Go, 0), &case(Mode::Go, 4_096));
        assert!(
            go.contains(&"pipelined".to_owned()) && !go.contains(&"jemalloc".to_owned()),
            "{go:?}"
        );
    }

    #[test]
    fn a_side_that_is_not_touched_is_left_alone() {
        let (base, subject) = (case(Mode::Task, 4_096), case(Mode::TaskPool, 4_096));
        let list = of_workloads(&base, &subject);
        let of = |name: &str| list.iter().find(|each| each.name == name).expect(name);
        assert_eq!(of("one-worker").base, None);
        assert_eq!(of("idle-thread").subject, None);
        assert_eq!(
            of("jemalloc").base.as_ref().map(|spec| spec.allocator),
            Some(Allocator::Jemalloc)
        );
        // If the cases differ in their buffers, only the subject's buffer is changed.
        let go = of_workloads(&case(Mode::Go, 0), &case(Mode::Go, 4_096));
        assert!(
            go.iter()
                .filter(|each| each.name.starts_with("buffer"))
                .all(|each| each.base.is_none())
        );
    }

    #[test]
    fn a_command_is_changed_from_outside() {
        let command = CommandCase {
            words: vec!["x".to_owned()],
            variables: Vec::new(),
            cpu: None,
        };
        let list = of_commands(&command, &command, 1, &[("jemalloc", "/lib/j.so".to_owned())]);
        let names: Vec<_> = list.iter().map(|each| each.name.as_str()).collect();
        assert_eq!(names, ["one-cpu", "one-worker", "jemalloc"]);
        assert_eq!(list[0].base.as_ref().and_then(|case| case.cpu), Some(1));
    }
}
