//! The allocator of a fuzzing process: the system's, with what is held counted. Beyond a bound it gives nothing, which ends the
//! process: the input is on disk by then.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

/// What a run may hold whatever its input, in bytes: what threads in the background do falls in it.
const BYTES_FREE: isize = 8 << 20;
/// What a run may hold beside it for each byte of its input, in bytes.
const BYTES_A_BYTE: isize = 64;

/// The allocator.
pub struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);
static BOUND: AtomicIsize = AtomicIsize::new(isize::MAX);

/// Does `work` on an input of `bytes` bytes within the bound; returns with it how many bytes it held at most.
pub(crate) fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.load(Ordering::Relaxed);
    let allowed = BYTES_FREE + BYTES_A_BYTE * isize::try_from(bytes).unwrap_or(0);
    PEAK.store(before, Ordering::Relaxed);
    BOUND.store(before + allowed, Ordering::Relaxed);
    let done = work();
    BOUND.store(isize::MAX, Ordering::Relaxed);
    (done, PEAK.load(Ordering::Relaxed) - before)
}

/// Lifts the bound of the run: what is wrong with it is known, and saying so takes memory too.
pub(crate) fn lift() {
    BOUND.store(isize::MAX, Ordering::Relaxed);
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

/// Counts `bytes` more, unless that is too much.
fn take(bytes: usize) -> bool {
    let held = HELD.fetch_add(signed(bytes), Ordering::Relaxed) + signed(bytes);
    PEAK.fetch_max(held, Ordering::Relaxed);
    let fits = held <= BOUND.load(Ordering::Relaxed);
    if !fits {
        give(bytes);
    }
    fits
}

fn give(bytes: usize) {
    HELD.fetch_sub(signed(bytes), Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one hands everything on")]
// SAFETY: all calls go to the system's allocator as they came, or are refused with null as they may be.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if !take(bytes) {
            return std::ptr::null_mut();
        }
        give(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}
