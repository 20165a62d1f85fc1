//! `backstamp check`, as far as Kafka is concerned: what is missing or wrong, and how to mend it. Nothing is changed.

use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use telemetry::finding::Finding;
use timeline::Timestamp;
use timeline::time::DAY_MS;

use super::appender::KafkaAppender;
use super::client::request_error;
use super::config::KafkaConfig;
use super::scan::{Asker, blocking, committed};
use super::topics::{DEAD_LETTER_EXTRA_BYTES, Looked, Mend, Plan, Problem, TopicSettings, look, replication};
use crate::appender::Appender;
use crate::error::LogError;
use crate::record::{Outgoing, Topic};

/// A record may be dated so far ahead of this process's clock, in milliseconds, before that is told.
const AHEAD_MS_MAX: i64 = 2000;
/// The largest record that is made to see whether a topic may be written to.
const PROBE_BYTES_MAX: i64 = 16 << 20;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// Looks at brokers, topics, permissions and clocks. `clock` tells this process's time.
pub async fn inspect(
    config: &KafkaConfig,
    settings: &TopicSettings,
    clock: impl Fn() -> Timestamp,
) -> Vec<Finding> {
    let names = Topic::ALL.map(|topic| (topic, config.name_of(topic)));
    let Looked { found, configs, event_bytes_max, .. } = match look(config, &names).await {
        Ok(looked) => looked,
        Err(error) => return vec![unreachable(&config.brokers, &error)],
    };
    let mut findings = Vec::new();
    let mut few = Vec::new();
    let plan = Plan {
        replication: replication(settings, found.brokers, &mut few),
        settings,
        dead_letter_bytes_max: event_bytes_max + DEAD_LETTER_EXTRA_BYTES,
    };
    findings.push(match few.is_empty() {
        true => Finding::ok("kafka", format!("{} brokers answer", found.brokers)),
        false => Finding::warning(
            "kafka",
            format!("{} of 3 brokers: what is acknowledged is not on several", found.brokers),
            "run three brokers at least, then give the topics three copies (kafka-reassign-partitions)",
        ),
    });
    for (topic, name) in &names {
        let Some(shape) = found.shapes.get(topic) else {
            findings.push(Finding::error(name, "the topic is missing", "run `backstamp schema apply`"));
            continue;
        };
        let config_of = configs.get(topic);
        let problems = config_of.map_or_else(Vec::new, |settings| {
            let mut problems = plan.problems(*topic, shape.partitions, settings);
            problems.extend(plan.safety_problems(*shape, settings));
            problems
        });
        if problems.is_empty() {
            let kept = match plan.retention_ms(*topic) {
                None => "compacted".to_owned(),
                Some(_) => match config_of.and_then(|config| config.number("retention.ms")).unwrap_or(-1) {
                    ms if ms < 0 => "kept for ever".to_owned(),
                    ms => format!("kept {} days", ms / DAY_MS),
                },
            };
            findings.push(Finding::ok(
                name,
                format!("{} partitions, {} copies, {kept}", shape.partitions, shape.copies),
            ));
        }
        findings.extend(problems.into_iter().map(|problem| finding_of(name, problem)));
        let bytes_max = config_of.and_then(|config| config.number("max.message.bytes"));
        findings.push(may_write(config, *topic, name, bytes_max).await);
        findings.push(may_read(config, name).await);
        if matches!(topic, Topic::Events | Topic::CampaignEvents) {
            findings.push(is_ahead(config, name, clock()).await);
        }
    }
    if !config.group.is_empty() && found.shapes.contains_key(&Topic::Events) {
        findings.push(group(config).await);
    }
    findings
}

fn finding_of(name: &str, Problem { breaks, found, mend }: Problem) -> Finding {
    let mend = match mend {
        Mend::Set(setting) => {
            format!("kafka-configs --alter --entity-type topics --entity-name {name} --add-config {setting}")
        }
        Mend::Copy => format!("give {name} more copies with kafka-reassign-partitions"),
        Mend::Recreate => format!(
            "stop every ingest, delete {name}, run `backstamp schema apply`, and start ingest with another --group"
        ),
        Mend::Brokers => "bring back the broker that is away or behind".to_owned(),
    };
    match breaks {
        true => Finding::error(name, found, mend),
        false => Finding::warning(name, found, mend),
    }
}

fn unreachable(brokers: &str, error: &LogError) -> Finding {
    let mend = match error.may_pass() {
        true => "start Kafka, or correct --kafka-brokers and the security settings in --kafka-options",
        false => "correct --kafka-options, or let this user describe topics and their configuration",
    };
    Finding::error("kafka", format!("{brokers}: {}", error.chain()), mend)
}

/// A record that is longer than the topic takes is refused to whoever may write, too: for its length, after the right was looked at.
/// So nothing is ever written by this.
async fn may_write(config: &KafkaConfig, topic: Topic, name: &str, bytes_max: Option<i64>) -> Finding {
    let about = format!("{name} write");
    let Some(bytes) = bytes_max.filter(|bytes| *bytes <= PROBE_BYTES_MAX) else {
        return Finding::ok(
            about,
            "not looked at: the topic takes records too long to try with one that is longer",
        );
    };
    let probe = Outgoing {
        partition: Some(0),
        ..Outgoing::new(
            topic,
            Some(b"check".to_vec()),
            Some(noise(usize::try_from(bytes).unwrap_or(0) + 1024)),
        )
    };
    let tried = async {
        let appender = KafkaAppender::new(config, &[topic])?;
        appender.append(vec![probe]).await
    };
    match tried.await {
        // A broker that takes it has another limit than it says; the record is no event, and will be a dead letter.
        Ok(()) => Finding::ok(about, "allowed"),
        Err(error) => match code_of(&error) {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Finding::ok(about, "allowed"),
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Finding::error(
                about,
                "refused",
                format!("kafka-acls --add --producer --topic {name} for this user"),
            ),
            _ => Finding::warning(
                about,
                format!("cannot be told: {}", error.chain()),
                "run `backstamp check` again",
            ),
        },
    }
}

/// Bytes that no compression makes shorter.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    next.flatten().take(count).collect()
}

/// Asks for what comes after the end of a partition: that nothing comes is told to whoever may read.
async fn may_read(config: &KafkaConfig, name: &str) -> Finding {
    let about = format!("{name} read");
    let tried = blocking({
        let (config, name) = (config.clone(), name.to_owned());
        move || {
            let asker = Asker::new(&config)?;
            let mut wanted = TopicPartitionList::new();
            let added = wanted.add_partition_offset(&name, 0, Offset::End);
            added.map_err(|error| request_error("check", error))?;
            asker.client.assign(&wanted).map_err(|error| request_error("check", error))?;
            let begun = Instant::now();
            while begun.elapsed() < READ_TIMEOUT {
                match asker.client.poll(POLL) {
                    Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                    Some(Err(error)) if !request_error("check", error.clone()).may_pass() => {
                        return Err(request_error("check", error));
                    }
                    _ => {}
                }
            }
            Err(LogError::away("check", format!("no answer in {} s", READ_TIMEOUT.as_secs())))
        }
    });
    match tried.await {
        Ok(()) => Finding::ok(about, "allowed"),
        Err(error) if error.may_pass() => Finding::warning(
            about,
            format!("cannot be told: {}", error.chain()),
            "run `backstamp check` again",
        ),
        Err(_) => Finding::error(
            about,
            "refused",
            format!("kafka-acls --add --consumer --topic {name} --group '*' for this user"),
        ),
    }
}

/// Whether records are dated ahead of our clock. Kafka tells nobody what time it is, so a broker whose clock is slow is not
/// found; its records would only be taken for older than they are.
async fn is_ahead(config: &KafkaConfig, name: &str, now: Timestamp) -> Finding {
    let about = format!("{name} clock");
    let asked = blocking({
        let (config, name) = (config.clone(), name.to_owned());
        move || Asker::new(&config)?.offsets_at(&name, Offset::Offset(now.plus_ms(AHEAD_MS_MAX).0))
    });
    match asked.await {
        Ok(ahead) if ahead.is_empty() => {
            Finding::ok(about, "no record is dated ahead of this machine's clock")
        }
        Ok(ahead) => Finding::warning(
            about,
            format!(
                "partitions {:?} hold records dated over {AHEAD_MS_MAX} ms ahead of this machine's clock",
                ahead.keys().collect::<Vec<_>>()
            ),
            "let NTP set the clocks of the brokers and of this machine",
        ),
        Err(error) => Finding::warning(
            about,
            format!("cannot be told: {}", error.chain()),
            "run `backstamp check` again",
        ),
    }
}

async fn group(config: &KafkaConfig) -> Finding {
    let about = format!("group {}", config.group);
    match committed(config, Topic::Events).await {
        Ok(offsets) if offsets.is_empty() => {
            Finding::ok(about, "has committed nothing yet: ingest will begin at the oldest record")
        }
        Ok(offsets) => Finding::ok(about, format!("has committed offsets of {} partitions", offsets.len())),
        Err(error) => Finding::error(
            about,
            error.chain(),
            format!(
                "kafka-acls --add --consumer --group {} --resource-pattern-type prefixed for this user",
                config.group
            ),
        ),
    }
}

fn code_of(error: &LogError) -> Option<RDKafkaErrorCode> {
    error.source()?.downcast_ref::<KafkaError>()?.rdkafka_error_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_as_many_bytes_as_asked_for_and_few_alike() {
        let noise = noise(1025);
        assert_eq!(noise.len(), 1025);
        let zeros = noise.iter().filter(|byte| **byte == 0).count();
        assert!(zeros < 30, "{zeros}");
    }
}
