//! Why a tunnel failed, sorted by whose fault it is.

use std::io;

use bonafide_proto::record::Reason;
use bonafide_proto::svid::SvidError;
use bonafide_proto::tls::{PeerVerifier, svid_error};
use rustls::{AlertDescription, CertificateError, Error as Tls};

use super::ending::Ending;
use super::frame::{FrameError, RefuseCode};

/// Why there is no tunnel, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The peer's certificate broke a rule.
    #[error("the peer's certificate was refused: {0}")]
    PeerCertificate(SvidError),
    /// The other end is no enforcer: it does not speak TLS, not our TLS, or not `bonafide/1`.
    #[error("the other end does not speak bonafide/1: {0}")]
    NotBonafide(String),
    /// The handshake failed between two that could have spoken, or the peer refused our certificate.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// The peer says that our own certificate is for a workload that this node was not granted.
    #[error("the other end refused this end's certificate: not-granted, this node may not issue that workload")]
    NotGranted,
    /// The other enforcer went away instead of asking for a flow, and said why.
    #[error("the other enforcer left after the handshake: {0}")]
    Left(Ending),
    /// The other enforcer refused the flow.
    #[error("the other enforcer refused: {0}")]
    Refused(RefuseCode),
    /// The peer broke the rules of `bonafide/1`, or of TLS after the handshake.
    #[error("bonafide/1 was broken: {0}")]
    Protocol(String),
    /// The connection ended before the stream did.
    #[error("the tunnel ended without an end of stream")]
    Truncated,
    /// The connection itself failed.
    #[error("the tunnel broke: {0}")]
    Io(io::Error),
    /// The peer took too long.
    #[error("the other end did not answer in time")]
    Timeout,
}

impl TunnelError {
    /// The reason as it stands in the flow record.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::PeerCertificate(SvidError::NotGranted { .. }) | Self::NotGranted => Reason::NotGranted,
            Self::PeerCertificate(_) => Reason::PeerCertificate,
            Self::NotBonafide(_) => Reason::NotBonafide,
            Self::Handshake(_) => Reason::Handshake,
            Self::Left(_) | Self::Refused(_) => Reason::RefusedByPeer,
            Self::Protocol(_) => Reason::Protocol,
            Self::Truncated | Self::Io(_) => Reason::TunnelBroken,
            Self::Timeout => Reason::Limit,
        }
    }

    /// An error while the handshake runs, or before the peer has said anything after it.
    pub(super) fn in_handshake(e: &io::Error, verifier: &PeerVerifier) -> Self {
        match tls(e) {
            Some(Tls::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
                if let Some(refusal) = verifier.beyond_grant() =>
            {
                Self::PeerCertificate(refusal)
            }
            Some(e) => Self::of_tls(e),
            None => Self::Handshake(e.to_string()),
        }
    }

    fn of_tls(e: &Tls) -> Self {
        if let Some(refusal) = svid_error(e) {
            return Self::PeerCertificate(refusal);
        }
        match e {
            Tls::NoCertificatesPresented => Self::PeerCertificate(SvidError::Missing),
            // Two enforcers always have version, suite, group and ALPN in common.
            Tls::InvalidMessage(_)
            | Tls::PeerIncompatible(_)
            | Tls::NoApplicationProtocol
            | Tls::AlertReceived(
                AlertDescription::NoApplicationProtocol
                | AlertDescription::ProtocolVersion
                | AlertDescription::HandshakeFailure,
            ) => Self::NotBonafide(e.to_string()),
            // Nobody sends this one for anything else.
            Tls::AlertReceived(AlertDescription::AccessDenied) => Self::NotGranted,
            Tls::AlertReceived(alert) => Self::Handshake(format!("the other end sent the alert {alert:?}")),
            other => Self::Handshake(other.to_string()),
        }
    }
}

impl From<io::Error> for TunnelError {
    /// An error after the handshake, as this end saw it. An alert is still the server's verdict on our certificate:
    /// in TLS 1.3 the client has finished before.
    fn from(e: io::Error) -> Self {
        match tls(&e) {
            Some(alert @ Tls::AlertReceived(_)) => Self::of_tls(alert),
            Some(e) => Self::Protocol(e.to_string()),
            None if e.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            None => Self::Io(e),
        }
    }
}

impl From<FrameError> for TunnelError {
    fn from(e: FrameError) -> Self {
        Self::Protocol(e.to_string())
    }
}

impl From<tokio::time::error::Elapsed> for TunnelError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Timeout
    }
}

fn tls(e: &io::Error) -> Option<&Tls> {
    e.get_ref()?.downcast_ref()
}
