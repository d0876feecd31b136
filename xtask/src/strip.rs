//! Taking DWARF out of an object file.
//!
//! The linker needs DWARF to make BTF from; the kernel only wants BTF. Without DWARF the committed file is a fifth as big.
//! `strip -g` of binutils does not know BPF, so this does it.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without its `.debug_*` sections and what refers to them.
pub(crate) fn strip_debug(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output is no ELF file")?;
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

/// Gives the file a table for the names of its sections: LLVM keeps them in the symbols' table, the writer does not.
fn add_section_names(builder: &mut Builder<'_>) {
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
}

/// Whether a section of this name holds DWARF, or the relocations of one that does.
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
