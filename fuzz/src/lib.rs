//! A fuzzer in one process, for stable Rust: mutates inputs, runs a target on each, keeps what showed something new.
//!
//! ```text
//! cargo test -p fuzz                                  # what is kept, and a short run of each target
//! RUSTC_WORKSPACE_WRAPPER=fuzz/instrument \
//!     cargo test --release -p fuzz --test fuzz -- --runs 10000000 # so many runs of each target, guided by coverage
//! ```
//!
//! | option | |
//! | --- | --- |
//! | `NAME` | only targets whose name has this in it |
//! | `--runs N` | how many runs of each target; 10,000 |
//! | `--jobs N` | how many processes at a time; one a core |
//! | `--seed N` | what the random choices follow from; 1 |
//! | `--replay FILE` | runs the one input of a file, as it is, here |
//! | `--keep` | adds to the kept corpus what reached something that it did not |
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`command`] | the command: a process a target and job, progress, what failed |
//! | `worker` | one such process: the loop |
//! | `mutate` | changes to an input: bytes, numbers, and the tokens of text |
//! | [`corpus`] | the kept inputs, one file a target |
//! | `coverage` | what code was reached, where `fuzz/instrument` built it |
//! | [`memory`] | the allocator: it counts, and a run that takes too much ends there |

pub mod command;
pub mod corpus;
mod coverage;
pub mod memory;
mod mutate;
mod worker;

/// One thing to fuzz.
pub struct Target {
    /// Its name: letters, digits, `_`.
    pub name: &'static str,
    /// What it begins with, beside what is kept.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that mean something to it.
    pub words: &'static [&'static str],
    /// The longest input, in bytes.
    pub bytes_max: usize,
    /// Makes what is run.
    pub start: fn() -> Run,
}

/// Runs one input: what came of it in a word or two, of which there are few; or what is wrong. A panic is wrong too.
pub type Run = Box<dyn FnMut(&[u8]) -> Result<&'static str, String>>;
