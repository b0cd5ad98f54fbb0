//! Connections to a runtime's socket: only to a server that runs as whom it should. It is counted how often the server
//! ended one, or the last one was ended here: until then the server is the one that answered before.

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
    lines: Arc<Lines>,
}

/// All connections to one socket.
#[derive(Debug, Default)]
struct Lines {
    open: AtomicU64,
    ended: AtomicU64,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    lines: Arc<Lines>,
    /// The server ended it, or it broke.
    over: bool,
}

impl Dial {
    /// To a server at `socket` that runs as `user`.
    pub(crate) fn new(socket: PathBuf, user: u32) -> Self {
        Self { socket, user, lines: Arc::default() }
    }

    /// Another one whenever the server may be another: what was learnt before may be over.
    pub(crate) fn generation(&self) -> u64 {
        self.lines.ended.load(Ordering::Acquire)
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
        self.lines.open.fetch_add(1, Ordering::AcqRel);
        Ok(Connection { stream, lines: Arc::clone(&self.lines), over: false })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let last = self.lines.open.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.over || last {
            self.lines.ended.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.over |= match &read {
            Poll::Ready(Ok(())) => before > 0 && buf.remaining() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.over |= matches!(written, Poll::Ready(Err(_)));
        written
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
    async fn what_the_server_ends_is_a_new_generation_and_so_is_the_end_of_the_last() {
        use tokio::io::AsyncReadExt as _;
        let dir = tempfile::tempdir().unwrap();
        let dial = Dial::new(dir.path().join("s"), 0);
        let server = tokio::net::UnixListener::bind(&dial.socket).unwrap();
        let (kept, surplus) = (dial.connect().await.unwrap(), dial.clone().connect().await.unwrap());
        let mut cut = dial.connect().await.unwrap();
        let ends = [server.accept().await.unwrap(), server.accept().await.unwrap(), server.accept().await.unwrap()];
        drop(surplus);
        assert_eq!(dial.generation(), 0);
        drop(ends);
        assert_eq!(cut.read(&mut [0; 1]).await.unwrap(), 0);
        drop(cut);
        assert_eq!(dial.generation(), 1);
        drop(kept);
        assert_eq!(dial.generation(), 2);
    }
}
