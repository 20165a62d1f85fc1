//! Reading the event log as a member of a group.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::LogError;
use crate::record::Incoming;

/// A member of a consumer group that reads one topic: Kafka's, or a simulated one.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Waits until there is a record, or partitions came or went, and takes what is there up to the limits. A
    /// call that is dropped loses nothing.
    ///
    /// # Errors
    ///
    /// [`LogError::Away`] where the topic is missing: told once, then waited for. [`LogError::Refused`] where
    /// this consumer can do nothing any more, or lacks a right.
    async fn next_batch(&self, limits: BatchLimits) -> Result<Batch, LogError>;

    /// The claims of the partitions that are held right now.
    fn claims(&self) -> HashMap<i32, Claim>;

    /// Commits, for each partition, that everything below the given offset is done, where the claim still is
    /// current; and waits for the broker's answer. A call that is dropped may still commit.
    ///
    /// # Errors
    ///
    /// When the broker could not be asked or did not take it. What was committed is not known then: the same
    /// commit may be tried again, and is refused once the claim has ended.
    async fn commit(&self, offsets: &[(i32, Claim, i64)]) -> Result<CommitOutcome, LogError>;

    /// Leaves the group, so that others take over at once. Claims end here.
    async fn close(self)
    where
        Self: Sized;
}

/// One assignment of one partition to this process. Numbers are not used twice in a process, and grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim(pub u64);

/// How much a batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Records at most; at least 1.
    pub records_max: usize,
    /// A batch takes no more records once its keys and values have this many bytes.
    pub bytes_max: usize,
    /// How long to wait for more, since the batch before was handed out: what came while that one was worked on waits no longer.
    pub linger: Duration,
}

/// Records, and the claims they were read under.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Those of one partition in their order. None where partitions came or went and there was nothing to
    /// read.
    pub records: Vec<Incoming>,
    /// The claims of all partitions that were held when the records were taken.
    pub claims: HashMap<i32, Claim>,
}

/// What became of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOutcome {
    /// Partitions whose offset the broker has taken.
    pub done: Vec<i32>,
    /// Partitions whose claim has ended: whoever holds them now starts at the last offset that was committed.
    pub refused: Vec<i32>,
}
