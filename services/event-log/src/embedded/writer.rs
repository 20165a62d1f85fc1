//! The one thread that writes the log.
//!
//! It takes all calls that wait, writes their records at once, syncs, and answers. While it syncs, others
//! gather: under load a sync is shared by many calls.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use timeline::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::format::{encode, encoded_len};
use super::segment::Segment;
use super::{Clock, EmbeddedOptions, Shared};
use crate::record::Outgoing;

/// One call of `append`.
pub(super) struct Request {
    pub(super) records: Vec<Outgoing>,
    /// The reason where it failed.
    pub(super) done: oneshot::Sender<Result<(), Arc<str>>>,
    /// Room in the queue, given back with the answer.
    pub(super) _room: OwnedSemaphorePermit,
}

/// How bytes reach the disk: the system's way, or a test's.
pub(super) trait Disk: Send {
    fn write(&mut self, file: &File, bytes: &[u8], position: u64) -> io::Result<()>;
    fn sync(&mut self, file: &File) -> io::Result<()>;
}

/// The system's way.
pub(super) struct SystemDisk;

impl Disk for SystemDisk {
    fn write(&mut self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        file.write_all_at(bytes, position)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

pub(super) struct Writer {
    pub(super) directory: PathBuf,
    pub(super) options: EmbeddedOptions,
    pub(super) clock: Clock,
    pub(super) disk: Box<dyn Disk>,
    pub(super) shared: Arc<Shared>,
    /// The last segment.
    pub(super) file: Arc<File>,
    /// Its bytes, all of them durable.
    pub(super) len: u64,
    /// The number of the next record.
    pub(super) next: u64,
    /// Times do not go back, whatever the clock does.
    pub(super) last_at: Timestamp,
}

impl Writer {
    /// Answers requests until nobody can make any more.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            let mut bytes = first.bytes();
            group.push(first);
            while bytes < self.options.group_bytes_max {
                let Ok(request) = requests.try_recv() else { break };
                bytes += request.bytes();
                group.push(request);
            }
            let written = self.write(&group, bytes);
            for request in group.drain(..) {
                // Who asked may have gone away.
                let _ = request.done.send(written.clone());
            }
        }
    }

    /// Writes a group and syncs it.
    fn write(&mut self, group: &[Request], bytes: usize) -> Result<(), Arc<str>> {
        if let Some(reason) = self.shared.failed.get() {
            return Err(Arc::clone(reason));
        }
        if self.len >= self.options.segment_bytes_max {
            self.start_segment().map_err(|error| format!("a new segment cannot be started: {error}"))?;
        }
        let mut buffer = Vec::with_capacity(bytes);
        let mut starts = Vec::new();
        let mut next = self.next;
        for request in group {
            self.last_at = self.last_at.max((self.clock)());
            for record in &request.records {
                starts.push((next, self.len + buffer.len() as u64));
                encode(&mut buffer, self.len, self.last_at, record);
                next += 1;
            }
        }
        if let Err(error) = self.disk.write(&self.file, &buffer, self.len) {
            self.take_back(&error);
            return Err(format!("the log cannot be written: {error}").into());
        }
        if let Err(error) = self.disk.sync(&self.file) {
            // What is on the disk now nobody knows, and a second sync may say all is well.
            return Err(self.fail(format!("the log could not be synced, and is closed: {error}")));
        }
        self.len += buffer.len() as u64;
        self.next = next;
        self.shared.extend_last(next, self.len, starts);
        Ok(())
    }

    fn start_segment(&mut self) -> io::Result<()> {
        let segment = Segment::create(&self.directory, self.next)?;
        self.file = Arc::clone(&segment.file);
        self.len = 0;
        self.shared.push(segment);
        Ok(())
    }

    /// After a write that failed, of a full disk perhaps: nothing of it is to stay.
    fn take_back(&mut self, cause: &io::Error) {
        if let Err(error) = self.file.set_len(self.len) {
            self.fail(format!("the log could not be written ({cause}) nor cut back, and is closed: {error}"));
        }
    }

    fn fail(&self, reason: String) -> Arc<str> {
        tracing::error!("{reason}");
        Arc::clone(self.shared.failed.get_or_init(|| reason.into()))
    }
}

impl Request {
    fn bytes(&self) -> usize {
        self.records.iter().map(encoded_len).sum()
    }
}
