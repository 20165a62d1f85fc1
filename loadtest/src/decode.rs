//! `loadtest decode`: what do the rows of a raw event cost, beside reading its JSON the usual way?
//!
//! Readers take the same messages in turn, on one core and without I/O: serde_json into a plain derived struct of owned
//! fields, which checks nothing ([`PlainEvent`], the yardstick); our decoder and projection, down to the bytes that are
//! published; and the yardstick again, whose distance from itself says how far the ratios can be believed.
//! With `--crates` other JSON crates fill the same struct.

use std::borrow::Cow;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use timeline::event::decode_event;
use timeline::row::{PlacedRow, Placing, project};
use timeline::time::DAY_MS;
use timeline::{Refusal, Timestamp};
use uuid::Uuid;

/// When every message was appended.
const APPENDED_AT: Timestamp = Timestamp(1_790_000_000_000);

/// Measures decoding to rows beside serde_json into a struct of the same fields, on one core.
#[derive(Args)]
pub(crate) struct Options {
    /// Distinct messages. Rounds of few are short, so that what else the machine does falls on few of them.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    events: u32,
    /// How often each reader takes them all.
    #[arg(long, default_value_t = 1001, value_parser = clap::value_parser!(u32).range(3..=10_000))]
    rounds: u32,
    /// Measures other JSON crates too.
    #[arg(long)]
    crates: bool,
    /// Prints JSON in place of a table.
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct DecodeResult {
    pub(crate) events: usize,
    pub(crate) rounds: usize,
    /// Bytes of a message, in the mean.
    pub(crate) message_bytes: f64,
    /// Rows of an event, in the mean.
    pub(crate) rows: f64,
    pub(crate) plain: Speed,
    pub(crate) to_rows: Speed,
    /// The yardstick again.
    pub(crate) plain_again: Speed,
    pub(crate) other_crates: Vec<Speed>,
}

/// How fast one reader was.
#[derive(Debug, Serialize)]
pub(crate) struct Speed {
    pub(crate) reader: &'static str,
    /// Medians over the rounds.
    pub(crate) events_per_s: f64,
    pub(crate) ns_per_event: f64,
    /// Its events a second beside the yardstick's in the same round: 10th percentile, median, 90th percentile.
    pub(crate) ratio: [f64; 3],
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (rounds, events) = (options.rounds as usize, options.events as usize);
    let result =
        if options.crates { measure_beside(&OTHER_CRATES, rounds, events) } else { measure(rounds, events) };
    print(&if options.json { serde_json::to_string_pretty(&result)? } else { table(&result) });
    Ok(ExitCode::SUCCESS)
}

/// Measures `rounds` rounds of `events` messages.
pub(crate) fn measure(rounds: usize, events: usize) -> DecodeResult {
    measure_beside(&[], rounds, events)
}

/// A reader's name, and what it does with a message.
type Reader = (&'static str, fn(&[u8]));

const PLAIN: Reader = ("serde_json, plain struct", |message| {
    keep(serde_json::from_slice::<PlainEvent<Box<RawValue>>>(message));
});
const TO_ROWS: Reader = ("decoded to rows", |message| keep(to_rows(message)));
/// What else could read the JSON. The borrowed struct is what our decoder reads; a reader that cannot keep `metadata` as it was written
/// makes a value of it. simd-json unescapes in place and so needs a copy of the message.
const OTHER_CRATES: [Reader; 5] = [
    ("serde_json, borrowed struct", |message| {
        keep(serde_json::from_slice::<BorrowedEvent<'_, &RawValue>>(message));
    }),
    ("sonic-rs, plain struct", |message| {
        keep(sonic_rs::from_slice::<PlainEvent<sonic_rs::OwnedLazyValue>>(message));
    }),
    ("sonic-rs, borrowed struct", |message| {
        keep(sonic_rs::from_slice::<BorrowedEvent<'_, sonic_rs::LazyValue<'_>>>(message));
    }),
    ("simd-json, plain struct", |message| {
        keep(simd_json::from_slice::<PlainEvent<simd_json::OwnedValue>>(&mut message.to_vec()));
    }),
    ("simd-json, borrowed struct", |message| {
        keep(simd_json::from_slice::<BorrowedEvent<'_, simd_json::BorrowedValue<'_>>>(&mut message.to_vec()));
    }),
];

/// A raw event as serde reads it, the usual way.
type PlainEvent<Metadata> = WireEvent<String, Metadata>;
/// A raw event whose text is copied only where it has escapes.
type BorrowedEvent<'a, Metadata> = WireEvent<BorrowedText<'a>, Metadata>;

#[derive(Deserialize)]
#[expect(dead_code, reason = "read and dropped")]
struct WireEvent<Text, Metadata> {
    id: Text,
    account_id: Text,
    r#type: Text,
    occurred_at: Text,
    contact_id: Option<Text>,
    email: Option<Text>,
    message_id: Option<Text>,
    campaign_id: Option<Text>,
    automation_id: Option<Text>,
    list_id: Option<Text>,
    step_id: Option<Text>,
    url: Option<Text>,
    link: Option<Text>,
    bounce: Option<WireBounce<Text>>,
    purchase: Option<WirePurchase<Text>>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read and dropped")]
struct WireBounce<Text> {
    r#type: Option<Text>,
    reason: Option<Text>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read and dropped")]
struct WirePurchase<Text> {
    order_uuid: Text,
    product_uuid: Text,
    product_name: Text,
    variant_name: Option<Text>,
    is_subscription: bool,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct BorrowedText<'a>(
    #[serde(borrow)]
    #[expect(dead_code, reason = "read and dropped")]
    Cow<'a, str>,
);

fn to_rows(message: &[u8]) -> Result<Vec<PlacedRow>, Refusal> {
    Ok(project(&decode_event(message, APPENDED_AT)?, APPENDED_AT, Placing::Complete))
}

/// Has the compiler believe that what was read is used. Messages are valid: a reader that refuses one is wrong.
fn keep<T, E: std::fmt::Debug>(read: Result<T, E>) {
    drop(black_box(read.expect("a valid message")));
}

fn measure_beside(others: &[Reader], rounds: usize, events: usize) -> DecodeResult {
    let messages = messages(events);
    let readers: Vec<Reader> = [PLAIN, TO_ROWS, PLAIN].into_iter().chain(others.iter().copied()).collect();
    let mut seconds = vec![Vec::with_capacity(rounds); readers.len()];
    // Each round begins with another reader; the first is to warm up and does not count.
    for round in 0..=rounds {
        for at in 0..readers.len() {
            let at = (at + round) % readers.len();
            let begun = Instant::now();
            messages.iter().for_each(|message| (readers[at].1)(black_box(message)));
            if round > 0 {
                seconds[at].push(begun.elapsed().as_secs_f64());
            }
        }
    }
    let mut speeds = readers.iter().zip(&seconds).map(|((reader, _), own)| {
        let ratios = seconds[0].iter().zip(own).map(|(plain, own)| plain / own).collect();
        let seconds = percentiles(own.clone())[1];
        Speed {
            reader,
            events_per_s: events as f64 / seconds,
            ns_per_event: seconds * 1e9 / events as f64,
            ratio: percentiles(ratios),
        }
    });
    let mean =
        |of: &dyn Fn(&[u8]) -> usize| messages.iter().map(|m| of(m)).sum::<usize>() as f64 / events as f64;
    let mut next = || speeds.next().expect("three readers at least");
    DecodeResult {
        events,
        rounds,
        message_bytes: mean(&<[u8]>::len),
        rows: mean(&|message| to_rows(message).map_or(0, |rows| rows.len())),
        plain: next(),
        to_rows: next(),
        plain_again: next(),
        other_crates: speeds.collect(),
    }
}

/// 10th percentile, median, 90th percentile.
fn percentiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    [0.1, 0.5, 0.9].map(|share| values[((values.len() - 1) as f64 * share).round() as usize])
}

fn table(result: &DecodeResult) -> String {
    let mut lines = vec![
        format!(
            "{} messages of {:.0} bytes, {:.2} rows an event, {} rounds, one core",
            result.events, result.message_bytes, result.rows, result.rounds
        ),
        String::new(),
        "| reader | events a second | ns an event | beside the first | p10 to p90 |".to_owned(),
        "| --- | ---: | ---: | ---: | ---: |".to_owned(),
    ];
    let speeds = [&result.plain, &result.to_rows, &result.plain_again];
    lines.extend(speeds.into_iter().chain(&result.other_crates).map(|speed| {
        let [p10, median, p90] = speed.ratio;
        format!(
            "| {} | {:.0} | {:.0} | {median:.2} | {p10:.2} to {p90:.2} |",
            speed.reader, speed.events_per_s, speed.ns_per_event
        )
    }));
    lines.join("\n")
}

#[expect(clippy::print_stdout, reason = "what a person or a script wants to read")]
fn print(text: &str) {
    println!("{text}");
}

/// Messages as senders write them: every type, in shares like those of mail; most with their message's id and their campaign's,
/// opens and clicks with metadata; a twentieth as PHP writes JSON, with `\/` and `\u00e9`. The same ones whenever they are made.
fn messages(count: usize) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(1);
    (0..count).map(|_| message(&mut rng).into_bytes()).collect()
}

/// Types and how many of a thousand events have them.
const TYPES: [(&str, u32); 15] = [
    ("send", 330),
    ("delivery", 320),
    ("open", 230),
    ("click", 50),
    ("bounce", 15),
    ("reply", 5),
    ("complaint", 2),
    ("subscribe", 8),
    ("unsubscribe", 6),
    ("global_unsubscribe", 2),
    ("global_resubscribe", 1),
    ("automation_unsubscribe", 1),
    ("purchase", 10),
    ("create", 10),
    ("import", 10),
];
const AGENTS: [&str; 3] = [
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15",
    "Mozilla/5.0 (via ggpht.com GoogleImageProxy)",
    "Thunderbird/140.0",
];
const COUNTRIES: [&str; 4] = ["DE", "US", "FR", "JP"];

fn message(rng: &mut StdRng) -> String {
    let mut left = rng.random_range(0..TYPES.iter().map(|(_, share)| share).sum::<u32>());
    let r#type = TYPES.iter().find_map(|(name, share)| match left.checked_sub(*share) {
        Some(rest) => {
            left = rest;
            None
        }
        None => Some(*name),
    });
    let r#type = r#type.unwrap_or("send");
    let uuid = |rng: &mut StdRng| Uuid::from_u128(rng.random());
    let at = APPENDED_AT.minus_ms(rng.random_range(0..30 * DAY_MS));
    let at = format!("{}.{:03}Z", at.to_rfc3339().trim_end_matches('Z'), rng.random_range(0..1000));
    let reader: u32 = rng.random_range(0..1_000_000);
    let mut json = format!(
        r#"{{"id":"{}","account_id":"acme-books","type":"{type}","occurred_at":"{at}","contact_id":"{}","email":"reader{reader}@example.com""#,
        uuid(rng),
        uuid(rng)
    );
    let of_mail = !matches!(r#type, "subscribe" | "global_resubscribe" | "purchase" | "create" | "import");
    if of_mail {
        json +=
            &format!(r#","message_id":"{}","campaign_id":"cmp_{}""#, uuid(rng), rng.random_range(1..10_000));
    }
    if of_mail && rng.random_bool(0.3) {
        json += &format!(r#","automation_id":"aut_{}","step_id":"step_{}""#, reader % 100, reader % 7);
    }
    if matches!(r#type, "send" | "subscribe" | "unsubscribe" | "import") {
        json += &format!(r#","list_id":"list_{}""#, reader % 50);
    }
    match r#type {
        "open" | "click" => {
            if r#type == "click" {
                json += &format!(
                    r#","url":"https://books.example/products/{reader}?utm_source=spring&utm_medium=email""#
                );
            }
            let (agent, country) = (AGENTS[reader as usize % 3], COUNTRIES[reader as usize % 4]);
            json += &format!(r#","metadata":{{"user_agent":"{agent}","ip_country":"{country}"}}"#);
        }
        "bounce" => json += r#","bounce":{"type":"hard","reason":"550 5.1.1 no such user here"}"#,
        "purchase" => {
            json += &format!(
                r#","purchase":{{"order_uuid":"{}","product_uuid":"{}","product_name":"Book no. {reader}","variant_name":"paperback","is_subscription":false,"amount":1290}}"#,
                uuid(rng),
                uuid(rng)
            );
        }
        _ => {}
    }
    json.push('}');
    if rng.random_bool(0.05) {
        json = json.replace('/', r"\/").replace("reader", r"r\u00e9ader");
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_valid_and_most_have_two_rows() {
        let result = measure(3, 2000);
        assert!((250.0..350.0).contains(&result.message_bytes), "{result:?}");
        assert!((1.5..2.0).contains(&result.rows), "{result:?}");
        let missing = TYPES.iter().filter(|(name, _)| {
            let field = format!(r#""type":"{name}""#);
            !messages(20_000).iter().any(|message| String::from_utf8_lossy(message).contains(&field))
        });
        assert_eq!(missing.count(), 0);
    }
}
