//! The CSI driver as an orchestrator meets it: the real binary on its socket, a real cluster behind it, real mounts. A provisioner, an
//! attacher and two kubelets are played by the tests.
//!
//! Run by `cargo xtask test --only plugins`, one test at a time; as root, since volumes are mounted. All tests share one cluster.

mod access;
mod crashes;
mod errors;
mod life;
mod orchestrator;
mod world;
