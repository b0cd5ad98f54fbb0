//! A store as a file, and in a store again: of the same kind or the other.

use std::path::Path;
use std::process::{Command, Output};

use bonafide_ca::store::By;
use bonafide_ca::{Authority, Charter};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::fingerprint::Digest;

use crate::cluster::Cluster;

/// An authority's directory, with its configuration.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new(store: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "role = \"root\"\nstate = {:?}\n[root]\ntrust_domain = \"example.org\"\nlisten = [\"127.0.0.1:1\"]\n\
             admin_socket = {:?}\n{store}\n",
            at("state"),
            at("admin.sock")
        );
        std::fs::write(dir.path().join("ca.toml"), text).unwrap();
        Self { dir }
    }

    fn ask(&self, verb: &str, file: &Path) -> Output {
        let mut ca = Command::new(env!("CARGO_BIN_EXE_bonafide-ca"));
        ca.arg(verb).arg("--config").arg(self.dir.path().join("ca.toml")).arg(file).output().unwrap()
    }

    fn authority(&self, shared: Option<bonafide_ca::store::EtcdPlace>) -> Authority {
        let state = self.dir.path().join("state/authority");
        let charter = Charter {
            state,
            trust_domain: "example.org".parse().unwrap(),
            intermediate_ttl: 3600,
            shared,
            passphrase: None,
        };
        Authority::open(&charter, std::sync::Arc::new(SystemClock)).unwrap()
    }

    fn prepare(&self) {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().mode(0o700).create(self.dir.path().join("state")).unwrap();
    }

    fn copy_key_to(&self, other: &Self) {
        let key = |host: &Self| host.dir.path().join("state/authority/root.key");
        std::fs::copy(key(self), key(other)).unwrap();
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_store_goes_from_sled_to_etcd_and_back_and_stays_what_it_was() {
    use std::os::unix::fs::MetadataExt as _;
    let cluster = Cluster::of(1);
    let place = cluster.place("restored");
    let (first, second, third) = (Host::new(""), Host::new(&format!("store = \"{place}\"")), Host::new(""));
    first.prepare();
    let authority = first.authority(None);
    for n in 0..200u8 {
        authority.quarantine().add(&By::Uid(0), Digest([n; 32]), "tested").unwrap();
    }
    let root = authority.trust_bundle().roots().to_vec();
    let running = first.ask("backup", &first.dir.path().join("early"));
    assert!(said(&running).contains("in use by another daemon"), "{}", said(&running));
    drop(authority);

    let (one, two) = (first.dir.path().join("one"), second.dir.path().join("two"));
    let output = first.ask("backup", &one);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::metadata(&one).unwrap().mode() & 0o777, 0o600);
    assert!(said(&first.ask("backup", &one)).contains("exists"), "no file is overwritten");

    let output = second.ask("restore", &one);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&second.ask("restore", &one)).contains("is not empty"));
    first.copy_key_to(&second);
    let output = second.ask("backup", &two);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(second.authority(Some(place)).quarantine().list().unwrap().len(), 200);

    let output = third.ask("restore", &two);
    assert!(output.status.success(), "{}", said(&output));
    first.copy_key_to(&third);
    let authority = third.authority(None);
    assert_eq!(authority.trust_bundle().roots(), root);
    assert_eq!(authority.quarantine().list().unwrap().len(), 200);
    let entries = crate::audit::verify(authority.store()).unwrap();
    let moves: Vec<_> =
        entries.iter().map(|e| e.act.as_str()).filter(|act| act.contains("ed-up") || *act == "restored").collect();
    assert_eq!(moves, ["backed-up", "restored", "backed-up", "restored"]);
}

#[test]
fn a_backup_that_is_not_what_was_written_restores_nothing() {
    let first = Host::new("");
    first.prepare();
    drop(first.authority(None));
    let file = first.dir.path().join("backup");
    assert!(first.ask("backup", &file).status.success());
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let changed = |at: usize| {
        let mut changed: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        let value = changed[at].rfind("\"value\":\"").map_or(20, |value| value + 12);
        let other = if changed[at].as_bytes()[value] == b'A' { "B" } else { "A" };
        changed[at].replace_range(value..=value, other);
        changed.join("\n") + "\n"
    };
    let bad = [
        String::new(),
        lines[..lines.len() - 1].join("\n"),
        [&lines[..1], &lines[2..]].concat().join("\n") + "\n",
        lines[1..].join("\n"),
        whole.clone() + lines[1],
        whole.replace("\"version\":1", "\"version\":2"),
        changed(1),
        changed(lines.len() - 2),
    ];
    for (n, text) in bad.iter().enumerate() {
        let second = Host::new("");
        let damaged = second.dir.path().join("damaged");
        std::fs::write(&damaged, text).unwrap();
        let output = second.ask("restore", &damaged);
        assert_eq!(output.status.code(), Some(1), "{n}: {}", said(&output));
        assert!(said(&output).contains("nothing of it can be trusted"), "{n}: {}", said(&output));
        assert!(second.ask("restore", &file).status.success(), "{n}: something was written all the same");
    }
    let other = Host::new("");
    let config = other.dir.path().join("ca.toml");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("example.org", "example.com")).unwrap();
    assert!(said(&other.ask("restore", &file)).contains("is of trust domain example.org"));
}
