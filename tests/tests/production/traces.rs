//! Traces: what a request and a record belong to arrives at a collector, over OTLP.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::eventually;
use backstamp_tests::model::Endpoint;
use backstamp_tests::stack::{PATIENCE, Stack, path};
use reqwest::Method;
use serde_json::json;

/// A collector that takes whatever it is sent, and remembers it.
struct Collector {
    address: String,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, bodies) = (format!("http://{}", listener.local_addr().unwrap()), Arc::default());
        let taken = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let taken = Arc::clone(&taken);
                std::thread::spawn(move || converse(stream, &taken));
            }
        });
        Collector { address, bodies }
    }

    /// Whether somebody sent these bytes.
    fn has(&self, bytes: &[u8]) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().any(|body| body.windows(bytes.len()).any(|window| window == bytes))
    }
}

/// Takes requests of one connection, until it ends.
fn converse(mut stream: TcpStream, taken: &Mutex<Vec<Vec<u8>>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
    let mut held = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        if let Some((head, body)) = whole_request(&held) {
            assert!(held.starts_with(b"POST /v1/traces HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&held));
            taken.lock().unwrap().push(held[head..head + body].to_vec());
            held.drain(..head + body);
            let answer =
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => held.extend_from_slice(&buffer[..read]),
        }
    }
}

/// Where the head of a request ends, and how long its body is, if all of it is there.
fn whole_request(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    (bytes.len() >= head + length).then_some((head, length))
}

/// A new trace: its id in hexadecimal and as it is sent, and a `traceparent` that belongs to it.
fn new_trace() -> (String, Vec<u8>, String) {
    let id = new_id().replace('-', "");
    let bytes = (0..16).map(|n| u8::from_str_radix(&id[2 * n..2 * n + 2], 16).unwrap()).collect();
    let traceparent = format!("00-{id}-b7ad6b7169203331-01");
    (id, bytes, traceparent)
}

#[tokio::test]
async fn requests_and_records_are_part_of_the_trace_that_they_name() {
    let collector = Collector::start();
    let stack = Stack::real_with(&[
        ("BACKSTAMP_OTLP_ENDPOINT", &collector.address),
        ("BACKSTAMP_LOG", "info,edge=debug"),
        ("BACKSTAMP_LOG_FORMAT", "json"),
    ])
    .await;
    let account = stack.account().await;
    let contact = new_id();
    let (of_read, of_post) = (new_trace(), new_trace());
    let request = account.request(Method::GET, &path(Endpoint::Contact, &contact, ""));
    request.header("traceparent", &of_read.2).send().await.unwrap();
    let body = event(&new_id(), "open", minutes_ago(1), &json!({ "contact_id": contact })).to_string();
    let request = account.intake_request("/v1/events").header("traceparent", &of_post.2);
    assert_eq!(request.body(body).send().await.unwrap().status(), 202);

    // The processes send what they have every few seconds, and when they end.
    account.settle().await;
    for (_, service) in stack.services() {
        service.sigterm_and_wait().await;
    }
    eventually(PATIENCE, async || {
        for (what, wanted) in [
            ("the read", &of_read.1[..]),
            ("the intake", &of_post.1),
            ("its route", b"/contacts/{uuid}/events"),
            ("who", b"backstamp-query"),
            ("who took it in", b"backstamp-collect"),
            // By the header of the record, across Kafka.
            ("who placed it", b"backstamp-ingest"),
            ("where it stood", b"mail.events"),
        ] {
            ensure!(collector.has(wanted), "the collector knows nothing of {what}");
        }
        Ok(())
    })
    .await;
    // The span of the first stage belongs to the trace of the post: its batch of spans names both.
    let bodies = collector.bodies.lock().unwrap();
    let contains = |body: &[u8], bytes: &[u8]| body.windows(bytes.len()).any(|window| window == bytes);
    let placed = bodies.iter().any(|body| contains(body, b"backstamp-ingest") && contains(body, &of_post.1));
    assert!(placed, "ingest sent no span of the post's trace");
    drop(bodies);
    // The same id is in the log.
    let logs: BTreeSet<bool> =
        stack.services().iter().map(|(_, service)| service.stderr().contains(&of_read.0)).collect();
    assert!(logs.contains(&true), "no log line names the trace");
    for secret in [account.key.as_str(), "wbk_"] {
        assert!(!collector.has(secret.as_bytes()), "a span holds a key");
    }
}

/// A collector that is not there holds nothing up.
#[tokio::test]
async fn a_collector_that_is_away_holds_nothing_up() {
    let stack = Stack::dev_with(&[("BACKSTAMP_OTLP_ENDPOINT", "http://127.0.0.1:9")]).await;
    let account = stack.account().await;
    let contact = new_id();
    account.publish(&[event("1", "open", minutes_ago(1), &json!({ "contact_id": contact }))]).await;
    account.contact_has(&contact, &["1"]).await;
    let status = stack.services()[0].1.sigterm_and_wait().await;
    assert_eq!(status.code(), Some(0));
}
