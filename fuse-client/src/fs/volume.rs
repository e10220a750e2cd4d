//! What the file system needs of the cluster: calls with answers, and for how long answers hold.
//!
//! The one implementation that counts is [`holdfast_client::Client`]; tests bring a volume in memory.

use holdfast_client::{Call, CallId, Client, ClientError, Reply};
use holdfast_types::SessionId;
use std::time::Duration;

/// Takes the answer to a call.
pub type Done = Box<dyn FnOnce(Result<Reply, ClientError>) + Send>;

/// A mounted volume.
pub trait Volume: Send + Sync + 'static {
    /// Starts a call. `done` is called exactly once: before this returns if the answer lay in memory, else later on another thread.
    /// `done` may start further calls. Ids rise.
    fn call(&self, call: Call, done: Done) -> CallId;
    /// Gives a call up: it completes now, as interrupted, unless it has completed already.
    fn cancel(&self, id: CallId);
    /// Whose mount this is.
    fn session(&self) -> Option<SessionId>;
    /// For how long an answer given now may be cached by the kernel; zero: not at all.
    fn cache_ttl(&self) -> Duration;
    /// The kernel caches nothing any more, as `Notice::StopCaching` with this event asked.
    fn invalidated(&self, event: u64);
}

impl Volume for Client {
    fn call(&self, call: Call, done: Done) -> CallId {
        Client::call(self, call, done)
    }

    fn cancel(&self, id: CallId) {
        Client::cancel(self, id);
    }

    fn session(&self) -> Option<SessionId> {
        Some(Client::mounted(self).1)
    }

    fn cache_ttl(&self) -> Duration {
        Client::cache_ttl(self)
    }

    fn invalidated(&self, event: u64) {
        Client::invalidated(self, event);
    }
}
