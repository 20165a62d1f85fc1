//! When what is to be done is due. An open loop: it is due when its time has come, whether what was due before is done or not, and
//! how long it took counts from then. So a server that stands still for a second is charged with all that waited.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Things to do, one after the other, for as many workers as there are.
pub(crate) struct Schedule {
    begun: Instant,
    /// Things a second; as fast as the workers are, where there is none.
    per_s: Option<f64>,
    count: u64,
    next: AtomicU64,
    due: Arc<Semaphore>,
}

/// One thing to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    /// Which, counted from 0.
    pub(crate) number: u64,
    /// When it is to begin.
    pub(crate) at: Instant,
}

impl Schedule {
    /// `count` things, the first of them now.
    pub(crate) fn start(per_s: Option<f64>, count: u64) -> Schedule {
        let due = Arc::new(Semaphore::new(0));
        let begun = Instant::now();
        let schedule = Schedule { begun, per_s, count, next: AtomicU64::new(0), due };
        if let Some(per_s) = per_s {
            let due = Arc::downgrade(&schedule.due);
            thread::spawn(move || tick(begun, per_s, count, &due));
        }
        schedule
    }

    /// Waits until the next thing is due; `None` when there is none left.
    pub(crate) async fn next(&self) -> Option<Due> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.count {
            return None;
        }
        let Some(per_s) = self.per_s else {
            return Some(Due { number, at: Instant::now() });
        };
        // Whoever is woken, has the thing that it came for or an earlier one's time: all of them are due by then.
        self.due.acquire().await.ok()?.forget();
        Some(Due { number, at: due_at(self.begun, per_s, number) })
    }
}

fn due_at(begun: Instant, per_s: f64, number: u64) -> Instant {
    begun + Duration::from_secs_f64(number as f64 / per_s)
}

/// Lets the workers know. A thread of its own, as the runtime's timer has a resolution of a millisecond only.
fn tick(begun: Instant, per_s: f64, count: u64, due: &Weak<Semaphore>) {
    for number in 0..count {
        let wait = due_at(begun, per_s, number).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        let Some(due) = due.upgrade() else { return };
        due.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_behind_a_slow_one_counts_from_when_it_was_due() {
        let schedule = Schedule::start(Some(1000.0), 50);
        let mut late = Vec::new();
        while let Some(due) = schedule.next().await {
            if due.number == 10 {
                thread::sleep(Duration::from_millis(100));
            }
            late.push(due.at.elapsed());
        }
        assert_eq!(late.len(), 50);
        // The eleventh took 100 ms; the one behind it was due 1 ms after it began, and so on.
        assert!(late[10] >= Duration::from_millis(100));
        assert!(late[11] >= Duration::from_millis(98) && late[40] >= Duration::from_millis(69));
    }

    #[tokio::test]
    async fn without_a_rate_all_is_due_at_once() {
        let schedule = Schedule::start(None, 1000);
        let begun = Instant::now();
        let mut count = 0;
        while let Some(due) = schedule.next().await {
            assert!(due.at.elapsed() < Duration::from_secs(1));
            count += 1;
        }
        assert!(count == 1000 && begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn nothing_is_due_before_its_time() {
        let schedule = Schedule::start(Some(500.0), 20);
        while let Some(due) = schedule.next().await {
            assert!(Instant::now() >= due.at);
        }
        assert!(schedule.begun.elapsed() >= Duration::from_millis(38));
    }
}
