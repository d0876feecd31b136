//! Reads the version of Go that a program was built with from the program's section `.go.buildinfo`.
//!
//! ```text
//!  0  "\xff Go buildinf:"
//! 14  size of a pointer                        (pointer form)
//! 15  flags: 1 big-endian, 2 inline form
//! 16  address of the version, a Go string      (pointer form, before Go 1.18)
//! 32  length of the version as a varint, and the version itself   (inline form, since Go 1.18)
//! ```
//!
//! The format is documented in Go's source, `debug/buildinfo/buildinfo.go`.

use super::elf::Elf;

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The alignment of the structure in bytes.
const ALIGN: usize = 16;
/// The size of the fixed part in bytes.
const HEADER_BYTES: usize = 32;
/// The number of bytes that are copied; enough for the fixed part and the longest version.
const MAX_INFO_BYTES: usize = 256;
const INLINE: u8 = 2;
const BIG_ENDIAN: u8 = 1;
/// The maximum length of a version in bytes. A longer one is ignored.
const MAX_VERSION_BYTES: usize = 100;

/// Returns the version as it is stored in the program, for example `go1.19.8`; `None` if there is none or it cannot be read.
pub(super) fn version(elf: &Elf<'_>) -> Option<String> {
    let info = match elf.section(".go.buildinfo") {
        Some(section) => find(&section).map(beginning),
        // Without a section table, the structure is found by its magic bytes in the writable segments.
        None => elf.writable().into_iter().find_map(find).map(beginning),
    }?;
    in_info(&info, |address| elf.at_address(address))
}

/// Returns the first bytes of `info`, at most as many as the structure can have.
fn beginning(info: &[u8]) -> Vec<u8> {
    info[..info.len().min(MAX_INFO_BYTES)].to_vec()
}

/// Finds the structure by its magic bytes, and returns the bytes from its beginning on.
pub(super) fn find(bytes: &[u8]) -> Option<&[u8]> {
    memchr::memmem::find_iter(bytes, MAGIC)
        .find(|at| at.is_multiple_of(ALIGN))
        .map(|at| &bytes[at..])
}

/// Returns the version in a structure. `at_address` returns the bytes of the program from an address on.
fn in_info<'a>(info: &[u8], at_address: impl Fn(u64) -> Option<&'a [u8]>) -> Option<String> {
    let header = info.get(..HEADER_BYTES)?;
    let (pointer_size, flags) = (header[14], header[15]);
    if flags & INLINE != 0 {
        let (length, used) = varint(&info[HEADER_BYTES..])?;
        return text(info[HEADER_BYTES..].get(used..)?, length);
    }
    if pointer_size != 8 || flags & BIG_ENDIAN != 0 {
        return None;
    }
    let word = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    // A Go string consists of an address and a length.
    let string = at_address(word(header, 16)?)?;
    text(at_address(word(string, 0)?)?, word(string, 8)?)
}

/// Parses an unsigned LEB128 number of at most four bytes, and returns it with its length in bytes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(4) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

fn text(bytes: &[u8], length: u64) -> Option<String> {
    let length = usize::try_from(length)
        .ok()
        .filter(|length| (1..=MAX_VERSION_BYTES).contains(length))?;
    let text = str::from_utf8(bytes.get(..length)?).ok()?;
    text.bytes()
        .all(|byte| (b' '..0x7f).contains(&byte))
        .then(|| text.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Builds a structure in the inline form.
    pub(in super::super) fn inline(version: &str) -> Vec<u8> {
        let mut info = [MAGIC, &[0, INLINE]].concat();
        info.resize(HEADER_BYTES, 0);
        info.push(version.len() as u8);
        info.extend(version.bytes());
        info
    }

    /// Builds a structure in the pointer form.
    pub(in super::super) fn pointers(to_version: u64) -> Vec<u8> {
        let mut info = [MAGIC, &[8, 0]].concat();
        info.extend(to_version.to_le_bytes());
        info.extend([0; 8]);
        info
    }

    #[test]
    fn both_forms_contain_the_version() {
        let nowhere = |_| None;
        assert_eq!(
            in_info(&inline("go1.27.3 X:nodwarf5"), nowhere).as_deref(),
            Some("go1.27.3 X:nodwarf5")
        );
        let mut memory = [0; 0x40];
        memory[0x10..0x18].copy_from_slice(&0x1030_u64.to_le_bytes());
        memory[0x18..0x20].copy_from_slice(&8_u64.to_le_bytes());
        memory[0x30..0x38].copy_from_slice(b"go1.17.9");
        let at_address = |address: u64| memory.get(usize::try_from(address.checked_sub(0x1000)?).ok()?..);
        assert_eq!(in_info(&pointers(0x1010), at_address).as_deref(), Some("go1.17.9"));
        assert_eq!(in_info(&pointers(0x9000), at_address), None);
        assert_eq!(in_info(&pointers(0), nowhere), None);
    }

    #[test]
    fn it_begins_where_structures_begin() {
        let mut bytes = vec![0; 8];
        bytes.extend(inline("go1.1"));
        assert_eq!(
            find(&bytes),
            None,
            "at an address that is not aligned, the bytes are only a constant of a program"
        );
        bytes.extend(vec![0; 64 - bytes.len()]);
        bytes.extend(inline("go1.2"));
        assert_eq!(find(&bytes).map(<[u8]>::to_vec), Some(inline("go1.2")));
    }

    #[test]
    fn nonsense_is_no_version() {
        let nowhere = |_| None;
        let whole = inline("go1.19.8");
        for length in 0..whole.len() {
            assert_eq!(in_info(&whole[..length], nowhere), None);
        }
        assert_eq!(in_info(&inline(""), nowhere), None);
        assert_eq!(in_info(&inline("go1.\n"), nowhere), None);
        assert_eq!(in_info(&inline(&"9".repeat(101)), nowhere), None);
        let mut endless = inline("go1.19.8");
        endless[HEADER_BYTES..].fill(0xff);
        assert_eq!(in_info(&endless, nowhere), None);
        for change in 0..=255 {
            let mut spoilt = pointers(0x1000);
            (spoilt[14], spoilt[15]) = (change, !change);
            let _ = in_info(&spoilt, |_| Some(&whole[..]));
        }
    }
}
