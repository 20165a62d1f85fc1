//! What a row shows, and which events show where.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{event, minutes_ago, new_id, noon, shown};
use crate::client::Client;
use crate::stack::{Account, Stack, shown_uuid};

/// UTC and whole seconds, cut and not rounded, whatever the zone and fraction that came.
pub async fn times_are_shown_in_whole_seconds_of_utc(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let (before, day) = (noon(3).date_naive(), noon(2).date_naive());
    let times = [
        (format!("{day}T14:23:05Z"), format!("{day}T14:23:05Z")),
        (format!("{day}T16:23:04.999999999+02:00"), format!("{day}T14:23:04Z")),
        (format!("{before}T23:59:59.5-05:45"), format!("{day}T05:44:59Z")),
        (format!("{day}t00:00:00.123z"), format!("{day}T00:00:00Z")),
    ];
    let events: Vec<Value> = (0..)
        .zip(&times)
        .map(|(n, (occurred_at, _))| {
            let mut event = event(
                &n.to_string(),
                "open",
                Utc::now(),
                &json!({ "contact_id": contact, "campaign_id": "c" }),
            );
            event["occurred_at"] = json!(occurred_at);
            event
        })
        .collect();
    account.publish(&events).await;
    let rows = account.campaign_has("c", &["0", "1", "2", "3"]).await;
    let others = account.contact_has(&contact, &["0", "1", "2", "3"]).await;
    for ((row, other), (_, shown)) in rows.iter().zip(&others).zip(&times) {
        assert_eq!((&row["timestamp"], &other["happened_at"]), (&json!(shown), &json!(shown)));
    }
}

/// Every opt-out that carries the campaign; one without it is not on the campaign.
pub async fn opt_outs_of_a_campaign_are_unsubscribed(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let with = json!({ "contact_id": contact, "campaign_id": "c", "automation_id": "a", "list_id": "l" });
    let without = json!({ "contact_id": contact });
    let mut events = Vec::new();
    let kinds = ["unsubscribe", "global_unsubscribe", "automation_unsubscribe", "globally_unsubscribed"];
    for (n, kind) in (0..).zip(kinds) {
        events.push(event(&format!("with_{n}"), kind, minutes_ago(10 - n), &with));
        events.push(event(&format!("without_{n}"), kind, minutes_ago(20 - n), &without));
    }
    account.publish(&events).await;
    let rows = account.campaign_has("c", &["with_3", "with_2", "with_1", "with_0"]).await;
    assert!(rows.iter().all(|row| row["type"] == "unsubscribed"), "{rows:?}");
    let ids = ["with_3", "with_2", "with_1", "with_0", "without_3", "without_2", "without_1", "without_0"];
    let rows = account.contact_has(&contact, &ids).await;
    let types: Vec<&Value> = rows.iter().map(|row| &row["event_type"]).collect();
    let expected =
        ["globally_unsubscribed", "automation_unsubscribed", "globally_unsubscribed", "unsubscribed"];
    assert_eq!(types[..4], expected);
    assert_eq!(types[4..], expected);
}

/// They neither show nor count there, and do on the campaign.
pub async fn replies_and_complaints_are_not_on_the_contact_timeline(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    account
        .publish(&[
            event("1", "reply", minutes_ago(3), &more),
            event("2", "complaint", minutes_ago(2), &more),
            event("3", "open", minutes_ago(1), &more),
        ])
        .await;
    let rows = account.campaign_has("c", &["3", "2", "1"]).await;
    assert_eq!((&rows[1]["type"], &rows[2]["type"]), (&json!("complained"), &json!("replied")));
    account.settle().await;
    account.contact_has(&contact, &["3"]).await;
}

async fn publish_clicks(account: &Account<'_>, contact: &str, clicks: &[(&str, Value)]) {
    let events = (1..).zip(clicks).map(|(n, (url, link))| {
        let more = json!({ "contact_id": contact, "campaign_id": "c", "url": url, "link": link });
        event(&format!("click_{n}"), "click", minutes_ago(n), &more)
    });
    account.publish(&events.collect::<Vec<_>>()).await;
    account.settle().await;
}

/// A click that says so is on neither; a word in a URL says nothing.
pub async fn list_management_clicks_are_on_neither(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let clicks = [
        ("https://a.example/x", json!("content")),
        ("https://a.example/x", json!("unsubscribe")),
        ("https://a.example/x", json!("preferences")),
        ("https://blog.example/how-to-unsubscribe?list=preferences", Value::Null),
        ("https://a.example/unsubscribe", json!("content")),
    ];
    publish_clicks(&account, &contact, &clicks).await;
    account.campaign_has("c", &["click_1", "click_4", "click_5"]).await;
    account.contact_has(&contact, &["click_1", "click_4", "click_5"]).await;
    // Every service shows it, ingest counts it.
    let mut count = 0.0;
    for (_, service) in stack.services() {
        let ops = Client::new(service.ops_url()).expect("a client");
        let counted = ops.metric("backstamp_events_total", "outcome=\"list_management_click\"").await;
        count += counted.expect("an answer");
    }
    assert!(count >= 2.0, "{count}");
}

/// Configured by host, path and query, each exactly; see
/// [`LIST_MANAGEMENT_URLS`](crate::stack::LIST_MANAGEMENT_URLS).
pub async fn configured_patterns_are_list_management_and_words_are_not(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let clicks = [
        ("https://links.example/u/abc", json!("content")),
        ("https://LINKS.example/u/abc?x=1#y", Value::Null),
        ("https://links.example/u/abc/more", Value::Null),
        ("https://links.example/v/abc", Value::Null),
        ("https://mail.lists.example/leave/a/b/c", Value::Null),
        ("https://lists.example/leave/a", Value::Null),
        ("https://links.example/go?to=a&action=unsubscribe", Value::Null),
        ("https://links.example/go?action=read&why=unsubscribe", Value::Null),
        ("https://evil.example/?u=https://links.example/u/abc", Value::Null),
        ("no url at all", Value::Null),
    ];
    publish_clicks(&account, &contact, &clicks).await;
    let content = ["click_3", "click_4", "click_6", "click_8", "click_9", "click_10"];
    account.campaign_has("c", &content).await;
    account.contact_has(&contact, &content).await;
}

/// Campaign and automation on every event that carries them, a list on `subscribed` and `unsubscribed` only.
pub async fn references_stand_on_the_rows_that_they_apply_to(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let purchase = json!({
        "order_uuid": "o", "product_uuid": "p", "product_name": "Pro", "is_subscription": false,
    });
    let types = [
        "send",
        "delivery",
        "bounce",
        "open",
        "click",
        "subscribe",
        "unsubscribe",
        "global_unsubscribe",
        "global_resubscribe",
        "automation_unsubscribe",
        "purchase",
        "create",
        "import",
    ];
    let more = json!({
        "contact_id": contact, "campaign_id": "c", "automation_id": "a", "list_id": "l", "step_id": "s",
        "url": "https://a.example/", "purchase": purchase,
    });
    let events: Vec<Value> =
        (1..).zip(types).map(|(n, kind)| event(kind, kind, minutes_ago(n), &more)).collect();
    account.publish(&events).await;
    let rows = account.contact_has(&contact, &types).await;
    let named = |id: &str| json!({ "uuid": id, "name": null });
    for (row, kind) in rows.iter().zip(types) {
        let list = if ["subscribe", "unsubscribe"].contains(&kind) { named("l") } else { Value::Null };
        assert_eq!(
            (&row["campaign"], &row["automation"], &row["list"]),
            (&named("c"), &named("a"), &list),
            "{kind}"
        );
        let keys: Vec<&String> = row.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["uuid", "event_type", "happened_at", "campaign", "automation", "list", "detail"]);
    }
    account.publish(&[event("bare", "subscribe", minutes_ago(60), &json!({ "contact_id": contact }))]).await;
    let rows = account.contact_has(&contact, &[&types[..], &["bare"]].concat()).await;
    let bare = rows.last().expect("the oldest");
    assert_eq!([&bare["campaign"], &bare["automation"], &bare["list"]], [&Value::Null; 3]);
}

/// `metadata` is always an object; `detail` is there for clicks, bounces and purchases.
pub async fn metadata_and_details(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let nested = json!({ "a": { "b": [1, null, "é", 1.5e300, true] }, "ip_country": "DE", "": {} });
    let url = "https://x.example/ä?b=c&d=\"e\"";
    let purchase = json!({
        "order_uuid": "o", "product_uuid": "p", "product_name": "Pro", "is_subscription": false, "amount": 5,
    });
    let bought = json!({
        "order_uuid": "o", "product_uuid": "p", "product_name": "Pro", "variant_name": null,
        "is_subscription": false,
    });
    let cases = [
        ("open", json!({}), json!({}), Value::Null),
        ("open", json!({ "metadata": null }), json!({}), Value::Null),
        ("open", json!({ "metadata": nested }), nested.clone(), Value::Null),
        (
            "click",
            json!({ "url": url, "metadata": { "user_agent": "M" } }),
            json!({ "user_agent": "M", "url": url }),
            json!({ "url": url }),
        ),
        ("bounce", json!({}), json!({ "bounce_type": "soft" }), json!({ "type": "soft" })),
        (
            "bounce",
            json!({ "bounce": { "type": "hard", "reason": "gone" } }),
            json!({ "bounce_type": "hard", "reason": "gone" }),
            json!({ "type": "hard" }),
        ),
        (
            "bounce",
            json!({ "bounce": { "reason": "full" }, "metadata": { "x": 1 } }),
            json!({ "x": 1, "bounce_type": "soft", "reason": "full" }),
            json!({ "type": "soft" }),
        ),
        ("purchase", json!({ "purchase": purchase }), Value::Null, bought),
    ];
    let mut events = Vec::new();
    for (n, (kind, fields, ..)) in (0..).zip(&cases) {
        let mut event = event(&format!("e{n}"), kind, minutes_ago(n), fields);
        event["contact_id"] = json!(contact);
        event["campaign_id"] = json!("c");
        events.push(event);
    }
    account.publish(&events).await;
    let ids: Vec<String> = (0..cases.len()).map(|n| format!("e{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let details = account.contact_has(&contact, &ids).await;
    let rows = account.campaign_has("c", &ids[..cases.len() - 1]).await;
    for (n, (kind, _, metadata, detail)) in cases.iter().enumerate() {
        assert_eq!(&details[n]["detail"], detail, "{kind}");
        if let Some(row) = rows.get(n) {
            assert_eq!(&row["metadata"], metadata, "{kind}");
        }
    }
}

/// Ids that are UUIDs are one id in either case; any other is opaque, and its case counts.
pub async fn uuids_are_shown_in_lower_case_and_other_ids_as_uuid_v5(stack: &Stack) {
    let account = stack.account().await;
    let [id, contact, campaign, step] = [new_id(), new_id(), new_id(), new_id()];
    let upper = |text: &str| text.to_uppercase();
    let at = minutes_ago(2);
    let more = json!({
        "contact_id": upper(&contact), "campaign_id": upper(&campaign), "step_id": upper(&step),
    });
    // The second is the first again, in lower case.
    let again = json!({ "contact_id": contact, "campaign_id": campaign, "step_id": step });
    account.publish(&[event(&upper(&id), "open", at, &more), event(&id, "open", at, &again)]).await;
    account
        .publish(&[
            event("Evt_1", "open", minutes_ago(3), &again),
            event("evt_1", "open", minutes_ago(3), &again),
        ])
        .await;
    account.settle().await;
    for spelling in [campaign.clone(), upper(&campaign)] {
        let rows = account.campaign_has(&spelling, &[&id, "evt_1", "Evt_1"]).await;
        assert_eq!((&rows[0]["contact_id"], &rows[0]["step_id"]), (&json!(contact), &json!(step)));
    }
    for spelling in [contact.clone(), upper(&contact)] {
        let rows = account.contact_has(&spelling, &[&id, "evt_1", "Evt_1"]).await;
        assert_eq!(rows[0]["campaign"]["uuid"], json!(campaign));
        assert_eq!(rows[1]["uuid"], json!(shown_uuid("evt_1")));
    }
    // As any implementation of RFC 9562 makes it.
    assert_eq!(shown_uuid("evt_a1b2c3d4"), "58fb9c59-bb44-5c79-bf49-0aaaa2d3628d");
}

/// An event is known by account, id and time: again it changes nothing, and at another time it is another.
pub async fn repeats_change_nothing(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    let at: DateTime<Utc> = minutes_ago(5);
    let same = event("1", "open", at, &more);
    account.publish(&[same.clone(), same.clone(), event("2", "open", minutes_ago(4), &more)]).await;
    account.campaign_has("c", &["2", "1"]).await;
    account.publish(&[same.clone(), event("1", "open", minutes_ago(3), &more)]).await;
    account.settle().await;
    let rows = account.campaign_has("c", &["1", "2", "1"]).await;
    assert_eq!(rows[2]["timestamp"], json!(shown(at)));
    account.contact_has(&contact, &["1", "2", "1"]).await;
    account.publish(&[same]).await;
    account.settle().await;
    account.campaign_has("c", &["1", "2", "1"]).await;
}
