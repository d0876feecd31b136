//! The interventions: one thing changed, on both sides where it touches both, and everything else left as it is.
//!
//! What is changed is generic: any property of a case that can be set. Which of them matters is for the runs to say.

use schemars::JsonSchema;
use serde::Serialize;

use crate::workload::pin::Pin;
use crate::workload::{Allocator, Channel, Language, Mode, Protocol, Root, Spec};

/// What an intervention can say if it closes the gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It exchanges a part: the part is in the cause
    Part,
    /// It takes away the concurrency, or gives it: the cause needs it, whatever it is
    Concurrency,
    /// It changes how much or in what order is sent
    Load,
}

/// One of them. `C` is what a case is described by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervention<C> {
    /// Its name on the command line and in JSON.
    pub name: String,
    /// What is changed, as the end of "with …".
    pub what: String,
    /// What it can say.
    pub kind: Kind,
    /// The base, changed; `None` if it does not touch it.
    pub base: Option<C>,
    /// The subject, changed.
    pub subject: Option<C>,
}

/// Buffers that are swept.
const BUFFERS: [usize; 5] = [0, 16, 256, 4_096, 65_536];

/// Everything that can be changed of two workloads, the most telling first.
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
    add("one-worker", "one worker", Kind::Concurrency, &|spec| {
        spec.workers?;
        with(spec, &|spec| {
            spec.workers = Some(1);
            if spec.pin == Pin::SplitCpus {
                spec.pin = Pin::None;
            }
        })
    });
    add("one-cpu", "all threads on one CPU", Kind::Concurrency, &|spec| {
        with(spec, &|spec| spec.pin = Pin::SameCpu)
    });
    add("jemalloc", "jemalloc as the allocator", Kind::Part, &|spec| {
        (spec.language == Language::Rust).then_some(())?;
        with(spec, &|spec| spec.allocator = Allocator::Jemalloc)
    });
    add("lock-step", "one message in flight at a time", Kind::Load, &|spec| {
        spec.protocol()?;
        with(spec, &|spec| spec.protocol = Some(Protocol::LockStep))
    });
    add(
        "pipelined",
        "messages sent as soon as there is room",
        Kind::Load,
        &|spec| {
            spec.protocol()?;
            with(spec, &|spec| spec.protocol = Some(Protocol::Pipelined))
        },
    );
    add(
        "tokio-channel",
        "tokio's mpsc in place of futures'",
        Kind::Part,
        &|spec| {
            spec.channel()?;
            (spec.buffer? > 0).then_some(())?;
            with(spec, &|spec| spec.channel = Some(Channel::Tokio))
        },
    );
    add(
        "separate-cpus",
        "each worker on a CPU of its own",
        Kind::Concurrency,
        &|spec| {
            (spec.mode == Mode::TaskPool && spec.workers? > 1).then_some(())?;
            with(spec, &|spec| spec.pin = Pin::SplitCpus)
        },
    );
    add(
        "block-on-root",
        "the receiver as the root of block_on",
        Kind::Part,
        &|spec| {
            spec.root?;
            with(spec, &|spec| spec.root = Some(Root::BlockOn))
        },
    );
    // The subject has threads enough.
    if base.language == Language::Rust && base.idle_threads == 0 && base.mode == Mode::Task {
        // Early: a program with one thread is treated apart by allocators and C libraries.
        list.insert(
            2.min(list.len()),
            Intervention {
                name: "idle-thread".to_owned(),
                what: "an idle second thread beside the base".to_owned(),
                kind: Kind::Part,
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
            kind: Kind::Load,
            // Where the buffer is the difference, the base is what the subject is held against.
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

/// A command of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandCase {
    /// Its words.
    pub words: Vec<String>,
    /// Variables it gets beside those of the invoking user.
    pub variables: Vec<(String, String)>,
    /// The one CPU it may use, if it may use only one.
    pub cpu: Option<usize>,
}

/// Everything that can be changed of two commands without knowing them. `allocators` are those that this machine has, by name
/// and path; `cpu` is one that may be used.
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
            Kind::Concurrency,
            &|case| {
                case.cpu = Some(cpu);
            },
        ),
        both(
            "one-worker".to_owned(),
            "TOKIO_WORKER_THREADS=1".to_owned(),
            Kind::Concurrency,
            &|case| case.variables.push(("TOKIO_WORKER_THREADS".to_owned(), "1".to_owned())),
        ),
    ];
    for (name, path) in allocators {
        list.push(both(
            (*name).to_owned(),
            format!("{name} preloaded as the allocator"),
            Kind::Part,
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
            ..Spec::of(mode)
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
        // Where the buffer is the difference it is the subject's that is changed.
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
