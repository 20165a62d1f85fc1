//! What an operator's tools ask of a timeline's owner, on the same way as rows: by the internal topic. Only the owner may write a
//! timeline's numbers, so whoever finds them wrong asks it to count again.

use uuid::Uuid;

use crate::codec::{Damaged, Reader, Writer};
use crate::id::{AccountId, Id};
use crate::row::{Subject, TimelineId};

/// What a timeline's owner is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// To count all rows of a timeline anew, and to write its whole tree.
    Recount(TimelineId),
}

/// Told from the version of placed rows by its first byte.
const ORDER_VERSION: u8 = 128;
const RECOUNT: u8 = 0;

impl Order {
    /// Whether a message of the internal topic is an order.
    pub fn is_order(message: &[u8]) -> bool {
        message.first() == Some(&ORDER_VERSION)
    }

    /// The timeline whose owner is asked.
    pub fn timeline(&self) -> &TimelineId {
        let Order::Recount(timeline) = self;
        timeline
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(ORDER_VERSION);
        let Order::Recount(timeline) = self;
        out.byte(RECOUNT);
        out.bytes(timeline.account.as_str().as_bytes());
        let (contact, campaign) = match &timeline.subject {
            Subject::Campaign(id) => (None, Some(id)),
            Subject::Contact(uuid) => (Some(uuid), None),
            Subject::ContactCampaign(uuid, id) => (Some(uuid), Some(id)),
        };
        out.bytes(contact.map_or(&[][..], |uuid| uuid.as_bytes()));
        out.bytes(campaign.map_or("", Id::as_str).as_bytes());
        out.finish()
    }

    /// Reads a message.
    pub fn decode(message: &[u8]) -> Result<Order, Damaged> {
        let mut bytes = Reader::new(message, ORDER_VERSION, "order")?;
        if bytes.byte()? != RECOUNT {
            return Err(bytes.damaged());
        }
        let account = AccountId::parse(bytes.text()?).ok_or_else(|| bytes.damaged())?;
        let contact = match bytes.bytes()? {
            [] => None,
            contact => Some(Uuid::from_slice(contact).map_err(|_| bytes.damaged())?),
        };
        let campaign = match bytes.text()? {
            "" => None,
            campaign => Some(Id::parse(campaign).ok_or_else(|| bytes.damaged())?),
        };
        let subject = match (contact, campaign) {
            (None, Some(id)) => Subject::Campaign(id),
            (Some(uuid), None) => Subject::Contact(uuid),
            (Some(uuid), Some(id)) => Subject::ContactCampaign(uuid, id),
            (None, None) => return Err(bytes.damaged()),
        };
        Ok(Order::Recount(TimelineId { account, subject }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{decode_placed, encode_placed};
    use crate::time::Timestamp;
    use proptest::prelude::*;

    #[test]
    fn orders_survive_the_topic_and_are_no_rows() {
        let (account, campaign) = (AccountId::parse("a").expect("id"), Id::parse("c").expect("id"));
        let contact = Uuid::from_u128(7);
        for timeline in [
            TimelineId::campaign(&account, &campaign),
            TimelineId::contact(&account, contact),
            TimelineId::contact_campaign(&account, contact, &campaign),
        ] {
            let order = Order::Recount(timeline);
            let message = order.encode();
            assert_eq!(Order::decode(&message), Ok(order));
            assert!(Order::is_order(&message) && decode_placed(&message).is_err());
        }
        assert!(!Order::is_order(&encode_placed(&[], Timestamp(0))));
    }

    proptest! {
        #[test]
        fn stored_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Order::decode(&bytes);
        }
    }
}
