//! Records of the event log.

use bytes::Bytes;
use timeline::Timestamp;

/// The topics of Backstamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Raw events, as the senders publish them.
    Events,
    /// References: the last value of a key is kept.
    References,
    /// Rows on their way to the owner of their campaign. Internal; its partition count never changes.
    CampaignEvents,
    /// Messages that were refused, as they came.
    DeadLetters,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Topic; 4] = [Topic::Events, Topic::References, Topic::CampaignEvents, Topic::DeadLetters];

    /// The name without a prefix, as metrics and log lines show it.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Events => "mail.events",
            Topic::References => "mail.references",
            Topic::CampaignEvents => "mail.campaign-events",
            Topic::DeadLetters => "mail.events.dead",
        }
    }

    /// The name in a Kafka where this installation's topics start with `prefix`.
    pub fn name_with(self, prefix: &str) -> String {
        format!("{prefix}{}", self.name())
    }
}

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Topic,
    /// Its partition; `None` leaves it to the key (by murmur2, as Java's producers do), or to chance without
    /// one.
    pub partition: Option<i32>,
    /// What it is about.
    pub key: Option<Vec<u8>>,
    /// Its content; `None` deletes the key from a compacted topic.
    pub value: Option<Vec<u8>>,
    /// Headers. The embedded log does not keep them.
    pub headers: Vec<(&'static str, String)>,
}

impl Outgoing {
    /// A record without headers whose partition is left to its key.
    pub fn new(topic: Topic, key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> Outgoing {
        Outgoing { topic, partition: None, key, value, headers: Vec::new() }
    }
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Where from.
    pub topic: Topic,
    /// Its partition; 0 in the embedded log.
    pub partition: i32,
    /// Its place in the partition. Offsets grow, and may leave some out.
    pub offset: i64,
    /// What it is about.
    pub key: Option<Bytes>,
    /// Its content; `None` deletes the key.
    pub value: Option<Bytes>,
    /// When the log took it in, by the log's clock: of Kafka, the broker's `LogAppendTime`.
    pub appended_at: Timestamp,
    /// The trace that it belongs to, by its header `traceparent`; looked for only while traces are sent.
    pub traceparent: Option<Box<str>>,
}

impl Incoming {
    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len)
    }
}
