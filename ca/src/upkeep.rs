//! Keeps a node a member: joins once, renews at half-life, and asks again, ever more slowly, while the authority is away.
//!
//! Meanwhile the node keeps issuing under the intermediate it has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::attestor::Prover;
use crate::authority::{Authority, TokenCreationError, TokenTerms};
use crate::link::{AuthorityLink, LinkError};
use crate::node::{Due, MembershipError, NodeCa};
use bonafide_proto::grant::Grant;
use bonafide_proto::token::{JoinToken, TOKEN_TEXT_MAX, TokenError};

/// The first pause after a failure.
pub(crate) const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause after failures.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The first pause before a node that heard its authority go away comes again.
pub(crate) const AWAY_MIN: Duration = Duration::from_millis(100);
/// The longest of those pauses.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(5);
/// The clock is looked at this often at least: hosts sleep, and clocks are set.
const LOOK: Duration = Duration::from_secs(5);
/// Life of the token an embedded authority gives its own node, seconds.
const OWN_TOKEN_TTL: u32 = 60;

/// Why a node did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The token file.
    #[error("join token file {}: {why}", path.display())]
    TokenFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What it holds is no token.
    #[error("join token file {}: {source}", path.display())]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why it is none.
        source: TokenError,
    },
    /// The embedded authority gave no token.
    #[error(transparent)]
    Own(#[from] TokenCreationError),
    /// It asked and was not taken.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

impl UpkeepError {
    /// True if what the operator gave is at fault: the token, or the name it was used with.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::TokenFile { .. } | Self::Token { .. } => true,
            Self::Own(_) => false,
            Self::Membership(MembershipError::TokenRoot(_) | MembershipError::PinMissing) => true,
            Self::Membership(MembershipError::Link(LinkError::Refused { .. })) => self.is_final(),
            Self::Membership(_) => false,
        }
    }

    /// True if only an operator can help: asking again would bring the same answer.
    fn is_final(&self) -> bool {
        match self {
            Self::Membership(MembershipError::Link(link)) => match link {
                LinkError::Unreachable { .. } => false,
                LinkError::Refused { reason, .. } => {
                    !matches!(reason.as_str(), "authority-failed" | "authority-restored")
                }
                LinkError::Distrust { .. } | LinkError::Malformed(_) | LinkError::Proof(_) => true,
            },
            _ => true,
        }
    }
}

/// Where a join token comes from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// A file that the operator put there; deleted after it was used.
    File(PathBuf),
    /// No token: another proof, to the authority of this root.
    Proof(Arc<dyn Prover>, CertificateDer<'static>),
    /// The authority in this process.
    Own(Arc<Authority>),
}

/// Keeps the node a member, for ever.
///
/// # Errors
/// Before the first membership, what only an operator can cure; later failures are logged and tried again.
pub async fn keep(
    node: &NodeCa,
    link: &dyn AuthorityLink,
    tokens: &TokenSource,
) -> Result<std::convert::Infallible, UpkeepError> {
    let mut pause = PAUSE_MIN;
    let (mut told, mut member) = (node.mesh(), node.watch());
    loop {
        told.mark_unchanged();
        member.mark_unchanged();
        let wait = match step(node, link, tokens).await {
            Ok(wait) => {
                pause = PAUSE_MIN;
                wait
            }
            Err(e) if node.member().is_none() && e.is_final() => return Err(e),
            Err(e) => {
                let wait = jittered(pause);
                pause = (pause * 2).min(PAUSE_MAX);
                tracing::warn!(error = %e, again_in = ?wait, "membership not renewed");
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Its own certificates may be revoked by it. The sender is the node's, and lives as long as this.
            _ = told.changed() => {}
            // Another root may certify nodes now: all of them hear of it in the same moment.
            _ = member.changed() => tokio::time::sleep(jittered(PAUSE_MIN)).await,
        }
    }
}

/// Listens to what the authority tells every member, for ever: whenever it goes away the node comes again.
pub async fn follow(node: &NodeCa, link: &dyn AuthorityLink) -> std::convert::Infallible {
    let mut pause = AWAY_MIN;
    let mut member = node.watch();
    loop {
        // Its sender is the node itself, which lives as long as this.
        let _ = member.wait_for(Option::is_some).await;
        let began = Instant::now();
        let followed = tokio::select! {
            followed = node.follow(link) => followed,
            // Its first use makes the renewed certificate the active one.
            _ = member.changed() => {
                pause = AWAY_MIN;
                continue;
            }
        };
        match followed {
            Ok(()) => tracing::debug!("the authority ended what it tells; asking again"),
            Err(e) => {
                tracing::warn!(error = %e, again_in = ?pause, "the authority tells nothing; what it told stays in force")
            }
        }
        pause = if began.elapsed() > AWAY_MAX { AWAY_MIN } else { (pause * 2).min(AWAY_MAX) };
        tokio::time::sleep(jittered(pause)).await;
    }
}

/// Asks for the keys of JWT-SVIDs, for ever: a key is published long before it is used.
pub async fn jwt_keys(node: &NodeCa, link: &dyn AuthorityLink) -> std::convert::Infallible {
    let mut member = node.watch();
    loop {
        // Its sender is the node itself, which lives as long as this.
        let _ = member.wait_for(Option::is_some).await;
        let pause = match node.refresh_jwt_keys(link).await {
            Ok(()) => PAUSE_MAX,
            Err(e) => {
                tracing::debug!(error = %e, "no keys of JWT-SVIDs; those that are known stay");
                AWAY_MAX
            }
        };
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            // Each root has keys of its own.
            _ = member.changed() => {}
        }
    }
}

/// Does what is due now; says how long to rest.
///
/// # Errors
/// Any [`UpkeepError`]; the membership there was stays.
pub async fn step(node: &NodeCa, link: &dyn AuthorityLink, tokens: &TokenSource) -> Result<Duration, UpkeepError> {
    match node.due() {
        Due::NothingFor(seconds) => {
            let rest = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            return Ok(rest.clamp(Duration::from_millis(100), LOOK));
        }
        Due::Renew => match (node.renew(link).await, tokens) {
            // Whoever was sent away may come again by a token that its operator put there.
            (Err(e), TokenSource::File(path)) if is_sent_away(&e) && path.exists() => join(node, link, tokens).await?,
            (renewed, _) => renewed?,
        },
        Due::Join => join(node, link, tokens).await?,
    }
    if let Some(member) = node.member() {
        tracing::info!(node = %member.name(), until = member.not_after(), "membership is current");
    }
    Ok(Duration::ZERO)
}

/// The authority does not take this node for a member any more.
fn is_sent_away(e: &MembershipError) -> bool {
    let MembershipError::Link(e) = e else { return false };
    let LinkError::Refused { reason, .. } = e else { return matches!(e, LinkError::Distrust { .. }) };
    matches!(
        reason.as_str(),
        "evicted" | "banned" | "not-a-member" | "membership-replaced" | "superseded" | "root-retired"
    )
}

async fn join(node: &NodeCa, link: &dyn AuthorityLink, tokens: &TokenSource) -> Result<(), UpkeepError> {
    match tokens {
        TokenSource::File(path) => {
            node.join(link, &read_token(path)?).await?;
            if let Err(e) = std::fs::remove_file(path) {
                // Harmless: it admits nobody any more.
                tracing::warn!(path = %path.display(), error = %e, "the used join token could not be deleted");
            }
        }
        TokenSource::Proof(prover, root) => node.enrol(link, root, prover.as_ref()).await?,
        TokenSource::Own(authority) => {
            let (token, _) = authority.create_token(own_terms(node))?;
            node.join(link, &token).await?;
        }
    }
    Ok(())
}

/// A node that holds its authority's root key may issue whatever it likes.
fn own_terms(node: &NodeCa) -> TokenTerms {
    TokenTerms {
        node: Some(node.name().clone()),
        ttl: OWN_TOKEN_TTL,
        grant: Some(Grant::everything()),
        ..TokenTerms::default()
    }
}

fn read_token(path: &Path) -> Result<JoinToken, UpkeepError> {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |why: String| UpkeepError::TokenFile { path: path.to_owned(), why };
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            failed("it does not exist; make a token at the authority with `bonafide-ca token` and put it there".into())
        }
        _ => failed(e.to_string()),
    })?;
    if file.metadata().is_ok_and(|m| m.permissions().mode() & 0o077 != 0) {
        tracing::warn!(path = %path.display(), "others can read or change the join token file; give it mode 0600");
    }
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_TEXT_MAX));
    file.take(TOKEN_TEXT_MAX as u64).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    text.parse().map_err(|source| UpkeepError::Token { path: path.to_owned(), source })
}

/// Up to a quarter more or less, so that nodes do not ask in step.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut byte = [0u8; 1];
    let chance = SystemRandom::new().fill(&mut byte).map_or(128, |()| u32::from(byte[0]));
    pause * (384 + chance) / 512
}
