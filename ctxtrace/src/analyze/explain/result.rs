//! The answer. Its JSON form is `ctxtrace.explain/1`.
//!
//! Times are nanoseconds a message, or a run of a command; shares are of the gap, or of the thread time that the subject adds.

use schemars::JsonSchema;
use serde::Serialize;

use super::account::{Cause, Spent};
use super::intervention::Kind;
use crate::analyze::result::{Class, Host};
use crate::analyze::statistics::estimate::Estimate;
use crate::analyze::statistics::groups::Group;
use crate::symbolize::category::Category;

/// Name and version of the format.
pub const SCHEMA: &str = "ctxtrace.explain/1";

/// What times are for one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A message of a built-in workload
    Message,
    /// A run of a command
    Run,
}

impl Unit {
    /// As in "ns a message".
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Message => "a message",
            Self::Run => "a run",
        }
    }
}

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
    /// What was changed, and what that did.
    pub interventions: Vec<Tried>,
    /// What was not, and why.
    pub not_tried: Vec<NotTried>,
    /// What may be claimed, strongest first.
    pub verdict: Vec<Claim>,
    /// What may not.
    pub not_explained: Vec<String>,
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

/// Where the time of all threads goes, in the measured section.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Budget {
    /// Traced runs of each.
    pub runs: u64,
    /// The base's.
    pub base: Sums,
    /// The subject's.
    pub subject: Sums,
    /// What tracing changed of the gap, nanoseconds: nothing smaller is claimed of the budget.
    pub tracing_changed_gap_ns: f64,
    /// Time that is no waiting, subject less base.
    pub added_ns: f64,
    /// What the added time is for, most first.
    pub causes: Vec<CauseRow>,
    /// Every part.
    pub parts: Vec<PartRow>,
    /// The functions whose time on the CPU differs most.
    pub functions: Vec<FunctionRow>,
}

/// The sums of one side.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Sums {
    /// Threads.
    pub threads: u64,
    /// Wall time.
    pub wall_ns: f64,
    /// All parts together.
    pub parts_ns: f64,
    /// By how much they miss threads times wall time, of it.
    pub misses: f64,
    /// Samples that share out the time on the CPU.
    pub samples: u64,
    /// By how much a traced run is slower than an untraced one, of it.
    pub tracing_slows: f64,
}

/// What a part of the added time is for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CauseRow {
    /// What for.
    pub cause: Cause,
    /// The base's.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
    /// The difference.
    pub added_ns: Option<Estimate>,
    /// Of all added time.
    pub share: Option<Estimate>,
}

/// One part of the budget.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PartRow {
    /// How it is spent.
    pub spent: Spent,
    /// The class of the ledger, off the CPU.
    pub class: Option<Class>,
    /// What for.
    pub cause: Cause,
    /// Whether it is only waiting for work.
    pub is_waiting: bool,
    /// The base's.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
}

/// One function's time on the CPU.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FunctionRow {
    /// Its name.
    pub function: String,
    /// What it is for.
    pub category: Category,
    /// The base's.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
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
}

/// Something that may be claimed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Claim {
    /// In words.
    pub sentence: String,
    /// The cause, or the name of the intervention.
    pub about: String,
    /// What it rests on.
    pub evidence: Evidence,
    /// Its share, of the gap or of the added time.
    pub share: Option<Estimate>,
}
