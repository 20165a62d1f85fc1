//! Where a test's random choices come from, so that they can be made again.

use rand::SeedableRng;
use rand::rngs::StdRng;

const VARIABLE: &str = "BACKSTAMP_TEST_SEED";
const DEFAULT: u64 = 1;

/// The number that all random choices of a test follow from: `BACKSTAMP_TEST_SEED`, or 1.
///
/// A test holds it to its end: where the test fails, the number is shown.
#[derive(Debug)]
pub struct Seed {
    number: u64,
}

impl Seed {
    /// The seed of this run.
    ///
    /// # Panics
    ///
    /// When `BACKSTAMP_TEST_SEED` is no number.
    #[must_use]
    pub fn from_environment() -> Self {
        let number = std::env::var(VARIABLE).map_or(DEFAULT, |text| {
            text.parse().unwrap_or_else(|_| panic!("{VARIABLE} is no number: {text}"))
        });
        Self { number }
    }

    /// The seed of one of the test's histories or deciders, by its number: each choice stays the same whatever the others draw.
    #[must_use]
    pub fn of(&self, part: u64) -> u64 {
        self.number.wrapping_mul(1_000_003).wrapping_add(part)
    }

    /// A generator that starts at [`of`](Self::of).
    #[must_use]
    pub fn rng(&self, part: u64) -> StdRng {
        StdRng::seed_from_u64(self.of(part))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- to try the same again: {VARIABLE}={}", self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    #[test]
    fn each_part_draws_the_same_again_and_no_two_draw_alike() {
        let seed = Seed { number: 7 };
        let draw = |part| seed.rng(part).random::<u64>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(seed.of(1), Seed { number: 8 }.of(1));
    }
}
