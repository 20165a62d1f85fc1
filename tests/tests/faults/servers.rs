//! Kafka and Cassandra are killed and started again, and held where they are.

use std::time::Duration;

use backstamp_tests::deployment::CLASSIC;

use super::own_servers::OwnServers;
use super::scene::{Scene, sized};

#[tokio::test]
async fn servers_that_are_killed_or_held_cost_time_and_nothing_else() {
    let (rounds, down, held) = (sized(1, 2), sized(0, 10), sized(3, 60));
    let mut servers = OwnServers::take().await;
    let mut scene = Scene::at(servers.addresses(), CLASSIC, 5300, sized(2500, 30_000)).await;
    let Scene { deployment, trial, sender_rng, .. } = &mut scene;
    let _ingests = [deployment.ingest().await, deployment.ingest().await];
    let OwnServers { kafka, cassandra, .. } = &mut *servers;
    let failing = async {
        for round in 0..rounds {
            for node in [cassandra.node(), kafka.node()] {
                deployment.wait_for_progress().await;
                node.kill9();
                tokio::time::sleep(Duration::from_secs(down)).await;
                node.start_again().await;
                deployment.wait_for_progress().await;
                if round == 0 {
                    node.stop();
                    tokio::time::sleep(Duration::from_secs(held)).await;
                    node.cont();
                }
            }
        }
        deployment.wait_for_progress().await;
    };
    deployment.under_load(&trial.history.records, sender_rng, failing).await;
    scene.finish(&format!("Cassandra and Kafka killed {rounds} times each, held for {held} s each")).await;
}
