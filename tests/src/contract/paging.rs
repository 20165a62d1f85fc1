//! Pages, totals, order and links.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{event, minutes_ago, new_id};
use crate::model::Endpoint;
use crate::stack::{Stack, path, shown_uuid};

/// Default 50; over 100 is 100 and says so; 0, negative, no number and over 2^31 are 400.
pub async fn page_and_per_page_of_the_campaign_stream(stack: &Stack) {
    let account = stack.account().await;
    let events: Vec<Value> = (0..120)
        .map(|n| {
            let more = json!({ "contact_id": new_id(), "campaign_id": "c" });
            event(&format!("e{n:03}"), "open", minutes_ago(n), &more)
        })
        .collect();
    account.publish(&events).await;
    account.has_total(&path(Endpoint::Campaign, "c", ""), 120).await;
    for (query, page, per_page, rows) in [
        ("", 1, 50, 50),
        ("page=3", 3, 50, 20),
        ("page=4", 4, 50, 0),
        ("page=2147483648", 2_147_483_648_u64, 50, 0),
        ("per_page=1", 1, 1, 1),
        ("per_page=100&page=2", 2, 100, 20),
        ("per_page=101&page=2", 2, 100, 20),
        ("per_page=2147483648", 1, 100, 100),
        ("page=&per_page=", 1, 50, 50),
        ("page=2147483648&per_page=100", 2_147_483_648, 100, 0),
    ] {
        let reply = account.campaign("c", query).await;
        let meta = json!({ "page": page, "per_page": per_page, "total": 120 });
        assert_eq!((reply.status, &reply.body["meta"]), (200, &meta), "{query}");
        assert_eq!(reply.body["data"]["events"].as_array().map(Vec::len), Some(rows), "{query}");
    }
    for name in ["page", "per_page"] {
        for value in BAD_NUMBERS {
            let reply = account.campaign("c", &format!("{name}={value}")).await;
            let code = &reply.body["error"]["code"];
            assert_eq!((reply.status, code), (400, &json!("invalid_parameter")), "{name}={value}");
        }
    }
}

const BAD_NUMBERS: [&str; 9] =
    ["0", "-1", "x", "1.5", "1e1", "2147483649", "99999999999999999999999999", "%2B1", "1%20"];

/// Default and most 100; anything else is 422, with the parameter in its details.
pub async fn page_and_per_page_of_the_contact_timeline(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let events: Vec<Value> = (0..120)
        .map(|n| event(&format!("e{n:03}"), "open", minutes_ago(n), &json!({ "contact_id": contact })))
        .collect();
    account.publish(&events).await;
    account.has_total(&path(Endpoint::Contact, &contact, ""), 120).await;
    for (query, page, per_page, rows) in [
        ("", 1, 100, 100),
        ("page=2", 2, 100, 20),
        ("page=3", 3, 100, 0),
        ("page=2147483648&per_page=1", 2_147_483_648_u64, 1, 0),
        ("per_page=100", 1, 100, 100),
        ("per_page=7&page=18", 18, 7, 1),
    ] {
        let reply = account.contact(&contact, query).await;
        let pagination = json!({ "current_page": page, "per_page": per_page, "total": 120 });
        assert_eq!((reply.status, &reply.body["pagination"]), (200, &pagination), "{query}");
        assert_eq!(reply.body["data"].as_array().map(Vec::len), Some(rows), "{query}");
    }
    for name in ["page", "per_page"] {
        for value in BAD_NUMBERS.into_iter().chain((name == "per_page").then_some("101")) {
            let reply = account.contact(&contact, &format!("{name}={value}")).await;
            let error = &reply.body["error"];
            assert_eq!((reply.status, &error["code"]), (422, &json!("VALIDATION_ERROR")), "{name}={value}");
            assert!(error["details"][name][0].is_string(), "{error}");
        }
    }
}

/// Newest first, to the millisecond; equal times by id as text, descending, whatever the order they came in.
pub async fn newest_first_and_ties_by_id_descending(stack: &Stack) {
    let account = stack.account().await;
    let (contact, at) = (new_id(), minutes_ago(5));
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    let tied = ["b", "a10", "Z", "a9", "_", "-", ".", ":", "0", "00000000-0000-4000-8000-000000000000"];
    let mut events: Vec<Value> = tied.iter().map(|id| event(id, "open", at, &more)).collect();
    events.push(event("later", "open", at + TimeDelta::milliseconds(1), &more));
    events.push(event("earlier", "open", at - TimeDelta::milliseconds(1), &more));
    account.publish(&events).await;
    let mut ids = tied;
    // As text: by code point.
    ids.sort_unstable_by(|a, b| b.cmp(a));
    let ids = [&["later"], &ids[..], &["earlier"]].concat();
    account.campaign_has("c", &ids).await;
    // Ties sort by the id itself, not by the UUID that stands for it.
    account.contact_has(&contact, &ids).await;
    for (page, id) in ids.iter().enumerate() {
        let query = format!("per_page=1&page={}", page + 1);
        let row = account.campaign("c", &query).await.body["data"]["events"][0].clone();
        assert_eq!(row["id"], *id);
        let row = account.contact(&contact, &query).await.body["data"][0].clone();
        assert_eq!(row["uuid"], shown_uuid(id));
    }
}

/// Page 2,500 of one row each is as exact as page 1, and every page knows the total.
pub async fn there_is_no_limit_of_depth(stack: &Stack) {
    const EVENTS: i64 = 2500;
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    let at = minutes_ago(1);
    let events: Vec<Value> = (0..EVENTS)
        .map(|n| event(&format!("e{n:05}"), "delivery", at - TimeDelta::milliseconds(n * 700), &more))
        .collect();
    account.publish(&events).await;
    account.has_total(&path(Endpoint::Campaign, "c", ""), EVENTS.unsigned_abs()).await;
    account.has_total(&path(Endpoint::Contact, &contact, ""), EVENTS.unsigned_abs()).await;
    for n in [0, 1, 999, 1000, 1777, EVENTS - 1] {
        let (query, id) = (format!("per_page=1&page={}", n + 1), format!("e{n:05}"));
        let body = account.campaign("c", &query).await.body;
        assert_eq!((&body["data"]["events"][0]["id"], &body["meta"]["total"]), (&json!(id), &json!(EVENTS)));
        let body = account.contact(&contact, &query).await.body;
        let uuid = json!(shown_uuid(&id));
        assert_eq!((&body["data"][0]["uuid"], &body["pagination"]["total"]), (&uuid, &json!(EVENTS)));
    }
    let mut seen = Vec::new();
    for page in 1..=EVENTS / 100 {
        let body = account.campaign("c", &format!("per_page=100&page={page}")).await.body;
        let rows = body["data"]["events"].as_array().cloned().unwrap_or_default();
        seen.extend(rows.into_iter().map(|row| row["id"].as_str().unwrap_or_default().to_owned()));
    }
    let all: Vec<String> = (0..EVENTS).map(|n| format!("e{n:05}")).collect();
    assert_eq!(seen, all);
}

/// `Link` names first, prev, next and last, keeps the query, and can be followed.
pub async fn links_lead_through_the_pages(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    let events: Vec<Value> = (0..5).map(|n| event(&format!("e{n}"), "open", minutes_ago(n), &more)).collect();
    account.publish(&events).await;
    for (endpoint, id) in [(Endpoint::Campaign, "c"), (Endpoint::Contact, contact.as_str())] {
        account.has_total(&path(endpoint, id, ""), 5).await;
        let links = async |page: u32| {
            let reply =
                account.get(&path(endpoint, id, &format!("type=opened&page={page}&per_page=2"))).await;
            reply.headers["link"].to_str().expect("text").to_owned()
        };
        let link = |page: u32, rel: &str| {
            format!("<{}>; rel=\"{rel}\"", path(endpoint, id, &format!("type=opened&per_page=2&page={page}")))
        };
        assert_eq!(links(1).await, [link(1, "first"), link(2, "next"), link(3, "last")].join(", "));
        let middle = [link(1, "first"), link(1, "prev"), link(3, "next"), link(3, "last")];
        assert_eq!(links(2).await, middle.join(", "));
        assert_eq!(links(3).await, [link(1, "first"), link(2, "prev"), link(3, "last")].join(", "));
        assert!(!links(9).await.contains("rel=\"next\""));
        let next = path(endpoint, id, "type=opened&per_page=2&page=2");
        assert_eq!(account.get(&next).await.status, 200);
    }
}
