//! Another look at an execution, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::time::Instant;

use super::changes::Believed;
use super::quarantine::{of, unquarantined};
use super::turns::Lane;
use super::{Eyes, Known};
use crate::refuse::refuse;
use crate::witness::Witnessed;

/// Who looks: most of them first at whoever gave cause.
pub(crate) const WORKERS: [Lane; 6] =
    [Lane::Urgent, Lane::Urgent, Lane::Urgent, Lane::Urgent, Lane::Patient, Lane::Patient];

/// A file is written in many steps: one look for all of them.
pub(crate) const SETTLES: Duration = Duration::from_millis(10);

/// What takes longer shows nothing.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Looks in vain before it is a lapse: after 70 ms if something happened, after some 10 s if nothing did.
const URGENT_MAX: u32 = 3;
const PATIENT_MAX: u32 = 10;

/// Looks at one execution after the other.
pub(crate) async fn run(eyes: Arc<Eyes>, preferred: Lane) {
    loop {
        let turn = eyes.turns.next(preferred).await;
        let begun = eyes.known().table.begin(turn.execution, turn.lane);
        if begun {
            let seen = match examined(&eyes, turn.execution).await {
                Ok(seen) => eyes.watch_libraries(&seen).await.map(|more| (seen, more)),
                Err(refusal) => Err(refusal),
            };
            eyes.conclude(turn.execution, turn.lane, seen);
        }
        eyes.turns.over(turn);
    }
}

async fn examined(eyes: &Eyes, execution: Execution) -> Result<Witnessed, AttestRefusal> {
    let executions = [execution];
    let looked = tokio::time::timeout(LOOK_MAX, eyes.witness.examine(&executions)).await;
    let seen =
        looked.unwrap_or_else(|_| refuse(AttestReason::Unavailable, format!("no answer within {LOOK_MAX:?}")))?;
    let nothing = || AttestRefusal::new(AttestReason::Unavailable, "nothing was looked at");
    seen.into_iter().next().ok_or_else(nothing)
}

impl Eyes {
    /// What was seen, and whether files are watched now that were not before that look.
    fn conclude(self: &Arc<Self>, execution: Execution, lane: Lane, seen: Result<(Witnessed, bool), AttestRefusal>) {
        let mut known = self.known();
        let settled = seen.and_then(|seen| Ok((self.compare(&mut known, execution, &seen.0)?, seen)));
        match settled {
            Ok((None, (seen, more))) => self.unchanged(&mut known, execution, &seen, more),
            Ok((Some(detail), _)) => self.lapsed(&mut known, execution, AttestReason::EvidenceChanged, detail),
            Err(refusal) => self.refused(&mut known, execution, lane, refusal),
        }
    }

    /// What changed since the last look.
    fn compare(
        &self,
        known: &mut Known,
        execution: Execution,
        seen: &Witnessed,
    ) -> Result<Option<String>, AttestRefusal> {
        unquarantined(of(seen), &known.quarantined.digests)?;
        // Who was dismissed meanwhile changes nothing.
        let Some(watched) = known.table.get_mut(execution) else { return Ok(None) };
        let now = Believed::of(seen);
        watched.believed.comparable(&now)?;
        let changed = watched.believed.changed(&now);
        if changed.is_none() {
            watched.believed.refresh(now);
        }
        Ok(changed)
    }

    fn unchanged(self: &Arc<Self>, known: &mut Known, execution: Execution, seen: &Witnessed, more: bool) {
        match known.arm(seen).map(|others| others || more) {
            Ok(more) => {
                if let Some(place) = known.table.end(execution, Instant::now()) {
                    self.wait(execution, place, SETTLES);
                }
                if more {
                    self.suspect(known, execution, Lane::Patient);
                }
            }
            Err(refusal) => self.lapsed(known, execution, refusal.reason, refusal.detail),
        }
    }

    fn refused(self: &Arc<Self>, known: &mut Known, execution: Execution, lane: Lane, refusal: AttestRefusal) {
        if refusal.reason == AttestReason::ProcessGone {
            return self.ended(known, execution);
        }
        if may_heal(refusal.reason, lane)
            && let Some((place, in_vain)) = known.table.in_vain(execution, lane)
            && in_vain <= if place.lane == Lane::Urgent { URGENT_MAX } else { PATIENT_MAX }
        {
            return self.wait(execution, place, SETTLES * (1 << (in_vain - 1)));
        }
        if known.table.get_mut(execution).is_some() {
            self.lapsed(known, execution, refusal.reason, refusal.detail);
        }
    }
}

/// Whether another look may show more: it was caught in the middle of something, or this daemon was.
fn may_heal(reason: AttestReason, lane: Lane) -> bool {
    use AttestReason::{GenerationGone, RateLimited, Unavailable, Unreadable};
    match reason {
        GenerationGone | Unavailable | RateLimited => true,
        Unreadable => lane == Lane::Urgent,
        _ => false,
    }
}
