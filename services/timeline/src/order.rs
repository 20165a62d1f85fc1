//! What an operator's tools ask of a timeline's owner, on the same way as rows: by the internal topic. Only the owner may write a
//! timeline's rows and numbers, so whoever wants them changed asks it.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::codec::{Damaged, Reader, Writer};
use crate::event::EventType;
use crate::id::{AccountId, Id};
use crate::row::{Position, RowKey, Subject, TimelineId};

/// What an owner is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// To count all rows of a timeline anew, and to write its whole tree.
    Recount(TimelineId),
    /// To leave out, from now on, every row of a contact. Every partition is told, after the store has it.
    Forget {
        /// Whose contact.
        account: AccountId,
        /// Whom.
        contact: Uuid,
    },
    /// To take rows of a forgotten contact out of a timeline.
    Erase {
        /// The timeline.
        timeline: TimelineId,
        /// Whose rows: what others have at those positions stays.
        contact: Uuid,
        /// Which rows.
        keys: Vec<RowKey>,
    },
}

/// Rows of an order: it fits in a message of a megabyte however long their ids are.
const ERASED_MAX: usize = 1000;
/// Told from the version of placed rows by its first byte.
const ORDER_VERSION: u8 = 128;
const RECOUNT: u8 = 0;
const FORGET: u8 = 1;
const ERASE: u8 = 2;

impl Order {
    /// Orders to take rows of a contact out of a timeline, none too large for a message.
    pub fn erase(timeline: &TimelineId, contact: Uuid, keys: &BTreeSet<RowKey>) -> Vec<Order> {
        let keys: Vec<RowKey> = keys.iter().cloned().collect();
        let order =
            |keys: &[RowKey]| Order::Erase { timeline: timeline.clone(), contact, keys: keys.to_vec() };
        keys.chunks(ERASED_MAX).map(order).collect()
    }

    /// Whether a message of the internal topic is an order.
    pub fn is_order(message: &[u8]) -> bool {
        message.first() == Some(&ORDER_VERSION)
    }

    /// The timeline whose owner is asked; none where all are.
    pub fn timeline(&self) -> Option<&TimelineId> {
        match self {
            Order::Recount(timeline) | Order::Erase { timeline, .. } => Some(timeline),
            Order::Forget { .. } => None,
        }
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(ORDER_VERSION);
        match self {
            Order::Recount(timeline) => {
                out.byte(RECOUNT);
                encode_timeline(timeline, &mut out);
            }
            Order::Forget { account, contact } => {
                out.byte(FORGET);
                out.bytes(account.as_str().as_bytes());
                out.raw(contact.as_bytes());
            }
            Order::Erase { timeline, contact, keys } => {
                out.byte(ERASE);
                encode_timeline(timeline, &mut out);
                out.raw(contact.as_bytes());
                for key in keys {
                    key.position.encode(&mut out);
                    out.byte(key.event_type as u8);
                }
            }
        }
        out.finish()
    }

    /// Reads a message.
    pub fn decode(message: &[u8]) -> Result<Order, Damaged> {
        let mut bytes = Reader::new(message, ORDER_VERSION, "order")?;
        match bytes.byte()? {
            RECOUNT => Ok(Order::Recount(decode_timeline(&mut bytes)?)),
            FORGET => {
                let account = AccountId::parse(bytes.text()?).ok_or_else(|| bytes.damaged())?;
                Ok(Order::Forget { account, contact: decode_uuid(&mut bytes)? })
            }
            ERASE => {
                let (timeline, contact) = (decode_timeline(&mut bytes)?, decode_uuid(&mut bytes)?);
                let mut keys = Vec::new();
                while !bytes.is_at_end() {
                    let position = Position::decode(&mut bytes)?;
                    let event_type = EventType::from_number(bytes.byte()?).ok_or_else(|| bytes.damaged())?;
                    keys.push(RowKey { position, event_type });
                }
                Ok(Order::Erase { timeline, contact, keys })
            }
            _ => Err(bytes.damaged()),
        }
    }
}

fn encode_timeline(timeline: &TimelineId, out: &mut Writer) {
    out.bytes(timeline.account.as_str().as_bytes());
    let (contact, campaign) = match &timeline.subject {
        Subject::Campaign(id) => (None, Some(id)),
        Subject::Contact(uuid) => (Some(uuid), None),
        Subject::ContactCampaign(uuid, id) => (Some(uuid), Some(id)),
    };
    out.bytes(contact.map_or(&[][..], |uuid| uuid.as_bytes()));
    out.bytes(campaign.map_or("", Id::as_str).as_bytes());
}

fn decode_timeline(bytes: &mut Reader<'_>) -> Result<TimelineId, Damaged> {
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
    Ok(TimelineId { account, subject })
}

fn decode_uuid(bytes: &mut Reader<'_>) -> Result<Uuid, Damaged> {
    Uuid::from_slice(bytes.raw(16)?).map_err(|_| bytes.damaged())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{decode_placed, encode_placed};
    use crate::time::Timestamp;
    use proptest::prelude::*;

    #[test]
    fn an_order_holds_a_bounded_number_of_rows() {
        let (account, campaign) = (AccountId::parse("a").expect("id"), Id::parse("c").expect("id"));
        let timeline = TimelineId::campaign(&account, &campaign);
        let at = |at| Position { at: Timestamp(at), id: "é".repeat(128).into() };
        let keys = (0..2_500).map(|of| RowKey { position: at(of), event_type: EventType::Opened }).collect();
        let orders = Order::erase(&timeline, Uuid::nil(), &keys);
        assert_eq!(orders.len(), 3);
        assert!(orders.iter().all(|order| order.encode().len() < 500_000));
        let erased: BTreeSet<RowKey> = orders
            .into_iter()
            .flat_map(|order| match order {
                Order::Erase { keys, .. } => keys,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(erased, keys);
    }

    #[test]
    fn orders_survive_the_topic_and_are_no_rows() {
        let (account, campaign) = (AccountId::parse("a").expect("id"), Id::parse("c").expect("id"));
        let contact = Uuid::from_u128(7);
        let key = RowKey {
            position: Position { at: Timestamp(5), id: "e1".into() },
            event_type: EventType::Opened,
        };
        let of_campaign = TimelineId::campaign(&account, &campaign);
        for order in [
            Order::Recount(of_campaign.clone()),
            Order::Recount(TimelineId::contact(&account, contact)),
            Order::Recount(TimelineId::contact_campaign(&account, contact, &campaign)),
            Order::Forget { account: account.clone(), contact },
            Order::Erase { timeline: of_campaign, contact, keys: vec![key.clone(), key] },
        ] {
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
            let mut order = vec![ORDER_VERSION];
            order.extend(bytes);
            let _ = Order::decode(&order);
        }
    }
}
