//! Follows the cgroups of the target while it is recorded: how their CPU quotas throttled it, and whether they were frozen.
//!
//! A process may be moved to another cgroup at any time (`echo $$ > tasks; exec …`), so the cgroups of every living process are
//! determined again once in `ROUND_TICKS` ticks, and at each `execve`. The quota of a parent applies to all cgroups below it, so
//! the parents are read as well. The first reading of a cgroup is its state before the recording, and the last reading its state
//! after it; a cgroup that is removed in between keeps its last reading. Only the main thread of each process is examined: if
//! another thread is in a different cgroup, that cgroup is not found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ctxtrace_format::cgroups::{Cgroups, Quota};

/// The number of processes that are examined per tick. If a round would then take more than [`ROUND_TICKS`] ticks, more processes
/// are examined per tick.
const PROCESSES_A_TICK: usize = 8;
/// The maximum number of ticks after which every living process has been examined again.
const ROUND_TICKS: usize = 64;
/// The maximum number of cgroups that are read per tick. If there are more, they are read in turn.
const CGROUPS_A_TICK: usize = 32;

/// Follows the cgroups of the target. The module documentation describes how.
#[derive(Debug)]
pub struct CgroupWatch {
    mounts: Mounts,
    groups: BTreeMap<(Controller, String), Group>,
    threads_known: bool,
    ticks: usize,
    round: Round,
}

/// A round over all living processes. Each process is examined once before the processes are listed again.
#[derive(Debug, Default)]
struct Round {
    left: Vec<u32>,
    /// The number of processes that are examined per tick of this round.
    a_tick: usize,
}

impl Round {
    /// Returns the processes to examine in this tick. If a new round begins, `list` is called for all living processes.
    fn next(&mut self, list: impl FnOnce() -> Vec<u32>) -> Vec<u32> {
        if self.left.is_empty() {
            self.left = list();
            self.a_tick = self.left.len().div_ceil(ROUND_TICKS).max(PROCESSES_A_TICK);
        }
        self.left.split_off(self.left.len().saturating_sub(self.a_tick))
    }
}

/// The hierarchy that a cgroup belongs to, and with it the files that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Controller {
    /// The controller `cpu` of cgroup v1, for the CPU quota.
    CpuV1,
    /// The controller `freezer` of cgroup v1.
    FreezerV1,
    /// Cgroup v2, for the CPU quota and the freezer.
    V2,
}

#[derive(Debug, Default)]
struct Group {
    dir: PathBuf,
    /// Whether a process of the target is in this cgroup itself, not only in a cgroup below it.
    has_process: bool,
    before: Option<Bandwidth>,
    last: Bandwidth,
    was_frozen: bool,
}

impl CgroupWatch {
    /// Determines where cgroups are mounted. `threads_known` is whether the kernel shows for each thread that it is throttled.
    #[must_use]
    pub fn start(threads_known: bool) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            mounts: Mounts::parse(&mountinfo),
            groups: BTreeMap::new(),
            threads_known,
            ticks: 0,
            round: Round::default(),
        }
    }

    /// Determines the cgroups of a process, and reads those that are new.
    pub fn look_at(&mut self, pid: u32) {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return;
        };
        for (controller, path) in memberships(&text) {
            let Some(mount) = self.mounts.of_controller(controller) else {
                continue;
            };
            let mut lineage = lineage(path);
            if controller == Controller::FreezerV1 {
                // If a parent is frozen, the state of each cgroup below it shows that.
                lineage.truncate(1);
            }
            for (index, path) in lineage.into_iter().enumerate() {
                let Some(dir) = mount.directory(path) else {
                    continue;
                };
                let key = (controller, path.to_owned());
                let is_new = !self.groups.contains_key(&key);
                let group = self.groups.entry(key).or_insert_with(|| Group {
                    dir,
                    ..Group::default()
                });
                group.has_process |= index == 0;
                if is_new {
                    group.read(controller);
                }
            }
        }
    }

    /// Examines the next processes and reads the next cgroups; to be called regularly. `list_processes` returns the living
    /// processes of the target and is called once per round.
    pub fn tick(&mut self, list_processes: impl FnOnce() -> Vec<u32>) {
        for pid in self.round.next(list_processes) {
            self.look_at(pid);
        }
        let first = self.ticks * CGROUPS_A_TICK;
        let count = self.groups.len();
        for (index, ((controller, _), group)) in self.groups.iter_mut().enumerate() {
            if count <= CGROUPS_A_TICK || (index + count - first % count) % count < CGROUPS_A_TICK {
                group.read(*controller);
            }
        }
        self.ticks += 1;
    }

    /// Returns the result of all readings so far.
    #[must_use]
    pub fn so_far(&self) -> Cgroups {
        let quotas = self.groups.iter().filter_map(|((_, path), group)| {
            let before = group.before?;
            let quota = Quota {
                path: path.clone(),
                throttled_ns: group.last.throttled_ns.wrapping_sub(before.throttled_ns),
                periods: group.last.periods.wrapping_sub(before.periods),
                throttled_periods: group.last.throttled_periods.wrapping_sub(before.throttled_periods),
            };
            (quota.periods > 0 || quota.throttled_ns > 0).then_some(quota)
        });
        let frozen = self.groups.iter().filter(|(_, group)| group.was_frozen);
        let mut frozen: Vec<String> = frozen.map(|((_, path), _)| path.clone()).collect();
        frozen.sort();
        frozen.dedup();
        let any_read = self.groups.values().any(|group| group.before.is_some());
        Cgroups {
            quotas: quotas.collect(),
            unreadable: self
                .mounts
                .why_no_quota()
                .or_else(|| (!any_read).then(|| "the cpu.stat of the target's cgroups could not be read".to_owned())),
            frozen,
            threads_known: self.threads_known,
        }
    }

    /// Reads all known cgroups once more.
    pub fn read_all(&mut self) {
        for ((controller, _), group) in &mut self.groups {
            group.read(*controller);
        }
    }
}

impl Group {
    /// Reads the files of the cgroup. If the cgroup was removed, the last reading is kept.
    fn read(&mut self, controller: Controller) {
        if controller != Controller::FreezerV1
            && let Ok(text) = fs::read_to_string(self.dir.join("cpu.stat"))
        {
            self.found(bandwidth(&text));
        }
        if !self.has_process {
            return;
        }
        let state = match controller {
            Controller::CpuV1 => return,
            Controller::FreezerV1 => "freezer.state",
            Controller::V2 => "cgroup.events",
        };
        if let Ok(text) = fs::read_to_string(self.dir.join(state)) {
            self.was_frozen |= is_frozen(&text);
        }
    }

    /// Adds a reading. If the counters are lower than before, the cgroup was removed and another one was created at its path.
    fn found(&mut self, now: Bandwidth) {
        let before = self.before.get_or_insert(now);
        if now.periods < self.last.periods || now.throttled_ns < self.last.throttled_ns {
            // The counters of the new cgroup start at 0. Lowering `before` by the last reading adds the increase of the old
            // cgroup.
            before.throttled_ns = before.throttled_ns.wrapping_sub(self.last.throttled_ns);
            before.periods = before.periods.wrapping_sub(self.last.periods);
            before.throttled_periods = before.throttled_periods.wrapping_sub(self.last.throttled_periods);
        }
        self.last = now;
    }
}

/// Returns the path of a cgroup and the paths of all its parents, including the root.
fn lineage(path: &str) -> Vec<&str> {
    Path::new(path).ancestors().filter_map(Path::to_str).collect()
}

/// The counters of the CPU quota in `cpu.stat`; zero if the cgroup has no quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bandwidth {
    periods: u64,
    throttled_periods: u64,
    throttled_ns: u64,
}

/// Parses a `cpu.stat` file. Cgroup v1 has nanoseconds in `throttled_time`, v2 has microseconds in `throttled_usec`.
fn bandwidth(text: &str) -> Bandwidth {
    let mut bandwidth = Bandwidth::default();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let value = value.trim().parse().unwrap_or(0);
        match name {
            "nr_periods" => bandwidth.periods = value,
            "nr_throttled" => bandwidth.throttled_periods = value,
            "throttled_time" => bandwidth.throttled_ns = value,
            "throttled_usec" => bandwidth.throttled_ns = value.saturating_mul(1_000),
            _ => {}
        }
    }
    bandwidth
}

/// Parses `freezer.state` of cgroup v1 or `cgroup.events` of v2.
fn is_frozen(text: &str) -> bool {
    text.lines()
        .any(|line| matches!(line.trim(), "FROZEN" | "FREEZING" | "frozen 1"))
}

/// Parses `/proc/PID/cgroup`, and returns the cgroups of the process in the hierarchies of [`Controller`].
fn memberships(text: &str) -> Vec<(Controller, &str)> {
    let lines = || {
        text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
    };
    let mut found = Vec::new();
    for (controllers, path) in lines() {
        if controllers.is_empty() {
            found.push((Controller::V2, path));
        }
        for controller in controllers.split(',') {
            match controller {
                "cpu" => found.push((Controller::CpuV1, path)),
                "freezer" => found.push((Controller::FreezerV1, path)),
                _ => {}
            }
        }
    }
    found
}

/// The mounts of the cgroup hierarchies.
#[derive(Debug, Default)]
struct Mounts {
    cpu_v1: Option<Mount>,
    freezer_v1: Option<Mount>,
    v2: Option<Mount>,
}

/// The mount of a hierarchy or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The path of the cgroup that is mounted at the mount point.
    root: String,
    point: PathBuf,
}

impl Mounts {
    /// Parses `/proc/self/mountinfo`.
    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((mounted, of)) = line.split_once(" - ") else {
                continue;
            };
            let mounted: Vec<&str> = mounted.split(' ').collect();
            let of: Vec<&str> = of.split(' ').collect();
            let (&[_, _, _, root, point, ..], &[kind, _, options, ..]) = (mounted.as_slice(), of.as_slice()) else {
                continue;
            };
            let mount = Mount {
                root: unescaped(root),
                point: unescaped(point).into(),
            };
            let has = |controller| kind == "cgroup" && options.split(',').any(|option| option == controller);
            if has("cpu") {
                mounts.cpu_v1.get_or_insert_with(|| mount.clone());
            }
            if has("freezer") {
                mounts.freezer_v1.get_or_insert_with(|| mount.clone());
            }
            if kind == "cgroup2" {
                mounts.v2.get_or_insert(mount);
            }
        }
        mounts
    }

    fn of_controller(&self, controller: Controller) -> Option<&Mount> {
        match controller {
            Controller::CpuV1 => self.cpu_v1.as_ref(),
            Controller::FreezerV1 => self.freezer_v1.as_ref(),
            Controller::V2 => self.v2.as_ref(),
        }
    }

    fn why_no_quota(&self) -> Option<String> {
        (self.cpu_v1.is_none() && self.v2.is_none())
            .then(|| "no cgroup hierarchy is mounted: mount /sys/fs/cgroup so that CPU quotas can be read".to_owned())
    }
}

impl Mount {
    /// Returns the directory of a cgroup; `None` if the cgroup is outside the mounted part of the hierarchy.
    fn directory(&self, cgroup: &str) -> Option<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below))
    }
}

/// Decodes a path of `mountinfo`, in which the kernel writes `\040` for a space, and octal escapes for tabs, newlines and
/// backslashes.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (escape, is)| text.replace(escape, is))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cpu_stat_are_read() {
        let v1 = "nr_periods 20\nnr_throttled 16\nthrottled_time 1605000000\nnr_bursts 0\nburst_time 0\n";
        let v2 = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 20\nnr_throttled 16\nthrottled_usec 1605000\n";
        let expected = Bandwidth {
            periods: 20,
            throttled_periods: 16,
            throttled_ns: 1_605_000_000,
        };
        assert_eq!((bandwidth(v1), bandwidth(v2)), (expected, expected));
        assert_eq!(
            bandwidth("usage_usec 5\n"),
            Bandwidth::default(),
            "a cgroup without a quota"
        );
    }

    #[test]
    fn both_freezers_are_read() {
        for (text, frozen) in [
            ("THAWED\n", false),
            ("FREEZING\n", true),
            ("FROZEN\n", true),
            ("populated 1\nfrozen 0\n", false),
            ("populated 1\nfrozen 1\n", true),
        ] {
            assert_eq!(is_frozen(text), frozen, "{text}");
        }
    }

    #[test]
    fn a_process_is_in_a_cgroup_of_each_hierarchy() {
        let hybrid = "9:name=systemd:/\n6:freezer:/docker/a\n3:cpu,cpuacct:/docker/b\n0::/init.scope\n";
        assert_eq!(
            memberships(hybrid),
            [
                (Controller::FreezerV1, "/docker/a"),
                (Controller::CpuV1, "/docker/b"),
                (Controller::V2, "/init.scope")
            ]
        );
        assert_eq!(
            memberships("0::/user.slice/a:b\n"),
            [(Controller::V2, "/user.slice/a:b")]
        );
        assert_eq!(memberships("2:cpuacct:/x\n"), [], "cpuacct is not the controller cpu");
    }

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let mounts = Mounts::parse(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             37 31 0:34 /pod /my\\040place rw,relatime shared:9 - cgroup cgroup rw,freezer\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        let directory = |controller, path| mounts.of_controller(controller)?.directory(path);
        assert_eq!(
            directory(Controller::CpuV1, "/a/b"),
            Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into())
        );
        assert_eq!(directory(Controller::FreezerV1, "/pod/c"), Some("/my place/c".into()));
        assert_eq!(directory(Controller::FreezerV1, "/other"), None, "not mounted here");
        assert_eq!(directory(Controller::V2, "/"), Some("/sys/fs/cgroup/unified".into()));
        assert!(Mounts::parse("").why_no_quota().is_some());
    }

    #[test]
    fn the_parents_of_a_cgroup_are_read_too() {
        assert_eq!(lineage("/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(lineage("/"), ["/"]);
    }

    #[test]
    fn what_is_seen_first_is_before_and_a_cgroup_made_again_adds_to_the_first() {
        let reading = |periods| Bandwidth {
            periods,
            throttled_periods: periods / 2,
            throttled_ns: 10 * periods,
        };
        let mut watch = CgroupWatch::start(true);
        let mut group = Group::default();
        for periods in [100, 120, 6, 10] {
            group.found(reading(periods));
        }
        watch.groups.insert((Controller::V2, "/x".to_owned()), group);
        let quotas = watch.so_far().quotas;
        assert_eq!(
            quotas,
            [Quota {
                path: "/x".to_owned(),
                throttled_ns: 300,
                periods: 30,
                throttled_periods: 15,
            }]
        );
    }

    #[test]
    fn every_process_is_looked_at_once_a_round() {
        for count in [0_u32, 1, 8, 9, 1_025, 8_192] {
            let all: Vec<u32> = (0..count).collect();
            let mut round = Round::default();
            let mut lists = 0;
            let mut seen = Vec::new();
            for _ in 0..ROUND_TICKS {
                seen.extend(round.next(|| {
                    lists += 1;
                    // All processes are returned in the first round, and none later.
                    if lists == 1 { all.clone() } else { vec![] }
                }));
            }
            seen.sort_unstable();
            assert_eq!(seen, all);
            assert!(round.left.is_empty(), "{count}");
        }
    }

    #[test]
    fn the_processes_are_listed_when_all_of_them_have_had_their_turn() {
        let mut round = Round::default();
        assert_eq!(round.next(|| (0..12).collect()).len(), PROCESSES_A_TICK);
        assert_eq!(round.next(|| unreachable!("processes of the round are left")).len(), 4);
        assert_eq!(round.next(|| vec![20]), [20]);
    }
}
