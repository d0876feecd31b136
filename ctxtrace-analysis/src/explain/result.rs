//! The answer of `ctxtrace explain`. Its JSON form is `ctxtrace.explain/1`.
//!
//! Times are in nanoseconds per message, or per run of a command. Shares are shares of the gap, or of the thread time that the
//! subject adds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::intervention::InterventionKind;
use crate::budget::{Budget, Unit};
use crate::result::{Host, Unavailable};
use crate::statistics::estimate::Estimate;
use crate::statistics::groups::Group;
use crate::units::Scale;
use ctxtrace_format::counted::Counted;

/// Name and version of the format.
pub const SCHEMA: &str = "ctxtrace.explain/1";

/// The full answer of `ctxtrace explain`. Times are in nanoseconds per `unit`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Name and version of the format: `ctxtrace.explain/1`.
    pub schema: String,
    /// Version of ctxtrace that made the answer.
    pub ctxtrace_version: String,
    /// The machine on which the runs were made.
    pub host: Host,
    /// Whether all planned measurements were made.
    pub complete: bool,
    /// Why not all planned measurements were made.
    pub cut_short: Option<String>,
    /// The unit that times and counts are divided by.
    pub unit: Unit,
    /// The case that the subject is compared with.
    pub base: Side,
    /// The case whose slowness is to be explained.
    pub subject: Side,
    /// By how much the subject is slower than the base.
    pub gap: Gap,
    /// How the threads spend their time. Null if there is no gap to explain, or if no run was traced.
    pub budget: Option<Budget>,
    /// What the processor and the kernel counted in untraced runs.
    pub counters: Vec<CounterRow>,
    /// The changes that were tried, and their effects.
    pub interventions: Vec<Tried>,
    /// The changes that were not tried, and why.
    pub not_tried: Vec<NotTried>,
    /// The claims that the measurements support: first the causes, the strongest first, then the share of kernel switches, then
    /// the conditions, then what is not the cause.
    pub verdict: Vec<Claim>,
    /// Sentences about what the measurements do not explain.
    pub not_explained: Vec<String>,
    /// How much CPU time was used by other programs and the hypervisor during the measurements. Null if that was not measured.
    pub others: Option<Others>,
    /// One entry for every null that has a reason.
    pub unavailable: Vec<Unavailable>,
}

impl Explanation {
    /// Returns the unit in which times are shown to people.
    #[must_use]
    pub fn scale(&self) -> Scale {
        Scale::fitting(self.base.ns.map_or(0.0, |ns| ns.value))
    }
}

/// CPU time that the measured programs did not get, as shares of the time of all CPUs from the first run to the last, 0 to 1.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Others {
    /// Share that other programs used.
    pub share: f64,
    /// Share that the hypervisor took.
    pub stolen: f64,
}

impl Others {
    /// Whether the shares are large enough to affect the measurements: more than 5 % together.
    #[must_use]
    pub fn disturb(&self) -> bool {
        self.share + self.stolen > 0.05
    }
}

/// One of the two cases, measured without tracing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Side {
    /// Name of the case.
    pub name: String,
    /// Time of the case in nanoseconds per unit.
    pub ns: Option<Estimate>,
    /// The runs grouped by their times: one group, or two. With two groups, `ns` describes neither of them.
    pub groups: Vec<Group>,
    /// Number of messages that a channel holds. Only for workloads with channels.
    pub buffer: Option<u64>,
    /// Largest number of messages in flight at any time, if it was counted.
    pub max_in_flight: Option<u64>,
}

/// The difference between the two cases.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// Time of the subject minus time of the base, in nanoseconds per unit.
    pub ns: Option<Estimate>,
    /// Time of the subject divided by time of the base.
    pub ratio: Option<f64>,
    /// Number of blocks. Each block has one run of each case.
    pub blocks: u64,
    /// Whether the subject is slower than the base by more than noise: the interval of `ns` is above 0.
    pub is_clear: bool,
}

/// One counter over the whole life of untraced runs, including start and end of the program.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CounterRow {
    /// What is counted.
    pub counted: Counted,
    /// The base's count per unit.
    pub base: f64,
    /// The subject's count per unit.
    pub subject: f64,
    /// The subject's count minus the base's.
    pub added: Option<Estimate>,
}

/// One intervention: a change of one property of the cases, and its effect.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tried {
    /// Name of the intervention.
    pub name: String,
    /// What was changed.
    pub what: String,
    /// What the intervention can show.
    pub kind: InterventionKind,
    /// Time of the base with the change, in nanoseconds per unit.
    pub base_ns: Option<f64>,
    /// Time of the subject with the change, in nanoseconds per unit.
    pub subject_ns: Option<f64>,
    /// The gap that remains with the change, in nanoseconds per unit.
    pub gap_ns: Option<Estimate>,
    /// The share of the gap that the change closes: 1 is all of it. Negative if the change widens the gap.
    pub closes: Option<Estimate>,
    /// Number of blocks. Each block has one run of each combination.
    pub blocks: u64,
}

/// An intervention that was not tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotTried {
    /// Name of the intervention.
    pub name: String,
    /// Why it was not tried.
    pub reason: String,
}

/// What a claim is based on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The budget of traced runs.
    Budget,
    /// An intervention.
    Intervention,
    /// The counted messages in flight.
    InFlight,
}

/// What a claim says about the cause or intervention that it names in `about`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// It is a part of the cause, or the cause is a part of it.
    Cause,
    /// The claim gives the largest share of the gap that kernel switches can have.
    Kernel,
    /// The cause depends on what the intervention changes, whatever the cause is. If the cases have no gap, the intervention
    /// creates one.
    Condition,
    /// It is not the cause, or only to a negligible degree.
    NotTheCause,
}

/// A claim that the measurements support.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// What is claimed.
    pub says: Says,
    /// The claim as a sentence.
    pub sentence: String,
    /// Name of the cause or of the intervention.
    pub about: String,
    /// What the claim is based on.
    pub evidence: Evidence,
    /// Share of the gap (for an intervention) or of the added thread time (for the budget).
    pub share: Option<Estimate>,
}
