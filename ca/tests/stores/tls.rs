//! Members that ask for certificates: who has the right files talks to them, and who has others is told which is wrong.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bonafide_ca::store::engine::{Engine as _, Key, Tree, Write};
use bonafide_ca::store::{Etcd, EtcdPlace, EtcdTls, StoreError};
use bonafide_proto::clock::{Clock, SharedClock, SystemClock};

use crate::cluster::Cluster;
use crate::pki::Pki;

/// A clock that stands still.
#[derive(Debug)]
struct Still(u64);

impl Clock for Still {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0)
    }
}

const IN_2021: u64 = 1_620_000_000;
const IN_2096: u64 = 3_980_000_000;

fn system() -> SharedClock {
    Arc::new(SystemClock)
}

fn ask(place: &EtcdPlace, clock: &SharedClock) -> Result<(), StoreError> {
    Etcd::open(place, clock)?.glance(&Key::new(Tree::Meta, "x"), Duration::from_secs(2)).map(drop)
}

fn said(members: &str, tls: Option<EtcdTls>, clock: &SharedClock) -> String {
    ask(&EtcdPlace::new(&format!("etcd://{members}/tls"), tls).unwrap(), clock).unwrap_err().to_string()
}

#[test]
fn members_are_talked_to_by_certificates_and_whatever_is_wrong_with_those_is_named() {
    let cluster = Cluster::with_tls(3);
    let engine = cluster.engine("tls");
    let key = Key::new(Tree::Meta, "x");
    assert!(engine.commit(&[], &[Write::Put(key.clone(), b"kept".to_vec())]).unwrap());
    assert_eq!(engine.get(&key).unwrap(), Some(b"kept".to_vec()));

    let (pki, foreign) = (cluster.pki(), Pki::new("Foreign CA"));
    let (members, good) = (cluster.members(), pki.client("good", 2100));
    let told = |tls: EtcdTls, clock: &SharedClock| said(&members, Some(tls), clock);
    let is = |said: &str, expected: &[&str]| assert!(expected.iter().all(|part| said.contains(part)), "{said}");

    let wrong_ca = told(EtcdTls { ca: foreign.ca(), ..good.clone() }, &system());
    is(&wrong_ca, &["does not answer", "is not of a CA in", &foreign.ca().display().to_string(), "store_tls.ca"]);
    for member in members.split(',') {
        assert!(wrong_ca.contains(member), "{wrong_ca}");
    }

    let foreign_client = foreign.client("stranger", 2100);
    let refused = told(EtcdTls { ca: pki.ca(), ..foreign_client.clone() }, &system());
    is(&refused, &["does not take", &foreign_client.cert.display().to_string(), "--trusted-ca-file"]);

    let expired = pki.client("expired", 2024);
    is(&told(expired.clone(), &system()), &["expired.pem: the certificate expired on", "2024", "renewed"]);
    // This host's clock does not know; the members' does.
    let late: SharedClock = Arc::new(Still(IN_2021));
    is(&told(expired, &late), &["does not take", "expired.pem"]);
    // Or the other way round.
    let ahead: SharedClock = Arc::new(Still(IN_2096));
    is(&told(good.clone(), &ahead), &["its certificate has expired; renew it on that member"]);

    let missing = EtcdTls { cert: "/no/such/client.pem".into(), ..good.clone() };
    is(&told(missing, &system()), &["/no/such/client.pem: No such file"]);
    let mixed = EtcdTls { key: pki.issue("other", 2100).key, ..good.clone() };
    is(&told(mixed, &system()), &["good.pem"]);

    is(&said(&members, None, &system()), &["asks for TLS", "store_tls"]);
    let named = members.replace("127.0.0.1", "localhost");
    is(&said(&named, Some(good.clone()), &system()), &["its certificate is not for localhost"]);
    let plain = Cluster::of(1);
    let answers = said(&plain.members(), Some(good), &system());
    assert!(answers.contains("answers without TLS") || answers.contains("does it listen for https"), "{answers}");
}

#[test]
fn certificates_are_read_anew_for_each_connection() {
    let mut cluster = Cluster::with_tls(1);
    let foreign = Pki::new("Foreign CA");
    let tls = cluster.pki().client("renewed", 2100);
    let place = EtcdPlace::new(&format!("etcd://{}/tls", cluster.members()), Some(tls.clone())).unwrap();
    let engine = Etcd::open(&place, &system()).unwrap();
    let (key, brief) = (Key::new(Tree::Meta, "x"), Duration::from_secs(2));
    engine.get(&key).unwrap();

    let put = |from: &EtcdTls| {
        std::fs::copy(&from.cert, &tls.cert).unwrap();
        std::fs::copy(&from.key, &tls.key).unwrap();
    };
    put(&foreign.client("stranger", 2100));
    engine.glance(&key, brief).unwrap();
    cluster.kill(0);
    cluster.start(0);
    let refused = engine.get(&key).unwrap_err().to_string();
    assert!(refused.contains("does not take"), "{refused}");
    put(&cluster.pki().client("next", 2100));
    engine.get(&key).unwrap();
}

/// An authority that cannot reach its store does not start, and says why.
#[test]
fn an_authority_says_what_is_wrong_with_the_way_to_its_store() {
    let cluster = Cluster::with_tls(1);
    let (foreign, good) = (Pki::new("Foreign CA"), cluster.pki().client("good", 2100));
    let dir = tempfile::tempdir().unwrap();
    let start = |more: &str| {
        let at = |name: &str| dir.path().join(name);
        let text = format!(
            "role = \"root\"\nstate = {:?}\n[root]\ntrust_domain = \"example.org\"\nlisten = [\"127.0.0.1:1\"]\n\
             admin_socket = {:?}\nstore = \"etcd://{}/x\"\n{more}\n",
            at("state"),
            at("admin.sock"),
            cluster.members()
        );
        std::fs::write(at("ca.toml"), text).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_bonafide-ca")).arg("--config").arg(at("ca.toml")).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let tls = |ca: &Path, cert: &str| format!("store_tls = {{ ca = {ca:?}, {cert} key = {:?} }}", good.key);
    let (code, text) = start(&tls(&foreign.ca(), &format!("cert = {:?},", good.cert)));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is not of a CA in"), "{text}");
    let (code, text) = start(&tls(&good.ca, ""));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("missing field `cert`"), "{text}");
}
