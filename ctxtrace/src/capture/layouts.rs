//! The indices of the kernel's table of locators: which locator is at which index, and which indices are free.

use std::collections::HashSet;

use ctxtrace_common::locator::{Locator, MAX_LOCATORS};

/// The locator at each index of the kernel's table, starting with index 1. Index 0 is not used.
#[derive(Debug, Default)]
pub(super) struct Layouts(Vec<Option<Locator>>);

/// The index for a locator in the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocatorSlot {
    /// The locator is already at this index.
    Known(u32),
    /// The locator is not in the table; this index is free.
    Free(u32),
    /// The locator is not in the table, and the table is full.
    None,
}

impl Layouts {
    /// Finds the index of a locator, or a free index for it.
    pub(super) fn place(&self, locator: &Locator) -> LocatorSlot {
        let position = |wanted: &dyn Fn(&Option<Locator>) -> bool| self.0.iter().position(wanted);
        if let Some(index) = position(&|known| known.as_ref() == Some(locator)) {
            return LocatorSlot::Known(index as u32 + 1);
        }
        let free = position(&Option::is_none).unwrap_or(self.0.len()) as u32 + 1;
        if free < MAX_LOCATORS {
            LocatorSlot::Free(free)
        } else {
            LocatorSlot::None
        }
    }

    /// Records that a locator is now at this index, which was free.
    pub(super) fn put(&mut self, index: u32, locator: Locator) {
        let place = index as usize - 1;
        if place == self.0.len() {
            self.0.push(None);
        }
        self.0[place] = Some(locator);
    }

    /// Frees the indices of locators that no program uses any more.
    pub(super) fn keep(&mut self, used: &HashSet<u32>) {
        for (place, locator) in self.0.iter_mut().enumerate() {
            if !used.contains(&(place as u32 + 1)) {
                *locator = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locator(number: u64) -> Locator {
        Locator {
            probe_below_tp: number,
            ..Locator::default()
        }
    }

    #[test]
    fn a_full_table_has_room_again_when_programs_are_gone() {
        let mut layouts = Layouts::default();
        for number in 1..MAX_LOCATORS {
            assert_eq!(layouts.place(&locator(number.into())), LocatorSlot::Free(number));
            layouts.put(number, locator(number.into()));
        }
        assert_eq!(layouts.place(&locator(5)), LocatorSlot::Known(5));
        assert_eq!(layouts.place(&locator(9_999)), LocatorSlot::None);
        layouts.keep(&(1..MAX_LOCATORS).filter(|&index| index != 7).collect());
        assert_eq!(layouts.place(&locator(9_999)), LocatorSlot::Free(7));
        layouts.put(7, locator(9_999));
        assert_eq!(layouts.place(&locator(9_999)), LocatorSlot::Known(7));
    }
}
