//! The one thread that looks, for everybody who looks at the page, and only while somebody does.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::state::Snapshot;
use crate::clock::Stopwatch;
use crate::exit::Stopped;
use crate::look::{Look, Past, Source};

/// What is looked at; tests have their own.
pub(super) trait Sight: Send + 'static {
    fn look(&mut self, seconds: f64) -> Result<Look, Stopped>;
}

impl Sight for Source {
    fn look(&mut self, seconds: f64) -> Result<Look, Stopped> {
        Source::look(self, seconds)
    }
}

/// Clones are the same.
#[derive(Clone)]
pub(super) struct Watcher {
    gallery: Arc<Gallery>,
    newest: watch::Receiver<Arc<Snapshot>>,
}

/// Where those who look are counted.
#[derive(Default)]
struct Gallery {
    here: Mutex<Here>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Here {
    viewers: usize,
    is_over: bool,
}

/// One who looks, until it is dropped.
pub(super) struct Viewer {
    gallery: Arc<Gallery>,
    pub(super) newest: watch::Receiver<Arc<Snapshot>>,
}

impl Watcher {
    pub(super) fn start(sight: impl Sight, every: Duration) -> anyhow::Result<Self> {
        let (sender, newest) = watch::channel(Arc::default());
        let gallery = Arc::new(Gallery::default());
        let here = Arc::clone(&gallery);
        let looking = move || look_on(sight, every, &here, &sender);
        let thread = thread::Builder::new().name("page-looks".to_owned()).spawn(looking);
        thread.context("starting a thread that looks at the run")?;
        Ok(Self { gallery, newest })
    }

    /// Somebody comes. What was seen when nobody looked is old: the first one waits for the next look.
    pub(super) fn viewer(&self) -> Viewer {
        let mut newest = self.newest.clone();
        let mut here = self.gallery.here();
        let is_seen = !newest.borrow().parts.is_empty();
        if here.viewers > 0 && is_seen {
            newest.mark_changed();
        } else {
            newest.mark_unchanged();
        }
        here.viewers += 1;
        self.gallery.changed.notify_all();
        Viewer { gallery: Arc::clone(&self.gallery), newest }
    }

    /// The thread ends after the look that it takes now.
    pub(super) fn end(&self) {
        self.gallery.here().is_over = true;
        self.gallery.changed.notify_all();
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.gallery.here().viewers -= 1;
    }
}

impl Gallery {
    fn here(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody looks; whether anybody ever will.
    fn is_wanted(&self) -> bool {
        let idle = |here: &mut Here| here.viewers == 0 && !here.is_over;
        let here = self.changed.wait_while(self.here(), idle);
        !here.unwrap_or_else(PoisonError::into_inner).is_over
    }

    fn pause(&self, every: Duration) {
        let before_the_end = |here: &mut Here| !here.is_over;
        let waited = self.changed.wait_timeout_while(self.here(), every, before_the_end);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn look_on(
    mut sight: impl Sight,
    every: Duration,
    gallery: &Gallery,
    sender: &watch::Sender<Arc<Snapshot>>,
) {
    let (watch, mut past) = (Stopwatch::start(), Past::default());
    let mut before = Arc::new(Snapshot::default());
    while gallery.is_wanted() {
        match sight.look(watch.seconds()) {
            Ok(look) => past.take(look),
            Err(stopped) => past.trouble(stopped.text().unwrap_or_default()),
        }
        before = Arc::new(Snapshot::of(&past, &before));
        if sender.send(Arc::clone(&before)).is_err() {
            return;
        }
        gallery.pause(every);
    }
}
