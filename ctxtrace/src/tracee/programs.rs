//! Determines which program each process runs, and how the program's tasks are found.
//!
//! A program is identified by the executed file, not by its path: two files that were at one path one after the other are two
//! programs. If a program is started through the dynamic loader (`ld.so ./program`), its file is the one that the loader mapped.
//!
//! A program is examined once, however many processes run it. Programs that are known before the run are examined before it,
//! others when they are executed, while they start. A program that ended before it could be examined is examined after the run.
//! If it turns out to have no tasks, its switches are reclassified then; if it has tasks, its switches stay unattributed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Locator, Reason};
use ctxtrace_common::process::Image;

use super::held::HeldFile;
use super::locate::{LinkRole, link_role, missing};
use super::mappings::{FollowedMappings, MOST_ENDED_IMAGES};
use ctxtrace_format::executable::{Found, concerns_go, concerns_tokio};
use ctxtrace_format::mappings::{FileIdentity, Mapping};
use ctxtrace_format::programs::{LocatorChoice, Program, Programs};

/// The maximum time for reading all files after the run. Files that are not read in this time are reported as not read.
const COMPLETION_TIME: Duration = Duration::from_secs(10);

/// If this many images have a program, the images whose mappings were forgotten are removed. Fewer than half as many remain, not
/// counting the images of living processes.
const MOST_IMAGES: usize = 4 * MOST_ENDED_IMAGES;

/// The maximum time that the recording waits for an examination, so that tasks are found from a program's first switches on. Most
/// examinations take less; the result of a longer one is used when it is available.
const PATIENCE: Duration = Duration::from_millis(20);

/// Examines the contents of files. It is implemented by the reading process of [`crate::reader`], which depends on this module;
/// this trait keeps this module independent of it.
pub trait Examiner {
    /// Determines how the tasks of an executable are found, and waits for the result.
    fn examine(&mut self, held: &HeldFile) -> Found;

    /// Like [`Examiner::examine`], but does not start after `deadline`; the file then counts as unreadable.
    fn examine_until(&mut self, held: &HeldFile, deadline: CommonDeadline) -> Found;

    /// Like [`Examiner::examine`], but waits for `patience` at most; `None` if the result is not available yet and must be
    /// requested again later.
    fn examine_within(&mut self, held: &Arc<HeldFile>, patience: Duration) -> Option<Found>;

    /// Determines whether a shared object contains one of these runtimes.
    ///
    /// # Errors
    ///
    /// If the file cannot be read before `deadline`. The error is the reason as a clause, in which `shown` is the name of the file.
    fn mentions_until(
        &mut self,
        held: &HeldFile,
        runtimes: Runtimes,
        deadline: CommonDeadline,
        shown: &str,
    ) -> Result<bool, String>;
}

/// The end of the time in which all files of a recording must be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonDeadline {
    /// The last moment for reading.
    pub until: Instant,
    /// The total time for all files, which ends at `until`; used in the reason for a failure.
    pub limit: Duration,
}

impl CommonDeadline {
    /// Returns the deadline that is `limit` from now.
    fn after(limit: Duration) -> Self {
        Self {
            until: Instant::now() + limit,
            limit,
        }
    }
}

/// The runtimes that shared objects are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtimes {
    /// Whether to search for tokio.
    pub tokio: bool,
    /// Whether to search for Go's runtime.
    pub go: bool,
}

/// Determines the program of each image while and after the target runs.
#[derive(Clone, Debug, Default)]
pub struct ProgramSearch {
    programs: Programs,
    /// The number of begun images that were already added to `waiting`; see [`FollowedMappings::begun_since`].
    begun: usize,
    /// The images whose program is not known yet.
    waiting: Vec<Image>,
    roles: HashMap<FileIdentity, LinkRole>,
    /// The value of [`FollowedMappings::refusals`] when refused images were last removed.
    refusals: u64,
}

impl ProgramSearch {
    /// Creates a search that has found no program yet.
    #[must_use]
    pub fn new(choice: LocatorChoice) -> Self {
        Self {
            programs: Programs::new(choice),
            ..Self::default()
        }
    }

    /// The programs that are known so far.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Records that an image runs this file, and returns how its tasks are found. Returns `None` for the dynamic loader, because
    /// the program that it will run is not known yet.
    pub fn expect(&mut self, image: Image, held: &HeldFile, reader: &mut impl Examiner) -> Option<Locator> {
        if link_role(held.file()) == LinkRole::Loader {
            return None;
        }
        Some(self.assign(image, held.shown_path(), held.identity(), || reader.examine(held)))
    }

    /// Assigns a file to an image. `found` examines the file and is called only if the file is new.
    fn assign(&mut self, image: Image, path: &Path, file: FileIdentity, found: impl FnOnce() -> Found) -> Locator {
        let index = self.programs.index_of(file).unwrap_or_else(|| {
            let mut found = found();
            restrict(&mut found.locator, self.programs.choice());
            self.programs.push(Program {
                path: path.to_owned(),
                found,
                file: Some(file),
            })
        });
        self.programs.assign(image, Some(index));
        self.programs.all()[index].found.locator
    }

    /// Records that an image has no tasks and must not be examined, because it is a child that has not executed its program yet.
    pub fn assign_none(&mut self, image: Image) -> Locator {
        self.programs.assign(image, None);
        Locator::default()
    }

    /// Examines the programs that were executed since the last call, and returns the images whose program is known now, each with
    /// how its tasks are found. If an examination takes long, a later call returns its result.
    pub fn examine_new(&mut self, mappings: &FollowedMappings, reader: &mut impl Examiner) -> Vec<(Image, Locator)> {
        self.forget_refused(mappings);
        let (begun, next) = mappings.begun_since(self.begun);
        self.begun = next;
        if self.programs.assigned() >= MOST_IMAGES {
            self.programs.retain_images(|image| mappings.recorded().has(image));
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.extend(begun);
        let mut examined = Vec::new();
        for image in waiting.into_iter().filter(|&image| !mappings.is_refused(image)) {
            match self.next_step(image, mappings, reader) {
                AssignStep::Assigned(locator) => examined.push((image, locator)),
                AssignStep::Wait if mappings.is_current(image) => self.waiting.push(image),
                // A program that is still unknown when its image is replaced by another one is examined after the run.
                AssignStep::Known | AssignStep::Wait => {}
            }
        }
        examined
    }

    /// Removes the images that may not be traced, and the programs that no other image runs.
    fn forget_refused(&mut self, mappings: &FollowedMappings) {
        if std::mem::replace(&mut self.refusals, mappings.refusals()) == mappings.refusals() {
            return;
        }
        let before = self.programs.assigned();
        self.programs.retain_images(|image| !mappings.is_refused(image));
        if self.programs.assigned() < before {
            self.programs.remove_unused();
        }
    }

    fn next_step(&mut self, image: Image, mappings: &FollowedMappings, reader: &mut impl Examiner) -> AssignStep {
        let executed = self.executed(image, mappings);
        let Some((mapping, file)) = executed.and_then(|mapping| Some((mapping, mapping.file?))) else {
            return AssignStep::Wait;
        };
        if self.is_assigned(image, file) {
            return AssignStep::Known;
        }
        if self.programs.index_of(file).is_some() {
            return AssignStep::Assigned(self.assign(image, &mapping.path, file, Found::default));
        }
        // If the file is not held, it may still be opened through another process later.
        let held = mappings.file(mapping).ok();
        match held.and_then(|held| reader.examine_within(held, PATIENCE)) {
            Some(found) => AssignStep::Assigned(self.assign(image, &mapping.path, file, || found)),
            None => AssignStep::Wait,
        }
    }

    /// Whether this file is already assigned to the image, or the image is recorded as running no program.
    fn is_assigned(&self, image: Image, file: FileIdentity) -> bool {
        match self.programs.get(image) {
            Some(program) => program.file == Some(file),
            None => self.programs.has_none(image),
        }
    }

    /// Returns the mapping of the program that an image runs. This is the mapping of the executed file or, if that is the dynamic
    /// loader, of the program that the loader has mapped. Returns `None` if the program is not mapped yet.
    fn executed<'m>(&mut self, image: Image, mappings: &'m FollowedMappings) -> Option<&'m Mapping> {
        let mut files = mappings.recorded().files_of(image);
        let first = files.next()?;
        if self.role(first, mappings) != LinkRole::Loader {
            return Some(first);
        }
        files.find(|mapping| self.role(mapping, mappings) == LinkRole::Program)
    }

    fn role(&mut self, mapping: &Mapping, mappings: &FollowedMappings) -> LinkRole {
        match (mapping.file, mappings.file(mapping)) {
            (Some(identity), Ok(held)) => *self.roles.entry(identity).or_insert_with(|| link_role(held.file())),
            _ => LinkRole::Other,
        }
    }

    /// Assigns the remaining images after the run, and searches shared objects for tokio and Go. All of this may take 10 s at
    /// most. If not all shared objects of a program were searched in this time, its detail gives the reason.
    pub fn complete(&mut self, mappings: &FollowedMappings, reader: &mut impl Examiner) {
        self.complete_within(COMPLETION_TIME, mappings, reader);
    }

    /// Like [`Programs::complete`], with another total time for all files.
    fn complete_within(&mut self, limit: Duration, mappings: &FollowedMappings, reader: &mut impl Examiner) {
        self.forget_refused(mappings);
        let deadline = CommonDeadline::after(limit);
        let unassigned: Vec<Image> = mappings
            .recorded()
            .images()
            .map(|(image, _)| image)
            .filter(|&image| !self.programs.is_assigned(image))
            .collect();
        for image in unassigned {
            // If the loader has mapped no program, the loader itself is the program.
            let mapping = self
                .executed(image, mappings)
                .or_else(|| mappings.recorded().files_of(image).next());
            if let Some((mapping, file)) = mapping.and_then(|mapping| Some((mapping, mapping.file?))) {
                self.assign(image, &mapping.path, file, || match mappings.file(mapping) {
                    Ok(held) => reader.examine_until(held, deadline),
                    Err(why) => missing(&mapping.path, why),
                });
            }
        }
        let runtimes = |tokio, go| Runtimes { tokio, go };
        let runtimes = match self.programs.choice() {
            LocatorChoice::Auto => runtimes(true, true),
            LocatorChoice::Tokio => runtimes(true, false),
            LocatorChoice::Go => runtimes(false, true),
            LocatorChoice::Probe | LocatorChoice::None => return,
        };
        let mut objects: HashMap<FileIdentity, Searched> = HashMap::new();
        for (image, _) in mappings.recorded().images() {
            let Some(program) = self.programs.get_mut(image) else {
                continue;
            };
            let locator = &mut program.found.locator;
            if locator.flags != 0 || locator.reason != Reason::None as u32 {
                continue;
            }
            let mut not_searched = None;
            for mapping in mappings
                .recorded()
                .files_of(image)
                .filter(|mapping| mapping.file != program.file)
            {
                let (Some(identity), shown) = (mapping.file, mapping.file_name()) else {
                    continue;
                };
                let searched = objects.entry(identity).or_insert_with(|| match mappings.file(mapping) {
                    Ok(held) => match reader.mentions_until(held, runtimes, deadline, &shown) {
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
}

/// The result of searching a shared object for a runtime.
enum Searched {
    Runtime,
    Nothing,
    /// The object was not searched, for this reason.
    Failed(String),
}

/// The result of the next attempt to determine the program of an image.
enum AssignStep {
    /// The program is known now.
    Assigned(Locator),
    /// The program was known before.
    Known,
    /// The program is not known yet.
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
    // A locator that was not requested cannot fail, so its reason is removed.
    let unasked = match choice {
        LocatorChoice::Auto => false,
        LocatorChoice::Probe | LocatorChoice::None => true,
        LocatorChoice::Tokio => concerns_go(reason),
        LocatorChoice::Go => concerns_tokio(reason),
    };
    if unasked {
        locator.reason = Reason::None as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::reader::FileReader;
    use crate::tracee::held::MissingFile;

    const IMAGE: Image = Image { tgid: 7, number: 1 };

    /// Returns mappings of one image, which has mapped these files of this machine in this order.
    fn mapped(paths: &[&Path]) -> FollowedMappings {
        let mut mappings = FollowedMappings::default();
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

    fn program_of(mappings: &FollowedMappings) -> PathBuf {
        let (mut programs, mut reader) = (ProgramSearch::new(LocatorChoice::Auto), FileReader::new());
        programs.examine_new(mappings, &mut reader);
        programs.complete(mappings, &mut reader);
        programs.programs.get(IMAGE).expect("assigned").path.clone()
    }

    /// A file that does not exist.
    const GONE: FileIdentity = FileIdentity {
        major: 0,
        minor: 1,
        inode: 2,
        generation: Some(3),
    };

    /// A mapping of a file at addresses that [`mapped`] does not use.
    fn mapping_of(path: PathBuf, file: FileIdentity) -> Mapping {
        Mapping {
            start: 0x10_0000,
            end: 0x20_0000,
            file_offset: 0,
            path,
            file: Some(file),
        }
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
        let (mut programs, mut reader) = (ProgramSearch::new(LocatorChoice::Auto), FileReader::new());
        let mut mappings = mapped(&[&loader()]);
        assert_eq!(programs.examine_new(&mappings, &mut reader), []);
        assert_eq!(programs.waiting, [IMAGE]);
        let held = mappings.hold(&own()).expect("held");
        mappings.add(IMAGE, [mapping_of(own(), held.identity())]);
        while programs.programs.get(IMAGE).is_none() {
            programs.examine_new(&mappings, &mut reader);
        }
        assert_eq!(programs.waiting, []);
        assert_eq!(programs.examine_new(&mappings, &mut reader), []);
    }

    #[test]
    fn two_files_at_one_path_are_two_programs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server");
        let mut programs = ProgramSearch::new(LocatorChoice::Auto);
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
        assert_eq!(programs.programs.all().len(), 2);
    }

    #[test]
    fn a_replaced_file_is_reported() {
        let mut programs = ProgramSearch::new(LocatorChoice::Auto);
        programs.assign(IMAGE, Path::new("/srv/server"), GONE, || {
            missing(Path::new("/srv/server"), MissingFile::Replaced)
        });
        let found = &programs.programs.get(IMAGE).expect("assigned").found;
        assert_eq!(found.reason(), Reason::Replaced);
        assert_eq!(found.detail.as_deref(), Some("server was replaced while it ran"));
        assert_eq!(programs.programs.settle(IMAGE, Reason::NotExamined), Reason::Replaced);
    }

    #[test]
    fn what_was_not_examined_in_time_is_settled_afterwards() {
        let mut programs = ProgramSearch::new(LocatorChoice::Auto);
        assert_eq!(
            programs.programs.settle(IMAGE, Reason::NotExamined),
            Reason::NotExamined
        );
        programs.expect(IMAGE, &HeldFile::open(&sh()).expect("opened"), &mut FileReader::new());
        assert_eq!(
            programs.programs.settle(IMAGE, Reason::NotExamined),
            Reason::None,
            "a program without tasks"
        );
        assert_eq!(programs.programs.settle(IMAGE, Reason::ReadFailed), Reason::ReadFailed);
        let with_tasks = Image { tgid: 8, number: 0 };
        programs.expect(
            with_tasks,
            &HeldFile::open(&own()).expect("opened"),
            &mut FileReader::new(),
        );
        assert_eq!(
            programs.programs.settle(with_tasks, Reason::NotExamined),
            Reason::NotExamined
        );
    }

    /// Uses this test's own executable as a library, because it contains tokio.
    #[test]
    fn tokio_in_a_shared_object_is_noticed_afterwards() {
        let library = own();
        let mappings = mapped(&[&sh(), &library]);
        let mut programs = ProgramSearch::new(LocatorChoice::Auto);
        programs.complete(&mappings, &mut FileReader::new());
        assert_eq!(programs.programs.settle(IMAGE, Reason::None), Reason::SharedObject);
        let detail = programs.programs.get(IMAGE).expect("assigned").found.detail.as_deref();
        assert_eq!(detail, library.to_str());
        let mut unasked = ProgramSearch::new(LocatorChoice::None);
        unasked.complete(&mappings, &mut FileReader::new());
        assert_eq!(unasked.programs.settle(IMAGE, Reason::None), Reason::None);
    }

    #[test]
    fn an_unsearched_shared_object_is_reported() {
        let mut mappings = mapped(&[&sh()]);
        mappings.add(IMAGE, [mapping_of("/srv/libgone.so".into(), GONE)]);
        let mut programs = ProgramSearch::new(LocatorChoice::Auto);
        programs.complete(&mappings, &mut FileReader::new());
        let found = &programs.programs.get(IMAGE).expect("assigned").found;
        assert_eq!(found.reason(), Reason::None);
        let detail = found.detail.as_deref().expect("a detail");
        assert!(
            detail.starts_with("not every shared object was searched for a runtime: libgone.so"),
            "{detail}"
        );
    }

    /// An examiner that uses up the time of each request, and finds nothing.
    #[derive(Default)]
    struct SlowExaminer {
        deadlines: Vec<CommonDeadline>,
    }

    impl SlowExaminer {
        fn take_all(&mut self, deadline: CommonDeadline) {
            std::thread::sleep(deadline.until.saturating_duration_since(Instant::now()));
            self.deadlines.push(deadline);
        }
    }

    impl Examiner for SlowExaminer {
        fn examine(&mut self, _held: &HeldFile) -> Found {
            panic!("it would take more than the time for all files")
        }

        fn examine_until(&mut self, _held: &HeldFile, deadline: CommonDeadline) -> Found {
            self.take_all(deadline);
            Found::default()
        }

        fn examine_within(&mut self, _held: &Arc<HeldFile>, _patience: Duration) -> Option<Found> {
            None
        }

        fn mentions_until(
            &mut self,
            _held: &HeldFile,
            _runtimes: Runtimes,
            deadline: CommonDeadline,
            shown: &str,
        ) -> Result<bool, String> {
            self.take_all(deadline);
            Err(format!("{shown} takes long"))
        }
    }

    #[test]
    fn all_files_together_have_one_deadline() {
        const FILES: usize = 50;
        const LIMIT: Duration = Duration::from_millis(20);
        let folder = tempfile::tempdir().expect("a folder");
        let libraries: Vec<PathBuf> = (0..FILES)
            .map(|number| {
                let path = folder.path().join(format!("lib{number}.so"));
                std::fs::write(&path, number.to_string()).expect("written");
                path
            })
            .collect();
        let shell = sh();
        let files: Vec<&Path> = std::iter::once(&shell)
            .chain(&libraries)
            .map(PathBuf::as_path)
            .collect();
        let mappings = mapped(&files);
        let (mut programs, mut slow) = (ProgramSearch::new(LocatorChoice::Auto), SlowExaminer::default());
        programs.complete_within(LIMIT, &mappings, &mut slow);
        // The program and each library are requested once, all with the same deadline.
        assert_eq!(slow.deadlines.len(), 1 + FILES);
        let first = slow.deadlines[0];
        assert_eq!(first.limit, LIMIT);
        assert!(
            slow.deadlines.iter().all(|deadline| *deadline == first),
            "{:?}",
            slow.deadlines
        );
        let detail = programs.programs.get(IMAGE).expect("assigned").found.detail.as_deref();
        assert_eq!(
            detail,
            Some("not every shared object was searched for a runtime: lib0.so takes long")
        );
    }

    /// If no time is left, the reader starts no reading process, and the reason names the total time for all files.
    #[test]
    fn what_is_left_at_the_deadline_is_not_read() {
        let mappings = mapped(&[&sh(), &own()]);
        let mut programs = ProgramSearch::new(LocatorChoice::Auto);
        let held = HeldFile::open(&sh()).expect("opened");
        programs.expect(IMAGE, &held, &mut FileReader::new());
        let mut reader = FileReader::new();
        programs.complete_within(Duration::ZERO, &mappings, &mut reader);
        let found = &programs.programs.get(IMAGE).expect("assigned").found;
        let detail = found.detail.as_deref().expect("said");
        assert!(detail.contains("reading all files took longer than 0 s"), "{detail}");
        assert!(!reader.has_process());
    }

    #[test]
    fn a_program_that_only_refused_images_run_is_forgotten() {
        let mut mappings = mapped(&[&sh()]);
        let (mut programs, mut reader) = (ProgramSearch::new(LocatorChoice::Auto), FileReader::new());
        let other = Image { tgid: 8, number: 1 };
        programs.expect(other, &HeldFile::open(&own()).expect("opened"), &mut reader);
        programs.complete(&mappings, &mut reader);
        assert_eq!(programs.programs.all().len(), 2);
        mappings.refuse(other);
        programs.complete(&mappings, &mut reader);
        let paths: Vec<&Path> = programs
            .programs
            .all()
            .iter()
            .map(|program| program.path.as_path())
            .collect();
        assert_eq!(paths, [sh()]);
        assert_eq!(
            programs.programs.get(IMAGE).map(|program| program.path.clone()),
            Some(sh())
        );
        assert_eq!(programs.programs.get(other), None);
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
    fn unrequested_locators_have_no_reason() {
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
