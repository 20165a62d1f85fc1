//! The machine that was measured on, and what was run there.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// Maven's list of Kafka's jars, and Cassandra's: where their versions stand.
const KAFKA_POM: &str = include_str!("../../../tests/servers/kafka.pom.xml");
const CASSANDRA_POM: &str = include_str!("../../../tests/servers/cassandra.pom.xml");

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Versions by name.
    pub(crate) versions: BTreeMap<String, String>,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Machine {
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse().ok());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let versions = [
            ("rustc", first_line("rustc", &["--version"])),
            ("Java", first_line("java", &["-version"])),
            ("Kafka", version_in(KAFKA_POM)),
            ("Cassandra", version_in(CASSANDRA_POM)),
        ];
        let known = |(name, version): (&str, Option<String>)| Some((name.to_owned(), version?));
        Machine {
            processor: field(&cpu, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory_bytes: memory_kib.unwrap_or(0_u64) * 1024,
            kernel: kernel.trim().split('-').next().unwrap_or_default().to_owned(),
            versions: versions.into_iter().filter_map(known).collect(),
        }
    }
}

/// What the name of a commit ends with where the program is not what the commit says.
pub(crate) const WITH_CHANGES: &str = " with changes";

/// The commit that is checked out, and whether anything differs from it.
pub(crate) fn commit() -> String {
    let commit = first_line("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed =
        first_line("git", &["status", "--porcelain", "--untracked-files=no", "--", "*.rs", "*.toml"]);
    if changed.is_some() { format!("{commit}{WITH_CHANGES}") } else { commit }
}

/// The first line that a program prints, on either output.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// The version of the first dependency of a `pom.xml`.
fn version_in(pom: &str) -> Option<String> {
    let (_, dependencies) = pom.split_once("<dependencies>")?;
    let (_, version) = dependencies.split_once("<version>")?;
    Some(version.split_once('<')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_its_versions_are_told() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 28 && !machine.kernel.is_empty());
        assert!(machine.versions["rustc"].starts_with("rustc 1."));
        assert!(machine.versions.contains_key("Kafka") && machine.versions.contains_key("Cassandra"));
    }
}
