//! A fuzz target for policies: whatever a file holds, it is a policy or a list of mistakes with their places. `cargo test`
//! gives it two seconds; ARCHITECTURE.md says how to give it longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use std::time::Duration;

use bonafide_policy::Policy;

/// 2027-01-15T08:00:00Z
const NOW: i64 = 1_800_000_000;

const EXAMPLES: [&str; 10] = [
    include_str!("../../policy-examples/containers.toml"),
    include_str!("../../policy-examples/deny-first.toml"),
    include_str!("../../policy-examples/libraries.toml"),
    include_str!("../../policy-examples/outside.toml"),
    include_str!("../../policy-examples/pinned-digests.toml"),
    include_str!("../../policy-examples/taints.toml"),
    include_str!("../../policy-examples/groups.toml"),
    include_str!("../../policy-examples/guards.toml"),
    include_str!("../../policy-examples/tests.toml"),
    include_str!("../../policy-examples/trial.toml"),
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
                    let policy = policy.at(NOW);
                    assert!(policy.next_change().is_none_or(|next| next > NOW));
                    // What they say is the author's; that they come to an end is ours.
                    let lines = text.lines().count() + 1;
                    assert!(policy.lint(&text).iter().all(|lint| lint.line <= lines && lint.message.is_ascii()));
                    assert!(policy.try_cases().iter().all(|case| case.line <= lines));
                    assert!(policy.readiness(&[]).iter().all(|readiness| !readiness.is_ready()));
                }
                Err(errors) => {
                    let said = errors.to_string();
                    assert!(said.contains("p.toml:"), "{said}");
                    assert!(said.len() < 1 << 20, "{} bytes of mistakes", said.len());
                }
            }
        });
}
