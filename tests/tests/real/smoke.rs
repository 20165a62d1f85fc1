//! The servers themselves: what the other tests take for granted.

use backstamp_tests::{servers, unique_name};

#[tokio::test]
async fn cassandra_gives_back_what_was_written() {
    let cassandra = servers::cassandra().await;
    let session = cassandra.session().await;
    let keyspace = unique_name("smoke");
    let replication = "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}";
    session
        .query_unpaged(format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}"), ())
        .await
        .unwrap();
    session.use_keyspace(&keyspace, false).await.unwrap();
    session.query_unpaged("CREATE TABLE words (id text PRIMARY KEY, word text)", ()).await.unwrap();

    session.query_unpaged("INSERT INTO words (id, word) VALUES (?, ?)", ("a", "written")).await.unwrap();
    let rows = session.query_unpaged("SELECT word FROM words WHERE id = ?", ("a",)).await.unwrap();
    let (word,) = rows.into_rows_result().unwrap().single_row::<(String,)>().unwrap();
    assert_eq!(word, "written");
    cassandra.drop_keyspace(&keyspace).await;
}

#[tokio::test]
async fn kafka_gives_back_what_was_published() {
    let topics = servers::kafka().await.topics(&unique_name("smoke"));
    topics.create("mail.events", 2).await;

    assert_eq!(topics.publish("mail.events", Some(b"key"), b"one", Some(1)).await, (1, 0));
    assert_eq!(topics.publish("mail.events", None, b"two", Some(1)).await, (1, 1));
    topics.publish_tombstone("mail.events", b"key").await;

    let records = topics.consume_all("mail.events").await;
    let payloads: Vec<Option<&[u8]>> = records.iter().map(|record| record.payload.as_deref()).collect();
    assert_eq!(payloads.len(), 3);
    for payload in [Some(b"one".as_slice()), Some(b"two"), None] {
        assert!(payloads.contains(&payload), "{payloads:?}");
    }
    assert_eq!(topics.ends("mail.events").await.values().sum::<i64>(), 3);
    assert_eq!(topics.lag("nobody", "mail.events").await, 3);
    topics.delete(&["mail.events", "never.there"]).await;
}
