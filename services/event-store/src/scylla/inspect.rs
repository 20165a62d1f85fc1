//! `backstamp check`, as far as the store is concerned: what is missing or wrong, and how to mend it. Nothing is changed.

use std::collections::BTreeMap;

use ::scylla::client::session::Session;
use ::scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use ::scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use ::scylla::statement::unprepared::Statement;
use ::scylla::value::CqlTimestamp;
use telemetry::finding::Finding;
use timeline::Timestamp;

use super::results::first_row;
use super::schema;
use super::session::{self, ScyllaConfig};
use crate::StoreError;

/// How far a node's clock may be from ours, in milliseconds: what waits for its send is stamped by our clocks, API keys by the
/// nodes', and each must come out in order.
const CLOCK_MS_MAX: i64 = 1000;

/// A write of each table that no server carries out: its time to live is negative. That is seen once it is known that the user
/// may write, so the answer tells whether he may.
const WRITES: [(&str, &str); 11] = [
    (
        "timeline_rows",
        "(account_id, subject, part, type, occurred_at, event_id) VALUES ('-', '-', 0, 0, 0, '-')",
    ),
    ("tallies", "(account_id, subject, cell) VALUES ('-', '-', 0)"),
    ("sends", "(account_id, message_id) VALUES ('-', '-')"),
    ("waiting", "(account_id, message_id, occurred_at, event_id) VALUES ('-', '-', 0, '-')"),
    ("refs", "(account_id, kind, id) VALUES ('-', '-', '-')"),
    ("epochs", "(scope) VALUES ('-')"),
    ("api_keys", "(key_id) VALUES ('-')"),
    ("dead_letters", "(place) VALUES ('-')"),
    ("forgotten", "(account_id, contact_id) VALUES ('-', 00000000-0000-0000-0000-000000000000)"),
    ("progress", "(stage, partition) VALUES ('-', 0)"),
    ("live_keyspace", "(name) VALUES ('-')"),
];

/// Looks at nodes, keyspace, tables, permissions and clocks. `clock` tells this process's time.
pub async fn inspect(config: &ScyllaConfig, clock: impl Fn() -> Timestamp) -> Vec<Finding> {
    let session = match session::open(config, config.request_timeout).await {
        Ok(session) => session,
        Err(error) => {
            return vec![Finding::error(
                "scylla",
                format!("{}: {}", config.nodes.join(","), error.chain()),
                "start the nodes, or correct --scylla-nodes, --scylla-user, --scylla-password, --scylla-ca",
            )];
        }
    };
    let looking = Looking { session, keyspace: &config.keyspace };
    let mut findings = vec![looking.nodes().await];
    findings.extend(looking.agreement().await);
    findings.extend(looking.keyspace().await);
    findings.extend(looking.clocks(clock).await);
    match Box::pin(schema::check(&looking.session, looking.keyspace)).await {
        Ok(()) => {
            let applied = schema::MIGRATIONS.iter().map(|migration| migration.name).collect::<Vec<_>>();
            findings.push(Finding::ok("schema", format!("applied: {}", applied.join(", "))));
            findings.extend(looking.permissions().await);
        }
        Err(error) => findings.push(Finding::error(
            "schema",
            error.chain().to_string(),
            "run `backstamp schema apply` with this program",
        )),
    }
    findings
}

/// Copies by datacentre, and whether writes are durable.
type Replication = (BTreeMap<String, String>, bool);

struct Looking<'a> {
    session: Session,
    keyspace: &'a str,
}

impl Looking<'_> {
    async fn nodes(&self) -> Finding {
        let cluster = self.session.get_cluster_state();
        let nodes = cluster.get_nodes_info();
        let away: Vec<String> =
            nodes.iter().filter(|node| !node.is_connected()).map(|node| node.address.to_string()).collect();
        let version = "SELECT release_version FROM system.local";
        let version: Result<Option<(String,)>, StoreError> = self.one(version).await;
        let version =
            version.ok().flatten().map_or_else(String::new, |(version,)| format!(" of version {version}"));
        let count = nodes.len();
        if !away.is_empty() {
            return Finding::error(
                "scylla",
                format!("{} of {count} nodes{version} do not answer: {}", away.len(), away.join(", ")),
                "start them, or let this machine reach their CQL port",
            );
        }
        if count < 3 {
            return Finding::warning(
                "scylla",
                format!("{count} of 3 nodes{version}: what is acknowledged is not on several"),
                "run three nodes at least, then alter the keyspace to three copies and repair it",
            );
        }
        Finding::ok("scylla", format!("{count} nodes{version} answer"))
    }

    async fn agreement(&self) -> Option<Finding> {
        match Box::pin(self.session.check_schema_agreement()).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(Finding::warning(
                "schema",
                "the nodes do not agree on the schema",
                "wait for a moment; if it stays, look at `nodetool describecluster`",
            )),
            Err(error) => {
                Some(Finding::warning("schema", format!("agreement: {error}"), "run `backstamp check` again"))
            }
        }
    }

    async fn keyspace(&self) -> Vec<Finding> {
        let about = format!("keyspace {}", self.keyspace);
        let cql = format!(
            "SELECT replication, durable_writes FROM system_schema.keyspaces WHERE keyspace_name = '{}'",
            self.keyspace
        );
        let found: Result<Option<Replication>, StoreError> = self.one(cql.as_str()).await;
        let (replication, durable) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return vec![Finding::error(about, "is missing", "run `backstamp schema apply`")],
            Err(error) => {
                let mend = "let this user read system_schema";
                return vec![Finding::error(about, error.chain().to_string(), mend)];
            }
        };
        let mut findings = Vec::new();
        if !durable {
            let mend = format!("ALTER KEYSPACE {} WITH durable_writes = true", self.keyspace);
            findings.push(Finding::error(&about, "its writes are not durable", mend));
        }
        let copies: Vec<(&String, u32)> = replication
            .iter()
            .filter(|(name, _)| *name != "class")
            .filter_map(|(name, copies)| Some((name, copies.parse().ok()?)))
            .collect();
        let shown: Vec<String> = copies.iter().map(|(name, copies)| format!("{name} {copies}")).collect();
        let fewest = copies.iter().map(|(_, copies)| *copies).min().unwrap_or(0);
        let nodes = self.session.get_cluster_state().get_nodes_info().len();
        let shown = format!("copies: {}", shown.join(", "));
        findings.push(match fewest {
            3.. => Finding::ok(about, shown),
            _ => Finding::warning(
                about,
                shown,
                format!(
                    "with {nodes} nodes it can have {}; three are safe: ALTER KEYSPACE {} WITH replication = …, then repair it",
                    nodes.min(3),
                    self.keyspace
                ),
            ),
        });
        findings
    }

    /// Each node's clock against ours, which is read before and after.
    async fn clocks(&self, clock: impl Fn() -> Timestamp) -> Vec<Finding> {
        let mut findings = Vec::new();
        let cluster = self.session.get_cluster_state();
        let nodes = cluster.get_nodes_info();
        let mut farthest = 0;
        for node in nodes {
            let mut statement = Statement::new("SELECT toTimestamp(now()) FROM system.local");
            let target = NodeIdentifier::Node(node.clone());
            statement.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(target, None)));
            let before = clock();
            let told: Result<Option<(CqlTimestamp,)>, StoreError> = self.one(statement).await;
            let after = clock();
            let about = format!("clock {}", node.address);
            match told {
                Ok(Some((CqlTimestamp(theirs),))) => {
                    // What the request took is on our side.
                    let off = (theirs - after.0).max(before.0 - theirs).max(0);
                    farthest = off.max(farthest);
                    if off > CLOCK_MS_MAX {
                        findings.push(Finding::error(
                            about,
                            format!("is {off} ms from this machine's"),
                            "let NTP set both",
                        ));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let found = format!("cannot be told: {}", error.chain());
                    findings.push(Finding::warning(about, found, "run `backstamp check` again"));
                }
            }
        }
        if findings.is_empty() {
            let found = format!("{} nodes within {} ms of this machine's", nodes.len(), farthest.max(1));
            findings.push(Finding::ok("clock scylla", found));
        }
        findings
    }

    async fn permissions(&self) -> Vec<Finding> {
        let (mut refused, mut untold) = (Vec::new(), Vec::new());
        for (table, write) in WRITES {
            let keyspace = self.keyspace;
            let select = format!("SELECT * FROM {keyspace}.{table} LIMIT 1");
            let insert = format!("INSERT INTO {keyspace}.{table} {write} USING TTL -1");
            for (right, cql) in [("SELECT", select), ("MODIFY", insert)] {
                match Box::pin(self.session.query_unpaged(cql, ())).await {
                    Ok(_) => {}
                    Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                        DbError::Invalid,
                        _,
                    ))) => {}
                    Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                        DbError::Unauthorized,
                        _,
                    ))) => refused.push(format!("{right} on {table}")),
                    Err(error) => untold.push(format!("{right} on {table}: {error}")),
                }
            }
        }
        let about = "permissions";
        let mut findings = Vec::new();
        if !refused.is_empty() {
            let mend = format!(
                "GRANT SELECT ON KEYSPACE {0} TO this user; GRANT MODIFY ON KEYSPACE {0} TO this user (`query` writes nothing)",
                self.keyspace
            );
            findings.push(Finding::error(about, format!("refused: {}", refused.join(", ")), mend));
        }
        if !untold.is_empty() {
            let found = format!("cannot be told: {}", untold.join("; "));
            findings.push(Finding::warning(about, found, "run `backstamp check` again"));
        }
        if findings.is_empty() {
            findings.push(Finding::ok(about, format!("SELECT and MODIFY on {} tables", WRITES.len())));
        }
        findings
    }

    async fn one<R>(&self, statement: impl Into<Statement>) -> Result<Option<R>, StoreError>
    where
        R: for<'frame, 'metadata> ::scylla::deserialize::row::DeserializeRow<'frame, 'metadata>,
    {
        let name = "inspect";
        let result = Box::pin(self.session.query_unpaged(statement.into(), ())).await;
        first_row(name, result.map_err(|error| StoreError::new(name, error))?)
    }
}
