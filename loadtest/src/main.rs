//! Loads on Backstamp, and what it makes of them. One subcommand a question, each in its file; what they share:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`decode`] | what do the rows of a raw event cost, beside reading its JSON? |
//! | [`plan`] | what must stand where for so many events a day? |
//! | [`dev`] | a `backstamp dev` of our own: started, given a key, measured, ended |
//! | [`mix`] | the events of one campaign, and what its pages must show |
//! | [`pages`] | is a total of a million exact, and what does the last page cost? |
//!
//! Everything stays on this machine: a server that is not on the loopback interface is refused.

mod decode;
mod dev;
mod mix;
mod pages;
mod plan;

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
    Pages(pages::Options),
    Plan(plan::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let program = Program::parse();
    let work = async {
        match program.command {
            Command::Decode(options) => decode::run(&options),
            Command::Pages(options) => Box::pin(pages::run(options)).await,
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
