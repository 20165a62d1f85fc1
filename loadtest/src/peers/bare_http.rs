//! A web server that always answers the same bytes: what serving over HTTP costs when nothing has to be found out.
//!
//! It is a process of its own, this program under a subcommand, so that its use of the machine can be told from the load's.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::routing::get;
use axum::serve::ListenerExt;
use clap::Args;
use tokio::net::TcpListener;

use super::servers::Service;
use backstamp_tests::scratch;

/// Answers the same to every request for a page, until it is killed.
#[derive(Args)]
pub(crate) struct Options {
    /// The file whose bytes are the body.
    #[arg(long)]
    body: PathBuf,
    /// A header of the answer, `name: value`; any number of them.
    #[arg(long)]
    header: Vec<String>,
}

/// Serves until it is killed. Says where when it is ready.
#[expect(clippy::print_stdout, reason = "who started it reads there where it is")]
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let body =
        fs::read(&options.body).with_context(|| format!("{} cannot be read", options.body.display()))?;
    let headers = options.header.iter().map(|header| parse_header(header)).collect::<anyhow::Result<_>>()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("loadtest bare-http is ready: http://{}", listener.local_addr()?);
    // As our own server does: an answer is one write, waiting to fill a packet only delays it.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router(headers, body.into())).await?;
    Ok(())
}

fn router(headers: HeaderMap, body: Bytes) -> Router {
    let answer = move || async move { (headers, body) };
    Router::new()
        .route("/v1/campaigns/{id}/events", get(answer.clone()))
        .route("/contacts/{uuid}/events", get(answer))
}

fn parse_header(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').with_context(|| format!("'{text}' is no header"))?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct BareHttp {
    /// Where it serves, `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    service: Service,
}

impl BareHttp {
    /// Starts one that answers `body` with `headers`, on the paths of both endpoints. Leave out of `headers` what is the connection's:
    /// date, content-length, transfer-encoding, connection.
    pub(crate) async fn start(headers: &[(&str, &str)], body: &[u8]) -> anyhow::Result<BareHttp> {
        let file = scratch::directory("bare-http").join("body");
        fs::write(&file, body)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare-http").arg("--body").arg(&file);
        for (name, value) in headers {
            command.arg("--header").arg(format!("{name}: {value}"));
        }
        let service = Service::start(command).await?;
        let url = service.url.clone().context("it says where it is")?;
        Ok(BareHttp { url, service })
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_page_is_answered_alike() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let headers = [parse_header("x-request-id: 7").expect("a header")].into_iter().collect();
        let serving = tokio::spawn(axum::serve(listener, router(headers, "{\"a\":1}".into())).into_future());
        for path in ["v1/campaigns/cmp_1/events?page=7", "contacts/5a250440/events"] {
            let answer = reqwest::get(format!("http://{address}/{path}")).await.expect("it answers");
            assert_eq!(answer.headers()["x-request-id"], "7");
            assert_eq!(answer.text().await.expect("a body"), "{\"a\":1}");
        }
        serving.abort();
    }

    #[test]
    fn a_header_has_a_name() {
        assert!(parse_header("no header").is_err());
    }
}
