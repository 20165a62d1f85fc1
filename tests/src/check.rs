//! Compares a running server with the model, answer by answer.
//!
//! [`wait_until_settled`] polls until the server has caught up with the model. [`check_all`] then reads
//! the timeline of every campaign and contact, without a filter and under random ones, page after
//! page to the end and one past it, and asks for what does not exist and what is not valid. Since the
//! model answers every page of a query with the same total, so must the server. The first answer that
//! differs ends the check and is reported with its request and the rows that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::Value;

use crate::client::{Client, Prefix, Reply};
use crate::model::{Answer, CAMPAIGN_TYPES, CONTACT_TYPES, Endpoint, Model, Query, TYPE_GROUPS, Timeline};

const POLL_INTERVAL: Duration = Duration::from_millis(100);
const CONCURRENT_WALKS: usize = 8;
const RATE_LIMITED_MAX: u32 = 100;
const SHOWN_DIFFERENCES_MAX: usize = 5;
const SHOWN_CHARS_MAX: usize = 800;

/// How much [`check_all`] reads.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Random queries for each timeline.
    pub filters: usize,
    /// Timelines of each endpoint that are read; more are sampled.
    pub timelines_max: usize,
    /// A query with more pages is sampled, not walked.
    pub walked_pages_max: usize,
    /// Whether timelines longer than that are walked to the end once, without a filter.
    pub walks_long_timelines: bool,
    /// Pages of a sampled query, besides the last one and the one past it.
    pub sampled_pages: usize,
}

impl Effort {
    /// A few queries for some timelines: to be repeated while something else goes on.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            filters: 4,
            timelines_max: 40,
            walked_pages_max: 50,
            walks_long_timelines: false,
            sampled_pages: 4,
        }
    }

    /// Many queries for every timeline: to judge what there is at the end.
    #[must_use]
    pub fn thorough() -> Self {
        Self {
            filters: 25,
            timelines_max: usize::MAX,
            walked_pages_max: 300,
            walks_long_timelines: true,
            sampled_pages: 20,
        }
    }
}

/// What was read and found right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Campaigns and contacts, those that do not exist included.
    pub timelines: usize,
    /// Queries, each with one or more pages.
    pub queries: usize,
    /// Answers.
    pub pages: usize,
    /// Rows in them.
    pub rows: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timelines, queries, pages, rows } = self;
        write!(f, "{timelines} timelines, {queries} queries, {pages} pages and {rows} rows are right")
    }
}

/// Compares every timeline of the accounts in `keys` (account to API key, with both permissions) with
/// the model. The server must have caught up, and must know of nothing that the model does not know.
///
/// # Errors
///
/// The first answer that differs, for people to read.
pub async fn check_all(
    client: &Client,
    model: &Model,
    keys: &BTreeMap<String, String>,
    rng: &mut StdRng,
    effort: &Effort,
) -> Result<Report, String> {
    let mut timelines = model.timelines();
    add_unknown_timelines(&mut timelines, model, keys);
    let mut report = Report::default();
    let mut walks = Vec::new();
    for endpoint in [Endpoint::Campaign, Endpoint::Contact] {
        let of_endpoint =
            timelines.iter().filter(|((e, account, _), _)| *e == endpoint && keys.contains_key(account));
        let of_endpoint: Vec<_> = of_endpoint.collect();
        let chosen = of_endpoint.sample(rng, effort.timelines_max.min(of_endpoint.len()));
        for ((_, account, id), timeline) in chosen {
            let place = Place { endpoint, account, id, key: &keys[account.as_str()], timeline };
            walks.extend(plan(place, rng, effort));
            report.timelines += 1;
        }
    }
    report.queries = walks.len();
    let walked = stream::iter(&walks).map(|walk| walk.run(client)).buffer_unordered(CONCURRENT_WALKS);
    walked
        .try_fold(report, |mut report, (pages, rows)| async move {
            report.pages += pages;
            report.rows += rows;
            Ok(report)
        })
        .await
}

/// What has to agree before a server counts as settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The total of each timeline.
    Totals,
    /// Each page of each timeline: names, addresses and what a `send` supplied as well.
    Pages,
}

/// Polls until every timeline of the accounts in `keys` agrees with the model, all of them in one last
/// round. A server that does not answer yet is polled as well. Returns how long it took.
///
/// # Errors
///
/// The differences that are left after `patience`, for people to read.
pub async fn wait_until_settled(
    client: &Client,
    model: &Model,
    keys: &BTreeMap<String, String>,
    depth: Settled,
    patience: Duration,
) -> Result<Duration, String> {
    let started = Instant::now();
    let timelines = model.timelines();
    let of_accounts = timelines.iter().filter_map(|((endpoint, account, id), timeline)| {
        Some(Place { endpoint: *endpoint, account, id, key: keys.get(account)?, timeline })
    });
    let all: Vec<Walk<'_>> = of_accounts.map(|place| Walk::to_settle(place, depth)).collect();
    let mut pending: Vec<&Walk<'_>> = all.iter().collect();
    loop {
        let outcomes = stream::iter(std::mem::take(&mut pending)).map(|walk| async move {
            let outcome = walk.run(client).await;
            (walk, outcome)
        });
        let outcomes: Vec<_> = outcomes.buffer_unordered(CONCURRENT_WALKS).collect().await;
        let was_full_round = outcomes.len() == all.len();
        let failures: Vec<_> = outcomes.into_iter().filter_map(|(walk, o)| Some((walk, o.err()?))).collect();
        if failures.is_empty() && was_full_round {
            return Ok(started.elapsed());
        }
        if !failures.is_empty() && started.elapsed() >= patience {
            return Err(unsettled(&failures, all.len(), patience));
        }
        if failures.is_empty() {
            pending = all.iter().collect();
        } else {
            pending = failures.into_iter().map(|(walk, _)| walk).collect();
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn unsettled(failures: &[(&Walk<'_>, String)], count: usize, patience: Duration) -> String {
    let shown: Vec<&str> = failures.iter().take(SHOWN_DIFFERENCES_MAX).map(|(_, why)| why.as_str()).collect();
    let (left, shown) = (failures.len(), shown.join("\n\n"));
    format!("after {patience:?}, {left} of {count} timelines do not agree yet; some of them:\n\n{shown}")
}

/// A campaign or contact of an account, and what the model has for it.
#[derive(Clone, Copy)]
struct Place<'a> {
    endpoint: Endpoint,
    account: &'a str,
    id: &'a str,
    key: &'a str,
    timeline: &'a Timeline<'a>,
}

/// Which pages of a query are read.
#[derive(Clone, Debug)]
enum Pages {
    /// Only the one that the query names.
    Named,
    /// The first one, and of that only the total.
    FirstTotal,
    /// All, and one past the end.
    All,
    /// Those at these shares of the whole (0 to 1), the last one and one past the end.
    Sampled(Vec<f64>),
}

/// One query, and the pages of it to compare.
struct Walk<'a> {
    place: Place<'a>,
    /// The id as it is written in the path.
    path_id: String,
    prefix: Prefix,
    query: Query,
    pages: Pages,
}

impl<'a> Walk<'a> {
    fn to_settle(place: Place<'a>, depth: Settled) -> Self {
        let (per_page, pages) = match depth {
            Settled::Totals => (1, Pages::FirstTotal),
            Settled::Pages => (100, Pages::All),
        };
        let query = Query::new().with("per_page", per_page);
        Self { place, path_id: place.id.to_owned(), prefix: Prefix::Short, query, pages }
    }

    /// Reads and compares; returns how many pages and rows were right.
    async fn run(&self, client: &Client) -> Result<(usize, usize), String> {
        let now = Utc::now();
        let listing = match self.place.timeline.listing(&self.query, now) {
            Ok(listing) => listing,
            Err(answer) => return Ok((1, self.compare(client, &self.query, &answer).await?)),
        };
        let last = listing.page_count().max(1);
        let pages: Vec<usize> = match &self.pages {
            Pages::Named => {
                let answer = self.place.timeline.page(&self.query, now);
                return Ok((1, self.compare(client, &self.query, &answer).await?));
            }
            Pages::FirstTotal => {
                let answer = listing.page(1);
                return self.compare_total(client, &answer).await.map(|()| (1, 0));
            }
            Pages::All => (1..=last + 1).collect(),
            Pages::Sampled(shares) => sampled(shares, last),
        };
        let mut rows = 0;
        for page in &pages {
            // The first page is the default.
            let query = if *page == 1 { self.query.clone() } else { self.query.clone().with("page", page) };
            rows += self.compare(client, &query, &listing.page(*page)).await?;
        }
        Ok((pages.len(), rows))
    }

    /// Compares one answer; returns how many rows it has.
    async fn compare(&self, client: &Client, query: &Query, expected: &Answer) -> Result<usize, String> {
        let reply = self.read(client, query).await?;
        if expected.agrees_with(reply.status, &reply.body) {
            return Ok(rows(self.place.endpoint, &reply.body).len());
        }
        Err(self.describe(query, &difference(self.place.endpoint, expected, &reply)))
    }

    async fn compare_total(&self, client: &Client, expected: &Answer) -> Result<(), String> {
        let reply = self.read(client, &self.query).await?;
        let (wanted, got) =
            (total(self.place.endpoint, &expected.body), total(self.place.endpoint, &reply.body));
        if expected.status == reply.status && wanted == got {
            return Ok(());
        }
        let status = reply.status;
        Err(self.describe(&self.query, &format!("expected total {wanted}, got status {status}, total {got}")))
    }

    async fn read(&self, client: &Client, query: &Query) -> Result<Reply, String> {
        let place = self.place;
        for _ in 0..RATE_LIMITED_MAX {
            let reply = client.read(place.endpoint, self.prefix, &self.path_id, place.key, query).await;
            let reply = reply.map_err(|error| self.describe(query, &format!("no answer: {error:#}")))?;
            if reply.status != 429 {
                return Ok(reply);
            }
            tokio::time::sleep(reply.retry_after()).await;
        }
        Err(self.describe(query, "rate limited without end"))
    }

    fn describe(&self, query: &Query, what: &str) -> String {
        let path = Client::path(self.place.endpoint, self.prefix, &self.path_id);
        format!("account {}: GET {path}{query}\n{what}", self.place.account)
    }
}

fn sampled(shares: &[f64], last: usize) -> Vec<usize> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "any page will do"
    )]
    let at = |share: &f64| (share * last as f64) as usize + 1;
    let pages: BTreeSet<usize> = shares.iter().map(at).chain([1, last, last + 1]).collect();
    pages.into_iter().collect()
}

// What is asked.

/// Adds what an account must not know: the ids of the other accounts, and ids of nobody.
fn add_unknown_timelines<'a>(
    timelines: &mut BTreeMap<(Endpoint, String, String), Timeline<'a>>,
    model: &'a Model,
    keys: &BTreeMap<String, String>,
) {
    let ids: BTreeSet<_> = timelines.keys().map(|(endpoint, _, id)| (*endpoint, id.clone())).collect();
    let nobodys = [
        (Endpoint::Campaign, "cmp_nobody"),
        (Endpoint::Campaign, "00000000-0000-4000-8000-00000000abcd"),
        (Endpoint::Contact, "00000000-0000-4000-8000-00000000abcd"),
        (Endpoint::Contact, "not-a-uuid"),
    ];
    let nobodys = nobodys.map(|(endpoint, id)| (endpoint, id.to_owned()));
    for account in keys.keys() {
        for (endpoint, id) in ids.iter().chain(&nobodys) {
            let place = (*endpoint, account.clone(), id.clone());
            timelines.entry(place).or_insert_with(|| model.timeline(*endpoint, account, id));
        }
    }
}

/// Everything that is asked of one timeline.
fn plan<'a>(place: Place<'a>, rng: &mut StdRng, effort: &Effort) -> Vec<Walk<'a>> {
    let mut asked = vec![
        (Query::new().with("per_page", 100), Pages::All),
        (bad_query(place, rng), Pages::Named),
        (Query::new().with("page", 1u64 << 31), Pages::Named),
    ];
    let filters = if place.timeline.is_known() { effort.filters } else { 1 };
    asked.extend((0..filters).map(|_| (random_query(place, rng), Pages::All)));
    let now = Utc::now();
    let walks = asked.into_iter().enumerate().map(|(index, (query, pages))| {
        let page_count = place.timeline.listing(&query, now).map_or(0, |listing| listing.page_count());
        let is_long = page_count > effort.walked_pages_max && !(index == 0 && effort.walks_long_timelines);
        let pages = if is_long && matches!(pages, Pages::All) {
            Pages::Sampled((0..effort.sampled_pages).map(|_| rng.random()).collect())
        } else {
            pages
        };
        let prefix = if rng.random() { Prefix::Short } else { Prefix::Long };
        Walk { place, path_id: any_case(rng, place.id), prefix, query, pages }
    });
    walks.collect()
}

/// A query with one parameter that is not valid (the answer is the model's to say).
fn bad_query(place: Place<'_>, rng: &mut StdRng) -> Query {
    const BOTH: [(&str, &str); 11] = [
        ("page", "0"),
        ("page", "-1"),
        ("page", "two"),
        ("page", "1.5"),
        ("page", "2147483649"),
        ("per_page", "0"),
        ("per_page", "99999999999999999999"),
        ("type", "open"),
        ("type", "Opened"),
        ("type", "bogus"),
        ("type", "created,opened"),
    ];
    const CAMPAIGN: [(&str, &str); 8] = [
        ("type", "purchased"),
        ("contact_id", "jane"),
        ("from_date", "yesterday"),
        ("from_date", "2026-02-30"),
        ("to_date", "2026-01-01T25:00:00Z"),
        ("to_date", "2026-01-01T10:00Z"),
        ("to_date", "2026-01-01T10:00:00+2"),
        ("from_date", "1767225600"),
    ];
    const CONTACT: [(&str, &str); 8] = [
        ("type", "replied"),
        ("type", "complained"),
        ("type_group", "mail"),
        ("per_page", "101"),
        ("from", "2026-02-30"),
        ("from", "2026-1-1"),
        ("to", "2026-01-01T00:00:00Z"),
        ("to", "01.01.2026"),
    ];
    let own: &[_] = if place.endpoint == Endpoint::Campaign { &CAMPAIGN } else { &CONTACT };
    if rng.random_bool(0.1) {
        return Query::new().with("per_page", 10).with("per_page", 20);
    }
    let all = [&BOTH, own].concat();
    let (name, value) = all[rng.random_range(0..all.len())];
    Query::new().with(name, value)
}

/// A valid query with any filters, aimed at what the timeline has.
fn random_query(place: Place<'_>, rng: &mut StdRng) -> Query {
    let mut query = Query::new();
    if rng.random_bool(0.7) {
        query = query.with("per_page", rng.random_range(1..=100));
    } else if place.endpoint == Endpoint::Campaign && rng.random_bool(0.3) {
        query = query.with("per_page", rng.random_range(101..=5000));
    }
    query = match place.endpoint {
        Endpoint::Campaign => with_campaign_filters(query, place, rng),
        Endpoint::Contact => with_contact_filters(query, place, rng),
    };
    match rng.random_range(0..20) {
        0 => query.with("x_unknown", "1"),
        // An empty one counts as absent; besides a full one of its name it might count as a second.
        1 if query.pairs().iter().all(|(name, _)| name != "type") => query.with("type", ""),
        2 => query.clone().pairs().iter().fold(query, |query, (name, value)| query.with(name, value)),
        _ => query,
    }
}

fn with_campaign_filters(mut query: Query, place: Place<'_>, rng: &mut StdRng) -> Query {
    if rng.random_bool(0.45) {
        query = query.with("type", CAMPAIGN_TYPES[rng.random_range(0..CAMPAIGN_TYPES.len())]);
    }
    if rng.random_bool(0.35) {
        let contacts = place.timeline.contacts();
        let contact = contacts.choose(rng).filter(|_| rng.random_bool(0.9));
        let contact = contact.map_or("00000000-0000-4000-8000-00000000abcd", String::as_str);
        query = query.with("contact_id", any_case(rng, contact));
    }
    if rng.random_bool(0.4) {
        query = query.with("from_date", random_bound(place, rng));
    }
    if rng.random_bool(0.4) {
        query = query.with("to_date", random_bound(place, rng));
    }
    query
}

fn with_contact_filters(mut query: Query, place: Place<'_>, rng: &mut StdRng) -> Query {
    if rng.random_bool(0.35) {
        query = query.with("type", CONTACT_TYPES[rng.random_range(0..CONTACT_TYPES.len())]);
    }
    if rng.random_bool(0.35) {
        query = query.with("type_group", TYPE_GROUPS[rng.random_range(0..TYPE_GROUPS.len())].0);
    }
    if rng.random_bool(0.4) {
        query = query.with("from", random_day(place, rng));
    }
    if rng.random_bool(0.4) {
        query = query.with("to", random_day(place, rng));
    }
    query
}

/// A time at or close to one of the rows'.
fn random_time_ns(place: Place<'_>, rng: &mut StdRng) -> i64 {
    let times = place.timeline.times_ms();
    let at_ms = times.choose(rng).copied().unwrap_or_else(|| Utc::now().timestamp_millis());
    let offsets_ns: [i64; 9] =
        [0, 0, 1, -1, 1_000_000, -1_000_000, 1_000_000_000, -1_000_000_000, 86_400_000_000_000];
    at_ms * 1_000_000 + offsets_ns[rng.random_range(0..offsets_ns.len())]
}

/// A bound in any of the spellings of the campaign stream.
fn random_bound(place: Place<'_>, rng: &mut StdRng) -> String {
    const ZONES: [(&str, i64); 9] = [
        ("", 0),
        ("Z", 0),
        ("Z", 0),
        ("+00:00", 0),
        ("+02:00", 120),
        // A `+` that was not escaped.
        (" 02:00", 120),
        (" 05:45", 345),
        ("-07:30", -450),
        ("-00:00", 0),
    ];
    let at_ns = random_time_ns(place, rng);
    if rng.random_bool(0.2) {
        return DateTime::from_timestamp_nanos(at_ns).format("%Y-%m-%d").to_string();
    }
    let (zone, minutes) = ZONES[rng.random_range(0..ZONES.len())];
    let local = DateTime::from_timestamp_nanos(at_ns + minutes * 60_000_000_000);
    let digits = format!("{:09}", at_ns.rem_euclid(1_000_000_000));
    let fraction = match rng.random_range(0..4) {
        0 => String::new(),
        1 => format!(".{}", &digits[..3]),
        2 => format!(".{digits}"),
        _ => format!(".{}", &digits[..rng.random_range(1..=9)]),
    };
    format!("{}{fraction}{zone}", local.format("%Y-%m-%dT%H:%M:%S"))
}

fn random_day(place: Place<'_>, rng: &mut StdRng) -> String {
    let day_ns = 86_400_000_000_000;
    let at_ns = random_time_ns(place, rng) + rng.random_range(-1..=1) * day_ns;
    DateTime::from_timestamp_nanos(at_ns).format("%Y-%m-%d").to_string()
}

/// A UUID in upper case now and then; any other id as it is.
fn any_case(rng: &mut StdRng, id: &str) -> String {
    let is_uuid = id.len() == 36 && uuid::Uuid::parse_str(id).is_ok();
    if is_uuid && rng.random_bool(0.3) { id.to_ascii_uppercase() } else { id.to_owned() }
}

// What is said about a difference.

fn rows(endpoint: Endpoint, body: &Value) -> &[Value] {
    let rows = match endpoint {
        Endpoint::Campaign => &body["data"]["events"],
        Endpoint::Contact => &body["data"],
    };
    rows.as_array().map_or(&[], Vec::as_slice)
}

fn total(endpoint: Endpoint, body: &Value) -> &Value {
    match endpoint {
        Endpoint::Campaign => &body["meta"]["total"],
        Endpoint::Contact => &body["pagination"]["total"],
    }
}

/// How an answer differs from what was expected: the envelope, then the first rows that differ.
fn difference(endpoint: Endpoint, expected: &Answer, reply: &Reply) -> String {
    if expected.status != 200 || reply.status != 200 {
        return format!(
            "expected {} {}\ngot      {} {}",
            expected.status,
            short(&expected.body),
            reply.status,
            short(&reply.body)
        );
    }
    let (wanted, got) = (rows(endpoint, &expected.body), rows(endpoint, &reply.body));
    let mut lines = vec![
        format!("expected {} rows, {}", wanted.len(), envelope(&expected.body)),
        format!("got      {} rows, {}", got.len(), envelope(&reply.body)),
    ];
    let differing = (0..wanted.len().max(got.len())).filter(|index| wanted.get(*index) != got.get(*index));
    let differing: Vec<usize> = differing.collect();
    let is_reordered = wanted.len() == got.len() && wanted.iter().all(|row| got.contains(row));
    if !differing.is_empty() {
        let how = if is_reordered { " (the same rows in another order)" } else { "" };
        lines.push(format!("{} rows differ{how}:", differing.len()));
    }
    for index in differing.into_iter().take(SHOWN_DIFFERENCES_MAX) {
        lines.push(format!("  row {index} expected {}", wanted.get(index).map_or("none".to_owned(), short)));
        lines.push(format!("  row {index} got      {}", got.get(index).map_or("none".to_owned(), short)));
    }
    lines.join("\n")
}

/// The body but for its rows.
fn envelope(body: &Value) -> String {
    let mut body = body.clone();
    if let Some(object) = body.as_object_mut() {
        object.retain(|name, _| name != "data");
    }
    short(&body)
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rand::SeedableRng;
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::history::{History, Knobs};

    /// A server that answers from a model, perhaps wrongly.
    struct Fake {
        model: Mutex<Model>,
        spoil: fn(&mut Answer),
    }

    impl Fake {
        async fn serve(self: Arc<Self>) -> Client {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(self.clone().answer(stream));
                }
            });
            Client::new(&format!("http://{address}")).expect("a client")
        }

        async fn answer(self: Arc<Self>, stream: TcpStream) {
            let mut stream = BufReader::new(stream);
            let (mut target, mut account) = (String::new(), String::new());
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|count| count > 2) {
                if let Some(rest) = line.strip_prefix("GET ") {
                    target = rest.split(' ').next().unwrap_or_default().to_owned();
                }
                if let Some(key) = line.trim().strip_prefix("authorization: Bearer key-of-") {
                    key.clone_into(&mut account);
                }
                line.clear();
            }
            let answer = self.page(&target, &account);
            let body = answer.body.to_string();
            let head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
            let reply = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(reply.as_bytes()).await.ok();
        }

        fn page(&self, target: &str, account: &str) -> Answer {
            let url = reqwest::Url::parse(&format!("http://x{target}")).expect("a URL");
            let mut segments = url.path_segments().expect("a path").rev().skip(1);
            let (id, kind) = (segments.next().expect("an id"), segments.next().expect("a kind"));
            let query = url.query_pairs().fold(Query::new(), |query, (name, value)| query.with(&name, value));
            let model = self.model.lock().expect("a model");
            let mut answer = if kind == "campaigns" {
                model.campaign_page(account, id, &query, Utc::now())
            } else {
                model.contact_page(account, id, &query, Utc::now())
            };
            (self.spoil)(&mut answer);
            if answer.status != 200 && answer.body["error"]["message"].is_null() {
                answer.body["error"]["message"] = json!("for people");
            }
            answer
        }
    }

    fn history(seed: u64, events: usize) -> (Model, BTreeMap<String, String>) {
        let now = Utc::now();
        let history = History::generate(seed, &Knobs::sized(events), now);
        let mut model = Model::new(180);
        for record in &history.records {
            model.take(record, now);
        }
        let keys = history.accounts.iter().map(|account| (account.clone(), format!("key-of-{account}")));
        (model, keys.collect())
    }

    async fn check(spoil: fn(&mut Answer)) -> Result<Report, String> {
        let (model, keys) = history(1, 300);
        let client = Arc::new(Fake { model: Mutex::new(model.clone()), spoil }).serve().await;
        let mut rng = StdRng::seed_from_u64(1);
        check_all(&client, &model, &keys, &mut rng, &Effort { filters: 6, ..Effort::thorough() }).await
    }

    #[tokio::test]
    async fn right_answers_pass() {
        let report = check(|_| {}).await.expect("no difference");
        assert!(report.timelines > 30 && report.queries > 200, "{report}");
        assert!(report.pages > report.queries && report.rows > 1000, "{report}");
    }

    #[tokio::test]
    async fn wrong_total_is_found() {
        let why = check(|answer| {
            if answer.body["meta"]["total"].as_u64() > Some(5) {
                answer.body["meta"]["total"] = json!(0);
            }
        });
        let why = why.await.expect_err("a difference");
        assert!(why.contains("GET /") && why.contains("\"total\":0"), "{why}");
    }

    #[tokio::test]
    async fn wrong_order_is_found_and_named() {
        let why = check(|answer| {
            if let Some(rows) = answer.body.get_mut("data").and_then(Value::as_array_mut) {
                rows.reverse();
            }
        });
        let why = why.await.expect_err("a difference");
        assert!(why.contains("the same rows in another order"), "{why}");
    }

    #[tokio::test]
    async fn foreign_data_is_found() {
        let why = check(|answer| {
            if answer.status == 404 {
                let body =
                    json!({ "data": { "events": [] }, "meta": { "page": 1, "per_page": 100, "total": 0 } });
                *answer = Answer { status: 200, body };
            }
        });
        let why = why.await.expect_err("a difference");
        assert!(why.contains("expected 404"), "{why}");
    }

    #[tokio::test]
    async fn waiting_ends_when_the_server_has_caught_up_and_not_before() {
        let (model, keys) = history(2, 100);
        let fake = Arc::new(Fake { model: Mutex::new(Model::new(180)), spoil: |_| {} });
        let client = fake.clone().serve().await;
        for depth in [Settled::Totals, Settled::Pages] {
            *fake.model.lock().expect("a model") = Model::new(180);
            let patience = Duration::from_millis(300);
            let why = wait_until_settled(&client, &model, &keys, depth, patience).await;
            assert!(why.expect_err("unsettled").contains("do not agree yet"));
            *fake.model.lock().expect("a model") = model.clone();
            let patience = Duration::from_secs(20);
            wait_until_settled(&client, &model, &keys, depth, patience).await.expect("settled");
        }
    }

    #[test]
    fn samples_hold_the_ends() {
        assert_eq!(sampled(&[0.0, 0.5, 0.99], 10), [1, 6, 10, 11]);
        assert_eq!(sampled(&[], 1), [1, 2]);
    }
}
