//! How to reach Kafka, and the settings of the clients.

use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::record::Topic;

/// How to reach Kafka.
#[derive(Clone, Default)]
pub struct KafkaConfig {
    /// Bootstrap servers, `host:port[,host:port]`.
    pub brokers: String,
    /// The consumer group. Appenders and topics do without.
    pub group: String,
    /// How this client is called in the brokers' logs and quotas.
    pub client_id: String,
    /// What the names of all topics start with; empty in most installations.
    pub topic_prefix: String,
    /// What the name of the internal topic starts with behind that; empty but where projections are rebuilt beside others.
    pub internal_prefix: String,
    /// Settings for librdkafka, from [`parse_options`]. They win over ours, but for those that Backstamp's
    /// promises rest on: the clients refuse these.
    pub options: Vec<(String, String)>,
}

impl fmt::Debug for KafkaConfig {
    /// Without the values of the options: there are passwords among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("group", &self.group)
            .field("client_id", &self.client_id)
            .field("topic_prefix", &self.topic_prefix)
            .field("internal_prefix", &self.internal_prefix)
            .field("options", &self.options.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .finish()
    }
}

/// Options for librdkafka cannot be used. Never shows a value: it may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// An entry without `=`.
    #[error("entry {0} of the kafka options has no `=`; a comma inside a value is written `\\,`")]
    NoValue(usize),
    /// An entry that starts with `=`.
    #[error("entry {0} of the kafka options has no name")]
    NoName(usize),
    /// A name that comes twice.
    #[error("kafka option `{0}` is given twice")]
    Twice(String),
    /// A setting that is Backstamp's own.
    #[error("kafka option `{0}` is not free: {1}")]
    Taken(String, &'static str),
    /// A setting that librdkafka does not take.
    #[error("kafka option `{0}` or its value is not known to librdkafka")]
    Unknown(String),
    /// Settings that do not go together, in librdkafka's words.
    #[error("kafka client: {0}")]
    Client(String),
}

/// Reads `BACKSTAMP_KAFKA_OPTIONS`: `name=value,name=value`. A value may hold `=`; a comma or backslash in it
/// is written `\,` or `\\`; any other backslash stands for itself. Spaces around names and entries do not
/// count, nor do empty entries.
///
/// # Errors
///
/// Tells the entry, counted from 1, that cannot be read.
pub fn parse_options(text: &str) -> Result<Vec<(String, String)>, OptionsError> {
    let mut options: Vec<(String, String)> = Vec::new();
    for (index, entry) in split_entries(text).into_iter().enumerate() {
        if entry.trim().is_empty() {
            continue;
        }
        let (name, value) = entry.split_once('=').ok_or(OptionsError::NoValue(index + 1))?;
        let name = name.trim();
        if name.is_empty() {
            return Err(OptionsError::NoName(index + 1));
        }
        check_free(name)?;
        if options.iter().any(|(taken, _)| taken == name) {
            return Err(OptionsError::Twice(name.to_owned()));
        }
        options.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(options)
}

/// Splits at commas that have no backslash before them, and takes the backslashes away.
fn split_entries(text: &str) -> Vec<String> {
    let mut entries = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let entry = entries.last_mut().expect("there is always a last entry");
        match char {
            '\\' => entry.push(chars.next_if(|next| matches!(next, ',' | '\\')).unwrap_or('\\')),
            ',' => entries.push(String::new()),
            _ => entry.push(char),
        }
    }
    entries
}

fn check_free(name: &str) -> Result<(), OptionsError> {
    match TAKEN.iter().find(|(taken, _)| *taken == name) {
        Some((_, why)) => Err(OptionsError::Taken(name.to_owned(), why)),
        None => Ok(()),
    }
}

const OWN_SETTING: &str = "it has a setting of its own";
const DURABILITY: &str = "an acknowledged record must be durable";
const EXACTNESS: &str = "offsets are committed when their records are done";

/// Settings that are not to be changed from outside, and why.
const TAKEN: [(&str, &str); 15] = [
    ("bootstrap.servers", OWN_SETTING),
    ("metadata.broker.list", OWN_SETTING),
    ("client.id", OWN_SETTING),
    ("group.id", OWN_SETTING),
    ("acks", DURABILITY),
    ("request.required.acks", DURABILITY),
    ("enable.idempotence", DURABILITY),
    ("transactional.id", "records are not appended in transactions"),
    ("auto.offset.reset", "a new group starts at the oldest record"),
    ("enable.auto.commit", EXACTNESS),
    ("enable.auto.offset.store", EXACTNESS),
    ("enable.partition.eof", EXACTNESS),
    ("allow.auto.create.topics", "topics are created with their settings"),
    ("partitioner", "one key belongs in one partition, whoever the sender is"),
    ("statistics.interval.ms", "how far a partition was read is told by it"),
];

/// Our settings and librdkafka's other names for them.
const ALIASES: [(&str, &str); 4] = [
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("compression.type", "compression.codec"),
    ("linger.ms", "queue.buffering.max.ms"),
];

impl KafkaConfig {
    /// The whole name of a topic.
    pub fn name_of(&self, topic: Topic) -> String {
        match topic {
            Topic::CampaignEvents => {
                topic.name_with(&format!("{}{}", self.topic_prefix, self.internal_prefix))
            }
            Topic::Events | Topic::References | Topic::DeadLetters => topic.name_with(&self.topic_prefix),
        }
    }

    /// Settings of a consumer.
    pub(super) fn consumer(&self) -> Result<ClientConfig, OptionsError> {
        let mut ours = vec![
            ("group.id", self.group.as_str()),
            ("auto.offset.reset", "earliest"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            // Little waits, so that an event shows soon; but what comes one by one is not fetched one by one, which costs
            // brokers more than all else.
            ("fetch.wait.max.ms", "25"),
            ("fetch.min.bytes", "65536"),
            // Each partition has a queue of its own, so these are for one. A fetch is unpacked at once, to
            // five or ten times its bytes: up to 200 MiB for one process that catches up on all 64 partitions
            // of a topic.
            ("queued.max.messages.kbytes", "256"),
            ("queued.min.messages", "1000"),
            ("max.partition.fetch.bytes", "65536"),
            ("fetch.max.bytes", "16777216"),
            // Whoever waits for a commit, a rebalance included, waits about as long as this at most.
            ("socket.timeout.ms", "15000"),
            // A full queue is looked at again soon; the default is a second.
            ("fetch.queue.backoff.ms", "10"),
            // New topics and partitions are seen soon.
            ("topic.metadata.refresh.interval.ms", "10000"),
            ("statistics.interval.ms", "1000"),
        ];
        // The new protocol (KIP-848) leaves these to the broker, and librdkafka refuses them.
        if !self.options.iter().any(|(name, value)| name == "group.protocol" && value == "consumer") {
            ours.extend([
                ("partition.assignment.strategy", "cooperative-sticky"),
                // A crashed member is missed after this; a rebalance is noticed with the next heartbeat.
                ("session.timeout.ms", "10000"),
                ("heartbeat.interval.ms", "1000"),
            ]);
        }
        self.client(&ours)
    }

    /// Settings of an appender.
    pub(super) fn producer(&self) -> Result<ClientConfig, OptionsError> {
        self.client(&[
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("delivery.timeout.ms", "30000"),
            ("linger.ms", "5"),
            ("compression.type", "lz4"),
            ("partitioner", "murmur2_random"),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "65536"),
            // The topic's limit is the one that counts: a dead letter is as long as what it was made of.
            ("message.max.bytes", "1000000000"),
        ])
    }

    /// Settings of a client that reads partitions of its own choice to their ends, and belongs to no group.
    pub(super) fn scanner(&self) -> Result<ClientConfig, OptionsError> {
        self.client(&[
            // The library wants a name.
            ("group.id", if self.group.is_empty() { "backstamp-tools" } else { &self.group }),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            ("enable.partition.eof", "true"),
            ("fetch.wait.max.ms", "50"),
            ("queued.max.messages.kbytes", "16384"),
        ])
    }

    /// Settings of a client that only asks.
    pub(super) fn admin(&self) -> Result<ClientConfig, OptionsError> {
        self.client(&[])
    }

    fn client(&self, ours: &[(&str, &str)]) -> Result<ClientConfig, OptionsError> {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config.set("bootstrap.servers", &self.brokers).set("allow.auto.create.topics", "false");
        if !self.client_id.is_empty() {
            config.set("client.id", &self.client_id);
        }
        for (name, value) in ours {
            config.set(*name, *value);
        }
        for (name, value) in &self.options {
            check_free(name)?;
            if let Some((ours, _)) = ALIASES.iter().find(|(_, alias)| alias == name) {
                config.remove(ours);
            }
            config.set(name, value);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owned(options: &[(&str, &str)]) -> Vec<(String, String)> {
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_are_split_at_commas_and_at_the_first_equals_sign() {
        let text = " security.protocol = SASL_SSL , sasl.password=a=b\\,c\\\\,sasl.username=x\\y,,";
        let read = parse_options(text);
        let expected =
            [("security.protocol", "SASL_SSL"), ("sasl.password", "a=b,c\\"), ("sasl.username", "x\\y")];
        assert_eq!(read, Ok(owned(&expected)));
        assert_eq!(parse_options(""), Ok(Vec::new()));
        assert_eq!(parse_options("ssl.ca.location="), Ok(owned(&[("ssl.ca.location", "")])));
    }

    #[test]
    fn options_that_cannot_be_read_are_told_by_their_place() {
        assert_eq!(parse_options("a=b,secret"), Err(OptionsError::NoValue(2)));
        assert_eq!(parse_options("a=b,c=d,=secret"), Err(OptionsError::NoName(3)));
        assert_eq!(parse_options("a=1,a=2"), Err(OptionsError::Twice("a".into())));
        assert!(matches!(parse_options("acks=1"), Err(OptionsError::Taken(name, _)) if name == "acks"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let options = parse_options("sasl.password=hunter2").expect("valid");
        let shown = format!("{:?}", KafkaConfig { options, ..KafkaConfig::default() });
        assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn options_win_over_our_settings_and_the_new_protocol_drops_what_it_forbids() {
        let options = parse_options("group.protocol=consumer,fetch.wait.max.ms=7").expect("valid");
        let config = KafkaConfig { options, ..KafkaConfig::default() }.consumer().expect("free");
        assert_eq!(config.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(config.get("session.timeout.ms"), None);
        assert_eq!(config.get("partition.assignment.strategy"), None);
    }

    #[test]
    fn another_name_for_a_setting_of_ours_wins_over_it() {
        let options = parse_options("message.timeout.ms=7").expect("valid");
        let config = KafkaConfig { options, ..KafkaConfig::default() }.producer().expect("free");
        assert_eq!((config.get("message.timeout.ms"), config.get("delivery.timeout.ms")), (Some("7"), None));
    }

    #[test]
    fn clients_refuse_what_parsing_would_have_refused() {
        let options = owned(&[("enable.auto.commit", "true")]);
        let config = KafkaConfig { options, ..KafkaConfig::default() };
        assert!(matches!(config.consumer(), Err(OptionsError::Taken(..))));
    }

    proptest! {
        #[test]
        fn any_value_can_be_written(values in proptest::collection::vec("[ -~]{0,12}", 0..5)) {
            let escape = |value: &str| value.trim().replace('\\', "\\\\").replace(',', "\\,");
            let text = values.iter().enumerate().map(|(n, value)| format!("n{n}={}", escape(value)));
            let read = parse_options(&text.collect::<Vec<_>>().join(","));
            let expected = values.iter().enumerate().map(|(n, value)| (format!("n{n}"), value.trim().to_owned()));
            prop_assert_eq!(read, Ok(expected.collect::<Vec<_>>()));
        }
    }
}
