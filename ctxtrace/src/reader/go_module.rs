//! The Go runtime's record of where the parts of the program are, `runtime.firstmoduledata`. It says where the text begins and
//! where the funcdata are.
//!
//! In a stripped program of Go 1.26 or later, only this record says where the text begins. The record has no symbol in such a
//! program. It is found by its first word, which points to the table of functions, and by the words that repeat contents of the
//! table (Go: `src/runtime/symtab.go`, `moduledata`). These words are the same from Go 1.18 to Go 1.27; the words after them
//! differ.

use super::loaded::Loaded;

/// Index of the word with the address of `functab`; its length is the next word.
const FUNCTAB: u64 = 16;
/// Index of the word with the address of the first function; the next word is the address of the end of the last one.
const FIRST_AND_END: u64 = 20;
/// Index of the word with the address of the text.
const TEXT: u64 = 22;
/// The list of the text's sections is the first list after this index. The words before it are arranged differently in each
/// version.
const LIST_IS_BEHIND: u64 = 34;
/// The list begins before this index.
const LIST_IS_BEFORE: u64 = 56;
/// Maximum number of sections of the text. A longer list is not taken for the list of sections.
const MAX_TEXT_SECTIONS: u64 = 1 << 16;

/// The parts of a table of functions that the module record repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RepeatedParts {
    /// Address of the table.
    pub(super) address: u64,
    /// Address of `functab`, if it does not overflow.
    pub(super) functab: Option<u64>,
    /// Number of entries of `functab`, one more than there are functions.
    pub(super) entries: u64,
    /// Beginning of the first function, as an offset from the beginning of the text.
    pub(super) first: u32,
    /// End of the last function, as an offset from the beginning of the text.
    pub(super) end: u32,
}

/// The module record of a program.
pub(super) struct GoModule {
    /// Address of the record.
    address: u64,
    /// Address of the text.
    pub(super) text: u64,
}

impl GoModule {
    /// Finds the record that matches a table of functions.
    pub(super) fn find(table: &RepeatedParts, loaded: &Loaded<'_>) -> Option<Self> {
        loaded.places_of(table.address).into_iter().find_map(|address| {
            let module = Self { address, text: 0 };
            let word = |index| module.word(loaded, index);
            let text = word(TEXT)?;
            let repeated = [
                (word(FUNCTAB), table.functab),
                (word(FUNCTAB + 1), Some(table.entries)),
                (word(FIRST_AND_END), text.checked_add(u64::from(table.first))),
                (word(FIRST_AND_END + 1), text.checked_add(u64::from(table.end))),
            ];
            let agrees = text != 0
                && repeated
                    .iter()
                    .all(|(word, expected)| word.is_some() && word == expected);
            agrees.then_some(Self { address, text })
        })
    }

    /// The address from which the offsets of funcdata are counted; `table` is the address of the table of functions.
    ///
    /// Up to Go 1.25 it is the word right before the list of the text's sections, and points to constants before the table of
    /// functions. In later versions the funcdata are part of the table, and the word after the address is their end.
    pub(super) fn funcdata(&self, table: u64, loaded: &Loaded<'_>) -> Option<u64> {
        let word = |index| self.word(loaded, index);
        // A list is its address, its length and its capacity.
        let is_list = |&index: &u64| {
            let length = word(index + 1).unwrap_or_default();
            (1..=MAX_TEXT_SECTIONS).contains(&length) && word(index + 2) == Some(length)
        };
        let list = (LIST_IS_BEHIND + 1..LIST_IS_BEFORE).find(is_list)?;
        let (second, last) = (word(list - 2)?, word(list - 1)?);
        let has_end = table < second && second < last;
        Some(if has_end { second } else { last })
    }

    fn word(&self, loaded: &Loaded<'_>, index: u64) -> Option<u64> {
        loaded.word(self.address.checked_add(8 * index)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::go_functions::GoFunctions;
    use super::super::go_synthetic::{CODE, GoProgram, MODULE, TABLE, Version};
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_module_says_where_the_text_begins_and_the_funcdata() {
        for version in [Version::Go118, Version::Go120, Version::Go127] {
            let program = GoProgram::new(version);
            let bytes = program.bytes();
            let loaded = Loaded::of_segment(&bytes, CODE);
            let functions = program.functions(&bytes, &loaded).expect("the table is found");
            assert_eq!(
                functions.name(CODE).as_deref(),
                Some("runtime.deferreturn"),
                "{version:?}"
            );
            let module = GoModule::find(&functions.repeated().expect("the table is complete"), &loaded)
                .expect("the module record is found");
            assert_eq!((module.address, module.text), (MODULE, CODE), "{version:?}");
            assert_eq!(
                module.funcdata(functions.address(), &loaded),
                Some(program.funcdata()),
                "{version:?}"
            );
        }
    }

    #[test]
    fn the_pointers_of_a_module_may_be_relocations() {
        let program = GoProgram::new(Version::Go120);
        let mut bytes = program.bytes();
        let (pointers, at) = (
            [0, FUNCTAB, FIRST_AND_END, FIRST_AND_END + 1, TEXT],
            (MODULE - CODE) as usize,
        );
        let mut relocated = HashMap::new();
        for index in pointers {
            let word = &mut bytes[at + 8 * index as usize..][..8];
            let pointer = u64::from_le_bytes(*word.first_chunk().expect("the word has eight bytes"));
            relocated.insert(MODULE + 8 * index, pointer);
            word.fill(0);
        }
        let loaded = Loaded::of_segment(&bytes, CODE);
        assert!(
            program.functions(&bytes, &loaded).is_none(),
            "no pointer leads to the table"
        );
        let loaded = loaded.with_relocations(relocated);
        let functions = program.functions(&bytes, &loaded).expect("the table is found");
        assert_eq!(functions.name(CODE).as_deref(), Some("runtime.deferreturn"));
    }

    #[test]
    fn a_table_without_a_section_is_found_by_its_header_and_the_module() {
        for version in [Version::Go118, Version::Go120, Version::Go127] {
            let mut bytes = GoProgram::new(version).bytes();
            let loaded = Loaded::of_segment(&bytes, CODE);
            let functions = GoFunctions::without_section(&loaded).expect("the table is found");
            assert_eq!(
                (functions.address(), functions.name(CODE)),
                (TABLE, Some("runtime.deferreturn".to_owned()))
            );
            bytes[(MODULE - CODE) as usize] ^= 1;
            let loaded = Loaded::of_segment(&bytes, CODE);
            assert!(
                GoFunctions::without_section(&loaded).is_none(),
                "the module does not match"
            );
        }
    }

    #[test]
    fn a_record_that_disagrees_with_the_table_is_none() {
        let program = GoProgram::new(Version::Go127);
        for index in [FUNCTAB, FUNCTAB + 1, FIRST_AND_END, FIRST_AND_END + 1, TEXT] {
            let mut bytes = program.bytes();
            bytes[(MODULE - CODE + 8 * index) as usize] ^= 1;
            let loaded = Loaded::of_segment(&bytes, CODE);
            assert!(program.functions(&bytes, &loaded).is_none(), "{index}");
        }
        // A pointer to the table without a record after it.
        let loaded = TABLE.to_le_bytes();
        let loaded = Loaded::of_segment(&loaded, MODULE);
        assert!(program.functions(&program.bytes(), &loaded).is_none());
    }
}
