use std::time::Duration;

use bonafide_proto::record::Reason;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWriteExt as _, duplex};

use super::super::ending::{Cause, Ending, Kind};
use super::super::frame::{BEST_PAYLOAD, Frame, MAX_PAYLOAD};
use super::super::stream::write_frame;
use super::super::{Incoming, TunnelError, TunnelReader};
use super::*;

async fn all<S>(reader: &mut TunnelReader<S>) -> Result<Vec<u8>, TunnelError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let mut seen = Vec::new();
    loop {
        match reader.next().await? {
            Incoming::Data(data) => seen.extend_from_slice(&data),
            Incoming::Fin => return Ok(seen),
            other => panic!("{other:?}"),
        }
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ seed).collect()
}

#[tokio::test]
async fn opening_tells_the_server_what_was_asked_and_the_client_the_port() {
    let (near, far) = wire();
    let (c, s) = shake(&Mesh::new("example.org"), near, far).await;
    let asked = open();
    let accept = async {
        let (heard, pending) = s.await_open().await.unwrap();
        assert_eq!(heard, asked);
        pending.accept(Accept { port: 15432 }).await.unwrap()
    };
    let (answer, _tunnel) = tokio::join!(c.open(asked), accept);
    assert_eq!(answer.unwrap().0, Accept { port: 15432 });
}

#[tokio::test]
async fn bytes_go_both_ways_at_once_on_ipv4_and_ipv6() {
    for host in ["127.0.0.1", "::1"] {
        let (near, far) = loopback(host).await;
        let (c, s) = tunnels(near, far).await;
        let ((mut cr, mut cw), (mut sr, mut sw)) = (c.into_split(), s.into_split());
        let (up, down) = (pattern(3_000_001, 1), pattern(2_000_003, 2));
        let (u, d) = (up.clone(), down.clone());
        let client = tokio::spawn(async move {
            for piece in u.chunks(70_001) {
                cw.data(piece).await.unwrap();
            }
            cw.fin().await.unwrap();
            cw
        });
        let server = tokio::spawn(async move {
            for piece in d.chunks(BEST_PAYLOAD) {
                sw.data(piece).await.unwrap();
            }
            sw.fin().await.unwrap();
            sw
        });
        let (seen_down, seen_up) = tokio::join!(all(&mut cr), all(&mut sr));
        assert!(seen_up.unwrap() == up, "{host}: up");
        assert!(seen_down.unwrap() == down, "{host}: down");
        client.await.unwrap().shutdown().await.unwrap();
        server.await.unwrap().shutdown().await.unwrap();
        assert_eq!(cr.next().await.unwrap(), Incoming::Fin, "the end in order is heard again");
    }
}

#[tokio::test]
async fn a_half_close_leaves_the_other_way_open() {
    let (near, far) = wire();
    let (c, s) = tunnels(near, far).await;
    let ((mut cr, mut cw), (mut sr, mut sw)) = (c.into_split(), s.into_split());
    cw.data(b"question").await.unwrap();
    cw.fin().await.unwrap();
    assert_eq!(all(&mut sr).await.unwrap(), b"question");
    for part in [&b"long "[..], b"", b"answer"] {
        sw.data(part).await.unwrap();
    }
    sw.fin().await.unwrap();
    assert_eq!(all(&mut cr).await.unwrap(), b"long answer");
    assert!(matches!(cw.data(b"more").await, Err(TunnelError::Protocol(_))), "data after our own FIN");
}

#[tokio::test]
async fn a_reset_carries_its_cause_also_after_a_half_close() {
    for cause in Cause::ALL {
        let why = Ending { cause: *cause, changed: Some(Kind::Script) };
        let (near, far) = wire();
        let (c, s) = tunnels(near, far).await;
        let ((mut cr, mut cw), (mut sr, mut sw)) = (c.into_split(), s.into_split());
        cw.data(b"x").await.unwrap();
        cw.fin().await.unwrap();
        assert_eq!(all(&mut sr).await.unwrap(), b"x");
        cw.reset(why).await.unwrap();
        assert_eq!(sr.next().await.unwrap(), Incoming::Reset(why));
        assert_eq!(sr.next().await.unwrap(), Incoming::Reset(why), "it stays reset");
        sw.reset(why).await.unwrap();
        assert_eq!(cr.next().await.unwrap(), Incoming::Reset(why));
    }
}

#[tokio::test]
async fn a_cut_is_heard_although_unread_bytes_are_on_their_way() {
    for _ in 0..20 {
        let (near, far) = loopback("127.0.0.1").await;
        let (c, s) = tunnels(near, far).await;
        let ((cr, cw), (mut sr, mut sw)) = (c.into_split(), s.into_split());
        // The server floods; the client never reads it, and cuts.
        let flood = tokio::spawn(async move { while sw.data(&[7; 60_000]).await.is_ok() {} });
        tokio::time::timeout(Duration::from_secs(10), async {
            tokio::join!(
                async { cw.cut(cr, Cause::PolicyChanged.into(), Duration::from_secs(5)).await.unwrap() },
                async {
                    assert_eq!(sr.next().await.unwrap(), Incoming::Reset(Cause::PolicyChanged.into()));
                    flood.abort();
                    let _ = flood.await;
                    drop(sr);
                }
            )
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_cancelled_send_leaves_the_frames_whole() {
    let (near, far) = duplex(4096);
    let (c, s) = tunnels(near, far).await;
    let ((_cr, mut cw), (mut sr, _sw)) = (c.into_split(), s.into_split());
    let payload = pattern(MAX_PAYLOAD, 3);
    // Nobody reads, so these block; each is given up half-way.
    let mut sends = 0;
    for _ in 0..20 {
        tokio::select! {
            biased;
            done = cw.data(&payload) => { done.unwrap(); sends += 1; }
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(sends < 20, "some send was cancelled");
    let reset = async { cw.reset(Cause::PolicyChanged.into()).await.unwrap() };
    let read = async {
        let mut seen = Vec::new();
        loop {
            match sr.next().await.unwrap() {
                Incoming::Data(data) => seen.push(data),
                Incoming::Reset(code) => return (seen, code),
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), (seen, code)) = tokio::join!(reset, read);
    assert_eq!(code, Cause::PolicyChanged.into());
    assert!(!seen.is_empty() && seen.iter().all(|data| *data == payload), "frames of {} bytes", seen.len());
}

#[tokio::test]
async fn a_cancelled_read_loses_nothing() {
    let (near, far) = wire();
    let (c, s) = tunnels(near, far).await;
    let ((_cr, mut cw), (mut sr, _sw)) = (c.into_split(), s.into_split());
    let sent = pattern(500_000, 5);
    let payload = sent.clone();
    let writer = tokio::spawn(async move {
        for piece in payload.chunks(9_999) {
            cw.data(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        cw.fin().await.unwrap();
        cw
    });
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            came = sr.next() => match came.unwrap() {
                Incoming::Data(data) => seen.extend_from_slice(&data),
                Incoming::Fin => break,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(seen == sent);
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn an_end_without_fin_is_a_broken_tunnel() {
    // The connection vanishes, in the middle of a frame and between two.
    for cut in [0, 100] {
        let (near, far) = wire();
        let (mut c, s) = tunnels(near, far).await;
        let (mut sr, _sw) = s.into_split();
        let mut bytes = BytesMut::new();
        Frame::Data(Bytes::from(pattern(200, 0))).encode(&mut bytes);
        c.session_mut().write_all(&bytes[..bytes.len() - cut]).await.unwrap();
        c.session_mut().flush().await.unwrap();
        drop(c);
        let e = all(&mut sr).await.unwrap_err();
        assert!(matches!(e, TunnelError::Truncated), "{cut}: {e}");
        assert_eq!(e.reason(), Reason::TunnelBroken);
    }
    // TLS ends in order, but the stream did not.
    let (near, far) = wire();
    let (c, s) = tunnels(near, far).await;
    let ((_cr, mut cw), (mut sr, _sw)) = (c.into_split(), s.into_split());
    cw.data(b"x").await.unwrap();
    cw.shutdown().await.unwrap();
    assert!(matches!(all(&mut sr).await, Err(TunnelError::Truncated)));
}

#[tokio::test]
async fn hostile_frames_end_the_stream_by_name() {
    let oversized: &[u8] = &[4, 0, 0, 0, 0, 1, 0, 1];
    let unknown: &[u8] = &[9, 0, 0, 0, 0, 0, 0, 0];
    let causeless: &[u8] = &[6, 0, 0, 0, 0, 0, 0, 2, 0, 0];
    let second_accept: &[u8] = &[2, 0, 0, 0, 0, 0, 0, 2, 0, 80];
    let data_after_fin: &[u8] = &[5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 1, 0];
    for bytes in [oversized, unknown, causeless, second_accept, data_after_fin] {
        let (near, far) = wire();
        let (mut c, s) = tunnels(near, far).await;
        let (mut sr, _sw) = s.into_split();
        c.session_mut().write_all(bytes).await.unwrap();
        c.session_mut().flush().await.unwrap();
        let first = sr.next().await;
        let e = if bytes == data_after_fin {
            assert_eq!(first.unwrap(), Incoming::Fin);
            sr.next().await.unwrap_err()
        } else {
            first.unwrap_err()
        };
        assert_eq!(e.reason(), Reason::Protocol, "{e}");
    }
}

#[tokio::test]
async fn the_opening_admits_no_other_frame() {
    let (near, far) = wire();
    let (mut c, s) = shake(&Mesh::new("example.org"), near, far).await;
    write_frame(c.session_mut(), &Frame::Fin).await.unwrap();
    assert!(matches!(s.await_open().await, Err(TunnelError::Protocol(_))));

    let (near, far) = wire();
    let (c, mut s) = shake(&Mesh::new("example.org"), near, far).await;
    write_frame(s.session_mut(), &Frame::Data(Bytes::from_static(b"early"))).await.unwrap();
    assert!(matches!(c.open(open()).await, Err(TunnelError::Protocol(_))));
}

#[tokio::test]
async fn an_idle_tunnel_lives_for_as_long_as_it_likes() {
    let (near, far) = wire();
    let (c, s) = tunnels(near, far).await;
    let ((_cr, mut cw), (mut sr, _sw)) = (c.into_split(), s.into_split());
    tokio::time::pause();
    assert!(tokio::time::timeout(Duration::from_secs(7 * 86_400), sr.next()).await.is_err(), "still waiting");
    cw.data(b"awake").await.unwrap();
    assert_eq!(sr.next().await.unwrap(), Incoming::Data(Bytes::from_static(b"awake")));
}
