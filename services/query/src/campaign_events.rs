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
    // A contact's events of one campaign are few, and on the contact's timeline.
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
    answer(&body, &uri, wanted.paging, page.total)
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
