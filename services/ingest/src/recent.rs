//! What an owner saw lately, by hash: much of it in little memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};

/// Values by the hash of what they belong to. Two generations: once the younger is full the older is forgotten, and what is
/// asked for moves to the younger. So at least the last `max` are held, and at most twice as many, some 30 bytes each; what is asked for counts once more.
pub(crate) struct Recent<V> {
    young: HashMap<Digest, V, BuildHasherDefault<FirstHalf>>,
    old: HashMap<Digest, V, BuildHasherDefault<FirstHalf>>,
    max: usize,
}

/// 128 bits under keys that nobody knows: that two things have the same is as good as never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u64; 2]);

/// Digests things, by keys of this process.
#[derive(Default)]
pub(crate) struct Digester([RandomState; 2]);

impl Digester {
    /// The digest of a thing.
    pub(crate) fn of(&self, thing: impl Hash) -> Digest {
        Digest([self.0[0].hash_one(&thing), self.0[1].hash_one(&thing)])
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// Hashes what is hashed already.
#[derive(Default)]
pub(crate) struct FirstHalf(u64);

impl Hasher for FirstHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl<V: Copy> Recent<V> {
    /// Nothing yet, and later at least the last `max`.
    pub(crate) fn new(max: usize) -> Recent<V> {
        Recent { young: HashMap::default(), old: HashMap::default(), max }
    }

    /// The value of what has this digest, where it is held.
    pub(crate) fn get(&mut self, digest: Digest) -> Option<V> {
        if let Some(value) = self.young.get(&digest) {
            return Some(*value);
        }
        let value = self.old.remove(&digest)?;
        self.put(digest, value);
        Some(value)
    }

    /// The value of what has this digest, which is held no more.
    pub(crate) fn take(&mut self, digest: Digest) -> Option<V> {
        let old = self.old.remove(&digest);
        self.young.remove(&digest).or(old)
    }

    /// Holds a value from now on.
    pub(crate) fn put(&mut self, digest: Digest, value: V) {
        if self.young.len() >= self.max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_held_and_memory_is_bounded() {
        let (digester, mut recent) = (Digester::default(), Recent::new(100));
        for number in 0..1000_u32 {
            recent.put(digester.of(number), number);
            // What is asked for stays.
            assert_eq!(recent.get(digester.of(7_u32)), (number >= 7).then_some(7), "{number}");
            // As many as are put are asked for here, which counts as put again.
            let last = number.saturating_sub(45);
            assert_eq!(recent.get(digester.of(last)), Some(last));
            assert!(recent.young.len() + recent.old.len() <= 200);
        }
        assert_eq!(recent.get(digester.of(600_u32)), None);
        assert_eq!((recent.take(digester.of(7_u32)), recent.take(digester.of(7_u32))), (Some(7), None));
    }

    #[test]
    fn different_things_have_different_digests() {
        let digester = Digester::default();
        assert_eq!(digester.of(("a", 1)), digester.of(("a", 1)));
        assert_ne!(digester.of(("a", 1)), digester.of(("a", 2)));
        assert_ne!(digester.of(1_u32).0[0], digester.of(1_u32).0[1]);
    }
}
