//! The intake: bodies, rejections, every good and bad example.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fixtures::{bad, good, padded_event, recent_events};
use super::{event, minutes_ago, new_id};
use crate::client::Reply;
use crate::model::Endpoint;
use crate::stack::{Account, Stack, path};

const EVENTS: &str = "/v1/events";
const REFERENCES: &str = "/v1/references";
const BODY_BYTES_MAX: usize = 8 << 20;

fn accepted(count: usize) -> Value {
    json!({ "accepted": count, "rejected": [] })
}

/// Index and code of each rejection.
fn rejections(reply: &Reply) -> Vec<(u64, &str)> {
    let rejected = reply.body["rejected"].as_array().map(Vec::as_slice).unwrap_or_default();
    rejected
        .iter()
        .map(|one| (one["index"].as_u64().unwrap_or(u64::MAX), one["code"].as_str().unwrap_or("")))
        .collect()
}

/// Each form, under each content type that says it or says nothing.
pub async fn one_object_an_array_and_lines(stack: &Stack) {
    const FORM: &str = "application/x-www-form-urlencoded";
    let account = stack.account().await;
    let contact = new_id();
    let open = |id: &str, minutes: i64| {
        event(id, "open", minutes_ago(minutes), &json!({ "contact_id": contact, "campaign_id": "c" }))
            .to_string()
    };
    let array = |ids: [&str; 2], minutes: i64| {
        format!("[{} ,\n{}]", open(ids[0], minutes + 1), open(ids[1], minutes))
    };
    let lines = |ids: [&str; 2], minutes: i64| {
        format!("{}\r\n\n  \n{}", open(ids[0], minutes + 1), open(ids[1], minutes))
    };
    for (content_type, body, count) in [
        ("application/json", format!(" {}\n", open("01", 20)), 1),
        ("application/json; charset=utf-8", array(["02", "03"], 18), 2),
        ("application/x-ndjson", lines(["04", "05"], 16), 2),
        ("application/x-ndjson", format!("{}\n", open("06", 15)), 1),
        // What `curl -d` says of every body.
        (FORM, open("07", 14), 1),
        (FORM, array(["08", "09"], 12), 2),
        (FORM, lines(["10", "11"], 10), 2),
        ("application/octet-stream", open("12", 9), 1),
    ] {
        let reply = account.post(EVENTS, content_type, body).await;
        assert_eq!((reply.status, reply.body), (202, accepted(count)), "{content_type}");
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    let reply =
        crate::client::send(account.intake_request(EVENTS).body(open("13", 8))).await.expect("an answer");
    assert_eq!((reply.status, reply.body), (202, accepted(1)));
    let ids = ["13", "12", "11", "10", "09", "08", "07", "06", "05", "04", "03", "02", "01"];
    account.campaign_has("c", &ids).await;
    for content_type in ["text/plain", "application/xml", "multipart/form-data; boundary=x"] {
        let reply = account.post(EVENTS, content_type, open("14", 1)).await;
        assert_eq!((reply.status, &reply.body["error"]["code"]), (415, &json!("unsupported_media_type")));
    }
}

/// `account_id` comes from the key: left out, `null` or the same is well, another's is `foreign_account`.
pub async fn an_account_may_be_left_out_and_anothers_is_refused(stack: &Stack) {
    let account = stack.account().await;
    let other = stack.account().await;
    let contact = new_id();
    let open = |id: &str, name: Option<Value>| {
        let mut open =
            event(id, "open", minutes_ago(1), &json!({ "contact_id": contact, "campaign_id": "c" }));
        if let Some(name) = name {
            open["account_id"] = name;
        }
        open
    };
    let events = json!([
        open("1", None),
        open("2", Some(Value::Null)),
        open("3", Some(json!(account.name))),
        open("4", Some(json!(other.name))),
        open("5", Some(json!("nobody"))),
    ]);
    let reply = account.post(EVENTS, "application/json", events.to_string()).await;
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(3)));
    assert_eq!(rejections(&reply), [(3, "foreign_account"), (4, "foreign_account")]);
    // Whether such an account exists cannot be told.
    assert_eq!(reply.body["rejected"][0]["message"], reply.body["rejected"][1]["message"]);
    account.campaign_has("c", &["3", "2", "1"]).await;
    let reference = json!({ "kind": "campaign", "account_id": other.name, "id": "c", "name": "Mine now" });
    let reply = account.post(REFERENCES, "application/json", reference.to_string()).await;
    assert_eq!((reply.status, rejections(&reply)), (400, vec![(0, "foreign_account")]));
    account.settle().await;
    assert_eq!(other.campaign("c", "").await.status, 404);
}

/// An item's place in the array, or among the lines that are not empty.
pub async fn what_is_bad_is_rejected_and_the_rest_is_taken(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let open = |id: &str| {
        event(id, "open", minutes_ago(1), &json!({ "contact_id": contact, "campaign_id": "c" })).to_string()
    };
    let array = format!("[5, {}, {{}}, {}, null]", open("1"), open("2"));
    let reply = account.post(EVENTS, "application/json", array).await;
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(2)));
    assert_eq!(rejections(&reply), [(0, "malformed_json"), (2, "missing_field"), (4, "malformed_json")]);
    let lines = format!("{}\n\n{{\n\n{}\n[]\n", open("3"), open("4"));
    let reply = account.post(EVENTS, "application/x-ndjson", lines).await;
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(2)));
    assert_eq!(rejections(&reply), [(1, "malformed_json"), (3, "malformed_json")]);
    account.campaign_has("c", &["4", "3", "2", "1"]).await;
}

/// An event may be up to 24 h ahead, and no more.
pub async fn an_event_may_be_a_day_ahead(stack: &Stack) {
    let account = stack.account().await;
    let ahead = |id: &str, hours: i64| {
        let more = json!({ "contact_id": new_id(), "campaign_id": "c" });
        event(id, "open", minutes_ago(-60 * hours), &more)
    };
    let events = json!([ahead("1", 23), ahead("2", 25)]);
    let reply = account.post(EVENTS, "application/json", events.to_string()).await;
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(1)));
    assert_eq!(rejections(&reply), [(1, "time_ahead")]);
    account.campaign_has("c", &["1"]).await;
}

/// The empty array, the empty body, and what is no JSON.
pub async fn nothing_accepted_is_400(stack: &Stack) {
    let account = stack.account().await;
    for route in [EVENTS, REFERENCES] {
        for (content_type, body, rejected) in [
            ("application/json", "[]", vec![]),
            ("application/x-ndjson", "\n\n", vec![]),
            ("application/json", "", vec![(0, "malformed_json")]),
            ("application/json", "{", vec![(0, "malformed_json")]),
            ("application/json", "[{}", vec![(0, "malformed_json")]),
            ("application/json", "{}{}", vec![(0, "malformed_json")]),
            ("application/json", "\"text\"", vec![(0, "malformed_json")]),
            ("application/x-www-form-urlencoded", "a=1&b=2", vec![(0, "malformed_json")]),
            ("application/json", "{}", vec![(0, "missing_field")]),
        ] {
            let reply = account.post(route, content_type, body).await;
            assert_eq!((reply.status, &reply.body["accepted"]), (400, &json!(0)), "{body}: {}", reply.body);
            assert_eq!(rejections(&reply), rejected, "{body}");
            assert!(reply.body["error"]["code"].is_string() && reply.body["error"]["message"].is_string());
        }
    }
}

/// 8 MiB are well, a byte more is 413 in the campaign stream's envelope; 64 KiB are well for an event.
pub async fn a_body_over_eight_mebibytes_is_413(stack: &Stack) {
    let account = stack.account_named("acme").await;
    let largest = padded_event(64 << 10, minutes_ago(1));
    let mut body = largest.clone();
    body.resize(BODY_BYTES_MAX, b' ');
    let reply = account.post(EVENTS, "application/json", body.clone()).await;
    assert_eq!((reply.status, reply.body), (202, accepted(1)));
    body.push(b' ');
    let reply = account.post(EVENTS, "application/json", body).await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (413, &json!("payload_too_large")));
    account.has_total(&path(Endpoint::Campaign, "cmp_padded", ""), 1).await;
}

/// Names, addresses and deletions go in over HTTP as they do over Kafka.
pub async fn references_over_http(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c", "list_id": "l" });
    let body = event("1", "subscribe", minutes_ago(2), &more).to_string();
    assert_eq!(account.post(EVENTS, "application/json", body).await.status, 202);
    let lines = [
        json!({ "kind": "campaign", "id": "c", "name": "Spring" }),
        json!({ "kind": "list", "id": "l", "name": "News" }),
        json!({ "kind": "list", "id": "l", "deleted": true }),
        json!({ "kind": "contact", "id": contact, "email": "jane@example.com" }),
    ];
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let reply = account.post(REFERENCES, "application/x-ndjson", lines.join("\n")).await;
    assert_eq!((reply.status, reply.body), (202, accepted(4)));
    let row = json!({
        "uuid": crate::stack::shown_uuid("1"),
        "event_type": "subscribed",
        "happened_at": super::shown(minutes_ago(2)),
        "campaign": { "uuid": "c", "name": "Spring" },
        "automation": null,
        "list": { "uuid": "l", "name": "News" },
        "detail": null,
    });
    let rows = account.contact_has(&contact, &["1"]).await;
    let mut expected = row.clone();
    expected["happened_at"] = rows[0]["happened_at"].clone();
    let page = json!({
        "data": [expected], "pagination": { "current_page": 1, "per_page": 100, "total": 1 },
    });
    account.answers(&path(Endpoint::Contact, &contact, ""), &page).await;
}

/// Every good example goes in both ways, over HTTP and as the stack takes it otherwise, and is where it belongs.
pub async fn every_good_event_is_taken_and_shown(stack: &Stack) {
    let account = stack.account().await;
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    let events = recent_events();
    for (n, (name, example)) in events.iter().enumerate() {
        // An id each, so that the examples, which share theirs, stay apart.
        let mut posted = example.clone();
        posted["account_id"] = json!(account.name);
        let reply = account.post(EVENTS, "application/json", posted.to_string()).await;
        assert_eq!((reply.status, reply.body), (202, accepted(1)), "{name}");
        let mut published = posted;
        published["campaign_id"] = json!(format!("way_{n}"));
        published["contact_id"] = json!(new_id());
        account.publish(std::slice::from_ref(&published)).await;
        let contact = published["contact_id"].as_str().unwrap_or_default().to_owned();
        let is_clean = published["link"].as_str().is_none_or(|link| link == "content");
        let kind = published["type"].as_str().unwrap_or_default();
        let is_shown = is_clean && !["reply", "replied", "complaint", "complained"].contains(&kind);
        shown.insert(contact, usize::from(is_shown));
    }
    account.settle().await;
    for (contact, total) in shown {
        account.has_total(&path(Endpoint::Contact, &contact, ""), total as u64).await;
    }
}

/// Every good reference is accepted, and makes its campaign or contact exist.
pub async fn every_good_reference_is_taken(stack: &Stack) {
    let account = stack.account().await;
    for (name, mut reference) in good("references") {
        reference["account_id"] = json!(account.name);
        let reply = account.post(REFERENCES, "application/json", reference.to_string()).await;
        assert_eq!((reply.status, reply.body), (202, accepted(1)), "{name}");
        let id = reference["id"].as_str().unwrap_or_default();
        let endpoint = match reference["kind"].as_str() {
            Some("campaign") => Endpoint::Campaign,
            Some("contact") => Endpoint::Contact,
            _ => continue,
        };
        if reference["deleted"] != json!(true) {
            account.has_total(&path(endpoint, id, ""), 0).await;
        }
    }
}

/// Posts each bad example of `kind` by itself; the answer has its code, and names its field.
async fn reject_each(stack: &Stack, kind: &str, route: &str) {
    let account = stack.account_named("acme").await;
    let mut judged = 0;
    for example in bad(kind) {
        let is_about_the_key = example.code == "key_mismatch";
        // Without an account an event is complete over HTTP, and so is a reference.
        let needs_no_account = example.name.starts_with("missing.account_id");
        if is_about_the_key || needs_no_account {
            continue;
        }
        let name = example.name.as_str();
        // A body that is an array, or more than one object, is not one bad message: it goes as an item of an array where
        // it is JSON, and as a line where it is not.
        let (content_type, body) = match &example.json {
            Some(json) if json.is_array() => ("application/json", format!("[{json}]").into_bytes()),
            _ => ("application/json", example.message.clone()),
        };
        let expected_account = example.key_account.as_deref().unwrap_or("acme");
        assert_eq!(expected_account, "acme", "{name}");
        let reply = account.post(route, content_type, body).await;
        assert_eq!((reply.status, &reply.body["accepted"]), (400, &json!(0)), "{name}: {}", reply.body);
        assert_eq!(rejections(&reply), [(0, example.code.as_str())], "{name}: {}", reply.body);
        let message = reply.body["rejected"][0]["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "{name}");
        if let Some(field) = &example.field {
            assert!(message.contains(&format!("'{field}'")), "{name} is at fault for {field}: {message}");
        }
        judged += 1;
    }
    assert!(judged > 20, "only {judged}");
}

/// Every way that an event can be bad.
pub async fn every_bad_event_is_rejected_with_its_code(stack: &Stack) {
    reject_each(stack, "events", EVENTS).await;
    good_account_is_untouched(stack).await;
}

/// Every way that a reference can be bad.
pub async fn every_bad_reference_is_rejected_with_its_code(stack: &Stack) {
    reject_each(stack, "references", REFERENCES).await;
}

/// None of the bad events is anywhere.
async fn good_account_is_untouched(stack: &Stack) {
    let account: Account<'_> = stack.account_named("acme").await;
    account.settle().await;
    assert_eq!(account.campaign("cmp_abc123", "").await.status, 404);
}
