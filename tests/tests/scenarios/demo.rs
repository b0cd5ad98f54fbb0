//! The demo tells no surprises, and takes no argument that it does not know.

use std::process::Command;
use std::time::Duration;

use bonafide_tests::process::{Finished, run_within};
use bonafide_tests::world::BareWorld;

fn demo(args: &[&str]) -> Finished {
    run_within(Command::new(env!("CARGO_BIN_EXE_bonafide-demo")).args(args), Duration::from_secs(120))
}

#[test]
fn the_demo_has_no_surprises() {
    // It measures how soon a flow ends: this world keeps its part of the machine for it.
    let _alone = BareWorld::create_alone();
    let told = demo(&[]);
    assert_eq!(told.code(), Some(0), "{}{}", told.stdout, told.stderr);
    assert!(told.stdout.contains(" steps, 0 surprises, "), "{}", told.stdout);
    assert!(!told.stdout.contains("SURPRISE"), "{}", told.stdout);
}

#[test]
fn unknown_arguments_start_no_demo() {
    for args in [&["--fast"][..], &["--help", "me"], &[""]] {
        let refused = demo(args);
        assert_eq!((refused.code(), refused.stdout.as_str()), (Some(2), ""), "{args:?}: {refused:#?}");
        assert!(refused.stderr.contains("--help"), "{refused:#?}");
    }
    let help = demo(&["--help"]).success();
    assert!(help.contains("Usage: bonafide-demo"), "{help}");
}
