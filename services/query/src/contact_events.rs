//! `GET /contacts/{uuid}/events`: what happened to one contact, newest first.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{OriginalUri, Path, State};
use axum::response::Response;
use edge::{Access, Problem};
use serde::Serialize;
use serde_json::value::RawValue;
use timeline::event::EventType::{
    AutomationUnsubscribed, Bounced, Clicked, Created, Delivered, GloballyResubscribed, GloballyUnsubscribed,
    Imported, Opened, Purchased, Sent, Subscribed, Unsubscribed,
};
use timeline::id::parse_uuid;
use timeline::reference::{Kind, ReferenceKey};
use timeline::time::{DAY_MS, parse_date};
use timeline::{AccountId, Id, Row, RowBody, Span, TimelineId, Timestamp, TypeSet};
use uuid::Uuid;

use crate::names::{PageNames, key_of};
use crate::params::{NUMBER_MAX, Paging, Params};
use crate::read::PageRequest;
use crate::{Query, answer};

const ENDPOINT: &str = "contact_events";
const PER_PAGE_DEFAULT: u64 = 100;
const PER_PAGE_MAX: u64 = 100;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    paging: Paging,
    types: TypeSet,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Wanted {
    fn parse(query: Option<&str>) -> Result<Wanted, Problem> {
        let mut params = Params::parse(query);
        let of_type = params.take("type", type_of).unwrap_or(TypeSet::CONTACT);
        let of_group = params.take("type_group", types_of_group).unwrap_or(TypeSet::CONTACT);
        let wanted = Wanted {
            types: of_type.and(of_group),
            from: params.take("from", parse_date),
            to: params.take("to", parse_date).map(|day| day.plus_ms(DAY_MS - 1)),
            paging: Paging {
                page: params.take_number("page", NUMBER_MAX).unwrap_or(1),
                per_page: params.take_number("per_page", PER_PAGE_MAX).unwrap_or(PER_PAGE_DEFAULT),
            },
        };
        params.finish().map(|()| wanted)
    }

    fn span(&self, oldest_shown: Timestamp) -> Span {
        let from = self.from.map_or(oldest_shown, |from| from.max(oldest_shown));
        Span::of_times(from, self.to.unwrap_or(Timestamp(i64::MAX)))
    }
}

fn type_of(name: &str) -> Option<TypeSet> {
    let event_type = TypeSet::CONTACT.iter().find(|event_type| event_type.name() == name)?;
    Some(TypeSet::of(&[event_type]))
}

fn types_of_group(name: &str) -> Option<TypeSet> {
    Some(TypeSet::of(match name {
        "delivery" => &[Sent, Delivered, Bounced],
        "engagement" => &[Opened, Clicked],
        "subscription" => {
            &[Subscribed, Unsubscribed, GloballyUnsubscribed, GloballyResubscribed, AutomationUnsubscribed]
        }
        "commerce" => &[Purchased],
        "lifecycle" => &[Created, Imported],
        _ => return None,
    }))
}

/// Answers a page.
pub(crate) async fn list(
    State(query): State<Arc<Query>>,
    access: Access,
    uuid: Result<Path<String>, PathRejection>,
    OriginalUri(uri): OriginalUri,
) -> Result<Response, Problem> {
    let wanted = Wanted::parse(uri.query())?;
    let account = access.account();
    let contact = uuid.ok().and_then(|Path(uuid)| parse_uuid(&uuid)).ok_or(Problem::UnknownContact)?;
    let timeline = TimelineId::contact(account, contact);
    if !query.known.contains(&timeline).await? {
        return Err(Problem::UnknownContact);
    }
    let request = PageRequest {
        types: wanted.types,
        span: wanted.span(query.oldest_shown()),
        campaign: None,
        offset: wanted.paging.offset(),
        limit: wanted.paging.limit(),
    };
    let page = query.read(ENDPOINT, &timeline, &request).await?;
    let named = page.rows.iter().flat_map(|row| references_of(&row.body, account));
    let names = query.names.look_up(named).await?;
    let data = page.rows.iter().map(|row| EventRow::of(row, account, &names));
    let body = Body {
        data: data.collect::<Result<_, _>>()?,
        pagination: Pagination {
            current_page: wanted.paging.page,
            per_page: wanted.paging.per_page,
            total: page.total,
        },
    };
    answer(&query.answers, &body, &uri, wanted.paging, page.rows.len(), page.total)
}

/// What a row's references are keyed by.
fn references_of(body: &RowBody, account: &AccountId) -> impl Iterator<Item = ReferenceKey> {
    let ids =
        [(Kind::Campaign, &body.campaign), (Kind::Automation, &body.automation), (Kind::List, &body.list)];
    ids.into_iter().filter_map(|(kind, id)| Some(key_of(account, kind, id.as_ref()?)))
}

#[derive(Serialize)]
struct Body<'a> {
    data: Vec<EventRow<'a>>,
    pagination: Pagination,
}

#[derive(Serialize)]
struct Pagination {
    current_page: u64,
    per_page: u64,
    total: u64,
}

/// A row as it is shown. Every row has every key.
#[derive(Serialize)]
struct EventRow<'a> {
    uuid: Uuid,
    event_type: &'static str,
    happened_at: String,
    campaign: Option<Named<'a>>,
    automation: Option<Named<'a>>,
    list: Option<Named<'a>>,
    detail: Option<&'a RawValue>,
}

/// A campaign, automation or list.
#[derive(Serialize)]
struct Named<'a> {
    uuid: &'a str,
    name: Option<&'a str>,
}

impl<'a> EventRow<'a> {
    fn of(row: &'a Row, account: &AccountId, names: &'a PageNames) -> Result<EventRow<'a>, Problem> {
        let named = |kind, id: &'a Option<Id>| {
            let id = id.as_ref()?;
            Some(Named { uuid: id.as_str(), name: names.name(&key_of(account, kind, id)) })
        };
        Ok(EventRow {
            uuid: shown_uuid(&row.key.position.id),
            event_type: row.key.event_type.name(),
            happened_at: row.key.position.at.to_rfc3339(),
            campaign: named(Kind::Campaign, &row.body.campaign),
            automation: named(Kind::Automation, &row.body.automation),
            list: named(Kind::List, &row.body.list),
            detail: row.body.detail.as_deref().map(crate::stored_object).transpose()?,
        })
    }
}

/// An event's id where it is a UUID, otherwise its UUIDv5 in the OID namespace.
fn shown_uuid(id: &str) -> Uuid {
    parse_uuid(id).unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use edge::testing::get;
    use timeline::key::Permission;

    use super::*;
    use crate::testing::{FIELDS_OF_ANY_TYPE, JANE, Site, every_type, links};

    fn path() -> String {
        format!("/contacts/{JANE}/events")
    }

    /// The reference's example: a click, a purchase, a bounce and a list unsubscribe, with what they name.
    async fn example() -> Site {
        let site = Site::new().await;
        let (spring, welcome) =
            ("d5a66ae0-e974-4b1b-81ef-4f14c425550a", "a7b50db9-ada9-4367-86e8-88cb8d9353ac");
        let list = "c28f14de-47e6-41bc-8f3d-fb070c1c459c";
        for fields in [
            format!(
                r#""id":"af556d1b-2b71-4df5-8228-fcaaf509db4c","type":"click","occurred_at":"2026-06-20T09:14:02Z","campaign_id":"{spring}","list_id":"{list}","url":"https://shop.example/products/42""#
            ),
            format!(
                r#""id":"6732395d-199f-46d3-9f20-01aedc0d4a1b","type":"purchase","occurred_at":"2026-06-19T18:41:05Z","campaign_id":"{spring}","purchase":{{"order_uuid":"2ca53614-fcaf-47df-bf6b-d9ab90be6b04","product_uuid":"9354ecda-05bd-4144-bb8f-ba9c59fc8d61","product_name":"Pro plan","variant_name":"annual","is_subscription":true,"amount":4900,"currency":"EUR"}}"#
            ),
            format!(
                r#""id":"399e0e2a-10e0-42ea-8f31-364d12d4ec4e","type":"bounce","occurred_at":"2026-06-18T07:00:00Z","campaign_id":"{welcome}""#
            ),
            format!(
                r#""id":"48378307-161e-4c4b-8936-575402894764","type":"unsubscribe","occurred_at":"2026-06-10T12:00:00Z","list_id":"{list}""#
            ),
        ] {
            site.event(&format!(r#"{fields},"contact_id":"{JANE}""#)).await;
        }
        for (kind, id, name) in [
            ("campaign", spring, "Spring Sale"),
            ("campaign", welcome, "Welcome"),
            ("list", list, "Newsletter"),
        ] {
            site.reference(&format!(r#""kind":"{kind}","id":"{id}","name":"{name}""#)).await;
        }
        site
    }

    async fn types(site: &Site, query: &str) -> Vec<String> {
        let answer = site.get(&format!("{}?{query}", path())).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let json = answer.json();
        let rows = json["data"].as_array().expect("an array").clone();
        assert_eq!(json["pagination"]["total"], rows.len(), "{query}");
        rows.iter().map(|row| row["event_type"].as_str().expect("a type").to_owned()).collect()
    }

    #[tokio::test]
    async fn the_references_example_is_answered_to_the_letter() {
        let site = example().await;
        let body = concat!(
            r#"{"data":[{"uuid":"af556d1b-2b71-4df5-8228-fcaaf509db4c","event_type":"clicked","happened_at":"2026-06-20T09:14:02Z","campaign":{"uuid":"d5a66ae0-e974-4b1b-81ef-4f14c425550a","name":"Spring Sale"},"automation":null,"list":null,"detail":{"url":"https://shop.example/products/42"}},"#,
            r#"{"uuid":"6732395d-199f-46d3-9f20-01aedc0d4a1b","event_type":"purchased","happened_at":"2026-06-19T18:41:05Z","campaign":{"uuid":"d5a66ae0-e974-4b1b-81ef-4f14c425550a","name":"Spring Sale"},"automation":null,"list":null,"detail":{"order_uuid":"2ca53614-fcaf-47df-bf6b-d9ab90be6b04","product_uuid":"9354ecda-05bd-4144-bb8f-ba9c59fc8d61","product_name":"Pro plan","variant_name":"annual","is_subscription":true}},"#,
            r#"{"uuid":"399e0e2a-10e0-42ea-8f31-364d12d4ec4e","event_type":"bounced","happened_at":"2026-06-18T07:00:00Z","campaign":{"uuid":"a7b50db9-ada9-4367-86e8-88cb8d9353ac","name":"Welcome"},"automation":null,"list":null,"detail":{"type":"soft"}},"#,
            r#"{"uuid":"48378307-161e-4c4b-8936-575402894764","event_type":"unsubscribed","happened_at":"2026-06-10T12:00:00Z","campaign":null,"automation":null,"list":{"uuid":"c28f14de-47e6-41bc-8f3d-fb070c1c459c","name":"Newsletter"},"detail":null}],"#,
            r#""pagination":{"current_page":1,"per_page":100,"total":4}}"#,
        );
        let upper = format!("/api/v1/contacts/{}/events", JANE.to_uppercase());
        for uri in [path(), upper.clone()] {
            let answer = site.get(&uri).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.text(), body);
        }
        let answer = site.get(&format!("{upper}?page=2&per_page=3")).await;
        assert_eq!(answer.json()["pagination"].to_string(), r#"{"current_page":2,"per_page":3,"total":4}"#);
        assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(1));
        assert_eq!(links(&answer), [("first".to_owned(), 1), ("prev".to_owned(), 1), ("last".to_owned(), 2)]);
        assert!(answer.header("link").starts_with(&format!("<{upper}?per_page=3&page=1>")));
    }

    #[tokio::test]
    async fn a_bad_query_is_422_with_details_and_comes_before_404() {
        let site = example().await;
        for (query, name, value) in [
            ("type=bogus", "type", "bogus"),
            ("type=replied", "type", "replied"),
            ("type=complained", "type", "complained"),
            ("type=click", "type", "click"),
            ("type_group=bogus", "type_group", "bogus"),
            ("type_group=Delivery", "type_group", "Delivery"),
            ("from=2026-02-30", "from", "2026-02-30"),
            ("from=2026-03-01T00:00:00Z", "from", "2026-03-01T00:00:00Z"),
            ("to=31.03.2026", "to", "31.03.2026"),
            ("to=2026-3-1", "to", "2026-3-1"),
            ("page=0", "page", "0"),
            ("page=-1", "page", "-1"),
            ("page=x", "page", "x"),
            ("page=2147483649", "page", "2147483649"),
            ("per_page=0", "per_page", "0"),
            ("per_page=101", "per_page", "101"),
            ("per_page=%ff", "per_page", "\u{fffd}"),
        ] {
            for uri in [path(), "/contacts/bogus/events".to_owned()] {
                let answer = site.get(&format!("{uri}?{query}")).await;
                let message = format!("Invalid value '{value}' for filter '{name}'");
                let body = format!(
                    r#"{{"error":{{"code":"VALIDATION_ERROR","message":"{message}","details":{{"{name}":["{message}"]}}}}}}"#
                );
                assert_eq!((answer.status.as_u16(), answer.text()), (422, body.as_str()), "{query}");
            }
        }
        let answer = site.get(&format!("{}?page=0&type=sent&type=opened&to=x", path())).await;
        let details = r#"{"type":["Several values for filter 'type'"],"to":["Invalid value 'x' for filter 'to'"],"page":["Invalid value '0' for filter 'page'"]}"#;
        assert_eq!(answer.json()["error"]["details"].to_string(), details);
        for fine in ["type=&type_group=&from=&page=", "x=1&x=2", "per_page=100&per_page=100"] {
            assert_eq!(types(&site, fine).await.len(), 4, "{fine}");
        }
    }

    #[tokio::test]
    async fn thirteen_types_show_alone_and_in_groups() {
        let site = Site::new().await;
        for event_type in every_type() {
            site.event(&format!(
                r#""id":"{event_type}","type":"{event_type}","occurred_at":"2026-09-01T00:00:00Z","contact_id":"{JANE}","campaign_id":"c",{FIELDS_OF_ANY_TYPE}"#
            ))
            .await;
        }
        let mut shown: Vec<&str> =
            every_type().filter(|name| !["replied", "complained"].contains(name)).collect();
        shown.sort_unstable();
        shown.reverse();
        assert_eq!(types(&site, "").await, shown);
        for event_type in &shown {
            assert_eq!(types(&site, &format!("type={event_type}")).await, [*event_type]);
        }
        for (group, members) in [
            ("delivery", vec!["sent", "delivered", "bounced"]),
            ("engagement", vec!["opened", "clicked"]),
            (
                "subscription",
                vec![
                    "unsubscribed",
                    "subscribed",
                    "globally_unsubscribed",
                    "globally_resubscribed",
                    "automation_unsubscribed",
                ],
            ),
            ("commerce", vec!["purchased"]),
            ("lifecycle", vec!["imported", "created"]),
        ] {
            assert_eq!(types(&site, &format!("type_group={group}")).await, members);
        }
        assert_eq!(types(&site, "type_group=delivery&type=bounced").await, ["bounced"]);
        assert!(types(&site, "type_group=delivery&type=opened").await.is_empty());
    }

    #[tokio::test]
    async fn days_are_whole_and_inclusive() {
        let site = example().await;
        for (query, expected) in [
            ("from=2026-06-19", vec!["clicked", "purchased"]),
            ("to=2026-06-18", vec!["bounced", "unsubscribed"]),
            ("from=2026-06-18&to=2026-06-19", vec!["purchased", "bounced"]),
            ("from=2026-06-20&to=2026-06-10", vec![]),
            ("from=2026-06-20&type=clicked", vec!["clicked"]),
        ] {
            assert_eq!(types(&site, query).await, expected, "{query}");
        }
        site.event(&format!(
            r#""id":"last","type":"open","occurred_at":"2026-06-21T23:59:59.999Z","contact_id":"{JANE}""#
        ))
        .await;
        assert_eq!(types(&site, "from=2026-06-21&to=2026-06-21").await, ["opened"]);
    }

    #[tokio::test]
    async fn names_are_those_of_now() {
        let site = Site::new().await;
        site.event(&format!(
            r#""id":"e","type":"open","occurred_at":"2026-09-01T00:00:00Z","contact_id":"{JANE}","campaign_id":"c","automation_id":"a:1""#
        ))
        .await;
        let row = async || site.get(&path()).await.json()["data"][0].clone();
        let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"e");
        let unnamed = format!(
            r#"{{"uuid":"{uuid}","event_type":"opened","happened_at":"2026-09-01T00:00:00Z","campaign":{{"uuid":"c","name":null}},"automation":{{"uuid":"a:1","name":null}},"list":null,"detail":null}}"#
        );
        assert_eq!(row().await.to_string(), unnamed);
        for name in ["Spring", "Summer"] {
            site.bench.pass_ms(250);
            site.reference(&format!(r#""kind":"campaign","id":"c","name":"{name}""#)).await;
            assert_eq!(row().await["campaign"]["name"], name);
        }
        site.bench.pass_ms(250);
        site.reference(r#""kind":"campaign","id":"c","deleted":true"#).await;
        assert_eq!(row().await["campaign"]["name"], "Summer");
    }

    #[tokio::test]
    async fn a_contact_that_is_unknown_anothers_or_no_uuid_is_not_found() {
        let site = Site::new().await;
        site.event_of(
            "globex",
            &format!(r#""id":"g","type":"open","occurred_at":"2026-09-01T00:00:00Z","contact_id":"{JANE}""#),
        )
        .await;
        let expected = r#"{"error":{"code":"RESOURCE_NOT_FOUND","message":"Contact not found"}}"#;
        for id in
            [JANE, "bogus", "123e4567e89b12d3a456426614174000", "%ff", "00000000-0000-0000-0000-000000000000"]
        {
            let answer = site.get(&format!("/contacts/{id}/events")).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (404, expected), "{id}");
        }
        site.know_contact(JANE).await;
        let empty = r#"{"data":[],"pagination":{"current_page":1,"per_page":100,"total":0}}"#;
        assert_eq!(site.get(&path()).await.text(), empty);
    }

    #[tokio::test]
    async fn its_errors_are_in_upper_case() {
        let site = example().await;
        let writer = site.bench.key("acme", &[Permission::CampaignsRead]).await;
        for (key, status, code) in [("", 401, "UNAUTHENTICATED"), (writer.as_str(), 403, "FORBIDDEN")] {
            let answer = get(&site.app, &path(), key).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
        }
        site.bench.store.set_away(true);
        site.bench.pass_ms(1000);
        let answer = site.get("/contacts/00000000-0000-0000-0000-000000000000/events").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "SERVICE_UNAVAILABLE"));
        assert_ne!(answer.header("retry-after"), "");
    }
}
