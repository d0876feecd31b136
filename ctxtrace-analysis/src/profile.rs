//! On-CPU time of a run by category of code and by function, estimated from samples.
//!
//! A sample shows where a thread was, not for how long. The total on-CPU time is known exactly from the switches, and is divided
//! among the samples.

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::BTreeMap;

use crate::symbolize::category::{Belongs, Category, on_cpu};
use crate::symbolize::stacks;
use ctxtrace_format::run::Run;
use ctxtrace_format::samples::SamplePlace;

/// Number of samples by function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    by: BTreeMap<Belongs, u64>,
    samples: u64,
    in_kernel: u64,
}

/// A number of samples with something in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share<T> {
    /// What they have in common: a category or a function.
    pub of: T,
    /// Number of samples.
    pub samples: u64,
}

/// Returns the number of samples at each place, counting only samples at times for which `counts` returns true.
#[must_use]
pub fn places(run: &Run, counts: impl Fn(u64) -> bool) -> BTreeMap<SamplePlace, u64> {
    let mut places = BTreeMap::new();
    for (at_ns, place) in run.samples.iter() {
        if counts(at_ns) {
            *places.entry(place).or_default() += 1;
        }
    }
    places
}

impl Profile {
    /// Makes a profile from the number of samples at each place of a run.
    #[must_use]
    pub fn from_places(run: &Run, places: &BTreeMap<SamplePlace, u64>) -> Self {
        let mut profile = Self::default();
        for (place, &samples) in places {
            let belongs = on_cpu(&stacks::sampled(run, place), place.in_kernel);
            profile.add(belongs, samples, place.in_kernel);
        }
        profile
    }

    fn add(&mut self, belongs: Belongs, samples: u64, in_kernel: bool) {
        add(self.by.entry(belongs).or_default(), samples);
        add(&mut self.samples, samples);
        add(&mut self.in_kernel, if in_kernel { samples } else { 0 });
    }

    /// Adds the samples of another run.
    pub fn merge(&mut self, other: &Self) {
        for (belongs, samples) in &other.by {
            add(self.by.entry(belongs.clone()).or_default(), *samples);
        }
        add(&mut self.samples, other.samples);
        add(&mut self.in_kernel, other.in_kernel);
    }

    /// Returns the number of samples.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Returns the number of samples in the kernel.
    #[must_use]
    pub fn in_kernel(&self) -> u64 {
        self.in_kernel
    }

    /// Returns the samples by category, the category with the most samples first.
    #[must_use]
    pub fn categories(&self) -> Vec<Share<Category>> {
        let mut by: BTreeMap<Category, u64> = BTreeMap::new();
        for (belongs, samples) in &self.by {
            add(by.entry(belongs.category).or_default(), *samples);
        }
        sorted(by.into_iter().map(|(of, samples)| Share { of, samples }).collect())
    }

    /// Returns the samples by function, the function with the most samples first.
    #[must_use]
    pub fn functions(&self) -> Vec<Share<Belongs>> {
        let by = self.by.iter().map(|(of, &samples)| Share {
            of: of.clone(),
            samples,
        });
        sorted(by.collect())
    }

    /// Returns the number of samples in one category.
    #[must_use]
    pub fn in_category(&self, category: Category) -> u64 {
        let of = |(belongs, samples): (&Belongs, &u64)| if belongs.category == category { *samples } else { 0 };
        self.by.iter().map(of).saturating_sum()
    }
}

/// Sorts by the number of samples, most first. Shares with equal numbers keep their order.
fn sorted<T>(mut shares: Vec<Share<T>>) -> Vec<Share<T>> {
    shares.sort_by_key(|share| std::cmp::Reverse(share.samples));
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_add_up_by_kind_and_by_function() {
        let belongs = |category, function: &str| Belongs {
            category,
            function: function.to_owned(),
        };
        let mut profile = Profile::default();
        profile.add(belongs(Category::Allocator, "malloc"), 3, false);
        profile.add(belongs(Category::Kernel, "futex"), 9, true);
        let mut other = Profile::default();
        other.add(belongs(Category::Allocator, "free"), 2, false);
        profile.merge(&other);
        assert_eq!((profile.samples(), profile.in_kernel()), (14, 9));
        assert_eq!(profile.in_category(Category::Allocator), 5);
        let categories: Vec<_> = profile
            .categories()
            .iter()
            .map(|share| (share.of, share.samples))
            .collect();
        assert_eq!(categories, [(Category::Kernel, 9), (Category::Allocator, 5)]);
        let functions: Vec<_> = profile.functions().into_iter().map(|share| share.of.function).collect();
        assert_eq!(functions, ["futex", "malloc", "free"]);
    }
}
