//! `bonafide bundle show`: the trust bundle as others read it.

use std::time::Duration;

use bonafide_proto::jwt::{JwtBundle, JwtKey};
use bonafide_proto::name::TrustDomain;
use bonafide_proto::spiffe_bundle::SpiffeBundle;
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::node::{Bundle, WatchBundleRequest};

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::screen::Screen;

/// How long the node may take to tell it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be done with it.
#[derive(Debug, clap::Subcommand)]
pub enum BundleCommand {
    /// Prints the roots and the keys of tokens as a SPIFFE bundle (a JWK set), for systems outside the trust domain
    Show,
}

/// Prints what this node knows.
pub(crate) fn show(layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = layout.identityd_socket();
    let told = ask::block_on(async {
        let mut identityd = ask::attestation(&socket);
        let mut told = ask::ask(&socket, identityd.watch_bundle(WatchBundleRequest {})).await?;
        match tokio::time::timeout(PATIENCE, told.message()).await {
            Ok(Ok(Some(bundle))) => Ok(bundle),
            _ => Err(NoAnswer::Said("this node has been told no trust bundle yet".to_owned())),
        }
    })??;
    let bundle = bundle(told).map_err(|why| Failure::Failed(format!("the trust bundle of this node: {why}")))?;
    let document = format!("{:#}", bundle.document());
    // Whoever is handed it shall read what we know.
    match SpiffeBundle::parse(document.as_bytes()) {
        Ok(read) if read == bundle => screen.line(&document)?,
        Ok(_) => {
            return Err(Failure::Failed("the trust bundle of this node: written, it would say something else".into()));
        }
        Err(why) => return Err(Failure::Failed(format!("the trust bundle of this node, as written: {why}"))),
    }
    Ok(Exit::Done)
}

fn bundle(told: Bundle) -> Result<SpiffeBundle, String> {
    let domain: TrustDomain = told.trust_domain.parse().map_err(|e| format!("its trust domain {e}"))?;
    let roots = TrustBundle::new(domain.clone(), told.roots.into_iter().map(Into::into).collect());
    let keys = told.jwt_keys.into_iter().map(JwtKey::new).collect::<Result<_, _>>();
    let tokens = keys.and_then(|keys| JwtBundle::new(domain, keys)).map_err(|e| e.to_string())?;
    // The number that a node has counts the changes of its roots alone: it would not change with the keys of tokens.
    SpiffeBundle::of(&roots.map_err(|e| e.to_string())?, &tokens, None).map_err(|e| e.to_string())
}
