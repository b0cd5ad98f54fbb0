//! The policy language and the decision: TOML text in, [`Policy`] out, and [`Verdict`]s from it.
//!
//! Pure: no file is opened here and no clock is read. A text either becomes a [`Policy`] that cannot be wrong,
//! or [`PolicyErrors`] that name every mistake with its place and what would be right.

mod candidates;
mod case;
mod certified;
mod compile;
mod decide;
mod demand;
mod diff;
mod evidence;
mod expiry;
mod explain;
mod fault;
mod first_rules;
mod group;
mod identify;
mod labels;
mod language;
mod large;
mod learn;
mod lint;
mod names;
mod outside;
mod party;
mod policy;
mod ports;
mod prefix;
mod readiness;
mod releases;
mod remedy;
mod replay;
mod responsible;
mod review;
mod rule;
mod schedule;
mod schema;
mod section;
mod selector;
mod shadow;
mod table;
mod team;
mod workload;

pub use case::CaseResult;
pub use certified::Certified;
pub use decide::{Allowed, Denied, Subject, Verdict};
pub use diff::{Change, PolicyDiff};
pub use explain::{Compare, Explained, Fit};
pub use fault::{ERRORS_MAX, PolicyError, PolicyErrors};
pub use identify::{Identified, NEAR_MAX};
pub use language::{LANGUAGE, TableKind};
pub use learn::{Learned, LeftOut, Lessons};
pub use lint::{Lint, LintKind};
pub use party::{Party, Ruling};
pub use policy::{Mode, POLICY_MAX, Place, Policy, SameHost};
pub use readiness::{HeldBack, Readiness};
pub use releases::{Pending, Releases};
pub use remedy::Remedy;
pub use replay::Who;
pub use responsible::Responsible;
pub use review::Review;
pub use schema::schema;
pub use section::{ENTRIES_MAX, assemble, files, line_in};
