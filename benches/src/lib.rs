//! Benchmarks and their kept results; see `README.md` beside this package's manifest.
//!
//! All but `bin/disk.rs`, which times the disk's trait itself, are scripts that need nothing but Python, so that they run unchanged on any other file system too:
//! `fsbench.py` measures, `failover.py` breaks things under load and looks for what was acknowledged.
