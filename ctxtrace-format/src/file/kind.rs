//! The kinds of blocks in a capture file.

/// The kind of a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum BlockKind {
    Info = 1,
    Threads = 2,
    State = 3,
    Names = 4,
    Events = 5,
    EndOfRun = 6,
    End = 7,
    Dropped = 8,
    Polls = 9,
    Played = 10,
}

impl BlockKind {
    /// Returns the kind with this number; `None` if there is none, because a newer version may have it.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        let kinds = [
            Self::Info,
            Self::Threads,
            Self::State,
            Self::Names,
            Self::Events,
            Self::EndOfRun,
            Self::End,
            Self::Dropped,
            Self::Polls,
            Self::Played,
        ];
        kinds.into_iter().find(|&kind| kind as u32 == number)
    }
}
