//! The interface, as the compiler of `proto/csi.proto` makes it.

// Made by a program, whose comments are those of the file it is made from.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("csi.v1");
