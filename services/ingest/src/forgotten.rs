//! Contacts that were forgotten. Whoever works on rows asks here, so it is kept in memory: some 100 bytes a contact.
//!
//! A contact is only ever added. The store has it before any owner is told so by the internal topic; an owner that takes a partition
//! over reads them all. So an owner that is told in the middle of a partition has known of every contact that was forgotten before
//! it, and treats what comes behind as what it is.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use event_store::EventStore;
use timeline::{AccountId, RowBody, Subject, TimelineId, Timestamp};
use uuid::Uuid;

use crate::retry::until_done;

/// How old what the first stage and the references know may be, in milliseconds. Owners are told.
pub const FORGOTTEN_AGE_MS_MAX: i64 = 10_000;

/// The contacts that were forgotten, as far as this process knows.
pub struct Forgotten {
    store: Arc<dyn EventStore>,
    contacts: RwLock<HashSet<(AccountId, Uuid)>>,
    read_at: AtomicI64,
}

impl Forgotten {
    /// Nobody yet.
    pub fn new(store: Arc<dyn EventStore>) -> Arc<Forgotten> {
        Arc::new(Forgotten { store, contacts: RwLock::default(), read_at: AtomicI64::new(i64::MIN) })
    }

    /// Reads all that the store has. Tries without end.
    pub async fn read(&self) {
        let all = until_done("list_forgotten", || self.store.list_forgotten()).await;
        self.contacts.write().unwrap_or_else(PoisonError::into_inner).extend(all);
    }

    /// Reads them where that was long ago.
    pub async fn keep_fresh(&self, now: Timestamp) {
        let read_at = self.read_at.load(Ordering::Relaxed);
        if !(read_at..read_at.saturating_add(FORGOTTEN_AGE_MS_MAX)).contains(&now.0) {
            self.read().await;
            self.read_at.store(now.0, Ordering::Relaxed);
        }
    }

    /// One more.
    pub fn add(&self, account: &AccountId, contact: Uuid) {
        self.contacts.write().unwrap_or_else(PoisonError::into_inner).insert((account.clone(), contact));
    }

    /// Whether nobody was forgotten.
    pub fn is_empty(&self) -> bool {
        self.contacts.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether a contact was.
    pub fn has(&self, account: &AccountId, contact: Uuid) -> bool {
        let contacts = self.contacts.read().unwrap_or_else(PoisonError::into_inner);
        !contacts.is_empty() && contacts.contains(&(account.clone(), contact))
    }

    /// The forgotten contact whose row, with the stored form `body`, is on its way to `timeline`, if it is one's.
    pub fn whose(&self, timeline: &TimelineId, body: &[u8]) -> Option<Uuid> {
        let contact = match &timeline.subject {
            Subject::Contact(contact) | Subject::ContactCampaign(contact, _) => Some(*contact),
            Subject::Campaign(_) => RowBody::contact_of(body),
        };
        contact.filter(|contact| self.has(&timeline.account, *contact))
    }
}
