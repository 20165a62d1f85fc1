//! The store on a real server: that it keeps its promises, and that its schema is applied, checked and guarded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backstamp_tests::servers::Cassandra;
use backstamp_tests::{servers, unique_name};
use event_store::scylla::{Applied, ScyllaConfig, ScyllaStore, apply_schema};
use event_store::{EventStore, StoreError, conformance};
use futures::future::join_all;

/// Changes of the schema, and who reads meanwhile.
const SCHEMA_CHANGES: u64 = 20;
const READERS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_keeps_every_promise() {
    let (cassandra, config) = keyspace().await;
    apply_schema(&config, None).await.unwrap();
    let store = ScyllaStore::connect(&config).await.unwrap();
    conformance::run(Arc::new(store), "real").await;
    cassandra.drop_keyspace(&config.keyspace).await;
}

#[tokio::test]
async fn of_two_appliers_at_once_one_applies_each_migration() {
    let (cassandra, config) = keyspace().await;
    let (one, other) = tokio::join!(apply_schema(&config, None), apply_schema(&config, None));
    let migrations = |applied: Result<Applied, StoreError>| applied.unwrap().migrations.len();
    let mut applied = [migrations(one), migrations(other)];
    applied.sort_unstable();
    assert_eq!(applied[0], 0);
    assert!(applied[1] > 0);
    assert_eq!(migrations(apply_schema(&config, None).await), 0);
    ScyllaStore::connect(&config).await.unwrap();
    cassandra.drop_keyspace(&config.keyspace).await;
}

#[tokio::test]
async fn few_nodes_and_a_replication_that_stays_are_warned_of() {
    let (cassandra, config) = keyspace().await;
    let warnings = apply_schema(&config, None).await.unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("replication factor is 1"), "{warnings:?}");
    assert_eq!(apply_schema(&config, Some(1)).await.unwrap().warnings, [] as [&str; 0]);
    let warnings = apply_schema(&config, Some(3)).await.unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("keeps its replication"), "{warnings:?}");
    cassandra.drop_keyspace(&config.keyspace).await;
}

#[tokio::test]
async fn a_schema_that_does_not_fit_is_named() {
    let (cassandra, config) = keyspace().await;
    let refused = async || ScyllaStore::connect(&config).await.map(|_| ()).unwrap_err().chain().to_string();
    assert!(refused().await.ends_with("run `backstamp schema apply`"));

    apply_schema(&config, None).await.unwrap();
    let store = ScyllaStore::connect(&config).await.unwrap();
    store.check().await.unwrap();

    let session = cassandra.session().await;
    let change = async |cql: String| session.query_unpaged(cql, ()).await.unwrap();
    change(format!("DROP TABLE {}.tallies", config.keyspace)).await;
    let lost = store.check().await.unwrap_err().chain().to_string();
    assert!(lost.contains("has lost table tallies"), "{lost}");

    let other = "UPDATE schema_migrations SET checksum = 'other' WHERE version = 1 IF EXISTS";
    change(other.replace("schema_migrations", &format!("{}.schema_migrations", config.keyspace))).await;
    assert!(refused().await.contains("migration 0001_tables was applied with other statements"));
    let error = apply_schema(&config, None).await.unwrap_err().chain().to_string();
    assert!(error.contains("migration 0001_tables was applied with other statements"), "{error}");

    change(format!("DELETE FROM {}.schema_migrations WHERE version = 1 IF EXISTS", config.keyspace)).await;
    assert!(refused().await.contains("lacks migration 0001_tables"));
    apply_schema(&config, None).await.unwrap();
    store.check().await.unwrap();
    cassandra.drop_keyspace(&config.keyspace).await;
}

/// Each change makes the server forget what is prepared, some of it between its being prepared again and its use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_outlive_changes_of_the_schema() {
    let (cassandra, config) = keyspace().await;
    apply_schema(&config, None).await.unwrap();
    let store = ScyllaStore::connect(&config).await.unwrap();
    let is_over = AtomicBool::new(false);
    let read = async || {
        let mut count = 0;
        while !is_over.load(Ordering::SeqCst) {
            assert!(store.read_key("none").await.unwrap().is_none());
            count += 1;
        }
        count
    };
    let change = async {
        let session = cassandra.session().await;
        for n in 0..SCHEMA_CHANGES {
            let change = format!("ALTER TABLE {}.api_keys ADD later_{n} text", config.keyspace);
            session.query_unpaged(change, ()).await.unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
    };
    let (reads, ()) = tokio::join!(join_all((0..READERS).map(|_| read())), change);
    let reads: u64 = reads.into_iter().sum();
    assert!(reads > SCHEMA_CHANGES, "only {reads} requests");
    cassandra.drop_keyspace(&config.keyspace).await;
}

/// A keyspace's name that no other test has, on the server of this process.
async fn keyspace() -> (&'static Cassandra, ScyllaConfig) {
    let cassandra = servers::cassandra().await;
    (cassandra, ScyllaConfig::new(vec![cassandra.contact.clone()], unique_name("store")))
}
