//! Kafka Connect with the DataStax sink engine: each record of a topic becomes a row of two tables, by campaign and by contact. It
//! filters nothing, drops no repeat but by overwriting it, and keeps no totals. What it is made of is in `loadtest/peers/kafka-connect`.
//!
//! One worker with two tasks. It is paused while its topic is filled, so that publishing does not take the processors from it, and its
//! compilers stay warm. The time begins with the first row seen. It ends when the last record of each partition shows in both tables; then all
//! rows are counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use backstamp_tests::servers::java::Java;
use backstamp_tests::servers::server::{self, Server};
use backstamp_tests::servers::{Profile, jars};
use backstamp_tests::{scratch, unique_name};
use chrono::{DateTime, Utc};
use reqwest::Client;
use scylla::statement::prepared::PreparedStatement;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::freshness::{self, Fresh, Load, Marker};
use super::servers::Servers;
use super::topic::{self, Outgoing, Publisher};
use super::{ACCOUNT, Measured, table};
use crate::measure::{Meter, Usage};
use crate::mix::Mix;

const POM: &str = include_str!("../../peers/kafka-connect/pom.xml");
const WORKER: &str = include_str!("../../peers/kafka-connect/worker.properties");
const SINK: &str = include_str!("../../peers/kafka-connect/sink.properties");
const LOG_SETTINGS: &str = include_str!("../../peers/kafka-connect/logback.xml");
const SOURCES: [(&str, &str); 2] = [
    ("DsSinkConnector.java", include_str!("../../peers/kafka-connect/src/peer/DsSinkConnector.java")),
    ("DsSinkTask.java", include_str!("../../peers/kafka-connect/src/peer/DsSinkTask.java")),
];

/// As many as `mail.events` has.
const PARTITIONS: i32 = 12;
const COMPILE_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the store is asked how far the rows are.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a load may take, and how long a request to Connect may take to have its effect.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1800);
const STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long rows may be missing that the engine has put off.
const MISSING_TIMEOUT: Duration = Duration::from_secs(60);

/// A worker that runs, and is paused between two loads. Dropping it kills it.
pub(crate) struct Connect<'a> {
    servers: &'a Servers,
    server: Server,
    http: Client,
    /// `http://127.0.0.1:PORT/connectors/NAME`
    url: String,
    /// The name of the topic, the keyspace and the connector.
    name: String,
    log: PathBuf,
    by_campaign: PreparedStatement,
    by_contact: PreparedStatement,
    /// Rows that are in each table.
    rows: u64,
}

impl<'a> Connect<'a> {
    /// Makes its topic and tables, and starts it. What it does first, it does slower: its compilers have to warm up.
    ///
    /// # Errors
    ///
    /// When Java's compiler or Maven is missing, or it does not start: with the end of its log.
    pub(crate) async fn start(servers: &'a Servers) -> anyhow::Result<Connect<'a>> {
        let name = unique_name("connect");
        create_tables(servers, &name).await?;
        let bootstrap = &servers.kafka.bootstrap;
        topic::create(bootstrap, &name, PARTITIONS).await?;
        topic::create(bootstrap, &dead_letters(&name), 1).await?;
        let (bootstrap, contact) = (bootstrap.clone(), servers.cassandra.contact.clone());
        let started = spawn_blocking({
            let name = name.clone();
            move || start_worker(&bootstrap, &contact, &name)
        });
        let Worker { server, port, log } = started.await??;
        let select = |table: &str, key: &str| {
            let select = format!("SELECT event_id FROM {name}.{table} WHERE {key} = ?");
            servers.session.prepare(select)
        };
        let by_campaign = select("by_campaign", "campaign_id").await?;
        let by_contact = select("by_contact", "contact_id").await?;
        let http = Client::builder().no_proxy().build()?;
        let url = format!("http://127.0.0.1:{port}/connectors/{name}");
        let connect = Connect { servers, server, http, url, name, log, by_campaign, by_contact, rows: 0 };
        connect.bring_to("RUNNING").await?;
        connect.put("pause").await?;
        connect.bring_to("PAUSED").await?;
        Ok(connect)
    }

    /// Fills the topic with a mix of events that were not published before; then lets Connect go, and measures until every row is in
    /// both tables.
    pub(crate) async fn flat_out(&mut self, mix: &Mix) -> anyhow::Result<Measured> {
        let (begin, end) = (Ends::new("begin"), Ends::new("end"));
        let publisher = self.publisher(20)?;
        let (filling, markers) = (mix.clone(), [begin.records()?, end.records()?]);
        spawn_blocking(move || {
            // Partitions are named below.
            ensure!(
                publisher.partitions()? == PARTITIONS,
                "the topic has other partitions than it was made with"
            );
            let [begin, end] = markers;
            let send_each = |records: Vec<Outgoing>| {
                (0..)
                    .zip(&records)
                    .try_for_each(|(partition, record)| publisher.send(record, Some(partition)))
            };
            send_each(begin)?;
            topic::fill(&publisher, &filling, to_their_form)?;
            send_each(end)?;
            publisher.finish()
        })
        .await??;
        self.rows += mix.count() + 2 * PARTITIONS.unsigned_abs() as u64;
        self.servers.settle().await?;

        let mut meters = vec![Meter::start("Kafka Connect", self.server.pid())?];
        meters.extend(self.servers.meters()?);
        self.put("resume").await?;
        let begun = Instant::now();
        while self.seen(&begin).await? == 0 {
            self.wait(begun).await?;
        }
        let begun = Instant::now();
        let mut seen = 0;
        while seen < 2 * PARTITIONS.unsigned_abs() as usize {
            seen = self.seen(&end).await?;
            self.wait(begun).await?;
        }
        let shown = Instant::now();
        let usage: Vec<Usage> = meters.iter().map(Meter::read).collect::<Result<_, _>>()?;
        // Where rows were put off, the end is when the count that found them began.
        let done = self.count_all(shown).await?;
        self.put("pause").await?;
        self.bring_to("PAUSED").await?;
        Ok(Measured {
            name: "Kafka Connect".to_owned(),
            how: "2 tasks, 500 requests at a time, batches of up to 32 rows of a partition".to_owned(),
            records: mix.arrivals(),
            seconds: (done - begun).as_secs_f64(),
            rows: 2 * mix.count(),
            usage,
        })
    }

    /// Measures how fresh both tables are under a load.
    pub(crate) async fn freshness(&mut self, load: Load<'_>) -> anyhow::Result<Fresh> {
        let mut meters = vec![Meter::start("Kafka Connect", self.server.pid())?];
        meters.extend(self.servers.meters()?);
        self.put("resume").await?;
        self.bring_to("RUNNING").await?;
        let is_visible = async |marker: &Marker| {
            Ok(self.rows_of(&self.by_campaign, &marker.id).await? == 1
                && self.rows_of(&self.by_contact, &marker.contact).await? == 1)
        };
        let publisher = self.publisher(freshness::LINGER_MS)?;
        let delays = freshness::measure(publisher, load, ACCOUNT, to_their_form, is_visible).await?;
        self.rows += load.mix.count() + delays.markers();
        let usage = meters.iter().map(Meter::read).collect::<Result<_, _>>()?;
        self.put("pause").await?;
        self.bring_to("PAUSED").await?;
        Ok(delays.of("Kafka Connect", usage))
    }

    /// Ends it, and removes its topics and tables.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        let Connect { servers, server, name, .. } = self;
        drop(server);
        topic::delete(&servers.kafka.bootstrap, &[dead_letters(&name), name.clone()]).await?;
        table::drop_keyspace(&servers.session, &name).await
    }

    fn publisher(&self, linger_ms: u32) -> anyhow::Result<Publisher> {
        Publisher::new(&self.servers.kafka.bootstrap, &self.name, linger_ms)
    }

    /// Counts until all rows are there. Returns when the last row was there at the latest: at `shown`, if the first count finds all.
    async fn count_all(&self, shown: Instant) -> anyhow::Result<Instant> {
        let mut begun = shown;
        loop {
            let session = &self.servers.session;
            let by_campaign =
                table::count_rows(session, &format!("{}.by_campaign", self.name), "campaign_id").await?;
            let by_contact =
                table::count_rows(session, &format!("{}.by_contact", self.name), "contact_id").await?;
            if (by_campaign, by_contact) == (self.rows, self.rows) {
                return Ok(begun);
            }
            ensure!(
                begun < shown + MISSING_TIMEOUT,
                "{by_campaign} and {by_contact} rows are in the tables, not {}; the log of Connect:\n{}",
                self.rows,
                self.log_end()
            );
            begun = Instant::now();
            sleep(LOOK_EVERY).await;
        }
    }

    /// How many rows of these ends there are in both tables together.
    async fn seen(&self, ends: &Ends) -> anyhow::Result<usize> {
        let by_campaign = self.rows_of(&self.by_campaign, &ends.campaign);
        let by_contact = self.rows_of(&self.by_contact, &ends.contact);
        let (by_campaign, by_contact) = tokio::try_join!(by_campaign, by_contact)?;
        Ok(by_campaign + by_contact)
    }

    async fn rows_of(
        &self,
        select: &PreparedStatement,
        key: &(impl scylla::serialize::value::SerializeValue + Sync),
    ) -> anyhow::Result<usize> {
        let answer = self.servers.session.execute_unpaged(select, (key,)).await?;
        Ok(answer.into_rows_result()?.rows_num())
    }

    /// A pause between two looks at a load that began at `begun`.
    async fn wait(&self, begun: Instant) -> anyhow::Result<()> {
        ensure!(begun.elapsed() < LOAD_TIMEOUT, "Connect does not get done; its log:\n{}", self.log_end());
        sleep(LOOK_EVERY).await;
        Ok(())
    }

    async fn put(&self, action: &str) -> anyhow::Result<()> {
        let response = self.http.put(format!("{}/{action}", self.url)).send().await?;
        response.error_for_status().with_context(|| format!("Connect does not {action}"))?;
        Ok(())
    }

    /// Waits until the connector and all its tasks are in a state.
    async fn bring_to(&self, state: &str) -> anyhow::Result<()> {
        let end = Instant::now() + STATE_TIMEOUT;
        loop {
            let response = self.http.get(format!("{}/status", self.url)).send().await?;
            let status: Value = response.json().await.unwrap_or_default();
            let tasks = status["tasks"].as_array().map_or(&[][..], Vec::as_slice);
            let is_in = |part: &Value| part["state"] == *state;
            if !tasks.is_empty() && tasks.iter().all(is_in) && is_in(&status["connector"]) {
                return Ok(());
            }
            if Instant::now() > end || tasks.iter().any(|task| task["state"] == "FAILED") {
                bail!("Connect is not {state}: {status}; its log:\n{}", self.log_end());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// The first or last records of all partitions: one in each, all of one campaign and one contact.
struct Ends {
    campaign: String,
    contact: Uuid,
}

impl Ends {
    fn new(name: &str) -> Ends {
        Ends { campaign: unique_name(name), contact: Uuid::new_v4() }
    }

    fn records(&self) -> anyhow::Result<Vec<Outgoing>> {
        let records = (0..PARTITIONS).map(|partition| {
            let event = json!({
                "id": partition.to_string(),
                "type": "open",
                "occurred_at": "2026-01-01T00:00:00Z",
                "campaign_id": self.campaign,
                "contact_id": self.contact,
            });
            Ok(Outgoing { key: self.campaign.clone(), value: to_their_form(event.to_string().as_bytes())? })
        });
        records.collect()
    }
}

/// An event as `mail.events` takes it, as far as the tables have it.
#[derive(Deserialize)]
struct Ours<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    occurred_at: DateTime<Utc>,
    campaign_id: &'a str,
    contact_id: &'a str,
    list_id: Option<&'a str>,
    automation_id: Option<&'a str>,
    email: Option<&'a str>,
    url: Option<&'a str>,
}

/// The same as the sink takes it: an absent field would be an error, a null is left unset.
#[derive(Serialize)]
struct Theirs<'a> {
    campaign_id: &'a str,
    ts: i64,
    event_id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    contact_id: &'a str,
    list_id: Option<&'a str>,
    automation_id: Option<&'a str>,
    email: Option<&'a str>,
    url: Option<&'a str>,
}

fn to_their_form(record: &[u8]) -> anyhow::Result<Vec<u8>> {
    let ours: Ours<'_> = serde_json::from_slice(record)?;
    Ok(serde_json::to_vec(&Theirs {
        campaign_id: ours.campaign_id,
        ts: ours.occurred_at.timestamp_millis(),
        event_id: ours.id,
        kind: ours.kind,
        contact_id: ours.contact_id,
        list_id: ours.list_id,
        automation_id: ours.automation_id,
        email: ours.email,
        url: ours.url,
    })?)
}

fn dead_letters(topic: &str) -> String {
    format!("{topic}_dead")
}

async fn create_tables(servers: &Servers, keyspace: &str) -> anyhow::Result<()> {
    table::create_keyspace(&servers.session, keyspace).await?;
    let columns = "campaign_id text, contact_id uuid, ts timestamp, event_id text, type text, list_id text,
        automation_id text, email text, url text";
    for (table, key) in [("by_campaign", "campaign_id"), ("by_contact", "contact_id")] {
        let create = format!(
            "CREATE TABLE {keyspace}.{table} ({columns}, PRIMARY KEY (({key}), ts, event_id))
             WITH CLUSTERING ORDER BY (ts DESC, event_id DESC)"
        );
        servers.session.query_unpaged(create, ()).await?;
    }
    servers.session.await_schema_agreement().await?;
    Ok(())
}

struct Worker {
    server: Server,
    port: u16,
    log: PathBuf,
}

/// Compiles the connector and starts the worker. `name` is that of its topic, its keyspace and itself.
fn start_worker(bootstrap: &str, contact: &str, name: &str) -> anyhow::Result<Worker> {
    let jars = jars::fetch("kafka-connect", POM)?;
    let directory = scratch::directory("connect");
    let log = directory.join("connect.log");
    compile(&directory, &jars, &log)?;
    fs::write(directory.join("logback.xml"), LOG_SETTINGS)?;
    let cql_port = contact.rsplit_once(':').map_or(contact, |(_, port)| port);
    let sink = server::write_settings(
        &directory.join("sink.properties"),
        SINK,
        &[
            ("@NAME@", name),
            ("@TOPIC@", name),
            ("@KEYSPACE@", name),
            ("@DEAD@", &dead_letters(name)),
            ("@CQL_PORT@", cql_port),
        ],
    )?;
    server::on_free_ports(|[port]| {
        let worker = server::write_settings(
            &directory.join("worker.properties"),
            WORKER,
            &[
                ("@BOOTSTRAP@", bootstrap),
                ("@DIR@", &directory.display().to_string()),
                ("@PORT@", &port.to_string()),
            ],
        )?;
        let classpath = format!("{}/classes:{}/*", directory.display(), jars.display());
        let mut command = Java::find()?.command(Profile::Benchmark, &directory, &classpath);
        // What its own start script gives it.
        command.args(["-Xms256m", "-Xmx2g"]);
        command.arg(format!("-Dlogback.configurationFile={}/logback.xml", directory.display()));
        command.arg("org.apache.kafka.connect.cli.ConnectStandalone").arg(worker).arg(&sink);
        let server =
            server::start(command, &log, || server::accepts(port)).context("Kafka Connect does not start")?;
        Ok(Worker { server, port, log: log.clone() })
    })
}

fn compile(directory: &Path, jars: &Path, log: &Path) -> anyhow::Result<()> {
    let home = std::env::var_os("JAVA_HOME");
    let compiler = home.map_or_else(|| "javac".into(), |home| PathBuf::from(home).join("bin/javac"));
    let mut command = Command::new(&compiler);
    command.args(["--release", "17", "-cp"]).arg(format!("{}/*", jars.display()));
    command.arg("-d").arg(directory.join("classes"));
    for (name, source) in SOURCES {
        fs::write(directory.join(name), source)?;
        command.arg(directory.join(name));
    }
    match server::run_to_end(command, log, COMPILE_TIMEOUT) {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(server::failure("the connector does not compile", log)),
        Err(error) => Err(error).with_context(|| {
            format!(
                "{} cannot be run. Debian and Ubuntu: apt-get install openjdk-17-jdk-headless",
                compiler.display()
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_rewritten_for_the_sink() {
        let ours = br#"{"id":"evt_1","account_id":"acme","type":"click","occurred_at":"1970-01-01T00:00:01.5Z","contact_id":"c",
            "campaign_id":"cmp","url":"https://books.example","metadata":{}}"#;
        let theirs = to_their_form(ours).expect("an event");
        let want = r#"{"campaign_id":"cmp","ts":1500,"event_id":"evt_1","type":"click","contact_id":"c","list_id":null,"automation_id":null,"email":null,"url":"https://books.example"}"#;
        assert_eq!(String::from_utf8(theirs).expect("text"), want);
    }

    #[test]
    fn the_sink_is_told_of_every_word() {
        for template in [WORKER, SINK] {
            let words =
                ["@NAME@", "@TOPIC@", "@KEYSPACE@", "@DEAD@", "@CQL_PORT@", "@BOOTSTRAP@", "@DIR@", "@PORT@"];
            let filled =
                words.iter().fold(template.replace("@...@", ""), |text, word| text.replace(word, "x"));
            assert!(!filled.contains('@'), "{filled}");
        }
    }
}
