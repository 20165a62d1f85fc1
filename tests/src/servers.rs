//! The real servers, from their jars, without containers: one Kafka and one Cassandra for a whole test process
//! ([`kafka()`], [`cassandra()`]), or some of a benchmark's own ([`Kafka::start`], [`Cassandra::start`]).
//!
//! Each starts when first asked for, on free ports of 127.0.0.1 and with empty data, and ends with the process.
//! What else runs beside them can be started the same way: [`server`]. Needed are a Java 17 (`java`, or the one of `JAVA_HOME`) and, once, Maven, which fetches the jars to the
//! build directory. Where a machine has servers already, the tests use their addresses in the environment
//! and start nothing:
//!
//! | variable | value |
//! | --- | --- |
//! | `BACKSTAMP_TEST_KAFKA` | bootstrap servers, `host:port[,host:port]` |
//! | `BACKSTAMP_TEST_SCYLLA` | a node's CQL address, `host:port` |
//!
//! Such servers keep what tests leave: see [`Topics::delete`] and [`Cassandra::drop_keyspace`].

mod cassandra;
pub mod jars;
pub mod java;
mod kafka;
pub mod server;

use std::sync::OnceLock;

use anyhow::Context;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

use crate::kafka::Topics;
use server::Server;

/// What servers are started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Up soon, light on a small machine; what a store acknowledges is on disk.
    Tests,
    /// As they would be run: the compilers, the collector and the commit log that their own start scripts choose.
    Benchmark,
}

/// The Kafka of this test process; starts it when nobody has.
///
/// # Panics
///
/// When it does not start, with what is missing or the end of its log. It is tried once a process.
pub async fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Result<Kafka, String>> = OnceLock::new();
    started_once(&KAFKA, || {
        Ok(match std::env::var("BACKSTAMP_TEST_KAFKA") {
            Ok(bootstrap) => Kafka { bootstrap, server: None },
            Err(_) => Kafka::start(Profile::Tests)?,
        })
    })
    .await
}

/// The Cassandra of this test process; starts it when nobody has.
///
/// # Panics
///
/// When it does not start, with what is missing or the end of its log. It is tried once a process.
pub async fn cassandra() -> &'static Cassandra {
    static CASSANDRA: OnceLock<Result<Cassandra, String>> = OnceLock::new();
    started_once(&CASSANDRA, || {
        Ok(match std::env::var("BACKSTAMP_TEST_SCYLLA") {
            Ok(contact) => Cassandra { contact, server: None },
            Err(_) => Cassandra::start(Profile::Tests)?,
        })
    })
    .await
}

/// A Kafka node.
pub struct Kafka {
    /// Bootstrap servers, `host:port`: what `BACKSTAMP_KAFKA_BROKERS` takes.
    pub bootstrap: String,
    server: Option<Server>,
}

impl Kafka {
    /// Starts a node with no data; it ends when dropped. Blocks until it answers.
    ///
    /// # Errors
    ///
    /// When it does not start: with what is missing, or the end of its log.
    pub fn start(profile: Profile) -> anyhow::Result<Self> {
        let (bootstrap, server) = kafka::start(profile).context("Kafka does not start")?;
        Ok(Self { bootstrap, server: Some(server) })
    }

    /// The number of its process; none where it was not started here.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// The topics whose names start with `prefix`: what `BACKSTAMP_TOPIC_PREFIX` takes. With a prefix from
    /// [`unique_name`](crate::unique_name) they are a test's own; with an empty one they are everybody's.
    pub fn topics(&self, prefix: &str) -> Topics {
        Topics::new(&self.bootstrap, prefix)
    }
}

/// A node that speaks CQL.
pub struct Cassandra {
    /// The node's CQL address, `host:port`: what `BACKSTAMP_SCYLLA_NODES` takes.
    pub contact: String,
    server: Option<Server>,
}

impl Cassandra {
    /// Starts a node with no data; it ends when dropped. Blocks until it answers.
    ///
    /// # Errors
    ///
    /// When it does not start: with what is missing, or the end of its log.
    pub fn start(profile: Profile) -> anyhow::Result<Self> {
        let (contact, server) = cassandra::start(profile).context("Cassandra does not start")?;
        Ok(Self { contact, server: Some(server) })
    }

    /// The number of its process; none where it was not started here.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// Holds it where it is, as a long pause would, or lets it go on.
    ///
    /// # Panics
    ///
    /// When it was not started here, or has ended.
    pub fn set_paused(&mut self, is_paused: bool) {
        let server = self.server.as_mut().expect("a node of ours");
        server.signal(if is_paused { libc::SIGSTOP } else { libc::SIGCONT }).expect("it runs");
    }

    /// A new session. It belongs to the runtime of the test that opens it.
    ///
    /// # Panics
    ///
    /// When the node does not answer.
    pub async fn session(&self) -> Session {
        let builder = SessionBuilder::new().known_node(&self.contact);
        Box::pin(builder.build()).await.expect("the node takes a session")
    }

    /// Drops a keyspace, if it is there.
    ///
    /// # Panics
    ///
    /// When the node refuses.
    pub async fn drop_keyspace(&self, keyspace: &str) {
        let drop = format!("DROP KEYSPACE IF EXISTS {keyspace}");
        self.session().await.query_unpaged(drop, ()).await.expect("the node drops a keyspace");
    }
}

/// Starts what `cell` is to hold, on a thread that may block. Who comes meanwhile waits; who comes later gets the same,
/// a failure too.
async fn started_once<T: Send + Sync>(
    cell: &'static OnceLock<Result<T, String>>,
    start: fn() -> anyhow::Result<T>,
) -> &'static T {
    let start = move || cell.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    match tokio::task::spawn_blocking(start).await.expect("starting a server does not panic") {
        Ok(server) => server,
        Err(message) => panic!("{message}"),
    }
}
