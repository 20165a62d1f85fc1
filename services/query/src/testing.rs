//! The endpoints on a store of their own, and events put there as ingest would.

use std::sync::Arc;

use axum::Router;
use edge::testing::{Answer, Bench, get};
use event_store::{EventStore, ReferenceWrite, RowGroup, RowWrite};
use timeline::event::decode_event;
use timeline::key::Permission;
use timeline::reference::decode_reference_value;
use timeline::row::{Placing, project};
use timeline::tally::FIRST_PART;
use timeline::time::DAY_MS;
use timeline::{AccountId, TimelineId, TypeSet};

use crate::{Query, router};

/// The account of [`Site::key`].
pub(crate) const ACCOUNT: &str = "acme";
/// A contact.
pub(crate) const JANE: &str = "123e4567-e89b-12d3-a456-426614174000";
/// How long events show here, in days.
pub(crate) const RETENTION_DAYS: u32 = 180;

/// The endpoints, a key that may read both, and the store behind them.
pub(crate) struct Site {
    pub(crate) bench: Bench,
    pub(crate) app: Router,
    pub(crate) key: String,
}

impl Site {
    /// Nothing happened yet, and there is no rate limit.
    pub(crate) async fn new() -> Site {
        let bench = Bench::new();
        let door = bench.door("off");
        let query = Query::new(bench.store.clone(), bench.clock(), RETENTION_DAYS);
        let app = edge::app(router(Arc::new(query), &door), &door);
        let key = bench.key(ACCOUNT, &[Permission::CampaignsRead, Permission::ContactsRead]).await;
        Site { bench, app, key }
    }

    /// Takes an event of the account in: `fields` of a JSON object, without the account.
    pub(crate) async fn event(&self, fields: &str) {
        self.event_of(ACCOUNT, fields).await;
    }

    /// Takes an event of any account in.
    pub(crate) async fn event_of(&self, account: &str, fields: &str) {
        let json = format!(r#"{{"account_id":"{account}",{fields}}}"#);
        let now = self.bench.now();
        let event = decode_event(json.as_bytes(), now).expect("valid");
        let store = &self.bench.store;
        for row in project(&event, now, Placing::Complete) {
            store.mark_known(std::slice::from_ref(&row.timeline)).await.expect("marked");
            let expires_at = event.at.plus_ms((i64::from(RETENTION_DAYS) + 10) * DAY_MS);
            let write =
                RowWrite { key: row.key, stamp: row.stamp, expires_at, body: row.body, is_new: false };
            let group = RowGroup { timeline: &row.timeline, part: FIRST_PART, rows: vec![write] };
            store.write_rows(now, &[group]).await.expect("written");
        }
    }

    /// Takes a reference of the account in: `fields` of a JSON object, without the account.
    pub(crate) async fn reference(&self, fields: &str) {
        let json = format!(r#"{{"account_id":"{ACCOUNT}",{fields}}}"#);
        let reference = decode_reference_value(json.as_bytes()).expect("valid");
        let stamp = self.bench.now().0 * 1000;
        let write = ReferenceWrite { reference, stamp };
        self.bench.store.write_references(&[write]).await.expect("written");
    }

    /// Makes a contact known that nothing happened to.
    pub(crate) async fn know_contact(&self, contact: &str) {
        let account = AccountId::parse(ACCOUNT).expect("valid");
        let contact = timeline::id::parse_uuid(contact).expect("valid");
        self.bench.store.mark_known(&[TimelineId::contact(&account, contact)]).await.expect("marked");
    }

    /// Gets `uri` with the key.
    pub(crate) async fn get(&self, uri: &str) -> Answer {
        get(&self.app, uri, &self.key).await
    }
}

/// Every type's name as senders may write it.
pub(crate) fn every_type() -> impl Iterator<Item = &'static str> {
    TypeSet::SHOWN.iter().map(timeline::EventType::name)
}

/// Fields that any type of event may have, so that events of all types can be made alike.
pub(crate) const FIELDS_OF_ANY_TYPE: &str = r#""url":"https://a.example/","purchase":{"order_uuid":"o","product_uuid":"p","product_name":"Pro","is_subscription":false}"#;

/// The `rel`s of an answer's `Link` header with the page that each names.
pub(crate) fn links(answer: &Answer) -> Vec<(String, u64)> {
    let links = answer.header("link").split(", ").map(|link| {
        let (target, rel) = link.split_once(">; rel=").expect("a link");
        let page = target.rsplit_once("page=").expect("a page").1.parse().expect("a number");
        (rel.trim_matches('"').to_owned(), page)
    });
    links.collect()
}
