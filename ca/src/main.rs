//! The certificate authority: root role and node role.

fn main() -> std::process::ExitCode {
    bonafide_ca::cli::main()
}
