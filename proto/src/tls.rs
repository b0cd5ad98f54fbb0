//! TLS 1.3 as Bonafide speaks it, and the verifier that both ends use.
//!
//! Suites and signatures are ring's; the key exchange is X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem) from
//! aws-lc-rs, and nothing else: every peer is a Bonafide daemon, so there is nobody to fall back for.
//! No tickets are issued: each connection is a full handshake, checked in full.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use crate::svid::{Expect, PeerSvid, SvidError, TrustBundle};

/// ALPN of the tunnel between two enforcers.
pub const ALPN_TUNNEL: &[u8] = b"bonafide/1";

/// The cryptography of every TLS connection Bonafide makes.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites.retain(|s| {
            matches!(
                s.suite(),
                CipherSuite::TLS13_AES_128_GCM_SHA256
                    | CipherSuite::TLS13_AES_256_GCM_SHA384
                    | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            )
        });
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
        Arc::new(provider)
    })
}

/// Verifies a peer's chain against a [`TrustBundle`]; there is no other verifier in the product.
#[derive(Debug, Clone)]
pub struct PeerVerifier {
    bundle: TrustBundle,
    expect: Expect,
    client_auth_mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
    /// What rustls' own error for it has no room for; shared by clones.
    beyond_grant: Arc<OnceLock<SvidError>>,
}

impl PeerVerifier {
    /// A verifier that expects this kind of peer. As a server it demands a client certificate.
    #[must_use]
    pub fn new(bundle: TrustBundle, expect: Expect) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { bundle, expect, client_auth_mandatory: true, algorithms, beyond_grant: Arc::default() }
    }

    /// As a server, lets clients without a certificate in: only for joining, where the token speaks.
    #[must_use]
    pub fn client_may_be_anonymous(mut self) -> Self {
        self.client_auth_mandatory = false;
        self
    }

    /// Verifies the chain a finished handshake showed, again or for its identity.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Result<PeerSvid, SvidError> {
        self.bundle.verify(chain.unwrap_or_default(), now, self.expect)
    }

    /// The refusal of a leaf beyond its node's grant, which the peer hears of by an alert of its own (`access_denied`).
    #[must_use]
    pub fn beyond_grant(&self) -> Option<SvidError> {
        self.beyond_grant.get().cloned()
    }

    fn check(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(leaf).chain(rest).map(|c| CertificateDer::from(c.as_ref())).collect();
        match self.bundle.verify(&chain, now, self.expect) {
            Ok(_) => Ok(()),
            // The alert tells the peer which of its own rules it broke, no more.
            Err(SvidError::Expired(ago)) => {
                Err(CertificateError::ExpiredContext { time: now, not_after: shifted(now, -ago) }.into())
            }
            Err(SvidError::NotYetValid(ahead)) => {
                Err(CertificateError::NotValidYetContext { time: now, not_before: shifted(now, ahead) }.into())
            }
            Err(e @ SvidError::NotGranted { .. }) => {
                // Of several connections' the first is kept; whoever asks for it has a verifier of its own.
                let _ = self.beyond_grant.set(e);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Err(e) => Err(CertificateError::Other(OtherError(Arc::new(e))).into()),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.client_auth_mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The refusal inside a rustls error, where our own verifier was the one to refuse.
#[must_use]
pub fn svid_error(e: &Error) -> Option<SvidError> {
    match e {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref().cloned(),
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            Some(SvidError::Expired(seconds(*time) - seconds(*not_after)))
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            Some(SvidError::NotYetValid(seconds(*not_before) - seconds(*time)))
        }
        _ => None,
    }
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn shifted(time: UnixTime, by: i64) -> UnixTime {
    let seconds = u64::try_from(seconds(time).saturating_add(by)).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
