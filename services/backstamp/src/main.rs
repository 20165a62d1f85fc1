//! Backstamp: the history of every e-mail. One program, a subcommand for each service and tool.

mod admin;
mod caught_up;
mod check;
mod collect;
mod dead_letters;
mod demo;
mod dev;
mod explain;
mod forget;
mod ingest;
mod keys;
mod options;
mod progress;
mod query;
mod reconcile;
mod replay;
mod run;
mod schema;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::options::LogOptions;

/// The system's allocator takes a third of the time of ingest; this one a tenth.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Check(check::Options),
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    Reconcile(reconcile::Options),
    Explain(explain::Options),
    ForgetContact(forget::Options),
    Replay(replay::Options),
}

impl Command {
    /// The name of a service; `None` for a tool, which makes no traces.
    fn service(&self) -> Option<&'static str> {
        match self {
            Command::Dev(_) => Some("dev"),
            Command::Ingest(_) => Some("ingest"),
            Command::Query(_) => Some("query"),
            Command::Collect(_) => Some("collect"),
            Command::Schema(_)
            | Command::Keys(_)
            | Command::Check(_)
            | Command::DeadLetters(_)
            | Command::Reconcile(_)
            | Command::Explain(_)
            | Command::ForgetContact(_)
            | Command::Replay(_) => None,
        }
    }
}

fn main() -> ExitCode {
    forget_empty_variables();
    let program = Program::parse();
    let traces = program.command.service().and_then(|service| program.logs.traces(service));
    let done = telemetry::logs::start(program.logs.log_format, &program.logs.log, traces.as_ref())
        .and_then(|()| run(program.command));
    telemetry::traces::finish();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes in one line; a reader that has gone is no reason to panic.
            let _ = writeln!(std::io::stderr(), "backstamp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(options) => dev::run(options).await,
        Command::Ingest(options) => ingest::run(options).await,
        Command::Query(options) => query::run(options).await,
        Command::Collect(options) => collect::run(options).await,
        Command::Schema(command) => schema::run(command).await,
        Command::Keys(options) => keys::run(options).await,
        Command::Check(options) => Box::pin(check::run(options)).await,
        Command::DeadLetters(command) => Box::pin(dead_letters::run(command)).await,
        Command::Reconcile(options) => Box::pin(reconcile::run(options)).await,
        Command::Explain(options) => Box::pin(explain::run(options)).await,
        Command::ForgetContact(options) => Box::pin(forget::run(options)).await,
        Command::Replay(options) => Box::pin(replay::run(options)).await,
    }
}

/// A variable that is set but empty counts as not set, as it comes from `${X:-}` in a compose file.
#[expect(unsafe_code, reason = "the process has one thread yet")]
fn forget_empty_variables() {
    for (name, value) in std::env::vars_os() {
        if value.is_empty() && name.as_encoded_bytes().starts_with(b"BACKSTAMP_") {
            // SAFETY: nothing reads the environment at the same time: no other thread has started.
            unsafe { std::env::remove_var(name) };
        }
    }
}
