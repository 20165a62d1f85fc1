//! Whether a campaign and its contacts show the same events.

use std::collections::{BTreeMap, BTreeSet};

use event_store::{Columns, EventStore, StoreError};
use futures::stream::{self, StreamExt, TryStreamExt};
use query::read::{PageRequest, read_page};
use timeline::row::RowKey;
use timeline::tally::{FIRST_PART, Parts, ROOT_CELL, Root};
use timeline::{AccountId, Id, Position, RowBody, Span, Subject, TimelineId, TypeSet};
use uuid::Uuid;

use crate::{Difference, Level, STORE_REQUESTS_MAX, campaign_of, places};

/// More rows of one contact in one node of a campaign there are not.
const ROWS_MAX: usize = 1 << 24;

/// Compares a timeline's rows with the other view: a campaign's with those of its contacts, a contact's with those of its campaigns.
/// Rows that came or went meanwhile are told as differences, so what is found is to be looked at again.
///
/// # Errors
///
/// When the store fails.
pub async fn compare(store: &dyn EventStore, id: &TimelineId) -> Result<Vec<Difference>, StoreError> {
    let root = read_root(store, id).await?;
    let stretches: Vec<(Span, Parts)> = match &root {
        None => vec![(Span::all(), Parts::from_elem(FIRST_PART, 1))],
        Some(root) => root
            .entries
            .iter()
            .enumerate()
            .map(|(at, entry)| (root.entry_span(at), entry.parts.clone()))
            .collect(),
    };
    let mut differences = Vec::new();
    for (span, parts) in stretches {
        let mut rows = Vec::new();
        for part in parts {
            rows.extend(store.read_rows(id, part, TypeSet::CAMPAIGN, &span, Columns::All, usize::MAX).await?);
        }
        let rows = rows
            .into_iter()
            .map(|row| Ok((row.key.position, decode(RowBody::decode(&row.body))?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        match (campaign_of(id), &id.subject) {
            (Some(campaign), _) => {
                differences.extend(campaign_rows(store, id, campaign, &span, rows).await?);
            }
            (None, Subject::Contact(contact)) => {
                differences.extend(contact_rows(store, id, *contact, rows).await?);
            }
            _ => {}
        }
    }
    Ok(differences)
}

/// A campaign's rows of a span, and those that its contacts have of it.
async fn campaign_rows(
    store: &dyn EventStore,
    id: &TimelineId,
    campaign: &Id,
    span: &Span,
    rows: Vec<(Position, RowBody)>,
) -> Result<Vec<Difference>, StoreError> {
    let mut by_contact = BTreeMap::<Uuid, BTreeSet<Position>>::new();
    for (position, body) in rows {
        // One whose contact is not known yet shows on the campaign alone.
        if let Some(contact) = body.contact {
            by_contact.entry(contact).or_default().insert(position);
        }
    }
    let compared: Vec<Vec<Difference>> = stream::iter(by_contact)
        .map(|(contact, here)| async move {
            let request = PageRequest {
                types: TypeSet::CAMPAIGN,
                span: span.clone(),
                campaign: Some(campaign.clone()),
                offset: 0,
                limit: ROWS_MAX,
            };
            let other = TimelineId::contact(&id.account, contact);
            let there = read_page(store, &other, &request).await?;
            let there: BTreeSet<Position> = there.rows.into_iter().map(|row| row.key.position).collect();
            let lacks = |timeline: &TimelineId, position: &Position, other: &TimelineId| Difference {
                timeline: Some(timeline.clone()),
                level: Level::CampaignAndContact,
                what: format!(
                    "lacks event {} of {}, which {} has",
                    position.id,
                    position.at.to_rfc3339(),
                    other.subject
                ),
            };
            let of_contact = here.difference(&there).map(|position| lacks(&other, position, id));
            let of_campaign = there.difference(&here).map(|position| lacks(id, position, &other));
            Ok::<_, StoreError>(of_contact.chain(of_campaign).collect())
        })
        .buffer_unordered(STORE_REQUESTS_MAX)
        .try_collect()
        .await?;
    Ok(compared.into_iter().flatten().collect())
}

/// A contact's rows of campaigns: each stands on its campaign, too; and once more by campaign where the history is long.
async fn contact_rows(
    store: &dyn EventStore,
    id: &TimelineId,
    contact: Uuid,
    rows: Vec<(Position, RowBody)>,
) -> Result<Vec<Difference>, StoreError> {
    let mut wanted = BTreeMap::<TimelineId, BTreeSet<Position>>::new();
    let root = read_root(store, id).await?;
    let is_paired = root.is_some_and(|root| root.paired);
    for (position, body) in rows {
        let Some(campaign) = body.campaign else { continue };
        if is_paired {
            let pair = TimelineId::contact_campaign(&id.account, contact, &campaign);
            wanted.entry(pair).or_default().insert(position.clone());
        }
        wanted.entry(TimelineId::campaign(&id.account, &campaign)).or_default().insert(position);
    }
    let missing = places::missing(store, wanted).await?;
    let told = missing.into_iter().flat_map(|(timeline, positions)| {
        let told = positions.into_iter().map(|position| Difference {
            timeline: Some(timeline.clone()),
            level: Level::CampaignAndContact,
            what: format!(
                "lacks event {} of {}, which {} has",
                position.id,
                position.at.to_rfc3339(),
                id.subject
            ),
        });
        told.collect::<Vec<_>>()
    });
    Ok(told.collect())
}

/// Every row of a contact, by timeline: its own, and its campaigns'. What stands once more by campaign is told by its own.
///
/// # Errors
///
/// When the store fails.
pub async fn rows_of_contact(
    store: &dyn EventStore,
    account: &AccountId,
    contact: Uuid,
) -> Result<BTreeMap<TimelineId, BTreeSet<RowKey>>, StoreError> {
    let id = TimelineId::contact(account, contact);
    let root = read_root(store, &id).await?;
    let parts: BTreeSet<u32> = match root {
        None => [FIRST_PART].into(),
        Some(root) => root.entries.iter().flat_map(|entry| entry.parts.iter().copied()).collect(),
    };
    let mut rows = BTreeMap::<TimelineId, BTreeSet<RowKey>>::new();
    for part in parts {
        for row in store.read_rows(&id, part, TypeSet::ALL, &Span::all(), Columns::All, usize::MAX).await? {
            if let Some(campaign) = decode(RowBody::decode(&row.body))?.campaign
                && TypeSet::CAMPAIGN.contains(row.key.event_type)
            {
                let of_campaign = TimelineId::campaign(account, &campaign);
                rows.entry(of_campaign).or_default().insert(row.key.clone());
            }
            rows.entry(id.clone()).or_default().insert(row.key);
        }
    }
    Ok(rows)
}

/// The timelines that a contact's events of campaigns stand in once more, where its history is long.
///
/// # Errors
///
/// When the store fails.
pub async fn pairs_of(store: &dyn EventStore, id: &TimelineId) -> Result<Vec<TimelineId>, StoreError> {
    let Subject::Contact(contact) = id.subject else { return Ok(Vec::new()) };
    let Some(root) = read_root(store, id).await? else { return Ok(Vec::new()) };
    if !root.paired {
        return Ok(Vec::new());
    }
    let parts: BTreeSet<u32> = root.entries.iter().flat_map(|entry| entry.parts.iter().copied()).collect();
    let mut campaigns = BTreeSet::new();
    for part in parts {
        let rows = store.read_rows(id, part, TypeSet::ALL, &Span::all(), Columns::All, usize::MAX).await?;
        for row in rows {
            campaigns.extend(decode(RowBody::decode(&row.body))?.campaign);
        }
    }
    Ok(campaigns
        .iter()
        .map(|campaign| TimelineId::contact_campaign(&id.account, contact, campaign))
        .collect())
}

fn decode<T>(decoded: Result<T, timeline::codec::Damaged>) -> Result<T, StoreError> {
    decoded.map_err(|damaged| StoreError::new("decode", damaged))
}

/// The root of a timeline's tree, if it has one.
async fn read_root(store: &dyn EventStore, id: &TimelineId) -> Result<Option<Root>, StoreError> {
    let root = store.read_tallies(id, &[ROOT_CELL]).await?.pop().flatten();
    root.map_or(Ok(None), |root| decode(Root::read(&root.bytes)))
}
