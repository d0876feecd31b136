//! Writes packets to the file: they are encoded and compressed, and strings that repeat are interned.

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

/// Packets are compressed together when they exceed this many bytes. A reader must decompress them as a whole, so the number is
/// moderate.
const PACKED_TOGETHER: usize = 512 << 10;

/// Maximum number of interned names of events. When it is reached, all interned strings are cleared, because there may be
/// millions of tasks.
const MOST_NAMES: usize = 1 << 16;

/// Sequence id of the packets with track events. Packets of one sequence share interned strings.
const EVENTS_SEQUENCE: u32 = 1;
/// Sequence id of all other packets, which use no interned strings.
const KERNEL_SEQUENCE: u32 = 2;

/// The key of an interned name of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Named {
    /// The name of a task.
    Task(TaskKey),
    /// Any other name, which is its own key.
    Text(String),
}

/// Numbers of interned strings, from 1.
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

/// The sink of packets. An error is kept until the end, because the source of the events cannot be stopped.
pub(super) struct Packets<W> {
    to: W,
    buffer: Vec<u8>,
    error: Option<io::Error>,
    event_names: Interner<Named>,
    annotation_names: Interner<&'static str>,
    annotation_values: Interner<&'static str>,
    /// Interned strings that have not been written yet.
    fresh: InternedData,
    /// Whether a packet has been written that clears the reader's interned strings. The first packet of the sequence must do
    /// that.
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

    /// Returns the number of an event's name. `text` is called if the name has no number yet. The number is valid for the next
    /// call of [`Packets::event`] only.
    pub(super) fn event_name(&mut self, named: Named, text: impl FnOnce() -> String) -> u64 {
        self.event_names.iid(named, &mut self.fresh.event_names, text)
    }

    /// Returns the number of an annotation's name, valid as in [`Packets::event_name`].
    pub(super) fn annotation_name(&mut self, name: &'static str) -> u64 {
        let into = &mut self.fresh.debug_annotation_names;
        self.annotation_names.iid(name, into, || name.to_owned())
    }

    /// Returns the number of an annotation's value, valid as in [`Packets::event_name`].
    pub(super) fn annotation_value(&mut self, value: &'static str) -> u64 {
        let into = &mut self.fresh.debug_annotation_string_values;
        self.annotation_values.iid(value, into, || value.to_owned())
    }

    /// Writes an event on a track.
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

    /// Writes any other packet.
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
        // Encoding to a vector cannot fail.
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

    /// Writes what is still in the buffer, and returns the first error that occurred.
    pub(super) fn end(mut self) -> io::Result<W> {
        self.flush();
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.to),
        }
    }
}

/// Compresses encoded packets into a packet that contains them.
fn packed(packets: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(packets.len() / 4), Compression::fast());
    encoder.write_all(packets)?;
    let packet = TracePacket {
        data: Some(Data::CompressedPackets(encoder.finish()?)),
        ..TracePacket::default()
    };
    Ok(Trace { packet: vec![packet] }.encode_to_vec())
}
