//! The events of the processor and of the kernel that are counted for the whole life of a command.

use serde::{Deserialize, Serialize};

/// An event that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// Clock cycles of the processor
    Cycles,
    /// Instructions
    Instructions,
    /// Misses of the last-level cache
    CacheMisses,
    /// Mispredicted branches
    BranchMisses,
    /// Page faults
    PageFaults,
    /// Migrations of a thread to another CPU
    CpuMigrations,
}

impl Counted {
    /// All events, in the order of their variants.
    pub const ALL: [Self; 6] = [
        Self::Cycles,
        Self::Instructions,
        Self::CacheMisses,
        Self::BranchMisses,
        Self::PageFaults,
        Self::CpuMigrations,
    ];

    /// The name of the event in tables.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::Instructions => "instructions",
            Self::CacheMisses => "last-level cache misses",
            Self::BranchMisses => "mispredicted branches",
            Self::PageFaults => "page faults",
            Self::CpuMigrations => "CPU migrations",
        }
    }
}
