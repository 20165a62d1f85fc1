//! The log's directory: made, locked, its segments opened.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use timeline::Timestamp;

use super::segment::{Segment, SegmentError, first_of, sync_directory};
use crate::error::LogError;

const LOCK_FILE: &str = "lock";

/// Makes the directory where it is missing, and those above it, so that they survive a crash.
pub(super) fn create(directory: &Path) -> io::Result<()> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else { return Ok(()) };
    create(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }),
    }
}

/// Keeps other processes out, until the file is closed: the system does that for a process that was killed.
pub(super) fn lock(directory: &Path) -> Result<File, LogError> {
    let path = directory.join(LOCK_FILE);
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(|error| LogError::away("open", FileError(path.clone(), error)))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(LogError::refused("open", InUse(directory.to_owned()))),
        Err(TryLockError::Error(error)) => Err(LogError::away("open", FileError(path, error))),
    }
}

/// Opens all segments; the time of the last record comes with them.
pub(super) fn open_segments(directory: &Path) -> Result<(VecDeque<Segment>, Option<Timestamp>), LogError> {
    let io_error = |error: io::Error| LogError::away("open", FileError(directory.to_owned(), error));
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        files.extend(first_of(&path).map(|first| (first, path)));
    }
    files.sort();
    let (mut segments, mut last_at) = (VecDeque::<Segment>::new(), None);
    let count = files.len();
    for (index, (first, path)) in files.into_iter().enumerate() {
        if let Some(missing) = segments.back().filter(|before| before.end != first) {
            return Err(LogError::damaged(
                "open",
                Gap { directory: directory.to_owned(), at: missing.end, first },
            ));
        }
        let (segment, at) = Segment::open(path, first, index + 1 == count).map_err(|error| match &error {
            SegmentError::Io { .. } => LogError::away("open", error),
            SegmentError::Damaged { .. } => LogError::damaged("open", error),
        })?;
        segments.push_back(segment);
        last_at = at.or(last_at);
    }
    Ok((segments, last_at))
}

#[derive(Debug, thiserror::Error)]
#[error("{}", .0.display())]
pub(super) struct FileError(pub(super) PathBuf, #[source] pub(super) io::Error);

#[derive(Debug, thiserror::Error)]
#[error("{}: another process has it open", .0.display())]
struct InUse(PathBuf);

#[derive(Debug, thiserror::Error)]
#[error("{}: records {at} to {first} are missing, or there twice", .directory.display())]
struct Gap {
    directory: PathBuf,
    at: u64,
    first: u64,
}
