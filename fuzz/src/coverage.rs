//! What code a run reached. `fuzz/instrument` has the compiler count, in a byte, how often each edge was taken; the bytes are
//! handed over at the start of the program. Without it nothing is, and what is new is told by what came of a run.

use std::sync::{Mutex, PoisonError};

/// Where counters stand: addresses of the first and behind the last.
static REGIONS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// The compiler's code calls it at the start, a few times with the same.
#[expect(unsafe_code, reason = "the compiler asks for this name")]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(first: *mut u8, end: *mut u8) {
    let mut regions = REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let region = (first.expose_provenance(), end.addr());
    if region.0 < region.1 && !regions.contains(&region) {
        regions.push(region);
    }
}

/// What was reached so far: for each edge a bit for each order of magnitude of how often one run took it.
pub(crate) struct Reached {
    seen: Vec<u8>,
    edges: usize,
}

impl Reached {
    pub(crate) fn nothing() -> Reached {
        let bytes = regions().iter().map(|(first, end)| end - first).sum();
        Reached { seen: vec![0; bytes], edges: 0 }
    }

    /// Whether anything is counted.
    pub(crate) fn is_measured(&self) -> bool {
        !self.seen.is_empty()
    }

    /// How many edges were taken.
    pub(crate) fn edges(&self) -> usize {
        self.edges
    }

    /// Takes in what was counted since the last call, and counts anew. Returns whether something is new.
    pub(crate) fn take(&mut self) -> bool {
        let (mut at, mut is_new) = (0, false);
        for (first, end) in regions() {
            let seen = self.seen[at..].chunks_mut(64);
            for (counters, seen) in counters(first, end).chunks_mut(64).zip(seen) {
                // Nearly all were not reached, and many are looked at at once so.
                if counters.iter().fold(0, |any, count| any | count) == 0 {
                    continue;
                }
                for (count, seen) in counters.iter_mut().zip(seen) {
                    let bit = magnitude(std::mem::take(count));
                    if bit & !*seen != 0 {
                        self.edges += usize::from(*seen == 0);
                        *seen |= bit;
                        is_new = true;
                    }
                }
            }
            at += end - first;
        }
        is_new
    }
}

fn regions() -> Vec<(usize, usize)> {
    REGIONS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[expect(unsafe_code, reason = "the counters belong to the compiler's code, which only adds to them")]
fn counters(first: usize, end: usize) -> &'static mut [u8] {
    // SAFETY: the region is static and was handed to us for this; the one thread that runs the target also reads them. A count
    // that another thread of it loses or adds meanwhile does no harm.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(first), end - first) }
}

fn magnitude(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..8 => 8,
        8..16 => 16,
        16..32 => 32,
        32..128 => 64,
        _ => 128,
    }
}
