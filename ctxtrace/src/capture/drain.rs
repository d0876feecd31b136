//! The elements collected from the kernel's tables, and the code that drains these tables during the run.
//!
//! A full table would lose all further additions. So when a quarter of a table is in use, its elements are moved to user space,
//! where there is more room. No count is lost by this: `ctxtrace_common::table` explains how. Additions that find no room in a
//! table meanwhile come one by one through a ring. The room in user space is limited, too. Beyond the limit, switch-outs are
//! summed by class and edges by the process that was woken, and the additions that are no longer distinguished are counted.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, HashMap as BpfHashMap, Map};
use ctxtrace_common::counters::Counters;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::TaskKey;
use ctxtrace_common::stack::{Gathered, Stack, SumKey, SwitchSum, UserStack};
use ctxtrace_common::table::{Generational, Table, TableState};
use ctxtrace_common::wakeup::{Edge, EdgeAddition, EdgeKey, WakerAddition, WakerStackKey};

use super::wire::Wire;
use super::{batch, missing, refused};
use crate::error::{Error, Result};
use ctxtrace_format::wakeups::{EdgeSums, others};

/// Maximum number of distinct sums of switch-outs, and of wakeups by stack; each takes about 100 bytes. Beyond it switch-outs are
/// summed by class and counted in `lost.stack_sums`, and wakeups are counted in `lost.wakeup_edges`.
const MOST_SUMS: usize = 1 << 19;
/// A table is drained when one in this many of its elements is in use. The rest is room for additions until it is empty.
const WAKE_AT: u32 = 4;
/// Maximum number of distinct stacks. Switch-outs with further stacks are counted in `lost.stacks`.
const MOST_STACKS: usize = 1 << 19;
/// Maximum number of frames of all stacks together; a frame takes 8 bytes.
const MOST_FRAMES: usize = 1 << 24;
/// Maximum number of distinct edges. Further edges are summed by the process that was woken; when twice this many entries exist,
/// the remaining edges are not distinguished by that process either.
const MOST_EDGES: usize = 1 << 16;
/// Maximum number of tasks whose hits are counted separately. Further hits are counted in `lost.tasks`.
const MOST_HITS: usize = 1 << 16;

/// The elements moved from the kernel's tables to user space so far.
#[derive(Clone, Debug, Default)]
pub(super) struct DrainedTables {
    pub(super) stacks: HashMap<u64, Arc<[u64]>>,
    frames: usize,
    pub(super) switch_sums: HashMap<SumKey, SwitchSum>,
    /// Switch-outs that found no room in `switch_sums`, by the number of their class.
    overflow: [SwitchSum; Class::COUNT],
    pub(super) waker_sums: HashMap<WakerStackKey, SwitchSum>,
    pub(super) edges: HashMap<EdgeKey, EdgeSums>,
    pub(super) hits: HashMap<TaskKey, u64>,
    lost_stack_sums: u64,
    lost_wakeup_edges: u64,
    lost_tasks: u64,
}

impl DrainedTables {
    /// Adds a stack; does nothing if the stack is already known.
    fn add_stack(&mut self, key: u64, stack: &Stack) {
        let depth = (stack.depth as usize).min(stack.frames.len());
        if self.stacks.len() >= MOST_STACKS || self.frames + depth > MOST_FRAMES || self.stacks.contains_key(&key) {
            return;
        }
        self.frames += depth;
        self.stacks.insert(key, stack.frames[..depth].into());
    }

    /// Adds switch-outs that share a key.
    pub(super) fn add_switches(&mut self, key: SumKey, sum: SwitchSum) {
        if let Some(known) = entry(&mut self.switch_sums, key, MOST_SUMS) {
            *known += sum;
            return;
        }
        self.lost_stack_sums += sum.count;
        let class = if key.reason == 0 {
            usize::from(key.class)
        } else {
            Class::Unattributed as usize
        };
        let class = if class < Class::COUNT {
            class
        } else {
            Class::Unattributed as usize
        };
        self.overflow[class] += sum;
    }

    fn add_waker(&mut self, key: WakerStackKey, sum: SwitchSum) {
        match entry(&mut self.waker_sums, key, MOST_SUMS) {
            Some(known) => *known += sum,
            None => self.lost_wakeup_edges += sum.count,
        }
    }

    fn add_edge(&mut self, key: EdgeKey, edge: &Edge) {
        let is_full = self.edges.len() >= MOST_EDGES && !self.edges.contains_key(&key);
        let key = if is_full { others(&key) } else { key };
        let is_full = self.edges.len() >= 2 * MOST_EDGES && !self.edges.contains_key(&key);
        let key = if is_full { EdgeKey { to_tgid: 0, ..key } } else { key };
        *self.edges.entry(key).or_default() += &EdgeSums::from(edge);
    }

    /// Adds an addition that found no room in its table, as read from the ring. The length of the record says which table it was
    /// for.
    pub(super) fn add_addition(&mut self, bytes: &[u8]) {
        if let Ok(Gathered { key, sum }) = bytemuck::try_pod_read_unaligned(bytes) {
            self.add_switches(key.without_generation(), sum);
        } else if let Ok(WakerAddition { key, sum }) = bytemuck::try_pod_read_unaligned(bytes) {
            self.add_waker(key.without_generation(), sum);
        } else if let Ok(addition) = bytemuck::try_pod_read_unaligned::<EdgeAddition>(bytes) {
            let mut edge = Edge::EMPTY;
            addition.add_to(&mut edge);
            self.add_edge(addition.key.without_generation(), &edge);
        }
    }

    fn add_hits(&mut self, key: TaskKey, hits: u64) {
        match entry(&mut self.hits, key, MOST_HITS) {
            Some(known) => *known += hits,
            None => self.lost_tasks += hits,
        }
    }

    /// Marks sums one of whose stacks was not kept, and counts their switch-outs in `lost_stacks`.
    pub(super) fn settle_stacks(&mut self, counters: &mut Counters) {
        let Self {
            stacks, switch_sums, ..
        } = self;
        let is_missing = |key: u64| key != 0 && !stacks.contains_key(&key);
        let incomplete: Vec<SumKey> = switch_sums
            .keys()
            .filter(|key| is_missing(key.kernel_stack) || is_missing(key.user_stack))
            .copied()
            .collect();
        for mut key in incomplete {
            let Some(sum) = switch_sums.remove(&key) else { continue };
            counters.lost_stacks += sum.count;
            if is_missing(key.kernel_stack) {
                key.kernel_stack = 0;
            }
            if is_missing(key.user_stack) {
                (key.user_stack, key.user_state) = (0, UserStack::TableFull as u32);
            }
            *switch_sums.entry(key).or_default() += sum;
        }
    }

    /// Adds the losses in user space to the kernel's.
    pub(super) fn add_losses(&self, counters: &mut Counters, overflow: &mut [SwitchSum]) {
        counters.lost_stack_sums += self.lost_stack_sums;
        counters.lost_wakeup_edges += self.lost_wakeup_edges;
        counters.lost_tasks += self.lost_tasks;
        for (sum, more) in overflow.iter_mut().zip(self.overflow) {
            *sum += more;
        }
    }

    /// Adds every element of the tables without removing it. Call it when no BPF program runs, or when being off by a few counts
    /// does not matter.
    pub(super) fn add_tables(&mut self, ebpf: &Ebpf) -> Result<()> {
        for (key, stack) in entries::<u64, Stack>(ebpf, "STACKS")? {
            self.add_stack(key, &stack);
        }
        for (key, sum) in entries::<SumKey, SwitchSum>(ebpf, "SWITCH_SUMS")? {
            self.add_switches(key.without_generation(), sum);
        }
        for (key, sum) in entries::<WakerStackKey, SwitchSum>(ebpf, "WAKER_SUMS")? {
            self.add_waker(key.without_generation(), sum);
        }
        for (key, edge) in entries::<EdgeKey, Edge>(ebpf, "EDGES")? {
            self.add_edge(key.without_generation(), &edge);
        }
        for (key, hits) in entries::<TaskKey, u64>(ebpf, "HITS")? {
            self.add_hits(key.without_generation(), hits);
        }
        Ok(())
    }
}

/// The value of a key, inserted if it is missing; `None` if it is missing and the map has `most` entries.
fn entry<K: Eq + std::hash::Hash, V: Default>(map: &mut HashMap<K, V>, key: K, most: usize) -> Option<&mut V> {
    if map.len() >= most && !map.contains_key(&key) {
        return None;
    }
    Some(map.entry(key).or_default())
}

/// The tables whose keys have generations.
const WITH_GENERATIONS: [Table; 4] = [Table::SwitchSums, Table::WakerSums, Table::Edges, Table::Hits];

/// Drains the tables.
pub(super) struct Drainer {
    /// Whether `membarrier(2)` can wait until running BPF programs have ended.
    can_wait: bool,
}

impl Drainer {
    /// Stores at how many elements the BPF programs are to wake this process. `ended_bytes` is the size of the ring of ended
    /// threads.
    pub(super) fn begin(ebpf: &mut Ebpf, ended_bytes: u32) -> Result<Self> {
        let can_wait = membarrier(libc::MEMBARRIER_CMD_QUERY) & i64::from(libc::MEMBARRIER_CMD_GLOBAL) != 0;
        for table in WITH_GENERATIONS.into_iter().chain([Table::Stacks]) {
            let capacity = capacity(ebpf, name(table))?;
            // A table with a capacity of one element is not used.
            let drains = capacity > 1 && (can_wait || table == Table::Stacks);
            let wake_at = if drains { capacity.div_ceil(WAKE_AT) } else { 0 };
            store(ebpf, table, 0, wake_at.into())?;
        }
        store(ebpf, Table::Ended, 0, u64::from(ended_bytes / 2))?;
        Ok(Self { can_wait })
    }

    /// Drains the tables that hold as many elements as the wakeup threshold.
    ///
    /// # Errors
    ///
    /// If the kernel refuses. Elements that were not drained stay in their table.
    pub(super) fn drain(&self, ebpf: &mut Ebpf, into: &mut DrainedTables) -> Result<()> {
        drain_stacks(ebpf, into)?;
        let ended = state(ebpf, Table::Ended)?;
        if ended.woken != 0 {
            store(ebpf, Table::Ended, 0, ended.wake_at)?;
        }
        if !self.can_wait {
            return Ok(());
        }
        let mut full = Vec::new();
        for table in WITH_GENERATIONS {
            let state = state(ebpf, table)?;
            if is_due(state) {
                full.push((table, state));
            }
        }
        if full.is_empty() {
            return Ok(());
        }
        for &(table, state) in &full {
            store(ebpf, table, 1 - state.generation, state.wake_at)?;
        }
        if membarrier(libc::MEMBARRIER_CMD_GLOBAL) != 0 {
            // Programs may still use the old generation. Its elements are drained by a later call, when it is the old one again.
            return Ok(());
        }
        for (table, TableState { generation: old, .. }) in full {
            // Additions to a full table of stacks do not go to a ring. So this table is checked between any two steps.
            drain_stacks(ebpf, into)?;
            match table {
                Table::SwitchSums => take(ebpf, table, old, |key, &sum| into.add_switches(key, sum))?,
                Table::WakerSums => take(ebpf, table, old, |key, &sum| into.add_waker(key, sum))?,
                Table::Edges => take(ebpf, table, old, |key, edge| into.add_edge(key, edge))?,
                Table::Hits => take(ebpf, table, old, |key, &hits| into.add_hits(key, hits))?,
                Table::Stacks | Table::Ended => {}
            }
        }
        drain_stacks(ebpf, into)
    }
}

/// Whether a table holds as many elements as the wakeup threshold.
fn is_due(state: TableState) -> bool {
    state.wake_at > 0 && state.made >= state.wake_at
}

/// Drains all stacks if their table has reached its wakeup threshold.
fn drain_stacks(ebpf: &mut Ebpf, into: &mut DrainedTables) -> Result<()> {
    let state = state(ebpf, Table::Stacks)?;
    if !is_due(state) {
        return Ok(());
    }
    store(ebpf, Table::Stacks, 0, state.wake_at)?;
    take_stacks(ebpf, into)
}

/// The table's name in the BPF object.
fn name(table: Table) -> &'static str {
    match table {
        Table::Stacks => "STACKS",
        Table::SwitchSums => "SWITCH_SUMS",
        Table::WakerSums => "WAKER_SUMS",
        Table::Edges => "EDGES",
        Table::Hits => "HITS",
        Table::Ended => "EXITED",
    }
}

fn state(ebpf: &Ebpf, table: Table) -> Result<TableState> {
    let map = ebpf.map("TABLES").ok_or_else(|| missing("TABLES"))?;
    let map = Array::<_, Wire<TableState>>::try_from(map).map_err(refused("open a BPF map"))?;
    let Wire(state) = map.get(&(table as u32), 0).map_err(refused("read a BPF map"))?;
    Ok(state)
}

/// Stores the state of a table and resets the number of elements made in it.
fn store(ebpf: &mut Ebpf, table: Table, generation: u64, wake_at: u64) -> Result<()> {
    let state = TableState {
        generation,
        wake_at,
        ..TableState::default()
    };
    let map = ebpf.map_mut("TABLES").ok_or_else(|| missing("TABLES"))?;
    Array::<_, Wire<TableState>>::try_from(map)
        .and_then(|mut map| map.set(table as u32, Wire(state), 0))
        .map_err(refused("store how full a table may become"))
}

fn capacity(ebpf: &Ebpf, name: &'static str) -> Result<u32> {
    let Some(Map::HashMap(map)) = ebpf.map(name) else {
        return Err(missing(name));
    };
    map.info()
        .map(|info| info.max_entries())
        .map_err(refused("return the size of a BPF map"))
}

/// Moves every stack to user space. A stack that is needed again is walked and stored again. A stack never changes, so no
/// generation is needed.
fn take_stacks(ebpf: &Ebpf, into: &mut DrainedTables) -> Result<()> {
    let table = hash_table::<u64, Stack>(ebpf, "STACKS")?;
    batch::take(table, |key, stack: &Stack| into.add_stack(key, stack)).map_err(Error::system("emptying a BPF map"))
}

/// Moves every element of a generation that BPF programs no longer change.
fn take<K, V>(ebpf: &Ebpf, table: Table, generation: u64, mut add: impl FnMut(K, &V)) -> Result<()>
where
    K: bytemuck::Pod + Generational,
    V: bytemuck::Pod,
{
    let table = hash_table::<K, V>(ebpf, name(table))?;
    let mut taken = Vec::new();
    let read = batch::read(table, |key: K, value: &V| {
        if key.generation() == generation {
            add(key.without_generation(), value);
            taken.push(key);
        }
    });
    // Elements added to the collection must be deleted, or they would be counted twice.
    let deleted = batch::delete(table, &taken);
    read.and(deleted).map_err(Error::system("emptying a BPF map"))
}

/// The descriptor of a hash table whose keys and values have these types.
fn hash_table<'a, K: bytemuck::Pod, V: bytemuck::Pod>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>> {
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    // aya compares the sizes of the types with the map's.
    BpfHashMap::<_, Wire<K>, Wire<V>>::try_from(map).map_err(refused("open a BPF map"))?;
    match map {
        Map::HashMap(map) => Ok(map.fd().as_fd()),
        _ => Err(missing(name)),
    }
}

/// All elements of a table.
pub(super) fn entries<K: bytemuck::Pod, V: bytemuck::Pod>(ebpf: &Ebpf, name: &'static str) -> Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    batch::read(hash_table::<K, V>(ebpf, name)?, |key, value: &V| {
        all.push((key, *value));
    })
    .map_err(Error::system("reading a BPF map"))?;
    Ok(all)
}

/// Calls `membarrier(2)`. `MEMBARRIER_CMD_GLOBAL` returns when every RCU read section that has begun has ended (kernel:
/// `kernel/sched/membarrier.c`, `synchronize_rcu()`), and therefore also every BPF program that was running.
fn membarrier(command: libc::c_int) -> i64 {
    // SAFETY: the system call takes three numbers and does not access this process's memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

#[cfg(test)]
mod tests {
    use ctxtrace_common::wakeup::What;

    use super::*;
    use ctxtrace_format::build;

    fn sum(count: u64) -> SwitchSum {
        SwitchSum {
            count,
            off_cpu_ns: 10 * count,
        }
    }

    #[test]
    fn sums_of_one_key_that_come_in_parts_are_added_up() {
        let mut collected = DrainedTables::default();
        let key = build::sum_key(Class::ThreadBlocked, 0);
        for count in [3, 4] {
            collected.add_switches(key, sum(count));
        }
        assert_eq!(collected.switch_sums[&key], sum(7));
    }

    #[test]
    fn what_finds_no_room_is_in_its_class_and_counted() {
        let mut collected = DrainedTables::default();
        for task in 0..MOST_SUMS as u64 + 2 {
            collected.add_switches(build::sum_key(Class::TaskBlocked, task + 1), sum(1));
        }
        let (mut counters, mut overflow) = (Counters::default(), vec![SwitchSum::default(); Class::COUNT]);
        collected.add_losses(&mut counters, &mut overflow);
        assert_eq!(collected.switch_sums.len(), MOST_SUMS);
        assert_eq!(
            (counters.lost_stack_sums, overflow[Class::TaskBlocked as usize]),
            (2, sum(2))
        );
    }

    #[test]
    fn sums_of_a_stack_that_was_not_kept_say_so() {
        let mut collected = DrainedTables::default();
        let (mut known, mut unknown) = (
            build::sum_key(Class::ThreadBlocked, 0),
            build::sum_key(Class::ThreadBlocked, 0),
        );
        (known.user_stack, unknown.user_stack) = (1, 2);
        let stack: Stack = bytemuck::Zeroable::zeroed();
        collected.add_stack(1, &stack);
        collected.add_switches(known, sum(5));
        collected.add_switches(unknown, sum(6));
        let mut counters = Counters::default();
        collected.settle_stacks(&mut counters);
        (unknown.user_stack, unknown.user_state) = (0, UserStack::TableFull as u32);
        assert_eq!(counters.lost_stacks, 6);
        assert_eq!(
            collected.switch_sums,
            HashMap::from([(known, sum(5)), (unknown, sum(6))])
        );
    }

    #[test]
    fn what_found_no_room_in_a_table_is_added_by_the_length_of_its_record() {
        let mut collected = DrainedTables::default();
        let (mut key, sum) = (build::sum_key(Class::ThreadBlocked, 0), sum(3));
        let known = key;
        key.generation = 1;
        let mut edge = EdgeKey::new(&ctxtrace_common::wakeup::Waker::default(), 7, 8);
        let known_edge = edge;
        edge.generation = 1;
        let waker: WakerStackKey = bytemuck::Zeroable::zeroed();
        for _ in 0..2 {
            collected.add_addition(bytemuck::bytes_of(&Gathered { key, sum }));
            collected.add_addition(bytemuck::bytes_of(&WakerAddition { key: waker, sum }));
            let (what, ns) = (What::Wakeup as u64, 5_000);
            collected.add_addition(bytemuck::bytes_of(&EdgeAddition { key: edge, what, ns }));
        }
        assert_eq!(collected.switch_sums[&known].count, 6);
        assert_eq!(collected.waker_sums[&waker].count, 6);
        let edge = &collected.edges[&known_edge];
        assert_eq!((edge.count, edge.sum_ns), (2, 10_000));
    }

    #[test]
    fn edges_beyond_the_limit_are_summed_and_none_is_lost() {
        let mut collected = DrainedTables::default();
        let mut edge = Edge::EMPTY;
        edge.record(5_000);
        let count = 3 * MOST_EDGES as u32;
        for tid in 0..count {
            let key = EdgeKey::new(&ctxtrace_common::wakeup::Waker::default(), tid + 1, tid + 1);
            collected.add_edge(key, &edge);
        }
        assert!(collected.edges.len() <= 2 * MOST_EDGES + 1);
        assert_eq!(
            collected.edges.values().map(|sums| sums.count).sum::<u64>(),
            u64::from(count)
        );
    }
}
