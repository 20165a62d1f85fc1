//! What is measured: spreads of repeated figures, and what processes use of the machine.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// The unit of the times in `/proc/PID/stat`: the kernel gives them to programs in hundredths of a second, whatever its own clock.
const TICKS_PER_S: f64 = 100.0;

/// How figures that were measured again and again are spread. Each of them is one of the figures, none is made up in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// How many figures there are.
    pub(crate) count: usize,
    pub(crate) min: f64,
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of `values`, in any order; all zero where there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share).unwrap_or_default();
        Spread {
            count: sorted.len(),
            min: at(0.0),
            p10: at(0.1),
            median: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// The value that `share` of `sorted` do not exceed.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
    sorted.get(at).copied()
}

/// What a process used of the machine during a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// What it is: `backstamp ingest`, `Cassandra`.
    pub(crate) process: String,
    /// Time on a processor, in the program and in the kernel for it.
    pub(crate) cpu_s: f64,
    /// The most memory that it had at once during the measurement.
    pub(crate) memory_peak_bytes: u64,
}

impl Usage {
    /// Microseconds on a processor for each of `count` things done.
    pub(crate) fn cpu_us_per(&self, count: u64) -> f64 {
        self.cpu_s * 1e6 / count.max(1) as f64
    }
}

/// Watches what a process uses, from [`Meter::start`] on.
#[derive(Debug)]
pub(crate) struct Meter {
    process: String,
    pid: u32,
    cpu_s_begun: f64,
}

impl Meter {
    /// Begins a measurement of the process `pid`, which the results call `process`.
    ///
    /// The kernel's mark of the most memory is set back where it may be, so that a server that has run before is not charged with that.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub(crate) fn start(process: &str, pid: u32) -> io::Result<Meter> {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Ok(Meter { process: process.to_owned(), pid, cpu_s_begun: cpu_s(pid)? })
    }

    /// What it has used since.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub(crate) fn read(&self) -> io::Result<Usage> {
        Ok(Usage {
            process: self.process.clone(),
            cpu_s: cpu_s(self.pid)? - self.cpu_s_begun,
            memory_peak_bytes: memory_peak_bytes(self.pid)?,
        })
    }
}

/// How long a process has been on a processor so far: all its threads, ended ones too, in the program and in the kernel.
pub(crate) fn cpu_s(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu_s_in(&stat).ok_or_else(|| unreadable(pid, "stat"))
}

/// The most memory that a process has had at once, in bytes: its `VmHWM`.
pub(crate) fn memory_peak_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    memory_peak_in(&status).ok_or_else(|| unreadable(pid, "status"))
}

/// The name of a program may hold blanks and parentheses; what follows the last of these are numbers.
fn cpu_s_in(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let (user, system) = (times.next()?, times.next()?);
    Some((user.parse::<f64>().ok()? + system.parse::<f64>().ok()?) / TICKS_PER_S)
}

fn memory_peak_in(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    kib.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn unreadable(pid: u32, what: &str) -> io::Error {
    io::Error::other(format!("/proc/{pid}/{what} cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let spread = Spread::of((1..=100).rev().map(f64::from));
        let want = Spread { count: 100, min: 1.0, p10: 10.0, median: 50.0, p90: 90.0, p99: 99.0, max: 100.0 };
        assert_eq!(spread, want);
        assert_eq!(quantile(&[7.0], 0.1), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn the_numbers_of_a_process_are_found_behind_its_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 25 9 9 20 0 3 0 100";
        assert_eq!(cpu_s_in(stat), Some(1.75));
        assert_eq!(memory_peak_in("VmPeak:\t 9 kB\nVmHWM:\t  12 kB\n"), Some(12 * 1024));
        assert_eq!(cpu_s_in("7 (a"), None);
    }

    #[test]
    fn our_own_use_is_told() {
        let meter = Meter::start("we", std::process::id()).expect("we run");
        let usage = meter.read().expect("we run");
        assert!(usage.cpu_s >= 0.0 && usage.memory_peak_bytes > 1 << 16);
        assert!(Meter::start("nobody", u32::MAX).is_err());
    }
}
