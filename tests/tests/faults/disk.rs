//! The disk of a server is full. Both servers then stop by themselves; with room again they are started again, as somebody
//! who looks after them would.

use std::time::Duration;

use backstamp_tests::deployment::CLASSIC;
use backstamp_tests::eventually;
use backstamp_tests::full_disk::FullDisk;
use backstamp_tests::servers::server::Node;

use super::own_servers::OwnServers;
use super::scene::{Scene, sized};

const PATIENCE: Duration = Duration::from_secs(120);
const NO_ROOM: &str = "No space left on device";

#[tokio::test]
async fn a_full_disk_of_cassandra_stops_the_flow_and_loses_nothing() {
    let mut servers = OwnServers::take().await;
    let addresses = servers.addresses();
    let scene = Scene::at(addresses, CLASSIC, 5500, sized(2000, 20_000)).await;
    let OwnServers { cassandra, cassandra_disk, .. } = &mut *servers;
    fill(scene, cassandra.node(), cassandra_disk, "Cassandra").await;
}

#[tokio::test]
async fn a_full_disk_of_kafka_stops_the_flow_and_loses_nothing() {
    let mut servers = OwnServers::take().await;
    let addresses = servers.addresses();
    let scene = Scene::at(addresses, CLASSIC, 5510, sized(2000, 20_000)).await;
    let OwnServers { kafka, kafka_disk, .. } = &mut *servers;
    fill(scene, kafka.node(), kafka_disk, "Kafka").await;
}

async fn fill(mut scene: Scene, node: &mut Node, disk: &FullDisk, name: &str) {
    let (rounds, full) = (sized(1, 2), sized(0, 20));
    let Scene { deployment, trial, sender_rng, .. } = &mut scene;
    let _ingests = [deployment.ingest().await, deployment.ingest().await];
    let filling = async {
        for _ in 0..rounds {
            deployment.wait_for_progress().await;
            let known = node.log().matches(NO_ROOM).count();
            disk.fill();
            eventually(PATIENCE, async || {
                anyhow::ensure!(
                    node.log().matches(NO_ROOM).count() > known,
                    "the server has not met its full disk"
                );
                Ok(())
            })
            .await;
            tokio::time::sleep(Duration::from_secs(full)).await;
            disk.clear();
            node.start_again().await;
            deployment.wait_for_progress().await;
        }
    };
    deployment.under_load(&trial.history.records, sender_rng, filling).await;
    scene.finish(&format!("{name}'s disk full, {rounds} times")).await;
}
