//! The servers that loads are put on: a Kafka and a Cassandra as they would be run, and services of our own between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use backstamp_tests::servers::server::{self, Server};
use backstamp_tests::servers::{Cassandra, Kafka, Profile};
use backstamp_tests::{scratch, unique_name};
use scylla::client::session::Session;
use tokio::signal::unix::SignalKind;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::{table, topic};
use crate::measure::{Meter, cpu_s};

/// How long a tool of ours may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a service of ours may take to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A store counts as at rest when it uses less than this share of a processor for a while.
const REST_SHARE: f64 = 0.05;
const REST_LOOK: Duration = Duration::from_secs(1);
const REST_TIMEOUT: Duration = Duration::from_secs(60);

/// A Kafka and a Cassandra with nothing in them.
pub(crate) struct Servers {
    /// The log.
    pub(crate) kafka: Kafka,
    /// The store.
    pub(crate) cassandra: Cassandra,
    /// A session with the store, for tables and counts.
    pub(crate) session: Session,
}

impl Servers {
    /// Starts both, from jars that are fetched the first time.
    ///
    /// # Errors
    ///
    /// When one does not start: with what is missing, or the end of its log.
    pub(crate) async fn start() -> anyhow::Result<Servers> {
        let kafka = spawn_blocking(|| Kafka::start(Profile::Benchmark));
        let cassandra = spawn_blocking(|| Cassandra::start(Profile::Benchmark));
        let (kafka, cassandra) = (kafka.await??, cassandra.await??);
        let session = table::open(&cassandra.contact).await?;
        Ok(Servers { kafka, cassandra, session })
    }

    /// Begins to measure both.
    pub(crate) fn meters(&self) -> anyhow::Result<Vec<Meter>> {
        let kafka = Meter::start("Kafka", self.kafka.pid().context("it was started here")?)?;
        let cassandra = Meter::start("Cassandra", self.cassandra.pid().context("it was started here")?)?;
        Ok(vec![kafka, cassandra])
    }

    /// Waits until the store has done what was put off: flushes and compactions of what came before.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        let pid = self.cassandra.pid().context("it was started here")?;
        let end = Instant::now() + REST_TIMEOUT;
        let mut before = cpu_s(pid)?;
        while Instant::now() < end {
            sleep(REST_LOOK).await;
            let now = cpu_s(pid)?;
            if now - before < REST_SHARE * REST_LOOK.as_secs_f64() {
                break;
            }
            before = now;
        }
        Ok(())
    }
}

/// Backstamp between the servers, with topics and a keyspace of its own.
pub(crate) struct Stack<'a> {
    /// What it stands on.
    pub(crate) servers: &'a Servers,
    /// Its tables.
    pub(crate) keyspace: String,
    program: PathBuf,
    prefix: String,
}

impl<'a> Stack<'a> {
    /// Makes the tables and topics of `program`.
    pub(crate) async fn start(servers: &'a Servers, program: &Path) -> anyhow::Result<Stack<'a>> {
        let keyspace = unique_name("loadtest");
        let prefix = format!("{keyspace}.");
        let stack = Stack { servers, keyspace, program: program.to_owned(), prefix };
        // A single node warns that it has but one copy.
        stack.run(&["schema", "apply", "--replication-factor", "1"]).await?;
        Ok(stack)
    }

    /// The whole name of a topic such as `mail.events`.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Starts `ingest`.
    pub(crate) async fn ingest(&self) -> anyhow::Result<Service> {
        Service::start(self.command(&["ingest", "--ops-listen", "127.0.0.1:0"])).await
    }

    /// Starts `query`, without a rate limit.
    pub(crate) async fn query(&self) -> anyhow::Result<Service> {
        let mut command = self.command(&["query", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
        command.env("BACKSTAMP_RATE_LIMIT", "off");
        Service::start(command).await
    }

    /// Makes a key of `account` that may read everything.
    pub(crate) async fn create_key(&self, account: &str) -> anyhow::Result<String> {
        let made = self
            .run(&[
                "keys",
                "create",
                "--json",
                "--account",
                account,
                "--permission",
                "campaigns:read,contacts:read",
            ])
            .await?;
        let answer: serde_json::Value = serde_json::from_str(&made)?;
        answer["key"].as_str().map(str::to_owned).context("`backstamp keys create` printed no key")
    }

    /// Removes the tables and topics: the next to be measured is not to pay for them.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        let names = ["mail.events", "mail.references", "mail.campaign-events", "mail.events.dead"];
        topic::delete(&self.servers.kafka.bootstrap, &names.map(|name| self.topic(name))).await?;
        table::drop_keyspace(&self.servers.session, &self.keyspace).await
    }

    /// Runs a tool to its end, and returns what it prints.
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        let done = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(TOOL_TIMEOUT, done).await??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`backstamp {}` failed: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let names = std::env::vars_os().map(|(name, _)| name);
        for name in names.filter(|name| name.as_encoded_bytes().starts_with(b"BACKSTAMP_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env("BACKSTAMP_KAFKA_BROKERS", &self.servers.kafka.bootstrap)
            .env("BACKSTAMP_TOPIC_PREFIX", &self.prefix)
            .env("BACKSTAMP_SCYLLA_NODES", &self.servers.cassandra.contact)
            .env("BACKSTAMP_KEYSPACE", &self.keyspace)
            .env("BACKSTAMP_LOG", "warn");
        command
    }
}

/// A service that is ready. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Service {
    /// Where it serves, `http://127.0.0.1:PORT`; `ingest` serves nothing.
    pub(crate) url: Option<String>,
    /// Where it shows its metrics.
    pub(crate) ops_url: Option<String>,
    server: Server,
}

impl Service {
    /// Starts `command`, and waits until it prints where it is ready.
    pub(crate) async fn start(command: Command) -> anyhow::Result<Service> {
        spawn_blocking(move || {
            let log = scratch::directory("service").join("log.txt");
            let ready =
                || fs::read_to_string(&log).unwrap_or_default().lines().find_map(addresses_when_ready);
            let server = server::start(command, &log, || ready().is_some())?;
            let Addresses { url, ops_url } = ready().context("it said so")?;
            Ok(Service { url, ops_url, server })
        })
        .await?
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Ends it when it has finished what it is at.
    pub(crate) async fn drain(self) -> anyhow::Result<()> {
        let terminate = SignalKind::terminate().as_raw_value();
        match spawn_blocking(move || self.server.end(terminate, DRAIN_TIMEOUT)).await?? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("a service ended by {status}"),
            None => bail!("a service did not end within {DRAIN_TIMEOUT:?}"),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Addresses {
    url: Option<String>,
    ops_url: Option<String>,
}

/// `backstamp query is ready: http://127.0.0.1:1 (ops http://127.0.0.1:2)`; `ingest` has only the second, other servers only the first.
fn addresses_when_ready(line: &str) -> Option<Addresses> {
    let (_, addresses) = line.split_once(" is ready: ")?;
    let (url, ops) = addresses.split_once('(').unwrap_or((addresses, ""));
    let given = |url: &str| Some(url.trim().to_owned()).filter(|url| !url.is_empty());
    let ops = ops.trim_end().trim_start_matches("ops ").trim_end_matches(')');
    Some(Addresses { url: given(url), ops_url: given(ops) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_says_where_it_is() {
        let both = |url: &str, ops: &str| {
            let given = |url: &str| Some(url.to_owned()).filter(|url| !url.is_empty());
            Some(Addresses { url: given(url), ops_url: given(ops) })
        };
        let line = "backstamp query is ready: http://127.0.0.1:1 (ops http://127.0.0.1:2)";
        assert_eq!(addresses_when_ready(line), both("http://127.0.0.1:1", "http://127.0.0.1:2"));
        let line = "backstamp ingest is ready: (ops http://127.0.0.1:2)";
        assert_eq!(addresses_when_ready(line), both("", "http://127.0.0.1:2"));
        let line = "loadtest bare-http is ready: http://127.0.0.1:1";
        assert_eq!(addresses_when_ready(line), both("http://127.0.0.1:1", ""));
        assert_eq!(addresses_when_ready("loading"), None);
    }
}
