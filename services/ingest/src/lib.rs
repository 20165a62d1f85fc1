//! Log in, store out. [`place`] takes raw events as they come: decodes, filters, joins, and hands rows on by timeline. [`own`]
//! writes each timeline's rows and tallies. [`forgotten`] knows whose rows are left out. [`references`] keeps names. [`kafka`] runs them as
//! members of consumer groups, [`embedded`] in one process. [`progress`] tells until when everything that was published is visible.

pub mod embedded;
pub mod forgotten;
pub mod kafka;
pub mod own;
pub mod place;
pub mod progress;
mod recent;
pub mod references;
pub mod retry;

use std::num::NonZeroU32;
use std::sync::Arc;

use timeline::Timestamp;
use timeline::filter::ListManagementFilter;
use timeline::tally::Sizes;

pub use embedded::Visible;
pub(crate) use kafka::BatchTimer;
pub use progress::least;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Row keys that the owners of an `ingest` hold in memory, some 50 bytes each, or 100 where ids are longer than 23 characters.
pub const KEYS_HELD_MAX: usize = 400_000;
/// The same in `dev`, where a million events of one second, which come in no order, are to be taken in at once.
pub const KEYS_HELD_MAX_EMBEDDED: usize = 1_100_000;

/// How ingest is set up.
#[derive(Clone, Debug)]
pub struct IngestSettings {
    /// How long events are kept, in milliseconds of event time.
    pub retention_ms: i64,
    /// Which clicks are list management.
    pub filter: ListManagementFilter,
    /// Where projections are rebuilt beside those that are live: how many records a second. What is refused is no dead letter then: it
    /// is one already.
    pub replay_per_second_max: Option<NonZeroU32>,
}

impl IngestSettings {
    fn owner(&self, keys_held_max: usize) -> own::OwnerSettings {
        own::OwnerSettings { retention_ms: self.retention_ms, keys_held_max, sizes: Sizes::default() }
    }
}
