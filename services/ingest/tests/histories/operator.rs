//! What an operator does in the middle of it all: has timelines counted again, and a contact forgotten.

use std::sync::Arc;

use event_log::Topic;
use operate::views::rows_of_contact;
use timeline::{AccountId, Order, Subject, TimelineId};
use uuid::Uuid;

use super::broker::Broker;
use super::plan::Plan;
use super::sim::Sim;
use super::sim_store::SimStore;

/// Whoever has the tools.
#[derive(Clone)]
pub(crate) struct Operator {
    pub(crate) sim: Sim,
    pub(crate) store: Arc<SimStore>,
    pub(crate) broker: Broker,
}

impl Operator {
    /// Orders that some timeline be counted again.
    pub(crate) fn recount(&self, plan: &Plan) {
        let timelines: Vec<&TimelineId> = plan.known.iter().collect();
        let timeline = timelines[self.sim.pick(timelines.len())];
        self.order(timeline, &Order::Recount(timeline.clone()));
    }

    /// As `backstamp forget-contact` does.
    pub(crate) async fn forget(self, account: AccountId, contact: Uuid) {
        self.store.forget(&account, contact);
        for partition in 0..Broker::partitions(Topic::CampaignEvents) {
            let order = Order::Forget { account: account.clone(), contact };
            self.broker.publish(Topic::CampaignEvents, partition, None, &order.encode());
        }
        self.owners_are_done().await;
        let rows = loop {
            if let Ok(rows) = rows_of_contact(self.store.as_ref(), &account, contact).await {
                break rows;
            }
        };
        // The contact's own last: they say which the others are.
        for of_campaigns in [true, false] {
            for (timeline, keys) in &rows {
                if matches!(timeline.subject, Subject::Campaign(_)) == of_campaigns {
                    let keys = keys.iter().cloned().collect();
                    self.order(timeline, &Order::Erase { timeline: timeline.clone(), contact, keys });
                }
            }
            self.owners_are_done().await;
        }
    }

    fn order(&self, timeline: &TimelineId, order: &Order) {
        let partitions = Broker::partitions(Topic::CampaignEvents);
        let partition = timeline.partition(u32::try_from(partitions).unwrap()) as usize;
        self.broker.publish(Topic::CampaignEvents, partition, None, &order.encode());
    }

    /// Waits until the owners have committed what is in their topic now.
    async fn owners_are_done(&self) {
        let ends = self.broker.ends(Topic::CampaignEvents);
        while !self.broker.has_passed(Topic::CampaignEvents, &ends) {
            self.sim.pause(10..50).await;
        }
    }
}
