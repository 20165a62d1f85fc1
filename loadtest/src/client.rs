//! A lean HTTP client: one connection that is kept, one request at a time. It shares the processor with the server that it measures.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::mix::Mix;
use crate::mix::shown::{Shown, View};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often a batch is sent again that was turned away for now.
const TRIES_MAX: usize = 600;

/// A server on this machine, and a key for it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its address, `127.0.0.1:8080`.
    pub(crate) address: String,
    /// A key with the permissions that are needed; none for the ops listener.
    pub(crate) key: Option<String>,
}

impl Server {
    /// The server at `url`, which is to be `http` and on the loopback interface.
    ///
    /// # Errors
    ///
    /// When it isn't.
    pub(crate) fn new(url: &str, key: Option<&str>) -> anyhow::Result<Server> {
        let address = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        ensure!(is_loopback(address), "{url} is not on this machine: only loopback addresses are asked");
        Ok(Server { address: address.to_owned(), key: key.map(str::to_owned) })
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        Ok(Connection { server: self.clone(), sender: self.handshake().await? })
    }

    async fn handshake(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await.with_context(|| self.address.clone())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; why it ended before, the next request tells.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// How many events a server's metrics say are done, whatever became of them. `self` is its ops listener.
    pub(crate) async fn events_done(&self) -> anyhow::Result<u64> {
        let answer = self.connect().await?.get("/metrics").await?;
        let text = String::from_utf8_lossy(&answer.body);
        let outcomes = text.lines().filter(|line| line.starts_with("backstamp_events_total{"));
        Ok(outcomes.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// A connection that is kept.
pub(crate) struct Connection {
    server: Server,
    sender: SendRequest<Full<Bytes>>,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Connection {
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, path, "", Bytes::new()).await
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.server.address);
        if let Some(key) = &self.server.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        if !content_type.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(Full::new(body))?;
        if self.sender.ready().await.is_err() {
            // A server may end a connection that is idle.
            self.sender = self.server.handshake().await?;
        }
        let answer = async {
            let response = self.sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(TIMEOUT, answer).await.with_context(|| format!("no answer to {path}"))?
    }

    /// What a view shows; nothing where its campaign or contact is not known yet.
    pub(crate) async fn view(&mut self, mix: &Mix, view: &View) -> anyhow::Result<Shown> {
        let path = view.path(mix);
        let answer = self.get(&path).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(Shown::default());
        }
        ensure!(answer.status.is_success(), "{path}: {}", answer.text());
        Shown::of_answer(&answer.body)
    }

    /// Posts `count` events, NDJSON, all of which are to be accepted; again, where the server has no room for them now.
    pub(crate) async fn post_events(&mut self, count: u64, body: Vec<u8>) -> anyhow::Result<()> {
        let body = Bytes::from(body);
        for _ in 0..TRIES_MAX {
            let answer =
                self.request(Method::POST, "/v1/events", "application/x-ndjson", body.clone()).await?;
            if matches!(answer.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
                tokio::time::sleep(Duration::from_secs(answer.retry_after_s().unwrap_or(1))).await;
                continue;
            }
            let accepted = format!(r#"{{"accepted":{count},"rejected":[]}}"#);
            ensure!(
                answer.status == StatusCode::ACCEPTED && answer.body == accepted,
                "a batch of {count} was answered {}",
                answer.text()
            );
            return Ok(());
        }
        bail!("the intake had no room {TRIES_MAX} times");
    }
}

impl Answer {
    fn retry_after_s(&self) -> Option<u64> {
        self.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()
    }

    fn text(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_asked() {
        let is = |url| Server::new(url, None).is_ok();
        assert!(is("http://127.0.0.1:8080/") && is("http://localhost:1") && is("http://[::1]:8080"));
        assert!(!is("http://10.0.0.1:8080") && !is("https://api.example"));
    }
}
