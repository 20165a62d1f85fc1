//! The command: starts a process for each target and job, so many at a time, and says how far they are and what failed.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::worker::{Standing, Work, replay, work};
use crate::{Target, corpus};

const RUNS_DEFAULT: u64 = 10_000;
/// A worker that has not said anything for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Where failing inputs go.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/fuzz");

/// What is asked for.
struct Options {
    names: Vec<String>,
    runs: u64,
    jobs: usize,
    seed: u64,
    keep: bool,
    replay: Option<PathBuf>,
    list: bool,
    /// A worker: its number, and where its current input and what it finds go.
    worker: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments. Options of cargo's own test programs, such as `--nocapture`, mean nothing here.
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Options> {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut options = Options {
            names: Vec::new(),
            runs: RUNS_DEFAULT,
            jobs,
            seed: 1,
            keep: false,
            replay: None,
            list: false,
            worker: None,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--runs" => options.runs = value()?.replace('_', "").parse()?,
                "--jobs" => options.jobs = value()?.parse()?,
                "--seed" => options.seed = value()?.parse()?,
                "--replay" => options.replay = Some(value()?.into()),
                "--worker" => options.worker = Some(value()?.into()),
                "--keep" => options.keep = true,
                "--list" => options.list = true,
                "--test-threads" | "--skip" | "--color" | "--format" | "-Z" => drop(value()?),
                _ if argument.starts_with('-') => {}
                _ => options.names.push(argument),
            }
        }
        ensure!(options.jobs > 0, "--jobs is at least 1");
        if options.keep {
            // Two would keep what shows the same.
            options.jobs = 1;
        }
        Ok(options)
    }

    fn wants(&self, target: &Target) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| target.name.contains(name.as_str()))
    }
}

/// Does what the arguments of the process say.
pub fn main(targets: &[Target]) -> ExitCode {
    match run(targets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(targets: &[Target]) -> Result<()> {
    let options = Options::parse(env::args().skip(1))?;
    let named = |target: &&Target| options.names.iter().any(|name| name == target.name);
    let mut wanted: Vec<&Target> = targets.iter().filter(named).collect();
    if wanted.is_empty() {
        wanted.extend(targets.iter().filter(|target| options.wants(target)));
    }
    let one = || match wanted[..] {
        [target] => Ok(target),
        _ => bail!("one target is wanted, and {} are named so", wanted.len()),
    };
    if let Some(input) = &options.replay {
        return replay(one()?, input);
    }
    if let Some(place) = &options.worker {
        let found = options.keep.then(|| place.with_extension("found"));
        let work_of_one = Work { runs: options.runs, seed: options.seed, current: place.clone(), found };
        return work(one()?, &work_of_one);
    }
    if options.list {
        wanted.iter().for_each(|target| say(&format!("{}: test", target.name)));
        return Ok(());
    }
    fs::create_dir_all(FOLDER)?;
    let failed = run_all(&wanted, &options)?;
    ensure!(failed == 0, "{failed} failed");
    Ok(())
}

/// Runs each target; returns how many failed.
fn run_all(targets: &[&Target], options: &Options) -> Result<usize> {
    let bars = MultiProgress::new();
    let mut failed = 0;
    for target in targets {
        let begun = Instant::now();
        let bar = bars.add(ProgressBar::new(options.runs));
        let style =
            ProgressStyle::with_template("{msg:16} {wide_bar} {human_pos} of {human_len}, {per_sec}, {eta}")?;
        bar.set_style(style);
        bar.set_message(target.name);
        let ended = run_one(target, options, &bar);
        bar.finish_and_clear();
        match ended {
            Ok(standings) => say(&summary(target, &standings, begun.elapsed())),
            Err(error) => {
                failed += 1;
                say(&format!("{}: FAILED: {error:#}", target.name));
            }
        }
    }
    Ok(failed)
}

/// Runs a target in so many processes at a time; returns how each ended.
fn run_one(target: &Target, options: &Options, bar: &ProgressBar) -> Result<Vec<Standing>> {
    let jobs = options.jobs as u64;
    let share = |job: u64| options.runs / jobs + u64::from(job < options.runs % jobs);
    let (sender, inbox) = channel();
    let mut workers: Vec<Worker> = Vec::new();
    for job in 0..jobs {
        workers.push(Worker::start(target, options, job, share(job), sender.clone())?);
    }
    drop(sender);
    loop {
        match inbox.recv_timeout(Duration::from_secs(1)) {
            Ok((job, standing)) => {
                let worker: &mut Worker = &mut workers[job];
                (worker.standing, worker.heard) = (standing, Instant::now());
                bar.set_position(workers.iter().map(|worker| worker.standing.runs).sum());
            }
            Err(RecvTimeoutError::Timeout) => {}
            // All have ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(worker) = workers.iter_mut().find_map(Worker::hung) {
            return Err(worker.failed(target, options, "it takes too long"));
        }
    }
    for worker in &mut workers {
        let status = worker.child.wait()?;
        worker.is_running = false;
        if !status.success() {
            let why = format!("{status}\n{}", worker.log());
            return Err(worker.failed(target, options, &why));
        }
    }
    if options.keep {
        keep(target, &workers)?;
    }
    Ok(workers.iter().map(|worker| worker.standing).collect())
}

/// Adds what the workers found to what is kept.
fn keep(target: &Target, workers: &[Worker]) -> Result<()> {
    let found = workers.iter().map(|worker| fs::read_to_string(worker.place.with_extension("found")));
    let text = found
        .collect::<Result<Vec<_>, _>>()
        .context("only what fuzz/instrument built can say what is new")?;
    corpus::write(target.name, &corpus::parse_all(&text.concat())?)?;
    Ok(())
}

/// A process that runs a target. Dropping it ends it.
struct Worker {
    child: Child,
    place: PathBuf,
    standing: Standing,
    heard: Instant,
    is_running: bool,
}

impl Worker {
    fn start(
        target: &Target,
        options: &Options,
        job: u64,
        runs: u64,
        standings: Sender<(usize, Standing)>,
    ) -> Result<Worker> {
        let place = Path::new(FOLDER).join(format!("{}.{job}", target.name));
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(job);
        let mut command = Command::new(env::current_exe()?);
        command.args([target.name, "--runs", &runs.to_string(), "--seed", &seed.to_string(), "--worker"]);
        command.arg(&place).args(options.keep.then_some("--keep"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(place.with_extension("log"))?);
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(standing) = Standing::read(&line)
                    && standings.send((job as usize, standing)).is_err()
                {
                    break;
                }
            }
        });
        Ok(Worker { child, place, standing: Standing::default(), heard: Instant::now(), is_running: true })
    }

    /// Itself, if it runs and has not said anything for too long.
    fn hung(&mut self) -> Option<&Worker> {
        let is_silent = self.heard.elapsed() > SILENCE_MAX && matches!(self.child.try_wait(), Ok(None));
        is_silent.then_some(self)
    }

    /// The end of what the process logged.
    fn log(&self) -> String {
        let mut log = Vec::new();
        let read =
            fs::File::open(self.place.with_extension("log")).and_then(|mut file| file.read_to_end(&mut log));
        let text = String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned();
        read.map_or_else(|error| error.to_string(), |_| text)
    }

    /// Saves the input that the process ran last; the error says why, and how to run it again.
    fn failed(&self, target: &Target, options: &Options, why: &str) -> anyhow::Error {
        let saved = || -> Result<PathBuf> {
            let current = fs::read(&self.place)?;
            let (length, rest) = current.split_first_chunk().context("no input yet")?;
            let input = rest.get(..u32::from_le_bytes(*length) as usize).context("half an input")?;
            let path = Path::new(FOLDER).join(format!("{}-{}.input", target.name, options.seed));
            fs::write(&path, input)?;
            Ok(path.canonicalize()?)
        };
        match saved() {
            Ok(path) => anyhow::anyhow!(
                "{why}\n{} runs the failing input again",
                format_args!("cargo test -p fuzz -- {} --replay {}", target.name, path.display())
            ),
            Err(error) => anyhow::anyhow!("{why}\nthe failing input is not there: {error:#}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_running {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `events: 10000000 runs in 61 s, 163934 a second; …`
fn summary(target: &Target, standings: &[Standing], took: Duration) -> String {
    let runs: u64 = standings.iter().map(|standing| standing.runs).sum();
    let most = |of: fn(&Standing) -> usize| standings.iter().map(of).max().unwrap_or(0);
    let (pool, edges) = (most(|standing| standing.pool), most(|standing| standing.edges));
    let held = standings.iter().map(|standing| standing.held).max().unwrap_or(0);
    format!(
        "{}: {runs} runs in {:.1} s, {:.0} a second; {pool} inputs, {edges} edges, at most {held} bytes held",
        target.name,
        took.as_secs_f64(),
        runs as f64 / took.as_secs_f64()
    )
}

#[expect(clippy::print_stdout, reason = "it is a command")]
fn say(line: &str) {
    println!("{line}");
}
