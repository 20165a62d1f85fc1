//! What is known, what is not, and retention.

use chrono::{TimeDelta, Utc};
use serde_json::json;

use super::{event, minutes_ago, new_id};
use crate::model::Endpoint;
use crate::stack::{Stack, path};

/// An event of any type, list management included, or a reference, even one that is deleted.
pub async fn a_reference_or_any_event_makes_it_exist(stack: &Stack) {
    let account = stack.account().await;
    let contacts: [String; 4] = std::array::from_fn(|_| new_id());
    let click = json!({
        "contact_id": contacts[0], "campaign_id": "clicked", "url": "https://a.example/", "link": "unsubscribe",
    });
    account
        .publish(&[
            event("1", "click", minutes_ago(1), &click),
            event(
                "2",
                "reply",
                minutes_ago(1),
                &json!({ "contact_id": contacts[1], "campaign_id": "replied" }),
            ),
            event(
                "3",
                "create",
                minutes_ago(1),
                &json!({ "contact_id": contacts[1], "campaign_id": "created" }),
            ),
        ])
        .await;
    account
        .refer(&[
            json!({ "kind": "campaign", "id": "named", "name": "Named" }),
            json!({ "kind": "campaign", "id": "nameless" }),
            json!({ "kind": "contact", "id": contacts[2] }),
            json!({ "kind": "contact", "id": contacts[3].to_uppercase(), "email": "a@example.com" }),
            json!({ "kind": "automation", "id": "not_a_campaign", "name": "Welcome" }),
            json!({ "kind": "list", "id": "not_a_campaign", "name": "Newsletter" }),
        ])
        .await;
    for (campaign, total) in [("clicked", 0), ("replied", 1), ("created", 0), ("named", 0), ("nameless", 0)] {
        account.has_total(&path(Endpoint::Campaign, campaign, ""), total).await;
    }
    for (contact, total) in contacts.iter().zip([0, 1, 0, 0]) {
        account.has_total(&path(Endpoint::Contact, contact, ""), total).await;
    }
    account.refer(&[json!({ "kind": "campaign", "id": "named", "deleted": true })]).await;
    account.settle().await;
    account.has_total(&path(Endpoint::Campaign, "named", ""), 0).await;
    assert_eq!(account.campaign("not_a_campaign", "").await.status, 404);
}

/// Ids that nobody used, ids that nobody can use, and a contact that is no UUID.
pub async fn what_was_never_heard_of_is_404(stack: &Stack) {
    let account = stack.account().await;
    let long = "x".repeat(65);
    for id in ["never", &long, "a%20b", "%C3%A4", "a%2Fb", "%FF", "%00"] {
        let reply = account.campaign(id, "").await;
        assert_eq!((reply.status, &reply.body["error"]["code"]), (404, &json!("campaign_not_found")), "{id}");
    }
    let contact = new_id();
    let braced = format!("%7B{contact}%7D");
    for id in [contact.as_str(), "never", &contact.replace('-', ""), &braced, "%FF"] {
        let reply = account.contact(id, "").await;
        assert_eq!((reply.status, &reply.body["error"]["code"]), (404, &json!("RESOURCE_NOT_FOUND")), "{id}");
    }
}

/// Rows and totals are cut at the same instant; what is past it leaves the campaign and the contact behind.
pub async fn rows_and_totals_end_at_retention(stack: &Stack) {
    let stack = stack.another(&[("BACKSTAMP_RETENTION_DAYS", "1")]).await;
    let account = stack.account().await;
    let contact = new_id();
    let now = Utc::now();
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    let soon = now - TimeDelta::hours(24) + TimeDelta::seconds(20);
    account
        .publish(&[
            event("past", "open", now - TimeDelta::hours(25), &more),
            event("soon", "open", soon, &more),
            event("shown", "open", now - TimeDelta::hours(23), &more),
            event("ahead", "open", now + TimeDelta::hours(23), &more),
            event(
                "gone",
                "open",
                now - TimeDelta::days(30),
                &json!({
                    "contact_id": contact, "campaign_id": "gone",
                }),
            ),
        ])
        .await;
    account.settle().await;
    // `soon` goes when its time comes, from rows and totals alike.
    account.campaign_has("c", &["ahead", "shown"]).await;
    account.contact_has(&contact, &["ahead", "shown"]).await;
    account.has_rows(&path(Endpoint::Campaign, "c", "to_date=2000-01-01"), &[]).await;
    let contact_query = format!("contact_id={contact}&type=opened");
    account.has_rows(&path(Endpoint::Campaign, "c", &contact_query), &["ahead", "shown"]).await;
    // Its only event was past retention when it came, and it was taken in.
    account.has_total(&path(Endpoint::Campaign, "gone", ""), 0).await;
}

/// Over HTTP such an event is accepted.
pub async fn what_expired_on_arrival_leaves_its_campaign_and_contact(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let at = Utc::now() - TimeDelta::days(181);
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    let body = event("past", "open", at, &more).to_string();
    let reply = account.post("/v1/events", "application/json", body).await;
    assert_eq!((reply.status, reply.body), (202, json!({ "accepted": 1, "rejected": [] })));
    account.has_total(&path(Endpoint::Campaign, "c", ""), 0).await;
    account.has_total(&path(Endpoint::Contact, &contact, ""), 0).await;
}
