//! Backstamp: the history of every e-mail. One program, a subcommand for each service and tool.

mod admin;
mod collect;
mod demo;
mod dev;
mod ingest;
mod keys;
mod options;
mod query;
mod run;
mod schema;

use clap::{Parser, Subcommand};

use crate::options::LogOptions;

/// The history of every e-mail that a company sends: events in, two exact timelines out.
///
/// Every option has an environment variable, shown with it.
#[derive(Parser)]
#[command(name = "backstamp", version, max_term_width = 110)]
struct Program {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: LogOptions,
}

#[derive(Subcommand)]
enum Command {
    Dev(dev::Options),
    Ingest(ingest::Options),
    Query(query::Options),
    Collect(collect::Options),
    #[command(subcommand)]
    Schema(schema::Command),
    Keys(keys::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let program = Program::parse();
    telemetry::logs::start(program.logs.log_format, &program.logs.log)?;
    match program.command {
        Command::Dev(options) => dev::run(options).await,
        Command::Ingest(options) => ingest::run(options).await,
        Command::Query(options) => query::run(options).await,
        Command::Collect(options) => collect::run(options).await,
        Command::Schema(command) => schema::run(command).await,
        Command::Keys(options) => keys::run(options).await,
    }
}
