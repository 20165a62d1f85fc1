//! A connection's bytes. What HTTP leaves to TCP and TCP to nobody: a peer that stops reading, and an answer that
//! must arrive although its request was not read to the end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a write may wait for a peer that does not read.
pub(crate) const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long the peer may be silent after our last byte before the connection goes.
pub(crate) const LINGER_SILENCE_MAX: Duration = Duration::from_secs(1);
/// How long the peer is heard out after our last byte, whether it is silent or not.
pub(crate) const LINGER_MAX: Duration = Duration::from_secs(10);
/// How much of the peer's is thrown away after our last byte.
pub(crate) const LINGER_BYTES_MAX: usize = 64 << 20;

/// A stream with these bounds.
///
/// Closing a socket with unread bytes in it resets the connection, and the peer may lose an answer (413, 401 …) that
/// it has not yet read. So after its last byte a wire reads on, throwing away, until the peer closes too (RFC 9112,
/// section 9.6).
pub(crate) struct Wire<T> {
    stream: T,
    stalled: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
}

struct Linger {
    silence: Pin<Box<Sleep>>,
    end: Instant,
    bytes: usize,
}

impl<T> Wire<T> {
    pub(crate) fn new(stream: T) -> Wire<T> {
        Wire { stream, stalled: None, linger: None }
    }

    /// `written`, unless it has been pending for too long.
    fn bound<O>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<O>>) -> Poll<io::Result<O>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.bound(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.bound(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wire { stream, linger, .. } = &mut *self;
        if linger.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let linger = linger.get_or_insert_with(|| Linger {
            silence: Box::pin(sleep(LINGER_SILENCE_MAX)),
            end: Instant::now() + LINGER_MAX,
            bytes: 0,
        });
        let mut scratch = [std::mem::MaybeUninit::uninit(); 8192];
        while linger.bytes < LINGER_BYTES_MAX && Instant::now() < linger.end {
            let mut thrown_away = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut thrown_away) {
                Poll::Ready(Ok(())) if !thrown_away.filled().is_empty() => {
                    linger.bytes += thrown_away.filled().len();
                    linger.silence.as_mut().reset(linger.end.min(Instant::now() + LINGER_SILENCE_MAX));
                }
                // The peer has closed, or is gone.
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(linger.silence.as_mut().poll(cx));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let begun = Instant::now();
        let written = Wire::new(ours).write_all(&[0; 64]).await;
        assert_eq!(written.expect_err("stalled").kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), WRITE_STALL_MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_left_soon_and_a_sending_one_is_heard_out() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let sending = tokio::spawn(async move {
            for _ in 0..5 {
                sleep(LINGER_SILENCE_MAX / 2).await;
                theirs.write_all(&[0; 64]).await.expect("taken");
            }
            theirs
        });
        let begun = Instant::now();
        Wire::new(ours).shutdown().await.expect("shut down");
        assert_eq!(begun.elapsed(), LINGER_SILENCE_MAX / 2 * 5 + LINGER_SILENCE_MAX);
        drop(sending.await.expect("sent"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_drips_is_not_heard_out_for_ever() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let dripping = tokio::spawn(async move {
            while theirs.write_all(b" ").await.is_ok() {
                sleep(LINGER_SILENCE_MAX / 2).await;
            }
        });
        let begun = Instant::now();
        let mut wire = Wire::new(ours);
        wire.shutdown().await.expect("shut down");
        assert_eq!(begun.elapsed(), LINGER_MAX);
        drop(wire);
        dripping.await.expect("it ends");
    }
}
