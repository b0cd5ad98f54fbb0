//! The libraries of a process as evidence: one digest over all files that it has mapped as code.
//!
//! It is always taken, whether or not the policy asks for it: a fingerprint must not depend on who asked. What can be
//! remembered of a file is remembered by [`crate::hash::Digests`], so that the second process with the same libraries costs a look at
//! each of them.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use bonafide_proto::fingerprint::{Digest, Evidence, Libraries};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use sha2::Digest as _;

use crate::hash::HashError;
use crate::mapped::{self, Place};
use crate::patience::OutOfPatience;
use crate::seen::Seen;
use crate::sys::executable::FileId;
use crate::sys::process::Process;
use crate::witness::Witness;

/// Libraries that are open at once.
pub(crate) const OPEN_MAX: usize = 16;

/// Digests of files that were seen during one and the same question.
pub(crate) type Known = HashMap<FileId, Digest>;

/// The libraries of a process, or why nobody can tell.
///
/// # Errors
/// `process-gone`, and what is wrong with this daemon: not what is wrong with a library.
pub(crate) async fn libraries(
    seen: &Seen,
    witness: &Witness,
    known: &mut Known,
) -> Result<Evidence<Libraries>, AttestRefusal> {
    if seen.mapped.too_many {
        return Ok(Evidence::Absent("more files are mapped as code than are looked at".to_owned()));
    }
    let unknown: Vec<(FileId, Place)> =
        seen.mapped.files.iter().filter(|(id, _)| !known.contains_key(id)).map(|(id, p)| (*id, p.clone())).collect();
    for some in unknown.chunks(OPEN_MAX) {
        let (process, some) = (Arc::clone(&seen.process), some.to_vec());
        let opening = witness.look(seen.account, process.execution(), move || open(&process, some));
        let opened = match opening.await {
            Err(refusal) if refusal.reason == AttestReason::Unhashable => return Ok(Evidence::Absent(refusal.detail)),
            opened => opened?,
        };
        for (id, opened) in opened {
            let file = match opened {
                Ok(file) => Arc::new(file),
                Err(why) => return Ok(Evidence::Absent(why)),
            };
            match witness.digest(&file, seen.account).await {
                Ok(digest) => known.insert(id, digest),
                Err(e) => return Ok(undigested(&e)),
            };
        }
    }
    Ok(Evidence::Known(composite(seen.mapped.files.keys().filter_map(|id| known.get(id)))))
}

/// The digests of each of them that could be hashed, sorted, each once: so that one library can be in quarantine.
pub(crate) fn members(seen: &Seen, known: &Known) -> Arc<[Digest]> {
    distinct(seen.mapped.files.keys().filter_map(|id| known.get(id))).into_iter().copied().collect()
}

fn distinct<'d>(digests: impl Iterator<Item = &'d Digest>) -> BTreeSet<&'d Digest> {
    digests.collect()
}

type Opened = (FileId, Result<File, String>);

fn open(process: &Process, some: Vec<(FileId, Place)>) -> Result<Vec<Opened>, AttestRefusal> {
    some.into_iter().map(|(id, place)| Ok((id, mapped::open(process, id, &place)?))).collect()
}

/// What will be known later is not absent.
fn undigested(e: &HashError) -> Evidence<Libraries> {
    let why = format!("a library cannot be hashed: {e}");
    match e {
        HashError::Busy(_) | HashError::RateLimited(_) | HashError::Endless(OutOfPatience::Full(_)) => {
            Evidence::Unavailable(why)
        }
        _ => Evidence::Absent(why),
    }
}

fn composite<'d>(digests: impl Iterator<Item = &'d Digest>) -> Libraries {
    let distinct = distinct(digests);
    let mut hash = sha2::Sha256::new();
    distinct.iter().for_each(|digest| hash.update(digest.0));
    let count = u32::try_from(distinct.len()).unwrap_or(u32::MAX);
    Libraries { digest: Digest(hash.finalize().into()), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_composite_knows_no_order_and_counts_equal_files_once() {
        let [a, b] = [1, 2].map(|byte| Digest([byte; 32]));
        let of = |digests: &[Digest]| composite(digests.iter());
        assert_eq!(of(&[a, b]), of(&[b, a, b]));
        assert_eq!(of(&[a, b]).count, 2);
        assert_eq!(of(&[a, b]).digest, Digest::of(&[[1; 32], [2; 32]].concat()));
        assert_ne!(of(&[a]).digest, of(&[b]).digest);
        assert_eq!(of(&[]), Libraries { digest: Digest::of(b""), count: 0 });
    }
}
