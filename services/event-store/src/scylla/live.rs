//! Which keyspace is live: the one that services are given, or one that was rebuilt and that they were moved to.

use ::scylla::client::session::Session;

use super::ScyllaStore;
use super::results::first_row;
use super::session::{self, ScyllaConfig};
use crate::StoreError;

/// Where the live projections are, and what fills them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Their keyspace.
    pub keyspace: String,
    /// The consumer group that fills them, and what the name of its internal topic starts with; `None` where it is those that
    /// services are given.
    pub filled_by: Option<(String, String)>,
}

impl Live {
    /// The keyspace that services are given, which nobody has moved.
    pub fn at_home(keyspace: impl Into<String>) -> Live {
        Live { keyspace: keyspace.into(), filled_by: None }
    }
}

impl ScyllaStore {
    /// What this store was connected to.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// What is live by now.
    pub async fn read_live(&self) -> Result<Live, StoreError> {
        read(&self.session, &self.home).await
    }

    /// Moves everybody who was given the same keyspace as this store to another one, or back.
    pub async fn move_to(&self, live: &Live) -> Result<(), StoreError> {
        let name = "write_live";
        let (group, prefix) = live.filled_by.clone().unzip();
        let write = format!(
            "INSERT INTO {}.live_keyspace (name, keyspace_name, consumer_group, internal_prefix) VALUES ('live', ?, ?, ?)",
            self.home
        );
        let written = self.session.query_unpaged(write, (&live.keyspace, group, prefix));
        self.request(name, written).await.map(|_| ())
    }
}

/// What is live for those who are given `config`.
pub async fn read_live(config: &ScyllaConfig) -> Result<Live, StoreError> {
    let session = session::open(config, config.request_timeout).await?;
    read(&session, &config.keyspace).await
}

/// What is live for those who were given the keyspace `home`.
pub(super) async fn read(session: &Session, home: &str) -> Result<Live, StoreError> {
    let name = "read_live";
    let select = format!(
        "SELECT keyspace_name, consumer_group, internal_prefix FROM {home}.live_keyspace WHERE name = 'live'"
    );
    let result = Box::pin(session.query_unpaged(select, ())).await;
    let result = result.map_err(|error| StoreError::new(name, error))?;
    let moved: Option<(String, Option<String>, Option<String>)> = first_row(name, result)?;
    Ok(moved.map_or_else(
        || Live::at_home(home),
        |(keyspace, group, prefix)| Live { keyspace, filled_by: group.zip(prefix) },
    ))
}
