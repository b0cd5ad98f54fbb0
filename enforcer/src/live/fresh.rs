//! Certificates of live flows: later ones of this end are handed to the flows that show them, later ones of the other end
//! replace what a flow knows of it, and a flow whose certificate nobody renewed ends before that expires.

use std::collections::HashMap;
use std::sync::Arc;

use bonafide_proto::convert::Attestation;
use bonafide_proto::record::Reason;

use super::question::Peer;
use super::{Live, Place};
use crate::record::Why;
use crate::tunnel::Leaf;
use crate::tunnel::renewal::Shown;

/// Of so many programs one can be asked for a later certificate that they share.
const CANDIDATES_MAX: usize = 16;

/// A certificate whose half-life is over, and the programs of live flows that show it.
#[derive(Debug)]
pub(crate) struct Stale {
    /// Its serial number.
    pub(crate) serial: String,
    /// Some of the programs: one may have ended while others live.
    pub(crate) of: Vec<Arc<Attestation>>,
}

impl Live {
    /// Which certificates should be made anew.
    pub(crate) fn stale(&self) -> Vec<Stale> {
        let now = self.clock.unix();
        let mut found = HashMap::<&str, Stale>::new();
        let table = self.table();
        let questions = table.entries.values().filter_map(|entry| entry.question.as_ref());
        for (_, program) in questions.flat_map(|question| question.programs()) {
            let Some(shown) = program.shown.as_ref().filter(|shown| now >= shown.half_life) else { continue };
            let serial = shown.svid.serial();
            let stale = found.entry(serial).or_insert_with(|| Stale { serial: serial.to_owned(), of: Vec::new() });
            let known = |one: &Arc<Attestation>| one.executions == program.attestation.executions;
            if stale.of.len() < CANDIDATES_MAX && !stale.of.iter().any(known) {
                stale.of.push(Arc::clone(&program.attestation));
            }
        }
        found.into_values().collect()
    }

    /// Hands a later certificate to every flow that shows the one of this serial number; to how many.
    pub(crate) fn refresh(&self, serial: &str, leaf: &Arc<Leaf>) -> usize {
        let mut count = 0;
        for entry in self.table().entries.values_mut() {
            let shown = entry.question.iter_mut().flat_map(|question| question.shown_mut());
            let mut of_it = shown.filter(|program| program.shown.as_ref().is_some_and(|s| s.svid.serial() == serial));
            if let Some(program) = of_it.next() {
                program.shown = Some(leaf.shown());
                drop(of_it);
                entry.fresh.send_replace(Some(Arc::clone(leaf)));
                count += 1;
            }
        }
        count
    }

    /// Ends the flows of which a certificate is about to expire. Only enforce mode ends any.
    pub(crate) fn end_expired(&self) -> usize {
        if !self.enforces() {
            return 0;
        }
        let now = self.clock.unix();
        self.table().end_where(|question| question?.expired(now))
    }

    fn renewed(&self, flow: u64, shown: &Shown) -> Result<(), Why> {
        let refused = |why: String| Why::new(Reason::PeerCertificate, format!("the peer's later certificate: {why}"));
        let trust = self.trust.borrow().clone().ok_or_else(|| refused("there is no trust bundle".to_owned()))?;
        let svid = shown.prove(&trust.trust).map_err(|e| refused(e.to_string()))?;
        let later = Peer::of(&svid)?;
        let mut table = self.table();
        let question = table.entries.get_mut(&flow).and_then(|entry| entry.question.as_mut());
        // One that shadow mode let through unjudged depends on no certificate.
        let Some(question) = question else { return Ok(()) };
        if let Some(peer) = question.peer_mut() {
            if let Some(why) = peer.is_another(&later) {
                return Err(why);
            }
            tracing::debug!(peer = %later.workload, serial = svid.serial(), "the other end shows a later certificate");
            *peer = later;
        }
        self.objection(Some(question)).map_or(Ok(()), Err)
    }
}

impl Place {
    /// The other end shows a later certificate.
    ///
    /// # Errors
    /// It proves nothing, or is of somebody else, or the flow may not go on by it.
    pub(crate) fn renewed(&self, shown: &Shown) -> Result<(), Why> {
        self.live.renewed(self.key, shown)
    }
}

#[cfg(test)]
impl Live {
    /// When the certificates expire by which flows live.
    pub(crate) fn expiries(&self) -> Vec<i64> {
        let table = self.table();
        let questions = table.entries.values().filter_map(|entry| entry.question.as_ref());
        questions.flat_map(|question| question.expiries()).collect()
    }
}
