//! Builds the program, as the tests themselves are built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process;

/// The program's path. It is built when first asked for, in this process: cargo makes what is already built short.
///
/// # Panics
///
/// When it does not build, with what the compiler said.
pub(super) async fn program() -> &'static Path {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || PROGRAM.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match tokio::task::spawn_blocking(build).await.expect("building does not panic") {
        Ok(path) => path,
        Err(message) => panic!("{message}"),
    }
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from(env!("CARGO")));
    let mut command = Command::new(cargo);
    command.args(["build", "--package", "backstamp", "--bin", "backstamp", "--profile", &profile()]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(""));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output =
        process::spawn(command).and_then(|cargo| cargo.wait_with_output()).context("cargo cannot be run")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the program does not build ({}):\n{log}", output.status);
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo names no executable")
}

/// The profile that this very test is built with, by the folder that cargo has put it in.
fn profile() -> String {
    let test = std::env::current_exe().unwrap_or_default();
    let folder = test.parent().filter(|folder| folder.ends_with("deps")).and_then(Path::parent);
    match folder.and_then(Path::file_name).and_then(|name| name.to_str()) {
        None | Some("debug") => "dev".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// The program's path in cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| {
            message["reason"] == "compiler-artifact" && message["target"]["name"] == "backstamp"
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_executable_is_found_among_the_messages() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"timeline"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"backstamp"},"executable":"/t/debug/backstamp"}
            {"reason":"build-finished","success":true}
        "#;
        assert_eq!(executable(messages).as_deref(), Some("/t/debug/backstamp".as_ref()));
        assert_eq!(executable("{}\nnot json"), None);
    }
}
