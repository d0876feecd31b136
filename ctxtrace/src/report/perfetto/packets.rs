//! Packets on their way into the file: encoded, packed, and what they have in common said once.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, Write};

use ctxtrace_common::process::TaskKey;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use prost::Message;

use super::proto::{
    Data, INCREMENTAL_STATE_CLEARED, InternedData, InternedName, NEEDS_INCREMENTAL_STATE, Trace, TracePacket,
    TrackEvent,
};

/// Bytes of packets that are packed together: the reader unpacks them as a whole, so they are not very many.
const PACKED_TOGETHER: usize = 512 << 10;

/// Names that are known to the reader at a time; then it is told to forget them. There may be millions of tasks.
const MOST_NAMES: usize = 1 << 16;

/// Packets with the same number here share what is interned.
const EVENTS_SEQUENCE: u32 = 1;
/// What needs nothing of that kind.
const KERNEL_SEQUENCE: u32 = 2;

/// What a name is the name of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Named {
    /// A task.
    Task(TaskKey),
    /// Anything else: the name itself.
    Text(String),
}

/// Names by number, from 1 on.
struct Interner<K>(HashMap<K, u64>);

impl<K: Hash + Eq> Interner<K> {
    fn iid(&mut self, key: K, into: &mut Vec<InternedName>, text: impl FnOnce() -> String) -> u64 {
        let next = self.0.len() as u64 + 1;
        *self.0.entry(key).or_insert_with(|| {
            into.push(InternedName {
                iid: Some(next),
                name: Some(text()),
            });
            next
        })
    }
}

/// Where packets go. An error is kept until the end, since those who tell events cannot be told to stop.
pub(super) struct Packets<W> {
    to: W,
    buffer: Vec<u8>,
    error: Option<io::Error>,
    event_names: Interner<Named>,
    annotation_names: Interner<&'static str>,
    annotation_values: Interner<&'static str>,
    /// Not told yet.
    fresh: InternedData,
    /// The reader has been told to forget what came before.
    is_cleared: bool,
}

impl<W: Write> Packets<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            buffer: Vec::with_capacity(PACKED_TOGETHER),
            error: None,
            event_names: Interner(HashMap::new()),
            annotation_names: Interner(HashMap::new()),
            annotation_values: Interner(HashMap::new()),
            fresh: InternedData::default(),
            is_cleared: false,
        }
    }

    /// The number of a name of an event; `text` is asked if it has none yet. It holds for the next [`Packets::event`].
    pub(super) fn event_name(&mut self, named: Named, text: impl FnOnce() -> String) -> u64 {
        self.event_names.iid(named, &mut self.fresh.event_names, text)
    }

    /// The same of an annotation.
    pub(super) fn annotation_name(&mut self, name: &'static str) -> u64 {
        let into = &mut self.fresh.debug_annotation_names;
        self.annotation_names.iid(name, into, || name.to_owned())
    }

    /// The same of what an annotation says.
    pub(super) fn annotation_value(&mut self, value: &'static str) -> u64 {
        let into = &mut self.fresh.debug_annotation_string_values;
        self.annotation_values.iid(value, into, || value.to_owned())
    }

    /// An event on a track.
    pub(super) fn event(&mut self, timestamp: u64, event: TrackEvent) {
        let interned = std::mem::take(&mut self.fresh);
        let mut flags = NEEDS_INCREMENTAL_STATE;
        if !self.is_cleared {
            flags |= INCREMENTAL_STATE_CLEARED;
            self.is_cleared = true;
        }
        self.write(TracePacket {
            timestamp: Some(timestamp),
            trusted_packet_sequence_id: Some(EVENTS_SEQUENCE),
            interned_data: (interned != InternedData::default()).then_some(interned),
            sequence_flags: Some(flags),
            data: Some(Data::TrackEvent(event)),
        });
        if self.event_names.0.len() >= MOST_NAMES {
            self.event_names.0.clear();
            self.annotation_names.0.clear();
            self.annotation_values.0.clear();
            self.is_cleared = false;
        }
    }

    /// Anything else.
    pub(super) fn packet(&mut self, timestamp: Option<u64>, data: Data) {
        self.write(TracePacket {
            timestamp,
            trusted_packet_sequence_id: Some(KERNEL_SEQUENCE),
            data: Some(data),
            ..TracePacket::default()
        });
    }

    fn write(&mut self, packet: TracePacket) {
        let trace = Trace { packet: vec![packet] };
        // A vector has room for everything.
        let _ = trace.encode(&mut self.buffer);
        if self.buffer.len() >= PACKED_TOGETHER {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.error.is_none() && !self.buffer.is_empty() {
            self.error = packed(&self.buffer).and_then(|packed| self.to.write_all(&packed)).err();
        }
        self.buffer.clear();
    }

    /// The last packet has been written.
    pub(super) fn end(mut self) -> io::Result<W> {
        self.flush();
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.to),
        }
    }
}

/// A packet that holds these packets.
fn packed(packets: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(packets.len() / 4), Compression::fast());
    encoder.write_all(packets)?;
    let packet = TracePacket {
        data: Some(Data::CompressedPackets(encoder.finish()?)),
        ..TracePacket::default()
    };
    Ok(Trace { packet: vec![packet] }.encode_to_vec())
}
