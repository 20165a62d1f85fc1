//! The tables: migrations from `schemas/cql`, applied once each, and the check that they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::scylla::client::session::Session;
use ::scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use ::scylla::response::query_result::{QueryResult, QueryRowsResult};
use ::scylla::serialize::row::SerializeRow;
use ::scylla::statement::Consistency;
use ::scylla::statement::unprepared::Statement;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::live::{self, Live};
use super::results::{first_row, rows, was_applied};
use super::session::{self, ScyllaConfig};
use crate::StoreError;

/// The bookkeeping of migrations: run first each time.
const BOOKKEEPING: Migration = Migration {
    version: 0,
    name: "0000_migrations",
    cql: include_str!("../../../../schemas/cql/0000_migrations.cql"),
};

/// Every migration, in order. One that was released never changes. Each must be safe to run again: an applier may die
/// before it records what it did.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "0001_tables",
        cql: include_str!("../../../../schemas/cql/0001_tables.cql"),
    },
    Migration {
        version: 2,
        name: "0002_dead_letters",
        cql: include_str!("../../../../schemas/cql/0002_dead_letters.cql"),
    },
    Migration {
        version: 3,
        name: "0003_forgotten",
        cql: include_str!("../../../../schemas/cql/0003_forgotten.cql"),
    },
    Migration {
        version: 4,
        name: "0004_progress",
        cql: include_str!("../../../../schemas/cql/0004_progress.cql"),
    },
    Migration {
        version: 5,
        name: "0005_live_keyspace",
        cql: include_str!("../../../../schemas/cql/0005_live_keyspace.cql"),
    },
];

/// The tables that the migrations leave.
const TABLES: [&str; 13] = [
    "schema_lock",
    "schema_migrations",
    "timeline_rows",
    "tallies",
    "sends",
    "waiting",
    "refs",
    "epochs",
    "api_keys",
    "dead_letters",
    "forgotten",
    "progress",
    "live_keyspace",
];

/// The replication factor where none is asked for and there are nodes enough.
const REPLICATION_FACTOR_DEFAULT: u32 = 3;
/// How long a change of the schema may take: it is answered when all nodes agree.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the lock outlives an applier that died, in seconds: longer than one change may take.
const LOCK_TTL_S: i32 = 90;
/// How long to wait for another applier: until its lock would have died with it, and again.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(180);
const LOCK_WAIT_STEP: Duration = Duration::from_millis(250);
/// How long a keyspace may take to be known everywhere, and how often that is looked at.
const KEYSPACE_TIMEOUT: Duration = Duration::from_secs(10);
const KEYSPACE_PAUSE: Duration = Duration::from_millis(100);

/// What [`apply_schema`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whether there was no such keyspace before.
    pub keyspace_created: bool,
    /// The migrations that were applied now, by name; none where the schema was up to date.
    pub migrations: Vec<&'static str>,
    /// What an operator should know: few nodes, or a replication factor that was not changed.
    pub warnings: Vec<String>,
    /// What is live for those who are given the keyspace: where that is another one, it wants its schema applied, too.
    pub live: Live,
}

/// Why a schema is not, or cannot be made, what this program needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The keyspace is missing, or empty.
    #[error("keyspace '{0}' has no tables of backstamp: run `backstamp schema apply`")]
    Absent(String),
    /// The schema is an older program's.
    #[error("keyspace '{keyspace}' lacks migration {name}: run `backstamp schema apply`")]
    Behind {
        /// The keyspace.
        keyspace: String,
        /// The first migration that was not applied.
        name: &'static str,
    },
    /// A table is missing that a migration had created.
    #[error(
        "keyspace '{keyspace}' has lost table {table}: restore it, or replay the log into a new keyspace"
    )]
    TableLost {
        /// The keyspace.
        keyspace: String,
        /// The table.
        table: &'static str,
    },
    /// A migration was applied whose statements are not this program's.
    #[error(
        "migration {name} was applied with other statements (checksum {applied}, here {here}): one that was applied must \
         not change, add a new one"
    )]
    Changed {
        /// The migration.
        name: &'static str,
        /// The checksum of what was applied.
        applied: String,
        /// The checksum of what this program has.
        here: String,
    },
    /// A migration's last statement has no end.
    #[error("migration {name} has a statement without a semicolon at the end of a line: {rest}")]
    Unfinished {
        /// The migration.
        name: &'static str,
        /// The statement.
        rest: String,
    },
    /// Another process holds the lock for longer than migrations take.
    #[error("another process has been applying migrations for {0} s")]
    Locked(u64),
    /// This process was stopped for so long that its lock ran out.
    #[error("the lock on migrations ran out: another process may be applying them")]
    LockLost,
}

impl From<SchemaError> for StoreError {
    fn from(error: SchemaError) -> StoreError {
        StoreError::new("schema", error)
    }
}

/// Creates the keyspace and its tables, or brings them up to date.
///
/// A new keyspace is replicated `replication_factor` times in the local datacentre: by default 3 times, or as often as
/// there are nodes. One that is there keeps its replication. Of two appliers at once, one waits for the other.
pub async fn apply_schema(
    config: &ScyllaConfig,
    replication_factor: Option<u32>,
) -> Result<Applied, StoreError> {
    let session = session::open(config, CHANGE_TIMEOUT.max(config.request_timeout)).await?;
    let applier = Applier { session, keyspace: &config.keyspace, owner: Uuid::new_v4() };
    let mut warnings = Vec::new();
    let keyspace_created = applier.create_keyspace(config, replication_factor, &mut warnings).await?;
    for statement in BOOKKEEPING.statements()? {
        applier.query("change_schema", &statement, ()).await?;
    }
    applier.lock().await?;
    let migrations = applier.migrate().await;
    let unlocked = applier.unlock().await;
    Ok(Applied {
        keyspace_created,
        migrations: migrations.and_then(|done| unlocked.map(|()| done))?,
        warnings,
        live: live::read(&applier.session, &config.keyspace).await?,
    })
}

/// Whether the keyspace has every table and migration that this program needs. Migrations of later programs are no harm.
pub(super) async fn check(session: &Session, keyspace: &str) -> Result<(), StoreError> {
    let name = "check";
    let failed = |error: SchemaError| StoreError::new(name, error);
    let query = |cql: String| async move {
        let result = Box::pin(session.query_unpaged(cql, ())).await;
        result.map_err(|error| StoreError::new(name, error)).and_then(|result| rows(name, result))
    };
    let tables = format!("SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}'");
    let tables = query(tables).await?;
    let tables = tables.rows::<(String,)>().map_err(|error| StoreError::new(name, error))?;
    let tables: Result<BTreeSet<String>, _> = tables.map(|row| row.map(|(table,)| table)).collect();
    let tables = tables.map_err(|error| StoreError::new(name, error))?;
    if !tables.contains("schema_migrations") {
        return Err(failed(SchemaError::Absent(keyspace.to_owned())));
    }
    let applied = read_migrations(name, &query(select_migrations(keyspace)).await?)?;
    for migration in MIGRATIONS {
        let keyspace = keyspace.to_owned();
        let there = applied.get(&migration.version);
        let there = there.ok_or_else(|| failed(SchemaError::Behind { keyspace, name: migration.name }))?;
        migration.check(there).map_err(failed)?;
    }
    match TABLES.into_iter().find(|table| !tables.contains(*table)) {
        Some(table) => Err(failed(SchemaError::TableLost { keyspace: keyspace.to_owned(), table })),
        None => Ok(()),
    }
}

/// A file of statements.
pub(super) struct Migration {
    version: i32,
    pub(super) name: &'static str,
    cql: &'static str,
}

impl Migration {
    /// Its statements: each ends with a semicolon at the end of a line; a line that begins with `--` is a comment.
    fn statements(&self) -> Result<Vec<String>, SchemaError> {
        let mut statements = Vec::new();
        let mut statement = String::new();
        for line in self.cql.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"))
        {
            let (line, ends) = line.strip_suffix(';').map_or((line, false), |line| (line, true));
            statement.push_str(line);
            if ends {
                statements.push(std::mem::take(&mut statement));
            } else {
                statement.push('\n');
            }
        }
        if statement.is_empty() {
            return Ok(statements);
        }
        Err(SchemaError::Unfinished { name: self.name, rest: statement })
    }

    /// The SHA-256 of its statements, in hexadecimal: comments and indentation may change.
    fn checksum(&self) -> Result<String, SchemaError> {
        let digest = Sha256::digest(self.statements()?.join(";\n"));
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether what was applied under its version, with checksum `applied`, is it.
    fn check(&self, applied: &str) -> Result<(), SchemaError> {
        let here = self.checksum()?;
        if here == applied {
            return Ok(());
        }
        Err(SchemaError::Changed { name: self.name, applied: applied.to_owned(), here })
    }
}

/// One run of [`apply_schema`].
struct Applier<'a> {
    session: Session,
    keyspace: &'a str,
    /// Who holds the lock, while we do.
    owner: Uuid,
}

impl Applier<'_> {
    /// Creates the keyspace where there is none, and makes it the session's. Says whether it was created.
    async fn create_keyspace(
        &self,
        config: &ScyllaConfig,
        replication_factor: Option<u32>,
        warnings: &mut Vec<String>,
    ) -> Result<bool, StoreError> {
        let statement = "create_keyspace";
        let datacenter = match &config.datacenter {
            Some(datacenter) => datacenter.clone(),
            None => self.local_datacenter().await?,
        };
        let existing = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let existing = self.query(statement, existing, (self.keyspace,)).await?;
        let existing: Option<(BTreeMap<String, String>,)> = first_row(statement, existing)?;
        if let Some((replication,)) = &existing {
            let kept = replication.get(&datacenter).or_else(|| replication.get("replication_factor"));
            let asked = replication_factor.map(|factor| factor.to_string());
            if asked.is_some() && asked.as_ref() != kept {
                warnings.push(format!(
                    "keyspace '{}' keeps its replication {replication:?}: to change it, alter the keyspace and repair it",
                    self.keyspace
                ));
            }
        } else {
            let factor = self.replication_factor(&datacenter, replication_factor, warnings);
            let datacenter = datacenter.replace('\'', "''");
            let tablets = match self.tablets_take_no_conditional_writes().await? {
                true => " AND tablets = {'enabled': false}",
                false => "",
            };
            let create = format!(
                "CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {{'class': 'NetworkTopologyStrategy', \
                 '{datacenter}': {factor}}}{tablets}",
                self.keyspace,
            );
            self.query(statement, &create, ()).await?;
        }
        // One that another applier has just created stands in the tables a moment before its node knows it.
        let give_up = Instant::now() + KEYSPACE_TIMEOUT;
        let mut used = self.session.use_keyspace(self.keyspace, false).await;
        while used.is_err() && Instant::now() < give_up {
            tokio::time::sleep(KEYSPACE_PAUSE).await;
            used = self.session.use_keyspace(self.keyspace, false).await;
        }
        used.map_err(|error| StoreError::new(statement, error))?;
        Ok(existing.is_none())
    }

    /// The datacentre of the node that answers.
    async fn local_datacenter(&self) -> Result<String, StoreError> {
        let statement = "local_datacenter";
        let local = self.query(statement, "SELECT data_center FROM system.local", ()).await?;
        let local: Option<(String,)> = first_row(statement, local)?;
        let (datacenter,) =
            local.ok_or_else(|| StoreError::new(statement, "the node names no datacentre"))?;
        Ok(datacenter)
    }

    /// How often to keep each row: as often as asked, or 3 times, or as often as there are nodes.
    fn replication_factor(&self, datacenter: &str, asked: Option<u32>, warnings: &mut Vec<String>) -> u32 {
        let cluster = self.session.get_cluster_state();
        let nodes = cluster.get_nodes_info().iter();
        let nodes = nodes.filter(|node| node.datacenter.as_deref() == Some(datacenter)).count();
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
        let factor = asked.unwrap_or(REPLICATION_FACTOR_DEFAULT.min(nodes));
        if asked.is_none() && factor < REPLICATION_FACTOR_DEFAULT {
            warnings.push(format!(
                "datacentre '{datacenter}' has {nodes} node(s), so the replication factor is {factor}: a lost node can be \
                 lost data, production wants {REPLICATION_FACTOR_DEFAULT}"
            ));
        }
        if factor > nodes {
            warnings.push(format!(
                "the replication factor is {factor}, but datacentre '{datacenter}' has {nodes} node(s): requests fail \
                 while a quorum of replicas has no node"
            ));
        }
        factor
    }

    /// Whether the server spreads tables by ScyllaDB's tablets, in a version whose tablets take no conditional writes yet
    /// (before 2025.4). Epochs need them, so there the keyspace goes without tablets.
    async fn tablets_take_no_conditional_writes(&self) -> Result<bool, StoreError> {
        let statement = "server_features";
        let result = self.session.query_unpaged("SELECT supported_features FROM system.local", ());
        match Box::pin(result).await {
            Ok(result) => {
                let features: Option<(Option<String>,)> = first_row(statement, result)?;
                let features = features.and_then(|(features,)| features).unwrap_or_default();
                let has = |name: &str| features.split(',').any(|feature| feature == name);
                Ok(has("TABLETS") && !has("LWT_WITH_TABLETS"))
            }
            // Cassandra has no such column, and no tablets.
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, _))) => {
                Ok(false)
            }
            Err(error) => Err(StoreError::new(statement, error)),
        }
    }

    /// Takes the lock, waiting while another applier has it.
    async fn lock(&self) -> Result<(), StoreError> {
        let take = format!(
            "INSERT INTO schema_lock (name, owner) VALUES ('schema', ?) IF NOT EXISTS USING TTL {LOCK_TTL_S}"
        );
        let begun = Instant::now();
        while !self.conditional(&take, (self.owner,)).await? {
            if begun.elapsed() > LOCK_WAIT_MAX {
                return Err(SchemaError::Locked(begun.elapsed().as_secs()).into());
            }
            tokio::time::sleep(LOCK_WAIT_STEP).await;
        }
        Ok(())
    }

    /// Keeps the lock for a while longer.
    async fn renew_lock(&self) -> Result<(), StoreError> {
        let renew = format!(
            "UPDATE schema_lock USING TTL {LOCK_TTL_S} SET owner = ? WHERE name = 'schema' IF owner = ?"
        );
        if self.conditional(&renew, (self.owner, self.owner)).await? {
            return Ok(());
        }
        Err(SchemaError::LockLost.into())
    }

    /// Gives the lock back, where we still have it.
    async fn unlock(&self) -> Result<(), StoreError> {
        let give = "DELETE FROM schema_lock WHERE name = 'schema' IF owner = ?";
        self.conditional(give, (self.owner,)).await.map(|_| ())
    }

    /// Applies and records the migrations that are missing, and returns their names.
    async fn migrate(&self) -> Result<Vec<&'static str>, StoreError> {
        let statement = "read_migrations";
        let recorded = self.query(statement, &select_migrations(self.keyspace), ()).await?;
        let recorded = read_migrations(statement, &rows(statement, recorded)?)?;
        let mut applied = Vec::new();
        for migration in MIGRATIONS {
            if let Some(there) = recorded.get(&migration.version) {
                migration.check(there)?;
                continue;
            }
            for change in migration.statements()? {
                self.renew_lock().await?;
                self.query("change_schema", &change, ()).await?;
            }
            let record = "INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES (?, ?, ?, ?) IF NOT EXISTS";
            let values = (migration.version, migration.name, migration.checksum()?, now_ms());
            self.conditional(record, values).await?;
            applied.push(migration.name);
        }
        let agreed = self.session.await_schema_agreement().await;
        agreed.map_err(|error| StoreError::new("schema_agreement", error))?;
        Ok(applied)
    }

    /// Executes a statement. A change of the schema is answered when all nodes agree on it.
    async fn query(
        &self,
        name: &'static str,
        cql: &str,
        values: impl SerializeRow,
    ) -> Result<QueryResult, StoreError> {
        let result = Box::pin(self.session.query_unpaged(quorum(cql), values)).await;
        result.map_err(|error| StoreError::new(name, error))
    }

    /// Executes a conditional write, and says whether it was applied.
    async fn conditional(&self, cql: &str, values: impl SerializeRow) -> Result<bool, StoreError> {
        let name = "lock_schema";
        was_applied(name, self.query(name, cql, values).await?)
    }
}

/// A statement that is seen by appliers in every datacentre.
fn quorum(cql: &str) -> Statement {
    let mut statement = Statement::new(cql);
    statement.set_consistency(Consistency::Quorum);
    statement
}

fn select_migrations(keyspace: &str) -> String {
    format!("SELECT version, checksum FROM {keyspace}.schema_migrations")
}

/// The checksums of the migrations that were applied, by version.
fn read_migrations(
    statement: &'static str,
    migrations: &QueryRowsResult,
) -> Result<BTreeMap<i32, String>, StoreError> {
    let rows = migrations.rows::<(i32, String)>().map_err(|error| StoreError::new(statement, error))?;
    rows.collect::<Result<_, _>>().map_err(|error| StoreError::new(statement, error))
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(cql: &'static str) -> Migration {
        Migration { version: 7, name: "0007_test", cql }
    }

    #[test]
    fn statements_end_at_the_end_of_a_line() {
        let cql = "-- a; comment;\nCREATE TABLE a (\n    b text -- ; not here\n) WITH comment = 'x; y';\n\n  -- more\nDROP TABLE c;\n";
        let statements = migration(cql).statements().expect("whole");
        assert_eq!(
            statements,
            ["CREATE TABLE a (\nb text -- ; not here\n) WITH comment = 'x; y'", "DROP TABLE c"]
        );
    }

    #[test]
    fn a_statement_without_an_end_is_refused() {
        let error = migration("DROP TABLE a;\nDROP TABLE b\n").statements().expect_err("unfinished");
        assert!(matches!(error, SchemaError::Unfinished { name: "0007_test", .. }), "{error}");
    }

    #[test]
    fn comments_may_change_and_statements_may_not() {
        let applied = migration("-- one\nDROP TABLE a;").checksum().expect("whole");
        assert_eq!(migration("-- another\n    DROP TABLE a;\n").check(&applied), Ok(()));
        let error = migration("DROP TABLE b;").check(&applied).expect_err("changed");
        assert!(
            error.to_string().starts_with("migration 0007_test was applied with other statements"),
            "{error}"
        );
    }

    #[test]
    fn migrations_are_whole_numbered_and_safe_to_run_again() {
        let mut created = BTreeSet::new();
        for (at, migration) in [&BOOKKEEPING].into_iter().chain(MIGRATIONS).enumerate() {
            assert_eq!(migration.version, i32::try_from(at).expect("few"));
            assert!(migration.name.starts_with(&format!("{at:04}_")), "{}", migration.name);
            for statement in migration.statements().expect("whole") {
                let table = statement.strip_prefix("CREATE TABLE IF NOT EXISTS ").expect(&statement);
                created.insert(table.split(' ').next().expect("a name").to_owned());
            }
        }
        assert_eq!(created, TABLES.map(str::to_owned).into());
    }
}
