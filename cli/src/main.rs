//! bonafide, what an operator types.

fn main() -> std::process::ExitCode {
    bonafide_cli::main()
}
