//! Connections: how many, how long, and how they end. HTTP/1.1, with keep-alive.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use telemetry::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::wire::Wire;

/// The bounds of a listener.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How many connections there are at a time. More wait in the system's queue.
    pub connections_max: usize,
    /// How long a connection may take to send a request's headers, or be idle between two requests.
    pub header_timeout: Duration,
    /// How large a request's headers may be, in bytes.
    pub header_bytes_max: usize,
    /// How long requests that have begun may go on when the process stops.
    pub drain_timeout: Duration,
}

impl Default for Bounds {
    /// What [`serve`] uses.
    fn default() -> Bounds {
        Bounds {
            connections_max: 4096,
            header_timeout: Duration::from_secs(30),
            header_bytes_max: 64 << 10,
            drain_timeout: Duration::from_secs(9),
        }
    }
}

/// Serves `router` on `listener` until `shutdown` begins and every request that had begun is answered.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) {
    serve_within(listener, router, shutdown, Bounds::default()).await;
}

/// [`serve`], within bounds of one's own.
pub async fn serve_within(listener: TcpListener, router: Router, shutdown: Shutdown, bounds: Bounds) {
    let slots = Arc::new(Semaphore::new(bounds.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.expect("it is never closed");
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = shutdown.begun() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = converse(stream, router.clone(), shutdown.clone(), bounds.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => pause_after(&error).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(bounds.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting connections off that do not end");
        connections.shutdown().await;
    }
}

/// One connection, from its first request to its last.
async fn converse(stream: TcpStream, router: Router, shutdown: Shutdown, bounds: Bounds) {
    // An answer is one or two writes: waiting to fill a packet only delays it.
    let _ = stream.set_nodelay(true);
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            // Without a timer the time-out would not work.
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.header_timeout)
            .max_buf_size(bounds.header_bytes_max)
            .keep_alive(true)
            .serve_connection(TokioIo::new(Wire::new(stream)), TowerToHyperService::new(router))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// A connection that broke before it was accepted is nothing; when files are used up, trying again at once would only
/// spin.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    struct Served {
        address: SocketAddr,
        shutdown: Shutdown,
        /// Lets `/slow` answer.
        go: Arc<Notify>,
        ended: JoinHandle<()>,
    }

    async fn start(bounds: Bounds) -> Served {
        let go = Arc::new(Notify::new());
        let slow = {
            let go = go.clone();
            async move || {
                go.notified().await;
                "slow\n"
            }
        };
        let router = Router::new()
            .route("/", get(async || "quick\n"))
            .route("/slow", get(slow))
            .route("/refuse", post(async || StatusCode::PAYLOAD_TOO_LARGE));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, shutdown) = (listener.local_addr().expect("an address"), Shutdown::new());
        let ended = tokio::spawn(serve_within(listener, router, shutdown.clone(), bounds));
        Served { address, shutdown, go, ended }
    }

    async fn send(address: SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    }

    /// Everything until the connection ends, which it must soon.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(5), read).await.expect("in time").expect("whole");
        text
    }

    async fn line(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 15];
        stream.read_exact(&mut bytes).await.expect("a status line");
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn headers_that_do_not_end_end_the_connection() {
        let served = start(Bounds { header_timeout: Duration::from_millis(100), ..Bounds::default() }).await;
        assert_eq!(rest(send(served.address, "GET / HTTP/1.1\r\nHost: a\r\n").await).await, "");
        let idle = rest(send(served.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await).await;
        assert!(idle.ends_with("quick\n"), "{idle}");
    }

    #[tokio::test]
    async fn stopping_answers_what_has_begun_and_takes_nothing_new() {
        let served = start(Bounds::default()).await;
        let idle = send(served.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut begun = send(served.address, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.shutdown.begin();
        assert!(rest(idle).await.ends_with("quick\n"));
        assert!(TcpStream::connect(served.address).await.is_err());
        served.go.notify_one();
        assert_eq!(line(&mut begun).await, "HTTP/1.1 200 OK");
        assert!(rest(begun).await.ends_with("slow\n"));
        served.ended.await.expect("ended");
    }

    #[tokio::test]
    async fn what_does_not_end_is_cut_off() {
        let served = start(Bounds { drain_timeout: Duration::from_millis(100), ..Bounds::default() }).await;
        let begun = send(served.address, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.shutdown.begin();
        served.ended.await.expect("ended");
        assert_eq!(rest(begun).await, "");
    }

    #[tokio::test]
    async fn more_connections_than_allowed_wait() {
        let served = start(Bounds { connections_max: 1, ..Bounds::default() }).await;
        let mut first = send(served.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        line(&mut first).await;
        let mut second = send(served.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let early = tokio::time::timeout(Duration::from_millis(100), second.peek(&mut [0])).await;
        assert!(early.is_err(), "answered while the first was there");
        drop(first);
        assert_eq!(line(&mut second).await, "HTTP/1.1 200 OK");
    }

    #[tokio::test]
    async fn an_answer_arrives_although_the_body_was_not_read() {
        let served = start(Bounds::default()).await;
        let head = format!("POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 16 << 20);
        let mut stream = send(served.address, &head).await;
        for _ in 0..16 {
            stream.write_all(&vec![b' '; 1 << 20]).await.expect("not reset");
        }
        assert!(rest(stream).await.starts_with("HTTP/1.1 413"));
    }
}
