//! Keys, permissions and the rate limit, and that they come before everything else.

use anyhow::ensure;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::{event, minutes_ago, new_id};
use crate::client::{Client, Reply, send};
use crate::model::Endpoint;
use crate::stack::{Account, PATIENCE, PERMISSIONS, Stack, path};
use crate::{eventually, unique_name};

const LIMIT_HEADERS: [&str; 3] = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];

fn code(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.body["error"]["code"].as_str().unwrap_or_default())
}

/// 401 before 403 before 400/422 before 404.
pub async fn the_key_comes_first_then_the_permission_the_query_and_existence(stack: &Stack) {
    let account = stack.account().await;
    let writer = account.with_permissions(&["events:write"]).await;
    let client = Client::new(stack.url()).expect("a client");
    let bad_campaign = "/v1/campaigns/cmp_never/events?page=0";
    let bad_contact = format!("/contacts/{}/events?page=0", new_id());
    for (path, no_key, no_permission, bad) in [
        (bad_campaign, "invalid_key", "insufficient_permissions", (400, "invalid_parameter")),
        (&bad_contact, "UNAUTHENTICATED", "FORBIDDEN", (422, "VALIDATION_ERROR")),
    ] {
        let unknown = format!("Bearer wbk_{}", "x".repeat(43));
        let basic = format!("Basic {}", account.key);
        for authorization in ["", "Bearer", "Bearer nonsense", "wbk_", &unknown, &basic] {
            let mut request = client.request(Method::GET, path);
            if !authorization.is_empty() {
                request = request.header("authorization", authorization);
            }
            let reply = send(request).await.expect("an answer");
            assert_eq!(code(&reply), (401, no_key), "{authorization}");
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
        assert_eq!(code(&writer.get(path).await), (403, no_permission));
        assert_eq!(code(&account.get(path).await), bad);
    }
    // The scheme is known in any case (RFC 9110, section 11.1).
    let request = client.request(Method::GET, "/v1/campaigns/cmp_never/events");
    let reply =
        send(request.header("authorization", format!("bearer {}", account.key))).await.expect("an answer");
    assert_eq!(code(&reply), (404, "campaign_not_found"));
    let intake = Client::new(stack.intake_url()).expect("a client");
    let reply = send(intake.request(Method::POST, "/v1/events").body("{")).await.expect("an answer");
    assert_eq!(code(&reply), (401, "invalid_key"));
    assert_eq!(reply.headers["www-authenticate"], "Bearer");
}

/// 403 before 429 before 400/422 before 404, each account by itself, reads and intake apart.
pub async fn the_rate_limit_comes_before_the_query_and_counts_reads_and_intake_apart(stack: &Stack) {
    let door = stack.another_door(&[("BACKSTAMP_RATE_LIMIT", "2/h")]).await;
    let account = door.account().await;
    let writer = account.with_permissions(&["events:write"]).await;
    let contact_path = path(Endpoint::Contact, &new_id(), "");
    let campaign_path = path(Endpoint::Campaign, "cmp_never", "");
    for remaining in ["1", "0"] {
        let reply = account.get(&contact_path).await;
        assert_eq!(code(&reply), (404, "RESOURCE_NOT_FOUND"));
        assert_eq!(reply.headers["x-ratelimit-limit"], "2");
        assert_eq!(reply.headers["x-ratelimit-remaining"], remaining);
    }
    for (path, code_of_limit) in [(&contact_path, "RATE_LIMITED"), (&campaign_path, "rate_limited")] {
        for query in ["", "?page=0"] {
            let reply = account.get(&format!("{path}{query}")).await;
            assert_eq!(code(&reply), (429, code_of_limit));
            let seconds = |name: &str| reply.headers[name].to_str().ok()?.parse::<u64>().ok();
            assert!(seconds("retry-after").is_some_and(|seconds| (1..=3600).contains(&seconds)));
            assert!(seconds("x-ratelimit-reset").is_some_and(|seconds| (1..=3600).contains(&seconds)));
            assert_eq!(reply.headers["x-ratelimit-remaining"], "0");
        }
        assert_eq!(writer.get(path).await.status, 403);
    }
    // What is not counted goes on, and so does the intake until it has had its own.
    assert_eq!(send(account.request(Method::OPTIONS, &contact_path)).await.expect("an answer").status, 204);
    for status in [400, 400, 429] {
        let reply = writer.post("/v1/events", "application/json", "{}").await;
        assert_eq!(reply.status, status, "{}", reply.body);
    }
    let reply = account.post("/v1/references", "application/json", "{}").await;
    assert_eq!(code(&reply), (429, "rate_limited"));
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(door.account().await.get(&contact_path).await.status, 404);
}

/// With `off` the three headers are left out.
pub async fn a_limit_that_is_off_is_not_shown(stack: &Stack) {
    let door = stack.another_door(&[("BACKSTAMP_RATE_LIMIT", "off")]).await;
    let account = door.account().await;
    let mut replies = vec![account.post("/v1/events", "application/json", "{}").await];
    for path in ["/v1/campaigns/c/events", "/v1/campaigns/c/events?page=0", "/contacts/c/events", "/nowhere"]
    {
        replies.push(account.get(path).await);
        replies.push(send(account.request(Method::DELETE, path)).await.expect("an answer"));
    }
    for reply in replies {
        assert!((400..500).contains(&reply.status));
        assert!(LIMIT_HEADERS.iter().all(|name| !reply.headers.contains_key(*name)), "{:?}", reply.headers);
    }
}

/// Each of the four permissions opens one thing, and nothing else.
pub async fn each_permission_opens_its_own_endpoint(stack: &Stack) {
    let name = unique_name("acc");
    for permission in PERMISSIONS {
        let key = stack.create_key(&name, &[permission]).await;
        let account = Account::new(stack, &name, &key);
        let replies = [
            ("campaigns:read", account.campaign("cmp_never", "").await, 404),
            ("contacts:read", account.contact(&new_id(), "").await, 404),
            ("events:write", account.post("/v1/events", "application/json", "[]").await, 400),
            ("references:write", account.post("/v1/references", "application/json", "[]").await, 400),
        ];
        for (needed, reply, open) in replies {
            let expected = if needed == permission { open } else { 403 };
            assert_eq!(reply.status, expected, "{needed} with {permission}");
            if reply.status == 403 {
                let message = reply.body["error"]["message"].as_str().unwrap_or_default();
                assert!(message.contains(needed), "{message}");
            }
        }
    }
}

/// Another account's ids answer exactly as ids that nobody has.
pub async fn what_is_anothers_is_unknown(stack: &Stack) {
    let (account, other) = (stack.account().await, stack.account().await);
    let (campaign, contact) = (new_id(), new_id());
    let more = json!({
        "contact_id": contact, "campaign_id": campaign, "list_id": "l", "email": "a@example.com", "message_id": "m",
    });
    account.publish(&[event("e", "send", minutes_ago(2), &more)]).await;
    account
        .refer(&[
            json!({ "kind": "campaign", "id": campaign, "name": "Secret" }),
            json!({ "kind": "contact", "id": contact, "email": "secret@example.com" }),
            json!({ "kind": "list", "id": "l", "name": "Secret" }),
        ])
        .await;
    account.campaign_has(&campaign, &["e"]).await;
    account.contact_has(&contact, &["e"]).await;
    for query in ["", "page=7&per_page=3", "type=sent", "type=nonsense", "page=0", "contact_id=x", "from=x"] {
        for (endpoint, taken) in [(Endpoint::Campaign, &campaign), (Endpoint::Contact, &contact)] {
            let foreign = other.get(&path(endpoint, taken, query)).await;
            let unknown = other.get(&path(endpoint, &new_id(), query)).await;
            assert!(foreign.status >= 400, "{query}: {}", foreign.body);
            assert_eq!((foreign.status, &foreign.body), (unknown.status, &unknown.body), "{query}");
            assert_eq!(lasting(&foreign.headers), lasting(&unknown.headers), "{query}");
        }
    }
    // Nor does another account's contact, list, message or name come through the account's own.
    let own = json!({ "contact_id": contact, "campaign_id": "own", "list_id": "l" });
    other.publish(&[event("o", "subscribe", minutes_ago(1), &own)]).await;
    other
        .publish(&[event("p", "open", minutes_ago(1), &json!({ "campaign_id": "own", "message_id": "m" }))])
        .await;
    let rows = other.contact_has(&contact, &["o"]).await;
    assert_eq!(rows[0]["list"], json!({ "uuid": "l", "name": null }));
    let rows = other.campaign_has("own", &["p"]).await;
    assert_eq!((&rows[0]["contact_id"], &rows[0]["email"]), (&Value::Null, &Value::Null));
    let reply = other.campaign("own", &format!("contact_id={contact}")).await;
    assert_eq!((reply.status, &reply.body["meta"]["total"]), (200, &json!(0)));
}

/// Headers that differ from one request to the next, whoever asks for what.
const PASSING: [&str; 5] =
    ["x-request-id", "date", "x-ratelimit-remaining", "x-ratelimit-reset", "x-backstamp-visible-until"];

/// The headers but for those that differ from one request to the next.
fn lasting(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !PASSING.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    headers.sort();
    headers
}

/// A key that is revoked stops working on every process, and no other key does.
pub async fn a_revoked_key_stops_working(stack: &Stack) {
    let account = stack.account().await;
    let other = account.with_permissions(&PERMISSIONS).await;
    let path = path(Endpoint::Contact, &new_id(), "");
    assert_eq!(account.get(&path).await.status, 404);
    assert_eq!(account.post("/v1/events", "application/json", "[]").await.status, 400);
    let keys = stack.run(&["keys", "list", "--json"]).await;
    let keys: Vec<Value> = serde_json::from_str(&keys.stdout).expect("a list of keys");
    let id =
        keys.iter().find(|key| key["account"] == account.name.as_str()).expect("the older key")["id"].clone();
    let revoked = stack.run(&["keys", "revoke", id.as_str().expect("an id")]).await;
    assert!(revoked.status.success(), "{revoked}");
    eventually(PATIENCE, async || {
        let read = account.get(&path).await;
        ensure!(code(&read) == (401, "UNAUTHENTICATED"), "it still reads: {}", read.body);
        let written = account.post("/v1/events", "application/json", "[]").await;
        ensure!(code(&written) == (401, "invalid_key"), "it still writes: {}", written.body);
        Ok(())
    })
    .await;
    assert_eq!(other.get(&path).await.status, 404);
}

/// A key works until it expires, and not after.
pub async fn an_expired_key_stops_working(stack: &Stack) {
    let name = unique_name("acc");
    let create = ["keys", "create", "--account", &name, "--permission", "contacts:read", "--expires"];
    let made = |output: &crate::program::Output| output.stdout.trim().to_owned();
    let lasting = made(&stack.run(&[&create[..], &["90d"]].concat()).await);
    let passing = made(&stack.run(&[&create[..], &["2s"]].concat()).await);
    let path = path(Endpoint::Contact, &new_id(), "");
    let (lasting, passing) = (Account::new(stack, &name, &lasting), Account::new(stack, &name, &passing));
    eventually(PATIENCE, async || {
        let reply = passing.get(&path).await;
        ensure!(code(&reply) == (401, "UNAUTHENTICATED"), "it still works: {}", reply.body);
        Ok(())
    })
    .await;
    assert_eq!(lasting.get(&path).await.status, 404);
}
