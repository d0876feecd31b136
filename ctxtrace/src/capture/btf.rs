//! A reader of BTF, the kernel's own description of its types (kernel: `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`).
//!
//! A kernel describes some 130,000 types, of which ctxtrace needs a few dozen. So the reader records only where each type begins,
//! and decodes names and members from the file's bytes on demand.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

/// Size in bytes of `struct btf_header` in every kernel; newer kernels may append fields.
const HEADER_BYTES: usize = 24;

/// Size in bytes of `struct btf_type`, with which every type begins.
const TYPE_BYTES: usize = 12;

/// Maximum number of modifiers, typedefs and pointers followed from one type to another. Compilers emit a handful; the limit ends
/// a cycle.
const MAX_REFERENCES: usize = 32;

/// Why a file cannot be read as BTF.
#[derive(Debug, thiserror::Error)]
pub(super) enum BtfError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// The file does not begin with a BTF header, or its sections lie outside the file.
    #[error("it does not begin with a valid header of little-endian BTF, version 1")]
    Header,
    /// A type extends beyond the section of types.
    #[error("type {0} is incomplete")]
    Incomplete(usize),
    /// The type's kind is newer than this reader, so its size is unknown.
    #[error("type {id} is of the unknown kind {kind}")]
    UnknownKind {
        /// The number of the type.
        id: usize,
        /// The number of the kind.
        kind: u32,
    },
}

/// The kind of a type: `BTF_KIND_*`, in the order of their numbers, which begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TypeKind {
    Int = 1,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    Forward,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Function,
    Prototype,
    Variable,
    Section,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl TypeKind {
    /// The kind with this number (`include/uapi/linux/btf.h`); `None` if the number is unknown.
    fn of_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Int,
            2 => Self::Pointer,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Forward,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Function,
            13 => Self::Prototype,
            14 => Self::Variable,
            15 => Self::Section,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes between a type's first 12 bytes and its elements.
    fn fixed_bytes(self) -> usize {
        match self {
            Self::Int | Self::Variable | Self::DeclTag => 4,
            Self::Array => 12,
            _ => 0,
        }
    }

    /// Bytes of each element: a member, enumerator, parameter or variable.
    fn element_bytes(self) -> usize {
        match self {
            Self::Struct | Self::Union | Self::Section | Self::Enum64 => 12,
            Self::Enum | Self::Prototype => 8,
            _ => 0,
        }
    }
}

/// The types that a BTF file describes.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// The kind of each type, and where it begins in `bytes`. Type 1 is the first; number 0 means `void`, which is not in the
    /// file.
    types: Vec<(TypeKind, usize)>,
}

impl Btf {
    /// Reads a file that contains only BTF, such as those in `/sys/kernel/btf`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or [`Self::parse`] fails.
    pub(super) fn from_file(path: &Path) -> Result<Self, BtfError> {
        Self::parse(fs::read(path)?)
    }

    /// Finds the types in the bytes of a file.
    ///
    /// # Errors
    ///
    /// If the bytes are not little-endian BTF of version 1, or a type is incomplete or of an unknown kind.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let (types, strings) = sections(&bytes).ok_or(BtfError::Header)?;
        let mut found = Vec::new();
        let mut at = types.start;
        while at < types.end {
            let id = found.len() + 1;
            let info = word(&bytes, at + 4);
            let number = (info >> 24) & 0x7f;
            let kind = TypeKind::of_number(number).ok_or(BtfError::UnknownKind { id, kind: number })?;
            found.push((kind, at));
            at += TYPE_BYTES + kind.fixed_bytes() + elements(info) * kind.element_bytes();
            if at > types.end {
                return Err(BtfError::Incomplete(id));
            }
        }
        Ok(Self {
            bytes,
            strings,
            types: found,
        })
    }

    /// All types of a kind, in the order of their numbers.
    pub(super) fn types(&self, kind: TypeKind) -> impl Iterator<Item = Type<'_>> {
        self.types
            .iter()
            .filter(move |&&(of_type, _)| of_type == kind)
            .map(|&(kind, at)| Type { btf: self, kind, at })
    }

    /// The first type of this kind and name.
    pub(super) fn named(&self, kind: TypeKind, name: &str) -> Option<Type<'_>> {
        self.types(kind).find(|ty| ty.is_named(name))
    }

    /// The type with this number; `None` for `void` and for numbers that are not in the file.
    pub(super) fn by_id(&self, id: u32) -> Option<Type<'_>> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        let &(kind, at) = self.types.get(index)?;
        Some(Type { btf: self, kind, at })
    }

    /// The bytes from this offset in the section of strings to the end of the section.
    fn strings_from(&self, offset: u32) -> &[u8] {
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        strings.get(offset as usize..).unwrap_or_default()
    }

    /// The name at this offset; empty if there is none, if it is not UTF-8 or if it lies outside the section of strings.
    fn name_at(&self, offset: u32) -> &str {
        let name = self.strings_from(offset).split(|&byte| byte == 0).next();
        name.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }
}

/// One type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type<'a> {
    btf: &'a Btf,
    kind: TypeKind,
    /// Offset in bytes at which the type begins in the file.
    at: usize,
}

/// A field of a structure or union.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    /// The member's name; empty for an anonymous structure or union, whose members count as members of the outer type.
    pub(super) name: &'a str,
    /// The number of the member's type.
    pub(super) type_id: u32,
    /// Offset of the member in the structure, in bits.
    pub(super) bit_offset: u32,
}

impl<'a> Type<'a> {
    /// The type's name; empty if it has none.
    pub(super) fn name(self) -> &'a str {
        self.btf.name_at(self.word(0))
    }

    /// Whether the type has this name. Faster than comparing with [`Self::name`], which searches for the end of the name.
    fn is_named(self, name: &str) -> bool {
        let rest = self.btf.strings_from(self.word(0)).strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Follows modifiers, typedefs and, if `pointers` is true, pointers to the first type of one of these kinds, starting with
    /// the type itself. `None` if they lead to another kind.
    pub(super) fn resolve(self, kinds: &[TypeKind], pointers: bool) -> Option<Self> {
        let mut ty = self;
        for _ in 0..MAX_REFERENCES {
            if kinds.contains(&ty.kind) {
                return Some(ty);
            }
            match ty.kind {
                TypeKind::Typedef | TypeKind::Volatile | TypeKind::Const | TypeKind::Restrict | TypeKind::TypeTag => {}
                TypeKind::Pointer if pointers => {}
                _ => return None,
            }
            ty = self.btf.by_id(ty.word(8))?;
        }
        None
    }

    /// The type with a number in the same file.
    pub(super) fn other(self, id: u32) -> Option<Self> {
        self.btf.by_id(id)
    }

    /// The members of a structure or union; empty for other kinds.
    pub(super) fn members(self) -> impl Iterator<Item = Member<'a>> {
        // If the flag is set, the upper byte of an offset is the size of a bit field.
        let mask = if self.word(4) >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        self.elements(&[TypeKind::Struct, TypeKind::Union])
            .map(move |at| Member {
                name: self.btf.name_at(word(&self.btf.bytes, at)),
                type_id: word(&self.btf.bytes, at + 4),
                bit_offset: word(&self.btf.bytes, at + 8) & mask,
            })
    }

    /// The names of an enumeration's values; empty for other kinds.
    pub(super) fn enumerators(self) -> impl Iterator<Item = &'a str> {
        self.elements(&[TypeKind::Enum, TypeKind::Enum64])
            .map(move |at| self.btf.name_at(word(&self.btf.bytes, at)))
    }

    /// The variables of a section, each with its offset in the section in bytes; empty for other kinds.
    pub(super) fn variables(self) -> impl Iterator<Item = (Self, u32)> {
        self.elements(&[TypeKind::Section]).filter_map(move |at| {
            let variable = self.btf.by_id(word(&self.btf.bytes, at))?;
            Some((variable, word(&self.btf.bytes, at + 4)))
        })
    }

    /// The number of parameters of a function prototype; 0 for other kinds.
    pub(super) fn parameters(self) -> usize {
        self.elements(&[TypeKind::Prototype]).count()
    }

    /// The offset of each element in the file; empty if the type is not of one of these kinds.
    fn elements(self, kinds: &[TypeKind]) -> impl Iterator<Item = usize> + use<'a> {
        let count = if kinds.contains(&self.kind) {
            elements(self.word(4))
        } else {
            0
        };
        let first = self.at + TYPE_BYTES + self.kind.fixed_bytes();
        (0..count).map(move |index| first + index * self.kind.element_bytes())
    }

    /// The number at this offset in bytes from the beginning of the type.
    fn word(self, offset: usize) -> u32 {
        word(&self.btf.bytes, self.at + offset)
    }
}

/// The byte ranges of the types and of the strings; `None` if the header is not valid.
fn sections(bytes: &[u8]) -> Option<(Range<usize>, Range<usize>)> {
    const MAGIC_AND_VERSION: [u8; 3] = [0x9f, 0xeb, 1];
    if bytes.len() < HEADER_BYTES || !bytes.starts_with(&MAGIC_AND_VERSION) {
        return None;
    }
    let header = word(bytes, 4) as usize;
    let section = |at: usize| {
        let start = header.checked_add(word(bytes, at) as usize)?;
        let end = start.checked_add(word(bytes, at + 4) as usize)?;
        (end <= bytes.len()).then_some(start..end)
    };
    Some((section(8)?, section(16)?))
}

/// The number of elements, from a type's `info` word: the lower 16 bits today, 24 in future kernels; the bits between are 0.
fn elements(info: u32) -> usize {
    (info & 0x00ff_ffff) as usize
}

/// The number at this offset in the file; 0 beyond its end.
fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Builds BTF for tests.
#[cfg(test)]
pub(super) mod build {
    use super::{Btf, TypeKind};

    /// A BTF file under construction.
    #[derive(Clone, Debug)]
    pub(in super::super) struct BtfBuilder {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl BtfBuilder {
        /// Creates a file without types.
        pub(in super::super) fn new() -> Self {
            Self {
                types: Vec::new(),
                strings: vec![0],
                count: 0,
            }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).expect("the section is short");
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        /// Adds a type with the words that follow it in the file, and returns its number. `of` is its size, or the type that it
        /// refers to.
        fn add(&mut self, kind: TypeKind, name: &str, elements: usize, of: u32, rest: &[u32]) -> u32 {
            let name = self.name(name);
            let info = ((kind as u32) << 24) | u32::try_from(elements).expect("the number of elements fits");
            for word in [name, info, of].iter().chain(rest) {
                self.types.extend(word.to_le_bytes());
            }
            self.count += 1;
            self.count
        }

        /// Adds a type that only refers to another type: a pointer, typedef, modifier or function.
        pub(in super::super) fn reference(&mut self, kind: TypeKind, name: &str, to: u32) -> u32 {
            self.add(kind, name, 0, to, &[])
        }

        /// Adds a structure or union with these members: name, type and offset in bits.
        pub(in super::super) fn composite(&mut self, kind: TypeKind, name: &str, members: &[(&str, u32, u32)]) -> u32 {
            let rest: Vec<u32> = members
                .iter()
                .flat_map(|&(name, of, bits)| [self.name(name), of, bits])
                .collect();
            self.add(kind, name, members.len(), 0, &rest)
        }

        /// Adds a structure with bit fields: name, size in bits (0 for a plain member) and offset in bits.
        pub(in super::super) fn bits(&mut self, name: &str, members: &[(&str, u32, u32)]) -> u32 {
            let packed: Vec<_> = members
                .iter()
                .map(|&(name, size, bits)| (name, 0, (size << 24) | bits))
                .collect();
            let begin = self.types.len();
            let id = self.composite(TypeKind::Struct, name, &packed);
            self.types[begin + 7] |= 0x80;
            id
        }

        /// Adds an enumeration with the values 0, 1 and so on.
        pub(in super::super) fn enumeration(&mut self, kind: TypeKind, name: &str, values: &[&str]) -> u32 {
            let mut rest = Vec::new();
            for (value, name) in (0..).zip(values) {
                rest.extend([self.name(name), value]);
                rest.extend((kind == TypeKind::Enum64).then_some(0));
            }
            self.add(kind, name, values.len(), 4, &rest)
        }

        /// Adds a prototype with this number of parameters.
        pub(in super::super) fn prototype(&mut self, parameters: usize) -> u32 {
            self.add(TypeKind::Prototype, "", parameters, 0, &vec![0; parameters * 2])
        }

        /// Adds a variable.
        pub(in super::super) fn variable(&mut self, name: &str, of: u32) -> u32 {
            self.add(TypeKind::Variable, name, 0, of, &[1])
        }

        /// Adds a section with variables, each with its offset in bytes.
        pub(in super::super) fn section(&mut self, name: &str, variables: &[(u32, u32)]) -> u32 {
            let rest: Vec<u32> = variables.iter().flat_map(|&(id, offset)| [id, offset, 8]).collect();
            self.add(TypeKind::Section, name, variables.len(), 0, &rest)
        }

        /// Adds an `int` of 4 bytes.
        pub(in super::super) fn int(&mut self) -> u32 {
            self.add(TypeKind::Int, "int", 0, 4, &[32])
        }

        /// Adds an array.
        pub(in super::super) fn array(&mut self, of: u32) -> u32 {
            self.add(TypeKind::Array, "", 0, 0, &[of, of, 3])
        }

        /// Adds a declaration tag.
        pub(in super::super) fn declaration_tag(&mut self, name: &str, of: u32) -> u32 {
            self.add(TypeKind::DeclTag, name, 0, of, &[u32::MAX])
        }

        /// The bytes of the BTF file.
        pub(in super::super) fn bytes(&self) -> Vec<u8> {
            let length = |section: &[u8]| u32::try_from(section.len()).expect("the section is short");
            let (types, strings) = (length(&self.types), length(&self.strings));
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            for word in [24, 0, types, types, strings] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend_from_slice(&self.types);
            bytes.extend_from_slice(&self.strings);
            bytes
        }

        /// Parses the file.
        pub(in super::super) fn read(&self) -> Btf {
            Btf::parse(self.bytes()).expect("the BTF is valid")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::build::BtfBuilder;
    use super::*;
    use proptest::prelude::*;

    /// One type of each kind; the last one is a pointer.
    fn all_kinds() -> BtfBuilder {
        let mut btf = BtfBuilder::new();
        let int = btf.int();
        btf.array(int);
        btf.composite(TypeKind::Struct, "pair", &[("first", int, 0), ("second", int, 32)]);
        btf.composite(TypeKind::Union, "either", &[("one", int, 0), ("other", int, 0)]);
        btf.enumeration(TypeKind::Enum, "small", &["NONE", "SOME"]);
        btf.enumeration(TypeKind::Enum64, "wide", &["LEFT", "RIGHT"]);
        let prototype = btf.prototype(3);
        btf.reference(TypeKind::Function, "work", prototype);
        btf.reference(TypeKind::Forward, "hidden", 0);
        btf.reference(TypeKind::Float, "double", 8);
        for (kind, name) in [
            (TypeKind::Typedef, "number"),
            (TypeKind::Volatile, ""),
            (TypeKind::Const, ""),
            (TypeKind::Restrict, ""),
            (TypeKind::TypeTag, "user"),
        ] {
            btf.reference(kind, name, int);
        }
        btf.declaration_tag("tag", int);
        let variable = btf.variable("counter", int);
        btf.section(".data..percpu", &[(variable, 64)]);
        btf.reference(TypeKind::Pointer, "", int);
        btf
    }

    #[test]
    fn every_kind_has_its_size() {
        let bytes = all_kinds().bytes();
        aya::Btf::parse(&bytes, aya::Endianness::Little).expect("aya can parse it, too");
        let btf = Btf::parse(bytes).expect("the BTF is valid");
        for number in 1..=19 {
            let kind = TypeKind::of_number(number).expect("the kind is known");
            assert_eq!(kind as u32, number);
            assert_eq!(btf.types(kind).count(), 1, "{kind:?}");
        }
        let last = btf.by_id(19).expect("the pointer exists");
        assert_eq!(last.kind, TypeKind::Pointer);
        assert!(btf.by_id(0).is_none(), "0 is void");
        assert!(btf.by_id(20).is_none());
    }

    #[test]
    fn a_type_lists_its_elements() {
        let btf = all_kinds().read();
        let pair = btf.named(TypeKind::Struct, "pair").expect("the structure exists");
        let members: Vec<_> = pair.members().map(|member| (member.name, member.bit_offset)).collect();
        assert_eq!(members, [("first", 0), ("second", 32)]);
        for (kind, name, values) in [
            (TypeKind::Enum, "small", ["NONE", "SOME"]),
            (TypeKind::Enum64, "wide", ["LEFT", "RIGHT"]),
        ] {
            let found: Vec<_> = btf
                .named(kind, name)
                .expect("the enumeration exists")
                .enumerators()
                .collect();
            assert_eq!(found, values);
        }
        let prototype = btf.types(TypeKind::Prototype).next().expect("the prototype exists");
        assert_eq!(prototype.parameters(), 3);
        let section = btf
            .named(TypeKind::Section, ".data..percpu")
            .expect("the section exists");
        let variables: Vec<_> = section.variables().map(|(of, at)| (of.name(), at)).collect();
        assert_eq!(variables, [("counter", 64)]);
        // A type of another kind has no such elements.
        assert_eq!(
            pair.enumerators().count() + pair.variables().count() + pair.parameters(),
            0
        );
        assert_eq!(prototype.members().count(), 0);
        assert!(
            btf.named(TypeKind::Struct, "pai").is_none(),
            "only the beginning of the name"
        );
        assert!(btf.named(TypeKind::Union, "pair").is_none(), "the kind is another one");
    }

    #[test]
    fn a_field_of_bits_has_its_offset_without_its_size() {
        let mut btf = BtfBuilder::new();
        btf.bits("flags", &[("whole", 0, 32), ("bit", 1, 69)]);
        let btf = btf.read();
        let flags = btf.named(TypeKind::Struct, "flags").expect("the structure exists");
        let offsets: Vec<_> = flags.members().map(|member| member.bit_offset).collect();
        assert_eq!(offsets, [32, 69]);
    }

    #[test]
    fn references_are_followed_and_circles_are_left() {
        let mut btf = BtfBuilder::new();
        let structure = btf.composite(TypeKind::Struct, "inner", &[]);
        let constant = btf.reference(TypeKind::Const, "", structure);
        btf.reference(TypeKind::Typedef, "alias", constant);
        let pointer = btf.reference(TypeKind::Pointer, "", structure);
        btf.reference(TypeKind::Typedef, "handle", pointer);
        btf.reference(TypeKind::Typedef, "circle", 6);
        let btf = btf.read();
        let resolve = |name, pointers| {
            let ty = btf.named(TypeKind::Typedef, name).expect("the typedef exists");
            ty.resolve(&[TypeKind::Struct], pointers).map(Type::name)
        };
        assert_eq!(resolve("alias", false), Some("inner"));
        assert_eq!(resolve("handle", false), None);
        assert_eq!(resolve("handle", true), Some("inner"));
        assert_eq!(resolve("circle", true), None);
    }

    #[test]
    fn what_is_no_btf_is_refused_with_the_reason() {
        let reason = |bytes: &[u8]| {
            Btf::parse(bytes.to_vec())
                .expect_err("the bytes are refused")
                .to_string()
        };
        let good = all_kinds().bytes();
        let altered = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for bytes in [
            &b""[..],
            &good[..23],
            &good[..good.len() - 1],
            &altered(0, 0),
            &altered(2, 2),
        ] {
            assert!(reason(bytes).contains("valid header"), "{}", reason(bytes));
        }
        // The highest byte of the first type's `info`, then the lowest one of the header's `type_len`.
        assert_eq!(reason(&altered(24 + 7, 20)), "type 1 is of the unknown kind 20");
        let shorter = good[12] - 4;
        assert_eq!(reason(&altered(12, shorter)), "type 19 is incomplete");
    }

    proptest! {
        /// Damaged BTF is either read or refused; the reader never panics.
        #[test]
        fn damaged_btf_ends_no_program(changes in prop::collection::vec((0..10_000_usize, any::<u8>()), 0..20)) {
            let mut bytes = all_kinds().bytes();
            for (at, byte) in changes {
                let length = bytes.len();
                bytes[at % length] = byte;
            }
            if let Ok(btf) = Btf::parse(bytes) {
                for ty in (0..30).filter_map(|id| btf.by_id(id)) {
                    ty.resolve(&[TypeKind::Struct], true);
                    ty.name();
                    ty.members().for_each(drop);
                    ty.enumerators().for_each(drop);
                    ty.variables().for_each(drop);
                    ty.parameters();
                }
            }
        }
    }
}
