//! Capture on real kernels' terms: hosts in network namespaces, both engines, both families. Needs root.
//!
//! The test program plays every part itself: it starts itself again inside the namespaces ([`roles`]).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    missing_docs,
    reason = "a test program with a main of its own, which clippy does not take for a test"
)]

mod cases;
mod lab;
mod roles;

use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = args.first().and_then(|name| roles::find(name)) {
        return role(&args[1..]);
    }
    if args.iter().any(|arg| arg == "--list") {
        cases::all().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    run(args.iter().find(|arg| !arg.starts_with('-')))
}

fn run(filter: Option<&String>) -> ExitCode {
    let mut failed = Vec::new();
    for case in cases::all().filter(|case| filter.is_none_or(|wanted| case.name.contains(wanted.as_str()))) {
        println!("test {} ...", case.name);
        match catch_unwind(|| (case.run)(case.backend)) {
            Ok(()) => println!("test {} ... ok", case.name),
            Err(_) => failed.push(case.name),
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
