//! What clients asked, what they were told, and in which order: the evidence that [`crate::check`] judges.

use crate::clock::WorldTime;
use std::fmt;

/// A call within its history, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub usize);

/// One call of a client.
#[derive(Clone, Debug)]
pub struct Call<I, O> {
    /// Who called. Calls of one client may overlap, if the client is concurrent in itself.
    pub client: u32,
    /// What was asked.
    pub input: I,
    /// When, for people.
    pub invoked_at: WorldTime,
    /// Place of the call in the order of all calls and returns: what counts as "before".
    pub invoked: u64,
    /// The answer, if one ever came. A call without one may have taken effect at any time since, or never.
    pub returned: Option<Return<O>>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Return<O> {
    /// What was answered.
    pub output: O,
    /// When, for people.
    pub at: WorldTime,
    /// Place in the order of all calls and returns.
    pub order: u64,
}

/// All calls of a run.
#[derive(Clone, Debug)]
pub struct History<I, O> {
    calls: Vec<Call<I, O>>,
    next: u64,
}

impl<I, O> Default for History<I, O> {
    fn default() -> Self {
        Self { calls: Vec::new(), next: 0 }
    }
}

impl<I, O> History<I, O> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn order(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A client calls.
    pub fn invoke(&mut self, now: WorldTime, client: u32, input: I) -> CallId {
        let invoked = self.order();
        self.calls.push(Call { client, input, invoked_at: now, invoked, returned: None });
        CallId(self.calls.len() - 1)
    }

    /// The client learns the outcome. Calls whose outcome stays unknown (a timeout, a crash of the client) are never
    /// returned; a call that proves that nothing happened returns as such, and the model allows that answer.
    ///
    /// # Panics
    /// When it has learned it already.
    pub fn returned(&mut self, now: WorldTime, call: CallId, output: O) {
        let order = self.order();
        let call = &mut self.calls[call.0];
        assert!(call.returned.is_none(), "a call returns once");
        call.returned = Some(Return { output, at: now, order });
    }

    /// All calls in the order of their invocation.
    pub fn calls(&self) -> &[Call<I, O>] {
        &self.calls
    }

    /// How many returned.
    pub fn completed(&self) -> usize {
        self.calls.iter().filter(|call| call.returned.is_some()).count()
    }
}

impl<I: fmt::Debug, O: fmt::Debug> fmt::Display for Call<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} at {} {:?}", self.client, self.invoked_at, self.input)?;
        match &self.returned {
            Some(answer) => write!(f, " -> {:?} at {}", answer.output, answer.at),
            None => write!(f, " -> no answer"),
        }
    }
}
