//! Events whose time runs out between the two stages.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;

use event_store::EventStore;
use event_store::embedded::EmbeddedStore;
use ingest::Clock;
use ingest::own::{OwnBatch, Owner, OwnerSettings};
use query::read::{PageRequest, read_page};
use timeline::row::{Placing, project};
use timeline::tally::Sizes;
use timeline::time::DAY_MS;
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet, event};

const NOW: Timestamp = Timestamp(1_790_000_000_000);

#[tokio::test]
async fn what_expires_before_its_owner_sees_it_shows_nowhere_and_its_campaign_exists() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn EventStore> = Arc::new(EmbeddedStore::open(directory.path()).unwrap());
    let retention_ms = 180 * DAY_MS;
    let settings = OwnerSettings { retention_ms, keys_held_max: 1000, sizes: Sizes::default() };
    let mut owner = Owner::new(store.clone(), "test", settings);
    let occurred_at = Timestamp((NOW.0 - retention_ms) / 1000 * 1000);
    let json = format!(
        r#"{{"id":"e1","account_id":"acme","type":"open","occurred_at":"{}","contact_id":"123e4567-e89b-12d3-a456-426614174000","campaign_id":"late"}}"#,
        occurred_at.to_rfc3339()
    );
    let event = event::decode_event(json.as_bytes(), NOW).unwrap();
    let rows = project(&event, NOW, Placing::Complete);
    let clock: Clock = Arc::new(|| NOW.plus_ms(2000));
    let owned = owner.work(&clock, vec![OwnBatch { partition: 0, claim: 0, rows }]).await;
    assert_eq!((owned.projected, owned.expired), (0, 1));

    let account = AccountId::parse("acme").unwrap();
    let campaign = TimelineId::campaign(&account, &Id::parse("late").unwrap());
    for timeline in [campaign, TimelineId::contact(&account, event.contact.unwrap())] {
        assert!(store.is_known(&timeline).await.unwrap(), "{timeline:?}");
        let request =
            PageRequest { types: TypeSet::ALL, span: Span::all(), campaign: None, offset: 0, limit: 10 };
        assert_eq!(read_page(store.as_ref(), &timeline, &request).await.unwrap().total, 0);
    }
}
