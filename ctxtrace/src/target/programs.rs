//! Which program each process runs, and how its tasks are found.
//!
//! A program is the file that was executed, not its path: two files that lay at one path one after the other are two
//! programs. Of a program that was started through the dynamic loader (`ld.so ./program`), it is the file that the loader
//! mapped.
//!
//! A program is examined once, however many processes run it. Those that are known before the run are examined before it;
//! others when they are executed, while they start. What ended before it could be examined is examined when the run is
//! over: then its switches are put where they belong if it proves to have no tasks, and stay unattributed if it has.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Locator, Reason};
use ctxtrace_common::process::Image;
use serde::{Deserialize, Serialize};

use super::held::{FileIdentity, HeldFile};
use super::locate::{Found, LinkRole, is_of_go, is_of_tokio, link_role};
use super::mappings::{MOST_ENDED_IMAGES, Mapping, Mappings};

/// Longest time for all files that are read once the run is over.
const COMPLETION_TIME: Duration = Duration::from_secs(10);

/// At so many images those are forgotten whose mappings are: fewer than half as many are left, beside those of living processes.
const MOST_IMAGES: usize = 4 * MOST_ENDED_IMAGES;

/// Longest time that the recording waits for an examination, so that tasks are found from a program's first switches on. Most
/// examinations take less.
const PATIENCE: Duration = Duration::from_millis(20);

/// What finds out what a file contains: the reading process of [`crate::reader`]. It knows this module, and not the other way round.
pub trait Examiner {
    /// Finds out how the tasks of an executable are found, and waits for it.
    fn examine(&mut self, held: &HeldFile) -> Found;

    /// The same if this moment has not come; `limit` is the time for all files that ends there.
    fn examine_until(&mut self, held: &HeldFile, until: Instant, limit: Duration) -> Found;

    /// The same, waiting no longer than `patience`; `None` is to be asked again later.
    fn examine_within(&mut self, held: &Arc<HeldFile>, patience: Duration) -> Option<Found>;

    /// Finds out whether a shared object has one of these runtimes inside.
    ///
    /// # Errors
    ///
    /// If the file cannot be read until then: the reason in words, `shown` being the name of the file.
    fn mentions(&mut self, held: &HeldFile, runtimes: Runtimes, until: Instant, shown: &str) -> Result<bool, String>;
}

/// Runtimes that are looked for in shared objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtimes {
    /// tokio.
    pub tokio: bool,
    /// Go's.
    pub go: bool,
}

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
    /// Which file it is; `None` in captures of releases that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
}

/// Every program that the target has run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Programs {
    choice: LocatorChoice,
    programs: Vec<Program>,
    /// `None` for an image that runs no program of its own.
    by_image: HashMap<Image, Option<usize>>,
    /// How many of the images that have begun were taken over into `waiting`.
    #[serde(skip)]
    begun: usize,
    /// Images whose program is not known yet.
    #[serde(skip)]
    waiting: Vec<Image>,
    #[serde(skip)]
    roles: HashMap<FileIdentity, LinkRole>,
    /// What [`Mappings::refusals`] was when refused images were last forgotten.
    #[serde(skip)]
    refusals: u64,
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

    /// Notes that an image runs this file, and returns how its tasks are found. Returns `None` for the dynamic loader: which
    /// program it will run is not known yet.
    pub fn expect(&mut self, image: Image, held: &HeldFile, reader: &mut impl Examiner) -> Option<Locator> {
        if link_role(held.file()) == LinkRole::Loader {
            return None;
        }
        Some(self.assign(image, held.shown_path(), held.identity(), || reader.examine(held)))
    }

    /// Assigns a file to an image, and what is `found` in it if the file has not been examined.
    fn assign(&mut self, image: Image, path: &Path, file: FileIdentity, found: impl FnOnce() -> Found) -> Locator {
        let index = self.index_of(file).unwrap_or_else(|| {
            let mut found = found();
            restrict(&mut found.locator, self.choice);
            self.programs.push(Program {
                path: path.to_owned(),
                found,
                file: Some(file),
            });
            self.programs.len() - 1
        });
        self.by_image.insert(image, Some(index));
        self.programs[index].found.locator
    }

    fn index_of(&self, file: FileIdentity) -> Option<usize> {
        self.programs.iter().position(|program| program.file == Some(file))
    }

    /// Says that an image has no tasks and is not to be looked at: a child that has not executed its program yet.
    pub fn assign_none(&mut self, image: Image) -> Locator {
        self.by_image.insert(image, None);
        Locator::default()
    }

    /// Examines what was executed since the last call, and returns the images whose program is known now, each with how its
    /// tasks are found. What takes long is known at a later call.
    pub fn examine_new(&mut self, mappings: &Mappings, reader: &mut impl Examiner) -> Vec<(Image, Locator)> {
        self.forget_refused(mappings);
        let (begun, next) = mappings.begun_since(self.begun);
        self.begun = next;
        if self.by_image.len() >= MOST_IMAGES {
            self.by_image.retain(|&image, _| mappings.has(image));
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.extend(begun);
        let mut examined = Vec::new();
        for image in waiting.into_iter().filter(|&image| !mappings.is_refused(image)) {
            match self.next_step(image, mappings, reader) {
                Step::Assigned(locator) => examined.push((image, locator)),
                Step::Wait if mappings.is_current(image) => self.waiting.push(image),
                // An image that ran for too short a time is examined when the run is over.
                Step::Known | Step::Wait => {}
            }
        }
        examined
    }

    /// Forgets the programs that only images run which may not be traced.
    fn forget_refused(&mut self, mappings: &Mappings) {
        if std::mem::replace(&mut self.refusals, mappings.refusals()) == mappings.refusals() {
            return;
        }
        let before = self.by_image.len();
        self.by_image.retain(|&image, _| !mappings.is_refused(image));
        if self.by_image.len() == before {
            return;
        }
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

    fn next_step(&mut self, image: Image, mappings: &Mappings, reader: &mut impl Examiner) -> Step {
        let executed = self.executed(image, mappings);
        let Some((mapping, file)) = executed.and_then(|mapping| Some((mapping, mapping.file?))) else {
            return Step::Wait;
        };
        if self.is_assigned(image, file) {
            return Step::Known;
        }
        if self.index_of(file).is_some() {
            return Step::Assigned(self.assign(image, &mapping.path, file, Found::default));
        }
        // Another process may yet lead to a file that is not held.
        let held = mappings.file(mapping).ok();
        match held.and_then(|held| reader.examine_within(held, PATIENCE)) {
            Some(found) => Step::Assigned(self.assign(image, &mapping.path, file, || found)),
            None => Step::Wait,
        }
    }

    /// Whether this file is what the image was expected to run, or the image runs nothing of its own.
    fn is_assigned(&self, image: Image, file: FileIdentity) -> bool {
        match self.by_image.get(&image) {
            Some(Some(index)) => self.programs[*index].file == Some(file),
            Some(None) => true,
            None => false,
        }
    }

    /// The mapping of the program that an image runs: that of the executed file, or of the program that the loader has mapped
    /// if the executed file is the dynamic loader. `None` while it is not mapped.
    fn executed<'m>(&mut self, image: Image, mappings: &'m Mappings) -> Option<&'m Mapping> {
        let mut files = mappings.files_of(image);
        let first = files.next()?;
        if self.role(first, mappings) != LinkRole::Loader {
            return Some(first);
        }
        files.find(|mapping| self.role(mapping, mappings) == LinkRole::Program)
    }

    fn role(&mut self, mapping: &Mapping, mappings: &Mappings) -> LinkRole {
        match (mapping.file, mappings.file(mapping)) {
            (Some(identity), Ok(held)) => *self.roles.entry(identity).or_insert_with(|| link_role(held.file())),
            _ => LinkRole::Other,
        }
    }

    /// Which locators were to be used.
    #[must_use]
    pub fn choice(&self) -> LocatorChoice {
        self.choice
    }

    /// Assigns what is left once the run is over, and looks for tokio and Go in shared objects. All of it may take
    /// 10 s; a program that has shared objects which were not searched in this time says so.
    pub fn complete(&mut self, mappings: &Mappings, reader: &mut impl Examiner) {
        self.forget_refused(mappings);
        let until = Instant::now() + COMPLETION_TIME;
        let unassigned: Vec<Image> = mappings
            .images()
            .map(|(image, _)| image)
            .filter(|image| !self.by_image.contains_key(image))
            .collect();
        for image in unassigned {
            // A loader that mapped no program is the program.
            let mapping = self
                .executed(image, mappings)
                .or_else(|| mappings.files_of(image).next());
            if let Some((mapping, file)) = mapping.and_then(|mapping| Some((mapping, mapping.file?))) {
                self.assign(image, &mapping.path, file, || match mappings.file(mapping) {
                    Ok(held) => reader.examine_until(held, until, COMPLETION_TIME),
                    Err(why) => Found::missing(&mapping.path, why),
                });
            }
        }
        let runtimes = |tokio, go| Runtimes { tokio, go };
        let runtimes = match self.choice {
            LocatorChoice::Auto => runtimes(true, true),
            LocatorChoice::Tokio => runtimes(true, false),
            LocatorChoice::Go => runtimes(false, true),
            LocatorChoice::Probe | LocatorChoice::None => return,
        };
        let mut objects: HashMap<FileIdentity, Searched> = HashMap::new();
        for (image, _) in mappings.images() {
            let index = self.by_image.get(&image).copied().flatten();
            let Some(program) = index.map(|index| &mut self.programs[index]) else {
                continue;
            };
            let locator = &mut program.found.locator;
            if locator.flags != 0 || locator.reason != Reason::None as u32 {
                continue;
            }
            let mut not_searched = None;
            for mapping in mappings.files_of(image).filter(|mapping| mapping.file != program.file) {
                let (Some(identity), shown) = (mapping.file, mapping.file_name()) else {
                    continue;
                };
                let searched = objects.entry(identity).or_insert_with(|| match mappings.file(mapping) {
                    Ok(held) => match reader.mentions(held, runtimes, until, &shown) {
                        Ok(true) => Searched::Runtime,
                        Ok(false) => Searched::Nothing,
                        Err(why) => Searched::Failed(why),
                    },
                    Err(why) => Searched::Failed(format!("{shown} {}", why.in_words())),
                });
                match searched {
                    Searched::Runtime => {
                        locator.reason = Reason::SharedObject as u32;
                        program.found.detail = Some(mapping.path.display().to_string());
                        break;
                    }
                    Searched::Nothing => {}
                    Searched::Failed(why) => {
                        not_searched.get_or_insert(why.clone());
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
    /// It was not searched, for this reason.
    Failed(String),
}

/// What became of an image that waited for its program.
enum Step {
    /// The program is known now.
    Assigned(Locator),
    /// It was known before.
    Known,
    /// It is not known yet.
    Wait,
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
    use crate::reader::FileReader;
    use crate::target::held::MissingFile;
    use crate::target::mappings::Mapping;

    const IMAGE: Image = Image { tgid: 7, number: 1 };

    /// Files of this machine, held and mapped in this order.
    fn mapped(paths: &[&Path]) -> Mappings {
        let mut mappings = Mappings::default();
        let files: Vec<Mapping> = paths
            .iter()
            .enumerate()
            .map(|(index, path)| Mapping {
                start: 0x1000 * index as u64,
                end: 0x1000 * index as u64 + 0x1000,
                file_offset: 0,
                path: (*path).to_owned(),
                file: mappings.hold(path).ok().map(|held| held.identity()),
            })
            .collect();
        mappings.add(IMAGE, files);
        mappings
    }

    fn own() -> PathBuf {
        std::env::current_exe().expect("a path")
    }

    fn sh() -> PathBuf {
        std::fs::canonicalize("/bin/sh").expect("a shell")
    }

    fn loader() -> PathBuf {
        std::fs::canonicalize("/lib64/ld-linux-x86-64.so.2").expect("a loader")
    }

    fn program_of(mappings: &Mappings) -> PathBuf {
        let (mut programs, mut reader) = (Programs::new(LocatorChoice::Auto), FileReader::new());
        programs.examine_new(mappings, &mut reader);
        programs.complete(mappings, &mut reader);
        programs.get(IMAGE).expect("assigned").path.clone()
    }

    #[test]
    fn a_program_is_known_by_the_file_that_is_mapped_first() {
        let mappings = mapped(&[Path::new("[vdso]"), &sh(), &own()]);
        assert_eq!(program_of(&mappings), sh());
    }

    #[test]
    fn the_program_is_examined_and_not_the_loader_that_started_it() {
        assert_eq!(program_of(&mapped(&[&loader(), &own()])), own());
        assert_eq!(program_of(&mapped(&[&loader()])), loader());
    }

    #[test]
    fn an_image_waits_for_its_program_and_no_longer() {
        let (mut programs, mut reader) = (Programs::new(LocatorChoice::Auto), FileReader::new());
        let mut mappings = mapped(&[&loader()]);
        assert_eq!(programs.examine_new(&mappings, &mut reader), []);
        assert_eq!(programs.waiting, [IMAGE]);
        let held = mappings.hold(&own()).expect("held");
        mappings.add(
            IMAGE,
            [Mapping {
                start: 0x10_0000,
                end: 0x20_0000,
                file_offset: 0,
                path: own(),
                file: Some(held.identity()),
            }],
        );
        while programs.get(IMAGE).is_none() {
            programs.examine_new(&mappings, &mut reader);
        }
        assert_eq!(programs.waiting, []);
        assert_eq!(programs.examine_new(&mappings, &mut reader), []);
    }

    #[test]
    fn two_files_at_one_path_are_two_programs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server");
        let mut programs = Programs::new(LocatorChoice::Auto);
        std::fs::copy(sh(), &path).expect("copied");
        let first = HeldFile::open(&path).expect("opened");
        std::fs::remove_file(&path).expect("removed");
        std::fs::copy(own(), &path).expect("copied");
        let second = HeldFile::open(&path).expect("opened");
        let other = Image { tgid: 8, number: 1 };
        assert_eq!(
            programs
                .expect(IMAGE, &first, &mut FileReader::new())
                .map(|locator| locator.flags),
            Some(0)
        );
        let locator = programs
            .expect(other, &second, &mut FileReader::new())
            .expect("a program");
        assert_ne!(locator.flags & HAS_TOKIO, 0);
        assert_eq!(programs.all().len(), 2);
    }

    #[test]
    fn a_file_that_came_too_late_is_said_to_be_gone() {
        let gone = FileIdentity {
            major: 0,
            minor: 1,
            inode: 2,
            generation: Some(3),
        };
        let mut programs = Programs::new(LocatorChoice::Auto);
        programs.assign(IMAGE, Path::new("/srv/server"), gone, || {
            Found::missing(Path::new("/srv/server"), MissingFile::Replaced)
        });
        let found = &programs.get(IMAGE).expect("assigned").found;
        assert_eq!(found.reason(), Reason::Replaced);
        assert_eq!(found.detail.as_deref(), Some("server was replaced while it ran"));
        assert_eq!(programs.settle(IMAGE, Reason::NotExamined), Reason::Replaced);
    }

    #[test]
    fn what_was_not_examined_in_time_is_settled_afterwards() {
        let mut programs = Programs::new(LocatorChoice::Auto);
        assert_eq!(programs.settle(IMAGE, Reason::NotExamined), Reason::NotExamined);
        programs.expect(IMAGE, &HeldFile::open(&sh()).expect("opened"), &mut FileReader::new());
        assert_eq!(
            programs.settle(IMAGE, Reason::NotExamined),
            Reason::None,
            "it has no tasks"
        );
        assert_eq!(programs.settle(IMAGE, Reason::ReadFailed), Reason::ReadFailed);
        let with_tasks = Image { tgid: 8, number: 0 };
        programs.expect(
            with_tasks,
            &HeldFile::open(&own()).expect("opened"),
            &mut FileReader::new(),
        );
        assert_eq!(programs.settle(with_tasks, Reason::NotExamined), Reason::NotExamined);
    }

    /// This test's own executable, taken for a library: it has tokio inside.
    #[test]
    fn tokio_in_a_shared_object_is_noticed_afterwards() {
        let library = own();
        let mappings = mapped(&[&sh(), &library]);
        let mut programs = Programs::new(LocatorChoice::Auto);
        programs.complete(&mappings, &mut FileReader::new());
        assert_eq!(programs.settle(IMAGE, Reason::None), Reason::SharedObject);
        let detail = programs.get(IMAGE).expect("assigned").found.detail.as_deref();
        assert_eq!(detail, library.to_str());
        let mut unasked = Programs::new(LocatorChoice::None);
        unasked.complete(&mappings, &mut FileReader::new());
        assert_eq!(unasked.settle(IMAGE, Reason::None), Reason::None);
    }

    #[test]
    fn a_shared_object_that_was_not_searched_is_said() {
        let mut mappings = mapped(&[&sh()]);
        mappings.add(
            IMAGE,
            [Mapping {
                start: 0x10_0000,
                end: 0x20_0000,
                file_offset: 0,
                path: "/srv/libgone.so".into(),
                file: Some(FileIdentity {
                    major: 0,
                    minor: 1,
                    inode: 2,
                    generation: Some(3),
                }),
            }],
        );
        let mut programs = Programs::new(LocatorChoice::Auto);
        programs.complete(&mappings, &mut FileReader::new());
        let found = &programs.get(IMAGE).expect("assigned").found;
        assert_eq!(found.reason(), Reason::None);
        let detail = found.detail.as_deref().expect("said");
        assert!(
            detail.starts_with("not every shared object was searched for a runtime: libgone.so"),
            "{detail}"
        );
    }

    #[test]
    fn a_program_that_only_refused_images_run_is_forgotten() {
        let mut mappings = mapped(&[&sh()]);
        let (mut programs, mut reader) = (Programs::new(LocatorChoice::Auto), FileReader::new());
        let other = Image { tgid: 8, number: 1 };
        programs.expect(other, &HeldFile::open(&own()).expect("opened"), &mut reader);
        programs.complete(&mappings, &mut reader);
        assert_eq!(programs.all().len(), 2);
        mappings.refuse(other);
        programs.complete(&mappings, &mut reader);
        let paths: Vec<&Path> = programs.all().iter().map(|program| program.path.as_path()).collect();
        assert_eq!(paths, [sh()]);
        assert_eq!(programs.get(IMAGE).map(|program| program.path.clone()), Some(sh()));
        assert_eq!(programs.get(other), None);
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
