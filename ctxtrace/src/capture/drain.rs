//! What has been brought home of the kernel's tables, and how they are emptied while the run goes on.
//!
//! A table that fills would lose what comes next. So when a quarter is full its elements are taken over here, where there is more room,
//! and deleted there. No count is lost in between: `ctxtrace_common::table` says how. What finds no room there meanwhile comes through a
//! ring, piece by piece. The room here is bounded too; beyond it
//! sums are kept by their class, or by who was woken, and what is distinguished no longer is counted.

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
use crate::trace::wakeups::{EdgeSums, others};

/// Sums of switch-outs, and of wakeups by stacks, that are distinguished: some 100 bytes each. Beyond them switch-outs are summed by
/// class, as `lost.stack_sums` counts.
const MOST_SUMS: usize = 1 << 19;
/// A table is emptied when one in so many of its places is taken. The rest is room for what comes until it is empty.
const WAKE_AT: u32 = 4;
/// Stacks that are kept. Switch-outs with another one are counted by `lost.stacks`.
const MOST_STACKS: usize = 1 << 19;
/// Frames of all stacks together, 8 bytes each.
const MOST_FRAMES: usize = 1 << 24;
/// Edges that are distinguished; further ones are summed by the process that was woken, and beyond as many again by nothing else.
const MOST_EDGES: usize = 1 << 16;
/// Tasks whose hits are distinguished.
const MOST_HITS: usize = 1 << 16;

/// What has been brought home.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    pub(super) stacks: HashMap<u64, Arc<[u64]>>,
    frames: usize,
    pub(super) switch_sums: HashMap<SumKey, SwitchSum>,
    /// By the number of the class: what found no room in `switch_sums`.
    overflow: [SwitchSum; Class::COUNT],
    pub(super) waker_sums: HashMap<WakerStackKey, SwitchSum>,
    pub(super) edges: HashMap<EdgeKey, EdgeSums>,
    pub(super) hits: HashMap<TaskKey, u64>,
    lost_stack_sums: u64,
    lost_wakeup_edges: u64,
    lost_tasks: u64,
}

impl Collected {
    /// Adds a stack; of one that is known nothing changes.
    fn add_stack(&mut self, key: u64, stack: &Stack) {
        let depth = (stack.depth as usize).min(stack.frames.len());
        if self.stacks.len() >= MOST_STACKS || self.frames + depth > MOST_FRAMES || self.stacks.contains_key(&key) {
            return;
        }
        self.frames += depth;
        self.stacks.insert(key, stack.frames[..depth].into());
    }

    /// Adds switch-outs that are alike.
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

    /// Adds what found no room in its table, as it comes out of the ring.
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

    /// Sums of which a stack was not kept say so, and are counted.
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

    /// Adds what found no room here to what found none in the kernel.
    pub(super) fn add_losses(&self, counters: &mut Counters, overflow: &mut [SwitchSum]) {
        counters.lost_stack_sums += self.lost_stack_sums;
        counters.lost_wakeup_edges += self.lost_wakeup_edges;
        counters.lost_tasks += self.lost_tasks;
        for (sum, more) in overflow.iter_mut().zip(self.overflow) {
            *sum += more;
        }
    }

    /// Adds everything that is in the tables, which stays there. To be called when no program runs, or where a moment's
    /// inexactness does not matter.
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

/// The value of a key, begun if there is room for it.
fn entry<K: Eq + std::hash::Hash, V: Default>(map: &mut HashMap<K, V>, key: K, most: usize) -> Option<&mut V> {
    if map.len() >= most && !map.contains_key(&key) {
        return None;
    }
    Some(map.entry(key).or_default())
}

/// The tables with generations.
const WITH_GENERATIONS: [Table; 4] = [Table::SwitchSums, Table::WakerSums, Table::Edges, Table::Hits];

/// Empties the tables.
pub(super) struct Drainer {
    /// Whether the kernel can be asked to wait until programs have ended.
    can_wait: bool,
}

impl Drainer {
    /// Tells the kernel side at how many elements to wake this process. `ended_bytes` is the size of the ring of ended threads.
    pub(super) fn begin(ebpf: &mut Ebpf, ended_bytes: u32) -> Result<Self> {
        let can_wait = membarrier(libc::MEMBARRIER_CMD_QUERY) & i64::from(libc::MEMBARRIER_CMD_GLOBAL) != 0;
        for table in WITH_GENERATIONS.into_iter().chain([Table::Stacks]) {
            let capacity = capacity(ebpf, name(table))?;
            // A table of one element is not used.
            let drains = capacity > 1 && (can_wait || table == Table::Stacks);
            let wake_at = if drains { capacity.div_ceil(WAKE_AT) } else { 0 };
            store(ebpf, table, 0, wake_at.into())?;
        }
        store(ebpf, Table::Ended, 0, u64::from(ended_bytes / 2))?;
        Ok(Self { can_wait })
    }

    /// Brings home what is in tables that hold as much as was to wake this process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses. What is not brought home stays where it is.
    pub(super) fn drain(&self, ebpf: &mut Ebpf, into: &mut Collected) -> Result<()> {
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
            // What is there is brought home when its generation is the old one again.
            return Ok(());
        }
        for (table, TableState { generation: old, .. }) in full {
            // There is no ring behind the table of stacks, so it is not left alone for longer than one step takes.
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

/// Whether a table holds as much as was to wake this process.
fn is_due(state: TableState) -> bool {
    state.wake_at > 0 && state.made >= state.wake_at
}

/// Brings home every stack, if there are enough of them.
fn drain_stacks(ebpf: &mut Ebpf, into: &mut Collected) -> Result<()> {
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

/// Stores the state of a table in which nothing was made yet.
fn store(ebpf: &mut Ebpf, table: Table, generation: u64, wake_at: u64) -> Result<()> {
    let state = TableState {
        generation,
        wake_at,
        ..TableState::default()
    };
    let map = ebpf.map_mut("TABLES").ok_or_else(|| missing("TABLES"))?;
    Array::<_, Wire<TableState>>::try_from(map)
        .and_then(|mut map| map.set(table as u32, Wire(state), 0))
        .map_err(refused("say how full a table may be"))
}

fn capacity(ebpf: &Ebpf, name: &'static str) -> Result<u32> {
    let Some(Map::HashMap(map)) = ebpf.map(name) else {
        return Err(missing(name));
    };
    map.info()
        .map(|info| info.max_entries())
        .map_err(refused("ask for the size of a BPF map"))
}

/// Takes over every stack. One that is needed again is walked and stored again; a stack never changes.
fn take_stacks(ebpf: &Ebpf, into: &mut Collected) -> Result<()> {
    let table = hash_table::<u64, Stack>(ebpf, "STACKS")?;
    batch::take(table, |key, stack: &Stack| into.add_stack(key, stack)).map_err(Error::system("emptying a BPF map"))
}

/// Takes over every element of a generation that programs leave alone.
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
    // Whatever has been added here must not be there the next time.
    let deleted = batch::delete(table, &taken);
    read.and(deleted).map_err(Error::system("emptying a BPF map"))
}

/// A hash table with keys and values of these types.
fn hash_table<'a, K: bytemuck::Pod, V: bytemuck::Pod>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>> {
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    // aya compares the sizes.
    BpfHashMap::<_, Wire<K>, Wire<V>>::try_from(map).map_err(refused("open a BPF map"))?;
    match map {
        Map::HashMap(map) => Ok(map.fd().as_fd()),
        _ => Err(missing(name)),
    }
}

/// Every element of a table.
pub(super) fn entries<K: bytemuck::Pod, V: bytemuck::Pod>(ebpf: &Ebpf, name: &'static str) -> Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    batch::read(hash_table::<K, V>(ebpf, name)?, |key, value: &V| {
        all.push((key, *value));
    })
    .map_err(Error::system("reading a BPF map"))?;
    Ok(all)
}

/// `membarrier(2)`; `MEMBARRIER_CMD_GLOBAL` returns when every RCU read section that has begun has ended
/// (kernel: `kernel/sched/membarrier.c`, `synchronize_rcu()`), so every BPF program too.
fn membarrier(command: libc::c_int) -> i64 {
    // SAFETY: the system call takes three numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

#[cfg(test)]
mod tests {
    use ctxtrace_common::wakeup::What;

    use super::*;
    use crate::trace::build;

    fn sum(count: u64) -> SwitchSum {
        SwitchSum {
            count,
            off_cpu_ns: 10 * count,
        }
    }

    #[test]
    fn sums_of_one_key_that_come_in_parts_are_added_up() {
        let mut collected = Collected::default();
        let key = build::sum_key(Class::ThreadBlocked, 0);
        for count in [3, 4] {
            collected.add_switches(key, sum(count));
        }
        assert_eq!(collected.switch_sums[&key], sum(7));
    }

    #[test]
    fn what_finds_no_room_is_in_its_class_and_counted() {
        let mut collected = Collected::default();
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
        let mut collected = Collected::default();
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
        let mut collected = Collected::default();
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
        let mut collected = Collected::default();
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
