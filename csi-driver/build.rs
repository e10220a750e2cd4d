//! Makes Rust of `proto/csi.proto`, with a compiler written in Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/csi.proto");
    let files = protox::compile(["proto/csi.proto"], ["proto"])?;
    // Both ends: the tests are a client.
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
