//! Connections to a runtime's socket: only to a server that runs as whom it should, and each end of one is counted.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Connects.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    /// Where.
    pub(crate) socket: PathBuf,
    /// As whom the server must run.
    pub(crate) user: u32,
    ended: Arc<AtomicU64>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    ended: Arc<AtomicU64>,
}

impl Dial {
    /// To a server at `socket` that runs as `user`.
    pub(crate) fn new(socket: PathBuf, user: u32) -> Self {
        Self { socket, user, ended: Arc::default() }
    }

    /// How many connections ended so far: what was learnt before one did may be over.
    pub(crate) fn generation(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nobody listens, or the wrong one: anybody may bind a socket where a directory lets them.
    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let stream = UnixStream::connect(&self.socket).await?;
        let server = stream.peer_cred()?.uid();
        if server != self.user {
            return Err(io::Error::other(format!("its server runs as user {server}, not {}", self.user)));
        }
        Ok(Connection { stream, ended: Arc::clone(&self.ended) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_of_another_user_is_not_spoken_to() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _server = tokio::net::UnixListener::bind(&socket).unwrap();
        assert!(Dial::new(socket.clone(), 0).connect().await.is_ok());
        let said = Dial::new(socket, 1000).connect().await.unwrap_err().to_string();
        assert_eq!(said, "its server runs as user 0, not 1000");
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_a_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let dial = Dial::new(dir.path().join("s"), 0);
        let _server = tokio::net::UnixListener::bind(&dial.socket).unwrap();
        let connection = dial.clone().connect().await.unwrap();
        assert_eq!(dial.generation(), 0);
        drop(connection);
        assert_eq!(dial.generation(), 1);
    }
}
