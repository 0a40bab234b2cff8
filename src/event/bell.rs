//! The bell that rings when a run has ended: it wakes only those who wait for that run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::id::RunId;

/// How a run ended, as far as the one who waits needs to know at once.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    Completed(Bytes),
    Failed,
    Cancelled,
    Deleted,
}

/// Those who wait for the end of a run.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waiting: Mutex<BTreeMap<RunId, Vec<oneshot::Sender<Ended>>>>,
    count: AtomicUsize,
}

impl Bell {
    /// Begins to wait; the end may come from here on.
    pub(crate) fn listen(self: &Arc<Self>, run: RunId) -> Listening {
        let (sender, ended) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(run).or_default().push(sender);
        self.count.store(waiting.len(), Ordering::Release);
        Listening { bell: self.clone(), run, ended }
    }

    /// Tells those who wait for this run.
    pub(crate) fn ring(&self, run: RunId, ended: &Ended) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let senders = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let senders = waiting.remove(&run);
            self.count.store(waiting.len(), Ordering::Release);
            senders
        };
        for sender in senders.into_iter().flatten() {
            // One that has stopped waiting is not told.
            let _ = sender.send(ended.clone());
        }
    }

    /// Tells everyone that no end will come any more.
    pub(crate) fn silence(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.clear();
        self.count.store(0, Ordering::Release);
    }

    fn forget(&self, run: RunId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(senders) = waiting.get_mut(&run) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiting.remove(&run);
            }
        }
        self.count.store(waiting.len(), Ordering::Release);
    }
}

/// Someone who waits for a run's end.
pub(crate) struct Listening {
    bell: Arc<Bell>,
    run: RunId,
    ended: oneshot::Receiver<Ended>,
}

impl Listening {
    /// The end; `None` if none will come, since the runtime has ended.
    pub(crate) async fn ended(&mut self) -> Option<Ended> {
        (&mut self.ended).await.ok()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ended.close();
        self.bell.forget(self.run);
    }
}
