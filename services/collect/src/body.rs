//! Reading a body within bounds: its size, its time, and the room that all bodies share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use edge::Problem;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::BODY_BYTES_MAX;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(45);

/// What is allocated for a body that has not come yet, in bytes.
const CAPACITY_FIRST: usize = 16 << 10;

/// The room for bodies in work, in bytes.
pub(crate) struct Room(Arc<Semaphore>);

/// A body that was read, and the room that it takes while it is in work.
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for `bytes`.
    pub(crate) fn new(bytes: usize) -> Room {
        Room(Arc::new(Semaphore::new(bytes)))
    }

    /// Reads a body of at most [`BODY_BYTES_MAX`]. One that says that it is larger is not read at all.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Held, Problem> {
        let said = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if said.is_some_and(|bytes: usize| bytes > BODY_BYTES_MAX) {
            return Err(Problem::PayloadTooLarge { bytes_max: BODY_BYTES_MAX });
        }
        match tokio::time::timeout(BODY_TIMEOUT, self.read_all(said.unwrap_or(0), body)).await {
            Ok(read) => read,
            Err(_) => Err(Problem::BodyTimeout),
        }
    }

    async fn read_all(&self, said: usize, body: Body) -> Result<Held, Problem> {
        // As it comes: who declares much and sends little takes nobody's room.
        let mut room = None;
        let mut bytes = BytesMut::with_capacity(said.min(CAPACITY_FIRST));
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!(%error, "a body broke off");
                Problem::BodyIncomplete
            })?;
            let read = bytes.len() + chunk.len();
            if read > BODY_BYTES_MAX {
                return Err(Problem::PayloadTooLarge { bytes_max: BODY_BYTES_MAX });
            }
            // Twice as much each time, but no more than is to come.
            let wanted = if bytes.capacity() < read { read.max(said.min(2 * read)) } else { read };
            self.reserve(&mut room, wanted)?;
            bytes.reserve(wanted - bytes.len());
            bytes.extend_from_slice(&chunk);
        }
        Ok(Held { bytes: bytes.freeze(), _room: room })
    }

    /// Makes `room` at least `bytes` large.
    fn reserve(&self, room: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Problem> {
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Ok(missing) = u32::try_from(bytes.saturating_sub(held)) else { return Err(Problem::Unavailable) };
        if missing == 0 {
            return Ok(());
        }
        let more = self.0.clone().try_acquire_many_owned(missing).map_err(|_| {
            tracing::warn!("no room for another body");
            Problem::Unavailable
        })?;
        match room {
            Some(room) => room.merge(more),
            None => *room = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(room: &Room, length: Option<usize>, body: Body) -> Result<usize, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        room.read(&headers, body).await.map(|held| held.bytes.len())
    }

    fn streamed(chunks: usize, chunk: usize) -> Body {
        let chunks = (0..chunks).map(move |_| Ok::<_, std::io::Error>(vec![b' '; chunk]));
        Body::from_stream(futures::stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_body_is_bounded_whether_it_says_its_size_or_not() {
        let room = Room::new(crate::BODIES_BYTES_MAX);
        let too_large = Err(Problem::PayloadTooLarge { bytes_max: BODY_BYTES_MAX });
        assert_eq!(read(&room, Some(3), Body::from("abc")).await, Ok(3));
        assert_eq!(read(&room, Some(BODY_BYTES_MAX + 1), Body::empty()).await, too_large);
        assert_eq!(read(&room, None, streamed(8, 1 << 20)).await, Ok(BODY_BYTES_MAX));
        assert_eq!(read(&room, None, streamed(9, 1 << 20)).await, too_large);
    }

    #[tokio::test]
    async fn bodies_share_a_room_and_leave_it() {
        let room = Room::new(10);
        let held = room.read(&HeaderMap::new(), Body::from("123456")).await.ok();
        assert_eq!(read(&room, None, Body::from("12345")).await, Err(Problem::Unavailable));
        assert_eq!(read(&room, Some(4), Body::from("1234")).await, Ok(4));
        drop(held);
        assert_eq!(read(&room, None, streamed(5, 2)).await, Ok(10));
        assert_eq!(room.0.available_permits(), 10);
    }

    #[tokio::test]
    async fn what_is_only_declared_takes_no_room() {
        let room = Room::new(10);
        let (sender, chunks) = futures::channel::mpsc::unbounded::<Result<&[u8], std::io::Error>>();
        let slow = read(&room, Some(10), Body::from_stream(chunks));
        tokio::pin!(slow);
        assert!(futures::poll!(&mut slow).is_pending());
        assert_eq!(read(&room, Some(10), Body::from("1234567890")).await, Ok(10));
        sender.unbounded_send(Ok(b"12")).expect("it is read");
        assert!(futures::poll!(&mut slow).is_pending());
        assert_eq!(read(&room, Some(10), Body::from("1234567890")).await, Err(Problem::Unavailable));
        drop(sender);
        assert_eq!(slow.await, Ok(2));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let chunks = [Ok("{"), Err(std::io::Error::other("gone"))];
        let body = Body::from_stream(futures::stream::iter(chunks));
        assert_eq!(read(&Room::new(10), None, body).await, Err(Problem::BodyIncomplete));
    }
}
