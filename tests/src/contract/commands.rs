//! The program as its operator meets it: keys, ready lines, health, metrics, an orderly end.

use std::fs;

use anyhow::ensure;
use reqwest::Method;
use serde_json::{Value, json};

use super::fixtures::schemas;
use super::new_id;
use crate::client::{Client, Reply, send};
use crate::stack::{Account, PATIENCE, Stack};
use crate::{eventually, unique_name};

async fn ops(service: &crate::program::Running, path: &str) -> Reply {
    let client = Client::new(service.ops_url()).expect("a client");
    send(client.request(Method::GET, path)).await.expect("an answer")
}

/// A key is printed once, alone on standard output; `list` never shows it, and `revoke` takes its id.
pub async fn keys_are_created_listed_and_revoked(stack: &Stack) {
    let name = unique_name("acc");
    let created = stack
        .run(&["keys", "create", "--account", &name, "--permission", "campaigns:read", "--expires", "90d"])
        .await;
    assert!(created.status.success(), "{created}");
    let key = created.stdout.trim();
    assert!(key.starts_with("wbk_") && key.lines().count() == 1, "{created}");
    let account = Account::new(stack, &name, key);
    assert_eq!(account.campaign("never", "").await.status, 404);

    let several = ["--permission", "campaigns:read", "contacts:read", "--permission", "events:write"];
    let created =
        stack.run(&[&["keys", "create", "--json", "--account", &name], &several[..]].concat()).await;
    let second: Value = serde_json::from_str(&created.stdout).expect("JSON");
    assert_eq!(
        second["permissions"],
        json!(["campaigns:read", "contacts:read", "events:write"]),
        "{created}"
    );

    let listed = stack.run(&["keys", "list"]).await;
    assert!(listed.status.success() && !listed.stdout.contains("wbk_"), "{listed}");
    let lines: Vec<&str> = listed.stdout.lines().filter(|line| line.contains(&name)).collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(lines[0].contains("campaigns:read") && lines[0].contains("expires 20"), "{listed}");
    assert!(lines[1].contains("events:write") && lines[1].contains("never expires"), "{listed}");

    let listed = stack.run(&["keys", "list", "--json"]).await;
    let all: Vec<Value> = serde_json::from_str(&listed.stdout).expect("JSON");
    let ours: Vec<&Value> = all.iter().filter(|one| one["account"] == name.as_str()).collect();
    assert_eq!((ours.len(), ours[0]["revoked_at"].clone()), (2, Value::Null));
    for _ in 0..2 {
        let revoked = stack.run(&["keys", "revoke", second["id"].as_str().expect("an id")]).await;
        assert!(revoked.status.success(), "{revoked}");
    }
    let listed = stack.run(&["keys", "list"]).await;
    let lines: Vec<&str> = listed.stdout.lines().filter(|line| line.contains(&name)).collect();
    assert!(lines[1].contains("revoked 20") && !lines[0].contains("revoked"), "{listed}");
}

/// What is no account, permission, span or id is refused with a word about it.
pub async fn bad_arguments_of_keys_are_refused(stack: &Stack) {
    let create = ["keys", "create", "--account"];
    for (arguments, word) in [
        (&["a:b", "--permission", "events:write"][..], "a:b"),
        (&["a", "--permission", "events:read"], "events:read"),
        (&["a"], "--permission"),
        (&["a", "--permission", "events:write", "--expires", "soon"], "soon"),
    ] {
        let output = stack.run(&[&create[..], arguments].concat()).await;
        assert!(!output.status.success() && output.stdout.is_empty(), "{output}");
        assert!(output.stderr.contains(word), "{output}");
    }
    let output = stack.run(&["keys", "revoke", "nosuchid"]).await;
    assert!(!output.status.success() && output.stderr.contains("nosuchid"), "{output}");
}

/// Each service prints one line with its addresses; alive and ready, it says so.
pub async fn services_say_that_they_are_ready(stack: &Stack) {
    for (name, service) in stack.services() {
        let line = format!("backstamp {name} is ready: ");
        let printed = service.stdout();
        assert_eq!(printed.lines().filter(|printed| printed.starts_with(&line)).count(), 1, "{printed}");
        assert!(printed.contains(service.ops_url()), "{printed}");
        assert_eq!(printed.lines().count(), 1, "{printed}");
        assert_eq!(ops(service, "/livez").await.status, 200);
        eventually(PATIENCE, async || {
            let reply = ops(service, "/readyz").await;
            ensure!(reply.status == 200, "{name}: {}", reply.body);
            Ok(())
        })
        .await;
        assert_eq!(ops(service, "/nowhere").await.status, 404);
    }
}

/// Metrics are in Prometheus' text format, under the names that the program declares, and say nothing about whom.
pub async fn metrics_count_what_happens_under_their_declared_names(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let open = |id: &str| {
        let more = json!({ "contact_id": contact, "campaign_id": "c" });
        super::event(id, "open", super::minutes_ago(1), &more)
    };
    account.publish(&[open("1")]).await;
    account.post("/v1/events", "application/json", open("2").to_string()).await;
    account.refer(&[json!({ "kind": "campaign", "id": "c", "name": "Spring" })]).await;
    account.campaign_has("c", &["2", "1"]).await;
    account.contact_has(&contact, &["2", "1"]).await;
    let declared = declared_metrics();
    eventually(PATIENCE, async || {
        let mut shown = String::new();
        for (service, running) in stack.services() {
            let reply = ops(running, "/metrics").await;
            assert_eq!(
                reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8",
                "{service}"
            );
            shown += reply.body.as_str().expect("text");
        }
        for line in shown.lines() {
            let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
            assert!(declared.iter().any(|declared| name.starts_with(declared)), "{line} is not declared");
        }
        // No metric is labelled with whom it is about.
        assert!(!shown.contains(&account.name) && !shown.contains("wbk_") && !shown.contains(&contact));
        for name in COUNTED {
            ensure!(shown.contains(&format!("# TYPE {name} ")), "{name} is not shown");
        }
        Ok(())
    })
    .await;
}

/// What any stack counts that took in an event and a reference and answered a page.
const COUNTED: [&str; 12] = [
    "backstamp_batch_duration_seconds",
    "backstamp_batch_records",
    "backstamp_consumer_lag_messages",
    "backstamp_consumer_lag_seconds",
    "backstamp_events_total",
    "backstamp_http_request_duration_seconds",
    "backstamp_http_requests_total",
    "backstamp_intake_records_total",
    "backstamp_key_lookups_total",
    "backstamp_references_total",
    "backstamp_rows_served_total",
    "backstamp_visible_delay_seconds",
];

/// The names in the program's one list of metrics.
fn declared_metrics() -> Vec<String> {
    let source = schemas().with_file_name("services/telemetry/src/metrics.rs");
    let source = fs::read_to_string(source).expect("can be read");
    let names = source.lines().filter_map(|line| line.trim().strip_prefix("\"backstamp_")?.split_once('"'));
    let names: Vec<String> = names.map(|(name, _)| format!("backstamp_{name}")).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in COUNTED {
        assert!(names.iter().any(|declared| declared == name), "{name} is not declared");
    }
    names
}

/// SIGTERM ends each of them with 0, whatever it was doing, and what was taken in before is there afterwards.
pub async fn sigterm_drains_and_ends_with_zero(stack: &Stack) {
    let stack = stack.another(&[]).await;
    let account = stack.account().await;
    let contact = new_id();
    let open = super::event("1", "open", super::minutes_ago(1), &json!({ "contact_id": contact }));
    account.publish(&[open]).await;
    account.contact_has(&contact, &["1"]).await;
    for (name, service) in stack.services() {
        let status = service.sigterm_and_wait().await;
        assert_eq!(status.code(), Some(0), "{name}: {}", service.stderr());
        assert!(!service.stderr().contains("panic"), "{name}: {}", service.stderr());
    }
}
