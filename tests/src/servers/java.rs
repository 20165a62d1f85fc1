//! The Java that runs the servers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::Profile;

/// The oldest that Kafka 4 runs on, and the newest that Cassandra 5 is made for.
const VERSION: u32 = 17;

/// Options for every server: nothing left in the system's folders, and an end where memory is.
const OPTIONS: [&str; 2] = ["-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError"];
/// For tests: quick to start, light on a small machine.
const TEST_OPTIONS: [&str; 2] = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// For benchmarks: what Java takes by itself on a server, whatever it takes this machine for.
const BENCHMARK_OPTIONS: [&str; 2] = ["-XX:+UseG1GC", "-server"];

/// A Java that is new enough.
#[derive(Clone)]
pub struct Java {
    path: PathBuf,
}

impl Java {
    /// Finds `java`, or the one of `JAVA_HOME`.
    ///
    /// # Errors
    ///
    /// Without one, or with one that is too old: says how to get one.
    pub fn find() -> Result<Self> {
        let home = std::env::var_os("JAVA_HOME");
        let path = home.map_or_else(|| "java".into(), |home| PathBuf::from(home).join("bin/java"));
        let found = match Command::new(&path).arg("-version").output() {
            Err(error) => format!("`{}` cannot be run: {error}", path.display()),
            Ok(answer) => {
                let answer = String::from_utf8_lossy(&answer.stderr).into_owned();
                if major_version(&answer).is_some_and(|major| major >= VERSION) {
                    return Ok(Self { path });
                }
                format!("`{} -version` says: {}", path.display(), answer.trim())
            }
        };
        bail!(
            "real servers need Java {VERSION}; {found}\n\
             Debian and Ubuntu: apt-get install openjdk-{VERSION}-jre-headless\n\
             For tests: or name running servers in BACKSTAMP_TEST_KAFKA and BACKSTAMP_TEST_SCYLLA."
        )
    }

    /// A command that runs it in `directory` with `classpath`; the caller adds options and the main class.
    pub fn command(&self, profile: Profile, directory: &Path, classpath: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(directory).args(OPTIONS);
        command.args(match profile {
            Profile::Tests => TEST_OPTIONS,
            Profile::Benchmark => BENCHMARK_OPTIONS,
        });
        command.args(["-cp", classpath]);
        command.arg(format!("-Djava.io.tmpdir={}", directory.display()));
        command
    }
}

/// 17 of `openjdk version "17.0.15" 2025-04-15`, 1 of `java version "1.8.0_402"`.
fn major_version(answer: &str) -> Option<u32> {
    let (_, version) = answer.split_once("version \"")?;
    let digits = version.find(|c: char| !c.is_ascii_digit())?;
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major_version;

    #[test]
    fn major_version_is_read_from_what_java_says() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(major_version("Picked up OPTS\nopenjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(major_version("java version \"1.8.0_402\""), Some(1));
        assert_eq!(major_version("no such thing"), None);
    }
}
