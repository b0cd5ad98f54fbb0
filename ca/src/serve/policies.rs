//! Policies at both doors of the authority: the operator publishes them, nodes follow them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::name::NodeName;
use bonafide_proto::signed_policy::SignedPolicy;
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::authority as wire;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::authority::Authority;
use crate::policies::{PolicyFollower, PolicyHeld, Publication, PublishError, Published};
use crate::serve::admission::{PATIENCE, members};
use crate::serve::blocking;
use crate::store::{By, PolicyRecord};

/// How long a follower may take to say what it keeps.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Publishes, and says who has it.
pub(super) async fn publish(
    authority: &Arc<Authority>,
    by: By,
    request: wire::PublishPolicyRequest,
) -> Result<wire::PublishPolicyResponse, Status> {
    let wire::PublishPolicyRequest { text, author, version, confirm_within } = request;
    let confirm_within = (confirm_within != 0).then_some(confirm_within);
    let publication =
        Publication { version: (version != 0).then_some(version), confirm_within, ..Publication::of(text, author) };
    published_by(authority, move |authority| authority.publish(&by, &publication)).await
}

/// Publishes an earlier version again, and says who has it.
pub(super) async fn roll_back(
    authority: &Arc<Authority>,
    by: By,
    request: wire::RollBackPolicyRequest,
) -> Result<wire::PublishPolicyResponse, Status> {
    let to = (request.version != 0).then_some(request.version);
    published_by(authority, move |authority| authority.roll_policy_back(&by, to)).await
}

/// What was published last stays.
pub(super) async fn confirm(
    authority: &Arc<Authority>,
    by: By,
    request: wire::ConfirmPolicyRequest,
) -> Result<wire::PolicyPublished, Status> {
    let confirming = authority.clone();
    let record = blocking(move || confirming.confirm_policy(&by, request.version).map_err(status)).await?;
    Ok(told(&record))
}

/// The versions that are kept.
pub(super) async fn history(
    authority: &Arc<Authority>,
    request: wire::PolicyHistoryRequest,
) -> Result<wire::PolicyHistoryResponse, Status> {
    let Some(published) = authority.policies().now() else { return Ok(wire::PolicyHistoryResponse::default()) };
    let earlier = published.record.earlier.iter().map(|earlier| wire::PolicyPublished {
        version: earlier.version,
        created: earlier.created,
        author: earlier.author.clone(),
        sha256: earlier.text.0.to_vec(),
        ..wire::PolicyPublished::default()
    });
    let versions = std::iter::once(told(&published.record)).chain(earlier).collect();
    let text = match request.text_of {
        0 => String::new(),
        last if last == published.record.version => text(&published, &authority.trust_bundle())?,
        version => earlier_text(authority, &published, version).await?,
    };
    Ok(wire::PolicyHistoryResponse { versions, text })
}

async fn earlier_text(authority: &Arc<Authority>, published: &Published, version: u64) -> Result<String, Status> {
    let earlier = published.record.earlier.iter().find(|earlier| earlier.version == version).cloned();
    let earlier = earlier.ok_or_else(|| Status::not_found(format!("version {version} is not kept")))?;
    let asking = authority.clone();
    blocking(move || asking.policies().text_of(&earlier).map_err(status)).await
}

/// Publishes, waits for the nodes, and says who has it.
async fn published_by(
    authority: &Arc<Authority>,
    publish: impl FnOnce(&Authority) -> Result<PolicyRecord, PublishError> + Send + 'static,
) -> Result<wire::PublishPolicyResponse, Status> {
    let publishing = authority.clone();
    let (record, members) = blocking(move || {
        let record = publish(&publishing).map_err(status)?;
        Ok((record, members(&publishing)?))
    })
    .await?;
    let version = record.version;
    // One that refuses it has answered, too.
    let answered = |held: &PolicyHeld| held.in_force >= version || held.refused.is_some();
    authority.policies().followers().without(&members, PATIENCE, answered).await;
    Ok(wire::PublishPolicyResponse { published: Some(told(&record)), nodes: nodes(authority, members) })
}

/// What was published last, and who has it.
pub(super) async fn published(
    authority: &Arc<Authority>,
    request: wire::PublishedPolicyRequest,
) -> Result<wire::PublishedPolicyResponse, Status> {
    let asking = authority.clone();
    let members = blocking(move || members(&asking)).await?;
    let published = authority.policies().now();
    let text = match published.as_ref().filter(|_| request.with_text) {
        Some(published) => text(published, &authority.trust_bundle())?,
        None => String::new(),
    };
    let published = published.map(|published| told(&published.record));
    Ok(wire::PublishedPolicyResponse { published, nodes: nodes(authority, members), text })
}

fn text(published: &Published, bundle: &TrustBundle) -> Result<String, Status> {
    let policy = SignedPolicy::verify(&published.signed, bundle);
    policy.map(|policy| policy.text().to_owned()).map_err(|e| Status::internal(e.to_string()))
}

fn told(record: &PolicyRecord) -> wire::PolicyPublished {
    wire::PolicyPublished {
        version: record.version,
        created: record.created,
        author: record.author.clone(),
        sha256: record.text.0.to_vec(),
        unconfirmed_until: record.unconfirmed.map_or(0, |unconfirmed| unconfirmed.until),
        back_to: record.unconfirmed.map_or(0, |unconfirmed| unconfirmed.back_to),
    }
}

fn nodes(authority: &Authority, members: BTreeSet<NodeName>) -> Vec<wire::PolicyAt> {
    let mut all = authority.policies().followers().all();
    let at = |node: NodeName| {
        let held = all.remove(&node);
        let following = held.is_some();
        let PolicyHeld { kept, in_force, refused, .. } = held.unwrap_or_default();
        wire::PolicyAt { node: node.to_string(), following, kept, in_force, refused: refused.unwrap_or_default() }
    };
    members.into_iter().map(at).collect()
}

fn status(e: PublishError) -> Status {
    match e {
        PublishError::Author
        | PublishError::Text(_)
        | PublishError::Version { .. }
        | PublishError::ConfirmWithin(_)
        | PublishError::NotKept { .. } => Status::invalid_argument(e.to_string()),
        PublishError::Behind { .. } | PublishError::NoEarlier | PublishError::NotWaiting { .. } => {
            Status::failed_precondition(e.to_string())
        }
        PublishError::Meanwhile { .. } => Status::aborted(e.to_string()),
        _ => Status::internal(e.to_string()),
    }
}

/// Tells a follower what it does not keep yet, and hears what it holds, until either side goes away.
pub(super) async fn follow(
    follower: PolicyFollower,
    mut says: Streaming<wire::PolicyHeld>,
    to: &mpsc::Sender<wire::PolicyTold>,
) {
    let PolicyFollower { mut published, place } = follower;
    let Ok(Ok(Some(first))) = tokio::time::timeout(FIRST_WORD, says.message()).await else { return };
    let first = PolicyHeld::from(first);
    let mut known = first.kept_signed;
    place.holds(first);
    let tell = async {
        loop {
            let newest = published.borrow_and_update().clone();
            if let Some(newest) = newest.filter(|newest| Some(newest.record.signed) != known) {
                known = Some(newest.record.signed);
                if to.send(wire::PolicyTold { signed: newest.signed.clone() }).await.is_err() {
                    return;
                }
            }
            if published.changed().await.is_err() {
                return;
            }
        }
    };
    let hear = async {
        while let Ok(Some(held)) = says.message().await {
            place.holds(held.into());
        }
    };
    tokio::select! {
        () = tell => {}
        () = hear => {}
    }
}
