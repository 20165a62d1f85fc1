//! A TCP proxy that can be told to misbehave: it swallows replies, resets connections, or holds everything back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

const READ_BYTES: usize = 16 * 1024;
/// Pieces that are under way in one direction of a connection.
const PIECES_MAX: usize = 1024;

/// A proxy on a port of 127.0.0.1. Its connections live on a thread of its own, whichever test made it.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<Option<SocketAddr>>,
    mode: watch::Sender<Mode>,
    /// Counts the times that all connections were reset.
    resets: watch::Sender<u64>,
    /// What is looked for in what goes to the server, until it is found.
    watched: Mutex<Option<Vec<u8>>>,
    /// Bytes of replies that were swallowed.
    swallowed: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mode {
    swallows_replies: bool,
    delay: Duration,
}

impl Proxy {
    /// A proxy that listens, and leads nowhere until it is told [where](Self::lead_to).
    ///
    /// # Panics
    ///
    /// Where it cannot listen.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("a listener has an address").port();
        let shared = Arc::new(Shared {
            target: Mutex::default(),
            mode: watch::Sender::default(),
            resets: watch::Sender::default(),
            watched: Mutex::default(),
            swallowed: AtomicU64::new(0),
        });
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(serve(listener, served));
        });
        Self { port, shared }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// New connections go to `address` from now on.
    ///
    /// # Panics
    ///
    /// Where it is no `IP:PORT`.
    pub fn lead_to(&self, address: &str) {
        let address = address.parse().expect("an address");
        *locked(&self.shared.target) = Some(address);
    }

    /// What the server answers is swallowed from now on: what it was asked is done, and nobody is told.
    pub fn swallow_replies(&self) {
        self.shared.mode.send_modify(|mode| mode.swallows_replies = true);
    }

    /// Everything takes so much longer from now on, each way.
    pub fn delay(&self, delay: Duration) {
        self.shared.mode.send_modify(|mode| mode.delay = delay);
    }

    /// Resets every connection.
    pub fn reset_all(&self) {
        self.shared.resets.send_modify(|resets| *resets += 1);
    }

    /// Behaves from now on. Connections whose replies were swallowed are reset: what follows in them would make no sense.
    pub fn behave(&self) {
        let swallowed = self.shared.mode.send_replace(Mode::default()).swallows_replies;
        if swallowed {
            self.reset_all();
        }
    }

    /// Looks from now on for `text` in what goes to the server.
    pub fn watch_for(&self, text: &str) {
        *locked(&self.shared.watched) = Some(text.as_bytes().to_vec());
    }

    /// Whether what is [looked for](Self::watch_for) has gone to the server.
    pub fn has_seen(&self) -> bool {
        locked(&self.shared.watched).is_none()
    }

    /// Bytes of replies that were swallowed so far.
    pub fn bytes_swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::Relaxed)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    listener.set_nonblocking(true).expect("a listener can be set up");
    let listener = TcpListener::from_std(listener).expect("a listener can be registered");
    loop {
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(converse(client, Arc::clone(&shared)));
        }
    }
}

/// One connection, until either side ends it or all are reset.
async fn converse(client: TcpStream, shared: Arc<Shared>) {
    let mut resets = shared.resets.subscribe();
    let target = *locked(&shared.target);
    let Some(target) = target else { return };
    let Ok(server) = TcpStream::connect(target).await else { return };
    for stream in [&client, &server] {
        // It is a proxy's place to add no delay that it was not told to.
        let _ = stream.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let sides = async {
        tokio::select! {
            _ = carry(&from_client, &to_server, &shared, Way::Asked) => {}
            _ = carry(&from_server, &to_client, &shared, Way::Answered) => {}
        }
    };
    tokio::select! {
        () = sides => {}
        _ = resets.changed() => {
            for half in [&to_client, &to_server] {
                let _ = half.as_ref().set_zero_linger();
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Asked,
    Answered,
}

/// Carries one direction, each piece after the delay that there was when it came.
async fn carry(from: &OwnedReadHalf, to: &OwnedWriteHalf, shared: &Shared, way: Way) -> io::Result<()> {
    let (pieces, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let read = async {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let bytes = read_some(from, &mut buffer).await?;
            if bytes == 0 {
                return io::Result::Ok(());
            }
            let mode = *shared.mode.borrow();
            if way == Way::Answered && mode.swallows_replies {
                shared.swallowed.fetch_add(bytes as u64, Ordering::Relaxed);
                continue;
            }
            let piece = (Instant::now() + mode.delay, buffer[..bytes].to_vec());
            if pieces.send(piece).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            write_all(to, &piece).await?;
            if way == Way::Asked {
                locked(&shared.watched)
                    .take_if(|text| piece.windows(text.len()).any(|window| window == text));
            }
        }
        io::Result::Ok(())
    };
    tokio::select! {
        ended = read => ended,
        ended = write => ended,
    }
}

async fn read_some(from: &OwnedReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

async fn write_all(to: &OwnedWriteHalf, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        to.writable().await?;
        match to.try_write(piece) {
            Ok(written) => piece = &piece[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers each byte with the next one, and says how many it was asked.
    async fn server() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (asked, count) = watch::channel(0);
        tokio::spawn(async move {
            let asked = Arc::new(asked);
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = Arc::clone(&asked);
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        asked.send_modify(|asked| *asked += 1);
                        if stream.write_u8(byte + 1).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (address, count)
    }

    #[tokio::test]
    async fn it_carries_swallows_and_resets() {
        let (address, mut asked) = server().await;
        let proxy = Proxy::start();
        proxy.lead_to(&address);
        let mut stream = TcpStream::connect(proxy.address()).await.expect("it listens");
        stream.write_u8(1).await.expect("written");
        assert_eq!(stream.read_u8().await.expect("an answer"), 2);
        proxy.swallow_replies();
        stream.write_u8(7).await.expect("written");
        asked.wait_for(|asked| *asked == 2).await.expect("it is asked");
        while proxy.bytes_swallowed() == 0 {
            tokio::task::yield_now().await;
        }
        proxy.behave();
        let broken = stream.read_u8().await.expect_err("reset");
        assert!(
            matches!(broken.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof),
            "{broken}"
        );
        let mut next = TcpStream::connect(proxy.address()).await.expect("it listens");
        proxy.delay(Duration::from_millis(20));
        let before = Instant::now();
        next.write_u8(3).await.expect("written");
        assert_eq!(next.read_u8().await.expect("an answer"), 4);
        assert!(before.elapsed() >= Duration::from_millis(40));
    }
}
