//! How long it takes from an event's publication until it shows, while others are published at a steady rate.
//!
//! Ten times a second a *marker* is published among the events: an event of a campaign and a contact of its own. Each is looked for until
//! it shows, at first every few milliseconds. Its time begins when it is handed to the producer, which gathers records for
//! some milliseconds. One more is published before, and waited for.
//!
//! Who begins with tables, contacts and processes that are all new is told from who has been at it for a while.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::topic::{Form, Outgoing, Publisher, Records};
use crate::measure::{Spread, Usage};
use crate::mix::Mix;
use crate::options::now_ms;

/// How long its producer is to gather records.
pub(super) const LINGER_MS: u32 = 5;
/// The time between two markers.
const MARKER_EVERY: Duration = Duration::from_millis(100);
/// Markers begin when the rate has been held for so long.
const FIRST_AFTER: Duration = Duration::from_secs(3);
/// How long to wait before a marker is looked for again, at least; of an older one a share of its age. Looking is a load, too: where it took
/// much, it would be what makes markers late.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(10);
const LOOK_AGE_SHARE: u32 = 10;
/// A marker that does not show in this time never will.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(120);

/// How long markers took to show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fresh {
    /// Whose doing it was: `Kafka Connect`.
    pub(crate) name: String,
    /// Events published a second.
    pub(crate) per_s: f64,
    /// From published to visible, in milliseconds, at first.
    pub(crate) first_ms: Spread,
    /// The same, once all has been running for a while.
    pub(crate) steady_ms: Spread,
    /// What each process used meanwhile; the one that did the work comes first.
    pub(crate) usage: Vec<Usage>,
}

/// What is published, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    /// The events.
    pub(crate) mix: &'a Mix,
    /// How many a second.
    pub(crate) per_s: f64,
    /// How long all counts as new.
    pub(crate) first: Duration,
}

/// How long markers took, in milliseconds, and the rate that there was.
pub(super) struct Delays {
    pub(super) per_s: f64,
    pub(super) first_ms: Spread,
    pub(super) steady_ms: Spread,
}

impl Delays {
    /// How many markers there were, the one before all others included.
    pub(super) fn markers(&self) -> u64 {
        (self.first_ms.count + self.steady_ms.count + 1) as u64
    }

    /// Whose they are, and what was used meanwhile.
    pub(super) fn of(self, name: &str, usage: Vec<Usage>) -> Fresh {
        let Delays { per_s, first_ms, steady_ms } = self;
        Fresh { name: name.to_owned(), per_s, first_ms, steady_ms, usage }
    }
}

/// An event that is looked for.
#[derive(Clone, Debug)]
pub(super) struct Marker {
    /// Its id, and that of its campaign.
    pub(super) id: String,
    /// Its contact.
    pub(super) contact: Uuid,
    /// When it happened.
    pub(super) at_ms: i64,
}

impl Marker {
    /// One that happens now.
    pub(super) fn new() -> anyhow::Result<Marker> {
        let contact = Uuid::new_v4();
        Ok(Marker { id: format!("marker_{}", contact.simple()), contact, at_ms: now_ms()? })
    }

    /// The record that publishes it for `account`.
    pub(super) fn record(&self, account: &str, form: Form) -> anyhow::Result<Outgoing> {
        let at = DateTime::from_timestamp_millis(self.at_ms).unwrap_or_default();
        let event = json!({
            "id": self.id,
            "account_id": account,
            "type": "open",
            "occurred_at": at.to_rfc3339_opts(SecondsFormat::Millis, true),
            "contact_id": self.contact,
            "campaign_id": self.id,
        });
        Ok(Outgoing { key: self.id.clone(), value: form(event.to_string().as_bytes())? })
    }
}

/// Publishes a load, with markers of `account` among it, and asks `is_visible` for each of them.
pub(super) async fn measure(
    publisher: Publisher,
    load: Load<'_>,
    account: &str,
    form: Form,
    is_visible: impl AsyncFn(&Marker) -> anyhow::Result<bool>,
) -> anyhow::Result<Delays> {
    // Who reads may have to join its group first.
    let marker = Marker::new()?;
    publisher.send(&marker.record(account, form)?, None)?;
    look_for(marker, Instant::now(), &is_visible).await?;

    let (published, mut markers) = mpsc::unbounded_channel();
    let Load { mix, per_s, first } = load;
    let (mix, account) = (mix.clone(), account.to_owned());
    let steady_from = Instant::now() + first;
    let publishing =
        tokio::task::spawn_blocking(move || publish(publisher, &mix, &account, form, per_s, &published));
    let (mut looking, mut first_ms, mut steady_ms) = (FuturesUnordered::new(), Vec::new(), Vec::new());
    let mut is_open = true;
    while is_open || !looking.is_empty() {
        tokio::select! {
            marker = markers.recv(), if is_open => match marker {
                Some((marker, begun)) => {
                    let delay = look_for(marker, begun, &is_visible);
                    looking.push(delay.map(move |delay| (begun, delay)).boxed_local());
                }
                None => is_open = false,
            },
            Some((begun, delay)) = looking.next() => {
                let delays = if begun < steady_from { &mut first_ms } else { &mut steady_ms };
                delays.push(delay?.as_secs_f64() * 1000.0);
            }
        }
    }
    let (first_ms, steady_ms) = (Spread::of(first_ms), Spread::of(steady_ms));
    Ok(Delays { per_s: publishing.await??, first_ms, steady_ms })
}

/// Publishes at a rate, and tells of each marker when it was published. Returns the rate. Blocks.
fn publish(
    publisher: Publisher,
    mix: &Mix,
    account: &str,
    form: Form,
    per_s: f64,
    published: &mpsc::UnboundedSender<(Marker, Instant)>,
) -> anyhow::Result<f64> {
    let mut records = Records::new(mix, form);
    let begun = Instant::now();
    let mut next_marker = begun + FIRST_AFTER;
    for arrival in 0..mix.arrivals() {
        let due = begun + Duration::from_secs_f64(arrival as f64 / per_s);
        // A thread sleeps no shorter than this anyway.
        if due > Instant::now() + Duration::from_millis(1) {
            std::thread::sleep(due - Instant::now());
        }
        if Instant::now() >= next_marker {
            next_marker += MARKER_EVERY;
            let marker = Marker::new()?;
            let record = marker.record(account, form)?;
            let begun = Instant::now();
            publisher.send(&record, None)?;
            // Nobody listens where another marker failed.
            let _ = published.send((marker, begun));
        }
        publisher.send(&records.get(arrival)?, None)?;
    }
    let per_s = mix.arrivals() as f64 / begun.elapsed().as_secs_f64();
    publisher.finish()?;
    Ok(per_s)
}

/// How long after `begun` a marker shows.
async fn look_for(
    marker: Marker,
    begun: Instant,
    is_visible: &impl AsyncFn(&Marker) -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    while !is_visible(&marker).await? {
        let age = begun.elapsed();
        anyhow::ensure!(age < SHOWN_TIMEOUT, "{} does not show after {age:?}", marker.id);
        sleep(LOOK_EVERY_MIN.max(age / LOOK_AGE_SHARE)).await;
    }
    Ok(begun.elapsed())
}

/// The form in which `mail.events` takes events: as they are.
pub(super) fn as_it_is(record: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(record.to_vec())
}
