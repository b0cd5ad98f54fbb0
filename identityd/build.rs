//! Compiles what the daemon is made of besides Rust: the kernel programs, and the `.proto` files of container runtimes.

#![allow(clippy::disallowed_methods, reason = "cargo tells a build script everything by its environment")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    kernel_programs()?;
    container_runtimes()
}

/// For every kernel that describes its own structures (CO-RE).
fn kernel_programs() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=bpf");
    ["attribution", "observe"].into_iter().try_for_each(kernel_program)
}

/// `bpf/NAME.bpf.c`.
fn kernel_program(name: &str) -> Result<(), Box<dyn Error>> {
    let object = PathBuf::from(std::env::var("OUT_DIR")?).join(format!("{name}.bpf.o"));
    let mut clang = Command::new("clang");
    clang
        .args(["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror"])
        // The path of the sources would be different on every machine.
        .arg("-fdebug-prefix-map=bpf=.")
        .args(["-c", &format!("bpf/{name}.bpf.c"), "-o"])
        .arg(&object);
    for directory in system_headers()? {
        clang.arg("-idirafter").arg(directory);
    }
    let compiled = clang.output().map_err(|e| format!("clang: {e}; `make deps` installs it"))?;
    if compiled.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&compiled.stderr);
    Err(format!("clang did not compile the kernel programs; is everything there that `make deps` installs?\n{said}")
        .into())
}

/// Where Debian has `asm/types.h`, which clang does not look for when it compiles for the kernel.
fn system_headers() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let directory = Path::new("/usr/include").join(format!("{machine}-linux-gnu"));
    Ok(if directory.exists() { vec![directory] } else { Vec::new() })
}

/// With protox, so that no `protoc` is needed.
fn container_runtimes() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 7] = [
        "containers.proto",
        "tasks.proto",
        "images.proto",
        "content.proto",
        "snapshots.proto",
        "events.proto",
        "cri.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
