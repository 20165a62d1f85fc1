//! What stands between the program and a server swallows replies to what was done, resets connections, and holds
//! everything back.

use std::time::Duration;

use backstamp_tests::deployment::CLASSIC;
use backstamp_tests::eventually;
use backstamp_tests::proxy::Proxy;

use super::own_servers::OwnServers;
use super::scene::{Scene, any_moment, sized};

const PATIENCE: Duration = Duration::from_secs(60);
const RESET_PAUSE_MAX: Duration = Duration::from_millis(300);
/// Each way: a second for there and back.
const DELAY: Duration = Duration::from_millis(500);

#[tokio::test]
async fn replies_of_cassandra_that_are_lost_cut_off_or_late_lose_and_double_nothing() {
    let servers = OwnServers::take().await;
    misbehave(5400, &servers, &servers.cassandra_proxy, "Cassandra").await;
}

#[tokio::test]
async fn replies_of_kafka_that_are_lost_cut_off_or_late_lose_and_double_nothing() {
    let servers = OwnServers::take().await;
    misbehave(5410, &servers, &servers.kafka_proxy, "Kafka").await;
}

async fn misbehave(part: u64, servers: &OwnServers, proxy: &Proxy, name: &str) {
    let (rounds, swallowing, resets, delayed) = (sized(1, 3), sized(1, 12), sized(5, 20), sized(2, 20));
    let addresses = servers.addresses_behind_proxies();
    let mut scene = Scene::at(addresses, CLASSIC, part, sized(2000, 25_000)).await;
    let Scene { deployment, trial, rng, sender_rng, .. } = &mut scene;
    let mut ingests = [deployment.ingest().await, deployment.ingest().await];
    let failing = async {
        for round in 0..rounds {
            deployment.wait_for_progress().await;
            // One dies first, so that the other takes its partitions over without hearing a word.
            let dead = round % ingests.len();
            let before = proxy.bytes_swallowed();
            ingests[dead].kill9();
            proxy.swallow_replies();
            eventually(PATIENCE, async || {
                anyhow::ensure!(proxy.bytes_swallowed() > before, "no reply was swallowed");
                Ok(())
            })
            .await;
            tokio::time::sleep(Duration::from_secs(swallowing)).await;
            proxy.behave();
            ingests[dead] = deployment.ingest().await;
            deployment.wait_for_progress().await;
            for _ in 0..resets {
                any_moment(RESET_PAUSE_MAX, rng).await;
                proxy.reset_all();
            }
            deployment.wait_for_progress().await;
            proxy.delay(DELAY);
            tokio::time::sleep(Duration::from_secs(delayed)).await;
            deployment.wait_for_progress().await;
            proxy.behave();
        }
    };
    deployment.under_load(&trial.history.records, sender_rng, failing).await;
    let what = format!(
        "{name}, {rounds} times: replies swallowed for {swallowing} s, {resets} resets, a second's delay for {delayed} s"
    );
    scene.finish(&what).await;
}
