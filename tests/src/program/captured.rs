//! What a process prints, read while it runs so that it never waits for us.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

const BYTES_MAX: usize = 4 << 20;

/// One of a process's two outputs. Of more than 4 MiB, the later half is kept.
pub(super) struct Captured {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    /// Reads `pipe` to its end, on a thread of its own.
    pub(super) fn new(pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // An error is an end: there is nothing more to keep.
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                keep(
                    &mut kept.lock().unwrap_or_else(PoisonError::into_inner),
                    &String::from_utf8_lossy(&line),
                );
                line.clear();
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// The whole lines so far.
    pub(super) fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything. To be asked when the process has ended.
    pub(super) fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a reader does not panic");
        }
        self.text()
    }
}

fn keep(text: &mut String, line: &str) {
    text.push_str(line);
    if text.len() > BYTES_MAX {
        let half = text.ceil_char_boundary(text.len() / 2);
        let cut = text[half..].find('\n').map_or(half, |at| half + at + 1);
        text.drain(..cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_is_the_end() {
        let mut text = String::new();
        for number in 0..1_000_000 {
            keep(&mut text, &format!("line {number}\n"));
        }
        assert!(text.len() <= BYTES_MAX);
        assert!(text.starts_with("line ") && text.ends_with("line 999999\n"));
    }
}
