//! Where the cluster is and how it is talked to.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::scylla::client::PoolSize;
use ::scylla::client::execution_profile::ExecutionProfile;
use ::scylla::client::session::{Session, TlsContext};
use ::scylla::client::session_builder::SessionBuilder;
use ::scylla::errors::{DbError, RequestAttemptError};
use ::scylla::policies::retry::{DefaultRetryPolicy, RequestInfo, RetryDecision, RetryPolicy, RetrySession};
use ::scylla::statement::{Consistency, SerialConsistency};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::StoreError;

/// Where the cluster is and how it is talked to.
#[derive(Clone)]
pub struct ScyllaConfig {
    /// Nodes to begin with, `host` or `host:port` (9042); the others are found through them.
    pub nodes: Vec<String>,
    /// The keyspace of the tables: a lower-case letter, then up to 47 of `a-z 0-9 _`.
    pub keyspace: String,
    /// The user, where the cluster asks for one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// A PEM file of the authorities that sign the nodes' certificates; given, every connection is TLS. A node's
    /// certificate must name its IP address.
    pub ca: Option<PathBuf>,
    /// The datacentre whose nodes are asked first, and where a new keyspace lives. Without it, the nodes of all are alike, and
    /// a new keyspace lives where the node is that answers.
    pub datacenter: Option<String>,
    /// How long a request may take, tries at other nodes included.
    pub request_timeout: Duration,
    /// Connections to each node; ScyllaDB gets at least one for each of its shards.
    pub connections_per_node: NonZeroUsize,
    /// How many requests are under way at once; further ones wait.
    pub requests_in_flight_max: usize,
}

impl ScyllaConfig {
    /// A request may take 10 s.
    pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
    /// 2 connections to a node: one already carries thousands of requests at a time.
    pub const CONNECTIONS_PER_NODE_DEFAULT: NonZeroUsize = NonZeroUsize::new(2).expect("2 is not 0");
    /// 256 requests under way: enough to keep a cluster busy, few enough not to bury one node.
    pub const REQUESTS_IN_FLIGHT_MAX_DEFAULT: usize = 256;

    /// `keyspace` on the cluster of `nodes`, everything else by default: no user, no TLS.
    pub fn new(nodes: Vec<String>, keyspace: impl Into<String>) -> ScyllaConfig {
        ScyllaConfig {
            nodes,
            keyspace: keyspace.into(),
            user: None,
            password: None,
            ca: None,
            datacenter: None,
            request_timeout: ScyllaConfig::REQUEST_TIMEOUT_DEFAULT,
            connections_per_node: ScyllaConfig::CONNECTIONS_PER_NODE_DEFAULT,
            requests_in_flight_max: ScyllaConfig::REQUESTS_IN_FLIGHT_MAX_DEFAULT,
        }
    }
}

impl fmt::Debug for ScyllaConfig {
    /// Everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScyllaConfig")
            .field("nodes", &self.nodes)
            .field("keyspace", &self.keyspace)
            .field("user", &self.user)
            .field("ca", &self.ca)
            .field("datacenter", &self.datacenter)
            .field("request_timeout", &self.request_timeout)
            .field("connections_per_node", &self.connections_per_node)
            .field("requests_in_flight_max", &self.requests_in_flight_max)
            .finish_non_exhaustive()
    }
}

/// Opens a session whose requests may take `request_timeout`.
///
/// A request that found its node gone or overloaded is tried at the next one, each node once, which hides the loss of a
/// node; what the node has forgotten, because of a change of the schema, is prepared once more; every other retry is left to the caller.
pub(super) async fn open(config: &ScyllaConfig, request_timeout: Duration) -> Result<Session, StoreError> {
    let failed = |cause: Box<dyn std::error::Error + Send + Sync>| StoreError::new("connect", cause);
    check_keyspace_name(&config.keyspace).map_err(|message| failed(message.into()))?;
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::Serial))
        .request_timeout(Some(request_timeout))
        .retry_policy(Arc::new(Retries))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.nodes)
        .default_execution_profile_handle(profile.into_handle())
        .keyspaces_to_fetch([&config.keyspace])
        .pool_size(PoolSize::PerHost(config.connections_per_node));
    if let Some(user) = &config.user {
        builder = builder.user(user, config.password.as_deref().unwrap_or_default());
    }
    if let Some(datacenter) = &config.datacenter {
        builder = builder.prefer_datacenter(datacenter.clone());
    }
    if let Some(ca) = &config.ca {
        builder = builder.tls_context(Some(tls(ca).map_err(failed)?));
    }
    Box::pin(builder.build()).await.map_err(|error| failed(error.into()))
}

/// How often one request's statement is prepared once more. The driver does so by itself, but only once: a change of the schema may come between that
/// and its use. Nothing was executed, so any statement may be tried.
const PREPARED_AGAIN_MAX: u32 = 10;

/// Those of the driver, and of what is not prepared any more.
#[derive(Debug)]
struct Retries;

struct Retrying {
    others: Box<dyn RetrySession>,
    prepared_again: u32,
}

impl RetryPolicy for Retries {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(Retrying { others: DefaultRetryPolicy::new().new_session(), prepared_again: 0 })
    }
}

impl RetrySession for Retrying {
    fn decide_should_retry(&mut self, request: RequestInfo<'_>) -> RetryDecision {
        let is_unprepared =
            matches!(request.error, RequestAttemptError::DbError(DbError::Unprepared { .. }, _));
        if is_unprepared && self.prepared_again < PREPARED_AGAIN_MAX {
            self.prepared_again += 1;
            return RetryDecision::RetrySameTarget(None);
        }
        self.others.decide_should_retry(request)
    }

    fn reset(&mut self) {
        self.others.reset();
        self.prepared_again = 0;
    }
}

/// Whether `keyspace` can stand in a statement as it is: names cannot be bound like values.
fn check_keyspace_name(keyspace: &str) -> Result<(), String> {
    let mut bytes = keyspace.bytes();
    let valid = keyspace.len() <= 48
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if valid {
        return Ok(());
    }
    Err(format!("'{keyspace}' is no keyspace name: expected a lower-case letter, then up to 47 of a-z 0-9 _"))
}

/// TLS that trusts the authorities in the PEM file `ca` and no others.
fn tls(ca: &Path) -> Result<TlsContext, Box<dyn std::error::Error + Send + Sync>> {
    let unreadable =
        |error: &dyn fmt::Display| format!("cannot read certificates from {}: {error}", ca.display());
    let mut authorities = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unreadable(&error))? {
        authorities.add(certificate.map_err(|error| unreadable(&error))?)?;
    }
    if authorities.is_empty() {
        return Err(unreadable(&"there is none in it").into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    Ok(TlsContext::Rustls023(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_get_into_statements() {
        for good in ["backstamp", "a", "t_1", &"k".repeat(48)] {
            assert_eq!(check_keyspace_name(good), Ok(()), "{good}");
        }
        for bad in ["", "1a", "_a", "Backstamp", "a-b", "a b", "a;drop", "ä", &"k".repeat(49)] {
            assert!(check_keyspace_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let config = ScyllaConfig { password: Some("hunter2".into()), ..ScyllaConfig::new(vec![], "k") };
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = tls(file.path()).map(|_| ()).expect_err("empty").to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
