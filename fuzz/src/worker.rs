//! One process that runs one target. What it is about to run stands in a file, for whoever finds the process dead.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::coverage::Reached;
use crate::mutate::Mutator;
use crate::{Run, Target, corpus, memory};

/// How often a worker says how far it is.
const SAY_EVERY: Duration = Duration::from_millis(200);
/// How many inputs are mutated from; later ones take the places of earlier ones.
const POOL_MAX: usize = 4096;
/// The longest input that is kept in the repository, in bytes.
const KEPT_BYTES_MAX: usize = 1024;
/// How many inputs of a target are kept in the repository.
const KEPT_MAX: usize = 400;

/// What a worker does.
pub(crate) struct Work {
    pub(crate) runs: u64,
    pub(crate) seed: u64,
    /// Where the input that is run stands.
    pub(crate) current: PathBuf,
    /// Where what reached something new goes at the end.
    pub(crate) found: Option<PathBuf>,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    pub(crate) runs: u64,
    pub(crate) pool: usize,
    pub(crate) edges: usize,
    /// The most memory that a run held, in bytes.
    pub(crate) held: isize,
}

impl Standing {
    fn say(self) -> io::Result<()> {
        let Standing { runs, pool, edges, held } = self;
        writeln!(io::stdout().lock(), "{runs} {pool} {edges} {held}")
    }

    pub(crate) fn read(line: &str) -> Option<Standing> {
        let mut words = line.split(' ');
        Some(Standing {
            runs: words.next()?.parse().ok()?,
            pool: words.next()?.parse().ok()?,
            edges: words.next()?.parse().ok()?,
            held: words.next()?.parse().ok()?,
        })
    }
}

/// Runs `target`. An error is what is wrong with the input in [`Work::current`], or with the machine.
pub(crate) fn work(target: &Target, work: &Work) -> Result<()> {
    let say_panic = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        memory::lift();
        say_panic(panic);
    }));
    let current = File::create(&work.current).context("the current input cannot be written")?;
    let mut worker = Worker {
        run: (target.start)(),
        current,
        reached: Reached::nothing(),
        outcomes: Vec::new(),
        standing: Standing::default(),
    };
    let mut rng = StdRng::seed_from_u64(work.seed);
    let mutator = Mutator::new(target.words, target.bytes_max);
    let mut pool: Vec<Vec<u8>> = Vec::new();
    // What the start did is not what an input did.
    worker.reached.take();
    for seed in (target.seeds)().into_iter().chain(corpus::read(target.name)?).chain([Vec::new()]) {
        if worker.run(&seed)? || pool.is_empty() {
            pool.push(seed);
        }
    }
    let mut said = Instant::now();
    let mut input = Vec::new();
    while worker.standing.runs < work.runs {
        // Half of the time one of the latest, which are the least explored.
        let latest = if rng.random() { pool.len() - pool.len().min(64) } else { 0 };
        input.clone_from(&pool[rng.random_range(latest..pool.len())]);
        let other = &pool[rng.random_range(0..pool.len())];
        mutator.mutate(&mut rng, &mut input, other);
        if worker.run(&input)? {
            if pool.len() < POOL_MAX {
                pool.push(input.clone());
            } else {
                let at = rng.random_range(0..pool.len());
                pool[at].clone_from(&input);
            }
        }
        if worker.standing.runs.is_multiple_of(64) && said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            worker.say(pool.len())?;
        }
    }
    worker.say(pool.len())?;
    match &work.found {
        Some(path) if worker.reached.is_measured() => worker.keep(&pool, target, path),
        _ => Ok(()),
    }
}

/// Runs one input here, with nothing around it.
pub(crate) fn replay(target: &Target, input: &Path) -> Result<()> {
    let input = std::fs::read(input).with_context(|| format!("{} cannot be read", input.display()))?;
    let mut run = (target.start)();
    let (outcome, held) = memory::within(input.len(), || run(&input));
    let outcome = outcome.map_err(anyhow::Error::msg)?;
    writeln!(io::stdout(), "{}: {outcome}, {held} bytes held", target.name)?;
    Ok(())
}

struct Worker {
    run: Run,
    current: File,
    reached: Reached,
    /// What came of runs, with the order of magnitude of the input.
    outcomes: Vec<(&'static str, u32)>,
    standing: Standing,
}

impl Worker {
    /// Runs an input; returns whether it showed something new.
    fn run(&mut self, input: &[u8]) -> Result<bool> {
        let written = [&u32::try_from(input.len())?.to_le_bytes()[..], input].concat();
        self.current.write_all_at(&written, 0)?;
        let run = &mut self.run;
        let (done, held) = memory::within(input.len(), || catch_unwind(AssertUnwindSafe(|| run(input))));
        self.standing.runs += 1;
        self.standing.held = self.standing.held.max(held);
        // The hook has said what the panic was.
        let outcome = done.map_err(|_| anyhow::anyhow!("it panicked"))?.map_err(anyhow::Error::msg)?;
        if self.reached.is_measured() {
            return Ok(self.reached.take());
        }
        let outcome = (outcome, input.len().max(1).ilog2());
        let is_new = !self.outcomes.contains(&outcome);
        if is_new {
            self.outcomes.push(outcome);
        }
        Ok(is_new)
    }

    fn say(&mut self, pool: usize) -> Result<()> {
        self.standing.pool = pool;
        self.standing.edges = self.reached.edges();
        Ok(self.standing.say()?)
    }

    /// Writes those of `pool`, the shortest first, that reach what the seeds and the kept ones before them do not.
    fn keep(&mut self, pool: &[Vec<u8>], target: &Target, path: &Path) -> Result<()> {
        self.reached = Reached::nothing();
        for seed in (target.seeds)() {
            self.run(&seed)?;
        }
        let mut inputs: Vec<&Vec<u8>> = pool.iter().filter(|input| input.len() <= KEPT_BYTES_MAX).collect();
        inputs.sort_by_key(|input| input.len());
        let mut kept = Vec::new();
        for input in inputs {
            if kept.len() < KEPT_MAX && self.run(input)? {
                kept.push(input.clone());
            }
        }
        let lines: Vec<String> = kept.iter().map(|input| format!("{}\n", input.escape_ascii())).collect();
        Ok(std::fs::write(path, lines.concat())?)
    }
}
