//! The destination end: shake hands as the program that listens, then hear which flow is asked for.

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::record::TlsFacts;
use bonafide_proto::svid::PeerSvid;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::client::HANDSHAKE_PATIENCE;
use super::error::TunnelError;
use super::frame::{Accept, Frame, Open, RefuseCode};
use super::leaf::{Leaf, Trust};
use super::session::{Session, buffered, proven, server_config, verifier};
use super::stream::{Tunnel, read_frame, write_frame};

/// The longest an authenticated client may wait before it asks for something.
const ASK_PATIENCE: Duration = Duration::from_secs(10);
/// The longest a client that was refused in the handshake may take to close.
const FAREWELL_PATIENCE: Duration = Duration::from_millis(500);

/// A mutually authenticated connection from the enforcer at the source; it has asked for nothing yet.
#[derive(Debug)]
pub struct Server<S> {
    session: Session<S>,
    peer: PeerSvid,
    facts: TlsFacts,
}

/// Shakes hands, showing `leaf`, the listening program's.
///
/// # Errors
/// Whatever keeps the peer from being a workload of our trust domain behind an enforcer.
pub async fn handshake<S>(stream: S, leaf: &Leaf, trust: &Trust) -> Result<Server<S>, TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let verifier = verifier(trust);
    let acceptor = TlsAcceptor::from(Arc::new(server_config(leaf, trust, Arc::clone(&verifier))?));
    let session = match timeout(HANDSHAKE_PATIENCE, acceptor.accept(buffered(stream)).into_fallible()).await? {
        Ok(session) => session,
        Err((e, stream)) => {
            let refusal = TunnelError::in_handshake(&e, &verifier);
            if !matches!(refusal, TunnelError::NotBonafide(_)) {
                farewell(stream).await;
            }
            return Err(refusal);
        }
    };
    let mut session = TlsStream::Server(session);
    let (peer, facts) = proven(&mut session, trust)?;
    Ok(Server { session, peer, facts })
}

/// Lets the client close first. Its OPEN may already be here, unread: closing over it would reset the connection
/// and could destroy our alert before the client has read it.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let drain = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(64 * 1024), &mut tokio::io::sink()).await
    };
    // Whether it went well changes nothing: the connection is refused either way.
    drop(timeout(FAREWELL_PATIENCE, drain).await);
}

impl<S> Server<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Who the client proved to be.
    #[must_use]
    pub fn peer(&self) -> &PeerSvid {
        &self.peer
    }

    /// How the session is protected.
    #[must_use]
    pub fn facts(&self) -> TlsFacts {
        self.facts.clone()
    }

    /// Waits for what the client asks.
    ///
    /// # Errors
    /// Anything but an OPEN in time.
    pub async fn await_open(mut self) -> Result<(Open, Pending<S>), TunnelError> {
        let mut read = BytesMut::new();
        match timeout(ASK_PATIENCE, read_frame(&mut self.session, &mut read)).await?? {
            Frame::Open(open) => Ok((open, Pending { session: self.session, read })),
            Frame::Reset(ending) => Err(TunnelError::Left(ending)),
            other => Err(TunnelError::Protocol(format!("{} where OPEN belongs", other.name()))),
        }
    }
}

/// A flow that was asked for and waits for its answer. Dropped without one, the client sees a broken tunnel.
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct Pending<S> {
    session: Session<S>,
    read: BytesMut,
}

impl<S> Pending<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Agrees.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn accept(mut self, accept: Accept) -> Result<Tunnel<S>, TunnelError> {
        timeout(ASK_PATIENCE, write_frame(&mut self.session, &Frame::Accept(accept))).await??;
        Tunnel::new(self.session, self.read)
    }

    /// Refuses, and closes.
    ///
    /// # Errors
    /// The connection failed; the client may not have heard the code.
    pub async fn refuse(mut self, code: RefuseCode) -> Result<(), TunnelError> {
        timeout(ASK_PATIENCE, async {
            write_frame(&mut self.session, &Frame::Refuse(code)).await?;
            Ok(self.session.shutdown().await?)
        })
        .await?
    }
}

#[cfg(test)]
impl<S> Server<S> {
    pub(super) fn session_mut(&mut self) -> &mut Session<S> {
        &mut self.session
    }
}
