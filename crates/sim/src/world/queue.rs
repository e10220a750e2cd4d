//! What is to happen, in the order of its time, and of its making where times are equal.
//!
//! Events are large and there are many: they lie still in slots, and only their names are kept in order.

use crate::clock::WorldTime;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events that are to happen.
#[derive(Clone, Debug)]
pub(super) struct Queue<T> {
    /// When, which one in the order of their making, and where it lies.
    order: BinaryHeap<Reverse<(WorldTime, u64, usize)>>,
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    made: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), made: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds one, after all others of the same time.
    pub(super) fn push(&mut self, at: WorldTime, event: T) {
        self.made += 1;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(event);
        self.order.push(Reverse((at, self.made, slot)));
    }

    /// Takes the first out, if it is not after `until`.
    pub(super) fn pop(&mut self, until: WorldTime) -> Option<(WorldTime, T)> {
        let Reverse((at, _, slot)) = *self.order.peek()?;
        if at > until {
            return None;
        }
        self.order.pop();
        self.free.push(slot);
        let event = self.slots[slot].take().expect("what is in order lies in its slot");
        Some((at, event))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_time_and_then_of_their_making() {
        let mut queue = Queue::default();
        for (at, event) in [(3, 'd'), (1, 'a'), (2, 'b'), (2, 'c')] {
            queue.push(WorldTime(at), event);
        }
        assert_eq!(queue.pop(WorldTime(0)), None);
        assert_eq!(queue.pop(WorldTime(2)), Some((WorldTime(1), 'a')));
        // The slot of the first is used again, and says nothing about the order.
        queue.push(WorldTime(2), 'x');
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop(WorldTime(9))).map(|(_, event)| event).collect();
        assert_eq!((rest, queue.len()), (vec!['b', 'c', 'x', 'd'], 0));
    }
}
