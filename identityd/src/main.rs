//! `bonafide-identityd`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bonafide_identityd::daemon::main()
}
