//! What is heard: events, inotify, quarantine, and the clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::AttestReason;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::files::{self, POLL, Touched};
use super::heirs::Doubt;
use super::quarantine::unquarantined;
use super::turns::Lane;
use super::{Eyes, Quarantined};
use crate::events::{Event, Use};
use crate::lapse::{Lapse, Lapsed};

/// How often the table is searched for those who were not looked at for long, and how many of them are: 4,000 in the
/// minute that one look may last. If more are watched each comes later.
const SEARCH: Duration = Duration::from_secs(1);
const SEARCHED: usize = 64;
/// Between two tellings that everything lapsed.
const LOSSES: Duration = Duration::from_millis(50);

/// Hears what happens to processes.
pub(crate) async fn events(eyes: Arc<Eyes>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        eyes.hear(event);
    }
    tracing::error!("nobody tells what happens to processes any more: nothing is attested until a restart");
    eyes.known().deaf = true;
    eyes.everything("nobody tells what happens to processes any more".to_owned());
}

impl Eyes {
    fn hear(self: &Arc<Self>, event: Event) {
        match event {
            Event::Executed { before, now, parent } => self.executed(before, now, parent),
            Event::Ended(execution) => {
                let mut known = self.known();
                self.ended(&mut known, execution);
            }
            Event::Changed(execution, change) => {
                tracing::debug!(pid = execution.pid, ?change, "changed in place");
                let mut known = self.known();
                self.suspect(&mut known, execution, Lane::Urgent);
            }
            Event::Used { used, owner } => self.used(used, owner),
            Event::UsedByKin(used) => self.kin(used),
            Event::Lost(lost) => {
                tracing::warn!(lost, "events were lost: everything is looked at again");
                self.everything(format!("{lost} events were lost"));
                self.suspect_all();
            }
        }
    }

    fn executed(self: &Arc<Self>, before: Execution, image: u64, parent: u32) {
        let now = Execution { image, ..before };
        let mut known = self.known();
        // In the table it stands as it was attested; without images that is the same name as before.
        let pids = [if before.image == 0 { before.pid } else { 0 }, parent];
        let program = pids.iter().find_map(|pid| Some((known.table.program(before.image, *pid)?, *pid)));
        let heritage = program.map(|(program, pid)| (program, known.table.owners(before.image, pid)));
        if known.table.get_mut(before).is_some() {
            let detail = format!("process {} executed another program", before.pid);
            self.lapsed(&mut known, before, AttestReason::GenerationGone, detail);
        }
        drop(known);
        if let Some((program, owners)) = heritage {
            self.doubt(Doubt::Heir { now, program, owners });
        }
        self.warm.put(self.witness.account(now), now);
    }

    fn used(&self, used: Use, owner: Execution) {
        let program = self.known().table.program(owner.image, owner.pid);
        self.doubt(Doubt::Stranger { used, owner, program });
    }

    fn doubt(&self, doubt: Doubt) {
        if let Err(doubt) = self.heirs.put(self.witness.account(doubt.about()), doubt) {
            // Nobody can be spared to look into it: what can be named is ended, and what cannot is asked again.
            match doubt {
                Doubt::Stranger { used, .. } => self.flow(used, "which could not be looked at"),
                Doubt::Heir { .. } => self.everything("too many programs were executed at once".to_owned()),
            }
        }
    }

    /// Somebody else has or uses a socket.
    pub(crate) fn flow(&self, used: Use, what: &str) {
        let Use { local, remote, by, .. } = used;
        let detail = format!("the socket {local} to {remote} is in the hands of process {}, {what}", by.pid);
        // It is told as long as it goes on; who ends the flow says why.
        tracing::debug!(detail, "no longer what was attested");
        self.lapses.tell(Lapse { what: Lapsed::Flow(used), reason: AttestReason::TwoPrograms, detail });
    }

    /// Another process of the same program uses a socket. Whoever has a flow there asks about that process, too, which is
    /// then watched.
    pub(crate) fn kin(&self, used: Use) {
        let Use { local, remote, by, .. } = used;
        let detail = format!("process {} runs the same program, and uses the socket {local} to {remote}", by.pid);
        self.lapses.tell(Lapse { what: Lapsed::Kin(used), reason: AttestReason::EvidenceChanged, detail });
    }

    pub(crate) fn everything(&self, detail: String) {
        self.losses.waiting.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(detail);
        self.losses.more.notify_one();
    }

    fn suspect_all(self: &Arc<Self>) {
        let mut known = self.known();
        for execution in known.table.all() {
            self.suspect(&mut known, execution, Lane::Urgent);
        }
    }

    fn touched(self: &Arc<Self>, touched: Touched) {
        let (Touched::File(spot) | Touched::Gone(spot)) = touched else {
            tracing::warn!("inotify lost events: everything is looked at again");
            return self.suspect_all();
        };
        let mut known = self.known();
        for user in known.table.users(spot) {
            self.suspect(&mut known, user, Lane::Urgent);
        }
        if matches!(touched, Touched::Gone(_)) {
            known.table.gone(spot);
        }
    }

    fn quarantine(&self, barred: Quarantined) {
        let mut known = self.known();
        known.quarantined = Arc::clone(&barred);
        self.lapses.quarantine(Arc::clone(&barred));
        let digests = &barred.digests;
        for execution in known.table.which(|believed| unquarantined(believed.digests(), digests).is_err()) {
            let believed = known.table.get_mut(execution).map(|watched| watched.believed.clone());
            if let Some(Err(refusal)) = believed.map(|believed| unquarantined(believed.digests(), digests)) {
                self.lapsed(&mut known, execution, refusal.reason, refusal.detail);
            }
        }
    }
}

/// Hears what is in quarantine.
pub(crate) async fn quarantine(eyes: Arc<Eyes>, mut quarantined: watch::Receiver<Quarantined>) {
    loop {
        let barred = quarantined.borrow_and_update().clone();
        if barred != eyes.known().quarantined {
            let (digests, revoked) = (barred.digests.len(), barred.revoked.len());
            tracing::info!(digests, revoked, "the quarantine changed");
            eyes.quarantine(barred);
        }
        if quarantined.changed().await.is_err() {
            // Who knew of it is gone with the daemon; what is in quarantine stays there.
            return;
        }
    }
}

/// Hears inotify.
pub(crate) async fn files(eyes: Arc<Eyes>, mut told: mpsc::Receiver<Vec<Touched>>) {
    while let Some(all) = told.recv().await {
        all.into_iter().for_each(|touched| eyes.touched(touched));
    }
    tracing::error!("inotify fails: nothing is attested until a restart");
    eyes.known().deaf = true;
    eyes.everything("nobody tells what happens to files any more".to_owned());
}

/// Looks at files that inotify does not watch.
pub(crate) async fn looked_files(eyes: Arc<Eyes>) {
    loop {
        tokio::time::sleep(POLL).await;
        let files = eyes.known().files.looked();
        if files.is_empty() {
            continue;
        }
        if let Ok(looks) = tokio::task::spawn_blocking(|| files::look(files)).await {
            let different = eyes.known().files.different(looks);
            different.into_iter().for_each(|spot| eyes.touched(Touched::File(spot)));
        }
    }
}

/// Losses that nobody was told of yet: many at once are one.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    waiting: Mutex<Option<String>>,
    more: Notify,
}

/// Tells of losses.
pub(crate) async fn losses(eyes: Arc<Eyes>) {
    loop {
        eyes.losses.more.notified().await;
        let detail = eyes.losses.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(detail) = detail {
            eyes.lapses.tell(Lapse { what: Lapsed::Everything, reason: AttestReason::Unavailable, detail });
            tokio::time::sleep(LOSSES).await;
        }
    }
}

/// Hears the clock.
pub(crate) async fn time(eyes: Arc<Eyes>) {
    loop {
        tokio::time::sleep(SEARCH).await;
        let mut known = eyes.known();
        for execution in known.table.due(Instant::now(), SEARCHED) {
            eyes.suspect(&mut known, execution, Lane::Patient);
        }
    }
}
