//! A fuzz target for policies: whatever a file holds, it is a policy or a list of mistakes with their places. `cargo test`
//! gives it two seconds; ARCHITECTURE.md says how to give it longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use std::time::Duration;

use bonafide_policy::Policy;

const EXAMPLES: [&str; 6] = [
    include_str!("../../policy-examples/containers.toml"),
    include_str!("../../policy-examples/deny-first.toml"),
    include_str!("../../policy-examples/libraries.toml"),
    include_str!("../../policy-examples/outside.toml"),
    include_str!("../../policy-examples/pinned-digests.toml"),
    include_str!("../../policy-examples/taints.toml"),
];

/// An example with a piece of it replaced, by noise or by a piece of another one.
fn spliced((which, at, cut, other, from, length, noise): &(u8, u16, u8, u8, u16, u8, Vec<u8>)) -> String {
    let of = |which: &u8| EXAMPLES[usize::from(*which) % EXAMPLES.len()].as_bytes();
    let seed = of(which);
    let at = usize::from(*at) % (seed.len() + 1);
    let cut = usize::from(*cut) % (seed.len() - at + 1);
    let other = of(other);
    let from = usize::from(*from) % (other.len() + 1);
    let piece = &other[from..other.len().min(from + usize::from(*length))];
    let bytes = [&seed[..at], if noise.len() % 2 == 0 { noise } else { piece }, &seed[at + cut..]].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn policies() {
    bolero::check!()
        .with_type::<(u8, u16, u8, u8, u16, u8, Vec<u8>)>()
        .with_iterations(1_000_000)
        .with_test_time(Duration::from_secs(2))
        .for_each(|edit| {
            let text = spliced(edit);
            match Policy::parse("p.toml", &text) {
                Ok(policy) => {
                    let again = Policy::parse("p.toml", &text).unwrap();
                    assert_eq!(policy.digest(), again.digest());
                }
                Err(errors) => {
                    let said = errors.to_string();
                    assert!(said.contains("p.toml:"), "{said}");
                    assert!(said.len() < 1 << 20, "{} bytes of mistakes", said.len());
                }
            }
        });
}
