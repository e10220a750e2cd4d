//! The storage node's decisions: views, sequencing, acknowledgement, reconciliation, resync. Pure.

pub mod local;
