//! Removes DWARF from an object file.
//!
//! The linker generates BTF from DWARF, but the kernel needs only BTF. Without DWARF the committed file has a fifth of the size.
//! `strip -g` of binutils does not support BPF, so this module does it.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Returns the object without its `.debug_*` sections and everything that refers to them.
pub(crate) fn strip_debug(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the output of the linker is not an ELF file")?;
    for section in &mut builder.sections {
        section.delete = is_debug(section.name.as_slice());
    }
    builder.delete_orphans();
    add_section_names(&mut builder);
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("cannot write the stripped object")?;
    Ok(stripped)
}

/// Adds a string table for the names of the sections. LLVM stores them in the string table of the symbols, but the writer does not.
fn add_section_names(builder: &mut Builder<'_>) {
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
}

/// Returns whether a section of this name holds DWARF, or the relocations of such a section.
fn is_debug(name: &[u8]) -> bool {
    let name = name.strip_prefix(b".rel").unwrap_or(name);
    name.starts_with(b".debug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwarf_goes_and_btf_stays() {
        for name in [".debug_info", ".rel.debug_info"] {
            assert!(is_debug(name.as_bytes()), "{name}");
        }
        for name in [".BTF", ".BTF.ext", ".rel.BTF", ".rel.BTF.ext", ".rel.text", "maps"] {
            assert!(!is_debug(name.as_bytes()), "{name}");
        }
    }
}
