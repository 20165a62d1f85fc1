//! The schema is changed, then every service is restarted, one after another, under load behind HAProxy: no request and no event is
//! lost.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use backstamp_tests::client::{Client, Reply, send};
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::debian::{HAPROXY, tool};
use backstamp_tests::program::{Program, Running};
use backstamp_tests::prometheus::repository_file;
use backstamp_tests::servers::server::{self, Server};
use backstamp_tests::stack::PERMISSIONS;
use backstamp_tests::{eventually, scratch, servers, unique_name};
use reqwest::Method;
use scylla::client::session::Session;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(120);
/// Requests between two restarts, so that each is made under load.
const REQUESTS_BETWEEN: u64 = 100;
const READERS: usize = 3;
const WRITERS: usize = 2;

/// A service and how it is started again.
struct Service {
    /// Its name in HAProxy: `query/query1`; `ingest` has none.
    name: &'static str,
    arguments: Vec<String>,
    running: Running,
}

impl Service {
    async fn start(name: &'static str, arguments: Vec<String>, environment: &[(&str, &str)]) -> Service {
        let running = start(&arguments, environment).await;
        Service { name, arguments, running }
    }

    async fn restart(&mut self, environment: &[(&str, &str)]) {
        let status = self.running.sigterm_and_wait().await;
        assert_eq!(status.code(), Some(0), "{}", self.running.stderr());
        self.running = start(&self.arguments, environment).await;
    }
}

async fn start(arguments: &[String], environment: &[(&str, &str)]) -> Running {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Program::start(&arguments, environment).await
}

/// HAProxy with the file of `deploy/`, on free ports: its own two, then listen and ops of the four services.
fn start_haproxy() -> Result<([u16; 10], Server)> {
    let program = tool(HAPROXY, "haproxy");
    let template = repository_file("deploy/haproxy/haproxy.cfg");
    server::on_free_ports(|ports: [u16; 10]| {
        let directory = scratch::directory("haproxy");
        let written = [8000, 8404, 18081, 19461, 18082, 19462, 19081, 19561, 19082, 19562];
        let words: Vec<(String, String)> = written
            .iter()
            .zip(ports)
            .flat_map(|(from, to)| {
                [
                    (format!("127.0.0.1:{from}"), format!("127.0.0.1:{to}")),
                    (format!("check port {from}"), format!("check port {to}")),
                ]
            })
            .collect();
        let words: Vec<(&str, &str)> = words.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        let settings = server::write_settings(&directory.join("haproxy.cfg"), &template, &words)?;
        let mut command = program.command();
        command.arg("-db").arg("-f").arg(settings);
        let server = server::start(command, &directory.join("haproxy.log"), || server::accepts(ports[0]))?;
        Ok((ports, server))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_tables_and_then_every_service_loses_no_request_and_no_event() {
    let name = unique_name("rolling");
    let (kafka, cassandra) = tokio::join!(servers::kafka(), servers::cassandra());
    let topics = kafka.topics(&format!("{name}."));
    let [brokers, prefix] = topics.environment();
    let environment = [
        brokers,
        prefix,
        ("BACKSTAMP_SCYLLA_NODES", cassandra.contact.as_str()),
        ("BACKSTAMP_KEYSPACE", name.as_str()),
        ("BACKSTAMP_GROUP", name.as_str()),
        ("BACKSTAMP_RATE_LIMIT", "off"),
    ];
    let applied = Program::run(&["schema", "apply"], &environment).await;
    assert!(applied.status.success(), "{applied}");
    let key = Program::create_key("rolling", &PERMISSIONS, &environment).await;

    let (ports, _haproxy) = tokio::task::spawn_blocking(start_haproxy).await.unwrap().unwrap();
    let mut services = Vec::new();
    for (n, name) in
        ["query/query1", "query/query2", "collect/collect1", "collect/collect2"].into_iter().enumerate()
    {
        let subcommand = name.split('/').next().unwrap();
        let arguments = [
            subcommand.to_owned(),
            format!("--listen=127.0.0.1:{}", ports[2 + 2 * n]),
            format!("--ops-listen=127.0.0.1:{}", ports[3 + 2 * n]),
        ];
        services.push(Service::start(name, arguments.into(), &environment).await);
    }
    for _ in 0..2 {
        services.push(Service::start("ingest", vec!["ingest".to_owned()], &environment).await);
    }
    let (door, ops) = (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
    for service in &services {
        wait_until_up(&ops, service.name).await;
    }

    let (answered, accepted, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let contact = new_id();
    // A campaign is there from the start, so that reads find it.
    let post = async |client: &Client| -> Result<Reply> {
        let more = json!({ "contact_id": contact, "campaign_id": "c" });
        let body = event(&new_id(), "open", minutes_ago(1), &more).to_string();
        let request = client.request(Method::POST, "/v1/events").bearer_auth(&key);
        send(request.header("content-type", "application/json").body(body)).await
    };
    let client = Client::new(&door).unwrap();
    let read = async |path: &str| send(client.request(Method::GET, path).bearer_auth(&key)).await;
    assert_eq!(post(&client).await.unwrap().status, 202);
    accepted.fetch_add(1, Ordering::SeqCst);
    eventually(PATIENCE, async || {
        let reply = read("/v1/campaigns/c/events").await?;
        ensure!(reply.status == 200 && reply.body["meta"]["total"] == 1, "{} {}", reply.status, reply.body);
        Ok(())
    })
    .await;

    let reader = async || {
        let mut last = 0;
        while !is_over.load(Ordering::SeqCst) {
            let reply = read("/v1/campaigns/c/events?per_page=5").await.expect("a request is not lost");
            assert_eq!(reply.status, 200, "{}", reply.body);
            let total = reply.body["meta"]["total"].as_u64().unwrap();
            assert!(total >= last, "{total} after {last}");
            last = total;
            answered.fetch_add(1, Ordering::SeqCst);
        }
    };
    let writer = async || {
        let client = Client::new(&door).unwrap();
        while !is_over.load(Ordering::SeqCst) {
            let reply = post(&client).await.expect("a request is not lost");
            assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(1)), "{}", reply.body);
            accepted.fetch_add(1, Ordering::SeqCst);
            answered.fetch_add(1, Ordering::SeqCst);
        }
    };
    let wait_for_requests = async || {
        let before = answered.load(Ordering::SeqCst);
        eventually(PATIENCE, async || {
            let more = answered.load(Ordering::SeqCst) - before;
            ensure!(more >= REQUESTS_BETWEEN, "only {more} requests since");
            Ok(())
        })
        .await;
    };
    let upgrade = async {
        wait_for_requests().await;
        migrate_as_a_later_program(&cassandra.session().await, &name).await;
        let applied = Program::run(&["schema", "apply"], &environment).await;
        assert!(applied.status.success(), "{applied}");
        wait_for_requests().await;
        for service in &mut services {
            service.restart(&environment).await;
            wait_until_up(&ops, service.name).await;
            wait_for_requests().await;
        }
        is_over.store(true, Ordering::SeqCst);
    };
    tokio::join!(
        upgrade,
        futures::future::join_all((0..READERS).map(|_| reader())),
        futures::future::join_all((0..WRITERS).map(|_| writer())),
    );
    let accepted = accepted.load(Ordering::SeqCst);
    eventually(PATIENCE, async || {
        for (path, place) in [
            ("/v1/campaigns/c/events".to_owned(), "meta"),
            (format!("/contacts/{contact}/events"), "pagination"),
        ] {
            let reply = read(&path).await?;
            ensure!(reply.body[place]["total"] == accepted, "{} of {accepted}", reply.body[place]["total"]);
        }
        Ok(())
    })
    .await;
    eprintln!("{} requests answered, {accepted} events accepted and shown", answered.load(Ordering::SeqCst));
}

/// What a migration may do that suits the program before it: columns and tables that it does not know.
async fn migrate_as_a_later_program(session: &Session, keyspace: &str) {
    for statement in [
        format!("ALTER TABLE {keyspace}.timeline_rows ADD later text"),
        format!("ALTER TABLE {keyspace}.tallies ADD later text"),
        format!("CREATE TABLE {keyspace}.later (name text PRIMARY KEY)"),
        format!(
            "INSERT INTO {keyspace}.schema_migrations (version, name, checksum, applied_at)
             VALUES (9999, '9999_later', '0', toTimestamp(now()))"
        ),
    ] {
        session.query_unpaged(statement, ()).await.unwrap();
    }
}

/// Waits until HAProxy sends requests to a server of it again.
async fn wait_until_up(ops: &str, name: &str) {
    let Some((backend, server)) = name.split_once('/') else { return };
    let client = Client::new(ops).unwrap();
    eventually(PATIENCE, async || {
        let reply = send(client.request(Method::GET, "/metrics")).await?;
        let up = format!("haproxy_server_status{{proxy=\"{backend}\",server=\"{server}\",state=\"UP\"}} 1");
        let is_up = reply.body.as_str().is_some_and(|text| text.lines().any(|line| line == up));
        ensure!(is_up, "{name} is not up");
        Ok(())
    })
    .await;
}

#[test]
fn haproxy_finds_its_file_right() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/haproxy/haproxy.cfg");
    assert!(fs::exists(&file).unwrap());
    tool(HAPROXY, "haproxy").run(&["-c", "-f", &file.display().to_string()]);
}

/// The script starts what the compose file does, and ends all of it.
#[tokio::test]
async fn the_same_services_start_without_containers() {
    let name = unique_name("script");
    let (kafka, cassandra) = tokio::join!(servers::kafka(), servers::cassandra());
    let program = Program::path().await.display().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/without-containers.sh");
    let directory = scratch::directory("script");
    let log = directory.join("script.log");
    let (ports, started) = server::on_free_ports(|ports: [u16; 5]| {
        let address = |n: usize| format!("127.0.0.1:{}", ports[n]);
        let mut command = std::process::Command::new(&script);
        command
            .args([&program, &kafka.bootstrap, &cassandra.contact])
            .env("BACKSTAMP_TOPIC_PREFIX", format!("{name}."))
            .env("BACKSTAMP_KEYSPACE", &name)
            .env("BACKSTAMP_GROUP", &name)
            .env("QUERY_LISTEN", address(0))
            .env("QUERY_OPS", address(1))
            .env("COLLECT_LISTEN", address(2))
            .env("COLLECT_OPS", address(3))
            .env("INGEST_OPS", address(4));
        let is_up = || ports.iter().all(|port| server::accepts(*port));
        Ok((ports, server::start(command, &log, is_up)?))
    })
    .unwrap();
    let prefix = format!("{name}.");
    let environment = [
        ("BACKSTAMP_KAFKA_BROKERS", kafka.bootstrap.as_str()),
        ("BACKSTAMP_TOPIC_PREFIX", prefix.as_str()),
        ("BACKSTAMP_SCYLLA_NODES", cassandra.contact.as_str()),
        ("BACKSTAMP_KEYSPACE", name.as_str()),
    ];
    let key = Program::create_key("script", &PERMISSIONS, &environment).await;
    let contact = new_id();
    let intake = Client::new(&format!("http://127.0.0.1:{}", ports[2])).unwrap();
    let query = Client::new(&format!("http://127.0.0.1:{}", ports[0])).unwrap();
    let body = event(&new_id(), "open", minutes_ago(1), &json!({ "contact_id": contact })).to_string();
    let request = intake.request(Method::POST, "/v1/events").bearer_auth(&key).body(body);
    assert_eq!(send(request).await.unwrap().status, 202);
    eventually(PATIENCE, async || {
        let path = format!("/contacts/{contact}/events");
        let reply = send(query.request(Method::GET, &path).bearer_auth(&key)).await?;
        ensure!(reply.body["pagination"]["total"] == 1, "{}", reply.body);
        Ok(())
    })
    .await;
    let ended = started.end(libc::SIGTERM, PATIENCE).unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "{}", fs::read_to_string(&log).unwrap());
    assert!(!ports.iter().any(|port| server::accepts(*port)), "something still runs");
}
