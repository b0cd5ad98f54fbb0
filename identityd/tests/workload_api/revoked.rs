//! What is revoked is told no more, and who was told it hears so at once.

use bonafide_proto::wire::authority::revoke_request::What;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::endpoint::Endpoint;
use crate::program::{Program, bytes, refusal};
use crate::x509::{certificates, the_one};

const DENIED: (&str, &str) = ("PermissionDenied", "no identity issued");

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_of_a_revoked_workload_end_at_once_and_it_may_ask_again_when_that_is_lifted() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let first = program.asked("svids").await;
    program.asked("bundles").await;
    let of = || What::Workload("shop/web".into());
    endpoint.revoke(of(), false).await;
    for _ in 0..2 {
        assert_eq!(refusal(&program.says().await), DENIED);
    }
    for asks in ["svids", "bundles", "jwt x"] {
        assert_eq!(refusal(&program.asked(asks).await), DENIED, "{asks}");
    }
    endpoint.revoke(What::Workload("another".into()), false).await;
    endpoint.revoke(of(), true).await;
    // Lifting it is told a moment later.
    loop {
        let said = program.asked("svids").await;
        if said["code"].is_null() {
            assert_eq!(the_one(&said)["id"], the_one(&first)["id"]);
            break;
        }
        assert_eq!(refusal(&said), DENIED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_certificate_that_is_revoked_is_told_another_at_once() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let first = program.asked("svids").await;
    let leaf = certificates(&bytes(&the_one(&first)["chain"])).remove(0);
    let serial = X509Certificate::from_der(&leaf).unwrap().1.raw_serial().to_vec();
    endpoint.revoke(What::Serial(serial), false).await;
    let second = program.says().await;
    assert_ne!(the_one(&second)["key"], the_one(&first)["key"]);
    assert_eq!(endpoint.issued().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_certificate_of_a_revoked_node_keeps_none() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    the_one(&program.asked("svids").await);
    endpoint.revoke(What::Node("a".into()), false).await;
    assert_eq!(refusal(&program.says().await), DENIED);
}
