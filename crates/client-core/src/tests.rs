//! The core against a small service of its own: what callers were promised, under loss, delay and reordering.

mod access;
mod caching;
mod fake;
mod files;
mod locks;
mod opens;
mod races;
mod seek;
mod sharing;
mod world;
