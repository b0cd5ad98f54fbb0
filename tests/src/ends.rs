//! The two records of one flow, and what must be true of them together.

use std::path::Path;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Party, Reason, Transport};

use crate::node::TRUST_DOMAIN;

/// The records of one flow, from both ends.
#[derive(Debug)]
pub struct Ends {
    /// Written beside the program that connected.
    pub source: FlowRecord,
    /// Written beside the program that listens.
    pub destination: FlowRecord,
}

impl Ends {
    /// Both records.
    #[must_use]
    pub fn both(&self) -> [&FlowRecord; 2] {
        [&self.source, &self.destination]
    }

    /// Asserts that both ends let it through by this rule, over hybrid mutual TLS, between these workloads.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_allowed(&self, rule: &str, from: &str, to: &str) -> &Self {
        self.assert_let_through(rule, from, to, Transport::Mtls);
        for record in self.both() {
            let tls = record.tls.as_ref().unwrap_or_else(|| panic!("no TLS facts in {record:#?}"));
            assert_eq!((tls.version.as_str(), tls.group.as_str()), ("TLSv1.3", "X25519MLKEM768"), "{record:#?}");
        }
        self
    }

    /// Asserts that both ends let it through by this rule, inside one host.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_allowed_on_host(&self, rule: &str, from: &str, to: &str) -> &Self {
        self.assert_let_through(rule, from, to, Transport::SameHost)
    }

    #[track_caller]
    fn assert_let_through(&self, rule: &str, from: &str, to: &str, transport: Transport) -> &Self {
        assert_eq!(self.source.id, self.destination.id, "the two ends do not tell of one flow: {self:#?}");
        for record in self.both() {
            assert_eq!(record.verdict, Outcome::Allowed, "{record:#?}");
            assert_eq!(record.rule.as_deref(), Some(rule), "{record:#?}");
            assert_eq!(record.transport, transport, "{record:#?}");
            assert_party(&record.source, from, record);
            assert_party(&record.destination, to, record);
        }
        let (at_source, at_destination) = (&self.source, &self.destination);
        assert_eq!(at_source.bytes_sent, at_destination.bytes_sent, "{self:#?}");
        assert_eq!(at_source.bytes_received, at_destination.bytes_received, "{self:#?}");
        self
    }

    /// Asserts that it ended by both programs closing it in order.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_closed(&self) -> &Self {
        for record in self.both() {
            assert_eq!((record.ended_by, record.reason), (EndedBy::Closed, None), "{record:#?}");
        }
        self
    }

    /// Asserts that it was let through and lived, until one end ended it for this reason and told the other which; returns
    /// what that end wrote.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_ended_at(&self, end: End, ended_for: Reason) -> &FlowRecord {
        assert_eq!(self.source.id, self.destination.id, "the two ends do not tell of one flow: {self:#?}");
        let (ending, told) = match end {
            End::Source => (&self.source, &self.destination),
            End::Destination => (&self.destination, &self.source),
        };
        for (record, reason, ended_by) in
            [(ending, ended_for, EndedBy::Enforcer), (told, Reason::EndedByPeer, EndedBy::Peer)]
        {
            let expected = (Outcome::Allowed, Some(reason), ended_by);
            assert_eq!((record.verdict, record.reason, record.ended_by), expected, "{record:#?}");
        }
        let said = told.detail.as_deref().unwrap_or_default();
        assert!(said.contains(ended_for.as_str()), "it was not told why: {told:#?}");
        ending
    }

    /// Asserts that both records name these programs by the digests that their files have now.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_programs(&self, source: &Path, destination: &Path) -> &Self {
        for record in self.both() {
            assert_program(&record.source, source, record);
            assert_program(&record.destination, destination, record);
        }
        self
    }
}

/// Asserts that a record is a refusal for this reason, and that nothing was sent.
///
/// # Panics
/// If not.
#[track_caller]
pub fn assert_refused(record: &FlowRecord, reason: Reason) {
    assert_eq!((record.verdict, record.reason), (Outcome::Refused, Some(reason)), "{record:#?}");
    assert_eq!((record.bytes_sent, record.bytes_received), (0, 0), "{record:#?}");
    assert_eq!(record.ended_by, EndedBy::Refusal, "{record:#?}");
}

#[track_caller]
fn assert_party(party: &Party, workload: &str, record: &FlowRecord) {
    let name = workload.parse().expect("scenarios use valid names");
    let id = SpiffeId::workload(&TRUST_DOMAIN.parse().expect("it is one"), &name);
    assert_eq!(party.workload.as_ref(), Some(&name), "{record:#?}");
    assert_eq!(party.spiffe_id.as_ref(), Some(&id), "{record:#?}");
    assert!(party.digest.is_some(), "no digest of {workload} in {record:#?}");
}

#[track_caller]
fn assert_program(party: &Party, program: &Path, record: &FlowRecord) {
    assert_eq!(party.program.as_deref(), program.to_str(), "{record:#?}");
    assert_eq!(party.digest, Some(digest_of(program)), "{record:#?}");
}

/// The digest of a file.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn digest_of(file: &Path) -> Digest {
    Digest::of(&std::fs::read(file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display())))
}
