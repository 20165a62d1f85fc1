//! Where a row shows: its endpoint and page.

use event_store::{EventStore, StoreError};
use query::read::{PageRequest, read_page};
use timeline::row::RowKey;
use timeline::{Position, Span, Subject, TimelineId, Timestamp, TypeSet};

/// Rows of a page where a client asks for no number of them.
const CAMPAIGN_PER_PAGE: u64 = 50;
const CONTACT_PER_PAGE: u64 = 100;

/// Where a row shows without filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shows {
    /// The path, with the page.
    pub path: String,
    /// Its place on that page, from 1.
    pub place: u64,
    /// Rows that come before it, on all pages.
    pub newer: u64,
}

/// Where the row `key` of `timeline` shows at `now`; `None` where its endpoint shows no rows of its type, or it is past retention.
///
/// # Errors
///
/// When the store fails.
pub async fn shows(
    store: &dyn EventStore,
    timeline: &TimelineId,
    key: &RowKey,
    now: Timestamp,
    retention_ms: i64,
) -> Result<Option<Shows>, StoreError> {
    let (types, per_page, path) = match &timeline.subject {
        Subject::Campaign(id) => (TypeSet::CAMPAIGN, CAMPAIGN_PER_PAGE, format!("/v1/campaigns/{id}/events")),
        Subject::Contact(uuid) => (TypeSet::CONTACT, CONTACT_PER_PAGE, format!("/contacts/{uuid}/events")),
        Subject::ContactCampaign(..) => return Ok(None),
    };
    if !types.contains(key.event_type) || key.position.at < now.minus_ms(retention_ms) {
        return Ok(None);
    }
    let behind = Span::only(&key.position).until;
    let request = PageRequest {
        types,
        span: Span { from: behind, until: Position::max() },
        campaign: None,
        offset: 0,
        limit: 0,
    };
    let newer = read_page(store, timeline, &request).await?.total;
    Ok(Some(Shows {
        path: format!("{path}?page={}", newer / per_page + 1),
        place: newer % per_page + 1,
        newer,
    }))
}
