//! The relay: bytes both ways, half-close and reset carried faithfully, until an end or an order to end.
//!
//! Decides nothing and knows no policy.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bonafide_proto::record::{EndedBy, Reason};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot, watch};

use crate::flow::Abort;
use crate::live::{Place, Seat};
use crate::record::{Counters, Why};
use crate::tunnel::ending::{Cause, Ending};
use crate::tunnel::{Incoming, Leaf, Tunnel, TunnelError, TunnelReader, TunnelWriter};

/// Bytes taken from a program at once; one frame carries them.
const CHUNK: usize = 64 * 1024;
/// How long the farewell to the other enforcer may take, when a flow is ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a program's last words are waited for, when it takes no more bytes itself.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a relayed flow ended.
#[derive(Debug)]
pub struct End {
    /// By whom.
    pub by: EndedBy,
    /// Why, where it did not end in order.
    pub why: Option<Why>,
}

impl End {
    fn by(by: EndedBy) -> Self {
        Self { by, why: None }
    }
}

/// Which of the two programs is beside this enforcer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// The connecting one.
    Source,
    /// The listening one.
    Destination,
}

impl Beside {
    fn reset_here(self) -> EndedBy {
        match self {
            Self::Source => EndedBy::SourceReset,
            Self::Destination => EndedBy::DestinationReset,
        }
    }

    fn reset_there(self) -> EndedBy {
        match self {
            Self::Source => EndedBy::DestinationReset,
            Self::Destination => EndedBy::SourceReset,
        }
    }

    /// How a broken relay ended, and what to tell the other enforcer if it does not know.
    fn broken(self, broken: Broken) -> (Option<Ending>, End) {
        match broken {
            Broken::App => (Some(Cause::ApplicationReset.into()), End::by(self.reset_here())),
            Broken::Peer(Ending { cause: Cause::ApplicationReset, .. }) => (None, End::by(self.reset_there())),
            Broken::Peer(said) => {
                let why = Why::new(Reason::EndedByPeer, format!("the other enforcer ended it: {said}"));
                (None, End { by: EndedBy::Peer, why: Some(why) })
            }
            Broken::Renewal(why) => {
                (Some(Ending::of(why.reason, why.changed)), End { by: EndedBy::Enforcer, why: Some(why) })
            }
            Broken::Tunnel(e) => {
                let protocol = matches!(e, TunnelError::Protocol(_));
                let reason = if protocol { Reason::Protocol } else { Reason::TunnelBroken };
                (None, End { by: EndedBy::Peer, why: Some(Why::new(reason, e.to_string())) })
            }
        }
    }

    /// Counters for bytes from and to the program beside us.
    fn counters(self, counters: &Counters) -> (&AtomicU64, &AtomicU64) {
        match self {
            Self::Source => (&counters.sent, &counters.received),
            Self::Destination => (&counters.received, &counters.sent),
        }
    }
}

enum Broken {
    /// The program's connection.
    App,
    /// The tunnel.
    Tunnel(TunnelError),
    /// The other enforcer said that the flow ends.
    Peer(Ending),
    /// The other enforcer showed a later certificate by which the flow may not go on.
    Renewal(Why),
}

/// Relays between the program beside us and a tunnel.
pub(crate) async fn tunnel<S>(
    mut app: TcpStream,
    tunnel: Tunnel<S>,
    beside: Beside,
    counters: &Counters,
    seat: &mut Seat,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    app.arm();
    let Seat { ended, fresh, place } = seat;
    let (mut reader, writer) = tunnel.into_split();
    // Bytes and later certificates leave one after the other.
    let writer = Mutex::new(writer);
    let (from_app, to_app) = beside.counters(counters);
    let outcome = {
        let (mut app_read, mut app_write) = app.split();
        let both = async {
            let mut up = pin!(upload(&mut app_read, &writer, from_app));
            {
                // Pinned, not made anew: a download dropped between read and write loses what it read.
                let mut down = pin!(download(&mut reader, &mut app_write, to_app, place));
                tokio::select! {
                    sent = &mut up => {
                        sent?;
                        return down.await;
                    }
                    received = &mut down => match received {
                        // The program closed over what we sent; what it said before that is still to be read.
                        Err(Broken::App) => {
                            let _ = tokio::time::timeout(LAST_WORDS, &mut up).await;
                            return Err(Broken::App);
                        }
                        received => received?,
                    },
                }
            }
            // The far program sends no more, but may still reset what we send it.
            tokio::select! {
                sent = &mut up => sent,
                broken = broken_after_fin(&mut reader, place) => Err(broken),
            }
        };
        tokio::select! {
            done = both => Ok(done),
            broken = renew(fresh, &writer) => Ok(Err(broken)),
            why = &mut *ended => Err(why),
        }
    };
    let mut writer = writer.into_inner();
    let (farewell, end) = match outcome {
        Ok(Ok(())) => {
            // Both ends have said FIN: nothing is lost if the farewell fails.
            let _ = tokio::time::timeout(FAREWELL, writer.shutdown()).await;
            app.disarm();
            return End::by(EndedBy::Closed);
        }
        Ok(Err(broken)) => beside.broken(broken),
        Err(Ok(why)) => (Some(Ending::of(why.reason, why.changed)), End { by: EndedBy::Enforcer, why: Some(why) }),
        // The table of live flows never drops its sender without a word, unless we are torn down.
        Err(Err(_)) => (Some(Cause::Internal.into()), End { by: EndedBy::Enforcer, why: None }),
    };
    app.abort();
    if let Some(farewell) = farewell {
        // The other end learns why if it still listens; if not, the closed connection tells enough.
        let _ = writer.cut(reader, farewell, FAREWELL).await;
    }
    end
}

async fn upload<S>(
    app: &mut (impl AsyncRead + Unpin),
    tunnel: &Mutex<TunnelWriter<S>>,
    count: &AtomicU64,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = app.read(&mut chunk).await.map_err(|_| Broken::App)?;
        let data = chunk.get(..n).unwrap_or_default();
        if data.is_empty() {
            return tunnel.lock().await.fin().await.map_err(Broken::Tunnel);
        }
        tunnel.lock().await.data(data).await.map_err(Broken::Tunnel)?;
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn download<S>(
    tunnel: &mut TunnelReader<S>,
    app: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
    place: &Place,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    loop {
        match tunnel.next().await.map_err(Broken::Tunnel)? {
            Incoming::Data(data) => {
                app.write_all(&data).await.map_err(|_| Broken::App)?;
                count.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            Incoming::Fin => return shutdown(app).await.map_err(|_| Broken::App),
            Incoming::Reset(said) => return Err(Broken::Peer(said)),
            Incoming::Renewed(shown) => place.renewed(&shown).map_err(Broken::Renewal)?,
        }
    }
}

/// Shows each later certificate of the program beside us. Ends only with the tunnel.
async fn renew<S>(fresh: &mut watch::Receiver<Option<Arc<Leaf>>>, tunnel: &Mutex<TunnelWriter<S>>) -> Broken
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    while fresh.changed().await.is_ok() {
        let Some(leaf) = fresh.borrow_and_update().clone() else { continue };
        if let Err(e) = tunnel.lock().await.renew(&leaf).await {
            return Broken::Tunnel(e);
        }
    }
    // Its sender is in the table as long as the flow is.
    std::future::pending().await
}

/// What breaks a tunnel whose far end has said FIN. Waits for ever if nothing does.
async fn broken_after_fin<S>(tunnel: &mut TunnelReader<S>, place: &Place) -> Broken
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    loop {
        match tunnel.next().await {
            Ok(Incoming::Reset(said)) => return Broken::Peer(said),
            Ok(Incoming::Renewed(shown)) => {
                if let Err(why) = place.renewed(&shown) {
                    return Broken::Renewal(why);
                }
            }
            // The far end closed after its FIN: what we still send will say so.
            Ok(Incoming::Fin | Incoming::Data(_)) => std::future::pending().await,
            Err(e) => return Broken::Tunnel(e),
        }
    }
}

/// Relays between two connections in the clear: the first is the source's side.
pub(crate) async fn clear<A, B>(
    mut source: A,
    mut destination: B,
    counters: &Counters,
    ended: &mut oneshot::Receiver<Why>,
) -> End
where
    A: AsyncRead + AsyncWrite + Unpin + Abort,
    B: AsyncRead + AsyncWrite + Unpin + Abort,
{
    source.arm();
    destination.arm();
    let end = {
        let (mut source_read, mut source_write) = tokio::io::split(&mut source);
        let (mut destination_read, mut destination_write) = tokio::io::split(&mut destination);
        let both = both_ways(
            pump(&mut source_read, &mut destination_write, &counters.sent),
            pump(&mut destination_read, &mut source_write, &counters.received),
        );
        tokio::select! {
            ended = both => End::by(ended),
            why = &mut *ended => End { by: EndedBy::Enforcer, why: why.ok() },
        }
    };
    if end.by == EndedBy::Closed {
        source.disarm();
        destination.disarm();
    }
    end
}

/// Which half of a direction broke.
enum Half {
    Read,
    Write,
}

/// Both directions until both have ended in order, or one has broken: then the last words of the program that takes
/// no more bytes are still passed on.
async fn both_ways(
    there: impl Future<Output = Result<(), Half>>,
    back: impl Future<Output = Result<(), Half>>,
) -> EndedBy {
    use EndedBy::{Closed, DestinationReset, SourceReset};
    let (mut there, mut back) = (pin!(there), pin!(back));
    tokio::select! {
        sent = &mut there => match sent {
            Ok(()) => back.await.map_or_else(|half| half.of(DestinationReset, SourceReset), |()| Closed),
            Err(half) => {
                if matches!(half, Half::Write) {
                    let _ = tokio::time::timeout(LAST_WORDS, back).await;
                }
                half.of(SourceReset, DestinationReset)
            }
        },
        received = &mut back => match received {
            Ok(()) => there.await.map_or_else(|half| half.of(SourceReset, DestinationReset), |()| Closed),
            Err(half) => {
                if matches!(half, Half::Write) {
                    let _ = tokio::time::timeout(LAST_WORDS, there).await;
                }
                half.of(DestinationReset, SourceReset)
            }
        },
    }
}

impl Half {
    /// A failing read is the reader's reset, a failing write the writer's.
    fn of(self, reader: EndedBy, writer: EndedBy) -> EndedBy {
        match self {
            Self::Read => reader,
            Self::Write => writer,
        }
    }
}

/// One direction, until its end of stream was passed on.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
) -> Result<(), Half> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = from.read(&mut chunk).await.map_err(|_| Half::Read)?;
        let data = chunk.get(..n).unwrap_or_default();
        if data.is_empty() {
            return shutdown(to).await.map_err(|_| Half::Write);
        }
        to.write_all(data).await.map_err(|_| Half::Write)?;
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Half-closes. A connection whose both halves are closed already is no error.
async fn shutdown(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    match to.shutdown().await {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
