//! The libraries of a watched execution are watched like its other files. They can be many, and a process can have files
//! among them that keep whoever opens them waiting: so they are opened a few at a time, and nobody waits for that.

use std::fs::File;
use std::sync::Arc;

use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use super::Eyes;
use crate::library::OPEN_MAX;
use crate::mapped::{self, Place};
use crate::refuse::refuse;
use crate::sys::executable::FileId;
use crate::sys::process::Process;
use crate::witness::Witnessed;

impl Eyes {
    /// Watches those that are not watched yet; whether there were any.
    pub(crate) async fn watch_libraries(&self, seen: &Witnessed) -> Result<bool, AttestRefusal> {
        let unwatched = self.unwatched(seen);
        for some in unwatched.chunks(OPEN_MAX) {
            let (process, some) = (Arc::clone(&seen.process), some.to_vec());
            let opened = self.witness.look(seen.account, seen.execution, move || open(&process, &some)).await?;
            let mut known = self.known();
            for (id, file) in opened {
                known.watch(seen.execution, id, &file)?;
            }
        }
        Ok(!unwatched.is_empty())
    }

    fn unwatched(&self, seen: &Witnessed) -> Vec<(FileId, Place)> {
        let mut known = self.known();
        let Some(watched) = known.table.get_mut(seen.execution) else { return Vec::new() };
        seen.mapped.iter().filter(|(id, _)| !watched.has(**id)).map(|(id, place)| (*id, place.clone())).collect()
    }
}

fn open(process: &Process, some: &[(FileId, Place)]) -> Result<Vec<(FileId, Arc<File>)>, AttestRefusal> {
    let mut all = Vec::with_capacity(some.len());
    for (id, place) in some {
        match mapped::open(process, *id, place)? {
            Ok(file) => all.push((*id, Arc::new(file))),
            // It could be opened a moment ago.
            Err(why) => return refuse(AttestReason::GenerationGone, why),
        }
    }
    Ok(all)
}
