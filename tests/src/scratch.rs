//! Directories that go with the test process, however it ends.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// Makes an empty directory of its own for a test's data, below the system's directory for temporary files.
///
/// It is there until the test process ends, killed or not: `tempfile::TempDir` would stay behind a kill.
///
/// # Panics
///
/// When the directory cannot be made.
pub fn directory(prefix: &str) -> PathBuf {
    let path = root().join(crate::unique_name(prefix));
    fs::create_dir(&path).expect("a directory can be made below a new one");
    path
}

/// The directory that holds all others of this process.
fn root() -> &'static PathBuf {
    static ROOT: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (path, _caretaker) = ROOT.get_or_init(|| {
        let path = tempfile::Builder::new()
            .prefix("backstamp-tests-")
            .tempdir()
            .expect("the system's directory for temporary files can be written to")
            .keep();
        let caretaker = start_caretaker(&path).expect("sh can be started");
        (path, caretaker)
    });
    path
}

/// Starts a shell that waits for this process to end, then removes `path`, then ends.
///
/// It reads a pipe whose other end this process alone holds: the kernel closes that, whatever the end was like. A
/// server may still write while it is being killed, hence the repeats. It is in a group of its own so
/// that a Ctrl-C, which ends the group of the tests, does not reach it.
fn start_caretaker(path: &PathBuf) -> io::Result<Child> {
    const SCRIPT: &str = r#"
        read -r _
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            rm -rf "$1" && exit
            sleep 1
        done
    "#;
    Command::new("sh")
        .args(["-c", SCRIPT, "caretaker"])
        .arg(path)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
