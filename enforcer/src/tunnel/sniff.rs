//! What the first bytes of an inbound connection say: a `bonafide/1` tunnel, something else, or nothing yet.
//!
//! It only sorts. A peer that claims `bonafide/1` still has to complete the handshake, and one that does not is
//! judged as what its address is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_proto::tls::ALPN_TUNNEL;
use bytes::{Buf as _, Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

/// The most that is read before a verdict, in bytes: several times what an enforcer's ClientHello needs.
pub const SNIFF_MAX: usize = 16 * 1024;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// A TLS ClientHello that offers `bonafide/1`.
    Bonafide,
    /// Anything else, also a ClientHello that was not complete in time.
    Other,
    /// Nothing: it waits for the server to speak first, or closed at once.
    Silent,
}

/// How long a ClientHello that has begun may take to be complete: a lost segment must not pass a peer's TLS to a
/// program.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Reads until the first bytes tell who speaks, and puts them back. Silence is borne for at most `patience`.
///
/// # Errors
/// The connection failed.
pub async fn sniff<S: AsyncRead + Unpin>(mut stream: S, patience: Duration) -> io::Result<(Speaks, Rewind<S>)> {
    let begun = Instant::now();
    let mut deadline = begun + patience;
    let mut hello = Hello::default();
    let mut read = BytesMut::with_capacity(2048);
    let speaks = loop {
        let before = read.len();
        // Time that is up counts like a peer that has closed: nothing more to hear.
        let n = timeout_at(deadline, stream.read_buf(&mut read)).await.unwrap_or(Ok(0))?;
        if n == 0 {
            break if read.is_empty() { Speaks::Silent } else { Speaks::Other };
        }
        match hello.hear(read.get(before..).unwrap_or_default()) {
            Some(speaks) => break speaks,
            None if read.len() >= SNIFF_MAX => break Speaks::Other,
            None => {
                deadline = deadline.max(begun + HELLO_PATIENCE);
                read.reserve(2048);
            }
        }
    };
    Ok((speaks, Rewind { read: read.freeze(), stream }))
}

/// A ClientHello as it arrives, parsed by rustls on a copy.
#[derive(Default)]
struct Hello {
    acceptor: Acceptor,
    heard: usize,
}

impl Hello {
    /// The verdict, as soon as there is one.
    fn hear(&mut self, mut new: &[u8]) -> Option<Speaks> {
        // Content type handshake(22), version 3.x: other protocols are told apart by their first byte.
        for byte in new.iter().take(2_usize.saturating_sub(self.heard)) {
            if *byte != [0x16, 0x03].get(self.heard).copied().unwrap_or(*byte) {
                return Some(Speaks::Other);
            }
            self.heard += 1;
        }
        while !new.is_empty() {
            if !matches!(self.acceptor.read_tls(&mut new), Ok(1..)) {
                return Some(Speaks::Other);
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return Some(offers(&accepted.client_hello())),
                Err(_) => return Some(Speaks::Other),
            }
        }
        None
    }
}

fn offers(hello: &rustls::server::ClientHello<'_>) -> Speaks {
    let offered = hello.alpn().is_some_and(|mut protocols| protocols.any(|p| p == ALPN_TUNNEL));
    if offered { Speaks::Bonafide } else { Speaks::Other }
}

/// A connection whose first bytes were read and are read again.
#[derive(Debug)]
pub struct Rewind<S> {
    read: Bytes,
    stream: S,
}

impl<S> Rewind<S> {
    /// The bytes not read again yet, and the connection behind them.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, S) {
        (self.read, self.stream)
    }

    /// The connection itself.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.read.len().min(buf.remaining());
        buf.put_slice(self.read.get(..n).unwrap_or_default());
        self.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
