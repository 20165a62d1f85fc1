//! Which campaigns and contacts exist. One that does goes on existing, so what the store affirmed is remembered; what
//! it denied is asked again.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use event_store::{EventStore, StoreError};
use lru::LruCache;
use timeline::TimelineId;

/// How many timelines are remembered.
const TIMELINES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// The timelines that are known to exist.
pub(crate) struct Known {
    store: Arc<dyn EventStore>,
    remembered: Mutex<LruCache<TimelineId, ()>>,
}

impl Known {
    /// Nothing is remembered yet.
    pub(crate) fn new(store: Arc<dyn EventStore>) -> Known {
        Known { store, remembered: Mutex::new(LruCache::new(TIMELINES_MAX)) }
    }

    /// Whether `timeline` exists: its reference or any event of it was taken in.
    pub(crate) async fn contains(&self, timeline: &TimelineId) -> Result<bool, StoreError> {
        if self.remembered().get(timeline).is_some() {
            return Ok(true);
        }
        let is_known = self.store.is_known(timeline).await?;
        if is_known {
            self.remembered().put(timeline.clone(), ());
        }
        Ok(is_known)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, LruCache<TimelineId, ()>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
