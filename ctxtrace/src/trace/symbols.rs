//! The names of a run's stacks, as they were resolved where it was recorded.
//!
//! A capture is reported again on other machines, where neither the program's files nor the kernel are those it was made
//! with; so names are kept beside the addresses.

use std::collections::HashMap;
use std::sync::Arc;

use ctxtrace_common::process::{Image, TaskKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::printable::cut_name;

/// Bytes of a function's name, as a capture is read. Names of nested futures have some thousands.
pub(in crate::trace) const LONGEST_NAME: usize = 16 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// What the thread was doing: the task, or the class of the ledger. The root of all stacks.
    Doing,
    /// The thread, by name.
    Thread,
    /// A function of the program.
    User,
    /// A function inlined into the one before it.
    Inlined,
    /// A function of the kernel.
    Kernel,
    /// No function: the reason why there is none.
    Reason,
}

/// One frame of a resolved stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Its name: shared by all frames that have it.
    pub name: Arc<str>,
}

impl Frame {
    /// A frame that says why there is none.
    #[must_use]
    pub fn reason(text: &str) -> Self {
        Self {
            kind: FrameKind::Reason,
            name: format!("[{text}]").into(),
        }
    }
}

/// Resolved stacks by the keys of [`super::Aggregates::stacks`], outermost frame first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbols {
    /// Every name, once: a capture has few functions and many stacks.
    #[serde(serialize_with = "write_names", deserialize_with = "names")]
    names: Vec<Arc<str>>,
    #[serde(skip)]
    places: HashMap<Arc<str>, u32>,
    kernel: HashMap<u64, Vec<(FrameKind, u32)>>,
    user: HashMap<(Image, u64), Vec<(FrameKind, u32)>>,
    #[serde(serialize_with = "write_starts", deserialize_with = "starts")]
    starts: HashMap<TaskKey, Arc<str>>,
}

impl Symbols {
    /// Adds a stack of the kernel.
    pub fn add_kernel(&mut self, key: u64, frames: &[Frame]) {
        let frames = self.intern(frames);
        self.kernel.insert(key, frames);
    }

    /// Adds a stack of a process: one key in two processes is two stacks.
    pub fn add_user(&mut self, image: Image, key: u64, frames: &[Frame]) {
        let frames = self.intern(frames);
        self.user.insert((image, key), frames);
    }

    /// Adds the function that a goroutine was started with.
    pub fn add_start(&mut self, task: TaskKey, function: String) {
        self.starts.insert(task, function.into());
    }

    /// Goroutines, with the function each was started with.
    pub fn starts(&self) -> impl Iterator<Item = (TaskKey, &str)> {
        self.starts.iter().map(|(&task, function)| (task, &**function))
    }

    /// Whether there is this stack of the kernel.
    #[must_use]
    pub fn has_kernel(&self, key: u64) -> bool {
        self.kernel.contains_key(&key)
    }

    /// Whether there is this stack of a process.
    #[must_use]
    pub fn has_user(&self, image: Image, key: u64) -> bool {
        self.user.contains_key(&(image, key))
    }

    /// A stack of the kernel.
    #[must_use]
    pub fn kernel(&self, key: u64) -> Option<Vec<Frame>> {
        Some(self.frames(self.kernel.get(&key)?))
    }

    /// A stack of a process.
    #[must_use]
    pub fn user(&self, image: Image, key: u64) -> Option<Vec<Frame>> {
        Some(self.frames(self.user.get(&(image, key))?))
    }

    /// Bytes that a stack takes once its names are in it: for each frame one that is held, and its name as outputs write it.
    #[must_use]
    pub fn resolved_bytes(&self, image: Image, user: u64, kernel: u64) -> u64 {
        let of_frame = |&(_, place): &(FrameKind, u32)| {
            let name = self.names.get(place as usize).map_or(0, |name| name.len());
            (size_of::<Frame>() + name) as u64
        };
        let of_stack = |frames: Option<&Vec<_>>| frames.into_iter().flatten().map(of_frame).sum::<u64>();
        of_stack(self.user.get(&(image, user))) + of_stack(self.kernel.get(&kernel))
    }

    fn intern(&mut self, frames: &[Frame]) -> Vec<(FrameKind, u32)> {
        let mut interned = Vec::with_capacity(frames.len());
        for frame in frames {
            let place = match self.places.get(&frame.name) {
                Some(&place) => place,
                None => {
                    let place = self.names.len() as u32;
                    self.names.push(frame.name.clone());
                    self.places.insert(frame.name.clone(), place);
                    place
                }
            };
            interned.push((frame.kind, place));
        }
        interned
    }

    /// What comes out of a file may point anywhere.
    fn frames(&self, interned: &[(FrameKind, u32)]) -> Vec<Frame> {
        interned
            .iter()
            .map(|&(kind, place)| match self.names.get(place as usize) {
                Some(name) => Frame {
                    kind,
                    name: name.clone(),
                },
                None => Frame {
                    kind: FrameKind::Reason,
                    name: "[unknown: the capture lacks this name]".into(),
                },
            })
            .collect()
    }
}

fn write_names<S: Serializer>(names: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(|name| &**name))
}

fn write_starts<S: Serializer>(starts: &HashMap<TaskKey, Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(starts.iter().map(|(task, function)| (task, &**function)))
}

/// What comes out of a file may be of any length.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Arc<str>>, D::Error> {
    let names: Vec<String> = Vec::deserialize(deserializer)?;
    Ok(names
        .into_iter()
        .map(|name| cut_name(name, LONGEST_NAME).into())
        .collect())
}

/// The same of functions that goroutines were started with.
fn starts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HashMap<TaskKey, Arc<str>>, D::Error> {
    let starts: HashMap<TaskKey, String> = HashMap::deserialize(deserializer)?;
    let cut = |(task, name)| (task, cut_name(name, LONGEST_NAME).into());
    Ok(starts.into_iter().map(cut).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: FrameKind, name: &str) -> Frame {
        Frame {
            kind,
            name: name.into(),
        }
    }

    #[test]
    fn a_stack_comes_back_as_it_was_and_a_name_is_kept_once() {
        let image = Image { tgid: 7, number: 1 };
        let stack = [frame(FrameKind::User, "main"), frame(FrameKind::Inlined, "read")];
        let mut symbols = Symbols::default();
        symbols.add_user(image, 5, &stack);
        symbols.add_kernel(5, &[frame(FrameKind::Kernel, "read")]);
        assert_eq!(symbols.user(image, 5).expect("added"), stack);
        assert_eq!(symbols.kernel(5).expect("added")[0].kind, FrameKind::Kernel);
        assert_eq!(symbols.names, ["main".into(), "read".into()]);
        assert_eq!(symbols.user(Image { tgid: 8, number: 1 }, 5), None);
    }

    #[test]
    fn a_name_that_is_not_there_is_said_to_be_missing() {
        let mut symbols = Symbols::default();
        symbols.kernel.insert(1, vec![(FrameKind::Kernel, 9)]);
        assert_eq!(symbols.kernel(1).expect("there")[0].kind, FrameKind::Reason);
    }
}
