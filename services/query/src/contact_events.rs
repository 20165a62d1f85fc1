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
    answer(&body, &uri, wanted.paging, page.total)
}

/// What a row's references are keyed by.
fn references_of(body: &RowBody, account: &AccountId) -> impl Iterator<Item = ReferenceKey> {
    let ids = [(Kind::Campaign, &body.campaign), (Kind::Automation, &body.automation), (Kind::List, &body.list)];
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
