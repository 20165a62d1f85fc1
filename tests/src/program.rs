//! The `backstamp` program: built once a test process, started, asked, killed.

mod build;
mod captured;

use std::fmt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::process;
use captured::Captured;

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const RUN_TIMEOUT: Duration = Duration::from_secs(120);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// The program under test.
///
/// It is given the environment of the tests without any `BACKSTAMP_…`, and what the caller adds.
pub struct Program;

impl Program {
    /// Starts a service, and returns once it says that it is ready.
    ///
    /// It listens on free ports: `--listen` and `--ops-listen` with `127.0.0.1:0` are added where the service has
    /// them and neither `arguments` nor `environment` names them.
    ///
    /// # Panics
    ///
    /// When the program does not build, ends, or is not ready within a minute: with what it printed.
    pub async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Running {
        let arguments = with_free_ports(arguments, environment);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Running::start(build::program().await, &arguments, environment).await
    }

    /// Runs a tool, such as `keys create`, to its end.
    ///
    /// # Panics
    ///
    /// When the program does not build, or does not end within two minutes.
    pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        Spawned::new(build::program().await, arguments, environment).output().await
    }

    /// Runs a tool, and kills it (SIGKILL) once `until` is over. Returns what it had printed.
    ///
    /// # Panics
    ///
    /// When the program does not build, or has ended before.
    pub async fn run_killed(
        arguments: &[&str],
        environment: &[(&str, &str)],
        until: impl Future<Output = ()>,
    ) -> Output {
        let mut spawned = Spawned::new(build::program().await, arguments, environment);
        until.await;
        let ended = spawned.has_ended();
        spawned.kill();
        let output = spawned.output().await;
        assert!(!ended, "it ended before it was killed: {output}");
        output
    }

    /// Where the program is.
    ///
    /// # Panics
    ///
    /// When it does not build.
    pub async fn path() -> &'static Path {
        build::program().await
    }

    /// Creates a key and returns it, `wbk_…`.
    ///
    /// `environment` says where: `BACKSTAMP_SCYLLA_NODES` and `BACKSTAMP_KEYSPACE`, or `BACKSTAMP_OPS_LISTEN` and
    /// `BACKSTAMP_DATA` of a running `dev`.
    ///
    /// # Panics
    ///
    /// When no key is printed.
    pub async fn create_key(account: &str, permissions: &[&str], environment: &[(&str, &str)]) -> String {
        let mut arguments = vec!["keys", "create", "--account", account];
        for permission in permissions {
            arguments.extend(["--permission", permission]);
        }
        let output = Self::run(&arguments, environment).await;
        match find_key(&output.stdout) {
            Some(key) if output.status.success() => key.to_owned(),
            _ => panic!("no key was created: {output}"),
        }
    }
}

/// What a tool printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, stdout, stderr } = self;
        write!(f, "{status}\n--- standard output\n{stdout}\n--- standard error\n{stderr}")
    }
}

/// A service that is ready. Dropping it kills it; where the test fails, it shows what the service logged last.
///
/// All signals go to this process alone, and to nothing once it has ended.
pub struct Running {
    spawned: Spawned,
    url: Option<String>,
    ops_url: String,
}

impl Running {
    async fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut spawned = Spawned::new(program, arguments, environment);
        let end = Instant::now() + READY_TIMEOUT;
        loop {
            // Asked in this order: what is printed before an end counts.
            let ended = spawned.has_ended();
            if let Some(Addresses { url, ops_url }) = spawned.stdout.text().lines().find_map(ready_line) {
                return Self { spawned, url, ops_url };
            }
            if ended || Instant::now() >= end {
                let why = if ended { "ended before" } else { "runs, but in a minute" };
                spawned.kill();
                let output = spawned.output().await;
                panic!("`backstamp {}` {why} it was ready: {output}", arguments.join(" "));
            }
            sleep(POLL).await;
        }
    }

    /// The address of the endpoints, `http://127.0.0.1:PORT`.
    ///
    /// # Panics
    ///
    /// For `ingest`, which has none.
    pub fn url(&self) -> &str {
        self.url.as_deref().expect("a service that has endpoints")
    }

    /// The address of `/metrics`, `/livez` and `/readyz`, `http://127.0.0.1:PORT`.
    pub fn ops_url(&self) -> &str {
        &self.ops_url
    }

    /// The `--ops-listen` that it has, `127.0.0.1:PORT`: what `keys` takes as `BACKSTAMP_OPS_LISTEN`.
    pub fn ops_address(&self) -> &str {
        self.ops_url.trim_start_matches("http://")
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.spawned.child().id()
    }

    /// Whether the process has ended, by itself or otherwise.
    pub fn has_ended(&self) -> bool {
        self.spawned.has_ended()
    }

    /// Kills it as a power cut would: SIGKILL. Returns when it is gone.
    pub fn kill9(&self) {
        self.spawned.kill();
    }

    /// Asks it to end, and waits until it has drained and ended.
    ///
    /// # Panics
    ///
    /// When it has ended before, or does not within a minute.
    pub async fn sigterm_and_wait(&self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.spawned.wait(DRAIN_TIMEOUT).await.unwrap_or_else(|| {
            panic!("it did not end in {DRAIN_TIMEOUT:?}; its log: {}", self.stderr());
        })
    }

    /// Holds it where it is, as a long pause would: SIGSTOP. Returns when it stands still.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn stop(&self) {
        let stopped = process::stop(&mut self.spawned.child());
        stopped.unwrap_or_else(|error| panic!("it takes no signal ({error}); its log: {}", self.stderr()));
    }

    /// Lets it go on after [`stop`](Self::stop): SIGCONT.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn cont(&self) {
        self.signal(libc::SIGCONT);
    }

    /// What it has printed on standard output so far; of more than 4 MiB, the end.
    pub fn stdout(&self) -> String {
        self.spawned.stdout.text()
    }

    /// What it has logged so far; of more than 4 MiB, the end.
    pub fn stderr(&self) -> String {
        self.spawned.stderr.text()
    }

    fn signal(&self, signal: libc::c_int) {
        let sent = process::send_signal(&mut self.spawned.child(), signal);
        sent.unwrap_or_else(|error| panic!("it takes no signal ({error}); its log: {}", self.stderr()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (pid, log) = (self.pid(), self.stderr());
            eprintln!("--- the end of the log of process {pid}\n{}", process::tail(&log, 50));
        }
    }
}

/// A process of the program, ready or not. Dropping it kills it.
struct Spawned {
    child: Mutex<Child>,
    stdout: Captured,
    stderr: Captured,
}

impl Spawned {
    fn new(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"BACKSTAMP_") {
                command.env_remove(name);
            }
        }
        command.envs(environment.iter().copied());
        let mut child = process::spawn(command).expect("the program can be run");
        let stdout = Captured::new(child.stdout.take().expect("a pipe"));
        let stderr = Captured::new(child.stderr.take().expect("a pipe"));
        Self { child: Mutex::new(child), stdout, stderr }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.child().try_wait().expect("a child of ours can be asked").is_some()
    }

    fn kill(&self) {
        let mut child = self.child();
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }

    async fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            if let Some(status) = self.child().try_wait().expect("a child of ours can be asked") {
                return Some(status);
            }
            sleep(POLL).await;
        }
        None
    }

    async fn output(&mut self) -> Output {
        let Some(status) = self.wait(RUN_TIMEOUT).await else {
            panic!("it did not end in {RUN_TIMEOUT:?}; its log: {}", self.stderr.text());
        };
        Output { status, stdout: self.stdout.finish(), stderr: self.stderr.finish() }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `arguments`, with a free port for each address that the service has and the caller leaves open.
fn with_free_ports(arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    let options: &[(&str, &str)] = match arguments.first() {
        Some(&"dev" | &"query" | &"collect") => {
            &[("--listen", "BACKSTAMP_LISTEN"), ("--ops-listen", "BACKSTAMP_OPS_LISTEN")]
        }
        Some(&"ingest") => &[("--ops-listen", "BACKSTAMP_OPS_LISTEN")],
        _ => &[],
    };
    let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    for (option, variable) in options {
        let in_arguments = arguments.iter().any(|argument| argument.split('=').next() == Some(option));
        if !in_arguments && !environment.iter().any(|(name, _)| name == variable) {
            all.push(format!("{option}=127.0.0.1:0"));
        }
    }
    all
}

#[derive(Debug, PartialEq)]
struct Addresses {
    url: Option<String>,
    ops_url: String,
}

/// Reads `backstamp dev is ready: http://127.0.0.1:1 (ops http://127.0.0.1:2)`; `ingest` has no first address.
fn ready_line(line: &str) -> Option<Addresses> {
    let (service, addresses) = line.strip_prefix("backstamp ")?.split_once(" is ready: ")?;
    let (url, ops_url) = addresses.trim_end().strip_suffix(')')?.split_once("(ops ")?;
    let url = Some(url.trim_end()).filter(|url| !url.is_empty()).map(str::to_owned);
    (!service.contains(' ')).then(|| Addresses { url, ops_url: ops_url.to_owned() })
}

fn find_key(text: &str) -> Option<&str> {
    const START: &str = "wbk_";
    let key = &text[text.find(START)?..];
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let end = key.find(|c| !is_part(c)).unwrap_or(key.len());
    (end > START.len()).then_some(&key[..end])
}

#[cfg(test)]
mod tests;
