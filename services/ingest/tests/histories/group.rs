//! A consumer group of real workers: members that crash, leave, lose partitions and do not know, or are given others.

use std::sync::Arc;

use event_log::{LogError, Topic};
use ingest::forgotten::Forgotten;
use ingest::kafka::Worker;
use ingest::own::Owner;
use ingest::place::Place;
use ingest::progress::Progress;
use telemetry::shutdown::Shutdown;
use timeline::filter::ListManagementFilter;
use tokio::task::JoinHandle;

use super::broker::{Broker, SimAppender, SimConsumer, View};
use super::sim::Sim;
use super::sim_store::SimStore;
use super::{RETENTION_MS, SKEW_MAX_MS, owner_settings};

/// Members that each group has.
const MEMBERS: usize = 2;

/// The group that reads one topic.
pub(crate) struct Group {
    sim: Sim,
    broker: Broker,
    store: Arc<SimStore>,
    topic: Topic,
    members: Vec<Member>,
    /// Members that are no more, and go on.
    zombies: Vec<Member>,
    /// Members that were told to stop, and finish what they have begun.
    leaving: Vec<Member>,
    started: u64,
}

struct Member {
    view: View,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), LogError>>,
}

impl Group {
    /// A group whose members hold all partitions.
    pub(crate) fn start(sim: &Sim, broker: &Broker, store: &Arc<SimStore>, topic: Topic) -> Group {
        let mut group = Group {
            sim: sim.clone(),
            broker: broker.clone(),
            store: store.clone(),
            topic,
            members: Vec::new(),
            zombies: Vec::new(),
            leaving: Vec::new(),
            started: 0,
        };
        for _ in 0..MEMBERS {
            let member = group.start_member();
            group.members.push(member);
        }
        group.assign_all();
        group
    }

    /// A new process, with a clock of its own.
    fn start_member(&mut self) -> Member {
        self.started += 1;
        let (view, shutdown) = (View::default(), Shutdown::new());
        // Half of the clocks are right, as far as clocks are.
        let skew_max = if self.sim.chance(0.5) { 50 } else { SKEW_MAX_MS };
        let skew_ms = i64::try_from(self.sim.random(0..2 * skew_max.cast_unsigned())).unwrap() - skew_max;
        let sim = self.sim.clone();
        let store = Arc::new(self.store.handle(skew_ms));
        let worker = Worker {
            topic: self.topic,
            consumer: SimConsumer::new(&self.broker, self.topic, view.clone()),
            appender: Arc::new(SimAppender { broker: self.broker.clone(), member: self.started }),
            clock: Arc::new(move || sim.now().plus_ms(skew_ms)),
            shutdown: shutdown.clone(),
            progress: Progress::new(self.topic),
            reporting: None,
            replay_per_second_max: None,
        };
        let task = match self.topic {
            Topic::Events => {
                let place = Place::new(store.clone(), ListManagementFilter::default(), RETENTION_MS);
                tokio::spawn(worker.place(place, store))
            }
            Topic::CampaignEvents => {
                tokio::spawn(worker.own(Owner::new(store, "sim", owner_settings(&self.sim))))
            }
            Topic::References | Topic::DeadLetters => {
                tokio::spawn(worker.references(store.clone(), Forgotten::new(store)))
            }
        };
        Member { view, shutdown, task }
    }

    fn partitions(&self) -> impl Iterator<Item = i32> + use<> {
        0..i32::try_from(Broker::partitions(self.topic)).unwrap()
    }

    /// Takes a partition from whoever of the members holds it and gives it to one of them.
    fn assign(&self, partition: i32, member: usize) {
        self.members.iter().for_each(|member| member.view.revoke(partition));
        self.broker.assign(self.topic, partition, &self.members[member].view);
    }

    /// Gives every partition away anew.
    pub(crate) fn assign_all(&self) {
        for partition in self.partitions() {
            self.assign(partition, self.sim.pick(self.members.len()));
        }
    }

    /// Puts a new process in the place of a member, which goes on being what is returned.
    fn replace(&mut self, at: usize) -> Member {
        let new = self.start_member();
        let old = std::mem::replace(&mut self.members[at], new);
        let held: Vec<i32> = self.partitions().filter(|partition| old.view.holds(*partition)).collect();
        for partition in held {
            // Most partitions go to the new one, some to the others.
            let to = if self.sim.chance(0.7) { at } else { self.sim.pick(self.members.len()) };
            self.assign(partition, to);
        }
        old
    }

    /// Something happens to a member.
    pub(crate) fn disturb(&mut self) {
        let at = self.sim.pick(self.members.len());
        match self.sim.random(0..8) {
            // It crashes.
            0..3 => self.replace(at).task.abort(),
            // It was stopped, or the network was gone; it does not know that others hold its partitions.
            3..6 => {
                let zombie = self.replace(at);
                self.zombies.push(zombie);
            }
            // It is told to stop, and finishes what it has begun; its partitions are revoked first, in this it is a zombie that hurries.
            6 => {
                let leaving = self.replace(at);
                leaving.shutdown.begin();
                self.leaving.push(leaving);
            }
            // Partitions move among those who are there, and all of them know.
            _ => {
                for partition in self.partitions().filter(|_| self.sim.chance(0.5)) {
                    self.assign(partition, self.sim.pick(self.members.len()));
                }
            }
        }
    }

    /// Ends a zombie, now and then or at once.
    pub(crate) fn bury(&mut self, at_once: bool) {
        if !self.zombies.is_empty() && (at_once || self.sim.chance(0.12)) {
            let at = self.sim.pick(self.zombies.len());
            self.zombies.swap_remove(at).task.abort();
        }
        self.leaving.retain(|member| !member.task.is_finished());
    }

    /// Whether members are all there is.
    pub(crate) fn is_calm(&self) -> bool {
        self.zombies.is_empty() && self.leaving.is_empty()
    }

    /// Whether a worker has ended though nobody told it to.
    pub(crate) fn has_failed(&self) -> bool {
        self.members.iter().chain(&self.zombies).any(|member| member.task.is_finished())
    }

    /// Has a partition read again from its beginning.
    pub(crate) fn replay(&self) {
        let partition = i32::try_from(self.sim.pick(Broker::partitions(self.topic))).unwrap();
        self.broker.rewind(self.topic, partition);
        self.assign(partition, self.sim.pick(self.members.len()));
    }

    /// Deletes the topic, of which nothing is undone, and creates it anew.
    pub(crate) fn recreate(&self) {
        self.broker.create(self.topic);
        self.assign_all();
    }

    /// Ends all members.
    pub(crate) fn stop(&self) {
        self.members.iter().for_each(|member| member.task.abort());
    }
}
