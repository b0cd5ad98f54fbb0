//! The source end: shake hands with the enforcer at the destination, then ask it for one flow.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::record::TlsFacts;
use bonafide_proto::svid::PeerSvid;
use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use super::ending::Ending;
use super::error::TunnelError;
use super::frame::{Accept, Frame, Open};
use super::leaf::{Leaf, Trust};
use super::session::{Session, buffered, client_config, proven, verifier};
use super::stream::{Tunnel, read_frame, write_frame};

/// The longest a handshake may take.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// The longest the answer to OPEN may take: the destination attributes, decides and dials meanwhile.
pub const OPEN_PATIENCE: Duration = Duration::from_secs(15);

/// A mutually authenticated connection to the enforcer at the destination; nothing was asked for yet.
#[derive(Debug)]
pub struct Client<S> {
    session: Session<S>,
    peer: PeerSvid,
    facts: TlsFacts,
}

/// Shakes hands, showing `leaf`, over a connection to where the program meant to go.
///
/// In TLS 1.3 this end is done before the server has judged our certificate: its refusal appears in [`Client::open`].
///
/// # Errors
/// Whatever keeps the peer from being a workload of our trust domain behind an enforcer.
pub async fn handshake<S>(stream: S, leaf: &Leaf, trust: &Trust) -> Result<Client<S>, TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let verifier = verifier(trust);
    let connector = TlsConnector::from(Arc::new(client_config(leaf, trust, Arc::clone(&verifier))?));
    let connect = connector.connect(placeholder()?, buffered(stream));
    let session = timeout(HANDSHAKE_PATIENCE, connect).await?.map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => TunnelError::NotBonafide("it closed the connection in the handshake".into()),
        _ => TunnelError::in_handshake(&e, &verifier),
    })?;
    let mut session = TlsStream::Client(session);
    let (peer, facts) = proven(&mut session, trust)?;
    Ok(Client { session, peer, facts })
}

/// rustls wants a name; none is sent, and our verifier looks for a SPIFFE ID instead.
fn placeholder() -> Result<ServerName<'static>, TunnelError> {
    ServerName::try_from("bonafide.invalid").map_err(|e| TunnelError::Handshake(e.to_string()))
}

impl<S> Client<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Who the server proved to be.
    #[must_use]
    pub fn peer(&self) -> &PeerSvid {
        &self.peer
    }

    /// How the session is protected.
    #[must_use]
    pub fn facts(&self) -> TlsFacts {
        self.facts.clone()
    }

    /// Goes away without asking for anything, and says why.
    ///
    /// # Errors
    /// The connection failed; the server may not have heard it.
    pub async fn leave(mut self, why: Ending) -> Result<(), TunnelError> {
        timeout(OPEN_PATIENCE, async {
            write_frame(&mut self.session, &Frame::Reset(why)).await?;
            Ok(self.session.shutdown().await?)
        })
        .await?
    }

    /// Asks for one flow and waits for the answer.
    ///
    /// # Errors
    /// [`TunnelError::Refused`] if the other enforcer says no; [`TunnelError::Handshake`] if it did not accept
    /// our certificate.
    pub async fn open(mut self, open: Open) -> Result<(Accept, Tunnel<S>), TunnelError> {
        let mut read = BytesMut::new();
        let answer = timeout(OPEN_PATIENCE, async {
            // A write that fails has its cause in what the peer sent before it closed.
            let sent = write_frame(&mut self.session, &Frame::Open(open)).await;
            match read_frame(&mut self.session, &mut read).await {
                Err(TunnelError::Io(e)) => Err(sent.err().map_or(TunnelError::Io(e), Into::into)),
                answer => answer,
            }
        });
        match answer.await? {
            Ok(Frame::Accept(accept)) => Ok((accept, Tunnel::new(self.session, read)?)),
            Ok(Frame::Refuse(code)) => Err(TunnelError::Refused(code)),
            Ok(other) => Err(TunnelError::Protocol(format!("{} where ACCEPT or REFUSE belongs", other.name()))),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
impl<S> Client<S> {
    pub(super) fn session_mut(&mut self) -> &mut Session<S> {
        &mut self.session
    }
}
