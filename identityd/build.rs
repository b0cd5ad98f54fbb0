//! Compiles what the build makes of other languages: the `.proto` files of container runtimes.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    container_runtimes()
}

/// With protox, so that no `protoc` is needed.
fn container_runtimes() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 6] =
        ["containers.proto", "tasks.proto", "images.proto", "content.proto", "snapshots.proto", "cri.proto"];
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
