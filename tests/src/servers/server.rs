//! What the servers have in common: a process, a log, free ports, and a wait until it answers.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process;

const START_TIMEOUT: Duration = Duration::from_secs(180);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
const PORT_ATTEMPTS_MAX: usize = 5;
const ERRORS_SHOWN_MAX: usize = 10;
const LOG_LINES_SHOWN: usize = 30;

/// A running server. It ends with this process, or when dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
}

impl Server {
    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it had ended before.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        process::send_signal(&mut self.process, signal)
    }

    /// Asks it to end by `signal`, and kills it where it has not `within` that time. Says how it ended, or that it was killed.
    ///
    /// # Errors
    ///
    /// When it had ended before.
    pub fn end(mut self, signal: i32, within: Duration) -> io::Result<Option<ExitStatus>> {
        process::send_signal(&mut self.process, signal)?;
        process::wait_until(&mut self.process, Instant::now() + within)
    }
}

/// A server that can be killed, held, and started again on its data.
pub struct Node {
    /// Missing while it is down.
    server: Option<Server>,
    log: PathBuf,
    recipe: Arc<Recipe>,
}

/// How a node is started, and how it is known to answer.
pub struct Recipe {
    /// Makes its command.
    pub command: Box<dyn Fn() -> Command + Send + Sync>,
    /// Whether it answers.
    pub answers: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Node {
    /// Starts it as `recipe` says, and waits until it answers. It logs to `log`.
    ///
    /// # Errors
    ///
    /// As [`start`].
    pub fn start(log: PathBuf, recipe: Recipe) -> Result<Node> {
        let server = start((recipe.command)(), &log, &recipe.answers)?;
        Ok(Node { server: Some(server), log, recipe: Arc::new(recipe) })
    }

    /// The number of its process.
    ///
    /// # Panics
    ///
    /// While it is down.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("the server is not down").pid()
    }

    /// Kills it: SIGKILL. Returns when it is gone.
    pub fn kill9(&mut self) {
        self.server = None;
    }

    /// Holds it where it is: SIGSTOP. Returns when it stands still.
    ///
    /// # Panics
    ///
    /// Where it has ended.
    pub fn stop(&mut self) {
        let server = self.server.as_mut().expect("the server is not down");
        process::stop(&mut server.process).expect("a server that runs can be held");
    }

    /// Lets it go on after [`stop`](Self::stop): SIGCONT.
    ///
    /// # Panics
    ///
    /// Where it has ended.
    pub fn cont(&mut self) {
        let server = self.server.as_mut().expect("the server is not down");
        process::send_signal(&mut server.process, libc::SIGCONT).expect("a server that runs goes on");
    }

    /// Whether its process has ended by itself, or was killed.
    pub fn has_ended(&mut self) -> bool {
        let ended =
            |server: &mut Server| server.process.try_wait().expect("a child of ours can be asked").is_some();
        self.server.as_mut().is_none_or(ended)
    }

    /// Starts it again on its data, killed before if need be, and waits until it answers.
    ///
    /// # Panics
    ///
    /// Where it does not start: with what its log says.
    pub async fn start_again(&mut self) {
        self.kill9();
        let (log, recipe) = (self.log.clone(), Arc::clone(&self.recipe));
        let starting =
            tokio::task::spawn_blocking(move || start((recipe.command)(), &log, &recipe.answers)).await;
        let server = starting.expect("starting a server does not panic");
        self.server = Some(server.unwrap_or_else(|error| panic!("it does not start again: {error:#}")));
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `start` with `N` ports that are free, and again with others where somebody else was quicker to take one.
///
/// # Errors
///
/// When `start` fails for another reason, or too often for this one.
pub fn on_free_ports<const N: usize, T>(start: impl Fn([u16; N]) -> Result<T>) -> Result<T> {
    let mut attempts = 1;
    loop {
        match start(free_ports()?) {
            Err(error) if attempts < PORT_ATTEMPTS_MAX && error.is::<PortTaken>() => attempts += 1,
            outcome => return outcome,
        }
    }
}

/// Starts `command`, which logs to `log`, and waits until `answers` says so.
///
/// # Errors
///
/// When it ends before that, or takes too long: with what its log says. `PortTaken` is among the causes where
/// that was it.
pub fn start(command: Command, log: &Path, answers: impl Fn() -> bool) -> Result<Server> {
    let program = command.get_program().to_owned();
    let process = process::spawn(process::log_to(command, log)?)
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let mut server = Server { process };
    let end = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = server.process.try_wait()? {
            return Err(failure(&format!("it ended ({status})"), log));
        }
        if answers() {
            return Ok(server);
        }
        if Instant::now() >= end {
            return Err(failure(&format!("no answer within {START_TIMEOUT:?}"), log));
        }
        thread::sleep(POLL);
    }
}

/// Somebody took a port between our choice of it and the server's start.
#[derive(Debug)]
struct PortTaken;

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port was taken meanwhile")
    }
}

impl std::error::Error for PortTaken {}

/// What happened, and what the log at `log` says about it.
pub fn failure(what: &str, log: &Path) -> anyhow::Error {
    const PORT_TAKEN: [&str; 2] = ["Address already in use", "is in use by another process"];
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = format!("{what}; its log:\n{}", excerpt(&text));
    if PORT_TAKEN.iter().any(|sign| text.contains(sign)) {
        return anyhow::Error::new(PortTaken).context(message);
    }
    anyhow::Error::msg(message)
}

/// The first errors of a log, and its end: a server that fails goes on to say how it shuts down.
fn excerpt(log: &str) -> String {
    let is_error =
        |line: &&str| line.contains("ERROR") || line.contains("FATAL") || line.starts_with("Caused by: ");
    let errors: Vec<&str> = log.lines().filter(is_error).take(ERRORS_SHOWN_MAX).collect();
    format!("{}\n…\n{}", errors.join("\n"), process::tail(log, LOG_LINES_SHOWN))
}

/// Runs a command that does one thing, logs to `log`, and ends. It is killed where it takes longer than `timeout`.
///
/// # Errors
///
/// When it cannot be run.
pub fn run_to_end(command: Command, log: &Path, timeout: Duration) -> io::Result<ExitStatus> {
    let mut child = process::spawn(process::log_to(command, log)?)?;
    if let Some(status) = process::wait_until(&mut child, Instant::now() + timeout)? {
        return Ok(status);
    }
    child.kill()?;
    child.wait()
}

/// Writes `template` to `path` with its words, such as `@PORT@`, replaced.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_settings(path: &Path, template: &str, words: &[(&str, &str)]) -> io::Result<PathBuf> {
    let settings = words.iter().fold(template.to_owned(), |text, (word, value)| text.replace(word, value));
    fs::write(path, settings)?;
    Ok(path.to_owned())
}

/// Held all at once while they are picked, so that they differ.
fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Whether somebody listens on a port of this machine.
pub fn accepts(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT_TIMEOUT).is_ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn server(script: &str) -> Result<Server> {
        let log = crate::scratch::directory("server").join("server.log");
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        start(command, &log, || false)
    }

    #[test]
    fn a_taken_port_is_tried_again_elsewhere() {
        let attempts = Cell::new(0);
        let outcome = on_free_ports(|[a, b]| {
            assert_ne!(a, b);
            attempts.set(attempts.get() + 1);
            let script =
                if attempts.get() < 3 { "echo bind: Address already in use" } else { "echo ERROR no memory" };
            server(script)
        });
        let message = format!("{:#}", outcome.expect_err("it has ended"));
        assert!(message.starts_with("it ended (exit status: 0); its log:\nERROR no memory\n"), "{message}");
        assert_eq!(attempts.get(), 3);
    }

    #[test]
    fn a_port_that_is_always_taken_is_given_up() {
        let outcome = on_free_ports(|[_]| server("echo bind: Address already in use"));
        assert!(outcome.is_err_and(|error| error.is::<PortTaken>()));
    }

    #[test]
    fn an_excerpt_has_the_first_error_and_the_end() {
        let ordinary = "INFO something\n".repeat(100);
        let log = format!("{ordinary}ERROR the cause\n{ordinary}INFO shutdown complete\n");
        let excerpt = excerpt(&log);
        assert!(excerpt.starts_with("ERROR the cause\n…\nINFO"), "{excerpt}");
        assert!(excerpt.ends_with("INFO shutdown complete"), "{excerpt}");
        assert_eq!(excerpt.lines().count(), 2 + LOG_LINES_SHOWN);
    }
}
