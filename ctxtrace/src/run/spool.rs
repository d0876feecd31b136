//! The events of a timeline, kept until everything else is known of the run: tasks have names, and programs have been looked
//! at, only when it is over. They lie in a file that has no name, packed, so they need neither memory nor tidying up.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use ctxtrace_common::event::Event;
use zstd::stream::{read, write};

use crate::trace::events::{EventSink, EventSource};

/// The quickest there is: it is done while the target runs.
const ZSTD_LEVEL: i32 = 1;
/// Events that are read at a time.
const BATCH: u64 = 4_096;

/// Takes events, and gives them again.
pub(super) struct Spool {
    to: Option<write::Encoder<'static, BufWriter<File>>>,
    /// Events of the runs that are over.
    runs: Vec<u64>,
    /// Those of the current run so far.
    events: u64,
    /// What went wrong while there was nobody to be told.
    error: Option<io::Error>,
}

impl Spool {
    #[cfg_attr(
        not(any(feature = "parquet", test)),
        expect(dead_code, reason = "only tables want their events later")
    )]
    pub(super) fn begin(file: File) -> io::Result<Self> {
        Ok(Self {
            to: Some(write::Encoder::new(BufWriter::new(file), ZSTD_LEVEL)?),
            runs: Vec::new(),
            events: 0,
            error: None,
        })
    }

    /// A run is over: what comes belongs to the next one.
    pub(super) fn end_of_run(&mut self) {
        self.runs.push(std::mem::take(&mut self.events));
    }

    /// The file, from its beginning.
    fn rewound(&mut self) -> io::Result<File> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let encoder = self
            .to
            .take()
            .ok_or_else(|| io::Error::other("they were read before"))?;
        let mut file = encoder.finish()?.into_inner()?;
        file.rewind()?;
        Ok(file)
    }
}

impl EventSink for Spool {
    fn events(&mut self, batch: &[Event]) {
        let (None, Some(to)) = (&self.error, &mut self.to) else {
            return;
        };
        match to.write_all(bytemuck::cast_slice(batch)) {
            Ok(()) => self.events += batch.len() as u64,
            Err(error) => self.error = Some(error),
        }
    }
}

impl EventSource for Spool {
    fn replay(&mut self, events: &mut dyn FnMut(usize, &[Event])) -> io::Result<()> {
        let mut from = read::Decoder::new(BufReader::new(self.rewound()?))?;
        let mut batch = vec![Event::default(); BATCH as usize];
        for (run, &count) in self.runs.iter().enumerate() {
            let mut left = count;
            while left > 0 {
                let batch = &mut batch[..left.min(BATCH) as usize];
                from.read_exact(bytemuck::cast_slice_mut(batch))?;
                events(run, batch);
                left -= batch.len() as u64;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_given_again_run_by_run() {
        let mut spool = Spool::begin(tempfile::tempfile().expect("a file")).expect("begun");
        let event = |at_ns| Event::switch(at_ns, 0);
        let first: Vec<Event> = (0..BATCH + 7).map(event).collect();
        spool.events(&first);
        spool.end_of_run();
        spool.end_of_run();
        spool.events(&[event(1)]);
        spool.end_of_run();
        let mut runs = vec![Vec::new(); 3];
        let mut give = |run: usize, batch: &[Event]| runs[run].extend_from_slice(batch);
        spool.replay(&mut give).expect("given");
        assert_eq!(runs, [first, vec![], vec![event(1)]]);
        assert!(spool.replay(&mut |_, _| {}).is_err(), "once");
    }

    #[test]
    fn a_full_disk_is_told_afterwards() {
        let full = File::options().write(true).open("/dev/full").expect("there");
        let mut spool = Spool::begin(full).expect("begun");
        for at_ns in 0..100_000_u64 {
            // Nothing that can be packed well.
            spool.events(&[Event::switch(at_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15), at_ns as u32)]);
        }
        spool.end_of_run();
        assert!(spool.replay(&mut |_, _| {}).is_err());
    }
}
