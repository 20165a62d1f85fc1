//! Whether a process is ready for work: a few named checks, each with its last outcome.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::shutdown::Shutdown;

/// How long a check may take before it counts as failed, in [`Check::keep`].
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The checks of a process. Clones are one handle.
#[derive(Clone, Debug)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
    shutdown: Shutdown,
}

/// What a process is ready for, or not, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether every check passed and nobody told the process to stop.
    pub is_ready: bool,
    /// Whether it was told to stop.
    pub is_stopping: bool,
    /// Each check by name, and why it failed if it did.
    pub checks: BTreeMap<&'static str, Result<(), String>>,
}

/// One check. Whoever finds out writes the outcome here.
#[derive(Clone, Debug)]
pub struct Check {
    health: Health,
    name: &'static str,
}

impl Health {
    /// No checks yet. A process that is told to stop is no longer ready.
    pub fn new(shutdown: &Shutdown) -> Health {
        Health { checks: Arc::default(), shutdown: shutdown.clone() }
    }

    /// The check called `name`, which fails until it first passes.
    pub fn check(&self, name: &'static str) -> Check {
        self.lock().entry(name).or_insert_with(|| Err("not checked yet".to_owned()));
        Check { health: self.clone(), name }
    }

    /// How things stand.
    pub fn readiness(&self) -> Readiness {
        let checks = self.lock().clone();
        let is_stopping = self.shutdown.has_begun();
        Readiness { is_ready: !is_stopping && checks.values().all(Result::is_ok), is_stopping, checks }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Result<(), String>>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// All is well.
    pub fn pass(&self) {
        self.set(Ok(()));
    }

    /// Something is wrong. `why` is shown to whoever asks: a few words, without addresses.
    pub fn fail(&self, why: impl Into<String>) {
        self.set(Err(why.into()));
    }

    fn set(&self, outcome: Result<(), String>) {
        let failed = outcome.as_ref().err().cloned();
        let before = self.health.lock().insert(self.name, outcome);
        match (before, failed) {
            (Some(Ok(())), Some(why)) => tracing::warn!(check = self.name, why, "a check fails"),
            (Some(Err(_)), None) => tracing::info!(check = self.name, "a check passes"),
            _ => {}
        }
    }

    /// Asks `probe` every `interval` until the process stops; one that takes longer than [`CHECK_TIMEOUT`] has
    /// failed. `why` is shown then, see [`Check::fail`]; the probe's own words are logged, until they are others or it passes once.
    pub async fn keep(
        self,
        interval: Duration,
        why: &'static str,
        mut probe: impl AsyncFnMut() -> Result<(), String>,
    ) {
        let shutdown = self.health.shutdown.clone();
        let mut logged = None;
        loop {
            match tokio::time::timeout(CHECK_TIMEOUT, probe()).await {
                Ok(Ok(())) => {
                    logged = None;
                    self.pass();
                }
                Ok(Err(error)) => {
                    if logged.as_ref() != Some(&error) {
                        tracing::warn!(
                            check = self.name,
                            error,
                            "what is checked does not answer as it should"
                        );
                        logged = Some(error);
                    }
                    self.fail(why);
                }
                Err(_) => self.fail("no answer in time"),
            }
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(interval) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_check_passes_and_nobody_said_stop() {
        let shutdown = Shutdown::new();
        let health = Health::new(&shutdown);
        let (store, log) = (health.check("store"), health.check("log"));
        assert!(!health.readiness().is_ready);
        store.pass();
        log.pass();
        assert!(health.readiness().is_ready);
        log.fail("away");
        assert_eq!(health.readiness().checks["log"], Err("away".to_owned()));
        assert!(!health.readiness().is_ready);
        log.pass();
        shutdown.begin();
        assert!(!health.readiness().is_ready);
        assert!(health.readiness().is_stopping);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_has_failed() {
        let health = Health::new(&Shutdown::new());
        let check = health.check("store");
        let never = Arc::new(tokio::sync::Notify::new());
        let probed = never.clone();
        let kept = tokio::spawn(check.keep(Duration::from_secs(1), "away", async move || {
            probed.notified().await;
            Ok(())
        }));
        tokio::time::sleep(CHECK_TIMEOUT + Duration::from_millis(1)).await;
        assert_eq!(health.readiness().checks["store"], Err("no answer in time".to_owned()));
        never.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(health.readiness().is_ready);
        kept.abort();
    }
}
