//! Groups in a small world of their own: what section 6 of the design promises.

mod authority;
mod checks;
mod client;
mod discard;
mod mends;
mod random;
mod scenarios;
mod store;
mod world;
