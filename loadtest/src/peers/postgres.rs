//! PostgreSQL with two tables equal to ours: inserted into as fast as it goes, and read a page at a time with its total.
//!
//! A cluster of its own, reached over a socket in its directory. Settings are the default ones, but for what any administrator would give it
//! (`SETTINGS`); a commit is on disk when it is acknowledged. The tables show what our two endpoints show, have a unique index that drops
//! repeats and serves pages newest first, and one that serves the filter by type.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use backstamp_tests::servers::server::{self, Server};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::signal::unix::SignalKind;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

use super::Measured;
use crate::measure::{Meter, Spread, Usage, cpu_s};
use crate::mix::Mix;
use crate::mix::json::Writer;

/// What differs from the defaults.
const SETTINGS: &str = "
listen_addresses = ''
shared_buffers = 512MB
max_wal_size = 4GB
synchronous_commit = on
";

const TABLES: &str = "
DROP TABLE IF EXISTS events_by_campaign, events_by_contact;
CREATE TABLE events_by_campaign (
    account_id text NOT NULL,
    campaign_id text NOT NULL,
    type smallint NOT NULL,
    occurred_at timestamptz NOT NULL,
    event_id text NOT NULL,
    contact_id uuid,
    email text,
    step_id text,
    url text,
    bounce text,
    metadata text
);
CREATE UNIQUE INDEX ON events_by_campaign (account_id, campaign_id, occurred_at DESC, event_id DESC);
CREATE INDEX ON events_by_campaign (account_id, campaign_id, type, occurred_at DESC, event_id DESC);
CREATE TABLE events_by_contact (
    account_id text NOT NULL,
    contact_id uuid NOT NULL,
    type smallint NOT NULL,
    occurred_at timestamptz NOT NULL,
    event_id text NOT NULL,
    campaign_id text,
    automation_id text,
    list_id text,
    url text,
    bounce text
);
CREATE UNIQUE INDEX ON events_by_contact (account_id, contact_id, occurred_at DESC, event_id DESC);
CREATE INDEX ON events_by_contact (account_id, contact_id, type, occurred_at DESC, event_id DESC);
";

/// Repeats are dropped by the unique index. Rows come in its order, so that two connections never wait for each other.
const INSERT_BY_CAMPAIGN: &str = "
INSERT INTO events_by_campaign
SELECT * FROM unnest($1::text[], $2::text[], $3::smallint[], $4::timestamptz[], $5::text[], $6::uuid[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::text[])
ON CONFLICT DO NOTHING";
const INSERT_BY_CONTACT: &str = "
INSERT INTO events_by_contact
SELECT * FROM unnest($1::text[], $2::uuid[], $3::smallint[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::text[])
ON CONFLICT DO NOTHING";

/// The types, by their number in the tables: as senders name them, and as the endpoints show them.
const TYPES: [(&str, &str); 8] = [
    ("send", "sent"),
    ("delivery", "delivered"),
    ("open", "opened"),
    ("click", "clicked"),
    ("reply", "replied"),
    ("bounce", "bounced"),
    ("unsubscribe", "unsubscribed"),
    ("complaint", "complained"),
];

/// Rows in an insert and connections, of which the best is taken.
const WAYS: [Way; 5] = [
    Way { rows: 500, connections: 1 },
    Way { rows: 2000, connections: 1 },
    Way { rows: 500, connections: 2 },
    Way { rows: 2000, connections: 2 },
    Way { rows: 5000, connections: 2 },
];
/// How many events each way is tried with.
const TRIED_EVENTS: u64 = 40_000;
const INITDB_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster that runs. Dropping it stops it and removes its data.
pub(crate) struct Postgres {
    /// What it says of itself: `15.12 (Debian 15.12-0+deb12u2)`.
    pub(crate) version: String,
    /// Taken when it is stopped.
    server: Option<Server>,
    pid: u32,
    directory: TempDir,
}

/// How events are inserted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// Rows of each table in one statement, and in one transaction.
    pub(crate) rows: u64,
    /// Connections beside each other.
    pub(crate) connections: usize,
}

impl Postgres {
    /// Starts a new cluster.
    ///
    /// # Errors
    ///
    /// When there is no PostgreSQL, or it does not start: with how to get it, or the end of its log.
    pub(crate) async fn start() -> anyhow::Result<Postgres> {
        let (server, directory) = tokio::task::spawn_blocking(start).await??;
        let mut postgres =
            Postgres { version: String::new(), pid: server.pid(), server: Some(server), directory };
        let client = postgres.connect().await?;
        postgres.version = client.query_one("SHOW server_version", &[]).await?.get(0);
        Ok(postgres)
    }

    /// Inserts a mix into empty tables, the best way of some, which are tried first. The tables keep it.
    pub(crate) async fn insert_best(&self, mix: &Mix) -> anyhow::Result<Measured> {
        let mut best: Option<(f64, Way)> = None;
        for way in WAYS {
            let seconds = self.insert_some(mix, mix.arrivals().min(TRIED_EVENTS), way).await?;
            if best.is_none_or(|(least, _)| seconds < least) {
                best = Some((seconds, way));
            }
        }
        let (_, way) = best.context("there are ways")?;
        self.insert(mix, way).await
    }

    /// Inserts a mix into empty tables. The tables keep it.
    pub(crate) async fn insert(&self, mix: &Mix, way: Way) -> anyhow::Result<Measured> {
        let (us, cpu_begun) = (Meter::start("load and decoding", std::process::id())?, self.cpu_s()?);
        let seconds = self.insert_some(mix, mix.arrivals(), way).await?;
        let usage = Usage {
            process: format!("PostgreSQL {}", self.version),
            cpu_s: self.cpu_s()? - cpu_begun,
            memory_peak_bytes: self.memory_bytes()?,
        };
        let usage = vec![usage, us.read()?];
        let rows = self.count("events_by_campaign").await? + self.count("events_by_contact").await?;
        ensure!(rows == 2 * mix.count(), "PostgreSQL has {rows} rows, not {}", 2 * mix.count());
        Ok(Measured {
            name: "PostgreSQL".to_owned(),
            how: format!("{} rows an insert, {} connections", way.rows, way.connections),
            records: mix.arrivals(),
            seconds,
            rows,
            usage,
        })
    }

    /// A connection that reads pages. What was inserted before is vacuumed and analysed first, as it is in time by itself.
    pub(crate) async fn reader(&self) -> anyhow::Result<Reader> {
        let client = self.connect().await?;
        client.batch_execute("VACUUM (ANALYZE)").await?;
        let of = "FROM events_by_campaign WHERE account_id = $1 AND campaign_id = $2";
        let columns =
            "event_id, type, contact_id::text, email, step_id, occurred_at::text, url, bounce, metadata";
        // By the column, not by its text of the same name.
        let order = "ORDER BY events_by_campaign.occurred_at DESC, event_id DESC";
        Ok(Reader {
            count: client.prepare(&format!("SELECT count(*) {of}")).await?,
            count_type: client.prepare(&format!("SELECT count(*) {of} AND type = $3")).await?,
            rows: client.prepare(&format!("SELECT {columns} {of} {order} OFFSET $3 LIMIT $4")).await?,
            rows_type: client
                .prepare(&format!("SELECT {columns} {of} AND type = $3 {order} OFFSET $4 LIMIT $5"))
                .await?,
            client,
        })
    }

    /// Inserts the first `arrivals` of a mix. Returns how long it took, in seconds.
    async fn insert_some(&self, mix: &Mix, arrivals: u64, way: Way) -> anyhow::Result<f64> {
        let mut connections = Vec::new();
        for _ in 0..way.connections {
            connections.push(self.connect().await?);
        }
        connections[0].batch_execute(TABLES).await?;
        connections[0].batch_execute("CHECKPOINT").await?;
        let begun = Instant::now();
        let next = AtomicU64::new(0);
        let work = connections.into_iter().map(|client| insert_from(client, mix, arrivals, way.rows, &next));
        try_join_all(work).await?;
        Ok(begun.elapsed().as_secs_f64())
    }

    async fn count(&self, table: &str) -> anyhow::Result<u64> {
        let row = self.connect().await?.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?;
        Ok(row.get::<_, i64>(0).cast_unsigned())
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.directory.path()).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.context("PostgreSQL takes no connection")?;
        // It ends with the client; what was wrong, the client's next request says.
        tokio::spawn(connection);
        Ok(client)
    }

    /// How long its processes have been on a processor: each connection is a process, and those that ended are charged to the first.
    fn cpu_s(&self) -> anyhow::Result<f64> {
        let mut sum = cpu_s(self.pid)? + cpu_s_of_ended(self.pid)?;
        for pid in children(self.pid)? {
            // It may end meanwhile.
            sum += cpu_s(pid).unwrap_or_default();
        }
        Ok(sum)
    }

    /// What its processes hold now: the memory of each, and once what they share.
    fn memory_bytes(&self) -> anyhow::Result<u64> {
        let (mut own, mut shared) = (0, 0);
        for pid in children(self.pid)?.into_iter().chain([self.pid]) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let kib = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0)
            };
            own += kib("RssAnon:");
            shared = shared.max(kib("RssShmem:"));
        }
        Ok((own + shared) * 1024)
    }
}

/// Inserts a mix the best way, and reads the first, the middle and the last page of 100 of its largest campaign.
pub(super) async fn measure(mix: &Mix) -> anyhow::Result<serde_json::Value> {
    let postgres = Postgres::start().await?;
    let inserted = postgres.insert_best(mix).await?;
    let reader = postgres.reader().await?;
    let campaign = mix.campaign_id(0);
    let account = mix.account.as_deref().unwrap_or_default();
    let wanted = |offset| Wanted { account, campaign: &campaign, kind: None, offset, limit: 100 };
    let total = reader.page(&wanted(0)).await?.total;
    let mut pages = serde_json::Map::new();
    for (name, offset) in [("first", 0), ("middle", total / 2), ("last", total.saturating_sub(100))] {
        let mut seconds = Vec::new();
        for _ in 0..20 {
            let page = reader.page(&wanted(offset)).await?;
            ensure!(page.ids.len() as u64 == total.min(100), "a page has {} rows", page.ids.len());
            seconds.push(page.seconds);
        }
        pages.insert(format!("{name}_s"), serde_json::to_value(Spread::of(seconds))?);
    }
    Ok(
        serde_json::json!({ "version": postgres.version, "inserted": inserted, "per_s": inserted.per_s(), "total": total, "pages": pages }),
    )
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An interrupt ends it at once, but in order: its shared memory goes, too.
        let interrupt = SignalKind::interrupt().as_raw_value();
        if let Some(server) = self.server.take() {
            let _ = server.end(interrupt, STOP_TIMEOUT);
        }
    }
}

/// Reads pages of a campaign, each with its total, by one connection.
pub(crate) struct Reader {
    client: Client,
    count: Statement,
    count_type: Statement,
    rows: Statement,
    rows_type: Statement,
}

/// A page that is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Whose campaign.
    pub(crate) account: &'a str,
    /// Which campaign.
    pub(crate) campaign: &'a str,
    /// Only events of this type, as the endpoints show it.
    pub(crate) kind: Option<&'a str>,
    /// How many rows come before it.
    pub(crate) offset: u64,
    /// The most rows on it.
    pub(crate) limit: u64,
}

/// A page as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// How many rows there are on all pages.
    pub(crate) total: u64,
    /// The ids of its events.
    pub(crate) ids: Vec<String>,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
}

impl Reader {
    /// Reads a page and its total. The two requests are sent together, so that neither waits for the other's answer to travel.
    pub(crate) async fn page(&self, wanted: &Wanted<'_>) -> anyhow::Result<Page> {
        let Wanted { account, campaign, kind, offset, limit } = wanted;
        let (offset, limit) = (i64::try_from(*offset)?, i64::try_from(*limit)?);
        let kind = kind.map(type_number).transpose()?;
        let mut counted: Vec<&(dyn ToSql + Sync)> = vec![account, campaign];
        counted.extend(kind.as_ref().map(|kind| kind as &(dyn ToSql + Sync)));
        let shown = [&counted[..], &[&offset, &limit]].concat();
        let (count, rows) = match kind {
            None => (&self.count, &self.rows),
            Some(_) => (&self.count_type, &self.rows_type),
        };
        let begun = Instant::now();
        let (total, rows) =
            tokio::try_join!(self.client.query_one(count, &counted), self.client.query(rows, &shown))?;
        let seconds = begun.elapsed().as_secs_f64();
        let ids = rows.iter().map(|row| row.get(0)).collect();
        Ok(Page { total: total.get::<_, i64>(0).cast_unsigned(), ids, seconds })
    }
}

/// Inserts batch after batch, until none is left.
async fn insert_from(
    mut client: Client,
    mix: &Mix,
    arrivals: u64,
    batch: u64,
    next: &AtomicU64,
) -> anyhow::Result<()> {
    let mut writer = Writer::new(mix);
    let by_campaign = client.prepare(INSERT_BY_CAMPAIGN).await?;
    let by_contact = client.prepare(INSERT_BY_CONTACT).await?;
    loop {
        let first = next.fetch_add(batch, Ordering::Relaxed);
        if first >= arrivals {
            return Ok(());
        }
        let records: Vec<Vec<u8>> = (first..arrivals.min(first + batch))
            .map(|arrival| {
                let mut record = Vec::new();
                writer.write(&mix.arrival(arrival), &mut record);
                record
            })
            .collect();
        let mut events =
            records.iter().map(|record| Event::decode(record)).collect::<anyhow::Result<Vec<_>>>()?;

        let transaction = client.transaction().await?;
        events.sort_unstable_by_key(|event| (event.account, event.campaign, event.at, event.id));
        let columns = Columns::of(&events);
        transaction
            .execute(
                &by_campaign,
                &[
                    &columns.account,
                    &columns.campaign,
                    &columns.kind,
                    &columns.at,
                    &columns.id,
                    &columns.contact,
                    &columns.email,
                    &columns.step,
                    &columns.url,
                    &columns.bounce,
                    &columns.metadata,
                ],
            )
            .await?;
        events.sort_unstable_by_key(|event| (event.account, event.contact, event.at, event.id));
        let columns = Columns::of(&events);
        transaction
            .execute(
                &by_contact,
                &[
                    &columns.account,
                    &columns.contact,
                    &columns.kind,
                    &columns.at,
                    &columns.id,
                    &columns.campaign,
                    &columns.automation,
                    &columns.list,
                    &columns.url,
                    &columns.bounce,
                ],
            )
            .await?;
        transaction.commit().await?;
    }
}

/// An event as it is published, as far as the tables have it.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(default)]
    account_id: &'a str,
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    occurred_at: DateTime<Utc>,
    campaign_id: &'a str,
    contact_id: Uuid,
    email: Option<&'a str>,
    step_id: Option<&'a str>,
    automation_id: Option<&'a str>,
    list_id: Option<&'a str>,
    url: Option<&'a str>,
    #[serde(borrow)]
    bounce: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

/// An event on its way into the tables.
struct Event<'a> {
    account: &'a str,
    id: &'a str,
    kind: i16,
    at: DateTime<Utc>,
    campaign: &'a str,
    contact: Uuid,
    email: Option<&'a str>,
    step: Option<&'a str>,
    automation: Option<&'a str>,
    list: Option<&'a str>,
    url: Option<&'a str>,
    bounce: Option<&'a str>,
    metadata: Option<&'a str>,
}

impl Event<'_> {
    fn decode(record: &[u8]) -> anyhow::Result<Event<'_>> {
        let raw: Raw<'_> = serde_json::from_slice(record)?;
        Ok(Event {
            account: raw.account_id,
            id: raw.id,
            kind: type_number(raw.kind)?,
            at: raw.occurred_at,
            campaign: raw.campaign_id,
            contact: raw.contact_id,
            email: raw.email,
            step: raw.step_id,
            automation: raw.automation_id,
            list: raw.list_id,
            url: raw.url,
            bounce: raw.bounce.map(RawValue::get),
            metadata: raw.metadata.map(RawValue::get),
        })
    }
}

/// Events as the columns of a table.
#[derive(Default)]
struct Columns<'a> {
    account: Vec<&'a str>,
    id: Vec<&'a str>,
    kind: Vec<i16>,
    at: Vec<DateTime<Utc>>,
    campaign: Vec<&'a str>,
    contact: Vec<Uuid>,
    email: Vec<Option<&'a str>>,
    step: Vec<Option<&'a str>>,
    automation: Vec<Option<&'a str>>,
    list: Vec<Option<&'a str>>,
    url: Vec<Option<&'a str>>,
    bounce: Vec<Option<&'a str>>,
    metadata: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(events: &[Event<'a>]) -> Columns<'a> {
        let mut columns = Columns::default();
        for event in events {
            columns.account.push(event.account);
            columns.id.push(event.id);
            columns.kind.push(event.kind);
            columns.at.push(event.at);
            columns.campaign.push(event.campaign);
            columns.contact.push(event.contact);
            columns.email.push(event.email);
            columns.step.push(event.step);
            columns.automation.push(event.automation);
            columns.list.push(event.list);
            columns.url.push(event.url);
            columns.bounce.push(event.bounce);
            columns.metadata.push(event.metadata);
        }
        columns
    }
}

fn type_number(name: &str) -> anyhow::Result<i16> {
    let at = TYPES.iter().position(|(raw, shown)| *raw == name || *shown == name);
    Ok(i16::try_from(at.with_context(|| format!("{name} is no type of both timelines"))?)?)
}

/// Makes a cluster and starts it.
fn start() -> anyhow::Result<(Server, TempDir)> {
    let programs = find_programs()?;
    let directory = tempfile::Builder::new().prefix("backstamp-postgres-").tempdir()?;
    let path = directory.path();
    // It refuses to run as root.
    let owner = match fs::metadata(path)?.uid() {
        0 => Some(some_user()?),
        _ => None,
    };
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid))?;
    }
    let command = |program: &str| {
        let mut command = Command::new(programs.join(program));
        command.current_dir(path);
        if let Some((uid, gid)) = owner {
            command.uid(uid).gid(gid);
        }
        command
    };
    let (data, log) = (path.join("data"), path.join("log.txt"));

    let mut initdb = command("initdb");
    initdb
        .args(["--username=postgres", "--auth=trust", "--locale=C", "--encoding=UTF8", "--pgdata"])
        .arg(&data);
    if !server::run_to_end(initdb, &log, INITDB_TIMEOUT)?.success() {
        return Err(server::failure("PostgreSQL's data cannot be laid out", &log));
    }
    fs::File::options().append(true).open(data.join("postgresql.conf"))?.write_all(SETTINGS.as_bytes())?;

    let mut postgres = command("postgres");
    postgres.arg("-D").arg(&data).arg("-k").arg(path);
    let is_ready = || fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections"));
    let server = server::start(postgres, &log, is_ready).context("PostgreSQL does not start")?;
    Ok((server, directory))
}

/// The folder of PostgreSQL's programs: of `initdb` in the path, or where Debian keeps it.
fn find_programs() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = PathBuf::from("/usr/lib/postgresql/15/bin");
    let has_both = |folder: &PathBuf| folder.join("initdb").exists() && folder.join("postgres").exists();
    let Some(folder) = std::env::split_paths(&path).chain([debian]).find(has_both) else {
        bail!("there is no PostgreSQL here. Debian and Ubuntu: apt-get install postgresql-15");
    };
    Ok(folder)
}

/// A user that is not root: PostgreSQL's own, or nobody.
fn some_user() -> anyhow::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    find_user(&users, "postgres")
        .or_else(|| find_user(&users, "nobody"))
        .context("there is no user that PostgreSQL could run as")
}

/// The numbers of a user and its group.
fn find_user(users: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields =
        users.lines().map(|line| line.split(':')).find(|line| line.clone().next() == Some(name))?.skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The processes that `parent` started and that still run.
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let threads = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(threads.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// How long the ended children of a process were on a processor.
fn cpu_s_of_ended(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let ticks =
        fields.split_ascii_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_is_published() {
        let record = br#"{"id":"evt_1","account_id":"acme","type":"bounce","occurred_at":"2026-04-17T14:23:05.123Z",
            "contact_id":"5a250440-1312-5c82-a006-b69d238954fd","campaign_id":"cmp","bounce":{"type":"hard"},"other":[1]}"#;
        let event = Event::decode(record).expect("an event");
        assert_eq!((event.account, event.id, event.campaign), ("acme", "evt_1", "cmp"));
        assert_eq!((event.kind, event.bounce, event.url), (5, Some(r#"{"type":"hard"}"#), None));
        assert_eq!(event.at.timestamp_subsec_millis(), 123);
        assert!(Event::decode(br#"{"id":"evt_1"}"#).is_err());
    }

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\npostgresql:x:1:2::/:/bin/sh\npostgres:x:101:104:P:/var:/bin/sh\n";
        assert_eq!(find_user(users, "postgres"), Some((101, 104)));
        assert_eq!(find_user(users, "nobody"), None);
    }
}
