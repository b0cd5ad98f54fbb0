//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let ours = protox::compile(["node.proto", "authority.proto", "policy.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(ours)?;

    let theirs = protox::compile(["spiffe/workload.proto", "envoy/sds.proto", "envoy/secret.proto"], ["proto"])?;
    // What reflection tells of the workload endpoint.
    #[allow(clippy::disallowed_methods, reason = "cargo tells a build script everything by its environment")]
    let described = PathBuf::from(std::env::var("OUT_DIR")?).join("workload_endpoint.bin");
    std::fs::write(described, theirs.encode_to_vec())?;
    // Several packages that refer to one another: a file that nests them as prost names them.
    tonic_prost_build::configure().include_file("workload_endpoint.rs").compile_fds(theirs)?;
    Ok(())
}
