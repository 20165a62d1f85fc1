//! Backstamp as a client sees it, whichever way it is run: [`Stack::dev`] in one process over HTTP, or
//! [`Stack::real`] as `ingest`, `query` and `collect` between a real Kafka and a real CQL store.
//!
//! A check that takes a `&Stack` publishes through an [`Account`] and reads back over HTTP. It cannot tell the two
//! apart, and neither should the answers.

mod account;

use tokio::sync::OnceCell;

use crate::kafka::Topics;
use crate::program::{Output, Program, Running};
use crate::{scratch, servers, unique_name};

pub use account::{Account, PATIENCE, path, shown_uuid};

/// Patterns of list-management links that every stack is started with.
pub const LIST_MANAGEMENT_URLS: &str =
    "links.example/u/*,*.lists.example/leave/**,links.example/go?action=unsubscribe";
/// Every permission.
pub const PERMISSIONS: [&str; 4] = ["campaigns:read", "contacts:read", "events:write", "references:write"];

/// A running Backstamp with data of its own.
pub struct Stack {
    /// What it was started with, on top of where its data is.
    place: Place,
    query: Running,
    /// What takes events over HTTP and what projects them, where these are processes of their own.
    others: Option<Others>,
}

/// Where the data is.
#[derive(Clone)]
enum Place {
    Dev { data: String },
    Real(Real),
}

/// The names that a real stack has for itself.
#[derive(Clone)]
struct Real {
    bootstrap: String,
    contact: String,
    prefix: String,
    keyspace: String,
    group: String,
}

struct Others {
    collect: Running,
    /// Missing where another stack projects for this one.
    ingest: Option<Running>,
    topics: Topics,
}

impl Stack {
    /// `backstamp dev` on an empty directory.
    pub async fn dev() -> Self {
        Self::dev_with(&[]).await
    }

    /// `backstamp dev` on an empty directory, with other settings.
    pub async fn dev_with(settings: &[(&str, &str)]) -> Self {
        let data = scratch::directory("dev").display().to_string();
        let environment = with_defaults(&[("BACKSTAMP_DATA", &data)], settings);
        let query = Program::start(&["dev"], &environment).await;
        Self { query, others: None, place: Place::Dev { data } }
    }

    /// `ingest`, `query` and `collect` on topics and a keyspace of their own.
    pub async fn real() -> Self {
        Self::start_real(&[]).await
    }

    /// As [`real`](Self::real), with other settings.
    pub async fn real_with(settings: &[(&str, &str)]) -> Self {
        Self::start_real(settings).await
    }

    /// The stack that all tests of a binary share: the first to ask starts it.
    pub async fn shared_dev() -> &'static Self {
        static STACK: OnceCell<Stack> = OnceCell::const_new();
        STACK.get_or_init(Self::dev).await
    }

    /// As [`shared_dev`](Self::shared_dev), on real servers.
    pub async fn shared_real() -> &'static Self {
        static STACK: OnceCell<Stack> = OnceCell::const_new();
        STACK.get_or_init(Self::real).await
    }

    /// Another stack of the same kind with data of its own, and other settings.
    pub async fn another(&self, settings: &[(&str, &str)]) -> Self {
        match &self.place {
            Place::Dev { .. } => Self::dev_with(settings).await,
            Place::Real(_) => Self::start_real(settings).await,
        }
    }

    /// What answers with other settings: `query` and `collect` on the same data, or another `dev`.
    pub async fn another_door(&self, settings: &[(&str, &str)]) -> Self {
        match &self.place {
            Place::Dev { .. } => Self::dev_with(settings).await,
            Place::Real(real) => Self::start_services(real.clone(), settings, false).await,
        }
    }

    async fn start_real(settings: &[(&str, &str)]) -> Self {
        let (kafka, cassandra) = tokio::join!(servers::kafka(), servers::cassandra());
        let real = Real {
            bootstrap: kafka.bootstrap.clone(),
            contact: cassandra.contact.clone(),
            prefix: format!("{}.", unique_name("contract")),
            keyspace: unique_name("contract"),
            group: unique_name("contract"),
        };
        let environment = with_defaults(&real.environment(), settings);
        let applied = Program::run(
            &["schema", "apply"],
            &[&environment[..], &[("BACKSTAMP_EVENTS_PARTITIONS", "3")]].concat(),
        )
        .await;
        assert!(applied.status.success(), "{applied}");
        Self::start_services(real, settings, true).await
    }

    async fn start_services(real: Real, settings: &[(&str, &str)], with_ingest: bool) -> Self {
        let environment = with_defaults(&real.environment(), settings);
        let ingest = async {
            if !with_ingest {
                return None;
            }
            Some(Program::start(&["ingest", "--group", &real.group], &environment).await)
        };
        let (ingest, query, collect) = tokio::join!(
            ingest,
            Program::start(&["query"], &environment),
            Program::start(&["collect"], &environment),
        );
        let topics = servers::kafka().await.topics(&real.prefix);
        Self { query, others: Some(Others { collect, ingest, topics }), place: Place::Real(real) }
    }

    /// Where the two endpoints are, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        self.query.url()
    }

    /// Where the intake is.
    pub fn intake_url(&self) -> &str {
        self.others.as_ref().map_or(self.query.url(), |others| others.collect.url())
    }

    /// Whether one process serves reads and intake.
    pub fn is_one_process(&self) -> bool {
        self.others.is_none()
    }

    /// The topics, where there are any.
    pub fn topics(&self) -> Option<&Topics> {
        self.others.as_ref().map(|others| &others.topics)
    }

    /// The consumer group of `ingest`; empty where there is none.
    pub fn group(&self) -> &str {
        match &self.place {
            Place::Dev { .. } => "",
            Place::Real(real) => &real.group,
        }
    }

    /// Every process, with the subcommand that it is.
    pub fn services(&self) -> Vec<(&'static str, &Running)> {
        let Some(others) = &self.others else { return vec![("dev", &self.query)] };
        let ingest = others.ingest.as_ref().map(|ingest| ("ingest", ingest));
        [("query", &self.query), ("collect", &others.collect)].into_iter().chain(ingest).collect()
    }

    /// Where the data is, for tools such as `keys` and `schema`.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        match &self.place {
            Place::Dev { data } => {
                vec![("BACKSTAMP_DATA", data), ("BACKSTAMP_OPS_LISTEN", self.query.ops_address())]
            }
            Place::Real(real) => real.environment().to_vec(),
        }
    }

    /// Runs a tool on the stack's data, such as `keys list`.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        Program::run(arguments, &self.environment()).await
    }

    /// Creates a key.
    pub async fn create_key(&self, account: &str, permissions: &[&str]) -> String {
        Program::create_key(account, permissions, &self.environment()).await
    }

    /// An account of its own, with a key that has every permission.
    pub async fn account(&self) -> Account<'_> {
        self.account_named(&unique_name("acc")).await
    }

    /// An account of this name, with a key that has every permission.
    pub async fn account_named(&self, name: &str) -> Account<'_> {
        let key = self.create_key(name, &PERMISSIONS).await;
        Account::new(self, name, &key)
    }
}

impl Real {
    fn environment(&self) -> [(&'static str, &str); 4] {
        [
            ("BACKSTAMP_KAFKA_BROKERS", &self.bootstrap),
            ("BACKSTAMP_TOPIC_PREFIX", &self.prefix),
            ("BACKSTAMP_SCYLLA_NODES", &self.contact),
            ("BACKSTAMP_KEYSPACE", &self.keyspace),
        ]
    }
}

/// The environment of a service: later settings win.
fn with_defaults<'a>(
    place: &[(&'a str, &'a str)],
    settings: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    [&[("BACKSTAMP_LIST_MANAGEMENT_URLS", LIST_MANAGEMENT_URLS)], place, settings].concat()
}
