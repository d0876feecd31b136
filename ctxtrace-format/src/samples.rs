//! Samples of what the target did on its CPUs, taken by a timer: each has a time and a pair of stacks.

use std::collections::HashMap;

use ctxtrace_common::process::Image;

/// The code that a thread was executing when the timer took a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SamplePlace {
    /// The program that the thread ran.
    pub image: Image,
    /// Whether the thread was in the kernel.
    pub in_kernel: bool,
    /// Key of the kernel stack in [`super::Aggregates::stacks`]; 0 if there is none.
    pub kernel_stack: u64,
    /// Key of the user stack in the same map; 0 if there is none.
    pub user_stack: u64,
}

/// All samples of a run, each in 16 bytes. All of them are kept because the part of the run that is reported is often known only
/// at its end.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    places: Vec<SamplePlace>,
    place_of: HashMap<SamplePlace, u32>,
    taken: Vec<(u64, u32)>,
}

impl Samples {
    /// Adds one sample.
    pub fn add(&mut self, at_ns: u64, place: SamplePlace) {
        let index = *self.place_of.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.places.len() as u32 - 1
        });
        self.taken.push((at_ns, index));
    }

    /// The distinct places, in the order of their first samples.
    #[must_use]
    pub fn places(&self) -> &[SamplePlace] {
        &self.places
    }

    /// Iterates over the samples: the time of each (`CLOCK_MONOTONIC`, nanoseconds) and its place.
    pub fn iter(&self) -> impl Iterator<Item = (u64, SamplePlace)> {
        self.taken
            .iter()
            .map(|&(at_ns, index)| (at_ns, self.places[index as usize]))
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_once_and_every_sample_comes_back() {
        let place = |user_stack| SamplePlace {
            image: Image { tgid: 1, number: 0 },
            in_kernel: false,
            kernel_stack: 0,
            user_stack,
        };
        let taken = [(10, place(7)), (20, place(8)), (30, place(7))];
        let mut samples = Samples::default();
        assert!(samples.is_empty());
        for (at_ns, place) in taken {
            samples.add(at_ns, place);
        }
        assert_eq!(samples.iter().collect::<Vec<_>>(), taken);
        assert_eq!((samples.len(), samples.places().len()), (3, 2));
    }
}
