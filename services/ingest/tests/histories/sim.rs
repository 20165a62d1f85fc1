//! Chance, time, and what becomes of a request: all a function of the seed.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use timeline::Timestamp;
use tokio::time::{Instant, sleep};

use super::fault::Fault;

/// When every history begins.
pub(crate) const BEGIN: Timestamp = Timestamp(1_790_000_000_000);

/// What all parts of one history share.
#[derive(Clone)]
pub(crate) struct Sim {
    /// What is done wrong.
    pub(crate) fault: Fault,
    /// Whether the store takes rows without looking what stands there: two kinds of store, two ways of owning.
    pub(crate) writes_unseen: bool,
    /// Of how many rows of a timeline that nobody has counted one has it read; in some histories as good as none.
    pub(crate) unread_rows: u64,
    rng: Arc<Mutex<StdRng>>,
    begun: Instant,
    jumped_ms: Arc<AtomicI64>,
    failing: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
}

/// What becomes of a request.
enum Fate {
    Done,
    /// It fails, and nothing has come of it.
    Lost,
    /// It has landed, and nobody hears of it.
    Unheard,
    /// It fails, and lands yet.
    LandsLater(Duration),
}

impl Sim {
    /// The history of `seed`; within its runtime.
    pub(crate) fn new(seed: u64, fault: Fault) -> Sim {
        Sim {
            fault,
            writes_unseen: !seed.is_multiple_of(3),
            unread_rows: if seed % 5 < 2 { 1000 } else { 5 },
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
            begun: Instant::now(),
            jumped_ms: Arc::default(),
            failing: Arc::new(AtomicBool::new(true)),
            requests: Arc::default(),
        }
    }

    /// A number in `range`.
    pub(crate) fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.lock().unwrap().random_range(range)
    }

    /// A place in something that has `count`.
    pub(crate) fn pick(&self, count: usize) -> usize {
        self.rng.lock().unwrap().random_range(0..count)
    }

    /// Yes with this probability.
    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.rng.lock().unwrap().random_bool(probability)
    }

    /// The true time.
    pub(crate) fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.begun.elapsed().as_millis()).unwrap();
        BEGIN.plus_ms(elapsed + self.jumped_ms.load(Ordering::Relaxed))
    }

    /// Lets time pass at once.
    pub(crate) fn jump_ms(&self, ms: i64) {
        self.jumped_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Whether requests fail now and then.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// How many requests there were: two runs of one seed have as many.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Lets a random time pass.
    pub(crate) async fn pause(&self, ms: std::ops::Range<u64>) {
        let ms = self.random(ms);
        sleep(Duration::from_millis(ms)).await;
    }

    /// Takes a random time, and draws what becomes of the request.
    async fn request(&self) -> Fate {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // Now and then one takes long enough to overlap whatever comes after it.
        self.pause(if self.chance(0.05) { 50..2000 } else { 1..20 }).await;
        if !self.failing.load(Ordering::Relaxed) || !self.chance(0.05) {
            return Fate::Done;
        }
        match self.random(0..3) {
            0 => Fate::Lost,
            1 => Fate::Unheard,
            _ => Fate::LandsLater(Duration::from_millis(self.random(10..3000))),
        }
    }

    /// A request that changes something. Whether it is known to have done so.
    pub(crate) async fn write(&self, apply: impl FnOnce() + Send + 'static) -> bool {
        match self.request().await {
            Fate::Done => {
                apply();
                true
            }
            Fate::Lost => false,
            Fate::Unheard => {
                apply();
                false
            }
            Fate::LandsLater(after) => {
                tokio::spawn(async move {
                    sleep(after).await;
                    apply();
                });
                false
            }
        }
    }

    /// A request that changes nothing. Whether it is answered.
    pub(crate) async fn read(&self) -> bool {
        matches!(self.request().await, Fate::Done)
    }
}
