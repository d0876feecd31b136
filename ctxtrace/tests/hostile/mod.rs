//! Forged captures: real captures, taken apart into their blocks and values, altered, and put together again with valid checksums.
//! The tests and the fuzz targets share this module.

use ciborium::Value;

/// The kind of blocks with the state of a run, as `docs/CAPTURES.md` numbers them.
pub(crate) const STATE: u32 = 3;
/// The kind of blocks with the names of functions.
pub(crate) const NAMES: u32 = 4;
/// The kind of blocks with events.
pub(crate) const EVENTS: u32 = 5;
/// The kind of empty blocks at the end of a run.
pub(crate) const END_OF_RUN: u32 = 6;
/// The kind of blocks with the counts of the events of a run.
pub(crate) const PLAYED: u32 = 10;
/// The kind of blocks with polls.
const POLLS: u32 = 9;
/// The size of the magic number and the version at the beginning of a capture, in bytes.
const MAGIC_AND_VERSION: usize = 16;
/// The size of the header of a block, in bytes.
const HEADER: usize = 24;
/// The size of an event, in bytes.
pub(crate) const EVENT: usize = 40;

/// The contents of a block.
#[derive(Clone, Debug)]
pub(crate) enum Contents {
    /// CBOR.
    Value(Value),
    /// Events or polls.
    Bytes(Vec<u8>),
}

/// One block of a capture.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The kind of the block, as `docs/CAPTURES.md` numbers them.
    pub(crate) kind: u32,
    /// The contents of the block.
    pub(crate) contents: Contents,
}

/// A capture, taken apart into its blocks.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// The magic number and the version.
    begin: Vec<u8>,
    /// The blocks in the order of the file.
    pub(crate) blocks: Vec<Block>,
}

impl Parts {
    /// Takes a valid capture apart. Panics if the capture is damaged.
    pub(crate) fn read(capture: &[u8]) -> Self {
        let (begin, mut rest) = capture.split_at(MAGIC_AND_VERSION);
        let mut blocks = Vec::new();
        while let Some((header, after)) = rest.split_at_checked(HEADER) {
            let number =
                |index: usize| u32::from_le_bytes(header[4 * index..4 * index + 4].try_into().expect("four bytes"));
            let (kind, stored, unpacked) = (number(1), number(2) as usize, number(3) as usize);
            let bytes = zstd::bulk::decompress(&after[..stored], unpacked).expect("a valid zstd frame");
            let contents = match ciborium::from_reader(bytes.as_slice()) {
                Ok(value) if kind != EVENTS && kind != POLLS && !bytes.is_empty() => Contents::Value(value),
                _ => Contents::Bytes(bytes),
            };
            blocks.push(Block { kind, contents });
            rest = &after[stored..];
        }
        Self {
            begin: begin.to_vec(),
            blocks,
        }
    }

    /// Returns the capture, put together again with valid checksums.
    pub(crate) fn written(&self) -> Vec<u8> {
        let mut capture = self.begin.clone();
        for block in &self.blocks {
            let bytes = match &block.contents {
                Contents::Bytes(bytes) => bytes.clone(),
                Contents::Value(value) => {
                    let mut bytes = Vec::new();
                    ciborium::into_writer(value, &mut bytes).expect("the value is written to memory");
                    bytes
                }
            };
            let packed = zstd::bulk::compress(&bytes, 1).expect("the data is compressed");
            let mut header = b"BLCK".to_vec();
            for number in [
                block.kind,
                packed.len() as u32,
                bytes.len() as u32,
                crc32fast::hash(&packed),
            ] {
                header.extend(number.to_le_bytes());
            }
            header.extend(crc32fast::hash(&header).to_le_bytes());
            capture.extend(header);
            capture.extend(packed);
        }
        capture
    }

    /// Returns the value of the last block of a kind. Panics if there is no such block or it has no value.
    pub(crate) fn value(&mut self, kind: u32) -> &mut Value {
        let block = self.blocks.iter_mut().rev().find(|block| block.kind == kind);
        match block.map(|block| &mut block.contents) {
            Some(Contents::Value(value)) => value,
            _ => panic!("the capture has no block of kind {kind} with a value"),
        }
    }

    /// Alters the capture in up to eight places.
    pub(crate) fn mutate(&mut self, choices: &mut Choices<'_>) {
        for _ in 0..=choices.below(8) {
            let at = choices.below(self.blocks.len());
            match choices.below(16) {
                0 => drop(self.blocks.remove(at)),
                1 => self.blocks.insert(at, self.blocks[at].clone()),
                2 => {
                    let other = choices.below(self.blocks.len());
                    self.blocks.swap(at, other);
                }
                _ => {
                    let block = &mut self.blocks[at];
                    match (&mut block.contents, block.kind) {
                        (Contents::Value(value), _) => mutate_somewhere(value, choices),
                        (Contents::Bytes(bytes), EVENTS) => mutate_events(bytes, choices),
                        (Contents::Bytes(bytes), _) => mutate_words(bytes, choices),
                    }
                }
            }
            if self.blocks.is_empty() {
                return;
            }
        }
    }
}

/// Returns the value of a field of a map. Panics if there is none.
pub(crate) fn field<'a>(of: &'a mut Value, name: &str) -> &'a mut Value {
    let Value::Map(entries) = of else {
        panic!("the value that should have the field {name} is not a map")
    };
    let entry = entries.iter_mut().find(|(key, _)| key.as_text() == Some(name));
    &mut entry.unwrap_or_else(|| panic!("there is no field {name}")).1
}

/// Returns the elements of an array. Panics if the value is not an array.
pub(crate) fn list(of: &mut Value) -> &mut Vec<Value> {
    of.as_array_mut().expect("an array")
}

/// A source of choices, which are read from bytes of a fuzzer or a random number generator. After the last byte all choices are 0.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// Returns a number below `most`, or 0 if `most` is 0.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % most.max(1)
    }

    fn number(&mut self, was: u64) -> u64 {
        const EXTREMES: [u64; 12] = [
            0,
            1,
            2,
            100,
            1 << 20,
            1 << 31,
            u32::MAX as u64,
            1 << 53,
            i64::MAX as u64,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.below(8) {
            0 => was.wrapping_add(1),
            1 => was.wrapping_sub(1),
            2 => was.wrapping_mul(1 << self.below(64)),
            3 => self.word(),
            4 => self.word() >> self.below(64),
            _ => EXTREMES[self.below(EXTREMES.len())],
        }
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 10] = [
            "",
            "\u{1b}]0;title\u{7}",
            "\u{9b}2J",
            "a\r\nb\u{202e}c\u{2028}d",
            "<script>alert(1)</script>",
            "a;b 7",
            "\u{1b}[1mbold\u{1b}[0m",
            "@user #1 https://example.org `x` |*y*|",
            "tokio::runtime::task::raw::poll",
            "\0",
        ];
        match self.below(12) {
            10 => "long ".repeat(1 << self.below(14)),
            11 => "\u{1f600}".repeat(1 << self.below(10)),
            known => TEXTS[known].to_owned(),
        }
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Map(entries) => {
            1 + entries
                .iter()
                .map(|(key, value)| size_of_key(key) + size(value))
                .sum::<usize>()
        }
        _ => 1,
    }
}

/// Returns the number of values in a key that may be altered. Names of fields are not altered.
fn size_of_key(key: &Value) -> usize {
    if key.is_text() { 0 } else { size(key) }
}

fn mutate_somewhere(value: &mut Value, choices: &mut Choices<'_>) {
    let mut left = choices.below(size(value));
    mutate_at(value, &mut left, choices);
}

fn mutate_at(value: &mut Value, left: &mut usize, choices: &mut Choices<'_>) -> bool {
    if *left == 0 {
        mutate_value(value, choices);
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().any(|value| mutate_at(value, left, choices)),
        Value::Map(entries) => entries
            .iter_mut()
            .any(|(key, value)| !key.is_text() && mutate_at(key, left, choices) || mutate_at(value, left, choices)),
        _ => false,
    }
}

fn mutate_value(value: &mut Value, choices: &mut Choices<'_>) {
    match value {
        Value::Integer(number) => {
            let was = u64::try_from(*number).unwrap_or(0);
            *value = Value::from(choices.number(was));
        }
        Value::Text(_) => *value = Value::from(choices.text()),
        Value::Bool(flag) => *flag = !*flag,
        Value::Null => *value = Value::from(choices.word()),
        Value::Float(_) => *value = Value::from([0.0, -1.0, f64::MAX, f64::INFINITY, f64::NAN][choices.below(5)]),
        Value::Array(list) if !list.is_empty() => {
            let at = choices.below(list.len());
            match choices.below(4) {
                0 => drop(list.remove(at)),
                1 => list.truncate(at),
                2 => {
                    let other = choices.below(list.len());
                    list.swap(at, other);
                }
                _ => {
                    let again = vec![list[at].clone(); 1 << choices.below(8)];
                    list.splice(at..at, again);
                }
            }
        }
        Value::Map(entries) if !entries.is_empty() => {
            let at = choices.below(entries.len());
            match choices.below(3) {
                0 if !entries[at].0.is_text() => drop(entries.remove(at)),
                _ => mutate_somewhere(&mut entries[at].1, choices),
            }
        }
        _ => {}
    }
}

/// The offset and the size of each field of an event, in bytes. The first field, the time, is listed twice so that it is chosen
/// more often.
const FIELDS: [(usize, usize); 12] = [
    (0, 8),
    (0, 8),
    (8, 8),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 2),
    (34, 1),
    (35, 1),
    (36, 1),
    (37, 1),
    (38, 1),
];

fn mutate_events(bytes: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let events = bytes.len() / EVENT;
    if events == 0 {
        return;
    }
    let at = EVENT * choices.below(events);
    match choices.below(8) {
        0 => drop(bytes.drain(at..at + EVENT)),
        1 => {
            let again = bytes[at..at + EVENT].repeat(1 << choices.below(12));
            bytes.splice(at..at, again);
        }
        2 => {
            // Shift the time of this event and of all later ones.
            let shift = choices.word() >> choices.below(64);
            for event in bytes[at..].chunks_exact_mut(EVENT) {
                let time = u64::from_le_bytes(event[..8].try_into().expect("eight bytes"));
                event[..8].copy_from_slice(&time.wrapping_add(shift).to_le_bytes());
            }
        }
        3 => {
            let other = EVENT * choices.below(events);
            for byte in 0..EVENT {
                bytes.swap(at + byte, other + byte);
            }
        }
        _ => {
            let (begin, length) = FIELDS[choices.below(FIELDS.len())];
            let field = &mut bytes[at + begin..at + begin + length];
            let mut word = [0; 8];
            word[..length].copy_from_slice(field);
            let number = choices.number(u64::from_le_bytes(word)).to_le_bytes();
            field.copy_from_slice(&number[..length]);
        }
    }
}

fn mutate_words(bytes: &mut [u8], choices: &mut Choices<'_>) {
    let at = 8 * choices.below(bytes.len() / 8);
    if let Some(word) = bytes.get_mut(at..at + 8) {
        let number = choices.number(u64::from_le_bytes(word.try_into().expect("eight bytes")));
        word.copy_from_slice(&number.to_le_bytes());
    }
}
