//! A `backstamp dev` of our own, on a temporary directory and free ports.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long the program may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The program beside this one: what `cargo build --release -p backstamp` leaves there.
pub(crate) fn program_beside_us() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("where this program is cannot be told")?;
    let program = here.with_file_name("backstamp");
    if !program.exists() {
        bail!(
            "{} is missing: build it by `cargo build --release -p backstamp`, or name it by --program",
            program.display()
        );
    }
    Ok(program)
}

/// A `backstamp dev` that is ready. Dropping it kills it and removes its data.
pub(crate) struct Dev {
    /// Where it takes events and serves the endpoints.
    pub(crate) url: String,
    /// Where it shows its metrics.
    pub(crate) ops_url: String,
    program: PathBuf,
    // Dropped in this order: the process ends before its data goes.
    child: Child,
    data: TempDir,
}

impl Dev {
    /// Starts `program`, without a rate limit.
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Dev> {
        let data = tempfile::Builder::new().prefix("backstamp-loadtest-").tempdir()?;
        let log_path = data.path().join("log.txt");
        let mut command = command(program);
        command
            .args(["dev", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--data"])
            .arg(data.path().join("data"))
            .env("BACKSTAMP_RATE_LIMIT", "off")
            .env("BACKSTAMP_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(File::create(&log_path)?);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("its output is ours")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(addresses) = ready_line(&line) {
                    return Ok(addresses);
                }
            }
            bail!("`backstamp dev` ended: {}", fs::read_to_string(&log_path).unwrap_or_default().trim())
        };
        let (url, ops_url) = tokio::time::timeout(READY_TIMEOUT, ready)
            .await
            .context("`backstamp dev` is not ready after a minute")??;
        Ok(Dev { url, ops_url, program: program.to_owned(), child, data })
    }

    /// Makes a key of `account`.
    pub(crate) async fn create_key(&self, account: &str, permissions: &[&str]) -> anyhow::Result<String> {
        let ops = self.ops_url.trim_start_matches("http://");
        let made = command(&self.program)
            .args(["keys", "create", "--json", "--account", account, "--permission", &permissions.join(",")])
            .args(["--ops-listen", ops, "--data"])
            .arg(self.data.path().join("data"))
            .output()
            .await?;
        if !made.status.success() {
            bail!("`backstamp keys create` failed: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        let answer: Value = serde_json::from_slice(&made.stdout)?;
        answer["key"].as_str().map(str::to_owned).context("`backstamp keys create` printed no key")
    }

    /// The number of its process.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("`backstamp dev` has ended")
    }

    /// What its data takes on disk.
    pub(crate) fn disk(&self) -> Disk {
        let data = self.data.path().join("data");
        Disk { log_bytes: disk_bytes(&data.join("log")), store_bytes: disk_bytes(&data.join("store")) }
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("`backstamp dev` ended before")?;
        Ok(())
    }
}

/// What the data of a `dev` takes on disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// The log: the events as they came.
    pub(crate) log_bytes: u64,
    /// The store: both projections, and their tallies.
    pub(crate) store_bytes: u64,
}

/// What all files below `path` take on disk: the blocks that are theirs, which may be fewer than their lengths.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// `program` with none of the settings of our own environment.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BACKSTAMP_"))
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// `backstamp dev is ready: http://ADDRESS (ops http://ADDRESS)`
fn ready_line(line: &str) -> Option<(String, String)> {
    let (_, addresses) = line.split_once(" is ready: ")?;
    let (url, ops_url) = addresses.split_once(" (ops ")?;
    Some((url.to_owned(), ops_url.trim_end_matches(')').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_both_addresses() {
        let line = "backstamp dev is ready: http://127.0.0.1:8080 (ops http://127.0.0.1:9464)";
        let want = ("http://127.0.0.1:8080".to_owned(), "http://127.0.0.1:9464".to_owned());
        assert_eq!(ready_line(line), Some(want));
        assert_eq!(ready_line("loading"), None);
    }
}
