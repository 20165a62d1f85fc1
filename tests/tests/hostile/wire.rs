//! A connection whose every byte is ours.

use std::time::Duration;

use backstamp_tests::stack::PATIENCE;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// A connection to a server.
pub(super) struct Wire(BufReader<TcpStream>);

/// An answer that has a length.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Wire {
    /// Connects to `http://HOST:PORT`.
    pub(super) async fn to(url: &str) -> Wire {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).await.expect("connected");
        stream.set_nodelay(true).expect("no delay");
        Wire(BufReader::new(stream))
    }

    /// Connects, with next to no room for answers.
    pub(super) async fn narrow_to(url: &str) -> Wire {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let address = url.trim_start_matches("http://").parse().expect("an address");
        Wire(BufReader::new(socket.connect(address).await.expect("connected")))
    }

    /// Sends bytes, unless the server has gone: returns whether it took them.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.get_mut().write_all(bytes.as_ref()).await.is_ok()
    }

    /// The next answer that is no `100 Continue`; `None` where the server has closed.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        loop {
            let answer = timeout(PATIENCE, self.read()).await.expect("an answer or an end")?;
            if answer.status != 100 {
                return Some(answer);
            }
        }
    }

    /// Every answer until the server closes, which it must.
    pub(super) async fn answers(mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(answer) = self.answer().await {
            answers.push(answer);
        }
        answers
    }

    /// Sends `drop` again and again until the server has gone. Returns what it said meanwhile.
    pub(super) async fn drip(self, drop: &[u8], every: Duration) -> String {
        let (mut reads, mut writes) = self.0.into_inner().into_split();
        let reading = tokio::spawn(async move {
            let mut said = Vec::new();
            // An end by a reset says no less.
            let _ = reads.read_to_end(&mut said).await;
            String::from_utf8_lossy(&said).into_owned()
        });
        while writes.write_all(drop).await.is_ok() {
            tokio::time::sleep(every).await;
        }
        reading.await.expect("it does not panic")
    }

    /// Waits until the server has closed.
    pub(super) async fn end(mut self) {
        let mut scratch = [0; 4096];
        while self.0.read(&mut scratch).await.is_ok_and(|read| read > 0) {}
    }

    async fn read(&mut self) -> Option<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.ok()?;
        Some(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}
