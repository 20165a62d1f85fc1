//! Tables of a CQL store: made, counted, dropped.

use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

/// To count, or to drop what is large, takes a while.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Stretches of tokens that are counted one by one, and how many of them at a time.
const STRETCHES: i64 = 64;
const STRETCHES_AT_A_TIME: usize = 4;

/// Opens a session that has patience.
pub(super) async fn open(contact: &str) -> anyhow::Result<Session> {
    let profile = ExecutionProfile::builder().request_timeout(Some(REQUEST_TIMEOUT)).build();
    let builder =
        SessionBuilder::new().known_node(contact).default_execution_profile_handle(profile.into_handle());
    Box::pin(builder.build()).await.context("the store takes no session")
}

/// Makes a keyspace with one copy of everything.
pub(super) async fn create_keyspace(session: &Session, keyspace: &str) -> anyhow::Result<()> {
    let create = format!(
        "CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}}"
    );
    session.query_unpaged(create, ()).await.with_context(|| format!("{keyspace} cannot be made"))?;
    Ok(())
}

/// Drops a keyspace and all in it.
pub(super) async fn drop_keyspace(session: &Session, keyspace: &str) -> anyhow::Result<()> {
    session
        .query_unpaged(format!("DROP KEYSPACE IF EXISTS {keyspace}"), ())
        .await
        .with_context(|| format!("{keyspace} cannot be dropped"))?;
    Ok(())
}

/// How many rows are in `table`, whose partition key is `key` (`account_id, subject, part`). A million take some seconds.
pub(super) async fn count_rows(session: &Session, table: &str, key: &str) -> anyhow::Result<u64> {
    let select = format!("SELECT COUNT(*) FROM {table} WHERE token({key}) >= ? AND token({key}) <= ?");
    let select = session.prepare(select).await.with_context(|| format!("{table} cannot be counted"))?;
    let select = &select;
    let counts = stream::iter(stretches()).map(|(first, last)| async move {
        let answer = session.execute_unpaged(select, (first, last)).await?.into_rows_result()?;
        let (count,) = answer.single_row::<(i64,)>()?;
        anyhow::Ok(count.cast_unsigned())
    });
    counts
        .buffer_unordered(STRETCHES_AT_A_TIME)
        .try_fold(0, |sum, count| async move { Ok(sum + count) })
        .await
        .with_context(|| format!("{table} cannot be counted"))
}

/// All tokens, in stretches of one length: the first and the last of each.
fn stretches() -> impl Iterator<Item = (i64, i64)> {
    let length = (i128::from(i64::MAX) - i128::from(i64::MIN) + 1) / i128::from(STRETCHES);
    (0..STRETCHES).map(move |number| {
        let first = i128::from(i64::MIN) + length * i128::from(number);
        (first as i64, (first + length - 1) as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_stretch() {
        let all: Vec<_> = stretches().collect();
        assert_eq!((all[0].0, all[all.len() - 1].1), (i64::MIN, i64::MAX));
        assert!(all.windows(2).all(|two| two[0].1 + 1 == two[1].0));
    }
}
