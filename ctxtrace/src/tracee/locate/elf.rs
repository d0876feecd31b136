//! Reads the parts of an executable that the locators need: its thread-locals, its loaded bytes, its debug sections.

use std::borrow::Cow;
use std::io::Read;

use flate2::bufread::ZlibDecoder;
use object::elf::{
    EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_W, PT_LOAD, PT_TLS, SHN_UNDEF, STB_LOCAL, STT_FUNC, STT_OBJECT,
    STT_TLS, Sym64,
};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader, Sym, SymbolTable};
use object::{CompressionFormat, LittleEndian, Object, ObjectSection};
use ruzstd::decoding::StreamingDecoder;

use super::budget::ExaminationBudget;

/// The number of bytes that are decompressed between two readings of the clock.
const PIECE_BYTES: usize = 1 << 20;
/// The maximum number of loaded bytes that are searched; the rest is ignored. Overlapping segments could have more bytes than the
/// file.
const MAX_LOADED_BYTES: usize = 1 << 30;
/// The maximum length of a symbol name in bytes. Symbols with longer names are ignored.
const MAX_NAME_BYTES: usize = 4 << 10;
/// The maximum number of symbols that are demangled; further symbols are ignored.
const MAX_CANDIDATES: usize = 1_000;

type Symbols<'a> = SymbolTable<'a, FileHeader64<LittleEndian>>;

/// The number of bytes at the beginning of a file that [`kind`] needs.
pub(super) const HEADER_BYTES: usize = 20;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElfKind {
    /// Not an ELF file.
    NotElf,
    /// An ELF file for another machine, or for x32.
    Foreign,
    /// An ELF file for x86-64.
    X86_64,
}

/// Determines the kind of a file from its first [`HEADER_BYTES`] bytes.
pub(super) fn kind(bytes: &[u8]) -> ElfKind {
    const CLASS_64: u8 = 2;
    const LITTLE: u8 = 1;
    let Some(header) = bytes
        .get(..HEADER_BYTES)
        .filter(|header| header.starts_with(b"\x7fELF"))
    else {
        return ElfKind::NotElf;
    };
    let machine = u16::from_le_bytes([header[18], header[19]]);
    if header[4] == CLASS_64 && header[5] == LITTLE && machine == EM_X86_64 {
        ElfKind::X86_64
    } else {
        ElfKind::Foreign
    }
}

/// A thread-local variable that has a symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ThreadLocal<'a> {
    /// The name as it is in the symbol table.
    pub(super) mangled: &'a str,
    /// The demangled name without the hash.
    pub(super) name: String,
    /// The offset from the beginning of the TLS segment, in bytes.
    pub(super) offset: u64,
    /// The size in bytes.
    pub(super) size: u64,
}

/// The debug sections that are needed; a section that the file does not have is empty.
#[derive(Default)]
pub(super) struct DebugSections<'a> {
    pub(super) info: Cow<'a, [u8]>,
    pub(super) abbrev: Cow<'a, [u8]>,
    pub(super) str: Cow<'a, [u8]>,
    pub(super) line_str: Cow<'a, [u8]>,
    pub(super) str_offsets: Cow<'a, [u8]>,
    /// Whether every section that the file has was read, so that none was beyond the budget or damaged.
    pub(super) is_whole: bool,
}

/// An ELF file for x86-64.
pub(super) struct Elf<'a> {
    file: ElfFile64<'a, LittleEndian>,
    budget: ExaminationBudget,
}

impl<'a> Elf<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let file = ElfFile64::<LittleEndian>::parse(bytes).ok()?;
        // The symbols of an object file are relative to sections, so they cannot be used; a core file has no symbols.
        let linked = matches!(file.elf_header().e_type(LittleEndian), ET_EXEC | ET_DYN);
        linked.then(|| Self {
            file,
            budget: ExaminationBudget::new(),
        })
    }

    /// The remaining budget for this file.
    pub(super) fn budget(&self) -> &ExaminationBudget {
        &self.budget
    }

    /// Returns the thread-locals that are defined in this file and whose demangled names are `wanted`, sorted by offset.
    pub(super) fn thread_locals(&self, wanted: impl Fn(&str) -> bool) -> Vec<ThreadLocal<'a>> {
        let mut found = self.thread_locals_of(self.file.elf_symbol_table(), wanted);
        found.sort_by_key(|local| local.offset);
        found.dedup_by_key(|local| local.offset);
        found
    }

    /// Whether the symbol table or the dynamic symbol table has a thread-local whose demangled name is `wanted`.
    pub(super) fn has_thread_local(&self, wanted: impl Fn(&str) -> bool + Copy) -> bool {
        [self.file.elf_symbol_table(), self.file.elf_dynamic_symbol_table()]
            .into_iter()
            .any(|table| !self.thread_locals_of(table, wanted).is_empty())
    }

    fn thread_locals_of(&self, table: &Symbols<'a>, wanted: impl Fn(&str) -> bool) -> Vec<ThreadLocal<'a>> {
        // `symbol_name` is not used: for names without a terminator it would read to the end of the file for each symbol.
        let strings = self.file.elf_section_table().section(table.string_section());
        let Ok(strings) = strings.and_then(|section| section.data(LittleEndian, self.file.data())) else {
            return Vec::new();
        };
        let is_defined = |symbol: &&Sym64<LittleEndian>| {
            symbol.st_type() == STT_TLS
                && symbol.st_shndx(LittleEndian) != SHN_UNDEF
                && symbol.st_size(LittleEndian) != 0
        };
        let symbols = table.iter().filter(is_defined);
        let candidates = symbols.filter_map(|symbol| {
            let mangled = name_at(strings, symbol.st_name(LittleEndian))?;
            let is_candidate = mangled.contains("CONTEXT") || mangled.contains("SLOT");
            is_candidate.then_some((symbol, mangled))
        });
        let readable = candidates.take(MAX_CANDIDATES).filter_map(|(symbol, mangled)| {
            let demangled = rustc_demangle::try_demangle(mangled).ok()?;
            Some(ThreadLocal {
                mangled,
                name: format!("{demangled:#}"),
                offset: symbol.st_value(LittleEndian),
                size: symbol.st_size(LittleEndian),
            })
        });
        readable.filter(|local| wanted(&local.name)).collect()
    }

    /// The offset in the TLS segment of the thread-local with exactly this symbol name.
    pub(super) fn thread_local_offset(&self, name: &str) -> Option<u64> {
        let table = self.file.elf_symbol_table();
        let strings = self.file.elf_section_table().section(table.string_section());
        let strings = strings
            .and_then(|section| section.data(LittleEndian, self.file.data()))
            .ok()?;
        let mut symbols = table
            .iter()
            .filter(|symbol| symbol.st_type() == STT_TLS && symbol.st_shndx(LittleEndian) != SHN_UNDEF);
        symbols
            .find(|symbol| name_at(strings, symbol.st_name(LittleEndian)) == Some(name))
            .map(|symbol| symbol.st_value(LittleEndian))
    }

    /// The size of the TLS segment; `None` if there is none.
    pub(super) fn tls_bytes(&self) -> Option<u64> {
        let mut segments = self.file.elf_program_headers().iter();
        let tls = segments.find(|segment| segment.p_type(LittleEndian) == PT_TLS)?;
        Some(tls.p_memsz(LittleEndian))
    }

    /// Whether the file has local symbols, which are the first that `strip` removes.
    pub(super) fn has_local_symbols(&self) -> bool {
        self.file.elf_symbol_table().iter().any(|symbol| {
            symbol.st_bind() == STB_LOCAL
                && matches!(symbol.st_type(), STT_FUNC | STT_OBJECT | STT_TLS)
                && symbol.st_size(LittleEndian) != 0
        })
    }

    /// The distance in bytes from a thread-local up to the thread pointer. The thread pointer is at the end of the TLS segment,
    /// rounded up so that the segment keeps its alignment (glibc: `_dl_determine_tlsoffset`, musl: `static_init_tls`, lld:
    /// `getTlsTpOffset`). `None` if the thread-local is not in the TLS segment.
    pub(super) fn below_tp(&self, local: &ThreadLocal<'_>) -> Option<u64> {
        let mut segments = self.file.elf_program_headers().iter();
        let tls = segments.find(|segment| segment.p_type(LittleEndian) == PT_TLS)?;
        let (start, size) = (tls.p_vaddr(LittleEndian), tls.p_memsz(LittleEndian));
        let align = tls.p_align(LittleEndian).max(1);
        let end = local.offset.checked_add(local.size)?;
        if !align.is_power_of_two() || end > size {
            return None;
        }
        let padding = start.wrapping_add(size).wrapping_neg() & (align - 1);
        size.checked_add(padding).map(|block| block - local.offset)
    }

    /// The bytes of all loaded segments, at most [`MAX_LOADED_BYTES`] in total.
    pub(super) fn loaded(&self) -> Vec<&'a [u8]> {
        self.loaded_with(0)
    }

    /// The bytes of all writable segments, at most [`MAX_LOADED_BYTES`] in total.
    pub(super) fn writable(&self) -> Vec<&'a [u8]> {
        self.loaded_with(PF_W)
    }

    fn loaded_with(&self, flags: u32) -> Vec<&'a [u8]> {
        let mut left = MAX_LOADED_BYTES;
        let mut parts = Vec::new();
        for segment in self.file.elf_program_headers() {
            if segment.p_type(LittleEndian) != PT_LOAD || segment.p_flags(LittleEndian) & flags != flags {
                continue;
            }
            let Ok(bytes) = segment.data(LittleEndian, self.file.data()) else {
                continue;
            };
            let part = &bytes[..bytes.len().min(left)];
            left -= part.len();
            parts.push(part);
        }
        parts
    }

    /// The bytes of the file from an address on, up to the end of the segment that contains it.
    pub(super) fn at_address(&self, address: u64) -> Option<&'a [u8]> {
        let segments = self.file.elf_program_headers().iter();
        let mut loaded = segments.filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
        loaded.find_map(|segment| {
            let offset = address.checked_sub(segment.p_vaddr(LittleEndian))?;
            let bytes = segment.data(LittleEndian, self.file.data()).ok()?;
            bytes
                .get(usize::try_from(offset).ok()?..)
                .filter(|rest| !rest.is_empty())
        })
    }

    /// Whether the file has a section table.
    pub(super) fn has_sections(&self) -> bool {
        !self.file.elf_section_table().is_empty()
    }

    /// Whether the file has a section with this name.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.file.section_by_name(name).is_some()
    }

    /// The section with the unwind rules (`.eh_frame`), and the address at which it is loaded.
    pub(super) fn unwind_section(&self) -> Option<(Cow<'a, [u8]>, u64)> {
        let address = self.file.section_by_name(".eh_frame")?.address();
        Some((self.section(".eh_frame")?, address))
    }

    /// The DWARF sections of the file, decompressed.
    pub(super) fn debug_sections(&self) -> DebugSections<'a> {
        let mut is_whole = true;
        let mut section = |name| {
            let section = self.section(name);
            is_whole &= section.is_some() || !self.has_section(name);
            section.unwrap_or_default()
        };
        DebugSections {
            info: section(".debug_info"),
            abbrev: section(".debug_abbrev"),
            str: section(".debug_str"),
            line_str: section(".debug_line_str"),
            str_offsets: section(".debug_str_offsets"),
            is_whole,
        }
    }

    /// The decompressed bytes of the section with this name; `None` if there is no such section, or if it is beyond the budget.
    pub(super) fn section(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        let data = self.file.section_by_name(name)?.compressed_data().ok()?;
        if data.format == CompressionFormat::None {
            return Some(Cow::Borrowed(data.data));
        }
        decompress(data.format, data.data, data.uncompressed_size, &self.budget).map(Cow::Owned)
    }
}

fn name_at(strings: &[u8], offset: u32) -> Option<&str> {
    let rest = strings.get(usize::try_from(offset).ok()?..)?;
    let rest = &rest[..rest.len().min(MAX_NAME_BYTES)];
    let end = memchr::memchr(0, rest)?;
    str::from_utf8(&rest[..end]).ok()
}

/// Decompresses a section; `None` if its size differs from the announced `size` or is beyond the budget.
fn decompress(format: CompressionFormat, bytes: &[u8], size: u64, budget: &ExaminationBudget) -> Option<Vec<u8>> {
    if !budget.take_bytes(size) {
        return None;
    }
    let length = usize::try_from(size).ok()?;
    let mut out = Vec::new();
    out.try_reserve_exact(length).ok()?;
    match format {
        CompressionFormat::Zlib => read_piecewise(&mut ZlibDecoder::new(bytes), &mut out, length, budget)?,
        CompressionFormat::Zstandard => {
            // lld compresses a section in several pieces, each of which is a Zstandard frame.
            let mut input = bytes;
            while !input.is_empty() && out.len() < length {
                let mut decoder = StreamingDecoder::new(&mut input).ok()?;
                read_piecewise(&mut decoder, &mut out, length, budget)?;
            }
        }
        _ => return None,
    }
    (out.len() == length).then_some(out)
}

/// Reads until the end, or until `out` has `length` bytes; `None` if the time limit passes first.
fn read_piecewise(from: &mut impl Read, out: &mut Vec<u8>, length: usize, budget: &ExaminationBudget) -> Option<()> {
    while out.len() < length {
        let wanted = (length - out.len()).min(PIECE_BYTES);
        let read = from.by_ref().take(wanted as u64).read_to_end(out).ok()?;
        if read < wanted {
            return Some(());
        }
        if budget.is_out_of_time() {
            return None;
        }
    }
    Some(())
}
