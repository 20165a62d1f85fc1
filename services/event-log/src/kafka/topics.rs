//! Creates the topics that are missing, and looks over those that are there.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use timeline::time::DAY_MS;

use super::client::{
    Asking, ClientLog, METADATA_TIMEOUT, TopicError, client_error, is_permanent, request_error,
};
use super::config::KafkaConfig;
use crate::error::LogError;
use crate::record::Topic;

/// How topics are to be.
#[derive(Clone, Copy, Debug)]
pub struct TopicSettings {
    /// Copies of each partition; `None` takes 3, or one on each broker where there are fewer, with a warning.
    pub replication: Option<i32>,
    /// Partitions of `mail.events`, of the references and of the dead letters.
    pub events_partitions: i32,
    /// Days that events are kept, and dead letters.
    pub retention_days: u32,
}

impl Default for TopicSettings {
    fn default() -> TopicSettings {
        TopicSettings { replication: None, events_partitions: 12, retention_days: 180 }
    }
}

/// What was found and done, topics by their full names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicsReport {
    /// Topics that were missing.
    pub created: Vec<String>,
    /// Topics that were there, and were left as they are.
    pub present: Vec<String>,
    /// What is not as it should be, for a person to read.
    pub warnings: Vec<String>,
}

/// Partitions of the internal topic. Which campaign is in which partition follows from it: it never changes.
pub const CAMPAIGN_EVENTS_PARTITIONS: i32 = 64;

const REPLICATION: i32 = 3;
/// How long a campaign's rows may wait for their owner: far longer than an outage. A replay fills another
/// topic.
const CAMPAIGN_EVENTS_DAYS: u32 = 30;
/// What a dead letter's headers and frame may add to the message that it was.
pub(super) const DEAD_LETTER_EXTRA_BYTES: i64 = 64 * 1024;
/// A broker's own default.
const MESSAGE_BYTES_MAX: i64 = 1_048_588;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Creates the topics that are missing. Those that are there are not changed, and looked over.
///
/// # Errors
///
/// When the brokers cannot be asked, or refuse: some topics may have been created then.
pub async fn ensure_topics(config: &KafkaConfig, settings: &TopicSettings) -> Result<TopicsReport, LogError> {
    let names = Topic::ALL.map(|topic| (topic, config.name_of(topic)));
    let Looked { client, found, configs, event_bytes_max } = look(config, &names).await?;
    let mut report = TopicsReport::default();
    let plan = Plan {
        replication: replication(settings, found.brokers, &mut report.warnings),
        settings,
        dead_letter_bytes_max: event_bytes_max + DEAD_LETTER_EXTRA_BYTES,
    };
    let present: Vec<&(Topic, String)> =
        names.iter().filter(|(topic, _)| found.shapes.contains_key(topic)).collect();
    for (topic, name) in &present {
        let partitions = found.shapes[topic].partitions;
        let problems =
            plan.problems(*topic, partitions, configs.get(topic).unwrap_or(&TopicConfig::default()));
        report.warnings.extend(problems.into_iter().map(|problem| format!("{name}: {}", problem.found)));
        report.present.push(name.clone());
    }
    for (topic, name) in names.iter().filter(|(topic, _)| !found.shapes.contains_key(topic)) {
        match create(&client, &plan, *topic, name).await? {
            Created::Now => report.created.push(name.clone()),
            Created::ByAnother => report.present.push(name.clone()),
        }
    }
    Ok(report)
}

/// How long each topic keeps its records, in milliseconds; a topic that keeps them for ever is left out.
///
/// # Errors
///
/// When the brokers cannot be asked, or a topic is not there.
pub async fn read_retention(config: &KafkaConfig, topics: &[Topic]) -> Result<HashMap<Topic, i64>, LogError> {
    let client = config.admin().map_err(|error| LogError::refused("connect", error))?;
    let client = AdminClient::from_config_and_context(&client, Asking(ClientLog::new("admin")))
        .map_err(client_error)?;
    let names: Vec<(Topic, String)> = topics.iter().map(|topic| (*topic, config.name_of(*topic))).collect();
    let configs = describe(&client, &names.iter().collect::<Vec<_>>()).await?;
    let retention = |config: &TopicConfig| config.number("retention.ms").filter(|ms| *ms >= 0);
    let is_kept = |config: &TopicConfig| config.text("cleanup.policy") == Some("compact");
    let bounded = configs.into_iter().filter(|(_, config)| !is_kept(config));
    Ok(bounded.filter_map(|(topic, config)| Some((topic, retention(&config)?))).collect())
}

type Admin = AdminClient<Asking>;

/// Topics as they are.
pub(super) struct Looked {
    pub(super) client: Admin,
    pub(super) found: Found,
    pub(super) configs: HashMap<Topic, TopicConfig>,
    /// The longest message that `mail.events` takes, or would.
    pub(super) event_bytes_max: i64,
}

/// Looks at the topics called `names`.
pub(super) async fn look(config: &KafkaConfig, names: &[(Topic, String)]) -> Result<Looked, LogError> {
    let client = config.admin().map_err(|error| LogError::refused("connect", error))?;
    let client = AdminClient::from_config_and_context(&client, Asking(ClientLog::new("admin")))
        .map_err(client_error)?;
    let (client, found) = tokio::task::spawn_blocking({
        let names = names.to_vec();
        move || find(&client, &names).map(|found| (client, found))
    })
    .await
    .unwrap_or_else(|error| Err(LogError::away("topics", error)))?;
    let present: Vec<&(Topic, String)> =
        names.iter().filter(|(topic, _)| found.shapes.contains_key(topic)).collect();
    let configs = describe(&client, &present).await?;
    let event_bytes_max = match configs.get(&Topic::Events) {
        Some(config) => config.number("max.message.bytes"),
        None => broker_bytes_max(&client, found.broker).await,
    };
    Ok(Looked { client, found, configs, event_bytes_max: event_bytes_max.unwrap_or(MESSAGE_BYTES_MAX) })
}

/// What there is: the number of brokers, one of them, and the shapes of the topics.
pub(super) struct Found {
    pub(super) brokers: i32,
    broker: Option<i32>,
    pub(super) shapes: HashMap<Topic, Shape>,
}

/// How a topic's partitions are spread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    pub(super) partitions: i32,
    /// Copies of the partition that has the fewest.
    pub(super) copies: i32,
    /// Partitions of which a copy is behind or away.
    pub(super) behind: i32,
    /// Partitions without a leader.
    pub(super) leaderless: i32,
}

impl Shape {
    fn of(topic: &MetadataTopic) -> Shape {
        let count = |is: &dyn Fn(&MetadataPartition) -> bool| {
            i32::try_from(topic.partitions().iter().filter(|partition| is(partition)).count())
                .unwrap_or(i32::MAX)
        };
        let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        Shape {
            partitions: count(&|_| true),
            copies: i32::try_from(copies).unwrap_or(i32::MAX),
            behind: count(&|partition| partition.isr().len() < partition.replicas().len()),
            leaderless: count(&|partition| partition.leader() < 0),
        }
    }
}

fn find(client: &Admin, names: &[(Topic, String)]) -> Result<Found, LogError> {
    let mut found = Found { brokers: 0, broker: None, shapes: HashMap::new() };
    for (topic, name) in names {
        let metadata = client
            .inner()
            .fetch_metadata(Some(name), METADATA_TIMEOUT)
            .map_err(|error| request_error("topics", error))?;
        found.brokers = i32::try_from(metadata.brokers().len()).unwrap_or(i32::MAX);
        found.broker = metadata.brokers().first().map(|broker| broker.id());
        for shown in metadata.topics() {
            match shown.error().map(RDKafkaErrorCode::from) {
                None => {
                    found.shapes.insert(*topic, Shape::of(shown));
                }
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {}
                Some(code) => return Err(topic_error(name, code)),
            }
        }
    }
    Ok(found)
}

/// A topic's settings, by their names.
#[derive(Default)]
pub(super) struct TopicConfig(HashMap<String, String>);

impl TopicConfig {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }
}

async fn describe(
    client: &Admin,
    topics: &[&(Topic, String)],
) -> Result<HashMap<Topic, TopicConfig>, LogError> {
    if topics.is_empty() {
        return Ok(HashMap::new());
    }
    let asked: Vec<_> = topics.iter().map(|(_, name)| ResourceSpecifier::Topic(name)).collect();
    let answers =
        client.describe_configs(&asked, &options()).await.map_err(|error| request_error("topics", error))?;
    // The answers come in the order of the questions.
    let mut configs = HashMap::new();
    for ((topic, name), answer) in topics.iter().zip(answers) {
        let answer = answer.map_err(|code| topic_error(name, code))?;
        let entries = answer.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
        configs.insert(*topic, TopicConfig(entries.collect()));
    }
    Ok(configs)
}

/// The longest message that a topic takes where nothing else is said. Whoever may not ask gets the usual.
async fn broker_bytes_max(client: &Admin, broker: Option<i32>) -> Option<i64> {
    let asked = [ResourceSpecifier::Broker(broker?)];
    let answer = client.describe_configs(&asked, &options()).await.ok()?.into_iter().next()?.ok()?;
    answer.get("message.max.bytes")?.value.as_ref()?.parse().ok()
}

enum Created {
    Now,
    ByAnother,
}

async fn create(client: &Admin, plan: &Plan<'_>, topic: Topic, name: &str) -> Result<Created, LogError> {
    let settings = plan.settings_of(topic);
    let new = NewTopic::new(name, plan.partitions(topic), TopicReplication::Fixed(plan.replication));
    let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let results =
        client.create_topics([&new], &options()).await.map_err(|error| request_error("topics", error))?;
    match results.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(Created::ByAnother),
        Some(Err((_, code))) => Err(topic_error(name, code)),
        _ => Ok(Created::Now),
    }
}

/// How the topics are to be in this Kafka.
pub(super) struct Plan<'a> {
    pub(super) replication: i32,
    pub(super) settings: &'a TopicSettings,
    pub(super) dead_letter_bytes_max: i64,
}

/// What is not as it should be with a topic.
pub(super) struct Problem {
    /// Whether a promise is broken by it.
    pub(super) breaks: bool,
    pub(super) found: String,
    pub(super) mend: Mend,
}

/// What mends a problem with a topic.
pub(super) enum Mend {
    /// Another setting, `name=value`.
    Set(String),
    /// More copies.
    Copy,
    /// To make it anew.
    Recreate,
    /// To bring the brokers back.
    Brokers,
}

impl Plan<'_> {
    fn partitions(&self, topic: Topic) -> i32 {
        match topic {
            Topic::CampaignEvents => CAMPAIGN_EVENTS_PARTITIONS,
            Topic::Events | Topic::References | Topic::DeadLetters => self.settings.events_partitions,
        }
    }

    /// How long the records of a topic are needed; `None` is for ever.
    pub(super) fn retention_ms(&self, topic: Topic) -> Option<i64> {
        let days = match topic {
            Topic::Events | Topic::DeadLetters => self.settings.retention_days,
            Topic::CampaignEvents => CAMPAIGN_EVENTS_DAYS,
            Topic::References => return None,
        };
        Some(i64::from(days) * DAY_MS)
    }

    fn settings_of(&self, topic: Topic) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            // What is acknowledged is on two brokers, and one may be away.
            ("min.insync.replicas", min_in_sync(self.replication).to_string()),
        ];
        match self.retention_ms(topic) {
            Some(retention_ms) => settings.extend([
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", retention_ms.to_string()),
                ("retention.bytes", "-1".to_owned()),
            ]),
            None => settings.push(("cleanup.policy", "compact".to_owned())),
        }
        if topic == Topic::DeadLetters {
            settings.push(("max.message.bytes", self.dead_letter_bytes_max.to_string()));
        }
        settings
    }

    /// What is not as it should be with a topic that is there.
    pub(super) fn problems(&self, topic: Topic, partitions: i32, config: &TopicConfig) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |found: String, mend| {
            problems.push(Problem { breaks: true, found, mend });
        };
        if topic == Topic::CampaignEvents && partitions != CAMPAIGN_EVENTS_PARTITIONS {
            problem(
                format!(
                    "it has {partitions} partitions instead of {CAMPAIGN_EVENTS_PARTITIONS}: campaigns would have two owners"
                ),
                Mend::Recreate,
            );
        }
        if let Some(kind) = config.text("message.timestamp.type").filter(|kind| *kind != "LogAppendTime") {
            problem(
                format!(
                    "message.timestamp.type is {kind} instead of LogAppendTime: the senders' clocks are believed"
                ),
                Mend::Set("message.timestamp.type=LogAppendTime".to_owned()),
            );
        }
        let policy = config.text("cleanup.policy").unwrap_or_default();
        let is_compacted = policy.split(',').any(|policy| policy.trim() == "compact");
        match self.retention_ms(topic) {
            None if !is_compacted => problem(
                format!("cleanup.policy is {policy} instead of compact: old references would go"),
                Mend::Set("cleanup.policy=compact".to_owned()),
            ),
            None => {}
            Some(_) if is_compacted => problem(
                format!("cleanup.policy is {policy}: records with equal keys would go"),
                Mend::Set("cleanup.policy=delete".to_owned()),
            ),
            Some(needed) => {
                let kept = config.number("retention.ms").unwrap_or(-1);
                if kept >= 0 && kept < needed {
                    problem(
                        format!("retention.ms is {kept}, less than the {needed} that are needed"),
                        Mend::Set(format!("retention.ms={needed}")),
                    );
                }
                if let Some(bytes) = config.number("retention.bytes").filter(|bytes| *bytes >= 0) {
                    problem(
                        format!("retention.bytes is {bytes}: records may go before their time"),
                        Mend::Set("retention.bytes=-1".to_owned()),
                    );
                }
            }
        }
        if topic == Topic::DeadLetters {
            let taken = config.number("max.message.bytes").unwrap_or(i64::MAX);
            let needed = self.dead_letter_bytes_max;
            if taken < needed {
                problem(
                    format!(
                        "max.message.bytes is {taken}, less than {needed}: a long message could not be put aside, \
                         and would hold up what is behind it"
                    ),
                    Mend::Set(format!("max.message.bytes={needed}")),
                );
            }
        }
        problems
    }

    /// What `backstamp check` tells beside that: how safe a record is that was acknowledged.
    pub(super) fn safety_problems(&self, shape: Shape, config: &TopicConfig) -> Vec<Problem> {
        let mut problems = Vec::new();
        if shape.leaderless > 0 {
            let found = format!("{} of its partitions have no leader", shape.leaderless);
            problems.push(Problem { breaks: true, found, mend: Mend::Brokers });
        }
        if shape.behind > 0 {
            let found = format!("a copy of {} of its partitions is behind or away", shape.behind);
            problems.push(Problem { breaks: false, found, mend: Mend::Brokers });
        }
        if shape.copies < self.replication.min(REPLICATION) {
            let found =
                format!("it has {} copies of a partition instead of {}", shape.copies, self.replication);
            problems.push(Problem { breaks: false, found, mend: Mend::Copy });
        }
        let in_sync = config.number("min.insync.replicas").unwrap_or(1);
        let needed = i64::from(min_in_sync(shape.copies));
        if in_sync < needed {
            problems.push(Problem {
                breaks: false,
                found: format!(
                    "min.insync.replicas is {in_sync}: what is acknowledged may be on one broker alone"
                ),
                mend: Mend::Set(format!("min.insync.replicas={needed}")),
            });
        }
        if shape.copies > 1 && in_sync >= i64::from(shape.copies) {
            problems.push(Problem {
                breaks: false,
                found: format!(
                    "min.insync.replicas is {in_sync} of {} copies: nothing is taken while one broker is away",
                    shape.copies
                ),
                mend: Mend::Set(format!("min.insync.replicas={needed}")),
            });
        }
        problems
    }
}

/// On how many brokers a record is at least that was acknowledged; one may be away.
fn min_in_sync(copies: i32) -> i32 {
    (copies - 1).clamp(1, 2)
}

pub(super) fn replication(settings: &TopicSettings, brokers: i32, warnings: &mut Vec<String>) -> i32 {
    settings.replication.unwrap_or_else(|| {
        if brokers < REPLICATION {
            let brokers = brokers.max(1);
            warnings.push(format!(
                "there are {brokers} brokers: new topics get {brokers} copies of each partition instead of {REPLICATION}"
            ));
        }
        brokers.clamp(1, REPLICATION)
    })
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

fn topic_error(topic: &str, code: RDKafkaErrorCode) -> LogError {
    let cause = TopicError { topic: topic.to_owned(), source: KafkaError::MetadataFetch(code) };
    if is_permanent(code) { LogError::refused("topics", cause) } else { LogError::away("topics", cause) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan<'static> = Plan {
        replication: 3,
        settings: &TopicSettings { replication: None, events_partitions: 12, retention_days: 180 },
        dead_letter_bytes_max: 2_000_000,
    };

    #[test]
    fn a_topic_as_it_would_be_created_is_no_problem() {
        for topic in Topic::ALL {
            let settings = PLAN.settings_of(topic).into_iter().map(|(name, value)| (name.to_owned(), value));
            let problems = PLAN.problems(topic, PLAN.partitions(topic), &TopicConfig(settings.collect()));
            let problems: Vec<String> = problems.into_iter().map(|problem| problem.found).collect();
            assert_eq!(problems, Vec::<String>::new(), "{topic:?}");
        }
    }

    #[test]
    fn what_would_lose_records_is_told() {
        let config = |settings: &[(&str, &str)]| {
            TopicConfig(settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
        };
        let events = config(&[
            ("message.timestamp.type", "CreateTime"),
            ("cleanup.policy", "delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1000"),
        ]);
        assert_eq!(PLAN.problems(Topic::Events, 1, &events).len(), 3);
        let compacted = config(&[("cleanup.policy", "compact,delete")]);
        assert_eq!(PLAN.problems(Topic::CampaignEvents, 12, &compacted).len(), 2);
        let references = config(&[("cleanup.policy", "delete")]);
        assert_eq!(PLAN.problems(Topic::References, 1, &references).len(), 1);
        let dead =
            config(&[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("max.message.bytes", "1048588")]);
        assert_eq!(PLAN.problems(Topic::DeadLetters, 1, &dead).len(), 1);
    }

    #[test]
    fn what_one_broker_could_lose_is_told() {
        let config = |in_sync: &str| TopicConfig([("min.insync.replicas".into(), in_sync.into())].into());
        let shape = Shape { partitions: 12, copies: 3, ..Shape::default() };
        let told = |shape, in_sync| PLAN.safety_problems(shape, &config(in_sync)).len();
        assert_eq!(told(shape, "2"), 0);
        assert_eq!(told(shape, "1"), 1);
        assert_eq!(told(shape, "3"), 1);
        assert_eq!(told(Shape { copies: 1, ..shape }, "1"), 1);
        assert_eq!(told(Shape { behind: 2, leaderless: 1, ..shape }, "2"), 2);
    }

    #[test]
    fn fewer_brokers_than_copies_is_warned_of() {
        let mut warnings = Vec::new();
        let settings = TopicSettings::default();
        assert_eq!(replication(&settings, 5, &mut warnings), 3);
        assert!(warnings.is_empty());
        assert_eq!(replication(&settings, 1, &mut warnings), 1);
        assert_eq!(warnings.len(), 1);
        let fixed = TopicSettings { replication: Some(2), ..settings };
        assert_eq!(replication(&fixed, 1, &mut warnings), 2);
        assert_eq!(warnings.len(), 1);
    }
}
