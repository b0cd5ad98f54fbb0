//! Ending a connection so that the other side knows it did not end well.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Closes `stream` with a RST, dropping what was not sent yet.
///
/// A stream whose option cannot be set any more is closed all the same.
pub fn reset(stream: TcpStream) {
    if let Err(e) = on_drop(&stream) {
        tracing::debug!("cannot arrange a reset, closing plainly: {e}");
    }
}

/// From now on, dropping `stream` resets it instead of closing it.
///
/// For streams that are inside something else: a split half (`half.as_ref()`), a TLS stream (`get_ref()`). A dropped
/// write half says goodbye first; `forget` it to let the reset be all that the peer sees.
///
/// # Errors
/// What the kernel says.
pub fn on_drop(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Takes [`on_drop`] back: dropping `stream` closes it in order, and what was written is still sent.
///
/// # Errors
/// What the kernel says.
pub fn off_drop(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_peer_sees_a_reset() {
        let (mut client, server) = pair().await;
        reset(server);
        let e = client.read_u8().await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn so_does_the_peer_of_split_halves() {
        let (mut client, server) = pair().await;
        let (read, write) = server.into_split();
        on_drop(read.as_ref()).unwrap();
        write.forget();
        drop(read);
        let e = client.read_u8().await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn an_orderly_close_takes_the_reset_back() {
        let (mut client, mut server) = pair().await;
        on_drop(&server).unwrap();
        off_drop(&server).unwrap();
        server.write_all(b"bye").await.unwrap();
        drop(server);
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "bye");
    }
}
