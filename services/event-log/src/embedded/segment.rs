//! Segment files: one after another they are the log. A file's name is the number of its first record.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use timeline::Timestamp;

use super::format::{MAGIC, NoRecord, Stored, decode};

/// A segment, as far as it is durable.
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// The number of its first record.
    pub(super) first: u64,
    /// The number of the first record that is not in it.
    pub(super) end: u64,
    /// Its bytes.
    pub(super) len: u64,
    /// Where some of its records start, so that a reader need not begin at the first.
    index: Index,
}

/// What is wrong with a segment. Positions are bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum SegmentError {
    #[error("{}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: what stands at byte {position} is not what was written", .path.display())]
    Damaged { path: PathBuf, position: u64 },
}

impl Segment {
    /// Creates an empty segment in `directory` and makes its name durable.
    pub(super) fn create(directory: &Path, first: u64) -> io::Result<Segment> {
        let path = directory.join(file_name(first));
        // A file of this name can only be what an attempt that failed left: `first` is beyond all records.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        sync_directory(directory)?;
        Ok(Segment { path, file: Arc::new(file), first, end: first, len: 0, index: Index::default() })
    }

    /// Opens a segment and reads it through; the time of its last record comes with it.
    ///
    /// Where `may_be_torn`, for the last segment, a tail that was never acknowledged is cut off.
    pub(super) fn open(
        path: PathBuf,
        first: u64,
        may_be_torn: bool,
    ) -> Result<(Segment, Option<Timestamp>), SegmentError> {
        let io_error = |source| SegmentError::Io { path: path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error)?;
        let file = Arc::new(file);
        let len = file.metadata().map_err(io_error)?.len();
        let mut records = Records::new(Arc::clone(&file), 0, len);
        let mut segment =
            Segment { path: path.clone(), file, first, end: first, len: 0, index: Index::default() };
        let mut last_at = None;
        loop {
            match records.next().map_err(io_error)? {
                Step::Record(record) => {
                    segment.index.note(segment.end, segment.len);
                    segment.end += 1;
                    segment.len += record.len as u64;
                    last_at = Some(record.appended_at);
                }
                Step::End => break,
                Step::Bad => {
                    let position = segment.len;
                    let durable = durable_beyond(&segment.file, position, len).map_err(io_error)?;
                    if !may_be_torn || durable {
                        return Err(SegmentError::Damaged { path, position });
                    }
                    tracing::warn!(
                        segment = %path.display(), position, cut_off = len - position,
                        "the log's last write was not finished, and not acknowledged: it is cut off"
                    );
                    segment.file.set_len(position).map_err(io_error)?;
                    break;
                }
            }
        }
        if may_be_torn {
            // What a killed process wrote may be in the system's memory only.
            segment.file.sync_all().map_err(io_error)?;
        }
        Ok((segment, last_at))
    }

    /// Takes in what was written and synced behind it.
    pub(super) fn extend(&mut self, end: u64, len: u64, starts: impl IntoIterator<Item = (u64, u64)>) {
        for (number, position) in starts {
            self.index.note(number, position);
        }
        (self.end, self.len) = (end, len);
    }

    /// The last place known at or before record `number`: a record's number and its byte.
    pub(super) fn place_before(&self, number: u64) -> (u64, u64) {
        self.index.before(number).unwrap_or((self.first, 0))
    }
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}.log")
}

/// The number in a segment's name; `None` for other files.
pub(super) fn first_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
    (name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit())).then(|| name.parse().ok())?
}

/// Where records start: one about every [`INDEX_STEP_BYTES`].
#[derive(Default)]
struct Index(Vec<(u64, u64)>);

const INDEX_STEP_BYTES: u64 = 64 << 10;

impl Index {
    fn note(&mut self, number: u64, position: u64) {
        if self.0.last().is_none_or(|(_, last)| position >= last + INDEX_STEP_BYTES) {
            self.0.push((number, position));
        }
    }

    fn before(&self, number: u64) -> Option<(u64, u64)> {
        let after = self.0.partition_point(|(start, _)| *start <= number);
        self.0[..after].last().copied()
    }
}

/// Reads records one after another.
pub(super) struct Records {
    file: Arc<File>,
    position: u64,
    end: u64,
    /// What was read from `position` on.
    chunk: Bytes,
}

/// What comes next.
pub(super) enum Step {
    Record(Stored),
    End,
    Bad,
}

const CHUNK_BYTES: usize = 256 << 10;

impl Records {
    /// Records from byte `position` on, where one starts, up to `end`.
    pub(super) fn new(file: Arc<File>, position: u64, end: u64) -> Records {
        Records { file, position, end, chunk: Bytes::new() }
    }

    /// The byte where the next record starts.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn next(&mut self) -> io::Result<Step> {
        if self.position >= self.end {
            return Ok(Step::End);
        }
        loop {
            match decode(&self.chunk) {
                Ok(record) => {
                    self.position += record.len as u64;
                    self.chunk = self.chunk.slice(record.len..);
                    return Ok(Step::Record(record));
                }
                Err(NoRecord::Bad) => return Ok(Step::Bad),
                Err(NoRecord::Short(needed)) => {
                    let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
                    if needed > left {
                        return Ok(Step::Bad);
                    }
                    let mut chunk = vec![0; left.min(needed.max(CHUNK_BYTES))];
                    self.file.read_exact_at(&mut chunk, self.position)?;
                    self.chunk = chunk.into();
                }
            }
        }
    }
}

/// Whether a record behind `position`, where none can be read, was written when `position` was durable
/// already.
fn durable_beyond(file: &File, position: u64, len: u64) -> io::Result<bool> {
    let mut rest = vec![0; usize::try_from(len - position).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut rest, position)?;
    let rest = Bytes::from(rest);
    let starts = rest.windows(MAGIC.len()).enumerate().skip(1).filter(|(_, window)| *window == MAGIC);
    Ok(starts
        .filter_map(|(start, _)| decode(&rest.slice(start..)).ok())
        .any(|record| record.durable > position))
}
