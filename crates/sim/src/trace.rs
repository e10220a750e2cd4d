//! A running hash over everything that happened: the same seed must give the same one, and two runs that differ show
//! where, because the last entries can be kept as text.

use holdfast_types::prng::mix;
use std::collections::VecDeque;
use std::fmt;

/// What happened so far, as a number, and its end, as text.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    entries: u64,
    kept: VecDeque<String>,
    keep_max: usize,
}

impl Trace {
    /// Keeps the last `entries` as text, for printing when a run fails. 0, the beginning, keeps none and costs nothing.
    pub fn keep(&mut self, entries: usize) {
        self.keep_max = entries;
        while self.kept.len() > entries {
            self.kept.pop_front();
        }
    }

    /// Mixes numbers in; `text` is called only if text is kept.
    pub fn note(&mut self, numbers: &[u64], text: impl FnOnce() -> String) {
        self.entries += 1;
        for number in numbers {
            self.hash = mix(self.hash ^ number);
        }
        if self.keep_max > 0 {
            if self.kept.len() == self.keep_max {
                self.kept.pop_front();
            }
            self.kept.push_back(text());
        }
    }

    /// Mixes text in: for effects that can be printed but have no number.
    pub fn note_text(&mut self, text: &str) {
        let mut folded = text.len() as u64;
        for part in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            folded = mix(folded ^ u64::from_le_bytes(word));
        }
        self.note(&[folded], || text.to_owned());
    }

    /// The hash. Equal for equal runs; different, but for bad luck of 1 in 2^64, for others.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many entries there were.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trace {:016x}, {} entries, the last of them:", self.hash, self.entries)?;
        self.kept.iter().try_for_each(|entry| writeln!(f, "  {entry}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_content_count_and_only_the_end_is_kept() {
        let run = |numbers: &[u64]| {
            let mut trace = Trace::default();
            trace.keep(2);
            numbers.iter().for_each(|n| trace.note(&[*n], || format!("n{n}")));
            trace
        };
        assert_eq!(run(&[1, 2, 3]).hash(), run(&[1, 2, 3]).hash());
        assert_ne!(run(&[1, 2]).hash(), run(&[2, 1]).hash());
        assert_ne!(run(&[0]).hash(), run(&[0, 0]).hash());
        let text = run(&[1, 2, 3]).to_string();
        assert!(text.contains("n2") && text.contains("n3") && !text.contains("n1"), "{text}");
        let (mut a, mut b) = (Trace::default(), Trace::default());
        a.note_text("abcdefgh");
        b.note_text("abcdefgh\0");
        assert_ne!(a.hash(), b.hash());
    }
}
