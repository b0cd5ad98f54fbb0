//! Signs a policy, as `bonafide_proto::signed_policy` documents it. Builder's side: shares nothing with that verifier.

use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::policy as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::PublishError;
use crate::certify::Signer;
use crate::csr::{self, PublicKey};
use crate::key::{Key, RootKey};
use crate::mint::MintError;
use crate::order::{Holder, Order};
use crate::store::Store;

/// How long a signer's certificate is valid, seconds: its key is gone at once.
const SIGNER_TTL: i64 = 60;

/// What is to be signed.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) version: u64,
    pub(crate) created: i64,
    pub(crate) author: &'a str,
    pub(crate) text: &'a str,
}

/// The signed policy as it travels: by a new key, which the authority certifies for this alone.
pub(super) fn sign(
    draft: &Draft<'_>,
    root: &Signer<RootKey>,
    bundle: &TrustBundle,
    ledger: &Store,
) -> Result<Vec<u8>, PublishError> {
    let key = Key::generate()?;
    let public = PublicKey::of_csr(&csr::request(&key)?)?;
    let validity = root.validity.within(draft.created, SIGNER_TTL);
    let order = Order { trust_domain: bundle.trust_domain().clone(), holder: Holder::PolicySigner, validity };
    let signer = root.issue(&order, &public, None, ledger, draft.created)?;
    let roots: Vec<Vec<u8>> = bundle.roots().iter().map(|root| Sha256::digest(root).to_vec()).collect();
    let domain = bundle.trust_domain().as_str();
    let content = content(draft, domain, &roots, signer.der());
    let signature = rcgen::SigningKey::sign(&key, &content).map_err(|e| MintError::Sign(e.to_string()));
    let policy = wire::SignedPolicy {
        trust_domain: domain.to_owned(),
        version: draft.version,
        created: draft.created,
        author: draft.author.to_owned(),
        text: draft.text.to_owned(),
        roots,
        signer: signer.der().to_vec(),
        signature: signature.map_err(crate::certify::IssueError::from)?,
        issuing: root.shown_with().first().map(|issuing| issuing.to_vec()).unwrap_or_default(),
    };
    Ok(policy.encode_to_vec())
}

fn content(draft: &Draft<'_>, domain: &str, roots: &[Vec<u8>], signer: &[u8]) -> Vec<u8> {
    // Whatever is longer than its length can say is refused by the verifier.
    let counted = |text: &str| {
        let length = u16::try_from(text.len()).unwrap_or(0);
        [&length.to_be_bytes(), text.as_bytes()].concat()
    };
    [
        b"bonafide policy 1\0".as_slice(),
        &counted(domain),
        &draft.version.to_be_bytes(),
        &draft.created.to_be_bytes(),
        &counted(draft.author),
        &u32::try_from(draft.text.len()).unwrap_or(0).to_be_bytes(),
        &Sha256::digest(draft.text),
        &[u8::try_from(roots.len()).unwrap_or(0)],
        &roots.concat(),
        &Sha256::digest(signer),
    ]
    .concat()
}
