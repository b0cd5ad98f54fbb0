use bonafide_proto::svid::SvidError;

use super::super::renewal::{Binding, Renewal, Shown};
use super::super::testing::{LEAF_TTL, leaf_params};
use super::super::{Incoming, Leaf, TunnelError};
use super::*;

fn binding(n: u8) -> Binding {
    Binding([n; 32])
}

fn shown(renewal: Renewal, n: u8) -> Shown {
    Shown { renewal, binding: binding(n) }
}

#[test]
fn a_later_certificate_is_proven_by_its_key_for_one_session_and_end() {
    let mesh = Mesh::new("example.org");
    let (leaf, other) = (mesh.leaf("shop/web"), mesh.leaf("shop/web"));
    let good = binding(1).show(&leaf).unwrap();
    let proven = shown(good.clone(), 1).prove(&mesh.trust()).unwrap();
    assert_eq!((proven.id(), proven.serial()), (&mesh.id("shop/web"), leaf.svid().serial()));

    assert_eq!(shown(good.clone(), 2).prove(&mesh.trust()), Err(SvidError::Signature), "of another session or end");
    let of_another = Renewal { chain: binding(1).show(&other).unwrap().chain, ..good.clone() };
    assert_eq!(shown(of_another, 1).prove(&mesh.trust()), Err(SvidError::Signature), "by another key");
    let unsigned = Renewal { signature: vec![0x30].into(), ..good.clone() };
    assert_eq!(shown(unsigned, 1).prove(&mesh.trust()), Err(SvidError::Signature));
    let elsewhere = Mesh::new("example.org").trust();
    assert!(matches!(shown(good.clone(), 1).prove(&elsewhere), Err(SvidError::Path(_))));
    mesh.hand.advance(LEAF_TTL + 1);
    assert_eq!(shown(good, 1).prove(&mesh.trust()), Err(SvidError::Expired(1)));
}

#[tokio::test]
async fn a_later_certificate_arrives_at_any_time_and_in_both_directions() {
    let mesh = Mesh::new("example.org");
    let (c, s) = tunnels_in(&mesh).await;
    let ((mut cr, mut cw), (mut sr, mut sw)) = (c.into_split(), s.into_split());
    let leaf = |workload| -> Leaf {
        let made = mesh.shown(&leaf_params("example.org", workload));
        Leaf::new(made.chain, made.key, &mesh.id(workload), &mesh.trust()).unwrap()
    };
    cw.data(b"x").await.unwrap();
    cw.renew(&leaf("shop/web")).await.unwrap();
    cw.fin().await.unwrap();
    cw.renew(&leaf("shop/web")).await.unwrap();
    sw.renew(&leaf("shop/db")).await.unwrap();
    assert_eq!(sr.next().await.unwrap(), Incoming::Data("x".into()));
    let id = |incoming: Incoming| match incoming {
        Incoming::Renewed(shown) => shown.prove(&mesh.trust()).unwrap().id().clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(id(sr.next().await.unwrap()), mesh.id("shop/web"));
    assert_eq!(sr.next().await.unwrap(), Incoming::Fin);
    assert_eq!(id(sr.next().await.unwrap()), mesh.id("shop/web"), "after a half-close");
    let from_server = cr.next().await.unwrap();
    let Incoming::Renewed(Shown { renewal, .. }) = &from_server else { panic!("{from_server:?}") };
    assert_eq!(id(from_server.clone()), mesh.id("shop/db"));
    // Sent back, it proves nothing of who sends it back.
    let Incoming::Renewed(Shown { binding, .. }) = ({
        cw.renew(&leaf("shop/web")).await.unwrap();
        sr.next().await.unwrap()
    }) else {
        panic!("no renewal")
    };
    let reflected = Shown { renewal: renewal.clone(), binding };
    assert_eq!(reflected.prove(&mesh.trust()), Err(SvidError::Signature));
}

#[tokio::test]
async fn a_flood_of_later_certificates_is_a_protocol_error() {
    let mesh = Mesh::new("example.org");
    let (c, s) = tunnels_in(&mesh).await;
    let ((_cr, mut cw), (mut sr, _sw)) = (c.into_split(), s.into_split());
    let leaf = mesh.leaf("shop/web");
    let flood = tokio::spawn(async move { while cw.renew(&leaf).await.is_ok() {} });
    let refused = loop {
        match sr.next().await {
            Ok(Incoming::Renewed(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(refused, TunnelError::Protocol(_)), "{refused}");
    drop(sr);
    flood.abort();
}
