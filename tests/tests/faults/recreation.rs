//! The topic is deleted and created again, under an ingest that goes on and under one that is killed meanwhile: what was
//! taken in stays, and what is published to the new topic is read from its first record.

use backstamp_tests::deployment::EVENTS;
use backstamp_tests::history::Topic;

use super::scene::{Scene, sized};

#[tokio::test]
async fn a_topic_that_is_created_again_is_read_from_its_first_record() {
    let rounds = sized(2, 6);
    let mut scene = Scene::new(5700, sized(3000, 30_000)).await;
    let mut ingest = scene.deployment.ingest().await;
    let records = scene.records().to_vec();
    // Each topic is shorter than the one before: else its offsets would not tell it from that one.
    let mut ends = vec![records.len() / 2];
    ends.extend((1..=rounds).map(|round| records.len() / 2 + records.len() / 2 * round / rounds));
    let mut gone = Vec::new();
    let mut from = 0;
    for (round, until) in ends.into_iter().enumerate() {
        let Scene { deployment, sender_rng, .. } = &mut scene;
        deployment.publish(&records[from..until], sender_rng).await;
        let acknowledged =
            records[from..until].iter().filter(|record| record.topic == Topic::Events || round == 0);
        let acknowledged: Vec<_> = acknowledged.cloned().collect();
        scene.balance(&acknowledged, &gone, &format!("the topic created again, {round} times")).await;
        if round == rounds {
            break;
        }
        let Scene { deployment, .. } = &mut scene;
        gone.extend(deployment.log().await.into_iter().filter(|(topic, _)| *topic == Topic::Events));
        deployment.create_again(EVENTS).await;
        if round % 2 == 1 {
            ingest.kill9();
            ingest = deployment.ingest().await;
        }
        from = until;
    }
    drop(ingest);
    scene.clear_up().await;
}
