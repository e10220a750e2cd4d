//! Mounts a volume that lives in memory, to try and measure the adapter alone: `memory DIR [uncached]`, until `umount DIR`.

#[path = "../tests/memory/mod.rs"]
mod memory;

use holdfast_fuse_client::fs::FileSystem;
use holdfast_fuse_client::{Mounted, Options};
use memory::{Memory, Pace};
use std::path::Path;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let point = arguments.next().ok_or("usage: memory DIR [uncached]")?;
    let ttl = if arguments.next().as_deref() == Some("uncached") { Duration::ZERO } else { Duration::from_secs(10) };
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).init();
    let fs = FileSystem::new(Memory::new(Pace::AtOnce, ttl));
    let mounted = Mounted::start(
        Path::new(&point),
        "memory",
        &Options { set_id: true, devices: true, ..Options::default() },
        fs,
    )?;
    println!("ready mount={point}");
    mounted.join();
    Ok(())
}
