//! `GET /v1/campaigns/{id}/events`: what happened to the e-mails of one campaign, newest first.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{OriginalUri, Path, State};
use axum::response::Response;
use edge::envelope::FaultKind;
use edge::{Access, Problem};
use serde::Serialize;
use serde_json::value::RawValue;
use timeline::id::parse_uuid;
use timeline::{AccountId, Id, Row, Span, TimelineId, Timestamp, TypeSet};
use uuid::Uuid;

use crate::names::{PageNames, contact_key};
use crate::params::{NUMBER_MAX, Paging, Params, parse_lower, parse_upper};
use crate::read::PageRequest;
use crate::{Query, answer};

const ENDPOINT: &str = "campaign_events";
const PER_PAGE_DEFAULT: u64 = 50;
const PER_PAGE_MAX: u64 = 100;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    paging: Paging,
    types: TypeSet,
    contact: Option<Uuid>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Wanted {
    fn parse(query: Option<&str>) -> Result<Wanted, Problem> {
        let mut params = Params::parse(query);
        let wanted = Wanted {
            types: params.take_or("type", FaultKind::EventType, types_of).unwrap_or(TypeSet::CAMPAIGN),
            contact: params.take("contact_id", parse_uuid),
            from: params.take("from_date", parse_lower),
            to: params.take("to_date", parse_upper),
            paging: Paging {
                page: params.take_number("page", NUMBER_MAX).unwrap_or(1),
                per_page: params
                    .take_number("per_page", NUMBER_MAX)
                    .map_or(PER_PAGE_DEFAULT, |per_page| per_page.min(PER_PAGE_MAX)),
            },
        };
        params.finish().map(|()| wanted)
    }

    fn span(&self, oldest_shown: Timestamp) -> Span {
        let from = self.from.map_or(oldest_shown, |from| from.max(oldest_shown));
        Span::of_times(from, self.to.unwrap_or(Timestamp(i64::MAX)))
    }
}

/// The types that show as `name`: every opt-out shows as `unsubscribed`.
fn types_of(name: &str) -> Option<TypeSet> {
    let types = TypeSet::CAMPAIGN.iter().filter(|event_type| event_type.campaign_name() == name);
    let types = types.fold(TypeSet::default(), TypeSet::with);
    (!types.is_empty()).then_some(types)
}

/// Answers a page.
pub(crate) async fn list(
    State(query): State<Arc<Query>>,
    access: Access,
    id: Result<Path<String>, PathRejection>,
    OriginalUri(uri): OriginalUri,
) -> Result<Response, Problem> {
    let wanted = Wanted::parse(uri.query())?;
    let account = access.account();
    let campaign = id.ok().and_then(|Path(id)| Id::parse(&id)).ok_or(Problem::UnknownCampaign)?;
    let timeline = TimelineId::campaign(account, &campaign);
    if !query.known.contains(&timeline).await? {
        return Err(Problem::UnknownCampaign);
    }
    let request = PageRequest {
        types: wanted.types,
        span: wanted.span(query.oldest_shown()),
        campaign: wanted.contact.map(|_| campaign),
        offset: wanted.paging.offset(),
        limit: wanted.paging.limit(),
    };
    // A contact's events of one campaign are on the contact's timeline, or beside it where that is long.
    let timeline = wanted.contact.map_or(timeline, |contact| TimelineId::contact(account, contact));
    let page = query.read(ENDPOINT, &timeline, &request).await?;
    let contact_of = |row: &Row| wanted.contact.or(row.body.contact);
    let without_email = page.rows.iter().filter(|row| row.body.email.is_none()).filter_map(contact_of);
    let names = query.names.look_up(without_email.map(|contact| contact_key(account, contact))).await?;
    let events = page.rows.iter().map(|row| EventRow::of(row, contact_of(row), account, &names));
    let body = Body {
        data: Data { events: events.collect::<Result<_, _>>()? },
        meta: Meta { page: wanted.paging.page, per_page: wanted.paging.per_page, total: page.total },
    };
    answer(&query.answers, &body, &uri, wanted.paging, page.rows.len(), page.total)
}

#[derive(Serialize)]
struct Body<'a> {
    data: Data<'a>,
    meta: Meta,
}

#[derive(Serialize)]
struct Data<'a> {
    events: Vec<EventRow<'a>>,
}

#[derive(Serialize)]
struct Meta {
    page: u64,
    per_page: u64,
    total: u64,
}

/// A row as it is shown. Every row has every key.
#[derive(Serialize)]
struct EventRow<'a> {
    id: &'a str,
    r#type: &'static str,
    contact_id: Option<Uuid>,
    email: Option<&'a str>,
    step_id: Option<&'a str>,
    timestamp: String,
    metadata: &'a RawValue,
}

impl<'a> EventRow<'a> {
    fn of(
        row: &'a Row,
        contact: Option<Uuid>,
        account: &AccountId,
        names: &'a PageNames,
    ) -> Result<EventRow<'a>, Problem> {
        let latest_email = || names.email(&contact_key(account, contact?));
        Ok(EventRow {
            id: &row.key.position.id,
            r#type: row.key.event_type.campaign_name(),
            contact_id: contact,
            email: row.body.email.as_deref().or_else(latest_email),
            step_id: row.body.step.as_ref().map(Id::as_str),
            timestamp: row.key.position.at.to_rfc3339(),
            metadata: crate::stored_object(row.body.metadata.as_deref().unwrap_or("{}"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use edge::testing::get;
    use timeline::key::Permission;

    use crate::testing::{FIELDS_OF_ANY_TYPE, JANE, Site, every_type, links};

    const PATH: &str = "/v1/campaigns/cmp_abc123/events";

    /// Two events as in the reference's example.
    async fn example() -> Site {
        let site = Site::new().await;
        let common = format!(
            r#""contact_id":"{JANE}","email":"jane@example.com","campaign_id":"cmp_abc123","step_id":"step_1""#
        );
        site.event(&format!(
            r#""id":"evt_a1b2c3d4","type":"open","occurred_at":"2026-04-17T14:23:05.9Z",{common},"metadata":{{"user_agent":"Mozilla/5.0 ...","ip_country":"DE"}}"#
        ))
        .await;
        site.event(&format!(
            r#""id":"evt_b2c3d4e5","type":"click","occurred_at":"2026-04-17T16:23:42+02:00",{common},"url":"https://leadlex.com/demo""#
        ))
        .await;
        site
    }

    /// `count` opens of one campaign, a second apart, `e001` the oldest, at 2026-09-01T00:00:00Z.
    async fn opens(count: usize) -> Site {
        let site = Site::new().await;
        for n in 1..=count {
            let at = format!("2026-09-01T00:{:02}:{:02}Z", (n - 1) / 60, (n - 1) % 60);
            site.event(&format!(
                r#""id":"e{n:03}","type":"open","occurred_at":"{at}","contact_id":"{JANE}","campaign_id":"cmp_abc123""#
            ))
            .await;
        }
        site
    }

    async fn ids(site: &Site, query: &str) -> Vec<String> {
        let answer = site.get(&format!("{PATH}?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let json = answer.json();
        let events = json["data"]["events"].as_array().expect("an array").clone();
        events.iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
    }

    #[tokio::test]
    async fn the_references_example_is_answered_to_the_letter() {
        let site = example().await;
        let clicked = format!(
            r#"{{"id":"evt_b2c3d4e5","type":"clicked","contact_id":"{JANE}","email":"jane@example.com","step_id":"step_1","timestamp":"2026-04-17T14:23:42Z","metadata":{{"url":"https://leadlex.com/demo"}}}}"#
        );
        let opened = format!(
            r#"{{"id":"evt_a1b2c3d4","type":"opened","contact_id":"{JANE}","email":"jane@example.com","step_id":"step_1","timestamp":"2026-04-17T14:23:05Z","metadata":{{"user_agent":"Mozilla/5.0 ...","ip_country":"DE"}}}}"#
        );
        for path in [PATH, "/functions/v1/api-gateway/v1/campaigns/cmp_abc123/events"] {
            let answer = site.get(&format!("{path}?per_page=100")).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), "application/json");
            let body = format!(
                r#"{{"data":{{"events":[{clicked},{opened}]}},"meta":{{"page":1,"per_page":100,"total":2}}}}"#
            );
            assert_eq!(answer.text(), body);
            let link = format!(
                r#"<{path}?per_page=100&page=1>; rel="first", <{path}?per_page=100&page=1>; rel="last""#
            );
            assert_eq!(answer.header("link"), link);
        }
        let answer = site.get(&format!("{PATH}?type=opened&per_page=100")).await;
        let body =
            format!(r#"{{"data":{{"events":[{opened}]}},"meta":{{"page":1,"per_page":100,"total":1}}}}"#);
        assert_eq!(answer.text(), body);
    }

    #[tokio::test]
    async fn pages_are_whole_and_past_the_end_they_are_empty() {
        let site = opens(5).await;
        for (query, expected, rels) in [
            ("", vec!["e005", "e004", "e003", "e002", "e001"], vec![("first", 1), ("last", 1)]),
            ("per_page=2", vec!["e005", "e004"], vec![("first", 1), ("next", 2), ("last", 3)]),
            (
                "per_page=2&page=2",
                vec!["e003", "e002"],
                vec![("first", 1), ("prev", 1), ("next", 3), ("last", 3)],
            ),
            ("per_page=2&page=3", vec!["e001"], vec![("first", 1), ("prev", 2), ("last", 3)]),
            ("per_page=2&page=4", vec![], vec![("first", 1), ("prev", 3), ("last", 3)]),
            ("per_page=2&page=2147483648", vec![], vec![("first", 1), ("prev", 3), ("last", 3)]),
        ] {
            assert_eq!(ids(&site, query).await, expected, "{query}");
            let answer = site.get(&format!("{PATH}?{query}")).await;
            assert_eq!(answer.json()["meta"]["total"], 5, "{query}");
            let rels: Vec<_> = rels.into_iter().map(|(rel, page)| (rel.to_owned(), page)).collect();
            assert_eq!(links(&answer), rels, "{query}");
        }
        for (query, per_page) in
            [("", 50), ("per_page=100", 100), ("per_page=101", 100), ("per_page=2147483648", 100)]
        {
            let meta = site.get(&format!("{PATH}?{query}")).await.json()["meta"].clone();
            assert_eq!((&meta["page"], &meta["per_page"]), (&1.into(), &per_page.into()), "{query}");
        }
    }

    #[tokio::test]
    async fn a_bad_query_is_400_and_comes_before_404() {
        let site = example().await;
        for (query, code) in [
            ("type=bogus", "invalid_event_type"),
            ("type=open", "invalid_event_type"),
            ("type=Opened", "invalid_event_type"),
            ("type=subscribed", "invalid_event_type"),
            ("type=globally_unsubscribed", "invalid_event_type"),
            ("type=%ff", "invalid_event_type"),
            ("type=opened&type=clicked", "invalid_parameter"),
            ("page=0", "invalid_parameter"),
            ("page=-1", "invalid_parameter"),
            ("page=abc", "invalid_parameter"),
            ("page=1.5", "invalid_parameter"),
            ("page=2147483649", "invalid_parameter"),
            ("per_page=0", "invalid_parameter"),
            ("per_page=-5", "invalid_parameter"),
            ("per_page=2147483649", "invalid_parameter"),
            ("page=1&page=2", "invalid_parameter"),
            ("contact_id=bogus", "invalid_parameter"),
            ("contact_id=123e4567e89b12d3a456426614174000", "invalid_parameter"),
            ("from_date=yesterday", "invalid_parameter"),
            ("from_date=2026-02-30", "invalid_parameter"),
            ("to_date=2026-04-17T24:00:00Z", "invalid_parameter"),
            ("to_date=1776420000", "invalid_parameter"),
        ] {
            for path in [PATH, "/v1/campaigns/cmp_unknown/events"] {
                let answer = site.get(&format!("{path}?{query}")).await;
                assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, code), "{query}");
            }
        }
        let message = |answer: &edge::testing::Answer| answer.json()["error"]["message"].clone();
        assert_eq!(
            message(&site.get(&format!("{PATH}?page=0")).await),
            "Invalid value '0' for parameter 'page'"
        );
        assert_eq!(
            message(&site.get(&format!("{PATH}?type=bogus")).await),
            "Unrecognized event type 'bogus'"
        );
        for fine in ["type=&page=&contact_id=&from_date=", "bogus=1&bogus=2", "page=1&page=1", "to_date="] {
            assert_eq!(ids(&site, fine).await.len(), 2, "{fine}");
        }
    }

    #[tokio::test]
    async fn bounds_are_inclusive_and_cut_at_their_precision() {
        let site = example().await;
        let (opened, clicked, both) =
            (vec!["evt_a1b2c3d4"], vec!["evt_b2c3d4e5"], vec!["evt_b2c3d4e5", "evt_a1b2c3d4"]);
        for (query, expected) in [
            ("from_date=2026-04-17", both.clone()),
            ("to_date=2026-04-17", both.clone()),
            ("to_date=2026-04-16", vec![]),
            ("from_date=2026-04-18", vec![]),
            ("to_date=2026-04-17T14:23:05Z", opened.clone()),
            ("to_date=2026-04-17T14:23:05.8Z", vec![]),
            ("from_date=2026-04-17T14:23:05.9Z", both.clone()),
            ("from_date=2026-04-17T14:23:05.9000001Z", clicked.clone()),
            ("from_date=2026-04-17T14:23:06", clicked.clone()),
            ("from_date=2026-04-17T16:23:06+02:00", clicked.clone()),
            ("from_date=2026-04-17T16:23:06%2B02:00", clicked),
            ("from_date=2026-04-18&to_date=2026-04-17", vec![]),
            ("from_date=0001-01-01&to_date=9999-12-31", both),
        ] {
            assert_eq!(ids(&site, query).await, expected, "{query}");
        }
    }

    #[tokio::test]
    async fn eight_types_show_and_every_opt_out_is_unsubscribed() {
        let site = Site::new().await;
        for event_type in every_type() {
            site.event(&format!(
                r#""id":"{event_type}","type":"{event_type}","occurred_at":"2026-09-01T00:00:00Z","contact_id":"{JANE}","campaign_id":"cmp_abc123",{FIELDS_OF_ANY_TYPE}"#
            ))
            .await;
        }
        let unsubscribed = ["unsubscribed", "globally_unsubscribed", "automation_unsubscribed"];
        assert_eq!(ids(&site, "type=unsubscribed").await, unsubscribed);
        for other in ["sent", "delivered", "opened", "clicked", "replied", "bounced", "complained"] {
            assert_eq!(ids(&site, &format!("type={other}")).await, [other]);
        }
        // Equal times: by id as text, descending.
        let all = [
            "unsubscribed",
            "sent",
            "replied",
            "opened",
            "globally_unsubscribed",
            "delivered",
            "complained",
            "clicked",
            "bounced",
            "automation_unsubscribed",
        ];
        assert_eq!(ids(&site, "").await, all);
        let answer = site.get(&format!("{PATH}?type=unsubscribed")).await.json();
        let events = answer["data"]["events"].as_array().expect("an array").clone();
        assert!(
            events
                .iter()
                .all(|event| event["type"] == "unsubscribed" && event["metadata"] == serde_json::json!({}))
        );
        // The contact's rows of the campaign are the same.
        assert_eq!(ids(&site, &format!("contact_id={JANE}")).await, all);
        assert_eq!(
            ids(&site, &format!("contact_id={JANE}&type=unsubscribed&per_page=1&page=2")).await,
            unsubscribed[1..2]
        );
    }

    #[tokio::test]
    async fn one_contacts_events_are_of_this_campaign_only() {
        let site = example().await;
        let elsewhere =
            format!(r#""type":"open","occurred_at":"2026-05-01T00:00:00Z","contact_id":"{JANE}""#);
        site.event(&format!(r#""id":"other",{elsewhere},"campaign_id":"cmp_other""#)).await;
        site.event(&format!(r#""id":"none",{elsewhere}"#)).await;
        let bob = "123e4567-e89b-12d3-a456-426614174001";
        site.event(&format!(
            r#""id":"bobs","type":"send","occurred_at":"2026-05-01T00:00:00Z","contact_id":"{bob}","campaign_id":"cmp_abc123""#
        ))
        .await;
        let upper = JANE.to_uppercase();
        for contact in [JANE, &upper] {
            let answer = site.get(&format!("{PATH}?contact_id={contact}&per_page=1")).await;
            let whole = site.get(&format!("{PATH}?per_page=1&page=2")).await;
            assert_eq!(answer.json()["data"], whole.json()["data"]);
            assert_eq!(answer.json()["meta"]["total"], 2);
        }
        assert_eq!(ids(&site, &format!("contact_id={bob}")).await, ["bobs"]);
        let unknown = site.get(&format!("{PATH}?contact_id=00000000-0000-0000-0000-000000000000")).await;
        assert_eq!(unknown.text(), r#"{"data":{"events":[]},"meta":{"page":1,"per_page":50,"total":0}}"#);
    }

    #[tokio::test]
    async fn anothers_campaign_is_an_unknown_one() {
        let site = example().await;
        site.event_of("globex", &format!(r#""id":"g","type":"open","occurred_at":"2026-05-01T00:00:00Z","contact_id":"{JANE}","campaign_id":"cmp_globex""#)).await;
        let expected = r#"{"error":{"code":"campaign_not_found","message":"No campaign with this ID"}}"#;
        for id in ["cmp_unknown", "cmp_globex", "a%20b", "a%2Fb", "%ff", &"x".repeat(65), "%C3%A4"] {
            let answer = site.get(&format!("/v1/campaigns/{id}/events")).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (404, expected), "{id}");
        }
        // What was once known stays known without another look.
        assert_eq!(site.get(PATH).await.status, 200);
        let theirs = site.bench.key("globex", &[Permission::CampaignsRead]).await;
        assert_eq!(get(&site.app, PATH, &theirs).await.status, 404);
        assert_eq!(
            get(&site.app, "/v1/campaigns/cmp%5Fglobex/events", &theirs).await.json()["meta"]["total"],
            1
        );
    }

    #[tokio::test]
    async fn an_event_shows_for_180_days_and_its_campaign_for_ever() {
        let site = example().await;
        let age = 180 * timeline::time::DAY_MS;
        let opened_at = timeline::time::parse_date_time("2026-04-17T14:23:05.9Z").expect("valid").at;
        site.bench.pass_ms(opened_at.0 + age - site.bench.now().0);
        assert_eq!(ids(&site, "").await.len(), 2);
        site.bench.pass_ms(1);
        assert_eq!(ids(&site, "from_date=2026-01-01").await, ["evt_b2c3d4e5"]);
        assert_eq!(ids(&site, &format!("contact_id={JANE}")).await, ["evt_b2c3d4e5"]);
        assert_eq!(site.get(PATH).await.json()["meta"]["total"], 1);
        site.bench.pass_ms(60_000);
        assert_eq!(
            site.get(PATH).await.text(),
            r#"{"data":{"events":[]},"meta":{"page":1,"per_page":50,"total":0}}"#
        );
    }

    #[tokio::test]
    async fn what_is_unknown_is_null_and_an_address_may_come_later() {
        let site = Site::new().await;
        site.event(r#""id":"e","type":"open","occurred_at":"2026-09-01T00:00:00Z","message_id":"m","campaign_id":"cmp_abc123""#).await;
        let row = site.get(PATH).await.json()["data"]["events"][0].clone();
        let expected = r#"{"id":"e","type":"opened","contact_id":null,"email":null,"step_id":null,"timestamp":"2026-09-01T00:00:00Z","metadata":{}}"#;
        assert_eq!(row.to_string(), expected);
        site.event(&format!(r#""id":"f","type":"open","occurred_at":"2026-09-01T00:00:01Z","contact_id":"{JANE}","campaign_id":"cmp_abc123""#)).await;
        let email = async || site.get(PATH).await.json()["data"]["events"][0]["email"].clone();
        assert_eq!(email().await, serde_json::Value::Null);
        for address in ["jane@example.com", "jane@new.example"] {
            site.bench.pass_ms(250);
            site.reference(&format!(r#""kind":"contact","id":"{JANE}","email":"{address}""#)).await;
            assert_eq!(email().await, address);
        }
        let filtered = site.get(&format!("{PATH}?contact_id={JANE}")).await.json();
        assert_eq!(filtered["data"]["events"][0]["email"], "jane@new.example");
    }

    #[tokio::test]
    async fn without_the_store_it_is_503() {
        let site = example().await;
        assert_eq!(site.get(PATH).await.status, 200);
        site.bench.store.set_away(true);
        let answer = site.get(PATH).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "unavailable"));
        assert_ne!(answer.header("retry-after"), "");
        assert!(!answer.text().contains("away"));
    }
}
