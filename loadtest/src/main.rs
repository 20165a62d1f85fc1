//! Loads on Backstamp, and what it makes of them. One subcommand a question, each in its file; what they share:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`produce`] | a believable mix of events, at a rate or flat out, to Kafka, the HTTP intake or standard output |
//! | [`read`] | filters and pages at a rate, from when each was due |
//! | [`compare`] | everything that is promised, measured beside what people use today, a file a phase; [`report`] writes it down |
//! | [`peers`] | what is measured beside ours: Kafka Connect, the bare driver, PostgreSQL, a bare web server |
//! | [`decode`] | what do the rows of a raw event cost, beside reading its JSON? |
//! | [`plan`] | what must stand where for so many events a day? |
//! | [`mix`] | the events, made from a seed and a number, and what must show of them |
//! | [`views`] | the pages that are measured, and what each must show |
//! | [`schedule`] | when what is to be done is due |
//! | [`client`], [`intake`], [`publish`] | one connection; events over HTTP, and into Kafka |
//! | [`dev`] | a `backstamp dev` of our own: started, given a key, measured, ended |
//! | [`measure`] | spreads of figures, and what processes use |
//!
//! Everything stays on this machine: a server that is not on the loopback interface is refused.

mod client;
mod compare;
mod decode;
mod dev;
mod intake;
mod measure;
mod mix;
mod options;
mod peers;
mod plan;
mod produce;
mod progress;
mod publish;
mod read;
mod report;
mod schedule;
mod views;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Loads on Backstamp, measured.
#[derive(Parser)]
#[command(name = "loadtest", version, max_term_width = 110)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Decode(decode::Options),
    Produce(produce::Options),
    Peer(peers::Options),
    #[command(hide = true)]
    BareHttp(peers::bare_http::Options),
    Read(read::Options),
    Compare(compare::Options),
    Plan(plan::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let program = Program::parse();
    let work = async {
        match program.command {
            Command::Decode(options) => decode::run(&options),
            Command::Produce(options) => Box::pin(produce::run(options)).await,
            Command::Peer(options) => Box::pin(peers::run(options)).await,
            Command::BareHttp(options) => {
                Box::pin(peers::bare_http::run(options)).await.map(|()| ExitCode::SUCCESS)
            }
            Command::Read(options) => Box::pin(read::run(options)).await,
            Command::Compare(options) => Box::pin(compare::run(options)).await,
            Command::Plan(options) => plan::run(options),
        }
    };
    // Dropped on a signal, the work takes the process that it started along.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        _ = terminate.recv() => anyhow::bail!("stopped by SIGTERM"),
        _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped by SIGINT"),
    }
}
