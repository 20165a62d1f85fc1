//! `dev` is killed again and again while events come in: what it acknowledged is there, and nothing is twice.

use std::time::Duration;

use backstamp_tests::Seed;
use backstamp_tests::check::Effort;
use backstamp_tests::client::Client;
use backstamp_tests::history::{Knobs, Record, Topic};
use backstamp_tests::trial::{Trial, cut};
use futures::future::join_all;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::dev::Dev;

const EVENTS: usize = 6000;
const KILLS: usize = 5;
const EVENT_SENDERS: usize = 3;
/// How far into a batch a kill may fall.
const KILL_DELAY_MAX: Duration = Duration::from_millis(40);
const RESTART_PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn what_is_acknowledged_survives_kills_and_nothing_is_doubled() {
    let seed = Seed::from_environment();
    let mut rng = seed.rng(2000);
    let dev = Dev::start().await;
    let knobs = Knobs::sized(EVENTS).with_giant(0.6);
    let trial = Trial::prepare(rng.random(), &knobs, &dev.environment()).await;

    let lanes = lanes(&trial.history.records, &mut rng);
    let batches: usize = lanes.iter().map(Vec::len).sum();
    let (clients, client) = watch::channel(dev.client().clone());
    let (done, progress) = watch::channel(0);
    let senders = lanes.iter().enumerate().map(|(number, lane)| {
        let rng = seed.rng(2001 + number as u64);
        Sender { trial: &trial, client: client.clone(), done: &done, rng }.send(lane)
    });
    let (_, dev) =
        tokio::join!(join_all(senders), kill_repeatedly(dev, batches, progress, clients, &mut rng));
    trial.judge(dev.client(), &mut rng, &Effort::thorough()).await;

    let dev = dev.kill9_and_restart().await;
    trial.judge(dev.client(), &mut rng, &Effort::quick()).await;
}

/// Batches for one sender of references, whose order counts, and for some senders of events.
fn lanes(records: &[Record], rng: &mut StdRng) -> Vec<Vec<Vec<Record>>> {
    let (references, events): (Vec<Record>, Vec<Record>) =
        records.iter().cloned().partition(|record| record.topic == Topic::References);
    let batches = |records: &[Record], rng: &mut StdRng| -> Vec<Vec<Record>> {
        cut(records, rng, 200).into_iter().map(<[Record]>::to_vec).collect()
    };
    let mut lanes = vec![batches(&references, rng)];
    lanes.resize(1 + EVENT_SENDERS, Vec::new());
    for (number, batch) in batches(&events, rng).into_iter().enumerate() {
        lanes[1 + number % EVENT_SENDERS].push(batch);
    }
    lanes
}

/// Posts one batch after the other, as an at-least-once producer does: until it is acknowledged.
struct Sender<'a> {
    trial: &'a Trial,
    client: watch::Receiver<Client>,
    done: &'a watch::Sender<usize>,
    rng: StdRng,
}

impl Sender<'_> {
    async fn send(mut self, lane: &[Vec<Record>]) {
        for batch in lane {
            loop {
                let client = self.client.borrow_and_update().clone();
                let Err(error) = self.trial.post_batch(&client, batch, self.rng.random()).await else {
                    break;
                };
                assert!(error.is::<reqwest::Error>(), "{error:#}");
                // It was killed, then: the next one has another address.
                let next = timeout(RESTART_PATIENCE, self.client.changed()).await;
                next.unwrap_or_else(|_| panic!("nobody was killed, and yet: {error:#}")).expect("a next one");
            }
            self.done.send_modify(|done| *done += 1);
        }
    }
}

/// Kills and restarts at random moments while batches are acknowledged; now and then kills it while it still recovers.
async fn kill_repeatedly(
    mut dev: Dev,
    batches: usize,
    mut progress: watch::Receiver<usize>,
    clients: watch::Sender<Client>,
    rng: &mut StdRng,
) -> Dev {
    let mut moments: Vec<usize> = (0..KILLS).map(|_| rng.random_range(0..batches * 9 / 10)).collect();
    moments.sort_unstable();
    for (number, moment) in moments.into_iter().enumerate() {
        progress.wait_for(|done| *done >= moment).await.expect("senders are there");
        sleep(KILL_DELAY_MAX.mul_f64(rng.random())).await;
        dev = dev.kill9_and_restart().await;
        if number % 2 == 1 {
            dev = dev.kill9_and_restart().await;
        }
        clients.send_replace(dev.client().clone());
    }
    // Kept until all senders are done.
    progress.wait_for(|done| *done == batches).await.expect("senders are there");
    dev
}
