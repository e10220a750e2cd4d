//! Groups in a small world of their own: what section 6 of the design promises.

mod authority;
mod client;
mod random;
mod store;
mod world;
