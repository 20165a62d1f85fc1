//! A log in one directory, for a program that runs alone.
//!
//! Records of all topics stand in one sequence, numbered from 0, in segment files; `format` tells a record's
//! bytes. An [`append`](Appender::append) returns when its records were fsynced; calls that come together
//! share a sync. Of a crash at any moment nothing remains but a tail that was never acknowledged, which the
//! next start cuts off; anything else that is not as it was written is an error and is left alone.
//!
//! One process at a time, on Unix.

mod directory;
mod format;
mod segment;
#[cfg(feature = "testing")]
pub mod stored;
mod writer;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use timeline::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::appender::Appender;
use crate::error::LogError;
use crate::record::{Incoming, Outgoing};
use directory::FileError;
use segment::{Records, Segment, SegmentError, Step};
use writer::{Disk, Request, SystemDisk, Writer};

/// Tells the time that records are stamped with.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A log in one directory. Dropping it finishes what is being written.
pub struct EmbeddedLog {
    directory: PathBuf,
    options: EmbeddedOptions,
    shared: Arc<Shared>,
    /// Room for bytes in the queue.
    room: Arc<Semaphore>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    /// Held as long as the log is open.
    _lock: File,
}

/// Bounds of an [`EmbeddedLog`].
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedOptions {
    /// A segment that has reached this many bytes gets no more records.
    pub segment_bytes_max: u64,
    /// Bytes that are written with one sync; one call is not split.
    pub group_bytes_max: usize,
    /// Bytes of records that may wait to be written. Who has more waits for room.
    pub queue_bytes_max: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions { segment_bytes_max: 64 << 20, group_bytes_max: 8 << 20, queue_bytes_max: 64 << 20 }
    }
}

/// Calls that may wait to be written.
const QUEUE_CALLS_MAX: usize = 4096;

impl EmbeddedLog {
    /// Opens the log in `directory`, or starts one; reads it through. May block for some seconds.
    ///
    /// # Errors
    ///
    /// [`LogError::Refused`] where another process has it open; [`LogError::Damaged`] where it is not as
    /// it was written.
    pub fn open(directory: &Path, clock: Clock) -> Result<EmbeddedLog, LogError> {
        EmbeddedLog::open_with(directory, clock, EmbeddedOptions::default())
    }

    /// [`open`](EmbeddedLog::open) with bounds of one's own.
    ///
    /// # Errors
    ///
    /// As those of `open`.
    pub fn open_with(
        directory: &Path,
        clock: Clock,
        options: EmbeddedOptions,
    ) -> Result<EmbeddedLog, LogError> {
        EmbeddedLog::open_on(directory, clock, options, Box::new(SystemDisk))
    }

    fn open_on(
        directory: &Path,
        clock: Clock,
        options: EmbeddedOptions,
        disk: Box<dyn Disk>,
    ) -> Result<EmbeddedLog, LogError> {
        let io_error = |error: io::Error| LogError::away("open", FileError(directory.to_owned(), error));
        directory::create(directory).map_err(io_error)?;
        let lock = directory::lock(directory)?;
        let (mut segments, last_at) = directory::open_segments(directory)?;
        if segments.is_empty() {
            segments.push_back(Segment::create(directory, 0).map_err(io_error)?);
        }
        let last = &segments[segments.len() - 1];
        let (file, len, next) = (Arc::clone(&last.file), last.len, last.end);
        let shared = Arc::new(Shared {
            segments: Mutex::new(Segments { list: segments, cursor: None }),
            end: watch::Sender::new(next),
            failed: OnceLock::new(),
        });
        let writer = Writer {
            directory: directory.to_owned(),
            options,
            clock,
            disk,
            shared: Arc::clone(&shared),
            file,
            len,
            next,
            last_at: last_at.unwrap_or(Timestamp(i64::MIN)),
        };
        let (requests, receiver) = mpsc::channel(QUEUE_CALLS_MAX);
        let writer = thread::Builder::new()
            .name("embedded log".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(io_error)?;
        Ok(EmbeddedLog {
            directory: directory.to_owned(),
            options,
            shared,
            room: Arc::new(Semaphore::new(options.queue_bytes_max.clamp(1, Semaphore::MAX_PERMITS))),
            requests: Some(requests),
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// Reads durable records from number `from` on, up to `records_max` and until they have `bytes_max`
    /// bytes; at least one where there is one. An offset is a record's number; where records were trimmed, it
    /// starts at the first that is left. To go on where the last call ended costs no search. Blocks on the
    /// disk.
    ///
    /// # Errors
    ///
    /// [`LogError::Refused`] where the log ends before `from`: it is not the log that `from` was read in.
    /// [`LogError::Damaged`] where a record is not as it was written.
    pub fn read(&self, from: u64, records_max: usize, bytes_max: usize) -> Result<Vec<Incoming>, LogError> {
        let end = self.end_offset();
        if from > end {
            return Err(LogError::refused("read", BeyondEnd { from, end }));
        }
        let (mut records, mut bytes) = (Vec::new(), 0);
        let is_full = |count: usize, bytes: usize| count >= records_max.max(1) || bytes >= bytes_max.max(1);
        let mut next = from;
        while next < end && !is_full(records.len(), bytes) {
            let place = self.shared.segments().place(next);
            next = next.max(place.first);
            let mut number = place.number;
            let mut stored = Records::new(place.file, place.position, place.len);
            while number < place.end && !is_full(records.len(), bytes) {
                match stored.next() {
                    Ok(Step::Record(record)) => {
                        if number >= next {
                            let record = record.into_incoming(number);
                            bytes += record.size();
                            records.push(record);
                        }
                        number += 1;
                    }
                    Ok(Step::End | Step::Bad) => {
                        let (path, position) = (place.path, stored.position());
                        return Err(LogError::damaged("read", SegmentError::Damaged { path, position }));
                    }
                    Err(source) => {
                        return Err(LogError::away("read", SegmentError::Io { path: place.path, source }));
                    }
                }
            }
            next = number;
            self.shared.segments().cursor =
                Some(Cursor { segment: place.first, number, position: stored.position() });
        }
        Ok(records)
    }

    /// The number that the next record gets: all below it are durable.
    pub fn end_offset(&self) -> u64 {
        *self.shared.end.borrow()
    }

    /// The number of the first record that is there, or would be.
    pub fn first_offset(&self) -> u64 {
        self.shared.segments().list.front().map_or(0, |segment| segment.first)
    }

    /// Waits until record `offset` is durable.
    pub async fn wait_beyond(&self, offset: u64) {
        // It cannot be closed while `self` is there.
        let _ = self.shared.end.subscribe().wait_for(|end| *end > offset).await;
    }

    /// Deletes the segments whose records are all below `offset`, but for the last; how many.
    ///
    /// # Errors
    ///
    /// When a file cannot be deleted. It is no longer read, and is there again after the next start.
    pub fn trim(&self, offset: u64) -> Result<usize, LogError> {
        let trimmed = self.shared.segments().take_below(offset);
        // From the first on: whatever is left after a crash is one sequence.
        for segment in &trimmed {
            fs::remove_file(&segment.path)
                .map_err(|error| LogError::away("trim", FileError(segment.path.clone(), error)))?;
        }
        if !trimmed.is_empty() {
            segment::sync_directory(&self.directory)
                .map_err(|error| LogError::away("trim", FileError(self.directory.clone(), error)))?;
        }
        Ok(trimmed.len())
    }
}

#[async_trait]
impl Appender for EmbeddedLog {
    async fn append(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        if !records.iter().all(format::fits) {
            return Err(LogError::refused("append", TooLong));
        }
        let bytes: usize = records.iter().map(format::encoded_len).sum();
        // A call that is longer than the queue takes all of it.
        let wanted = bytes.clamp(1, self.options.queue_bytes_max.max(1));
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(wanted).await.map_err(|_| closed())?;
        let (done, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        requests.send(Request { records, done, _room: room }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?.map_err(|reason| LogError::away("append", reason.as_ref()))
    }

    async fn check(&self) -> Result<(), LogError> {
        match self.shared.failed.get() {
            Some(reason) => Err(LogError::away("check", reason.as_ref())),
            None => Ok(()),
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // Its panic has been shown.
            let _ = writer.join();
        }
    }
}

/// What the writer and the readers share.
struct Shared {
    segments: Mutex<Segments>,
    end: watch::Sender<u64>,
    /// Set where nothing more can be written until the log is opened again.
    failed: OnceLock<Arc<str>>,
}

struct Segments {
    /// In their order, without gaps; the last is the one that is written.
    list: VecDeque<Segment>,
    /// Where the last reader stopped.
    cursor: Option<Cursor>,
}

#[derive(Clone, Copy)]
struct Cursor {
    segment: u64,
    number: u64,
    position: u64,
}

/// Where to start reading: byte `position` of a file, where record `number` stands.
struct Place {
    path: PathBuf,
    file: Arc<File>,
    /// The first record of the segment, the end of its records and of its bytes.
    first: u64,
    end: u64,
    len: u64,
    number: u64,
    position: u64,
}

impl Shared {
    fn segments(&self) -> MutexGuard<'_, Segments> {
        // Whole after every statement.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, segment: Segment) {
        self.segments().list.push_back(segment);
    }

    fn extend_last(&self, end: u64, len: u64, starts: Vec<(u64, u64)>) {
        if let Some(last) = self.segments().list.back_mut() {
            last.extend(end, len, starts);
        }
        self.end.send_replace(end);
    }
}

impl Segments {
    /// Where to find record `number`, or the first behind it that is left.
    fn place(&self, number: u64) -> Place {
        let index = self.list.partition_point(|segment| segment.end <= number).min(self.list.len() - 1);
        let segment = &self.list[index];
        let known = self.cursor.filter(|cursor| cursor.segment == segment.first && cursor.number == number);
        let (number, position) =
            known.map_or_else(|| segment.place_before(number), |cursor| (cursor.number, cursor.position));
        Place {
            path: segment.path.clone(),
            file: Arc::clone(&segment.file),
            first: segment.first,
            end: segment.end,
            len: segment.len,
            number,
            position,
        }
    }

    fn take_below(&mut self, offset: u64) -> Vec<Segment> {
        let below = self.list.partition_point(|segment| segment.end <= offset);
        self.list.drain(..below.min(self.list.len() - 1)).collect()
    }
}

fn closed() -> LogError {
    LogError::away("append", "the log is closed")
}

#[derive(Debug, thiserror::Error)]
#[error("the log ends at record {end}, before {from}: it is another log, or parts of it were deleted")]
struct BeyondEnd {
    from: u64,
    end: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("a record is longer than 64 MiB")]
struct TooLong;

#[cfg(test)]
mod tests;
