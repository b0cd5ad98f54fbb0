//! The enforcer: stands in the way of every connection, decides, encrypts, relays, records.
//!
//! Reading order: [`outbound`] and [`inbound`] tell the story of one connection from either end; the stages they
//! walk through are in [`flow`]; what they decide on comes from `bonafide_policy`.

pub mod capture;
pub mod config;
pub mod daemon;
pub mod flow;
pub mod history;
pub mod identity;
mod inbound;
pub mod live;
mod observe;
mod outbound;
pub mod record;
pub mod relay;
mod renew;
mod reverify;
mod serve;
pub mod sys;
pub mod tunnel;
