//! The function names of a run's stacks, resolved on the machine that recorded the run.
//!
//! A capture can be reported on another machine, which has other program files and another kernel. So the capture contains names
//! as well as addresses.

use std::collections::HashMap;
use std::sync::Arc;

use ctxtrace_common::process::{Image, TaskKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::printable::cut_name;

/// Maximum length of a function name in bytes; a longer name in a capture is cut. Names of nested futures have a few thousand
/// bytes.
pub(crate) const LONGEST_NAME: usize = 16 << 10;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// What the thread was doing: the task that it polled, or the class in the ledger. It is the outermost frame of every stack.
    Doing,
    /// The name of the thread.
    Thread,
    /// A function of the program.
    User,
    /// A function inlined into the function of the frame before it.
    Inlined,
    /// A function of the kernel.
    Kernel,
    /// Not a function, but the reason why the function is unknown.
    Reason,
}

/// One frame of a resolved stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// The kind of the frame.
    pub kind: FrameKind,
    /// The name, shared by all frames with the same name.
    pub name: Arc<str>,
}

impl Frame {
    /// Creates a frame that shows why the function is unknown.
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
    /// Every distinct name once: a capture has few functions and many stacks.
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
    /// Adds a kernel stack.
    pub fn add_kernel(&mut self, key: u64, frames: &[Frame]) {
        let frames = self.intern(frames);
        self.kernel.insert(key, frames);
    }

    /// Adds a user stack of a program. The same key in two programs identifies two different stacks.
    pub fn add_user(&mut self, image: Image, key: u64, frames: &[Frame]) {
        let frames = self.intern(frames);
        self.user.insert((image, key), frames);
    }

    /// Adds the name of the function that a goroutine was started with.
    pub fn add_start(&mut self, task: TaskKey, function: String) {
        self.starts.insert(task, function.into());
    }

    /// Iterates over the goroutines, each with the name of the function that it was started with.
    pub fn starts(&self) -> impl Iterator<Item = (TaskKey, &str)> {
        self.starts.iter().map(|(&task, function)| (task, &**function))
    }

    /// Whether the kernel stack with this key is known.
    #[must_use]
    pub fn has_kernel(&self, key: u64) -> bool {
        self.kernel.contains_key(&key)
    }

    /// Whether the user stack with this key is known for this program.
    #[must_use]
    pub fn has_user(&self, image: Image, key: u64) -> bool {
        self.user.contains_key(&(image, key))
    }

    /// The frames of a kernel stack, outermost first; `None` if the stack is not known.
    #[must_use]
    pub fn kernel(&self, key: u64) -> Option<Vec<Frame>> {
        Some(self.frames(self.kernel.get(&key)?))
    }

    /// The frames of a user stack, outermost first; `None` if the stack is not known.
    #[must_use]
    pub fn user(&self, image: Image, key: u64) -> Option<Vec<Frame>> {
        Some(self.frames(self.user.get(&(image, key))?))
    }

    /// Memory that a pair of stacks takes when its names are resolved, in bytes: for each frame a [`Frame`] and a copy of its
    /// name, as an output writes it.
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

    /// Resolves interned frames. An index from a file may be out of range; its frame then shows that the name is missing.
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
                    name: "[unknown: this name is missing in the capture]".into(),
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

/// Reads the names from a file, and cuts each to at most [`LONGEST_NAME`] bytes.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Arc<str>>, D::Error> {
    let names: Vec<String> = Vec::deserialize(deserializer)?;
    Ok(names
        .into_iter()
        .map(|name| cut_name(name, LONGEST_NAME).into())
        .collect())
}

/// Reads the functions that goroutines were started with, and cuts each name to at most [`LONGEST_NAME`] bytes.
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
    fn a_missing_name_has_a_reason() {
        let mut symbols = Symbols::default();
        symbols.kernel.insert(1, vec![(FrameKind::Kernel, 9)]);
        assert_eq!(symbols.kernel(1).expect("there")[0].kind, FrameKind::Reason);
    }
}
