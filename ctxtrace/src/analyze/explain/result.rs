//! The answer. Its JSON form is `ctxtrace.explain/1`.
//!
//! Times are nanoseconds a message, or a run of a command; shares are of the gap, or of the thread time that the subject adds.

use schemars::JsonSchema;
use serde::Serialize;

use super::intervention::Kind;
use crate::analyze::budget::{Budget, Unit};
use crate::analyze::result::{Host, Unavailable};
use crate::analyze::statistics::estimate::Estimate;
use crate::analyze::statistics::groups::Group;
use crate::target::counters::Counted;
use crate::units::Scale;

/// Name and version of the format.
pub const SCHEMA: &str = "ctxtrace.explain/1";

/// The whole answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Explanation {
    /// `ctxtrace.explain/1`.
    pub schema: String,
    /// Version of the program that made it.
    pub ctxtrace_version: String,
    /// The machine.
    pub host: Host,
    /// Whether everything was measured that was to be.
    pub complete: bool,
    /// Why not.
    pub cut_short: Option<String>,
    /// What times are for one of.
    pub unit: Unit,
    /// What the subject is held against.
    pub base: Side,
    /// The case in question.
    pub subject: Side,
    /// By how much the subject is slower.
    pub gap: Gap,
    /// Where the threads' time goes; null if there is no gap to explain, or no run was traced.
    pub budget: Option<Budget>,
    /// What the processor and the kernel counted, untraced.
    pub counters: Vec<CounterRow>,
    /// What was changed, and what that did.
    pub interventions: Vec<Tried>,
    /// What was not, and why.
    pub not_tried: Vec<NotTried>,
    /// What may be claimed: what the subject has more of, strongest first, then what that takes, then what it is not.
    pub verdict: Vec<Claim>,
    /// What may not.
    pub not_explained: Vec<String>,
    /// How busy the machine was with others meanwhile; null if that was not measured.
    pub others: Option<Others>,
    /// One for every null that has a reason.
    pub unavailable: Vec<Unavailable>,
}

impl Explanation {
    /// The unit that its times are told in to people.
    #[must_use]
    pub fn scale(&self) -> Scale {
        Scale::of(self.base.ns.map_or(0.0, |ns| ns.value))
    }
}

/// Shares of the time of all CPUs, 0 to 1, from the first run to the last.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Others {
    /// What other programs had.
    pub share: f64,
    /// What the hypervisor took.
    pub stolen: f64,
}

impl Others {
    /// Whether it is so much that measurements suffer.
    #[must_use]
    pub fn disturb(&self) -> bool {
        self.share + self.stolen > 0.05
    }
}

/// One of the two cases, as nobody traced it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Side {
    /// What it is.
    pub name: String,
    /// What it takes.
    pub ns: Option<Estimate>,
    /// Its runs by what they take: one group, or two, and then `ns` is nobody's.
    pub groups: Vec<Group>,
    /// Messages that a channel has room for, of a workload that has channels.
    pub buffer: Option<u64>,
    /// The most messages ever in flight, where that was counted.
    pub max_in_flight: Option<u64>,
}

/// The difference.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Gap {
    /// Subject less base.
    pub ns: Option<Estimate>,
    /// Subject by base.
    pub ratio: Option<f64>,
    /// Blocks of one run of each.
    pub blocks: u64,
    /// Whether the subject is slower beyond noise.
    pub is_clear: bool,
}

/// One counter, over the whole life of untraced runs, start and end of the program included.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CounterRow {
    /// What is counted.
    pub counted: Counted,
    /// The base's, for each message.
    pub base: f64,
    /// The subject's.
    pub subject: f64,
    /// The difference.
    pub added: Option<Estimate>,
}

/// One intervention.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Tried {
    /// Its name.
    pub name: String,
    /// What was changed.
    pub what: String,
    /// What it can say.
    pub kind: Kind,
    /// What the base takes under it.
    pub base_ns: Option<f64>,
    /// What the subject takes under it.
    pub subject_ns: Option<f64>,
    /// The gap that is left under it.
    pub gap_ns: Option<Estimate>,
    /// The share of the gap that it closes.
    pub closes: Option<Estimate>,
    /// Blocks of one run of each.
    pub blocks: u64,
}

/// An intervention that was not tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NotTried {
    /// Its name.
    pub name: String,
    /// Why not.
    pub reason: String,
}

/// What a claim rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The budget of traced runs
    Budget,
    /// An intervention
    Intervention,
    /// The messages in flight, counted
    InFlight,
}

/// What is claimed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// It is in the cause, or the cause is in it
    Cause,
    /// The most that kernel switches can be of it
    Kernel,
    /// The cause needs it, whatever it is
    Condition,
    /// It is not the cause, or hardly
    NotTheCause,
}

/// Something that may be claimed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Claim {
    /// What is claimed.
    pub says: Says,
    /// In words.
    pub sentence: String,
    /// The cause, or the name of the intervention.
    pub about: String,
    /// What it rests on.
    pub evidence: Evidence,
    /// Its share, of the gap or of the added time.
    pub share: Option<Estimate>,
}
