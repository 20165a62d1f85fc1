//! Joining by `message_id`: what a `send` knew, and what a later (or earlier) event about the same message takes from it.

use uuid::Uuid;

use crate::codec::{Damaged, Reader, Writer};
use crate::event::{Event, EventType};
use crate::id::Id;
use crate::time::DAY_MS;

/// How much longer than rows the facts of a `send` are kept, in milliseconds: an open may be the last of its message by weeks.
pub const SEND_KEPT_LONGER_MS: i64 = 28 * DAY_MS;

/// What a `send` knew about its message.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "named as the wire format names them")]
pub struct SendFacts {
    pub contact: Option<Uuid>,
    pub email: Option<Box<str>>,
    pub campaign: Option<Id>,
    pub automation: Option<Id>,
    pub list: Option<Id>,
    pub step: Option<Id>,
}

const VERSION: u8 = 1;

impl SendFacts {
    /// What `send` knew.
    pub fn of(send: &Event) -> SendFacts {
        SendFacts {
            contact: send.contact,
            email: send.email.clone(),
            campaign: send.campaign.clone(),
            automation: send.automation.clone(),
            list: send.list.clone(),
            step: send.step.clone(),
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(VERSION);
        match &self.contact {
            Some(contact) => out.bytes(contact.as_bytes()),
            None => out.bytes(&[]),
        }
        let ids = [&self.campaign, &self.automation, &self.list, &self.step]
            .map(|id| id.as_ref().map_or("", Id::as_str));
        for text in [self.email.as_deref().unwrap_or("")].into_iter().chain(ids) {
            out.bytes(text.as_bytes());
        }
        out.finish()
    }

    /// Reads the stored form.
    pub fn decode(stored: &[u8]) -> Result<SendFacts, Damaged> {
        let mut bytes = Reader::new(stored, VERSION, "send")?;
        let contact = match bytes.bytes()? {
            [] => None,
            contact => Some(Uuid::from_slice(contact).map_err(|_| bytes.damaged())?),
        };
        let email = Some(bytes.text()?).filter(|email| !email.is_empty()).map(Into::into);
        let mut id = || match bytes.text()? {
            "" => Ok(None),
            text => Id::parse(text).map(Some).ok_or(Damaged { what: "send" }),
        };
        Ok(SendFacts { contact, email, campaign: id()?, automation: id()?, list: id()?, step: id()? })
    }
}

/// The message whose `send` could still supply something that `event` leaves out.
pub fn message_to_join(event: &Event) -> Option<&Id> {
    let shows_list = matches!(event.event_type, EventType::Subscribed | EventType::Unsubscribed);
    let lacks = event.contact.is_none()
        || event.email.is_none()
        || event.campaign.is_none()
        || event.automation.is_none()
        || event.step.is_none()
        || (shows_list && event.list.is_none());
    event.message.as_ref().filter(|_| lacks && event.event_type != EventType::Sent)
}

/// `event` with what it leaves out supplied by its `send`. Its own fields stay.
#[must_use]
pub fn join(event: &Event, facts: &SendFacts) -> Event {
    let mut event = event.clone();
    event.contact = event.contact.or(facts.contact);
    event.email = event.email.or_else(|| facts.email.clone());
    event.campaign = event.campaign.or_else(|| facts.campaign.clone());
    event.automation = event.automation.or_else(|| facts.automation.clone());
    event.list = event.list.or_else(|| facts.list.clone());
    event.step = event.step.or_else(|| facts.step.clone());
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::decode_event;
    use crate::time::Timestamp;

    fn event(fields: &str) -> Event {
        let json = format!(
            r#"{{"id":"e1","account_id":"a","occurred_at":"2026-04-17T14:23:05Z","message_id":"m",{fields}}}"#
        );
        decode_event(json.as_bytes(), Timestamp(1_790_000_000_000)).expect("valid")
    }

    #[test]
    fn a_send_supplies_what_is_left_out_and_nothing_else() {
        let contact = "123e4567-e89b-12d3-a456-426614174000";
        let send = event(&format!(
            r#""type":"send","contact_id":"{contact}","email":"a@b.example","campaign_id":"c","step_id":"s""#
        ));
        let facts = SendFacts::of(&send);
        assert_eq!(SendFacts::decode(&facts.encode()), Ok(facts.clone()));
        let open = event(r#""type":"open","campaign_id":"own""#);
        assert_eq!(message_to_join(&open).map(Id::as_str), Some("m"));
        let joined = join(&open, &facts);
        assert_eq!(joined.campaign.as_ref().map(Id::as_str), Some("own"));
        assert_eq!((joined.contact, joined.email, joined.step), (facts.contact, facts.email, facts.step));
        assert_eq!(message_to_join(&send), None);
    }
}
