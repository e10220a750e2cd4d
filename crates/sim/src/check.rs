//! Judges histories.
//!
//! * [`linearizable`]: is there *some* order of the calls that the model allows and real time does not contradict?
//! * [`ordered`]: the service says itself in which order it applied the calls; is it one that real time allows?
//! * [`register`]: the model of a register, and of a map of registers, checked key by key.

pub mod linearizable;
pub mod ordered;
pub mod register;

pub use linearizable::{Model, Verdict, linearizable, linearizable_by_key};
pub use ordered::{OrderError, Place, order_respects_real_time};
pub use register::{Register, RegisterInput, RegisterOutput};
