//! `bonafide bundle show`: the trust bundle as others read it.

use std::time::Duration;

use bonafide_proto::jwt::{JwtBundle, JwtKey};
use bonafide_proto::name::TrustDomain;
use bonafide_proto::spiffe_bundle;
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::node::{Bundle, WatchBundleRequest};
use serde_json::Value;

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
    let document = document(told).map_err(|why| Failure::Failed(format!("the trust bundle of this node: {why}")))?;
    screen.line(&format!("{document:#}"))?;
    Ok(Exit::Done)
}

fn document(told: Bundle) -> Result<Value, String> {
    let domain: TrustDomain = told.trust_domain.parse().map_err(|e| format!("its trust domain {e}"))?;
    let roots = TrustBundle::new(domain.clone(), told.roots.into_iter().map(Into::into).collect());
    let keys = told.jwt_keys.into_iter().map(JwtKey::new).collect::<Result<_, _>>();
    let tokens = keys.and_then(|keys| JwtBundle::new(domain, keys)).map_err(|e| e.to_string())?;
    spiffe_bundle::document(&roots.map_err(|e| e.to_string())?, &tokens).map_err(|e| e.to_string())
}
