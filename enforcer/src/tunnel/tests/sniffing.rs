use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::session::{client_config, verifier};
use super::super::sniff::{SNIFF_MAX, Speaks, sniff};
use super::super::testing::Mesh;
use super::*;

const PATIENCE: Duration = Duration::from_secs(3);

fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
    let mesh = Mesh::new("example.org");
    let mut config = client_config(&mesh.leaf("shop/web"), &mesh.trust(), verifier(&mesh.trust())).unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let mut tls = ClientConnection::new(Arc::new(config), "bonafide.invalid".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    hello
}

/// What these bytes say when they come at once; they must all be there afterwards.
async fn speaks(bytes: &[u8]) -> Speaks {
    let (mut near, far) = wire();
    near.write_all(bytes).await.unwrap();
    let (verdict, mut rewound) = sniff(far, PATIENCE).await.unwrap();
    let mut again = vec![0; bytes.len()];
    rewound.read_exact(&mut again).await.unwrap();
    assert!(again == bytes, "the bytes are read again");
    near.write_all(b"later").await.unwrap();
    rewound.write_all(b"reply").await.unwrap();
    let mut later = [0; 5];
    rewound.read_exact(&mut later).await.unwrap();
    assert_eq!(&later, b"later");
    near.read_exact(&mut later).await.unwrap();
    assert_eq!(&later, b"reply");
    verdict
}

#[tokio::test]
async fn only_a_client_hello_with_our_alpn_speaks_bonafide() {
    assert_eq!(speaks(&client_hello(&[b"bonafide/1"])).await, Speaks::Bonafide);
    assert_eq!(speaks(&client_hello(&[b"h2", b"bonafide/1"])).await, Speaks::Bonafide);
    assert_eq!(speaks(&client_hello(&[])).await, Speaks::Other);
    assert_eq!(speaks(&client_hello(&[b"h2", b"http/1.1"])).await, Speaks::Other);
    assert_eq!(speaks(b"GET / HTTP/1.1\r\nHost: bonafide/1\r\n\r\n").await, Speaks::Other);
    assert_eq!(speaks(b"\x16\x05bonafide/1").await, Speaks::Other);
    assert_eq!(speaks(b"S").await, Speaks::Other, "one byte is enough to tell");
}

#[tokio::test]
async fn a_client_hello_may_come_byte_by_byte() {
    let hello = client_hello(&[b"bonafide/1"]);
    let (mut near, far) = wire();
    let bytes = hello.clone();
    let writer = tokio::spawn(async move {
        for byte in bytes {
            near.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        near
    });
    let (verdict, rewound) = sniff(far, PATIENCE).await.unwrap();
    assert_eq!(verdict, Speaks::Bonafide);
    assert!(rewound.into_parts().0 == hello);
    drop(writer.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn silence_is_told_from_slowness() {
    let (_near, far) = wire();
    assert_eq!(sniff(far, PATIENCE).await.unwrap().0, Speaks::Silent, "an SSH client waits for the banner");
    let (near, far) = wire();
    drop(near);
    assert_eq!(sniff(far, PATIENCE).await.unwrap().0, Speaks::Silent, "closed at once");
    let hello = client_hello(&[b"bonafide/1"]);
    let (mut near, far) = wire();
    near.write_all(&hello[..40]).await.unwrap();
    assert_eq!(sniff(far, PATIENCE).await.unwrap().0, Speaks::Other, "half a ClientHello");
}

#[tokio::test]
async fn no_more_is_read_than_the_bound() {
    // A handshake message that claims 64 KiB and never ends.
    let mut endless = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    endless.resize(200 * 1024, 0);
    let (mut near, far) = wire();
    near.write_all(&endless).await.unwrap();
    let (verdict, rewound) = sniff(far, PATIENCE).await.unwrap();
    assert_eq!(verdict, Speaks::Other);
    assert!(rewound.into_parts().0.len() <= 2 * SNIFF_MAX);
}

#[tokio::test]
async fn a_sniffed_connection_still_shakes_hands() {
    let mesh = Mesh::new("example.org");
    let (near, far) = loopback("127.0.0.1").await;
    let (web, db, trust) = (mesh.leaf("shop/web"), mesh.leaf("shop/db"), mesh.trust());
    let serve = async {
        let (verdict, far) = sniff(far, PATIENCE).await.unwrap();
        assert_eq!(verdict, Speaks::Bonafide);
        server::handshake(far, &db, &trust).await
    };
    let (c, s) = tokio::join!(client::handshake(near, &web, &trust), serve);
    assert_eq!(s.unwrap().peer().id(), &mesh.id("shop/web"));
    c.unwrap();
}
