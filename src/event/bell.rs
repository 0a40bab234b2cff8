//! The bell that rings when a run has ended: it wakes only those who wait for that run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::id::RunId;
use crate::quietly::quietly;

/// How a run ended, as far as the one who waits needs to know at once.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    Completed(Bytes),
    /// This run goes on for it.
    Continued(RunId),
    Failed,
    Cancelled,
    Deleted,
}

/// Those who wait for the end of a run.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waiting: Mutex<Waiting>,
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By the run that goes on now.
    runs: BTreeMap<RunId, Vec<Waiter>>,
    /// Which run goes on for one that somebody asked for.
    moved: BTreeMap<RunId, RunId>,
    /// It rings no more.
    silent: bool,
}

#[derive(Debug)]
struct Waiter {
    /// The run that was asked for.
    asked: RunId,
    sender: oneshot::Sender<(RunId, Ended)>,
}

impl Bell {
    /// Begins to wait; the end may come from here on.
    pub(crate) fn listen(self: &Arc<Self>, run: RunId) -> Listening {
        let (sender, ended) = oneshot::channel();
        let mut waiting = self.waiting();
        if !waiting.silent {
            waiting.runs.entry(run).or_default().push(Waiter { asked: run, sender });
            self.count.store(waiting.runs.len(), Ordering::Release);
        }
        Listening { bell: self.clone(), run, ended }
    }

    /// Tells those who wait for this run. Where another goes on for it, they wait for that one and hear nothing.
    pub(crate) fn ring(&self, run: RunId, ended: &Ended) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let waiters = {
            let mut waiting = self.waiting();
            let waiters = waiting.runs.remove(&run).unwrap_or_default();
            match ended {
                Ended::Continued(next) if !waiters.is_empty() => {
                    waiting.moved.extend(waiters.iter().map(|waiter| (waiter.asked, *next)));
                    waiting.runs.entry(*next).or_default().extend(waiters);
                    return;
                }
                _ => {
                    for waiter in &waiters {
                        waiting.moved.remove(&waiter.asked);
                    }
                }
            }
            self.count.store(waiting.runs.len(), Ordering::Release);
            waiters
        };
        for waiter in waiters {
            // One that has stopped waiting is not told.
            let ended = ended.clone();
            quietly("who wakes a caller", || drop(waiter.sender.send((run, ended))));
        }
    }

    /// Tells everyone that no end will come any more.
    pub(crate) fn silence(&self) {
        let before = std::mem::replace(&mut *self.waiting(), Waiting { silent: true, ..Waiting::default() });
        self.count.store(0, Ordering::Release);
        for waiter in before.runs.into_values().flatten() {
            quietly("who wakes a caller", || drop(waiter));
        }
    }

    fn forget(&self, asked: RunId) {
        let mut waiting = self.waiting();
        let moved = waiting.moved.get(&asked).copied();
        let mut left = false;
        for run in [Some(asked), moved].into_iter().flatten() {
            if let Some(waiters) = waiting.runs.get_mut(&run) {
                waiters.retain(|waiter| !waiter.sender.is_closed());
                left |= moved == Some(run) && waiters.iter().any(|waiter| waiter.asked == asked);
                if waiters.is_empty() {
                    waiting.runs.remove(&run);
                }
            }
        }
        if moved.is_some() && !left {
            waiting.moved.remove(&asked);
        }
        self.count.store(waiting.runs.len(), Ordering::Release);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Someone who waits for a run's end.
pub(crate) struct Listening {
    bell: Arc<Bell>,
    run: RunId,
    ended: oneshot::Receiver<(RunId, Ended)>,
}

impl Listening {
    /// The end, and the run whose it is; `None` if none will come, since the runtime has ended.
    pub(crate) async fn ended(&mut self) -> Option<(RunId, Ended)> {
        (&mut self.ended).await.ok()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ended.close();
        self.bell.forget(self.run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u128) -> RunId {
        RunId::numbered(n)
    }

    #[tokio::test]
    async fn who_waits_for_a_run_that_is_continued_waits_for_the_one_that_goes_on_and_leaves_nothing_behind() {
        let bell = Arc::new(Bell::default());
        let (mut first, dropped, mut late) = (bell.listen(run(1)), bell.listen(run(1)), bell.listen(run(3)));
        for n in 1..1_000 {
            bell.ring(run(n), &Ended::Continued(run(n + 1)));
        }
        drop(dropped);
        bell.ring(run(1_000), &Ended::Failed);
        for waiter in [&mut first, &mut late] {
            assert!(matches!(waiter.ended().await, Some((of, Ended::Failed)) if of == run(1_000)));
        }
        let waiting = bell.waiting();
        assert!(waiting.runs.is_empty() && waiting.moved.is_empty(), "{waiting:?}");
    }

    #[tokio::test]
    async fn a_silent_bell_keeps_nobody_waiting() {
        let bell = Arc::new(Bell::default());
        let mut before = bell.listen(run(1));
        bell.silence();
        assert!(before.ended().await.is_none());
        assert!(bell.listen(run(1)).ended().await.is_none());
    }

    #[test]
    fn one_that_stops_waiting_is_forgotten_wherever_it_has_been_moved() {
        let bell = Arc::new(Bell::default());
        let (first, second) = (bell.listen(run(1)), bell.listen(run(1)));
        bell.ring(run(1), &Ended::Continued(run(2)));
        drop(first);
        assert_eq!(bell.waiting().moved.len(), 1);
        drop(second);
        let waiting = bell.waiting();
        assert!(waiting.runs.is_empty() && waiting.moved.is_empty(), "{waiting:?}");
    }
}
