//! Parses `/proc/PID/maps`. The file is parsed as bytes, because the names in it may be arbitrary bytes that the process chooses.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The maximum number of bytes that are read of one process; the rest is ignored. By default the kernel allows 65,530 mappings.
const MOST_BYTES: u64 = 64 << 20;

/// The device (major, minor) and the inode as `/proc/PID/maps` shows them. On overlayfs some kernels show other values there than
/// in their reports of mappings.
pub(super) type PlaceInMaps = (u32, u32, u64);

/// A mapping as one line of the file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcMapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) is_executable: bool,
    pub(super) offset: u64,
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    /// The path or name; empty for memory without a name.
    pub(super) name: PathBuf,
}

impl ProcMapping {
    /// The device and inode of the file; `None` if the mapping is not backed by a file.
    pub(super) fn place(&self) -> Option<PlaceInMaps> {
        (self.inode != 0).then_some((self.device.0, self.device.1, self.inode))
    }
}

/// Reads all mappings of a `maps` file.
pub(super) fn read(path: &Path) -> io::Result<Vec<ProcMapping>> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// Parses a line such as `7f1c2a000000-7f1c2a022000 r-xp 00028000 fe:00 1234    /usr/lib/libc.so.6`.
fn parse(line: &[u8]) -> Option<ProcMapping> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    let permissions = text()?;
    let offset = text()?;
    let (major, minor) = text()?.split_once(':')?;
    let inode = text()?;
    let name = fields.next().unwrap_or_default();
    let hexadecimal = |digits: &str| u64::from_str_radix(digits, 16).ok();
    Some(ProcMapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        is_executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset: hexadecimal(offset)?,
        device: (hexadecimal(major)? as u32, hexadecimal(minor)? as u32),
        inode: inode.parse().ok()?,
        name: PathBuf::from(OsStr::from_bytes(&unescaped(name.trim_ascii_start()))),
    })
}

/// Decodes a name, in which the kernel writes a newline as `\012`. It escapes no other character.
fn unescaped(name: &[u8]) -> Vec<u8> {
    const ESCAPED: &[u8] = b"\\012";
    let mut rest = name;
    let mut plain = Vec::with_capacity(name.len());
    while let Some((&first, behind)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(ESCAPED) {
            plain.push(b'\n');
            rest = behind;
        } else {
            plain.push(first);
            rest = behind;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(line: &[u8]) -> Vec<u8> {
        parse(line).expect("a mapping").name.as_os_str().as_bytes().to_vec()
    }

    #[test]
    fn a_line_is_taken_apart() {
        let mapping =
            parse(b"7f1c2a000000-7f1c2a022000 r-xp 00028000 fe:1f 1234                       /usr/lib/libc.so.6");
        assert_eq!(
            mapping,
            Some(ProcMapping {
                start: 0x7f1c_2a00_0000,
                end: 0x7f1c_2a02_2000,
                is_executable: true,
                offset: 0x28000,
                device: (0xfe, 0x1f),
                inode: 1234,
                name: "/usr/lib/libc.so.6".into(),
            })
        );
    }

    #[test]
    fn a_name_may_be_any_bytes() {
        for expected in [&b"/SYSV"[..], b"/SYSVzzzzzzzz", b"/\xff\xfe bytes", b"[vdso]", b""] {
            let line = [&b"1000-2000 r-xp 00000000 00:00 7      "[..], expected].concat();
            assert_eq!(name(&line), expected);
        }
        assert_eq!(
            name(b"1000-2000 r-xp 00000000 00:00 7   /new\\012line\\x"),
            b"/new\nline\\x"
        );
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        for line in [&b""[..], b"1000 r-xp", b"x-y r-xp 0 00:00 0", b"1000-2000 r-xp 0 00 0"] {
            assert_eq!(parse(line), None);
        }
    }

    #[test]
    fn this_process_has_code_of_its_own_executable() {
        let own = std::env::current_exe().expect("a path");
        let mappings = read(Path::new("/proc/self/maps")).expect("read");
        assert!(
            mappings
                .iter()
                .any(|mapping| mapping.is_executable && mapping.name == own)
        );
    }
}
