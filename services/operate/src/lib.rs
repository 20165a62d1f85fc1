//! What an operator's tools find out, whatever they print of it. Nothing here writes.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`tree`] | whether a timeline's numbers are those of its rows, at every level |
//! | [`views`] | whether a campaign and its contacts show the same events |
//! | [`fate`] | what became of a message: refused, filtered, expired, waiting, or where it shows |
//! | [`shows`] | where a row shows: its endpoint and page |
//! | [`places`] | which of the rows that should stand do |

pub mod fate;
pub mod places;
pub mod shows;
pub mod tree;
pub mod views;

use timeline::{Id, TimelineId};

/// How many requests to the store are under way at once.
const STORE_REQUESTS_MAX: usize = 32;

/// Two levels of the ledger that say different things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose; none where a message has no timeline.
    pub timeline: Option<TimelineId>,
    /// Between which levels.
    pub level: Level,
    /// What each says.
    pub what: String,
}

/// Between which levels of the ledger a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A tree that cannot be read.
    Damaged,
    /// The root's number of a node, and the node.
    RootAndNode,
    /// A leaf's number, and its rows.
    LeafAndRows,
    /// A campaign's rows, and those of a contact.
    CampaignAndContact,
    /// The log, and the rows that should stand, or the events that should wait.
    LogAndRows,
    /// The log, and its dead letters.
    LogAndLetters,
}

impl Level {
    /// The level as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Level::Damaged => "damaged",
            Level::RootAndNode => "root/node",
            Level::LeafAndRows => "leaf/rows",
            Level::CampaignAndContact => "campaign/contact",
            Level::LogAndRows => "log/rows",
            Level::LogAndLetters => "log/letters",
        }
    }

    /// Whether the timeline's owner mends it by counting again.
    pub fn is_mended_by_recount(self) -> bool {
        matches!(self, Level::RootAndNode | Level::LeafAndRows)
    }
}

/// The campaign that a timeline is about, if it is one's.
fn campaign_of(timeline: &TimelineId) -> Option<&Id> {
    match &timeline.subject {
        timeline::Subject::Campaign(id) => Some(id),
        _ => None,
    }
}
