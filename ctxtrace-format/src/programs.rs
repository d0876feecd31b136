//! The programs that the processes of the target ran, and how the tasks of each program are found.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use ctxtrace_common::locator::Reason;
use ctxtrace_common::process::Image;
use serde::{Deserialize, Serialize};

use super::executable::Found;
use super::mappings::FileIdentity;

/// The locators to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LocatorChoice {
    /// Every locator that the program supports
    #[default]
    Auto,
    /// The slot of `ctxtrace-probe`
    Probe,
    /// The thread-locals of an unmodified tokio
    Tokio,
    /// The goroutines of an unmodified Go program
    Go,
    /// No locator; only threads are traced
    None,
}

/// An executable that a process of the target has run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The path of the executable, as the kernel shows it.
    #[serde(with = "crate::stored_path")]
    pub path: PathBuf,
    /// The result of the examination.
    pub found: Found,
    /// The identity of the file; `None` in captures of releases that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
}

/// All programs that the target has run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Programs {
    choice: LocatorChoice,
    programs: Vec<Program>,
    /// The index of each image's program; `None` for an image that has not executed a program.
    by_image: HashMap<Image, Option<usize>>,
}

impl Programs {
    /// Creates an empty list of programs.
    #[must_use]
    pub fn new(choice: LocatorChoice) -> Self {
        Self {
            choice,
            ..Self::default()
        }
    }

    /// The locators that were requested.
    #[must_use]
    pub fn choice(&self) -> LocatorChoice {
        self.choice
    }

    /// Adds a program that is not in the list yet, and returns its index.
    pub fn push(&mut self, program: Program) -> usize {
        self.programs.push(program);
        self.programs.len() - 1
    }

    /// Returns the index of the program with this file.
    #[must_use]
    pub fn index_of(&self, file: FileIdentity) -> Option<usize> {
        self.programs.iter().position(|program| program.file == Some(file))
    }

    /// Assigns a program to an image by its index, or records that the image has not executed a program.
    pub fn assign(&mut self, image: Image, index: Option<usize>) {
        self.by_image.insert(image, index);
    }

    /// Whether it is known which program the image runs, or that it has not executed one.
    #[must_use]
    pub fn is_assigned(&self, image: Image) -> bool {
        self.by_image.contains_key(&image)
    }

    /// Whether it is known that the image has not executed a program.
    #[must_use]
    pub fn has_none(&self, image: Image) -> bool {
        self.by_image.get(&image) == Some(&None)
    }

    /// The number of images of which it is known which program they run.
    #[must_use]
    pub fn assigned(&self) -> usize {
        self.by_image.len()
    }

    /// Removes all images for which `is_kept` is false, but not their programs.
    pub fn retain_images(&mut self, is_kept: impl Fn(Image) -> bool) {
        self.by_image.retain(|&image, _| is_kept(image));
    }

    /// Removes the programs that no image runs.
    pub fn remove_unused(&mut self) {
        let used: BTreeSet<usize> = self.by_image.values().copied().flatten().collect();
        let places: HashMap<usize, usize> = used.iter().enumerate().map(|(place, &index)| (index, place)).collect();
        for index in self.by_image.values_mut().flatten() {
            *index = places[index];
        }
        let all = std::mem::take(&mut self.programs).into_iter().enumerate();
        self.programs = all
            .filter(|(index, _)| used.contains(index))
            .map(|(_, program)| program)
            .collect();
    }

    /// The program that an image runs, if it is known, for changing it.
    pub fn get_mut(&mut self, image: Image) -> Option<&mut Program> {
        let index = self.by_image.get(&image).copied().flatten()?;
        self.programs.get_mut(index)
    }

    /// The program that an image runs, if it is known.
    #[must_use]
    pub fn get(&self, image: Image) -> Option<&Program> {
        let index = self.by_image.get(&image).copied().flatten()?;
        self.programs.get(index)
    }

    /// The known program that a process ran last.
    #[must_use]
    pub fn of_process(&self, tgid: u32) -> Option<&Program> {
        let images = self.by_image.iter().filter(|(image, _)| image.tgid == tgid);
        let known = images.filter_map(|(image, index)| Some((image.number, (*index)?)));
        let (_, index) = known.max_by_key(|&(number, _)| number)?;
        self.programs.get(index)
    }

    /// All programs, each once.
    #[must_use]
    pub fn all(&self) -> &[Program] {
        &self.programs
    }

    /// Returns the reason that applies after the run to switches that were recorded with the reason `noted`.
    ///
    /// [`Reason::NotExamined`] is replaced by the program's own reason if the program has no locator; this is [`Reason::None`] if
    /// it has no tasks. [`Reason::None`] is replaced by [`Reason::SharedObject`] if a runtime was found in a shared object. All
    /// other reasons stay.
    #[must_use]
    pub fn settle(&self, image: Image, noted: Reason) -> Reason {
        let Some(program) = self.get(image) else {
            return noted;
        };
        let locator = &program.found.locator;
        let own = Reason::from_number(locator.reason);
        match noted {
            // This reason is found only after the run. During the run the program was treated as one without tasks.
            Reason::None if own == Reason::SharedObject => own,
            Reason::NotExamined if locator.flags == 0 => own,
            noted => noted,
        }
    }
}
