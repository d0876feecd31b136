//! Names of functions from the table that every Go program contains, even without symbols (`go run`, `-ldflags=-s`).
//!
//! The runtime itself needs the table for its tracebacks, so the linker never omits it. The layouts of Go 1.18 and of Go 1.20 are
//! supported (Go: `src/runtime/symtab.go`, `pcHeader` and `functab`; `src/runtime/runtime2.go`, `_func`); older layouts are not.
//!
//! ```text
//!   pcHeader ─┬─ function names: texts that end with a zero byte
//!             └─ functab: (entry − text, offset of _func) for each function, sorted; then the end of the last one
//!                    _func: entry − text, offset of the name, …, kind of function, number of funcdata, then
//!                           an offset for each pcdata and for each funcdata
//! ```

use object::LittleEndian;
use object::read::elf::{ElfFile64, SectionHeader as _};

use super::go_module::{GoModule, RepeatedParts};
use super::loaded::Loaded;

/// Sections that contain the table, in ordinary and in position-independent programs.
const SECTIONS: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];

/// Bytes 6 and 7 of the table on x86-64: the smallest size of an instruction, and the size of a pointer.
const INSTRUCTION_QUANTUM: u8 = 1;
const POINTER_BYTES: u8 = 8;
/// Size in bytes of an entry of `functab`.
const ENTRY_BYTES: usize = 8;
/// Size in bytes of an offset of pcdata or funcdata.
const DATA_BYTES: usize = 4;
/// Offset of `_func.npcdata`, the number of pcdata.
const PCDATA_COUNT_AT: usize = 28;
/// Index of the funcdata with the inlined calls (`FUNCDATA_InlTree`).
const INLINED_CALLS: usize = 3;
/// Offset that marks funcdata which a function does not have.
const NO_DATA: u32 = u32::MAX;

/// Maximum length of a name in bytes; longer names are treated as missing.
const MAX_NAME_BYTES: usize = super::message::MAX_NAME_BYTES;

/// The differences between versions of the table.
struct Layout {
    /// First word of the table.
    magic: u32,
    /// Offset of `_func.funcID`, one byte.
    kind_at: usize,
    /// Offset of the name's offset in an `inlinedCall`.
    inlined_name_at: u64,
}

const LAYOUTS: [Layout; 2] = [
    // Go 1.18 and 1.19
    Layout {
        magic: 0xffff_fff0,
        kind_at: 36,
        inlined_name_at: 12,
    },
    // Go 1.20 to 1.27
    Layout {
        magic: 0xffff_fff1,
        kind_at: 40,
        inlined_name_at: 4,
    },
];

/// The table of functions of a Go program.
pub(super) struct GoFunctions<'a> {
    table: &'a [u8],
    /// Address of the table.
    address: u64,
    layout: &'static Layout,
    /// Address of the first function.
    text: u64,
    names_at: usize,
    functab_at: usize,
    functions: usize,
}

/// An entry of the table.
pub(super) struct Function {
    /// Address of the function's first byte.
    pub(super) start: u64,
    /// Address after the function's last byte.
    pub(super) end: u64,
    /// Offset of the function's `_func` in the table.
    at: usize,
}

impl<'a> GoFunctions<'a> {
    /// Finds the table in an executable; `None` if there is none with a known layout.
    pub(super) fn find(bytes: &'a [u8], loaded: &Loaded<'a>) -> Option<Self> {
        let endian = LittleEndian;
        let file = ElfFile64::<LittleEndian>::parse(bytes).ok()?;
        let sections = file.elf_section_table();
        let named = SECTIONS.iter().find_map(|name| sections.section_by_name(endian, name));
        match named {
            Some((_, section)) => Self::new(section.data(endian, bytes).ok()?, section.sh_addr(endian), loaded),
            None => Self::without_section(loaded),
        }
    }

    /// Finds a table without a section of its own: the C linker puts the table of a position-independent program into a larger
    /// section. The table is recognized by the first words of its header and by a module record that matches it. Its end is not
    /// known in this case.
    pub(super) fn without_section(loaded: &Loaded<'a>) -> Option<Self> {
        let beginnings = LAYOUTS.iter().map(|layout| {
            let [a, b, c, d] = layout.magic.to_le_bytes();
            u64::from_le_bytes([a, b, c, d, 0, 0, INSTRUCTION_QUANTUM, POINTER_BYTES])
        });
        let places = beginnings.flat_map(|beginning| loaded.places_of(beginning));
        places.into_iter().find_map(|address| {
            let mut functions = Self::header(loaded.at(address, usize::MAX)?, address)?;
            functions.text = GoModule::find(&functions.repeated()?, loaded)?.text;
            Some(functions)
        })
    }

    /// Reads the header of the table at `address`.
    pub(super) fn new(table: &'a [u8], address: u64, loaded: &Loaded<'_>) -> Option<Self> {
        let mut functions = Self::header(table, address)?;
        // The field is 0 if the loader fills it in, and from Go 1.26 on, where it is not used.
        if functions.text == 0 {
            functions.text = GoModule::find(&functions.repeated()?, loaded)?.text;
        }
        Some(functions)
    }

    fn header(table: &'a [u8], address: u64) -> Option<Self> {
        let magic = u32::from_le_bytes(*table.first_chunk()?);
        let layout = LAYOUTS.iter().find(|layout| layout.magic == magic)?;
        if *table.get(7)? != POINTER_BYTES {
            return None;
        }
        let word = |index: usize| {
            let bytes = table.get(8 + 8 * index..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        };
        Some(Self {
            table,
            address,
            layout,
            text: word(2)?,
            functions: usize::try_from(word(0)?).ok()?,
            names_at: usize::try_from(word(3)?).ok()?,
            functab_at: usize::try_from(word(7)?).ok()?,
        })
    }

    /// Address of the table.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// The parts that the module record repeats.
    pub(super) fn repeated(&self) -> Option<RepeatedParts> {
        Some(RepeatedParts {
            address: self.address,
            functab: self.address.checked_add(self.functab_at as u64),
            entries: self.functions as u64 + 1,
            first: self.word(self.entry_at(0)?)?,
            end: self.word(self.entry_at(self.functions)?)?,
        })
    }

    /// The name of the function that has code at an address.
    pub(super) fn name(&self, address: u64) -> Option<String> {
        self.name_of(&self.around(address)?)
    }

    /// The name of a function.
    pub(super) fn name_of(&self, function: &Function) -> Option<String> {
        self.name_at(self.word(function.at.checked_add(4)?)?)
    }

    /// The name at this offset from the first name.
    fn name_at(&self, offset: u32) -> Option<String> {
        let name = self.table.get(self.names_at.checked_add(offset as usize)?..)?;
        let end = name.iter().take(MAX_NAME_BYTES).position(|&byte| byte == 0)?;
        (end > 0).then(|| String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// The function that has code at an address.
    pub(super) fn around(&self, address: u64) -> Option<Function> {
        let offset = u32::try_from(address.checked_sub(self.text)?).ok()?;
        self.function(self.index_before(offset)?)
    }

    /// The first function with this name.
    pub(super) fn called(&self, name: &str) -> Option<Function> {
        let is_it = |function: &Function| {
            let bytes = self.word(function.at + 4).and_then(|offset| {
                let at = self.names_at.checked_add(offset as usize)?;
                self.table.get(at..at.checked_add(name.len() + 1)?)
            });
            bytes.is_some_and(|bytes| bytes.strip_suffix(b"\0") == Some(name.as_bytes()))
        };
        (0..self.functions).map_while(|index| self.function(index)).find(is_it)
    }

    /// The kind of a function that the runtime must treat specially (`_func.funcID`); 0 for ordinary functions.
    pub(super) fn kind(&self, function: &Function) -> Option<u8> {
        self.table.get(function.at.checked_add(self.layout.kind_at)?).copied()
    }

    /// The offset among all funcdata of the calls inlined in a function; `None` if there are none.
    pub(super) fn inlined_calls(&self, function: &Function) -> Option<u32> {
        let counts = function.at.checked_add(self.layout.kind_at)?;
        let count = *self.table.get(counts.checked_add(3)?)?;
        if usize::from(count) <= INLINED_CALLS {
            return None;
        }
        let pcdata = self.word(function.at.checked_add(PCDATA_COUNT_AT)?)? as usize;
        let index = pcdata.checked_add(INLINED_CALLS)?;
        let offset = self.word(counts.checked_add(4)?.checked_add(index.checked_mul(DATA_BYTES)?)?)?;
        (offset != NO_DATA).then_some(offset)
    }

    /// The name of the function that the `inlinedCall` at this address says was inlined.
    pub(super) fn inlined_name(&self, call: u64, loaded: &Loaded<'_>) -> Option<String> {
        let at = call.checked_add(self.layout.inlined_name_at)?;
        let offset = u32::from_le_bytes(*loaded.at(at, 4)?.first_chunk()?);
        // A name begins after the zero byte that ends the previous one.
        let before = self.names_at.checked_add(offset as usize)?.checked_sub(1)?;
        if offset != 0 && self.table.get(before) != Some(&0) {
            return None;
        }
        self.name_at(offset)
    }

    fn function(&self, index: usize) -> Option<Function> {
        let entry = self.entry_at(index)?;
        let start = self.word(entry)?;
        let end = self.word(self.entry_at(index + 1)?)?;
        Some(Function {
            start: self.text.checked_add(u64::from(start))?,
            end: self.text.checked_add(u64::from(end))?,
            at: self.functab_at.checked_add(self.word(entry + 4)? as usize)?,
        })
    }

    /// The index of the last function that begins at or before an offset; `None` before the first function and after the end of
    /// the last.
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

    /// Address of the text in [`table`].
    const TEXT: u64 = 0x1000;

    /// A table with `alpha` at 0x1000, `beta` at 0x1010, and the end of the text at 0x1030.
    fn table(text: u64) -> Vec<u8> {
        let mut table = Vec::new();
        table.extend(LAYOUTS[1].magic.to_le_bytes());
        table.extend([0, 0, 1, 8]);
        let (names_at, functab_at) = (72_u64, 96_u64);
        for word in [2, 0, text, names_at, 0, 0, 0, functab_at] {
            table.extend(u64::to_le_bytes(word));
        }
        let names: &[u8] = b"alpha\0beta\0";
        table.extend(names);
        table.resize(functab_at as usize, 0);
        // The entries, the end of the text, and the records to which the entries point.
        for word in [0_u32, 20, 0x10, 28, 0x30, 0, 0, 0x10, 6] {
            table.extend(word.to_le_bytes());
        }
        table
    }

    fn functions(table: &[u8]) -> Option<GoFunctions<'_>> {
        GoFunctions::new(table, 0x8000, &Loaded::new(&[]))
    }

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let table = table(TEXT);
        let functions = functions(&table).expect("the table is valid");
        let name = |address| functions.name(address);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000).as_deref(), Some("alpha"));
        assert_eq!(name(0x100f).as_deref(), Some("alpha"));
        assert_eq!(name(0x1010).as_deref(), Some("beta"));
        assert_eq!(name(0x102f).as_deref(), Some("beta"));
        assert_eq!(name(0x1030), None);
        assert_eq!(
            functions.called("beta").map(|beta| (beta.start, beta.end)),
            Some((0x1010, 0x1030))
        );
        assert!(functions.called("bet").is_none() && functions.called("gamma").is_none());
    }

    #[test]
    fn without_the_beginning_of_the_text_there_are_no_names() {
        assert!(functions(&table(0)).is_none());
    }

    #[test]
    fn a_table_that_lies_has_no_names() {
        for length in 0..table(TEXT).len() {
            let table = &table(TEXT)[..length];
            if let Some(functions) = functions(table) {
                let name = functions.name(0x1010);
                assert!(name.is_none() || name.as_deref() == Some("beta"), "{length}: {name:?}");
            }
        }
        for at in 0..table(TEXT).len() {
            let mut table = table(TEXT);
            table[at] = 0xff;
            let functions = functions(&table);
            // The result, if there is one, is a text from the table.
            let name = functions.and_then(|functions| functions.name(0x1010));
            assert!(name.is_none_or(|name| name.len() < table.len() * 3));
        }
    }
}
