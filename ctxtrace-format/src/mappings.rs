//! The executable mappings of the recorded processes: which file was mapped where.
//!
//! A mapping is identified by its file, not by its path. Only the list of mappings is stored in a capture; the other data decides
//! about unknown addresses while the names are looked up.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use ctxtrace_common::process::Image;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The maximum number of mappings kept of one image. If an image has more mappings that do not touch each other, none is kept and
/// its code has no names.
pub const MOST_MAPPINGS: usize = 8_192;
/// A file as the kernel names it in a mapping (`PERF_RECORD_MMAP2`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The major number of the device.
    pub major: u32,
    /// The minor number of the device.
    pub minor: u32,
    /// The inode number.
    pub inode: u64,
    /// The generation of the inode, which distinguishes two files that had the same inode number one after the other. `None` if
    /// it is unknown, because `/proc/PID/maps` does not show it.
    pub generation: Option<u64>,
}

impl FileIdentity {
    /// Whether both identities are of the same file. The generations are compared only if both are known.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let place = |identity: &Self| (identity.major, identity.minor, identity.inode);
        let generations_agree = match (self.generation, other.generation) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        place(self) == place(other) && generations_agree
    }
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The first address after the mapping.
    pub end: u64,
    /// The offset in the file at which the mapping begins, in bytes.
    pub file_offset: u64,
    /// The path of the file as the process saw it, or the name that the kernel shows instead, such as `[vdso]` or `//anon`.
    #[serde(with = "crate::stored_path")]
    pub path: PathBuf,
    /// The identity of the file. `None` if the mapping is not backed by a file, and in captures of releases that did not record
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
}

impl Mapping {
    /// Formats an address in the mapping as a place in its file: `redis-server+0x1a2b`.
    #[must_use]
    pub fn place(&self, address: u64) -> String {
        format!("{}+{:#x}", self.file_name(), self.offset_of(address))
    }

    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// The offset in the file of an address in the mapping, in bytes.
    #[must_use]
    pub fn offset_of(&self, address: u64) -> u64 {
        address.wrapping_sub(self.start).wrapping_add(self.file_offset)
    }

    /// Whether both mappings map the same file such that each address has the same file offset in both.
    fn agrees(&self, other: &Self) -> bool {
        match (&self.file, &other.file) {
            (Some(ours), Some(theirs)) => ours.is_same(theirs) && self.offset_of(0) == other.offset_of(0),
            (None, None) if self.path.is_absolute() && !self.path.starts_with("//anon") => {
                self.path == other.path && self.offset_of(0) == other.offset_of(0)
            }
            (None, None) => self.path == other.path,
            _ => false,
        }
    }

    fn touches(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Extends the mapping by another one that agrees with it and touches it.
    fn extend_over(&mut self, other: &Self) {
        if other.start < self.start {
            self.file_offset = other.file_offset;
            self.start = other.start;
        }
        self.end = self.end.max(other.end);
    }
}

/// The reason why no mapping is known for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMapping {
    /// The process was not followed, so nothing is known about it.
    NotFollowed,
    /// No file was mapped at the address.
    InNoFile,
    /// Several files were mapped at the address one after the other, and it is unknown which one the stack belongs to.
    SeveralFiles,
    /// The image had more mappings than are kept of one image (`MOST_MAPPINGS`).
    TooMany,
    /// The process has ended, and its mappings were dropped because too many images began after it.
    Forgotten,
    /// The report of the mapping may have been lost.
    Lost,
}

impl NoMapping {
    /// The text of the frame that is shown for the address.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::NotFollowed => "unknown: the process was not followed",
            Self::InNoFile => "unknown: not in any file",
            Self::SeveralFiles => "unknown: several files were mapped there one after the other",
            Self::TooMany => "unknown: the program has more code mappings than ctxtrace keeps",
            Self::Forgotten => "unknown: the process has ended, and its mappings were dropped to limit memory",
            Self::Lost => "unknown: the kernel's report of the mapping was lost",
        }
    }
}

/// The mappings of one image. A forked process shares the list of its parent until one of them adds a mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ImageMappings {
    mapped: Arc<Vec<Mapping>>,
    /// The executed file as read from `/proc/PID/exe`; `None` if it is only known from the first mapping.
    executable: Option<FileIdentity>,
    /// Whether there were more than [`MOST_MAPPINGS`] mappings, so that none is kept.
    overflowed: bool,
    /// Whether reports may have been lost while the image ran and its maps have not been read since.
    is_stale: bool,
}

impl Serialize for ImageMappings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.mapped.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ImageMappings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            mapped: Arc::new(Vec::deserialize(deserializer)?),
            ..Self::default()
        })
    }
}

impl ImageMappings {
    /// Whether reports were lost and no mapped file is known.
    fn knows_no_file(&self) -> bool {
        self.is_stale && self.mapped.iter().all(|mapping| mapping.file.is_none())
    }

    /// Adds a mapping, unless the image already has the same mapping there. Returns whether there were too many mappings, so that
    /// all of them were dropped.
    fn add(&mut self, mapping: &Mapping) -> bool {
        if self.overflowed {
            return false;
        }
        let known = self
            .mapped
            .iter()
            .position(|known| known.agrees(mapping) && known.touches(mapping));
        if let Some(index) = known {
            let known = &self.mapped[index];
            if mapping.start < known.start || mapping.end > known.end {
                Arc::make_mut(&mut self.mapped)[index].extend_over(mapping);
            }
        } else if self.mapped.len() < MOST_MAPPINGS {
            Arc::make_mut(&mut self.mapped).push(mapping.clone());
        } else {
            self.overflowed = true;
            self.mapped = Arc::default();
        }
        self.overflowed
    }
}

/// All recorded mappings, by image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mappings {
    by_image: HashMap<Image, ImageMappings>,
    /// The number of forgotten images.
    #[serde(default)]
    forgotten: usize,
    /// The number of images of the target whose mappings were lost.
    pub lost: u64,
}

impl Mappings {
    /// Adds a mapping to an image, unless the image already has the same mapping there. Returns whether there were too many
    /// mappings, so that all of them were dropped.
    pub fn add(&mut self, image: Image, mapping: &Mapping) -> bool {
        self.by_image.entry(image).or_default().add(mapping)
    }

    /// Adds an image without mappings, if it is not known yet.
    pub fn begin(&mut self, image: Image) {
        self.by_image.entry(image).or_default();
    }

    /// Adds an image with the mappings of another one, from which a fork made it. If the image is already known, it belonged to
    /// an earlier process with the same id, and has the mappings of both. Returns whether mappings were dropped.
    pub fn inherit(&mut self, from: Image, image: Image) -> bool {
        let inherited = self.by_image.get(&from).cloned().unwrap_or_default();
        let Some(earlier) = self.by_image.get_mut(&image) else {
            self.by_image.insert(image, inherited);
            return false;
        };
        inherited
            .mapped
            .iter()
            .fold(false, |dropped, mapping| dropped | earlier.add(mapping))
    }

    /// Records that the maps of a process were read, with the executed file if it is known.
    pub fn note_reading(&mut self, image: Image, executable: Option<FileIdentity>) {
        let of_image = self.by_image.entry(image).or_default();
        of_image.executable = executable.or(of_image.executable);
        of_image.is_stale = false;
    }

    /// Records that reports of an image's mappings may have been lost, if the image is known.
    pub fn mark_stale(&mut self, image: Image) {
        if let Some(of_image) = self.by_image.get_mut(&image) {
            of_image.is_stale = true;
        }
    }

    /// Removes an image.
    pub fn remove(&mut self, image: Image) {
        self.by_image.remove(&image);
    }

    /// Removes all images for which `is_kept` is false.
    pub fn retain(&mut self, is_kept: impl Fn(Image) -> bool) {
        self.by_image.retain(|&image, _| is_kept(image));
    }

    /// Counts images whose mappings were dropped to limit memory.
    pub fn count_forgotten(&mut self, images: usize) {
        self.forgotten += images;
    }

    /// The number of images whose mappings were dropped to limit memory.
    #[must_use]
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// Returns the mappings of an image.
    #[must_use]
    pub fn of_image(&self, image: Image) -> &[Mapping] {
        self.by_image.get(&image).map_or(&[], |of_image| &of_image.mapped)
    }

    /// Whether the mappings of an image are kept.
    #[must_use]
    pub fn has(&self, image: Image) -> bool {
        self.by_image.contains_key(&image)
    }

    /// Returns all mapped and executed files.
    #[must_use]
    pub fn files(&self) -> HashSet<FileIdentity> {
        let files = |image: &ImageMappings| -> Vec<FileIdentity> {
            let mapped = image.mapped.iter().filter_map(|mapping| mapping.file);
            mapped.chain(image.executable).collect()
        };
        self.by_image.values().flat_map(files).collect()
    }

    /// Returns the mapping of an image that contains an address.
    ///
    /// # Errors
    ///
    /// If no such mapping is known, or if several mappings contradict each other: stacks are summed over the whole run, so it is
    /// unknown which mapping was in effect when a stack was taken.
    pub fn find(&self, image: Image, address: u64) -> Result<&Mapping, NoMapping> {
        let unknown = || match self.forgotten {
            0 => NoMapping::NotFollowed,
            _ => NoMapping::Forgotten,
        };
        let of_image = self.by_image.get(&image).ok_or_else(unknown)?;
        if of_image.overflowed {
            return Err(NoMapping::TooMany);
        }
        let mut there = of_image
            .mapped
            .iter()
            .filter(|mapping| (mapping.start..mapping.end).contains(&address));
        let first = there.next().ok_or(if of_image.is_stale {
            NoMapping::Lost
        } else {
            NoMapping::InNoFile
        })?;
        if there.all(|other| first.agrees(other)) {
            Ok(first)
        } else {
            Err(NoMapping::SeveralFiles)
        }
    }

    /// Returns all images with their mappings.
    pub fn images(&self) -> impl Iterator<Item = (Image, &[Mapping])> {
        self.by_image
            .iter()
            .map(|(&image, mappings)| (image, mappings.mapped.as_slice()))
    }

    /// Returns the mappings of an image that are backed by files. A mapping of the executed file comes first, if it is known.
    pub fn files_of(&self, image: Image) -> impl Iterator<Item = &Mapping> {
        let of_image = self.by_image.get(&image);
        let mapped = of_image.map_or(&[][..], |mappings| &mappings.mapped);
        let executable = of_image.and_then(|mappings| mappings.executable);
        let files = move || mapped.iter().filter(|mapping| mapping.file.is_some());
        let is_executed = move |mapping: &&Mapping| mapping.file.is_some_and(|file| executable == Some(file));
        let others = files().filter(move |mapping| !is_executed(mapping));
        files().find(is_executed).into_iter().chain(others)
    }

    /// Counts the images whose mappings are lost permanently: reports were lost, and no mapped file is known.
    pub fn count_losses(&mut self) {
        self.lost += self.by_image.values().filter(|image| image.knows_no_file()).count() as u64;
    }

    /// Counts further images whose mappings were lost: those with an address in `stacks` whose mapping is unknown because its
    /// report may have been lost. An image with a known file may lack another file, and only its stacks show that. Images
    /// without any known file are counted elsewhere.
    pub fn count_lost_code<'a>(&mut self, stacks: impl IntoIterator<Item = (Image, &'a [u64])>) {
        let mut lacking = HashSet::new();
        for (image, addresses) in stacks {
            let is_lost = |&address: &u64| self.find(image, address).err() == Some(NoMapping::Lost);
            if !self.by_image.get(&image).is_some_and(ImageMappings::knows_no_file) && addresses.iter().any(is_lost) {
                lacking.insert(image);
            }
        }
        self.lost += lacking.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_capture_is_read_as_it_was() {
        let old = |start| Mapping {
            start,
            end: start + 0x1000,
            file_offset: 0,
            path: "/usr/bin/server".into(),
            file: None,
        };
        let stored = serde_json::to_string(&old(0x1000)).expect("JSON");
        assert!(!stored.contains("generation"), "{stored}");
        let read: Mapping = serde_json::from_str(&stored).expect("a mapping");
        assert_eq!(read, old(0x1000));
        assert!(read.agrees(&old(0x1000)));
        assert!(!read.agrees(&old(0x2000)), "another place in the file");
    }
}
