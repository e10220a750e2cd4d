//! Is there an order of the calls, each taking effect at one moment between its invocation and its return, that a
//! sequential model allows?
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with the memory of Lowe ("Testing for
//! linearizability", 2017): place any call that may come next, remember which calls led to which state, turn back where
//! none may. Exponential at worst, quick where few calls overlap: check key by key.
//!
//! Calls that were never answered overlap with everything after them, so a run with faults would drown in them. Hence
//! the search goes by how many of them it takes to have happened: none, one, two. A way to place the same answered calls
//! and reach the same state with *fewer* of the unanswered leaves every choice open that one with more leaves; so what is
//! reached with a superset of what reached it before is dropped.

use crate::history::{Call, History};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A sequential specification.
pub trait Model {
    /// What is asked.
    type Input;
    /// What is answered.
    type Output;
    /// What the object holds. Compared and remembered often: keep it small.
    type State: Clone + Ord;

    /// What it holds at first.
    fn initial(&self) -> Self::State;

    /// The state after a call with this answer; `None` when the model does not allow the answer. Without an answer (the
    /// client never learned it) whatever the model would answer is fine.
    fn step(&self, state: &Self::State, input: &Self::Input, output: Option<&Self::Output>) -> Option<Self::State>;
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none. The text names the longest order found and the calls that fit nowhere.
    Violation(String),
    /// The bound was reached before an answer: make the history smaller, never read this as "fine".
    Undecided {
        /// Steps that were made.
        steps: u64,
    },
}

/// Steps after which a search gives up: some seconds, and some hundred MB at worst.
pub const STEPS_MAX: u64 = 1_000_000;

/// Checks a whole history against one object.
pub fn linearizable<M: Model>(model: &M, history: &History<M::Input, M::Output>) -> Verdict
where
    M::Input: Debug,
    M::Output: Debug,
{
    search(model, &history.calls().iter().collect::<Vec<_>>(), STEPS_MAX)
}

/// Checks a history of many independent objects, each by itself: linearizability is local.
pub fn linearizable_by_key<M: Model, K: Ord + Debug>(
    model: &M,
    history: &History<M::Input, M::Output>,
    key: impl Fn(&M::Input) -> K,
) -> Verdict
where
    M::Input: Debug,
    M::Output: Debug,
{
    let mut keys = BTreeMap::new();
    for call in history.calls() {
        keys.entry(key(&call.input)).or_insert_with(Vec::new).push(call);
    }
    for (key, calls) in keys {
        match search(model, &calls, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Violation(text) => return Verdict::Violation(format!("{key:?}: {text}")),
            undecided => return undecided,
        }
    }
    Verdict::Linearizable
}

/// One way to place some of the calls.
struct Node<S> {
    /// All answered calls before this one (in the order of invocation) are placed …
    prefix: usize,
    /// … and of the others these.
    beyond: Vec<usize>,
    /// Unanswered calls that are placed, sorted.
    taken: Vec<usize>,
    state: S,
    /// Where it comes from: the node before and the call placed, for telling people.
    parent: Option<(usize, CallRef)>,
}

#[derive(Clone, Copy)]
enum CallRef {
    Answered(usize),
    Unanswered(usize),
}

/// For the same answered calls and the same state: the sets of unanswered calls that led there.
type Seen<S> = BTreeMap<(usize, Vec<usize>, S), Vec<Vec<usize>>>;

struct Search<'a, M: Model> {
    model: &'a M,
    answered: Vec<&'a Call<M::Input, M::Output>>,
    unanswered: Vec<&'a Call<M::Input, M::Output>>,
    nodes: Vec<Node<M::State>>,
    seen: Seen<M::State>,
    /// The node with the most answered calls.
    best: usize,
    steps: u64,
}

fn search<M: Model>(model: &M, calls: &[&Call<M::Input, M::Output>], steps_max: u64) -> Verdict
where
    M::Input: Debug,
    M::Output: Debug,
{
    let (answered, unanswered) = calls.iter().copied().partition(|call| call.returned.is_some());
    let root = Node { prefix: 0, beyond: vec![], taken: vec![], state: model.initial(), parent: None };
    let (nodes, seen) = (vec![root], BTreeMap::new());
    let mut search = Search { model, answered, unanswered, nodes, seen, best: 0, steps: 0 };
    // Nodes of this round (with so many unanswered calls taken), and those that were looked at.
    let mut open = vec![0];
    while !open.is_empty() {
        let mut closed = Vec::new();
        while let Some(node) = open.pop() {
            if search.nodes[node].prefix == search.answered.len() {
                return Verdict::Linearizable;
            }
            if search.steps > steps_max {
                return Verdict::Undecided { steps: search.steps };
            }
            open.extend(search.place_answered(node));
            closed.push(node);
        }
        for node in closed {
            if search.steps > steps_max {
                return Verdict::Undecided { steps: search.steps };
            }
            open.extend(search.place_unanswered(node));
        }
    }
    search.violation()
}

impl<'a, M: Model> Search<'a, M>
where
    M::Input: Debug,
    M::Output: Debug,
{
    fn returned(&self, answered: usize) -> u64 {
        self.answered[answered].returned.as_ref().map_or(u64::MAX, |answer| answer.order)
    }

    /// Answered calls that may come next, and the moment before which an unanswered one must have begun to do so: the
    /// first return of a call not yet placed.
    fn candidates(&self, node: &Node<M::State>) -> (Vec<usize>, u64) {
        let mut first_return = u64::MAX;
        let mut candidates = Vec::new();
        for call in node.prefix..self.answered.len() {
            if self.answered[call].invoked > first_return {
                break;
            }
            if !node.beyond.contains(&call) {
                first_return = first_return.min(self.returned(call));
                candidates.push(call);
            }
        }
        (candidates, first_return)
    }

    fn place_answered(&mut self, from: usize) -> Vec<usize> {
        let (candidates, _) = self.candidates(&self.nodes[from]);
        let mut found = Vec::new();
        // Backwards: the last one pushed is looked at first, and the order of invocation is the best guess.
        for call in candidates.into_iter().rev() {
            self.steps += 1;
            let (node, record) = (&self.nodes[from], self.answered[call]);
            let output = record.returned.as_ref().map(|answer| &answer.output);
            let Some(state) = self.model.step(&node.state, &record.input, output) else { continue };
            let (mut prefix, mut beyond, taken) = (node.prefix, node.beyond.clone(), node.taken.clone());
            let at = beyond.partition_point(|other| *other < call);
            beyond.insert(at, call);
            while beyond.first() == Some(&prefix) {
                beyond.remove(0);
                prefix += 1;
            }
            let parent = Some((from, CallRef::Answered(call)));
            found.extend(self.add(Node { prefix, beyond, taken, state, parent }));
        }
        found
    }

    fn place_unanswered(&mut self, from: usize) -> Vec<usize> {
        let (_, before) = self.candidates(&self.nodes[from]);
        let mut found = Vec::new();
        for call in 0..self.unanswered.len() {
            let (node, record) = (&self.nodes[from], self.unanswered[call]);
            if record.invoked > before {
                break;
            }
            self.steps += 1;
            let Err(at) = node.taken.binary_search(&call) else { continue };
            let Some(state) = self.model.step(&node.state, &record.input, None) else { continue };
            // One that changes nothing may as well not have happened.
            if state == node.state {
                continue;
            }
            let mut taken = node.taken.clone();
            taken.insert(at, call);
            let parent = Some((from, CallRef::Unanswered(call)));
            found.extend(self.add(Node { prefix: node.prefix, beyond: node.beyond.clone(), taken, state, parent }));
        }
        found
    }

    /// Adds a node unless one that leaves at least its choices is known.
    fn add(&mut self, node: Node<M::State>) -> Option<usize> {
        let known = self.seen.entry((node.prefix, node.beyond.clone(), node.state.clone())).or_default();
        let subset = |small: &Vec<usize>| small.iter().all(|call| node.taken.binary_search(call).is_ok());
        if known.iter().any(subset) {
            return None;
        }
        known.push(node.taken.clone());
        let placed = |node: &Node<M::State>| node.prefix + node.beyond.len();
        let index = self.nodes.len();
        if placed(&node) > placed(&self.nodes[self.best]) {
            self.best = index;
        }
        self.nodes.push(node);
        Some(index)
    }

    /// Tells how far the search came, for people: the end of the longest order, and what could not follow.
    fn violation(&self) -> Verdict {
        /// Calls shown of the order and of what is left.
        const SHOWN: usize = 12;
        let best = &self.nodes[self.best];
        let placed = best.prefix + best.beyond.len();
        let mut order = Vec::new();
        let mut at = best;
        while let Some((parent, call)) = at.parent.filter(|_| order.len() < SHOWN) {
            order.push(match call {
                CallRef::Answered(call) => self.answered[call],
                CallRef::Unanswered(call) => self.unanswered[call],
            });
            at = &self.nodes[parent];
        }
        let mut text =
            format!("{placed} of {} answered calls can be put in an order, ending with", self.answered.len());
        for call in order.iter().rev() {
            text += &format!("\n  {call}");
        }
        text += "\nand none of these can follow";
        for call in self.candidates(best).0.into_iter().take(SHOWN) {
            text += &format!("\n  {}", self.answered[call]);
        }
        Verdict::Violation(text)
    }
}

#[cfg(test)]
mod tests;
