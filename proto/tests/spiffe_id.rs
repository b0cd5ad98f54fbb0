//! SPIFFE-ID.md, rule by rule (the numbers are of the rules as this project lists them).

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use bonafide_proto::name::{NameError, SPIFFE_ID_MAX, SpiffeId, TRUST_DOMAIN_MAX, TrustDomain, WorkloadName};

fn id(text: &str) -> Result<SpiffeId, NameError> {
    text.parse()
}

fn refused(texts: &[&str]) {
    for text in texts {
        assert!(id(text).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn id_1_the_scheme_is_spiffe_and_there_is_a_trust_domain_and_neither_query_nor_fragment() {
    assert_eq!(id("spiffe://example.org/web").unwrap().to_string(), "spiffe://example.org/web");
    refused(&["https://example.org/web", "spiffe:/example.org/web", "example.org/web", "spiffe:///web", ""]);
    refused(&["spiffe://example.org/web?a=b", "spiffe://example.org/web#a", "spiffe://example.org?a=b/web"]);
}

#[test]
fn id_2_a_trust_domain_has_no_userinfo_no_port_and_few_characters() {
    for good in ["a", "example.org", "a-b_c.d", "127.0.0.1", "123", "-"] {
        assert_eq!(good.parse::<TrustDomain>().unwrap().as_str(), good);
    }
    for bad in ["", "user@example.org", "example.org:80", "[::1]", "ex%61mple.org", "exa mple", "ü", "a/b", "*"] {
        assert!(bad.parse::<TrustDomain>().is_err(), "{bad:?} was accepted");
    }
    refused(&["spiffe://user@example.org/web", "spiffe://example.org:80/web", "spiffe://ex%61mple.org/web"]);
}

#[test]
fn id_3_a_path_has_whole_segments_of_few_characters() {
    for good in ["/a", "/a/b", "/A.b-c_D/0", "/...", "/.a"] {
        assert!(id(&format!("spiffe://td{good}")).is_ok(), "{good}");
    }
    for bad in
        ["/", "//", "/a/", "/a//b", "/.", "/..", "/a/./b", "/a/../b", "/%61", "/a b", "/ü", "/a:b", "/a\\b", "/\0"]
    {
        assert!(id(&format!("spiffe://td{bad}")).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn id_4_2048_bytes_are_accepted_and_no_more_and_255_of_a_trust_domain() {
    let of = |bytes: usize| format!("spiffe://td/{}", "a".repeat(bytes - "spiffe://td/".len()));
    assert!(id(&of(SPIFFE_ID_MAX)).is_ok());
    assert_eq!(id(&of(SPIFFE_ID_MAX + 1)), Err(NameError::TooLong(SPIFFE_ID_MAX)));
    assert!("a".repeat(TRUST_DOMAIN_MAX).parse::<TrustDomain>().is_ok());
    assert!("a".repeat(TRUST_DOMAIN_MAX + 1).parse::<TrustDomain>().is_err());
}

#[test]
fn id_4_no_id_that_is_made_here_is_longer() {
    let longest: TrustDomain = "a".repeat(TRUST_DOMAIN_MAX).parse().unwrap();
    let workload: WorkloadName = "w".repeat(255).parse().unwrap();
    assert!(SpiffeId::workload(&longest, &workload).to_string().len() <= SPIFFE_ID_MAX);
}

#[test]
fn id_5_upper_case_is_refused_where_case_means_nothing_and_kept_where_it_does() {
    refused(&["SPIFFE://example.org/web", "Spiffe://example.org/web", "spiffe://Example.org/web"]);
    assert_ne!(id("spiffe://example.org/Web").unwrap(), id("spiffe://example.org/web").unwrap());
}
