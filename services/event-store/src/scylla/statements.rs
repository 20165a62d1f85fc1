//! Every statement that the store executes, prepared once.

use ::scylla::client::session::Session;
use ::scylla::statement::Consistency;
use ::scylla::statement::prepared::PreparedStatement;
use futures::{TryFutureExt, future};

use crate::StoreError;

/// How many rows come in one answer; more are fetched page by page.
const PAGE_ROWS: i32 = 5000;

/// The same of events that wait, which may be large.
const WAITING_PAGE_ROWS: i32 = 16;

/// A prepared statement.
pub(super) struct Statement {
    /// A short name, fit for a metric label.
    pub(super) name: &'static str,
    pub(super) prepared: PreparedStatement,
}

/// The statements that read rows: of a whole part, and for each shape of [`super::spans::Slice`].
pub(super) struct ReadRows {
    pub(super) part: Statement,
    pub(super) times: Statement,
    pub(super) ids_from: Statement,
    pub(super) ids_until: Statement,
    pub(super) ids: Statement,
}

/// Every statement that the store executes.
pub(super) struct Statements {
    pub(super) write_row: Statement,
    pub(super) delete_row: Statement,
    pub(super) read_rows: ReadRows,
    pub(super) read_row_keys: ReadRows,
    pub(super) read_first_parts: Statement,
    pub(super) write_tally: Statement,
    pub(super) read_tallies: Statement,
    pub(super) read_heads: Statement,
    pub(super) write_send: Statement,
    pub(super) read_send: Statement,
    pub(super) put_waiting: Statement,
    pub(super) read_waiting: Statement,
    pub(super) remove_waiting: Statement,
    pub(super) write_reference: Statement,
    pub(super) read_reference: Statement,
    pub(super) mark: Statement,
    pub(super) is_known: Statement,
    pub(super) read_epoch: Statement,
    pub(super) insert_epoch: Statement,
    pub(super) update_epoch: Statement,
    pub(super) write_key: Statement,
    pub(super) read_key: Statement,
    pub(super) list_keys: Statement,
    pub(super) insert_letter: Statement,
    pub(super) update_letter: Statement,
    pub(super) read_letter: Statement,
    pub(super) list_letters: Statement,
    pub(super) forget: Statement,
    pub(super) list_forgotten: Statement,
    pub(super) erase_reference: Statement,
    pub(super) list_timelines: Statement,
    pub(super) write_progress: Statement,
    pub(super) read_progress: Statement,
}

impl Statements {
    /// Prepares them all. Tables are named with their keyspace: a prepared statement then means the same on every connection.
    pub(super) async fn prepare(session: &Session, keyspace: &str) -> Result<Statements, StoreError> {
        let prepare = |name, cql: &str| {
            let cql = cql.replace("keyspace.", &format!("{keyspace}."));
            Box::pin(prepare(session, name, cql))
        };
        let rows = |name, columns: &str| {
            let select = |cut: &str| {
                let select = "FROM keyspace.timeline_rows WHERE account_id = ? AND subject = ? AND part = ?";
                prepare(name, &format!("SELECT {columns} {select}{cut}"))
            };
            let prepared = future::try_join5(
                select(""),
                select(" AND type IN ? AND occurred_at >= ? AND occurred_at <= ?"),
                select(" AND type IN ? AND occurred_at = ? AND event_id >= ?"),
                select(" AND type IN ? AND occurred_at = ? AND event_id < ?"),
                select(" AND type IN ? AND occurred_at = ? AND event_id >= ? AND event_id < ?"),
            );
            prepared.map_ok(|(part, times, ids_from, ids_until, ids)| ReadRows {
                part,
                times,
                ids_from,
                ids_until,
                ids,
            })
        };
        let read_rows = rows("read_rows", "type, occurred_at, event_id, body").await?;
        let read_row_keys = rows("read_row_keys", "type, occurred_at, event_id").await?;
        let mut statements = Statements {
            read_rows,
            read_row_keys,
            read_first_parts: prepare(
                "read_first_parts",
                "SELECT subject, type, occurred_at, event_id FROM keyspace.timeline_rows
                 WHERE account_id = ? AND subject IN ? AND part = 0",
            )
            .await?,
            write_row: prepare(
                "write_rows",
                "INSERT INTO keyspace.timeline_rows (account_id, subject, part, type, occurred_at, event_id, body)
                 VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
            )
            .await?,
            delete_row: prepare(
                "delete_rows",
                "DELETE FROM keyspace.timeline_rows USING TIMESTAMP ? WHERE account_id = ? AND subject = ? AND part = ?
                 AND type = ? AND occurred_at = ? AND event_id = ?",
            )
            .await?,
            write_tally: prepare(
                "write_tallies",
                "INSERT INTO keyspace.tallies (account_id, subject, cell, bytes) VALUES (?, ?, ?, ?)
                 USING TTL ? AND TIMESTAMP ?",
            )
            .await?,
            read_tallies: prepare(
                "read_tallies",
                "SELECT cell, bytes, WRITETIME(bytes) FROM keyspace.tallies WHERE account_id = ? AND subject = ? AND cell IN ?",
            )
            .await?,
            read_heads: prepare(
                "read_heads",
                "SELECT subject, cell, bytes FROM keyspace.tallies WHERE account_id = ? AND subject IN ? AND cell <= 0",
            )
            .await?,
            write_send: prepare(
                "write_sends",
                "INSERT INTO keyspace.sends (account_id, message_id, facts) VALUES (?, ?, ?) USING TTL ? AND TIMESTAMP ?",
            )
            .await?,
            read_send: prepare(
                "read_sends",
                "SELECT facts FROM keyspace.sends WHERE account_id = ? AND message_id = ?",
            )
            .await?,
            put_waiting: prepare(
                "put_waiting",
                "INSERT INTO keyspace.waiting (account_id, message_id, occurred_at, event_id, event, appended_at, expires_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
            )
            .await?,
            read_waiting: prepare(
                "read_waiting",
                "SELECT occurred_at, event_id, event, appended_at, expires_at FROM keyspace.waiting
                 WHERE account_id = ? AND message_id = ? AND (occurred_at, event_id) > (?, ?)",
            )
            .await?,
            remove_waiting: prepare(
                "remove_waiting",
                "DELETE FROM keyspace.waiting USING TIMESTAMP ? WHERE account_id = ? AND message_id = ?
                 AND occurred_at = ? AND event_id = ?",
            )
            .await?,
            write_reference: prepare(
                "write_references",
                "INSERT INTO keyspace.refs (account_id, kind, id, name, email, deleted) VALUES (?, ?, ?, ?, ?, ?)
                 USING TIMESTAMP ?",
            )
            .await?,
            read_reference: prepare(
                "read_references",
                "SELECT name, email, deleted FROM keyspace.refs WHERE account_id = ? AND kind = ? AND id = ?",
            )
            .await?,
            mark: prepare(
                "mark",
                "INSERT INTO keyspace.tallies (account_id, subject, cell) VALUES (?, ?, ?) USING TIMESTAMP 1",
            )
            .await?,
            is_known: prepare(
                "is_known",
                "SELECT subject FROM keyspace.tallies WHERE account_id = ? AND subject = ? AND cell = -1",
            )
            .await?,
            read_epoch: prepare("take_epoch", "SELECT epoch FROM keyspace.epochs WHERE scope = ?").await?,
            insert_epoch: prepare(
                "take_epoch",
                "INSERT INTO keyspace.epochs (scope, epoch) VALUES (?, ?) IF NOT EXISTS",
            )
            .await?,
            update_epoch: prepare(
                "take_epoch",
                "UPDATE keyspace.epochs SET epoch = ? WHERE scope = ? IF epoch = ?",
            )
            .await?,
            write_key: prepare(
                "write_key",
                "INSERT INTO keyspace.api_keys (key_id, digest, account_id, permissions, created_at, expires_at, revoked_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .await?,
            read_key: prepare(
                "read_key",
                "SELECT key_id, digest, account_id, permissions, created_at, expires_at, revoked_at
                 FROM keyspace.api_keys WHERE key_id = ?",
            )
            .await?,
            insert_letter: prepare(
                "mark_letter",
                "INSERT INTO keyspace.dead_letters (place, state, run, at) VALUES (?, ?, ?, ?) IF NOT EXISTS",
            )
            .await?,
            update_letter: prepare(
                "mark_letter",
                "UPDATE keyspace.dead_letters SET state = ?, run = ?, at = ? WHERE place = ?
                 IF state = ? AND run = ? AND at = ?",
            )
            .await?,
            read_letter: prepare(
                "mark_letter",
                "SELECT place, state, run, at FROM keyspace.dead_letters WHERE place = ?",
            )
            .await?,
            forget: prepare(
                "forget",
                "INSERT INTO keyspace.forgotten (account_id, contact_id, forgotten_at) VALUES (?, ?, ?)",
            )
            .await?,
            list_forgotten: prepare("list_forgotten", "SELECT account_id, contact_id FROM keyspace.forgotten")
                .await?,
            erase_reference: prepare(
                "erase_reference",
                "DELETE name, email FROM keyspace.refs USING TIMESTAMP ? WHERE account_id = ? AND kind = ? AND id = ?",
            )
            .await?,
            list_timelines: prepare("list_timelines", "SELECT DISTINCT account_id, subject FROM keyspace.tallies")
                .await?,
            list_letters: prepare("list_letters", "SELECT place, state, run, at FROM keyspace.dead_letters").await?,
            list_keys: prepare(
                "list_keys",
                "SELECT key_id, digest, account_id, permissions, created_at, expires_at, revoked_at FROM keyspace.api_keys",
            )
            .await?,
            write_progress: prepare(
                "write_progress",
                "INSERT INTO keyspace.progress (stage, partition, done_until) VALUES (?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            read_progress: prepare(
                "read_progress",
                "SELECT partition, done_until FROM keyspace.progress WHERE stage = ?",
            )
            .await?,
        };
        statements.read_waiting.prepared.set_page_size(WAITING_PAGE_ROWS);
        // Sees every conditional write that was answered, and finishes one that was left half done.
        statements.read_epoch.prepared.set_consistency(Consistency::Serial);
        statements.read_letter.prepared.set_consistency(Consistency::Serial);
        Ok(statements)
    }
}

async fn prepare(session: &Session, name: &'static str, cql: String) -> Result<Statement, StoreError> {
    let mut prepared = session.prepare(cql).await.map_err(|error| StoreError::new(name, error))?;
    prepared.set_is_idempotent(true);
    prepared.set_page_size(PAGE_ROWS);
    Ok(Statement { name, prepared })
}
