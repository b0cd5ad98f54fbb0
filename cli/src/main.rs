//! bonafide, what an operator types.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
