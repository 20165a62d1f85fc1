//! `dev --demo`: a sample account with a believable history, made by the same road as everything else: through the log.
//!
//! A shop, *acme-books*: a spring-sale blast to 2,000 readers with deliveries, bounces, opens and clicks that tail off over days, replies and
//! purchases; a welcome automation; a newsletter list with sign-ups and opt-outs. Times are relative to now, and chance is seeded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Appender, EmbeddedLog, Outgoing, Topic};
use event_store::EventStore;
use event_store::embedded::EmbeddedStore;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use timeline::{AccountId, Id, TimelineId, Timestamp};
use uuid::Uuid;

use crate::keys::{KeyStore, NewKey};
use crate::run::{Service, say};

const ACCOUNT: &str = "acme-books";
const CAMPAIGN: &str = "cmp_spring_sale";
const WELCOME: &str = "cmp_welcome";
const AUTOMATION: &str = "aut_welcome_series";
const LIST: &str = "lst_newsletter";
const READERS: usize = 2000;
const RECORDS_APPENDED: usize = 500;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// What the demo prints once everything is ready.
pub(crate) struct Demo {
    key: String,
    contact: Uuid,
}

impl Demo {
    /// Commands that work when pasted.
    pub(crate) fn print(&self, api: SocketAddr) {
        let Demo { key, contact } = self;
        say(&format!(
            "
A sample account, {ACCOUNT}, is loaded. Its key (shown once; `backstamp keys` makes more):

  export KEY={key}

The spring sale's newest opens, and how many there are:

  curl -s -H \"Authorization: Bearer $KEY\" 'http://{api}/v1/campaigns/{CAMPAIGN}/events?type=opened&per_page=3'

The last page of everything that happened in that campaign costs what the first does:

  curl -s -H \"Authorization: Bearer $KEY\" 'http://{api}/v1/campaigns/{CAMPAIGN}/events?per_page=3&page=1000'

One reader's history:

  curl -s -H \"Authorization: Bearer $KEY\" 'http://{api}/contacts/{contact}/events'

An event of your own, visible within a second:

  curl -s -H \"Authorization: Bearer $KEY\" http://{api}/v1/events -d '{{\"id\":\"evt_mine\",\"type\":\"open\",\"occurred_at\":\"'$(date -u +%FT%TZ)'\",\"contact_id\":\"{contact}\",\"campaign_id\":\"{CAMPAIGN}\"}}'
"
        ));
    }
}

/// Loads the history, unless it is there, and makes a key for it. Returns once all of it shows.
pub(crate) async fn load(
    keys: &KeyStore,
    store: &Arc<dyn EventStore>,
    embedded: &EmbeddedStore,
    log: &EmbeddedLog,
    service: &Service,
) -> anyhow::Result<Demo> {
    let permissions =
        ["campaigns:read", "contacts:read", "events:write", "references:write"].map(str::to_owned).to_vec();
    let made = keys.create(&NewKey { account: ACCOUNT.to_owned(), permissions, expires_s: None }).await?;
    let demo = Demo { key: made.key.unwrap_or_default(), contact: reader(0) };
    let campaign = AccountId::parse(ACCOUNT)
        .zip(Id::parse(CAMPAIGN))
        .map(|(account, id)| TimelineId::campaign(&account, &id));
    if let Some(campaign) = campaign
        && store.is_known(&campaign).await?
    {
        return Ok(demo);
    }
    let records = history((service.clock)());
    let bar = ProgressBar::new(records.len() as u64 * 2);
    bar.set_style(ProgressStyle::with_template("loading the demo  {bar:40}  {percent:>3}%  {msg}")?);
    bar.set_message(format!("{} events", records.len()));
    for records in records.chunks(RECORDS_APPENDED) {
        log.append(records.to_vec()).await?;
        bar.inc(records.len() as u64);
    }
    // Projected, it shows.
    let end = log.end_offset();
    loop {
        let done = embedded.committed_offset().await?;
        bar.set_position(
            (records.len() as u64 + (records.len() as u64).saturating_sub(end - done.min(end)))
                .max(bar.position()),
        );
        if done >= end || service.shutdown.has_begun() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bar.finish_and_clear();
    Ok(demo)
}

fn reader(number: usize) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{ACCOUNT}/reader/{number}").as_bytes())
}

/// Puts together what happened.
struct History {
    rng: StdRng,
    now: Timestamp,
    records: Vec<(i64, Outgoing)>,
    events: usize,
}

/// The records of the history, oldest first.
fn history(now: Timestamp) -> Vec<Outgoing> {
    let mut history = History { rng: StdRng::seed_from_u64(180), now, records: Vec::new(), events: 0 };
    for (kind, id, name) in [
        ("campaign", CAMPAIGN, "Spring Sale"),
        ("campaign", WELCOME, "Welcome"),
        ("automation", AUTOMATION, "Welcome series"),
        ("list", LIST, "Newsletter"),
    ] {
        history.reference(kind, id, json!({ "name": name }));
    }
    for number in 0..READERS {
        history.reader_joins(number);
        history.spring_sale(number);
    }
    history.records.sort_by_key(|(at, _)| *at);
    history.records.into_iter().map(|(_, record)| record).collect()
}

impl History {
    fn reference(&mut self, kind: &str, id: &str, mut fields: Value) {
        fields["kind"] = kind.into();
        fields["account_id"] = ACCOUNT.into();
        fields["id"] = id.into();
        let key = format!("{kind}:{ACCOUNT}:{id}");
        self.records.push((
            i64::MIN,
            Outgoing::new(Topic::References, Some(key.into_bytes()), Some(fields.to_string().into_bytes())),
        ));
    }

    fn event(&mut self, event_type: &str, at: i64, number: usize, mut fields: Value) {
        if at > self.now.0 {
            return;
        }
        self.events += 1;
        fields["id"] =
            Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{ACCOUNT}/event/{}", self.events).as_bytes())
                .to_string()
                .into();
        fields["account_id"] = ACCOUNT.into();
        fields["type"] = event_type.into();
        let fraction = at.rem_euclid(1000);
        fields["occurred_at"] = Timestamp(at).to_rfc3339().replace('Z', &format!(".{fraction:03}Z")).into();
        fields["contact_id"] = reader(number).to_string().into();
        let key = reader(number).to_string().into_bytes();
        self.records
            .push((at, Outgoing::new(Topic::Events, Some(key), Some(fields.to_string().into_bytes()))));
    }

    fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    /// A delay that is mostly short, and sometimes very long.
    fn tail(&mut self, median_ms: i64) -> i64 {
        let uniform: f64 = self.rng.random_range(0.02..1.0);
        (median_ms as f64 * (1.0 / uniform - 0.9)) as i64
    }

    fn reader_joins(&mut self, number: usize) {
        let joined = self.now.0 - self.rng.random_range(20 * DAY_MS..170 * DAY_MS);
        let email = format!("reader{number}@example.com");
        if number == 0 {
            self.reference("contact", &reader(0).to_string(), json!({ "email": email }));
        }
        let came = if self.chance(0.2) { "import" } else { "create" };
        self.event(came, joined, number, json!({ "email": email }));
        self.event("subscribe", joined + 2_000, number, json!({ "email": email, "list_id": LIST }));
        let message = format!("welcome-{number}");
        let sent = joined + 5 * MINUTE_MS;
        let send = json!({ "email": email, "message_id": message, "campaign_id": WELCOME, "automation_id": AUTOMATION, "step_id": "step_1" });
        self.event("send", sent, number, send);
        self.event("delivery", sent + 3_000, number, json!({ "message_id": message }));
        if self.chance(0.6) {
            let opened = sent + self.tail(2 * HOUR_MS);
            let open = json!({ "message_id": message, "metadata": self.client() });
            self.event("open", opened, number, open);
            if self.chance(0.3) {
                let url = "https://books.example/start";
                self.event("click", opened + 20_000, number, json!({ "message_id": message, "url": url }));
            }
        }
    }

    fn spring_sale(&mut self, number: usize) {
        // The blast goes out within 20 minutes, ten days ago.
        let sent = self.now.0 - 10 * DAY_MS + self.rng.random_range(0..20 * MINUTE_MS);
        let message = format!("spring-{number}");
        let email = format!("reader{number}@example.com");
        let send =
            json!({ "email": email, "message_id": message, "campaign_id": CAMPAIGN, "step_id": "step_1" });
        self.event("send", sent, number, send);
        if number != 0 && self.chance(0.02) {
            let bounce = match self.chance(0.4) {
                true => json!({ "type": "hard", "reason": "550 5.1.1 user unknown" }),
                false => json!({ "type": "soft", "reason": "452 4.2.2 mailbox full" }),
            };
            self.event("bounce", sent + 8_000, number, json!({ "message_id": message, "bounce": bounce }));
            return;
        }
        let delivered = sent + self.rng.random_range(1_000..9_000);
        self.event("delivery", delivered, number, json!({ "message_id": message }));
        if number != 0 && !self.chance(0.45) {
            return;
        }
        let opened = sent + self.tail(3 * HOUR_MS);
        let opens = self.rng.random_range(1..4);
        for again in 0..opens {
            let at = opened + i64::from(again) * self.tail(DAY_MS);
            let open = json!({ "message_id": message, "metadata": self.client() });
            self.event("open", at, number, open);
        }
        if number == 0 || self.chance(0.25) {
            let product = self.rng.random_range(1..60);
            let clicked = opened + self.rng.random_range(5_000..90_000);
            let url = format!("https://books.example/products/{product}?utm_source=spring");
            let click = json!({ "message_id": message, "url": url, "metadata": self.client() });
            self.event("click", clicked, number, click);
            if number == 0 || self.chance(0.2) {
                let purchase = json!({
                    "order_uuid": Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("order/{number}").as_bytes()),
                    "product_uuid": Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("product/{product}").as_bytes()),
                    "product_name": format!("Book no. {product}"),
                    "variant_name": "paperback",
                    "is_subscription": false,
                    "amount": "12.90",
                    "currency": "EUR",
                });
                self.event(
                    "purchase",
                    clicked + 11 * MINUTE_MS,
                    number,
                    json!({ "campaign_id": CAMPAIGN, "purchase": purchase }),
                );
            }
        }
        if self.chance(0.01) {
            self.event("reply", opened + HOUR_MS, number, json!({ "message_id": message }));
        }
        if self.chance(0.012) {
            // The footer's link is no engagement: it shows nowhere, the opt-out does.
            let url = format!("https://books.example/u/{number}");
            self.event(
                "click",
                opened + 30_000,
                number,
                json!({ "message_id": message, "url": url, "link": "unsubscribe" }),
            );
            self.event(
                "unsubscribe",
                opened + 31_000,
                number,
                json!({ "message_id": message, "list_id": LIST }),
            );
        } else if self.chance(0.002) {
            self.event("complaint", opened + HOUR_MS, number, json!({ "message_id": message }));
            self.event(
                "global_unsubscribe",
                opened + HOUR_MS + 1_000,
                number,
                json!({ "message_id": message }),
            );
        }
    }

    fn client(&mut self) -> Value {
        let agents = [
            "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X)",
            "Mozilla/5.0 (X11; Linux x86_64)",
            "Thunderbird/140.0",
        ];
        let countries = ["DE", "FR", "US", "NL", "PL"];
        let (agent, country) =
            (self.rng.random_range(0..agents.len()), self.rng.random_range(0..countries.len()));
        json!({ "user_agent": agents[agent], "ip_country": countries[country] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timeline::event::decode_event;

    #[test]
    fn the_history_is_valid_and_spans_what_the_endpoints_show() {
        let now = Timestamp(1_790_000_000_000);
        let records = history(now);
        let events = records.iter().filter(|record| record.topic == Topic::Events);
        let types: std::collections::BTreeSet<_> = events
            .map(|record| {
                decode_event(record.value.as_deref().unwrap_or_default(), now).expect("valid").event_type
            })
            .collect();
        assert!(types.len() >= 12, "{types:?}");
        assert!(records.len() > 10_000);
    }
}
