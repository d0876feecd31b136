//! Which program each process runs, and how its tasks are found.
//!
//! An executable is examined once, however many processes run it. Those that are known before the run are examined before
//! it; others when they are executed, while they start. What was executed and gone before anybody could look is examined
//! when the run is over: then its switches are put where they belong if it proves to have no tasks, and stay unattributed
//! if it has.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Locator, Reason};
use ctxtrace_common::process::Image;
use serde::{Deserialize, Serialize};

use super::locate::{Found, is_of_go, is_of_tokio};
use super::mappings::Mappings;
use crate::reader::{FileReader, ReadFailure, open_regular_file};

/// Longest time for all files that are read once the run is over.
const COMPLETION_TIME: Duration = Duration::from_secs(10);

/// Which locators to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LocatorChoice {
    /// Whatever the program has
    #[default]
    Auto,
    /// The slot of `ctxtrace-probe`
    Probe,
    /// The thread-locals of an unmodified tokio
    Tokio,
    /// The goroutines of an unmodified Go program
    Go,
    /// None: threads only
    None,
}

/// One executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its path, as the kernel shows it.
    #[serde(with = "super::stored_path")]
    pub path: PathBuf,
    /// What was found in it.
    pub found: Found,
}

/// Every program that the target has run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Programs {
    choice: LocatorChoice,
    programs: Vec<Program>,
    /// `None` for an image that is nobody's program.
    by_image: HashMap<Image, Option<usize>>,
}

impl Programs {
    /// Nothing yet.
    #[must_use]
    pub fn new(choice: LocatorChoice) -> Self {
        Self {
            choice,
            ..Self::default()
        }
    }

    /// Says that an image runs this executable, and returns how its tasks are found. `examine` is called if nothing is known of it
    /// yet.
    pub fn assign(&mut self, image: Image, path: &Path, examine: impl FnOnce() -> Found) -> Locator {
        let index = self
            .programs
            .iter()
            .position(|program| program.path == path)
            .unwrap_or_else(|| {
                let mut found = examine();
                restrict(&mut found.locator, self.choice);
                self.programs.push(Program {
                    path: path.to_owned(),
                    found,
                });
                self.programs.len() - 1
            });
        self.by_image.insert(image, Some(index));
        self.programs[index].found.locator
    }

    /// Whether this executable has been examined.
    #[must_use]
    pub fn has_examined(&self, path: &Path) -> bool {
        self.programs.iter().any(|program| program.path == path)
    }

    /// Says that an image has no tasks and is not to be looked at: a child that has not executed its program yet.
    pub fn assign_none(&mut self, image: Image) -> Locator {
        self.by_image.insert(image, None);
        Locator::default()
    }

    /// Images that have no program yet, each with its executable: what was mapped first.
    #[must_use]
    pub fn unassigned(&self, mappings: &Mappings) -> Vec<(Image, PathBuf)> {
        mappings
            .images()
            .filter(|(image, _)| !self.by_image.contains_key(image))
            .filter_map(|(image, mapped)| {
                Some((
                    image,
                    mapped.iter().find(|mapping| is_file(&mapping.path))?.path.clone(),
                ))
            })
            .collect()
    }

    /// Which locators were to be used.
    #[must_use]
    pub fn choice(&self) -> LocatorChoice {
        self.choice
    }

    /// Once the run is over: assigns what is left, and looks for tokio and Go in shared objects. All of it may take
    /// [`COMPLETION_TIME`]; a program that has shared objects which were not searched in this time says so.
    pub fn complete(&mut self, mappings: &Mappings, reader: &mut FileReader) {
        let until = Instant::now() + COMPLETION_TIME;
        for (image, path) in self.unassigned(mappings) {
            self.assign(image, &path, || {
                let file = mappings.file(image.tgid, &path);
                examine_until(until, reader, &path, &file)
            });
        }
        let (tokio, go) = match self.choice {
            LocatorChoice::Auto => (true, true),
            LocatorChoice::Tokio => (true, false),
            LocatorChoice::Go => (false, true),
            LocatorChoice::Probe | LocatorChoice::None => return,
        };
        let mut objects: HashMap<&Path, Searched> = HashMap::new();
        for (image, mapped) in mappings.images() {
            let index = self.by_image.get(&image).copied().flatten();
            let Some(program) = index.map(|index| &mut self.programs[index]) else {
                continue;
            };
            let locator = &mut program.found.locator;
            if locator.flags != 0 || locator.reason != Reason::None as u32 {
                continue;
            }
            let paths = mapped
                .iter()
                .map(|mapping| mapping.path.as_path())
                .filter(|&path| is_file(path) && path != program.path);
            let mut not_searched = None;
            for path in paths {
                let searched = objects.entry(path).or_insert_with(|| {
                    let file = open_regular_file(&mappings.file(image.tgid, path));
                    // What cannot be opened was never searched; the names of its functions say why.
                    file.map_or(Searched::Nothing, |file| {
                        match reader.mentions(&file, tokio, go, until) {
                            Ok(true) => Searched::Runtime,
                            Ok(false) => Searched::Nothing,
                            Err(failure) => Searched::Failed(failure),
                        }
                    })
                });
                match searched {
                    Searched::Runtime => {
                        locator.reason = Reason::SharedObject as u32;
                        program.found.detail = Some(path.display().to_string());
                        break;
                    }
                    Searched::Nothing => {}
                    Searched::Failed(failure) => {
                        let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                        not_searched.get_or_insert_with(|| failure.in_words(&shown));
                    }
                }
            }
            if let Some(why) = not_searched
                && locator.reason == Reason::None as u32
            {
                program.found.detail = Some(format!("not every shared object was searched for a runtime: {why}"));
            }
        }
    }

    /// The program an image runs.
    #[must_use]
    pub fn get(&self, image: Image) -> Option<&Program> {
        let index = self.by_image.get(&image).copied().flatten()?;
        self.programs.get(index)
    }

    /// The program a process ran last.
    #[must_use]
    pub fn of_process(&self, tgid: u32) -> Option<&Program> {
        let images = self.by_image.iter().filter(|(image, _)| image.tgid == tgid);
        let known = images.filter_map(|(image, index)| Some((image.number, (*index)?)));
        let (_, index) = known.max_by_key(|&(number, _)| number)?;
        self.programs.get(index)
    }

    /// All of them, each once.
    #[must_use]
    pub fn all(&self) -> &[Program] {
        &self.programs
    }

    /// What a reason noted at a switch is worth once the run is over: none if the program proves to have no tasks, its own
    /// if nobody had looked at it in time.
    #[must_use]
    pub fn settle(&self, image: Image, noted: Reason) -> Reason {
        let Some(program) = self.get(image) else {
            return noted;
        };
        let locator = &program.found.locator;
        let own = Reason::from_number(locator.reason);
        match noted {
            // Only found out afterwards: the switches were taken for those of a program without tasks.
            Reason::None if own == Reason::SharedObject => own,
            Reason::NotExamined if locator.flags == 0 => own,
            noted => noted,
        }
    }
}

/// What the search for a runtime in a shared object came to.
enum Searched {
    Runtime,
    Nothing,
    Failed(ReadFailure),
}

/// Examines an executable if there is time left.
fn examine_until(until: Instant, reader: &mut FileReader, path: &Path, file: &Path) -> Found {
    let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    if Instant::now() >= until {
        return Found::unreadable(ReadFailure::NoTimeLeft(COMPLETION_TIME).in_words(&shown));
    }
    match open_regular_file(file) {
        Ok(file) => reader.examine(&file, path),
        Err(error) => Found::unreadable(error.to_string()),
    }
}

fn is_file(path: &Path) -> bool {
    path.is_absolute() && !path.starts_with("//anon")
}

fn restrict(locator: &mut Locator, choice: LocatorChoice) {
    let allowed = match choice {
        LocatorChoice::Auto => HAS_PROBE | HAS_TOKIO | HAS_GO,
        LocatorChoice::Probe => HAS_PROBE,
        LocatorChoice::Tokio => HAS_TOKIO,
        LocatorChoice::Go => HAS_GO,
        LocatorChoice::None => 0,
    };
    locator.flags &= allowed;
    let reason = Reason::from_number(locator.reason);
    // What nobody asked for is no failure if it cannot be found.
    let unasked = match choice {
        LocatorChoice::Auto => false,
        LocatorChoice::Probe | LocatorChoice::None => true,
        LocatorChoice::Tokio => is_of_go(reason),
        LocatorChoice::Go => is_of_tokio(reason),
    };
    if unasked {
        locator.reason = Reason::None as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::mappings::Mapping;

    const IMAGE: Image = Image { tgid: 7, number: 1 };

    fn mapped(paths: &[&Path]) -> Mappings {
        let mut mappings = Mappings::default();
        mappings.add(
            IMAGE,
            paths.iter().map(|path| Mapping {
                start: 0x1000,
                end: 0x2000,
                file_offset: 0,
                path: (*path).to_owned(),
            }),
        );
        mappings
    }

    fn own() -> PathBuf {
        std::env::current_exe().expect("a path")
    }

    #[test]
    fn a_program_is_known_by_what_is_mapped_first() {
        let mappings = mapped(&[Path::new("[vdso]"), Path::new("/bin/true"), Path::new("/lib/x.so")]);
        let mut programs = Programs::new(LocatorChoice::Auto);
        assert_eq!(programs.unassigned(&mappings), [(IMAGE, PathBuf::from("/bin/true"))]);
        programs.complete(&mappings, &mut FileReader::new());
        assert_eq!(programs.get(IMAGE).expect("assigned").path, Path::new("/bin/true"));
        assert_eq!(programs.unassigned(&mappings), []);
    }

    #[test]
    fn what_nobody_looked_at_in_time_is_settled_afterwards() {
        let mut programs = Programs::new(LocatorChoice::Auto);
        assert_eq!(programs.settle(IMAGE, Reason::NotExamined), Reason::NotExamined);
        programs.assign(IMAGE, Path::new("/bin/true"), Found::default);
        assert_eq!(
            programs.settle(IMAGE, Reason::NotExamined),
            Reason::None,
            "it has no tasks"
        );
        assert_eq!(programs.settle(IMAGE, Reason::ReadFailed), Reason::ReadFailed);
        let with_tasks = Image { tgid: 8, number: 0 };
        programs.assign(with_tasks, &own(), || {
            let mut found = Found::default();
            found.locator.flags = HAS_TOKIO;
            found
        });
        assert_eq!(programs.settle(with_tasks, Reason::NotExamined), Reason::NotExamined);
    }

    /// This test's own executable, taken for a library: it has tokio inside.
    #[test]
    fn tokio_in_a_shared_object_is_noticed_afterwards() {
        let library = own();
        let mut programs = Programs::new(LocatorChoice::Auto);
        programs.complete(&mapped(&[Path::new("/bin/true"), &library]), &mut FileReader::new());
        assert_eq!(programs.settle(IMAGE, Reason::None), Reason::SharedObject);
        let detail = programs.get(IMAGE).expect("assigned").found.detail.as_deref();
        assert_eq!(detail, library.to_str());
        let mut unasked = Programs::new(LocatorChoice::None);
        unasked.complete(&mapped(&[Path::new("/bin/true"), &library]), &mut FileReader::new());
        assert_eq!(unasked.settle(IMAGE, Reason::None), Reason::None);
    }

    #[test]
    fn only_the_locators_asked_for_are_used() {
        for (choice, flags) in [
            (LocatorChoice::Auto, HAS_TOKIO | HAS_GO),
            (LocatorChoice::Tokio, HAS_TOKIO),
            (LocatorChoice::Go, HAS_GO),
            (LocatorChoice::Probe, 0),
            (LocatorChoice::None, 0),
        ] {
            let mut locator = Locator {
                flags: HAS_TOKIO | HAS_GO,
                ..Locator::default()
            };
            restrict(&mut locator, choice);
            assert_eq!(locator.flags, flags, "{choice:?}");
        }
    }

    #[test]
    fn what_nobody_asked_for_is_no_failure() {
        let left = |reason, choice| {
            let mut locator = Locator {
                reason: reason as u32,
                ..Locator::default()
            };
            restrict(&mut locator, choice);
            Reason::from_number(locator.reason)
        };
        for (reason, other) in [
            (Reason::GoVersion, LocatorChoice::Tokio),
            (Reason::GoStripped, LocatorChoice::None),
            (Reason::NoTypeInfo, LocatorChoice::Go),
            (Reason::Stripped, LocatorChoice::Probe),
        ] {
            assert_eq!(left(reason, other), Reason::None, "{reason:?}");
            assert_eq!(left(reason, LocatorChoice::Auto), reason);
        }
        assert_eq!(left(Reason::GoVersion, LocatorChoice::Go), Reason::GoVersion);
        assert_eq!(left(Reason::NotX86_64, LocatorChoice::Go), Reason::NotX86_64);
    }
}
