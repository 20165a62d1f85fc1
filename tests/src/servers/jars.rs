//! Jars: fetched by Maven to the build directory, once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::server::run_to_end;
use crate::process;

const FETCH_TIMEOUT: Duration = Duration::from_secs(600);

/// The folder of the jars that `pom` asks for, fetched where they are not all there.
///
/// One test process fetches at a time: Maven's own cache does not bear more, and the others then find theirs.
///
/// # Errors
///
/// Where there is no Maven, or it cannot fetch them: says how to get it, or what it said.
pub fn fetch(name: &str, pom: &str) -> Result<PathBuf> {
    let servers = target_directory().join("servers");
    fs::create_dir_all(&servers)?;
    let lock = File::create(servers.join("lock"))?;
    lock.lock().context("the jars' folder cannot be locked")?;

    let home = servers.join(name);
    let jars = home.join("jars");
    let stamp = home.join("complete");
    let is_complete = || Ok::<_, io::Error>(fs::read_to_string(&stamp).ok() == Some(contents(pom, &jars)?));
    if jars.is_dir() && is_complete()? {
        return Ok(jars);
    }

    // The stamp comes last: whatever is interrupted before is fetched again.
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::create_dir_all(&jars)?;
    copy_dependencies(&home, pom, &jars)?;
    fs::write(&stamp, contents(pom, &jars)?)?;
    Ok(jars)
}

/// What the stamp holds when nothing is missing: the pom, and each jar with its size.
fn contents(pom: &str, jars: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(jars)? {
        let entry = entry?;
        lines.push(format!("{} {}", entry.file_name().display(), entry.metadata()?.len()));
    }
    lines.sort();
    Ok(format!("{pom}\n{}\n", lines.join("\n")))
}

fn copy_dependencies(home: &Path, pom: &str, jars: &Path) -> Result<()> {
    let pom_file = home.join("pom.xml");
    fs::write(&pom_file, pom)?;
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "--file"]).arg(&pom_file);
    maven.arg("dependency:copy-dependencies").arg(format!("-DoutputDirectory={}", jars.display()));

    let log = home.join("mvn.log");
    match run_to_end(maven, &log, FETCH_TIMEOUT) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("mvn cannot fetch the jars ({status}):\n{}", process::tail(&said, 20))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "real servers need Maven once, to fetch their jars, and there is no `mvn` here.\n\
             Debian and Ubuntu: apt-get install maven\n\
             For tests: or name running servers in BACKSTAMP_TEST_KAFKA and BACKSTAMP_TEST_SCYLLA."
        ),
        Err(error) => Err(error).context("mvn cannot be run"),
    }
}

/// Where cargo builds to; a relative path is taken from the workspace.
pub(crate) fn target_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("").join(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_jar_or_another_pom_is_incomplete() {
        let jars = crate::scratch::directory("jars");
        fs::write(jars.join("a.jar"), "a").expect("can be written");
        fs::write(jars.join("b.jar"), "b").expect("can be written");
        let all = contents("pom", &jars).expect("can be read");
        assert_eq!(all, "pom\na.jar 1\nb.jar 1\n");
        assert_ne!(all, contents("other pom", &jars).expect("can be read"));
        fs::remove_file(jars.join("a.jar")).expect("can be removed");
        assert_ne!(all, contents("pom", &jars).expect("can be read"));
    }
}
