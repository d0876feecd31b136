//! A decoder for Perfetto traces, which checks what must hold in every trace.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;

use flate2::read::ZlibDecoder;
use protobuf::MessageDyn;
use protobuf::text_format::print_to_string_pretty;

use super::{child, children, decode, number, numbers, text};

const SEQ_INCREMENTAL_STATE_CLEARED: i64 = 1;

/// One `sched_switch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodedSwitch {
    pub(crate) cpu: i64,
    pub(crate) at: i64,
    pub(crate) prev: i64,
    pub(crate) prev_comm: String,
    pub(crate) prev_state: i64,
    pub(crate) next: i64,
    pub(crate) next_comm: String,
}

/// One `sched_waking` or `sched_wakeup_new`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodedWakeup {
    pub(crate) at: i64,
    pub(crate) by: i64,
    pub(crate) woken: i64,
    pub(crate) is_new: bool,
}

/// The type of an event on a track, with the value if it is a counter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrackEventKind {
    Begin,
    End,
    Instant,
    Counter(i64),
}

/// One event on a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrackEvent {
    pub(crate) at: i64,
    pub(crate) track: i64,
    pub(crate) kind: TrackEventKind,
    pub(crate) name: String,
    pub(crate) says: Vec<(String, String)>,
    pub(crate) flows: Vec<i64>,
    pub(crate) ending_flows: Vec<i64>,
}

/// A track.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Track {
    pub(crate) name: String,
    /// The process id and the thread id, if the track is that of a thread.
    pub(crate) thread: Option<(i64, i64)>,
    pub(crate) is_counter: bool,
}

/// A slice of a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) track: i64,
    pub(crate) name: String,
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) depth: usize,
}

/// A decoded trace. The lists are in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) switches: Vec<DecodedSwitch>,
    pub(crate) wakeups: Vec<DecodedWakeup>,
    pub(crate) track_events: Vec<TrackEvent>,
    pub(crate) tracks: BTreeMap<i64, Track>,
    /// The process id of each thread in the process trees, by thread id.
    pub(crate) tree: BTreeMap<i64, i64>,
    pub(crate) created: Vec<i64>,
    pub(crate) names: BTreeMap<i64, String>,
    pub(crate) freed: Vec<i64>,
    pub(crate) clocks: BTreeMap<i64, i64>,
    pub(crate) cpus_with_losses: Vec<i64>,
    pub(crate) release: String,
    last_of_cpu: HashMap<i64, i64>,
    named_at: HashMap<i64, i64>,
    interned: HashMap<(&'static str, i64), String>,
    is_cleared: bool,
}

/// Returns the packets of a trace, decompressed.
fn packets(bytes: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    for packet in children(&*decode("perfetto_trace.proto", "Trace", bytes), "packet") {
        let packed = super::field(&*packet, "compressed_packets").get_singular(&*packet);
        let Some(protobuf::reflect::ReflectValueRef::Bytes(packed)) = packed else {
            panic!("the file has a packet that is not compressed");
        };
        let before = unpacked.len();
        ZlibDecoder::new(packed)
            .read_to_end(&mut unpacked)
            .expect("a valid zlib stream");
        assert!(unpacked.len() > before);
    }
    unpacked
}

/// Returns a trace in protobuf's text format.
pub(crate) fn as_text(bytes: &[u8]) -> String {
    print_to_string_pretty(&*decode("perfetto_trace.proto", "Trace", &packets(bytes)))
}

impl Trace {
    /// Decodes a file. Panics if the trace violates a rule that every trace must follow.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut trace = Self::default();
        for packet in children(&*decode("perfetto_trace.proto", "Trace", &packets(bytes)), "packet") {
            trace.packet(&*packet);
        }
        trace.check();
        trace
    }

    fn packet(&mut self, packet: &dyn MessageDyn) {
        let at = number(packet, "timestamp");
        self.intern(packet);
        if let Some(bundle) = child(packet, "ftrace_events") {
            self.bundle(&*bundle);
        }
        if let Some(tree) = child(packet, "process_tree") {
            for thread in children(&*tree, "threads") {
                let id = |name| number(&*thread, name).expect("an id");
                self.tree.insert(id("tid"), id("tgid"));
            }
        }
        if let Some(snapshot) = child(packet, "clock_snapshot") {
            for clock in children(&*snapshot, "clocks") {
                let field = |name| number(&*clock, name).expect("the field is set");
                self.clocks.insert(field("clock_id"), field("timestamp"));
            }
        }
        if let Some(system) = child(packet, "system_info") {
            let utsname = child(&*system, "utsname").expect("the field is set");
            self.release = text(&*utsname, "release").expect("the field is set");
        }
        if let Some(track) = child(packet, "track_descriptor") {
            let thread = child(&*track, "thread");
            let id = |name| thread.as_ref().map(|thread| number(&**thread, name).expect("an id"));
            let described = Track {
                name: text(&*track, "name").unwrap_or_default(),
                thread: id("pid").zip(id("tid")),
                is_counter: child(&*track, "counter").is_some(),
            };
            let uuid = number(&*track, "uuid").expect("a number");
            assert_eq!(self.tracks.insert(uuid, described), None, "a track is described twice");
        }
        if let Some(event) = child(packet, "track_event") {
            self.track_event(at.expect("a time"), &*event);
        }
    }

    /// Stores the strings that a packet interns.
    fn intern(&mut self, packet: &dyn MessageDyn) {
        if number(packet, "sequence_flags").unwrap_or(0) & SEQ_INCREMENTAL_STATE_CLEARED != 0 {
            self.interned.clear();
            self.is_cleared = true;
        }
        let Some(data) = child(packet, "interned_data") else {
            return;
        };
        for (kind, text_field) in [
            ("event_names", "name"),
            ("debug_annotation_names", "name"),
            ("debug_annotation_string_values", "str"),
        ] {
            for entry in children(&*data, kind) {
                let iid = number(&*entry, "iid").expect("a number");
                let name = text(&*entry, text_field).expect("a text");
                assert_ne!(iid, 0);
                assert_eq!(self.interned.insert((kind, iid), name), None, "an id is interned twice");
            }
        }
    }

    fn interned(&self, kind: &'static str, iid: i64) -> String {
        assert!(
            self.is_cleared,
            "an interned id is used before the incremental state was cleared"
        );
        self.interned
            .get(&(kind, iid))
            .expect("an id is interned before it is used")
            .clone()
    }

    fn bundle(&mut self, bundle: &dyn MessageDyn) {
        let cpu = number(bundle, "cpu").expect("a CPU");
        if number(bundle, "lost_events") == Some(1) {
            self.cpus_with_losses.push(cpu);
        }
        for event in children(bundle, "event") {
            let at = number(&*event, "timestamp").expect("a time");
            let before = self.last_of_cpu.insert(cpu, at).unwrap_or(0);
            assert!(at >= before, "CPU {cpu}: an event at {at} follows one at {before}");
            let by = number(&*event, "pid").expect("the thread on the CPU");
            self.kernel_event(cpu, at, by, &*event);
        }
    }

    fn kernel_event(&mut self, cpu: i64, at: i64, by: i64, event: &dyn MessageDyn) {
        let id = |of: &dyn MessageDyn, name| number(of, name).expect("an id");
        let name = |of: &dyn MessageDyn, name| text(of, name).expect("a name");
        if let Some(switch) = child(event, "sched_switch") {
            let prev = id(&*switch, "prev_pid");
            assert_eq!(by, prev);
            self.switches.push(DecodedSwitch {
                cpu,
                at,
                prev,
                prev_comm: name(&*switch, "prev_comm"),
                prev_state: id(&*switch, "prev_state"),
                next: id(&*switch, "next_pid"),
                next_comm: name(&*switch, "next_comm"),
            });
        }
        for (kind, is_new) in [("sched_waking", false), ("sched_wakeup_new", true)] {
            if let Some(wakeup) = child(event, kind) {
                let woken = id(&*wakeup, "pid");
                self.wakeups.push(DecodedWakeup { at, by, woken, is_new });
            }
        }
        if let Some(created) = child(event, "task_newtask") {
            self.created.push(id(&*created, "pid"));
            self.name(at, id(&*created, "pid"), name(&*created, "comm"));
        }
        if let Some(rename) = child(event, "task_rename") {
            self.name(at, id(&*rename, "pid"), name(&*rename, "newcomm"));
        }
        if let Some(free) = child(event, "sched_process_free") {
            self.freed.push(id(&*free, "pid"));
        }
    }

    /// Sets the name of a thread unless a later name is known: the events of different CPUs are not in the order of time in the
    /// file.
    fn name(&mut self, at: i64, thread: i64, name: String) {
        let before = self.named_at.entry(thread).or_insert(at);
        if *before <= at {
            *before = at;
            self.names.insert(thread, name);
        }
    }

    fn track_event(&mut self, at: i64, event: &dyn MessageDyn) {
        let kind = match number(event, "type").expect("a type") {
            1 => TrackEventKind::Begin,
            2 => TrackEventKind::End,
            3 => TrackEventKind::Instant,
            4 => TrackEventKind::Counter(number(event, "counter_value").expect("a value")),
            other => panic!("unknown event type {other}"),
        };
        let name = match number(event, "name_iid") {
            Some(iid) => self.interned("event_names", iid),
            None => text(event, "name").unwrap_or_default(),
        };
        let says = children(event, "debug_annotations").into_iter().map(|annotation| {
            let by_number = |field, kind| number(&*annotation, field).map(|iid| self.interned(kind, iid));
            let name = by_number("name_iid", "debug_annotation_names").or_else(|| text(&*annotation, "name"));
            let value = by_number("string_value_iid", "debug_annotation_string_values");
            let value = value.or_else(|| text(&*annotation, "string_value"));
            (name.expect("a name"), value.expect("a value"))
        });
        let says = says.collect();
        self.track_events.push(TrackEvent {
            at,
            track: number(event, "track_uuid").expect("a track"),
            kind,
            name,
            says,
            flows: numbers(event, "flow_ids"),
            ending_flows: numbers(event, "terminating_flow_ids"),
        });
    }

    /// Returns the events on tracks in the order of time; events with the same time are in the order of the file.
    pub(crate) fn by_time(&self) -> Vec<&TrackEvent> {
        let mut events: Vec<&TrackEvent> = self.track_events.iter().collect();
        events.sort_by_key(|event| event.at);
        events
    }

    /// Returns the slices of all tracks in the order of their ends. Panics if a slice has no beginning or no end.
    pub(crate) fn slices(&self) -> Vec<Slice> {
        let mut open: HashMap<i64, Vec<&TrackEvent>> = HashMap::new();
        let mut slices = Vec::new();
        for event in self.by_time() {
            let stack = open.entry(event.track).or_default();
            match event.kind {
                TrackEventKind::Begin => stack.push(event),
                TrackEventKind::End => {
                    let begin = stack.pop().expect("every end has a beginning");
                    slices.push(Slice {
                        track: event.track,
                        name: begin.name.clone(),
                        start: begin.at,
                        end: event.at,
                        depth: stack.len(),
                    });
                }
                TrackEventKind::Instant | TrackEventKind::Counter(_) => {}
            }
        }
        assert!(open.values().all(Vec::is_empty), "a slice without end");
        slices
    }

    /// Returns the slices on the tracks of threads.
    pub(crate) fn task_slices(&self) -> Vec<Slice> {
        let mut slices = self.slices();
        slices.retain(|slice| self.tracks[&slice.track].thread.is_some());
        slices
    }

    /// Returns the events of each flow in the order of time, by the id of the flow.
    pub(crate) fn flows(&self) -> BTreeMap<i64, Vec<&TrackEvent>> {
        let mut flows: BTreeMap<i64, Vec<&TrackEvent>> = BTreeMap::new();
        for event in self.by_time() {
            for &flow in event.flows.iter().chain(&event.ending_flows) {
                flows.entry(flow).or_default().push(event);
            }
        }
        flows
    }

    fn check(&self) {
        for event in &self.track_events {
            let track = self.tracks.get(&event.track).expect("every track is described");
            assert_eq!(
                track.is_counter,
                matches!(event.kind, TrackEventKind::Counter(_)),
                "{event:?}"
            );
        }
        self.slices();
        self.check_order();
        for (flow, events) in self.flows() {
            let ends = events.iter().filter(|event| event.ending_flows.contains(&flow));
            assert_eq!(ends.count(), 1, "flow {flow}: {events:?}");
            assert!(events.len() >= 2, "flow {flow} has one end: {events:?}");
            let last = events.last().expect("there are at least two events");
            assert!(
                last.ending_flows.contains(&flow),
                "flow {flow} goes on after its end: {events:?}"
            );
            assert!(
                events
                    .iter()
                    .all(|event| matches!(event.kind, TrackEventKind::Begin | TrackEventKind::Instant))
            );
        }
        let mut freed = HashSet::new();
        for &thread in &self.freed {
            assert!(
                self.tree.contains_key(&thread) || self.created.contains(&thread),
                "thread {thread} ends, but is neither in a process tree nor created"
            );
            freed.insert(thread);
        }
    }

    /// Checks that the events of each counter and the slices of each thread are in the order of time in the file.
    fn check_order(&self) {
        let mut last: HashMap<i64, i64> = HashMap::new();
        for event in &self.track_events {
            let track = &self.tracks[&event.track];
            let in_order = match event.kind {
                TrackEventKind::Counter(_) => true,
                TrackEventKind::Begin | TrackEventKind::End => track.thread.is_some(),
                TrackEventKind::Instant => false,
            };
            if in_order {
                let before = last.insert(event.track, event.at).unwrap_or(i64::MIN);
                assert!(event.at >= before, "{track:?}: {event:?} follows an event at {before}");
            }
        }
    }
}
