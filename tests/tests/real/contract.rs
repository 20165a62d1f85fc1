//! The contract, held by `ingest`, `query` and `collect` between Kafka and Cassandra.

use backstamp_tests::contract_tests;
use backstamp_tests::stack::Stack;

async fn stack() -> &'static Stack {
    Stack::shared_real().await
}

contract_tests!(super::stack);

#[tokio::test]
async fn the_schema_can_be_applied_again() {
    let stack = Stack::shared_real().await;
    // What it was created with; another number would not change what is there.
    for copies in [&[][..], &["--replication-factor", "1"]] {
        let again = stack.run(&[&["schema", "apply", "--json"], copies].concat()).await;
        assert!(again.status.success(), "{again}");
        let report: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
        assert_eq!(report["keyspace_created"], false, "{report}");
        assert_eq!(report["migrations_applied"], serde_json::json!([]), "{report}");
        assert_eq!(report["topics_created"], serde_json::json!([]), "{report}");
        assert_eq!(report["topics_present"].as_array().map(Vec::len), Some(4), "{report}");
    }
    let said = stack.run(&["schema", "apply"]).await;
    assert!(said.status.success() && said.stdout.contains("topics created: none"), "{said}");
}

#[tokio::test]
async fn topics_are_as_the_contract_has_them() {
    let topics = Stack::shared_real().await.topics().unwrap();
    for (topic, partitions) in [("mail.events", 3), ("mail.campaign-events", 64)] {
        assert_eq!(topics.ends(topic).await.len(), partitions, "{topic}");
    }
}
