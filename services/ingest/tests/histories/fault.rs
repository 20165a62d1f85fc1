//! What is done wrong on purpose, to prove that the histories would find it.

use timeline::tally::Rule;

/// A rule that is left out. Those of the protocol's model come first, then others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// An earlier owner's number can overwrite a later one's.
    NoEpoch,
    /// A number gets its stamp when it arrives, not when it is counted.
    StampWhenSent,
    /// A leaf starts from its stored number, not from its rows.
    TrustTally,
    /// A node starts from its stored number, not from its leaves.
    TrustNode,
    /// A count of rows misses what stands in the store.
    MemoryOnly,
    /// Rows are counted though their write was not acknowledged.
    CountBeforeAcknowledged,
    /// An event looks for its send once more before it is put to wait, not after.
    LookThenWait,
    /// The offset is committed before the work is done.
    CommitFirst,
    /// A worker that lost its partition still commits.
    CommitAfterRevoke,
    /// Rows go to the partition of whoever placed them, not to their timeline's.
    OwnerByPartition,
    /// Nobody asks whether the partition is still ours once its epoch is taken.
    LateEpoch,
    /// What was read is committed, though only what came before it is done.
    CommitWhatWasRead,
    /// A row lives from when it is written, not from when its event occurred.
    LifeFromNow,
    /// Numbers are stamped with the writer's clock.
    StampFromClock,
    /// What a batch touches is forgotten while the batch is in work.
    ForgottenInFlight,
    /// Rows that are tried again are one fewer.
    RetryDropsRow,
    /// Rows are counted on a copy that is behind.
    StaleCount,
    /// A record counts as appended though its acknowledgement never came.
    AppendUnacknowledged,
    /// An owner that finds a promise without a tree does not say that there is none.
    TreelessUnsaid,
    /// A tree is written though its promise was not acknowledged.
    PromiseUnacknowledged,
    /// Whoever takes a timeline over does not look whether a tree was promised.
    PromiseUnread,
    /// Whoever has promised a tree does not look whether the partition was taken over.
    EpochUnread,
    /// A reader takes what it has seen of a tree for what is there.
    SeenIsTrusted,
}

impl Fault {
    /// Every fault.
    pub(crate) const ALL: [Fault; 23] = [
        Fault::NoEpoch,
        Fault::StampWhenSent,
        Fault::TrustTally,
        Fault::TrustNode,
        Fault::MemoryOnly,
        Fault::CountBeforeAcknowledged,
        Fault::LookThenWait,
        Fault::CommitFirst,
        Fault::CommitAfterRevoke,
        Fault::OwnerByPartition,
        Fault::LateEpoch,
        Fault::CommitWhatWasRead,
        Fault::LifeFromNow,
        Fault::StampFromClock,
        Fault::ForgottenInFlight,
        Fault::RetryDropsRow,
        Fault::StaleCount,
        Fault::AppendUnacknowledged,
        Fault::TreelessUnsaid,
        Fault::PromiseUnacknowledged,
        Fault::PromiseUnread,
        Fault::EpochUnread,
        Fault::SeenIsTrusted,
    ];

    /// Whether it shows where two owners meet while one of them writes the first tree of a timeline.
    pub(crate) fn is_of_a_first_tree(self) -> bool {
        matches!(
            self,
            Fault::TreelessUnsaid | Fault::PromiseUnacknowledged | Fault::PromiseUnread | Fault::EpochUnread
        )
    }

    /// The rule of the tree that is left out, where it is one of the tree's.
    pub(crate) fn rule(self) -> Option<Rule> {
        match self {
            Fault::TrustTally => Some(Rule::LeavesAreCounted),
            Fault::TrustNode => Some(Rule::NodesAreSums),
            Fault::ForgottenInFlight => Some(Rule::TouchedIsHeld),
            _ => None,
        }
    }
}
