//! Any bytes as the section `.go.buildinfo` of an executable.
#![no_main]

/// Returns a minimal ELF file with a section of this name. It consists of the header, the contents, the section names and the
/// section table.
fn elf_with(name: &str, contents: &[u8]) -> Vec<u8> {
    let names = format!("\0{name}\0.shstrtab\0");
    let (contents_at, names_at) = (64, 64 + contents.len());
    let table_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = vec![0_u8; 64];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[20] = 1;
    file[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
    file[52] = 64;
    file[58] = 64;
    file[60] = 3;
    file[62] = 2;
    file.extend(contents);
    file.extend(names.as_bytes());
    file.resize(table_at, 0);
    let section = |name: usize, kind: u32, at: usize, size: usize| {
        let mut header = Vec::new();
        for word in [name as u32, kind] {
            header.extend(word.to_le_bytes());
        }
        for word in [2_u64, 0x40_0000, at as u64, size as u64, 0, 16, 0] {
            header.extend(word.to_le_bytes());
        }
        header
    };
    file.extend([0; 64]);
    file.extend(section(1, 1, contents_at, contents.len()));
    file.extend(section(name.len() + 2, 3, names_at, names.len()));
    file
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ctxtrace::tracee::locate::examine_bytes(&elf_with(".go.buildinfo", bytes));
});
