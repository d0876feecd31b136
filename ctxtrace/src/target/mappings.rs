//! Which file lies where in a process's memory, for as long as the report needs to know: longer than the process lives.
//!
//! `/proc/PID/maps` is gone with the process, and a short process is gone before anybody has read it. So the kernel is
//! asked to tell: a `perf` event that counts nothing (`PERF_COUNT_SW_DUMMY`) on each CPU reports every executable mapping
//! (`PERF_RECORD_MMAP2`), every `execve` (`PERF_RECORD_COMM`) and every fork while they happen. Opened for a CPU and not
//! for a process, it costs nothing at a context switch.
//!
//! The records of several CPUs are put in order by their `CLOCK_MONOTONIC` time stamps before they are applied, and what is
//! younger than the moment reading began waits for the next reading: an older record may still be on its way.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ctxtrace_common::process::Image;
use nix::time::{ClockId, clock_gettime};
use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag, Sampler};
use procfs::process::{MMPermissions, MMapPath, Process};
use serde::{Deserialize, Serialize};

use super::attach::has_own_root;

/// Space for records on each CPU: some 5,000 mappings between two readings.
const RING_BYTES: usize = 512 << 10;
/// Mappings that are kept of one image. Of a program that maps more, those go first that lie under later ones, then the oldest.
const MOST_MAPPINGS: usize = 4_096;
/// `PERF_RECORD_MISC_COMM_EXEC` (kernel: `include/uapi/linux/perf_event.h`): the name changed by an `execve`.
const MISC_COMM_EXEC: u16 = 1 << 13;

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub file_offset: u64,
    /// The file, or what the kernel shows in its place, as `[vdso]` or `//anon`.
    #[serde(with = "super::stored_path")]
    pub path: PathBuf,
}

impl Mapping {
    /// An address in it as a place in the file: `redis-server+0x1a2b`.
    #[must_use]
    pub fn place(&self, address: u64) -> String {
        let file = self.path.file_name().unwrap_or(self.path.as_os_str());
        let offset = address.wrapping_sub(self.start).wrapping_add(self.file_offset);
        format!("{}+{offset:#x}", file.to_string_lossy())
    }
}

/// Every mapping seen, by image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// A child's are its parent's until one of them maps something.
    by_image: HashMap<Image, Arc<Vec<Mapping>>>,
    /// Number of the image each process is running.
    #[serde(skip)]
    current: HashMap<u32, u32>,
    /// Where the files of processes are that see others than this one under the same names.
    #[serde(skip)]
    roots: HashMap<u32, PathBuf>,
    /// Records that the kernel could not deliver, and mappings beyond those that are kept of one image.
    pub lost: u64,
}

impl Mappings {
    /// Begins with a process as `/proc` shows it now.
    pub fn add_process(&mut self, tgid: u32) {
        let maps = Process::new(tgid as i32).and_then(|process| process.maps());
        let mappings = maps
            .into_iter()
            .flatten()
            .filter(|map| map.perms.contains(MMPermissions::EXECUTE))
            .map(|map| Mapping {
                start: map.address.0,
                end: map.address.1,
                file_offset: map.offset,
                path: match map.pathname {
                    MMapPath::Path(path) => path,
                    MMapPath::Vdso => PathBuf::from("[vdso]"),
                    _ => PathBuf::from("//anon"),
                },
            });
        self.by_image
            .insert(Image { tgid, number: 0 }, Arc::new(mappings.collect()));
        self.current.insert(tgid, 0);
        if has_own_root(tgid) {
            self.roots.insert(tgid, PathBuf::from(format!("/proc/{tgid}/root")));
        }
    }

    /// Where a file can be opened that a process sees as `path`; only while the process lives, if it has a root of its own.
    #[must_use]
    pub fn file(&self, tgid: u32, path: &Path) -> PathBuf {
        match (self.roots.get(&tgid), path.strip_prefix("/")) {
            (Some(root), Ok(relative)) if !path.starts_with("//anon") => root.join(relative),
            _ => path.to_owned(),
        }
    }

    /// Adds an image whose mappings are known.
    #[cfg(test)]
    pub(crate) fn add(&mut self, image: Image, mappings: impl IntoIterator<Item = Mapping>) {
        self.by_image.insert(image, Arc::new(mappings.into_iter().collect()));
    }

    /// The mapping an address of a process lies in.
    #[must_use]
    pub fn find(&self, image: Image, address: u64) -> Option<&Mapping> {
        // The latest one wins: a later mapping may have taken an earlier one's place.
        let mappings = self.by_image.get(&image)?;
        mappings
            .iter()
            .rev()
            .find(|mapping| (mapping.start..mapping.end).contains(&address))
    }

    /// Every image, with its mappings in the order they were made.
    pub fn images(&self) -> impl Iterator<Item = (Image, &[Mapping])> {
        self.by_image
            .iter()
            .map(|(&image, mappings)| (image, mappings.as_slice()))
    }

    /// Whether anything is known of this image.
    #[must_use]
    pub fn knows(&self, image: Image) -> bool {
        self.by_image.contains_key(&image)
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Mapped { tgid, mapping } => {
                if let Some(&number) = self.current.get(&tgid) {
                    let mappings = Arc::make_mut(self.by_image.entry(Image { tgid, number }).or_default());
                    mappings.push(mapping);
                    if mappings.len() > MOST_MAPPINGS {
                        self.lost += drop_some(mappings);
                    }
                }
            }
            Change::Executed { tgid } => {
                if let Some(number) = self.current.get_mut(&tgid) {
                    *number += 1;
                    self.by_image.insert(Image { tgid, number: *number }, Arc::default());
                }
            }
            Change::Forked { parent, child } => {
                if let Some(&number) = self.current.get(&parent) {
                    let inherited = self.by_image.get(&Image { tgid: parent, number }).cloned();
                    let image = Image { tgid: child, number };
                    self.by_image.insert(image, inherited.unwrap_or_default());
                    self.current.insert(child, number);
                    if let Some(root) = self.roots.get(&parent).cloned() {
                        self.roots.insert(child, root);
                    }
                }
            }
        }
    }
}

/// Drops the mappings that lie under later ones, where no address is looked up any more; if that leaves more than three quarters of
/// what is kept, the oldest ones too, which it counts.
fn drop_some(mappings: &mut Vec<Mapping>) -> u64 {
    // By first address, so that what covers a mapping is found without comparing each with each; none of them overlap.
    let mut later: BTreeMap<u64, u64> = BTreeMap::new();
    let mut kept: Vec<Mapping> = Vec::new();
    for mapping in mappings.drain(..).rev() {
        let covering = later.range(..=mapping.start).next_back();
        if covering.is_some_and(|(_, &end)| mapping.end <= end) {
            continue;
        }
        let (mut start, mut end) = (mapping.start, mapping.end);
        while let Some((&before, &until)) = later.range(..end).next_back().filter(|&(_, &until)| until > start) {
            later.remove(&before);
            (start, end) = (start.min(before), end.max(until));
        }
        later.insert(start, end);
        kept.push(mapping);
    }
    let dropped = kept.len().saturating_sub(MOST_MAPPINGS / 4 * 3);
    kept.truncate(kept.len() - dropped);
    kept.reverse();
    *mappings = kept;
    dropped as u64
}

#[derive(Clone, Debug)]
enum Change {
    Mapped { tgid: u32, mapping: Mapping },
    Executed { tgid: u32 },
    Forked { parent: u32, child: u32 },
}

/// Follows the mappings of processes while they run.
pub struct Tracker {
    samplers: Vec<Sampler>,
    /// Read but younger than the last horizon, with their times.
    held_back: Vec<(u64, Change)>,
    /// Shared with the states that are saved while the run goes on.
    mappings: Arc<Mappings>,
}

impl Tracker {
    /// Begins to listen on every CPU.
    ///
    /// # Errors
    ///
    /// If the kernel refuses `perf_event_open` (it needs `CAP_PERFMON` or `perf_event_paranoid` ≤ 0).
    pub fn start() -> io::Result<Self> {
        let samplers = online_cpus()?.into_iter().map(listen_on).collect::<io::Result<_>>()?;
        Ok(Self {
            samplers,
            held_back: Vec::new(),
            mappings: Arc::default(),
        })
    }

    /// Follows a process, and from now on its children too.
    pub fn follow(&mut self, tgid: u32) {
        Arc::make_mut(&mut self.mappings).add_process(tgid);
    }

    /// Whether this process is followed.
    #[must_use]
    pub fn follows(&self, tgid: u32) -> bool {
        self.mappings.current.contains_key(&tgid)
    }

    /// Reads what has come in.
    pub fn tick(&mut self) {
        self.read_until(now_ns());
    }

    /// What is known by now.
    #[must_use]
    pub fn mappings(&self) -> &Arc<Mappings> {
        &self.mappings
    }

    /// Reads what is left and ends.
    #[must_use]
    pub fn finish(mut self) -> Arc<Mappings> {
        self.read_until(u64::MAX);
        self.mappings
    }

    fn read_until(&mut self, horizon_ns: u64) {
        let mappings = Arc::make_mut(&mut self.mappings);
        let mut changes = std::mem::take(&mut self.held_back);
        for sampler in &mut self.samplers {
            while let Some(record) = sampler.next_record() {
                // With `sample_id_all` and nothing but TIME, each record but MMAP's ends in its time stamp.
                let bytes = record.to_contiguous();
                let time_ns = bytes.last_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                match record.parse_record() {
                    Ok(Record::Lost(lost)) => mappings.lost += lost.lost,
                    Ok(parsed) => changes.extend(change_of(&parsed, record.misc()).map(|change| (time_ns, change))),
                    Err(_) => mappings.lost += 1,
                }
            }
        }
        changes.sort_by_key(|&(time_ns, _)| time_ns);
        for (time_ns, change) in changes {
            if time_ns <= horizon_ns {
                mappings.apply(change);
            } else {
                self.held_back.push((time_ns, change));
            }
        }
    }
}

fn online_cpus() -> io::Result<Vec<usize>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's list of CPUs cannot be read");
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn listen_on(cpu: usize) -> io::Result<Sampler> {
    Builder::new(Software::DUMMY)
        .any_pid()
        .one_cpu(cpu)
        .enabled(true)
        .mmap(true)
        .mmap2(true)
        .comm(true)
        .comm_exec(true)
        .task(true)
        .sample(SampleFlag::TIME)
        .sample_id_all(true)
        .clockid(Some(perf_event::Clock::MONOTONIC))
        .build()?
        .sampled(RING_BYTES)
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}

fn change_of(record: &Record<'_>, misc: u16) -> Option<Change> {
    match record {
        Record::Mmap2(mmap) => Some(Change::Mapped {
            tgid: mmap.pid,
            mapping: Mapping {
                start: mmap.addr,
                end: mmap.addr.saturating_add(mmap.len),
                file_offset: mmap.pgoff,
                path: Path::new(mmap.filename_os()).to_owned(),
            },
        }),
        Record::Comm(comm) if misc & MISC_COMM_EXEC != 0 => Some(Change::Executed { tgid: comm.pid }),
        Record::Fork(fork) if fork.pid != fork.ppid => Some(Change::Forked {
            parent: fork.ppid,
            child: fork.pid,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, path: &str) -> Mapping {
        Mapping {
            start,
            end: start + 0x1000,
            file_offset: 0,
            path: path.into(),
        }
    }

    fn mappings(changes: &[Change]) -> Mappings {
        let mut mappings = Mappings::default();
        mappings.current.insert(7, 0);
        for change in changes {
            mappings.apply(change.clone());
        }
        mappings
    }

    fn path(mappings: &Mappings, tgid: u32, number: u32, address: u64) -> Option<&str> {
        mappings.find(Image { tgid, number }, address)?.path.to_str()
    }

    #[test]
    fn an_execve_begins_a_new_image_and_keeps_the_old_one() {
        let old = mapping(0x1000, "old");
        let new = mapping(0x1000, "new");
        let mappings = mappings(&[
            Change::Mapped { tgid: 7, mapping: old },
            Change::Executed { tgid: 7 },
            Change::Mapped { tgid: 7, mapping: new },
        ]);
        assert_eq!(path(&mappings, 7, 0, 0x1800), Some("old"));
        assert_eq!(path(&mappings, 7, 1, 0x1800), Some("new"));
        assert_eq!(path(&mappings, 7, 1, 0x2000), None);
    }

    #[test]
    fn a_forked_child_has_its_parents_memory_and_then_its_own() {
        let mappings = mappings(&[
            Change::Executed { tgid: 7 },
            Change::Mapped {
                tgid: 7,
                mapping: mapping(0x1000, "before"),
            },
            Change::Forked { parent: 7, child: 8 },
            Change::Mapped {
                tgid: 7,
                mapping: mapping(0x5000, "after"),
            },
        ]);
        assert_eq!(path(&mappings, 8, 1, 0x1000), Some("before"));
        assert_eq!(path(&mappings, 8, 1, 0x5000), None);
    }

    #[test]
    fn of_two_mappings_in_one_place_the_later_one_counts() {
        let mappings = mappings(&[
            Change::Mapped {
                tgid: 7,
                mapping: mapping(0x1000, "first"),
            },
            Change::Mapped {
                tgid: 7,
                mapping: mapping(0x1000, "second"),
            },
        ]);
        assert_eq!(path(&mappings, 7, 0, 0x1000), Some("second"));
    }

    #[test]
    fn a_flood_of_mappings_is_bounded_and_the_latest_ones_stay() {
        let same = |number: u64| Change::Mapped {
            tgid: 7,
            mapping: mapping(0x1000, &number.to_string()),
        };
        let flooded = mappings(&(0..10 * MOST_MAPPINGS as u64).map(same).collect::<Vec<_>>());
        assert_eq!(
            flooded.lost, 0,
            "no address is looked up in what lies under later mappings"
        );
        let last = (10 * MOST_MAPPINGS - 1).to_string();
        assert_eq!(path(&flooded, 7, 0, 0x1800), Some(last.as_str()));
        let others = |number: u64| Change::Mapped {
            tgid: 7,
            mapping: mapping(0x1000 * number, &number.to_string()),
        };
        let flooded = mappings(&(0..3 * MOST_MAPPINGS as u64).map(others).collect::<Vec<_>>());
        assert!(
            flooded
                .by_image
                .values()
                .all(|mappings| mappings.len() <= MOST_MAPPINGS)
        );
        assert!(flooded.lost > 0);
        let last = 3 * MOST_MAPPINGS as u64 - 1;
        assert_eq!(path(&flooded, 7, 0, 0x1000 * last), Some(last.to_string().as_str()));
    }

    #[test]
    fn processes_nobody_follows_leave_nothing_behind() {
        let mappings = mappings(&[
            Change::Mapped {
                tgid: 99,
                mapping: mapping(0x1000, "foreign"),
            },
            Change::Forked { parent: 99, child: 100 },
            Change::Executed { tgid: 100 },
        ]);
        assert!(!mappings.knows(Image { tgid: 99, number: 0 }));
        assert!(mappings.by_image.is_empty());
    }
}
