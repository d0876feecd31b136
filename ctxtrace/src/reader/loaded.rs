//! Bytes and pointers of an executable by link-time address, that is, without the load offset of the running process.

use std::cell::OnceCell;
use std::collections::HashMap;

use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader as _, Rela as _, SectionHeader as _};

/// The loaded segments of an ELF file.
pub(super) struct Loaded<'a> {
    bytes: &'a [u8],
    segments: Vec<Segment>,
    /// Pointers that the loader fills in, by their addresses. In the file most of them are zero.
    relocated: OnceCell<HashMap<u64, u64>>,
}

struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

impl<'a> Loaded<'a> {
    /// Creates the view of an ELF file. If the bytes are not a valid ELF file, there are no segments.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let file = ElfFile64::<LittleEndian>::parse(bytes).ok();
        let headers = file.iter().flat_map(ElfFile64::elf_program_headers);
        let loaded = headers.filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD);
        let segments = loaded.map(|segment| {
            let (offset, size) = segment.file_range(LittleEndian);
            Segment {
                offset,
                size,
                address: segment.p_vaddr(LittleEndian),
            }
        });
        Self {
            bytes,
            segments: segments.collect(),
            relocated: OnceCell::new(),
        }
    }

    /// A program with one segment at `address` and without relocations.
    #[cfg(test)]
    pub(super) fn of_segment(bytes: &'a [u8], address: u64) -> Self {
        let segment = Segment {
            offset: 0,
            size: bytes.len() as u64,
            address,
        };
        Self {
            bytes,
            segments: vec![segment],
            relocated: OnceCell::from(HashMap::new()),
        }
    }

    /// The same program with relocations: the address of each pointer, and its value.
    #[cfg(test)]
    pub(super) fn with_relocations(mut self, pointers: HashMap<u64, u64>) -> Self {
        self.relocated = OnceCell::from(pointers);
        self
    }

    /// The address of the byte at an offset of the file.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = offset.checked_sub(segment.offset)?;
            (inside < segment.size).then(|| segment.address.checked_add(inside))?
        })
    }

    /// The offset in the file of the byte at an address.
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = address.checked_sub(segment.address)?;
            (inside < segment.size).then(|| segment.offset.checked_add(inside))?
        })
    }

    /// The bytes from an address on, at most `most`; `None` if the file has no loaded byte at the address.
    pub(super) fn at(&self, address: u64, most: usize) -> Option<&'a [u8]> {
        let segment = self.segments.iter().find(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|inside| inside < segment.size)
        })?;
        let inside = address - segment.address;
        let length = usize::try_from(segment.size - inside).ok()?.min(most);
        let start = usize::try_from(segment.offset.checked_add(inside)?).ok()?;
        let rest = self.bytes.get(start..)?;
        rest.get(..length.min(rest.len()))
    }

    /// The 8-byte word at an address, as the program would see it if loaded without an offset.
    pub(super) fn word(&self, address: u64) -> Option<u64> {
        if let Some(&pointer) = self.relocated().get(&address) {
            return Some(pointer);
        }
        Some(u64::from_le_bytes(*self.at(address, 8)?.first_chunk()?))
    }

    /// The addresses, multiples of 8, of all words with this value.
    pub(super) fn places_of(&self, pointer: u64) -> Vec<u64> {
        let relocated = self.relocated().iter();
        let relocated = relocated.filter_map(|(&address, &to)| (to == pointer && address % 8 == 0).then_some(address));
        let wanted = pointer.to_le_bytes();
        let in_file = self.segments.iter().flat_map(|segment| {
            let part = self.at(segment.address, usize::MAX).unwrap_or_default();
            let found = memchr::memmem::find_iter(part, &wanted);
            let addresses = found.filter_map(|inside| segment.address.checked_add(inside as u64));
            addresses.filter(|address| address % 8 == 0).collect::<Vec<u64>>()
        });
        let mut places: Vec<u64> = relocated.chain(in_file).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    fn relocated(&self) -> &HashMap<u64, u64> {
        self.relocated.get_or_init(|| {
            let Ok(file) = ElfFile64::<LittleEndian>::parse(self.bytes) else {
                return HashMap::new();
            };
            let sections = file.elf_section_table().iter();
            let tables = sections.filter_map(|section| section.rela(LittleEndian, self.bytes).ok()?);
            let relative = tables.flat_map(|(entries, _)| entries).filter_map(|entry| {
                let is_relative = entry.r_type(LittleEndian, false) == elf::R_X86_64_RELATIVE;
                let to = u64::try_from(entry.r_addend(LittleEndian)).ok()?;
                is_relative.then_some((entry.r_offset(LittleEndian), to))
            });
            relative.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_addresses_of_this_program_agree() {
        let bytes = std::fs::read("/proc/self/exe").expect("the executable is readable");
        let loaded = Loaded::new(&bytes);
        let last = loaded.segments.last().expect("the executable has segments");
        let (offset, address) = (last.offset + 1, last.address + 1);
        assert_eq!(loaded.address(offset), Some(address));
        assert_eq!(loaded.offset(address), Some(offset));
        assert_eq!(loaded.at(address, 2), bytes.get(offset as usize..offset as usize + 2));
        assert_eq!(loaded.at(u64::MAX, 1), None);
        assert_eq!(loaded.word(u64::MAX - 3), None);
    }

    #[test]
    fn a_pointer_that_the_loader_fills_in_is_found() {
        // This executable is position-independent, like all Rust executables, so its pointers are relocations.
        let bytes = std::fs::read("/proc/self/exe").expect("the executable is readable");
        let loaded = Loaded::new(&bytes);
        let mut pointers = loaded.relocated().iter();
        let aligned = pointers.find(|(address, _)| **address % 8 == 0);
        let (&address, &pointer) = aligned.expect("the executable has a relocation");
        assert_eq!(loaded.word(address), Some(pointer));
        assert!(loaded.places_of(pointer).contains(&address));
    }

    #[test]
    fn what_is_no_executable_has_nothing_loaded() {
        let loaded = Loaded::new(b"#!/bin/sh\n");
        assert_eq!(
            (loaded.address(0), loaded.offset(0), loaded.word(0)),
            (None, None, None)
        );
        assert!(loaded.places_of(1).is_empty());
    }
}
