//! Methods, headers, envelopes, compression.

use std::io::Read;

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{event, minutes_ago, new_id};
use crate::client::{Client, Prefix, Reply, send};
use crate::eventually;
use crate::model::Endpoint;
use crate::stack::{Account, PATIENCE, Stack, path};

async fn ask(account: &Account<'_>, method: &Method, path: &str) -> Reply {
    send(account.request(method.clone(), path)).await.expect("an answer")
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The caller's `X-Request-Id` comes back; without one there is a new one each time.
pub async fn a_request_id_is_kept_or_made(stack: &Stack) {
    let account = stack.account().await;
    for (path, status) in
        [("/v1/campaigns/c/events", 404), ("/v1/campaigns/c/events?page=0", 400), ("/x", 404)]
    {
        let request = account.request(Method::GET, path).header("x-request-id", "req-42.a:b");
        let reply = send(request).await.expect("an answer");
        assert_eq!((reply.status, reply.headers["x-request-id"].to_str().ok()), (status, Some("req-42.a:b")));
        let ids = [account.get(path).await, account.get(path).await].map(|reply| {
            let id = reply.headers["x-request-id"].to_str().expect("text").to_owned();
            Uuid::try_parse(&id).expect("a UUID")
        });
        assert_ne!(ids[0], ids[1]);
    }
    let request = account.intake_request("/v1/events").header("x-request-id", "mine").body("[]");
    assert_eq!(send(request).await.expect("an answer").headers["x-request-id"], "mine");
}

/// The instant in `X-Backstamp-Visible-Until`.
fn visible_until(reply: &Reply) -> anyhow::Result<DateTime<Utc>> {
    let shown = reply.headers.get("x-backstamp-visible-until").context("no word of what is visible")?;
    Ok(DateTime::parse_from_rfc3339(shown.to_str()?)?.to_utc())
}

/// What was published until then shows in the very answer that says so. It goes on where nothing is published, and never back.
pub async fn every_answer_says_until_when_everything_is_visible(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let (of_campaign, of_contact) =
        (path(Endpoint::Campaign, "c", ""), path(Endpoint::Contact, &contact, ""));
    let mut last = DateTime::UNIX_EPOCH;
    for n in 1..=15_u64 {
        let more = json!({ "contact_id": contact, "campaign_id": "c" });
        let events = [event(&format!("evt_{n:02}"), "open", minutes_ago(30), &more)];
        account.publish(&events).await;
        let published = Utc::now();
        let asked = if n % 2 == 0 { &of_campaign } else { &of_contact };
        let reply = eventually(PATIENCE, async || {
            let reply = account.get(asked).await;
            let until = visible_until(&reply)?;
            assert!(until >= last, "{until} after {last}");
            last = until;
            ensure!(until >= published, "visible until {until}, published at {published}");
            Ok(reply)
        })
        .await;
        let total = &reply.body[if n % 2 == 0 { "meta" } else { "pagination" }]["total"];
        assert_eq!(total, n, "visible until {last}, published at {published}: {}", reply.body);
        assert!(last <= Utc::now(), "{last} is not yet");
    }
    // Nothing is published by this account, and it goes on.
    eventually(PATIENCE, async || {
        let until = visible_until(&account.get(&of_contact).await)?;
        ensure!(until > last + TimeDelta::seconds(1), "still {until}");
        Ok(())
    })
    .await;
    let stranger = Account::new(stack, "nobody", "wbk_nothing");
    for (asker, method, path, status) in [
        (&account, Method::HEAD, of_contact.clone(), 200),
        (&account, Method::OPTIONS, of_contact.clone(), 204),
        (&account, Method::POST, of_contact.clone(), 405),
        (&account, Method::GET, path(Endpoint::Contact, &new_id(), ""), 404),
        (&account, Method::GET, format!("{of_campaign}?page=0"), 400),
        (&stranger, Method::GET, of_campaign.clone(), 401),
    ] {
        let reply = ask(asker, &method, &path).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(visible_until(&reply).is_ok(), "{method} {path}: {:?}", reply.headers);
    }
}

/// The limit is shown whatever the answer, and only what is counted is counted.
pub async fn every_answer_shows_the_rate_limit(stack: &Stack) {
    let account = stack.account().await;
    let stranger = Account::new(stack, "nobody", "wbk_nothing");
    let known = path(Endpoint::Contact, &new_id(), "");
    let remaining = |reply: &Reply| {
        let headers = &reply.headers;
        assert_eq!(number(headers, "x-ratelimit-limit"), Some(1000), "{} {headers:?}", reply.status);
        assert!(number(headers, "x-ratelimit-reset").is_some_and(|seconds| seconds <= 60), "{headers:?}");
        number(headers, "x-ratelimit-remaining").expect("a number")
    };
    let before = remaining(&account.get(&known).await);
    for (method, path) in
        [(Method::OPTIONS, known.as_str()), (Method::DELETE, known.as_str()), (Method::GET, "/nowhere")]
    {
        remaining(&ask(&account, &method, path).await);
    }
    assert_eq!(remaining(&stranger.get(&known).await), 1000);
    let bad = format!("{known}?page=0");
    // A minute may have passed meanwhile, so that counting began anew.
    let after = [remaining(&account.get(&known).await), remaining(&account.get(&bad).await)];
    assert!(
        after == [before - 1, before - 2] || after[1] == after[0] - 1 || after[1] == 999,
        "{before} {after:?}"
    );
    remaining(&account.post("/v1/events", "application/json", "[]").await);
}

/// HEAD has the status and the headers of GET, and no body.
pub async fn head_is_get_without_its_body(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    account
        .publish(&[event("1", "open", minutes_ago(1), &json!({ "contact_id": contact, "campaign_id": "c" }))])
        .await;
    for (endpoint, id) in [(Endpoint::Campaign, "c"), (Endpoint::Contact, contact.as_str())] {
        account.has_total(&path(endpoint, id, ""), 1).await;
        for prefix in [Prefix::Short, Prefix::Long] {
            for suffix in ["", "?page=0", "?per_page=1&page=5"] {
                let path = format!("{}{suffix}", Client::path(endpoint, prefix, id));
                let (get, head) = (account.get(&path).await, ask(&account, &Method::HEAD, &path).await);
                assert_eq!((head.status, &head.body), (get.status, &Value::Null), "{path}");
                for name in ["content-type", "link", "x-ratelimit-limit", "content-length"] {
                    assert_eq!(head.headers.get(name), get.headers.get(name), "{name} of {path}");
                }
            }
        }
    }
    assert_eq!(ask(&account, &Method::HEAD, &path(Endpoint::Campaign, "never", "")).await.status, 404);
    let nobody = Client::new(stack.url()).expect("a client").request(Method::HEAD, "/v1/campaigns/c/events");
    assert_eq!(send(nobody).await.expect("an answer").status, 401);
}

/// OPTIONS needs no key and names the methods.
pub async fn options_tell_the_methods(stack: &Stack) {
    let reads = Client::new(stack.url()).expect("a client");
    let intake = Client::new(stack.intake_url()).expect("a client");
    for (endpoint, prefix) in [
        (Endpoint::Campaign, Prefix::Short),
        (Endpoint::Campaign, Prefix::Long),
        (Endpoint::Contact, Prefix::Short),
        (Endpoint::Contact, Prefix::Long),
    ] {
        let path = Client::path(endpoint, prefix, "anything");
        let reply = send(reads.request(Method::OPTIONS, &path)).await.expect("an answer");
        assert_eq!(
            (reply.status, reply.headers["allow"].to_str().ok()),
            (204, Some("GET, HEAD, OPTIONS")),
            "{path}"
        );
        assert!(reply.headers.contains_key("x-request-id"));
    }
    for path in ["/v1/events", "/v1/references"] {
        let reply = send(intake.request(Method::OPTIONS, path)).await.expect("an answer");
        assert_eq!(
            (reply.status, reply.headers["allow"].to_str().ok()),
            (204, Some("POST, OPTIONS")),
            "{path}"
        );
    }
}

/// 404 `not_found` and 405 `method_not_allowed`, with `Allow`, on both services.
pub async fn other_methods_and_paths_answer_in_the_campaign_streams_envelope(stack: &Stack) {
    let account = stack.account().await;
    let envelope = |reply: &Reply, status: u16, code: &str| {
        let error = &reply.body["error"];
        assert_eq!((reply.status, &error["code"]), (status, &json!(code)), "{}", reply.body);
        assert!(error["message"].is_string());
        assert_eq!(error.as_object().map(serde_json::Map::len), Some(2));
        assert_eq!(reply.headers["content-type"], "application/json");
    };
    let contact = new_id();
    for path in [path(Endpoint::Campaign, "c", ""), path(Endpoint::Contact, &contact, "")] {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let reply = ask(&account, &method, &path).await;
            envelope(&reply, 405, "method_not_allowed");
            assert_eq!(reply.headers["allow"], "GET, HEAD, OPTIONS");
        }
    }
    for path in
        ["/", "/v1", "/v1/campaigns", "/v1/campaigns/c", "/contacts", "/v1/contacts/x/events", "/metrics"]
    {
        envelope(&account.get(path).await, 404, "not_found");
    }
    let intake = Client::new(stack.intake_url()).expect("a client");
    for path in ["/v1/events", "/v1/references"] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let reply =
                send(intake.request(method, path).bearer_auth(&account.key)).await.expect("an answer");
            envelope(&reply, 405, "method_not_allowed");
            assert_eq!(reply.headers["allow"], "POST, OPTIONS");
        }
    }
    envelope(&account.post("/v1/event", "application/json", "{}").await, 404, "not_found");
}

/// gzip and zstd on request, and what they hold is the body.
pub async fn bodies_are_compressed_when_asked_for(stack: &Stack) {
    let account = stack.account().await;
    let events: Vec<Value> = (0..30)
        .map(|n| {
            let more = json!({ "contact_id": new_id(), "campaign_id": "c" });
            event(&format!("e{n}"), "open", minutes_ago(n), &more)
        })
        .collect();
    account.publish(&events).await;
    let path = path(Endpoint::Campaign, "c", "");
    let plain = account.has_total(&path, 30).await;
    assert!(!plain.headers.contains_key("content-encoding"));
    for (accepted, encoding) in
        [("gzip", Some("gzip")), ("zstd", Some("zstd")), ("br, gzip;q=0.5", Some("gzip")), ("identity", None)]
    {
        let request = account.request(Method::GET, &path).header("accept-encoding", accepted);
        let response = request.send().await.expect("an answer");
        let shown = response.headers().get("content-encoding").and_then(|value| value.to_str().ok());
        assert_eq!(shown, encoding, "{accepted}");
        let vary = response.headers().get("vary").and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert!(encoding.is_none() || vary.to_ascii_lowercase().contains("accept-encoding"), "{vary}");
        let body = response.bytes().await.expect("a body");
        let mut decoded = Vec::new();
        match encoding {
            Some("gzip") => flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut decoded).expect("gzip"),
            Some(_) => zstd::Decoder::new(&body[..]).expect("zstd").read_to_end(&mut decoded).expect("zstd"),
            None => (&body[..]).read_to_end(&mut decoded).expect("bytes"),
        };
        let decoded: Value = serde_json::from_slice(&decoded).expect("JSON");
        assert_eq!(decoded, plain.body, "{accepted}");
    }
}
