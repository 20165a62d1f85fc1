//! How a process stops: one [`Shutdown`] is handed to everything that runs, and each part finishes what it has begun.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether the process was told to stop. Clones are one handle.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Shutdown {
    /// A handle that only [`Shutdown::begin`] triggers.
    pub fn new() -> Shutdown {
        Shutdown(Arc::new(watch::Sender::new(false)))
    }

    /// A handle that SIGTERM and SIGINT trigger too. A second SIGINT — somebody at a terminal who will not wait —
    /// ends the process at once, with exit code 130.
    ///
    /// Must be called within a runtime. Fails where the signals cannot be listened to.
    pub fn on_signals() -> std::io::Result<Shutdown> {
        let shutdown = Shutdown::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let told = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if told.has_begun() && signal == "SIGINT" {
                    std::process::exit(130);
                }
                tracing::info!(signal, "stopping");
                told.begin();
            }
        });
        Ok(shutdown)
    }

    /// A handle that is told with this one, and can be told alone. Must be called within a runtime.
    #[must_use]
    pub fn child(&self) -> Shutdown {
        let (parent, child) = (self.clone(), Shutdown::new());
        let told = child.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = parent.begun() => told.begin(),
                () = told.begun() => {}
            }
        });
        child
    }

    /// Tells everything to stop.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was told to.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it was told to: at once, where that has happened before.
    pub async fn begun(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|begun| *begun).await;
    }
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_is_told_with_its_parent_or_alone() {
        let parent = Shutdown::new();
        let (one, other) = (parent.child(), parent.child());
        one.begin();
        one.begun().await;
        assert!(!parent.has_begun() && !other.has_begun());
        parent.begin();
        other.begun().await;
    }

    #[tokio::test]
    async fn every_clone_learns_of_it_early_or_late() {
        let shutdown = Shutdown::new();
        let early = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.begun().await }
        });
        assert!(!shutdown.has_begun());
        shutdown.clone().begin();
        early.await.expect("told");
        shutdown.begun().await;
        assert!(shutdown.has_begun());
    }
}
