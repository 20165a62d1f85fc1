//! The examples of both references, with their dates moved near now.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{error, event, noon, shown};
use crate::client::{Client, Prefix};
use crate::model::Endpoint;
use crate::stack::{Stack, path};

const JANE: &str = "123e4567-e89b-12d3-a456-426614174000";
const CAMPAIGN: &str = "cmp_abc123";
const CONTACT: &str = "7b1f9c2e-3a4d-4b8e-9c1d-2e3f4a5b6c7d";
const SPRING_SALE: &str = "d5a66ae0-e974-4b1b-81ef-4f14c425550a";
const WELCOME: &str = "a7b50db9-ada9-4367-86e8-88cb8d9353ac";
const NEWSLETTER: &str = "c28f14de-47e6-41bc-8f3d-fb070c1c459c";

/// The two rows, newest first as the words say, and the type filter of its request.
pub async fn the_campaign_streams_example(stack: &Stack) {
    let account = stack.account().await;
    let opened_at = noon(2) + TimeDelta::seconds(2 * 3600 + 23 * 60 + 5);
    let clicked_at = opened_at + TimeDelta::seconds(37);
    let about_jane = |more: &Value| {
        let mut fields = json!({
            "contact_id": JANE, "email": "jane@example.com", "campaign_id": CAMPAIGN, "step_id": "step_1",
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            fields[name] = value.clone();
        }
        fields
    };
    let metadata = json!({ "user_agent": "Mozilla/5.0 ...", "ip_country": "DE" });
    let url = "https://leadlex.com/demo";
    account
        .publish(&[
            event("evt_a1b2c3d4", "open", opened_at, &about_jane(&json!({ "metadata": metadata }))),
            event("evt_b2c3d4e5", "click", clicked_at, &about_jane(&json!({ "url": url }))),
        ])
        .await;

    let row = |id: &str, event_type: &str, at: DateTime<Utc>, metadata: &Value| {
        json!({
            "id": id,
            "type": event_type,
            "contact_id": JANE,
            "email": "jane@example.com",
            "step_id": "step_1",
            "timestamp": shown(at),
            "metadata": metadata,
        })
    };
    let opened = row("evt_a1b2c3d4", "opened", opened_at, &metadata);
    let clicked = row("evt_b2c3d4e5", "clicked", clicked_at, &json!({ "url": url }));
    let all = json!({
        "data": { "events": [clicked, opened] },
        "meta": { "page": 1, "per_page": 50, "total": 2 },
    });
    let of_type = json!({
        "data": { "events": [opened] },
        "meta": { "page": 1, "per_page": 100, "total": 1 },
    });
    for prefix in [Prefix::Short, Prefix::Long] {
        let path = Client::path(Endpoint::Campaign, prefix, CAMPAIGN);
        let reply = account.answers(&path, &all).await;
        // The page's keys have the order that the reference has.
        assert_eq!(reply.body.to_string(), all.to_string());
        account.answers(&format!("{path}?type=opened&per_page=100"), &of_type).await;
    }
}

/// The four rows with their names, and the three requests.
pub async fn the_contact_timelines_example(stack: &Stack) {
    let account = stack.account().await;
    let (clicked_at, purchased_at) =
        (noon(1) - TimeDelta::seconds(9958), noon(2) + TimeDelta::seconds(24065));
    let (bounced_at, unsubscribed_at) = (noon(3) - TimeDelta::hours(5), noon(11));
    account
        .refer(&[
            json!({ "kind": "campaign", "id": SPRING_SALE, "name": "Spring Sale" }),
            json!({ "kind": "campaign", "id": WELCOME, "name": "Welcome" }),
            json!({ "kind": "list", "id": NEWSLETTER, "name": "Newsletter" }),
        ])
        .await;
    let purchase = json!({
        "order_uuid": "2ca53614-fcaf-47df-bf6b-d9ab90be6b04",
        "product_uuid": "9354ecda-05bd-4144-bb8f-ba9c59fc8d61",
        "product_name": "Pro plan",
        "variant_name": "annual",
        "is_subscription": true,
    });
    let mut bought = purchase.clone();
    bought["amount"] = json!("99.00");
    bought["currency"] = json!("EUR");
    let url = "https://shop.example/products/42";
    account
        .publish(&[
            event(
                "af556d1b-2b71-4df5-8228-fcaaf509db4c",
                "click",
                clicked_at,
                &json!({ "contact_id": CONTACT, "campaign_id": SPRING_SALE, "url": url }),
            ),
            event(
                "6732395d-199f-46d3-9f20-01aedc0d4a1b",
                "purchase",
                purchased_at,
                &json!({ "contact_id": CONTACT, "campaign_id": SPRING_SALE, "purchase": bought }),
            ),
            event(
                "399e0e2a-10e0-42ea-8f31-364d12d4ec4e",
                "bounce",
                bounced_at,
                &json!({ "contact_id": CONTACT, "campaign_id": WELCOME }),
            ),
            event(
                "48378307-161e-4c4b-8936-575402894764",
                "unsubscribe",
                unsubscribed_at,
                &json!({ "contact_id": CONTACT, "list_id": NEWSLETTER }),
            ),
        ])
        .await;

    let row =
        |id: &str, event_type: &str, at: DateTime<Utc>, campaign: &Value, list: &Value, detail: &Value| {
            json!({
                "uuid": id,
                "event_type": event_type,
                "happened_at": shown(at),
                "campaign": campaign,
                "automation": null,
                "list": list,
                "detail": detail,
            })
        };
    let named = |uuid: &str, name: &str| json!({ "uuid": uuid, "name": name });
    let (spring_sale, welcome) = (named(SPRING_SALE, "Spring Sale"), named(WELCOME, "Welcome"));
    let newsletter = named(NEWSLETTER, "Newsletter");
    let none = Value::Null;
    let rows = [
        row(
            "af556d1b-2b71-4df5-8228-fcaaf509db4c",
            "clicked",
            clicked_at,
            &spring_sale,
            &none,
            &json!({ "url": url }),
        ),
        row(
            "6732395d-199f-46d3-9f20-01aedc0d4a1b",
            "purchased",
            purchased_at,
            &spring_sale,
            &none,
            &purchase,
        ),
        row(
            "399e0e2a-10e0-42ea-8f31-364d12d4ec4e",
            "bounced",
            bounced_at,
            &welcome,
            &none,
            &json!({ "type": "soft" }),
        ),
        row(
            "48378307-161e-4c4b-8936-575402894764",
            "unsubscribed",
            unsubscribed_at,
            &none,
            &newsletter,
            &none,
        ),
    ];
    let page = |rows: &[Value], per_page: u32| {
        json!({
            "data": rows,
            "pagination": { "current_page": 1, "per_page": per_page, "total": rows.len() },
        })
    };
    let (from, to) = (bounced_at.date_naive(), purchased_at.date_naive());
    for prefix in [Prefix::Short, Prefix::Long] {
        let path = Client::path(Endpoint::Contact, prefix, CONTACT);
        let reply = account.answers(&path, &page(&rows, 100)).await;
        assert_eq!(reply.body.to_string(), page(&rows, 100).to_string());
        account.answers(&format!("{path}?page=1&per_page=50"), &page(&rows, 50)).await;
        account.answers(&format!("{path}?type_group=engagement"), &page(&rows[..1], 100)).await;
        account.answers(&format!("{path}?from={from}&to={to}"), &page(&rows[1..3], 100)).await;
    }
}

/// The errors that the references show, word for word where they give words.
pub async fn the_errors_of_both_references(stack: &Stack) {
    let account = stack.account().await;
    let contact = super::new_id();
    account.refer(&[json!({ "kind": "contact", "id": contact })]).await;
    account.has_total(&path(Endpoint::Contact, &contact, ""), 0).await;

    for id in [super::new_id().as_str(), "not-a-uuid"] {
        let reply = account.contact(id, "").await;
        assert_eq!((reply.status, reply.body), (404, error("RESOURCE_NOT_FOUND", "Contact not found")));
    }
    let reply = account.contact(&contact, "type=bogus").await;
    let message = "Invalid value 'bogus' for filter 'type'";
    let body = json!({
        "error": { "code": "VALIDATION_ERROR", "message": message, "details": { "type": [message] } },
    });
    assert_eq!((reply.status, reply.body), (422, body));
    let reply = account.campaign("cmp_never", "").await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (404, &json!("campaign_not_found")));
    let reply = account.campaign("cmp_never", "type=bogus").await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (400, &json!("invalid_event_type")));
}
