//! What travels: messages, their framing and their encoding. Pure.
//!
//! A frame is a fixed header ([`frame`]), a message ([`codec`]: one version byte, then postcard) and raw payload bytes that are
//! never copied to be encoded. Which message a frame holds is its [`kind::Kind`].
//!
//! Compatibility: enums only grow at their end, structs never change within a message version; a change of either raises the
//! version byte of that message. The golden tests hold the bytes of every release.

pub mod acl;
pub mod admin;
pub mod chunk;
pub mod codec;
pub mod frame;
pub mod group;
pub mod kind;
pub mod lock;
pub mod map;
pub mod metadata;
pub mod namespace;
pub mod open;
pub mod peer;
