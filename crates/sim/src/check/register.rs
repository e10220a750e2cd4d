//! A register: the smallest object whose histories show lost writes, stale reads and split brains.

use super::linearizable::Model;

/// What is asked of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterInput<V> {
    /// What does it hold?
    Read,
    /// Hold this.
    Write(V),
    /// Hold `new` if it holds `expected`.
    CompareAndSet {
        /// `None`: if it was never written.
        expected: Option<V>,
        /// The new value.
        new: V,
    },
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterOutput<V> {
    /// To a read: the value, if it was ever written.
    Value(Option<V>),
    /// To a write.
    Done,
    /// To a compare-and-set: whether it was set.
    Set(bool),
}

/// The model. Values are cheap to clone and to compare.
#[derive(Clone, Debug)]
pub struct Register<V> {
    /// What it holds at first.
    pub initial: Option<V>,
}

impl<V> Default for Register<V> {
    fn default() -> Self {
        Self { initial: None }
    }
}

impl<V: Clone + Ord> Model for Register<V> {
    type Input = RegisterInput<V>;
    type Output = RegisterOutput<V>;
    type State = Option<V>;

    fn initial(&self) -> Option<V> {
        self.initial.clone()
    }

    fn step(
        &self,
        state: &Option<V>,
        input: &RegisterInput<V>,
        output: Option<&RegisterOutput<V>>,
    ) -> Option<Option<V>> {
        let (answer, after) = match input {
            RegisterInput::Read => (RegisterOutput::Value(state.clone()), state.clone()),
            RegisterInput::Write(value) => (RegisterOutput::Done, Some(value.clone())),
            RegisterInput::CompareAndSet { expected, new } if expected == state => {
                (RegisterOutput::Set(true), Some(new.clone()))
            }
            RegisterInput::CompareAndSet { .. } => (RegisterOutput::Set(false), state.clone()),
        };
        output.is_none_or(|output| *output == answer).then_some(after)
    }
}
