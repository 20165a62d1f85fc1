//! A disk that is full when a test says so, for a server of its own: `servers/full_disk.c`, preloaded into the server,
//! fails its writes with ENOSPC. It needs no rights and no file system, only the C compiler that the build needs anyway.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::scratch;

const SOURCE: &str = include_str!("../servers/full_disk.c");

/// A disk of one server, with room or without.
#[derive(Debug)]
pub struct FullDisk {
    library: PathBuf,
    flag: PathBuf,
}

impl FullDisk {
    /// A disk with room.
    ///
    /// # Panics
    ///
    /// Where `cc` does not compile the library.
    pub fn new() -> Self {
        let directory = scratch::directory("full-disk");
        let (source, library) = (directory.join("full_disk.c"), directory.join("full_disk.so"));
        fs::write(&source, SOURCE).expect("a new directory can be written to");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .expect("cc can be run");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Self { library, flag: directory.join("full") }
    }

    /// What the server's environment needs.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &PathBuf| path.display().to_string();
        let root = self.flag.parent().and_then(|directory| directory.parent()).expect("it has a parent");
        vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            ("FULL_DISK_FLAG".to_owned(), text(&self.flag)),
            ("FULL_DISK_UNDER".to_owned(), text(&root.to_path_buf())),
        ]
    }

    /// There is no room from now on.
    ///
    /// # Panics
    ///
    /// Where the test's own directory cannot be written to.
    pub fn fill(&self) {
        fs::write(&self.flag, b"").expect("a directory of ours can be written to");
    }

    /// There is room from now on.
    pub fn clear(&self) {
        // There may have been room before.
        let _ = fs::remove_file(&self.flag);
    }
}

impl Default for FullDisk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_and_takes_it_again_later() {
        let disk = FullDisk::new();
        let file = scratch::directory("on-full-disk").join("file");
        let write = || {
            let mut command = Command::new("truncate");
            command.args(["-s", "10"]).arg(&file).envs(disk.environment());
            command.output().expect("truncate can be run")
        };
        assert!(write().status.success());
        disk.fill();
        let refused = write();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("No space left on device"), "{said}");
        disk.clear();
        assert!(write().status.success());
    }
}
