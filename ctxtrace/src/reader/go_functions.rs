//! Names of functions from the table that every Go program carries, also one without symbols (`go run`, `-ldflags=-s`).
//!
//! The runtime itself needs the table for its tracebacks, so the linker never leaves it out. Its layout is that of Go 1.18 and of
//! Go 1.20 (Go: `src/runtime/symtab.go`, `pcHeader` and `functab`; `src/debug/gosym/pclntab.go`). Older layouts are not read.
//!
//! ```text
//!   pcHeader ─┬─ function names: texts that end with a zero byte
//!             └─ functab: (entry − text, offset of _func) for each function, sorted; then the end of the last one
//!                    _func: entry − text, offset of the name
//! ```

use object::LittleEndian;
use object::read::elf::{ElfFile64, SectionHeader as _};

/// Sections that hold the table: of ordinary programs, and of position-independent ones.
const SECTIONS: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];

/// The first word of the table, of Go 1.18 and 1.19, and from Go 1.20 on.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];

/// Bytes of an entry of `functab`.
const ENTRY_BYTES: usize = 8;

/// Longest name that is read, bytes.
const MAX_NAME_BYTES: usize = super::message::MAX_NAME_BYTES;

/// The table of a Go program.
pub(super) struct GoFunctions<'a> {
    table: &'a [u8],
    /// Address of the first function.
    text: u64,
    names_at: usize,
    functab_at: usize,
    functions: usize,
}

impl<'a> GoFunctions<'a> {
    /// Finds the table in an executable; `None` if there is none, or none of a known layout.
    pub(super) fn find(bytes: &'a [u8]) -> Option<Self> {
        let endian = LittleEndian;
        let file = ElfFile64::<LittleEndian>::parse(bytes).ok()?;
        let sections = file.elf_section_table();
        let (_, section) = SECTIONS
            .iter()
            .find_map(|name| sections.section_by_name(endian, name))?;
        Self::new(section.data(endian, bytes).ok()?)
    }

    fn new(table: &'a [u8]) -> Option<Self> {
        let magic = u32::from_le_bytes(*table.first_chunk()?);
        let pointer_bytes = *table.get(7)?;
        if !MAGICS.contains(&magic) || pointer_bytes != 8 {
            return None;
        }
        let word = |index: usize| {
            let bytes = table.get(8 + 8 * index..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        };
        // The address is 0 in the file where the loader, or a newer Go, fills it in at run time.
        let text = word(2).filter(|&text| text != 0)?;
        Some(Self {
            table,
            text,
            functions: usize::try_from(word(0)?).ok()?,
            names_at: usize::try_from(word(3)?).ok()?,
            functab_at: usize::try_from(word(7)?).ok()?,
        })
    }

    /// The name of the function that has code at an address.
    pub(super) fn name(&self, address: u64) -> Option<String> {
        let offset = u32::try_from(address.checked_sub(self.text)?).ok()?;
        let index = self.index_before(offset)?;
        let at = self
            .functab_at
            .checked_add(self.word(self.entry_at(index)? + 4)? as usize)?;
        let name_at = self.names_at.checked_add(self.word(at.checked_add(4)?)? as usize)?;
        let name = self.table.get(name_at..)?;
        let end = name.iter().take(MAX_NAME_BYTES).position(|&byte| byte == 0)?;
        (end > 0).then(|| String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// The last function that begins at or before an offset; `None` before the first one and behind the last one.
    fn index_before(&self, offset: u32) -> Option<usize> {
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.word(self.entry_at(middle)?)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let end_of_text = self.word(self.entry_at(self.functions)?)?;
        (offset < end_of_text).then(|| low.checked_sub(1)).flatten()
    }

    fn entry_at(&self, index: usize) -> Option<usize> {
        self.functab_at.checked_add(index.checked_mul(ENTRY_BYTES)?)
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.table.get(at..)?.first_chunk()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `alpha` from 0x1000, `beta` from 0x1010, and an end at 0x1030.
    fn table() -> Vec<u8> {
        let mut table = Vec::new();
        table.extend(MAGICS[1].to_le_bytes());
        table.extend([0, 0, 1, 8]);
        let (names_at, functab_at) = (72_u64, 96_u64);
        for word in [2, 0, 0x1000, names_at, 0, 0, 0, functab_at] {
            table.extend(u64::to_le_bytes(word));
        }
        let names: &[u8] = b"alpha\0beta\0";
        table.extend(names);
        table.resize(functab_at as usize, 0);
        // The entries, the end, and behind them what they point to.
        for word in [0_u32, 20, 0x10, 28, 0x30, 0, 0, 0x10, 6] {
            table.extend(word.to_le_bytes());
        }
        table
    }

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let table = table();
        let functions = GoFunctions::new(&table).expect("a table");
        let name = |address| functions.name(address);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000).as_deref(), Some("alpha"));
        assert_eq!(name(0x100f).as_deref(), Some("alpha"));
        assert_eq!(name(0x1010).as_deref(), Some("beta"));
        assert_eq!(name(0x102f).as_deref(), Some("beta"));
        assert_eq!(name(0x1030), None);
    }

    #[test]
    fn a_table_that_lies_has_no_names() {
        for length in 0..table().len() {
            let table = &table()[..length];
            if let Some(functions) = GoFunctions::new(table) {
                let name = functions.name(0x1010);
                assert!(name.is_none() || name.as_deref() == Some("beta"), "{length}: {name:?}");
            }
        }
        for at in 0..table().len() {
            let mut table = table();
            table[at] = 0xff;
            let functions = GoFunctions::new(&table);
            // Whatever comes out is a text of the table.
            let name = functions.and_then(|functions| functions.name(0x1010));
            assert!(name.is_none_or(|name| name.len() < table.len() * 3));
        }
    }
}
