//! Programs of Debian's that tests run beside Backstamp: those of the machine, or else unpacked in the build directory, where nothing is
//! installed. `apt-get` fetches them, once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::servers::jars::target_directory;
use crate::servers::server::run_to_end;

const FETCH_TIMEOUT: Duration = Duration::from_secs(600);

/// Prometheus, with promtool beside it.
pub const PROMETHEUS: Package = Package { name: "prometheus", libraries: &[] };
/// HAProxy, with what it is linked to and a small machine may lack.
pub const HAPROXY: Package =
    Package { name: "haproxy", libraries: &["liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"] };

/// A package, and packages of libraries that it needs beside what every Debian has.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    name: &'static str,
    libraries: &'static [&'static str],
}

/// A program that can be run.
#[derive(Clone, Debug)]
pub struct Tool {
    path: PathBuf,
    libraries: Option<PathBuf>,
}

impl Tool {
    /// A command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Runs it to its end; what it printed, on both its outputs.
    ///
    /// # Panics
    ///
    /// When it fails: with what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().expect("it can be run");
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{} {arguments:?}: {text}", self.path.display());
        text
    }
}

/// A program of a package.
///
/// # Panics
///
/// When it is not there and cannot be fetched: says what is needed.
pub fn tool(package: Package, program: &str) -> Tool {
    find(package, program).unwrap_or_else(|error| panic!("{error:#}"))
}

fn find(package: Package, program: &str) -> Result<Tool> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks.
    let folders = std::env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    if let Some(path) = folders.map(|folder| folder.join(program)).find(|path| path.is_file()) {
        return Ok(Tool { path, libraries: None });
    }
    let root = unpacked(package)?;
    let path = ["usr/bin", "usr/sbin"].into_iter().map(|folder| root.join(folder).join(program));
    let path = path.into_iter().find(|path| path.is_file());
    let path = path.with_context(|| format!("package {} has no {program}", package.name))?;
    Ok(Tool { path, libraries: Some(libraries(&root)) })
}

/// Where the libraries are: a folder by the machine's kind, such as `x86_64-linux-gnu`.
fn libraries(root: &Path) -> PathBuf {
    let folders = fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten();
    let mut folders = folders.map(|entry| entry.path());
    folders.find(|path| path.to_string_lossy().ends_with("-linux-gnu")).unwrap_or_default()
}

/// The folder where the package is unpacked. One test process unpacks at a time.
fn unpacked(package: Package) -> Result<PathBuf> {
    let home = target_directory().join("servers").join(format!("debian-{}", package.name));
    fs::create_dir_all(&home)?;
    let lock = File::create(home.with_extension("lock"))?;
    lock.lock().context("the folder cannot be locked")?;
    let root = home.join("root");
    if home.join("complete").exists() {
        return Ok(root);
    }
    fs::remove_dir_all(&home)?;
    fs::create_dir_all(&root)?;
    let log = home.join("apt.log");
    let run = |program: &str, arguments: &[OsString]| -> Result<bool> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&home);
        let ended = run_to_end(command, &log, FETCH_TIMEOUT);
        ended.map(|status| status.success()).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(false),
            _ => Err(error.into()),
        })
    };
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    // Some packages are not in every Debian: those are then not needed either.
    let download = |name: &str| run("apt-get", &words(&["-o", "APT::Sandbox::User=root", "download", name]));
    if !download(package.name)? {
        let _ = run("apt-get", &words(&["update"]))?;
        if !download(package.name)? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!(
                "there is no {0} here, and apt-get does not fetch it.\nDebian and Ubuntu: apt-get install {0}\n{1}",
                package.name,
                process::tail(&said, 10)
            );
        }
    }
    for library in package.libraries {
        download(library)?;
    }
    for entry in fs::read_dir(&home)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb")
            && !run("dpkg", &["-x".into(), path.clone().into(), root.clone().into()])?
        {
            bail!("{} cannot be unpacked", path.display());
        }
    }
    fs::write(home.join("complete"), "")?;
    Ok(root)
}
