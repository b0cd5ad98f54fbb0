//! The benchmarks of the identity plane run, in small, and nothing goes wrong in them. How fast this was means nothing here.

use std::process::Command;
use std::time::Duration;

use bonafide_tests::process::run_within;

#[test]
fn issuance_and_a_small_mesh_can_be_measured() {
    let dir = tempfile::tempdir().unwrap();
    let figures = dir.path().join("figures.json");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bonafide-bench"));
    let bench = bench.args(["--quick", "--nodes", "20", "issuance", "nodes", "--json"]).arg(&figures);
    let ended = run_within(bench, Duration::from_secs(180));
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap();
    let figures = figures["figures"].as_array().unwrap();
    let value = |name: &str| {
        let found = figures.iter().find(|figure| figure["name"] == name);
        found.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("no figure {name:?}"))
    };
    for none in [
        "all join at once: refused, or failed for good",
        "revocation: nodes that did not say so in time",
        "the authority was killed: nodes refused",
    ] {
        assert!(value(none) == 0.0, "{none}: {}", value(none));
    }
    for some in ["64 at once, leaves per second", "revocation: until a node has it, last"] {
        assert!(value(some) > 0.0, "{some}: {}", value(some));
    }
}
