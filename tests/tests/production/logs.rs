//! What is logged: a JSON object a line, with what it is about, and never whom.

use backstamp_tests::contract::new_id;
use backstamp_tests::eventually;
use backstamp_tests::model::Endpoint;
use backstamp_tests::stack::{PATIENCE, Stack, path};
use reqwest::Method;
use serde_json::Value;

use super::load;

/// Ours in every detail, and of the libraries what they say by default.
const EVERYTHING_OF_OURS: &str = "info,backstamp=debug,collect=debug,edge=debug,event_log=debug,event_store=debug,ingest=debug,query=debug,telemetry=debug";

#[tokio::test]
async fn logs_are_json_with_the_requests_id_and_hold_no_address_and_no_key() {
    let stack = Stack::real_with(&[
        ("BACKSTAMP_LOG_FORMAT", "json"),
        ("BACKSTAMP_LOG", EVERYTHING_OF_OURS),
        ("BACKSTAMP_RATE_LIMIT", "off"),
    ])
    .await;
    let account = stack.account().await;
    let contacts: Vec<String> = (0..3).map(|_| new_id()).collect();
    for round in 0..3 {
        load::one_round(&stack, &account, &contacts, round).await;
    }
    // Addresses where none belong.
    for bad in [
        "/v1/campaigns/jane@example.com/events",
        "/contacts/jane@example.com/events?page=jane@example.com",
        "/jane@example.com",
    ] {
        account.get(bad).await;
    }
    account
        .post("/v1/events", "application/json", r#"{"id":"jane@example.com","type":"jane@example.com"}"#)
        .await;
    let letter = br#"{"id":"e1","account_id":"jane@example.com","type":"open","email":"jane@example.com"}"#;
    stack.topics().unwrap().publish("mail.events", None, letter, None).await;
    let given = new_id();
    let request = account.request(Method::GET, &path(Endpoint::Contact, &contacts[0], ""));
    request.header("x-request-id", &given).send().await.unwrap();
    account.settle().await;

    let query = &stack.services()[0].1;
    eventually(PATIENCE, async || {
        anyhow::ensure!(query.stderr().contains(&given), "the request is not logged");
        Ok(())
    })
    .await;
    for (name, service) in stack.services() {
        let log = service.stderr();
        let mut lines = 0;
        for line in log.lines() {
            let fact: Value =
                serde_json::from_str(line).unwrap_or_else(|_| panic!("{name}: no JSON: {line}"));
            for field in ["timestamp", "level", "message", "target"] {
                assert!(fact[field].is_string(), "{name}: no {field}: {line}");
            }
            lines += 1;
        }
        assert!(lines > 1, "{name} logs nothing");
        for secret in ["jane", "example.com", "wbk_", account.key.as_str(), &contacts[0]] {
            let line = log.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{name} logs {secret}: {}", line.unwrap_or_default());
        }
    }
    let log = query.stderr();
    let about: Vec<&str> = log.lines().filter(|line| line.contains(&given)).collect();
    let fact: Value = serde_json::from_str(about[0]).unwrap();
    assert_eq!(fact["span"]["request_id"], given.as_str(), "{fact}");
    assert_eq!(fact["span"]["route"], "/contacts/{uuid}/events", "{fact}");
}
