//! What the messages of the X509-SVID profile say (SPIFFE_Workload_API.md §5).

use bonafide_proto::wire::workload_endpoint::{X509BundlesResponse, X509svid, X509svidResponse};

use super::subscription::Told;

/// A program is one workload, so there is one certificate, which needs no hint.
pub(super) fn svids(told: &Told) -> X509svidResponse {
    let svid = told.svid.iter().map(|current| X509svid {
        spiffe_id: told.id.to_string(),
        x509_svid: current.svid.chain.iter().flat_map(|one| one.iter().copied()).collect(),
        x509_svid_key: current.svid.key.to_vec(),
        bundle: told.trust.der(),
        hint: String::new(),
    });
    X509svidResponse { svids: svid.collect(), ..X509svidResponse::default() }
}

/// The bundle of our own trust domain.
pub(super) fn bundles(told: &Told) -> X509BundlesResponse {
    X509BundlesResponse { bundles: [(told.trust.id(), told.trust.der())].into(), ..X509BundlesResponse::default() }
}
