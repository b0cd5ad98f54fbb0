//! Connections to the workload endpoint, each with its caller. Anybody may connect, so how many one user has is bounded.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::authority::Authority;
use super::caller::Caller;
use crate::execs::Execs;

/// Connections at once.
const CONNECTIONS_MAX: usize = 4096;
/// Of these, so many are for one user who is not root: nobody keeps all others out.
const OF_A_USER: usize = 512;
/// Until descriptors come back, most likely.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection, and who asks over it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    caller: Caller,
    authority: Authority,
    _place: Place,
}

/// Connections as they come; those that find no place are closed unheard.
pub(super) fn admit(listener: UnixListener, execs: Arc<dyn Execs>) -> ReceiverStream<io::Result<Connection>> {
    let (to, admitted) = mpsc::channel(16);
    tokio::spawn(async move {
        let room = Room::default();
        while !to.is_closed() {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().map(|peer| peer.uid());
                    let Some(place) = uid.ok().and_then(|uid| room.place(uid)) else { continue };
                    let caller = Caller::of(&stream, execs.as_ref());
                    if to
                        .send(Ok(Connection { stream, caller, authority: Authority::default(), _place: place }))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(e) => {
                    tracing::debug!(error = %e, "no connection of a program can be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(admitted)
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(new) = buf.filled_mut().get_mut(before..) {
            self.authority.reads(new);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Who has how many connections.
#[derive(Debug, Clone, Default)]
struct Room(Arc<Mutex<HashMap<u32, usize>>>);

/// A connection's place; free again when dropped.
#[derive(Debug)]
struct Place {
    room: Room,
    uid: u32,
}

impl Room {
    fn place(&self, uid: u32) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.entry(uid).or_default();
        if all >= CONNECTIONS_MAX || (uid != 0 && *own >= OF_A_USER) {
            tracing::debug!(uid, "a program's connection finds no place");
            return None;
        }
        *own += 1;
        Some(Place { room: self.clone(), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_connections() {
        let room = Room::default();
        let greedy: Vec<Place> = std::iter::from_fn(|| room.place(1000)).take(CONNECTIONS_MAX).collect();
        assert_eq!(greedy.len(), OF_A_USER);
        assert!(room.place(1001).is_some() && room.place(0).is_some());
        drop(greedy);
        assert!(room.place(1000).is_some());
        assert!(room.0.lock().unwrap().is_empty(), "nothing is remembered of who is gone");
    }

    #[test]
    fn there_are_not_more_than_there_may_be() {
        let room = Room::default();
        let all: Vec<Place> = (1..).map_while(|uid| room.place(uid)).collect();
        assert_eq!(all.len(), CONNECTIONS_MAX);
        assert!(room.place(0).is_none());
    }
}
