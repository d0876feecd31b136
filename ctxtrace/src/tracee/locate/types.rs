//! Reads types from DWARF: the type of a variable, the offset of a member, the discriminant of a variant.
//!
//! A Rust enumeration is a structure with a `DW_TAG_variant_part`. Its discriminant is a member with its own offset and size. In
//! `Option<NonZeroU64>` this member is the number itself, in `Option<Handle>` it is the discriminant of the handle. Each variant
//! has the value of the discriminant that means this variant, except the one that uses the same space for its own data.

use std::cell::RefCell;
use std::rc::Rc;

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo, DebugInfoOffset, DebugLineStr, DebugStr,
    DebugStrOffsets, DebugStrOffsetsBase, DebuggingInformationEntry, EndianSlice, LittleEndian, UnitHeader, UnitOffset,
    constants,
};

use super::budget::ExaminationBudget;
use super::elf::DebugSections;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type DieEntry<'a> = DebuggingInformationEntry<Bytes<'a>>;

/// The maximum number of units, whose headers are kept in memory; beyond it the search fails. A browser has about 50,000 units.
const MAX_UNITS: usize = 1 << 20;
/// The maximum length of a chain of typedefs; a longer chain is an error.
const MAX_NAMES: usize = 8;
/// The maximum number of children of an entry; further children are ignored.
const MAX_CHILDREN: usize = 10_000;
/// The maximum size in bytes of an abbreviation list. A unit with a longer list cannot be read.
const MAX_ABBREVIATION_BYTES: usize = 1 << 20;

/// The reason why types could not be read, as a clause: it names the missing item as in the source, or the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing(pub(super) String);

impl From<gimli::Error> for Missing {
    fn from(error: gimli::Error) -> Self {
        Self(format!("the DWARF cannot be read: {error}"))
    }
}

/// The position of a DWARF entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryPosition {
    /// The index of the entry's unit.
    unit: usize,
    /// The offset of the entry in that unit.
    offset: UnitOffset,
}

/// A value in the thread-local: its type and its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TypedValue {
    /// The entry of the value's type.
    pub(super) place: EntryPosition,
    /// The offset from the beginning of the thread-local, in bytes.
    pub(super) offset: u64,
}

/// The integer that determines the variant of an enumeration, and its value for one of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Discriminant {
    /// The offset from the beginning of the thread-local, in bytes.
    pub(super) offset: u64,
    /// The size of the integer in bytes.
    pub(super) size: u64,
    /// The value for the requested variant.
    pub(super) value: u64,
}

struct Unit<'a> {
    header: UnitHeader<Bytes<'a>>,
    abbreviations: Rc<Abbreviations>,
    str_offsets_base: DebugStrOffsetsBase,
}

/// The type information of a program.
pub(super) struct Types<'a> {
    abbrev: &'a [u8],
    str: DebugStr<Bytes<'a>>,
    line_str: DebugLineStr<Bytes<'a>>,
    str_offsets: DebugStrOffsets<Bytes<'a>>,
    headers: Vec<UnitHeader<Bytes<'a>>>,
    /// The abbreviation list that was read last. It is often needed again: after LTO all units share one list, and otherwise the
    /// types that belong together are in one unit.
    abbreviations: RefCell<Option<(DebugAbbrevOffset, Rc<Abbreviations>)>>,
    budget: &'a ExaminationBudget,
}

impl<'a> Types<'a> {
    /// Reads the headers of all units.
    ///
    /// Fails if there are more units than [`MAX_UNITS`] or than the budget allows.
    pub(super) fn new(sections: &'a DebugSections<'_>, budget: &'a ExaminationBudget) -> Result<Self, Missing> {
        let mut headers = Vec::new();
        let info = DebugInfo::new(&sections.info, LittleEndian);
        let mut units = info.units();
        while let Ok(Some(header)) = units.next() {
            if headers.len() == MAX_UNITS || !budget.take_entry() {
                return Err(too_much());
            }
            headers.push(header);
        }
        Ok(Self {
            abbrev: &sections.abbrev,
            str: DebugStr::new(&sections.str, LittleEndian),
            line_str: DebugLineStr::from(EndianSlice::new(&sections.line_str, LittleEndian)),
            str_offsets: DebugStrOffsets::from(EndianSlice::new(&sections.str_offsets, LittleEndian)),
            headers,
            abbreviations: RefCell::default(),
            budget,
        })
    }

    /// Returns the type of the variable with this symbol, and the name of the unit that declares it; `None` if no unit does.
    ///
    /// Units whose names contain `hint` are read first, which are usually the few units of one crate among thousands.
    pub(super) fn variable(&self, symbol: &str, hint: &str) -> Result<Option<(EntryPosition, String)>, Missing> {
        let mut others = Vec::new();
        for index in 0..self.headers.len() {
            match self.unit_and_name(index) {
                Ok((unit, name)) if name.contains(hint) => match self.variable_in(index, &unit, symbol) {
                    Ok(Some(place)) => return Ok(Some((place, name))),
                    other => self.go_on(other)?,
                },
                Ok(_) => others.push(index),
                other => self.go_on(other)?,
            }
        }
        for index in others {
            let found = self
                .unit_and_name(index)
                .and_then(|(unit, name)| Ok((self.variable_in(index, &unit, symbol)?, name)));
            match found {
                Ok((Some(place), name)) => return Ok(Some((place, name))),
                other => self.go_on(other)?,
            }
        }
        Ok(None)
    }

    /// Returns the structure with this name that is declared at the top level of a unit; `None` if there is none.
    ///
    /// Units whose name is `hint` are read first.
    pub(super) fn structure(&self, name: &str, hint: &str) -> Result<Option<EntryPosition>, Missing> {
        let mut others = Vec::new();
        for index in 0..self.headers.len() {
            match self.unit_and_name(index) {
                Ok((unit, unit_name)) if unit_name == hint => match self.structure_in(index, &unit, name) {
                    Ok(Some(place)) => return Ok(Some(place)),
                    other => self.go_on(other)?,
                },
                Ok(_) => others.push(index),
                other => self.go_on(other)?,
            }
        }
        for index in others {
            match self.unit(index).and_then(|unit| self.structure_in(index, &unit, name)) {
                Ok(Some(place)) => return Ok(Some(place)),
                other => self.go_on(other)?,
            }
        }
        Ok(None)
    }

    fn structure_in(&self, index: usize, unit: &Unit<'a>, name: &str) -> Result<Option<EntryPosition>, Missing> {
        let mut entries = unit.header.entries_raw(&unit.abbreviations, None)?;
        let mut attributes = Vec::new();
        while !entries.is_empty() {
            self.step()?;
            let (depth, offset) = (entries.next_depth(), entries.next_offset());
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            if depth != 1 || abbreviation.tag() != constants::DW_TAG_structure_type {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            let is_it = attributes.iter().any(|attribute| {
                attribute.name() == constants::DW_AT_name && self.text(unit, attribute.value()) == Some(name.as_bytes())
            });
            if is_it {
                return Ok(Some(EntryPosition { unit: index, offset }));
            }
        }
        Ok(None)
    }

    /// Ignores the error of a unit that cannot be read, because it may come from another compiler. If the budget is exhausted,
    /// the error is returned and ends the search.
    fn go_on<T>(&self, outcome: Result<T, Missing>) -> Result<(), Missing> {
        match outcome {
            Err(missing) if self.is_exhausted() => Err(missing),
            _ => Ok(()),
        }
    }

    fn variable_in(&self, index: usize, unit: &Unit<'a>, symbol: &str) -> Result<Option<EntryPosition>, Missing> {
        let mut entries = unit.header.entries_raw(&unit.abbreviations, None)?;
        let mut attributes = Vec::new();
        while !entries.is_empty() {
            self.step()?;
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            if abbreviation.tag() != constants::DW_TAG_variable {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            let is_it = attributes.iter().any(|attribute| {
                matches!(
                    attribute.name(),
                    constants::DW_AT_linkage_name | constants::DW_AT_MIPS_linkage_name
                ) && self.text(unit, attribute.value()) == Some(symbol.as_bytes())
            });
            let kind = attributes
                .iter()
                .find(|attribute| attribute.name() == constants::DW_AT_type);
            if let (true, Some(kind)) = (is_it, kind) {
                return self.referred(index, kind.value()).map(Some);
            }
        }
        Ok(None)
    }

    /// The name of a type, without its namespaces.
    pub(super) fn name(&self, place: EntryPosition) -> Result<String, Missing> {
        let (unit, entry) = self.entry(place)?;
        Ok(self.name_of(&unit, &entry).unwrap_or_default())
    }

    /// The size of a type in bytes.
    pub(super) fn size(&self, place: EntryPosition) -> Result<u64, Missing> {
        let (_, entry) = self.entry(place)?;
        match entry
            .attr_value(constants::DW_AT_byte_size)
            .and_then(|size| size.udata_value())
        {
            Some(size) => Ok(size),
            // A pointer type need not have a size attribute; its size is that of the machine's pointers.
            None if entry.tag() == constants::DW_TAG_pointer_type => Ok(8),
            None => Err(self.missing(place, "size")),
        }
    }

    /// Whether a type is a pointer.
    pub(super) fn is_pointer(&self, place: EntryPosition) -> Result<bool, Missing> {
        Ok(self.entry(place)?.1.tag() == constants::DW_TAG_pointer_type)
    }

    /// Resolves typedefs to the type itself. Go writes a typedef for each type.
    pub(super) fn unnamed(&self, place: EntryPosition) -> Result<EntryPosition, Missing> {
        let mut place = place;
        for _ in 0..MAX_NAMES {
            let (_, entry) = self.entry(place)?;
            if entry.tag() != constants::DW_TAG_typedef {
                return Ok(place);
            }
            let kind = entry.attr_value(constants::DW_AT_type);
            let kind = kind.ok_or_else(|| self.missing(place, "underlying type"))?;
            place = self.referred(place.unit, kind)?;
        }
        Err(self.missing(place, "underlying type"))
    }

    /// The type that a pointer points to, with typedefs resolved.
    pub(super) fn target(&self, pointer: EntryPosition) -> Result<EntryPosition, Missing> {
        let (_, entry) = self.entry(pointer)?;
        let kind = entry.attr_value(constants::DW_AT_type);
        match kind.filter(|_| entry.tag() == constants::DW_TAG_pointer_type) {
            Some(kind) => self.unnamed(self.referred(pointer.unit, kind)?),
            None => Err(self.missing(pointer, "target type")),
        }
    }

    /// Whether a structure has a member with this name.
    pub(super) fn has_member(&self, place: EntryPosition, name: &str) -> Result<bool, Missing> {
        Ok(self.find_member(place, name)?.is_some())
    }

    /// Returns the member with this name of a structure.
    pub(super) fn member(&self, of: TypedValue, name: &str) -> Result<TypedValue, Missing> {
        let (place, offset) = self
            .find_member(of.place, name)?
            .ok_or_else(|| self.missing(of.place, name))?;
        let offset = of
            .offset
            .checked_add(offset)
            .ok_or_else(|| self.missing(of.place, name))?;
        Ok(TypedValue { place, offset })
    }

    /// Returns the integer, and its value, which mean that an enumeration is in the variant with this name.
    pub(super) fn discriminant(&self, of: TypedValue, variant: &str) -> Result<Discriminant, Missing> {
        let missing = || self.missing(of.place, variant);
        let (_, entry) = self.entry(of.place)?;
        let (size, offset, value) = if entry.tag() == constants::DW_TAG_enumeration_type {
            let value = self.enumerator(of.place, variant)?.ok_or_else(missing)?;
            (self.size(of.place)?, 0, value)
        } else {
            let part = self.variant_part(of.place)?.ok_or_else(missing)?;
            let (_, entry) = self.entry(part)?;
            let discriminant = entry.attr_value(constants::DW_AT_discr).ok_or_else(missing)?;
            let discriminant = self.referred(part.unit, discriminant)?;
            let (_, member) = self.entry(discriminant)?;
            let kind = member.attr_value(constants::DW_AT_type).ok_or_else(missing)?;
            let size = self.size(self.referred(discriminant.unit, kind)?)?;
            let (_, value) = self.find_variant(part, variant)?.ok_or_else(missing)?;
            (size, location(&member).ok_or_else(missing)?, value.ok_or_else(missing)?)
        };
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(missing());
        }
        Ok(Discriminant {
            offset: of.offset.checked_add(offset).ok_or_else(missing)?,
            size,
            value: value & (u64::MAX >> (64 - 8 * size)),
        })
    }

    /// Returns the data of a variant of an enumeration: a structure with members `__0`, `__1` and so on, or with named members.
    pub(super) fn payload(&self, of: TypedValue, variant: &str) -> Result<TypedValue, Missing> {
        let missing = || self.missing(of.place, variant);
        let part = self.variant_part(of.place)?.ok_or_else(missing)?;
        let (member, _) = self.find_variant(part, variant)?.ok_or_else(missing)?;
        let (_, entry) = self.entry(member)?;
        let kind = entry.attr_value(constants::DW_AT_type).ok_or_else(missing)?;
        let offset = location(&entry).and_then(|offset| of.offset.checked_add(offset));
        Ok(TypedValue {
            place: self.referred(member.unit, kind)?,
            offset: offset.ok_or_else(missing)?,
        })
    }

    /// Returns the error for a type that lacks the item `name`.
    pub(super) fn missing(&self, place: EntryPosition, name: &str) -> Missing {
        let owner = self.name(place).unwrap_or_default();
        Missing(format!("`{owner}` has no `{name}`"))
    }

    fn find_member(&self, place: EntryPosition, name: &str) -> Result<Option<(EntryPosition, u64)>, Missing> {
        for (place, unit, entry) in self.children(place)? {
            if entry.tag() == constants::DW_TAG_member && self.is_named(&unit, &entry, name) {
                let kind = entry.attr_value(constants::DW_AT_type);
                if let (Some(kind), Some(offset)) = (kind, location(&entry)) {
                    return Ok(Some((self.referred(place.unit, kind)?, offset)));
                }
            }
        }
        Ok(None)
    }

    fn enumerator(&self, place: EntryPosition, name: &str) -> Result<Option<u64>, Missing> {
        let children = self.children(place)?;
        let found = children
            .iter()
            .find(|(_, unit, entry)| entry.tag() == constants::DW_TAG_enumerator && self.is_named(unit, entry, name));
        Ok(found.and_then(|(_, _, entry)| number(entry, constants::DW_AT_const_value)))
    }

    fn variant_part(&self, place: EntryPosition) -> Result<Option<EntryPosition>, Missing> {
        let children = self.children(place)?;
        let part = children
            .iter()
            .find(|(_, _, entry)| entry.tag() == constants::DW_TAG_variant_part);
        Ok(part.map(|(place, _, _)| *place))
    }

    /// Returns the member that represents the variant with this name, and the value of the discriminant for this variant.
    fn find_variant(&self, part: EntryPosition, name: &str) -> Result<Option<(EntryPosition, Option<u64>)>, Missing> {
        for (variant, _, entry) in self.children(part)? {
            if entry.tag() != constants::DW_TAG_variant {
                continue;
            }
            for (member, unit, inner) in self.children(variant)? {
                if inner.tag() == constants::DW_TAG_member && self.is_named(&unit, &inner, name) {
                    return Ok(Some((member, number(&entry, constants::DW_AT_discr_value))));
                }
            }
        }
        Ok(None)
    }

    /// Returns the direct children of an entry.
    fn children(&self, place: EntryPosition) -> Result<Vec<(EntryPosition, Rc<Unit<'a>>, DieEntry<'a>)>, Missing> {
        let unit = Rc::new(self.unit(place.unit)?);
        let mut children = Vec::new();
        let mut entries = unit.header.entries_raw(&unit.abbreviations, Some(place.offset))?;
        let mut entry = DieEntry::null();
        entries.read_entry(&mut entry)?;
        while !entries.is_empty() && entries.next_depth() > 0 && children.len() < MAX_CHILDREN {
            self.step()?;
            let (depth, offset) = (entries.next_depth(), entries.next_offset());
            if depth > 1 {
                if let Some(abbreviation) = entries.read_abbreviation()? {
                    entries.skip_attributes(abbreviation.attributes())?;
                }
            } else if entries.read_entry(&mut entry)? {
                let place = EntryPosition {
                    unit: place.unit,
                    offset,
                };
                children.push((place, Rc::clone(&unit), entry.clone()));
            }
        }
        Ok(children)
    }

    fn entry(&self, place: EntryPosition) -> Result<(Unit<'a>, DieEntry<'a>), Missing> {
        self.step()?;
        let unit = self.unit(place.unit)?;
        let entry = unit.header.entry(&unit.abbreviations, place.offset)?;
        Ok((unit, entry))
    }

    /// Returns the entry that an attribute refers to. It may be in another unit, because LTO merges equal types of several units.
    fn referred(&self, from: usize, value: AttributeValue<Bytes<'a>>) -> Result<EntryPosition, Missing> {
        match value {
            AttributeValue::UnitRef(offset) => Ok(EntryPosition { unit: from, offset }),
            AttributeValue::DebugInfoRef(offset) => self.place_of(offset),
            _ => Err(Missing("a type is not in the same file".into())),
        }
    }

    fn place_of(&self, offset: DebugInfoOffset) -> Result<EntryPosition, Missing> {
        let after = self
            .headers
            .partition_point(|header| header.debug_info_offset().is_some_and(|start| start <= offset));
        let unit = after
            .checked_sub(1)
            .and_then(|unit| Some((unit, self.headers.get(unit)?)));
        unit.and_then(|(unit, header)| {
            let offset = offset.to_unit_offset(header)?;
            Some(EntryPosition { unit, offset })
        })
        .ok_or_else(|| Missing("a type is not in the same file".into()))
    }

    fn unit_and_name(&self, index: usize) -> Result<(Unit<'a>, String), Missing> {
        self.step()?;
        let unit = self.unit(index)?;
        let root = unit.header.entry(&unit.abbreviations, unit.header.root_offset())?;
        let name = self.name_of(&unit, &root).unwrap_or_default();
        Ok((unit, name))
    }

    fn unit(&self, index: usize) -> Result<Unit<'a>, Missing> {
        if self.is_exhausted() {
            return Err(too_much());
        }
        let header = *self
            .headers
            .get(index)
            .ok_or_else(|| Missing("a DWARF unit is missing".into()))?;
        let abbreviations = self.abbreviations(header.debug_abbrev_offset())?;
        let mut str_offsets_base = DebugStrOffsetsBase(if header.version() < 5 { 0 } else { 8 });
        if header.version() >= 5 {
            let root = header.entry(&abbreviations, header.root_offset())?;
            let base = root.attr_value(constants::DW_AT_str_offsets_base);
            if let Some(AttributeValue::DebugStrOffsetsBase(base)) = base {
                str_offsets_base = base;
            }
        }
        Ok(Unit {
            header,
            abbreviations,
            str_offsets_base,
        })
    }

    fn abbreviations(&self, offset: DebugAbbrevOffset) -> Result<Rc<Abbreviations>, Missing> {
        if let Some((_, known)) = self.abbreviations.borrow().as_ref().filter(|(of, _)| *of == offset) {
            return Ok(Rc::clone(known));
        }
        let rest = self.abbrev.get(offset.0..).unwrap_or_default();
        let list = DebugAbbrev::new(&rest[..rest.len().min(MAX_ABBREVIATION_BYTES)], LittleEndian);
        let abbreviations = Rc::new(list.abbreviations(DebugAbbrevOffset(0))?);
        self.abbreviations.replace(Some((offset, Rc::clone(&abbreviations))));
        Ok(abbreviations)
    }

    fn is_named(&self, unit: &Unit<'a>, entry: &DieEntry<'a>, name: &str) -> bool {
        let value = entry.attr_value(constants::DW_AT_name);
        value.and_then(|value| self.text(unit, value)) == Some(name.as_bytes())
    }

    fn name_of(&self, unit: &Unit<'a>, entry: &DieEntry<'a>) -> Option<String> {
        let text = self.text(unit, entry.attr_value(constants::DW_AT_name)?)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn text(&self, unit: &Unit<'a>, value: AttributeValue<Bytes<'a>>) -> Option<&'a [u8]> {
        let text = match value {
            AttributeValue::String(text) => Some(text),
            AttributeValue::DebugStrRef(offset) => self.str.get_str(offset).ok(),
            AttributeValue::DebugLineStrRef(offset) => self.line_str.get_str(offset).ok(),
            AttributeValue::DebugStrOffsetsIndex(index) => self
                .str_offsets
                .get_str_offset(unit.header.format(), unit.str_offsets_base, index)
                .and_then(|offset| self.str.get_str(offset))
                .ok(),
            _ => None,
        };
        text.map(|text| text.slice())
    }

    fn step(&self) -> Result<(), Missing> {
        if self.budget.take_entry() {
            Ok(())
        } else {
            Err(too_much())
        }
    }

    fn is_exhausted(&self) -> bool {
        self.budget.is_exhausted()
    }
}

pub(super) fn too_much() -> Missing {
    Missing("the DWARF is too large to be read".into())
}

fn location(entry: &DieEntry<'_>) -> Option<u64> {
    number(entry, constants::DW_AT_data_member_location)
}

/// Returns an integer attribute. A negative value is returned as the unsigned integer with the same bits.
fn number(entry: &DieEntry<'_>, name: constants::DwAt) -> Option<u64> {
    let value = entry.attr_value(name)?;
    value
        .udata_value()
        .or_else(|| value.sdata_value().map(i64::cast_unsigned))
}
