//! The bodies there are: what of an actor's state must outlive the actor.
//!
//! A body is *assigned* when its lease is on disk, *running* once a run actor has been made for it, *stopped* when the last
//! of its code is gone, and forgotten when the writer has been told. Each of these moves happens once, whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;

use super::key::KeyMsg;
use crate::engine::{Generation, KeyName};
use crate::id::RunId;
use crate::step::execution::{Execution, Verdict};
use crate::store::writer::Start;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Assigned,
    Running,
    Stopped { reported: bool },
}

struct Entry {
    start: Arc<Start>,
    phase: Phase,
    cancelled: bool,
    execution: Option<Arc<Execution>>,
    gate: Option<ActorRef<KeyMsg>>,
}

#[derive(Default)]
pub(crate) struct Bodies {
    entries: Mutex<BTreeMap<RunId, Entry>>,
}

/// Who is to hear that a body is gone.
pub(super) struct Gone {
    pub(super) gate: Option<ActorRef<KeyMsg>>,
}

impl Bodies {
    pub(super) fn assign(&self, start: Start) {
        let start = Arc::new(start);
        let entry =
            Entry { start: start.clone(), phase: Phase::Assigned, cancelled: false, execution: None, gate: None };
        self.entries().insert(start.run, entry);
    }

    /// A body that has been assigned and not begun.
    pub(super) fn assigned(&self, run: RunId) -> Option<Arc<Start>> {
        self.entries().get(&run).filter(|entry| entry.phase == Phase::Assigned).map(|entry| entry.start.clone())
    }

    /// Every body that has been assigned and not begun.
    pub(super) fn all_assigned(&self) -> Vec<RunId> {
        let entries = self.entries();
        entries.iter().filter(|(_, entry)| entry.phase == Phase::Assigned).map(|(run, _)| *run).collect()
    }

    /// Stopped bodies that the writer has not heard of, since their gate has gone.
    pub(super) fn all_stopped(&self) -> Vec<(RunId, Generation)> {
        let entries = self.entries();
        let stopped = entries.iter().filter(|(_, entry)| matches!(entry.phase, Phase::Stopped { .. }));
        stopped.map(|(run, entry)| (*run, entry.start.generation)).collect()
    }

    /// Takes an assigned body to begin it, if its key has room among the bodies that are running. The caller makes its actor.
    pub(super) fn begin(&self, run: RunId, gate: Option<&ActorRef<KeyMsg>>) -> Begun {
        let mut entries = self.entries();
        let Some(start) = entries.get(&run).filter(|entry| entry.phase == Phase::Assigned).map(|e| e.start.clone())
        else {
            return Begun::Gone;
        };
        if let Some((key, limit)) = &start.key {
            let (holders, limit) = holding(&entries, key, *limit);
            if holders >= limit {
                return Begun::NoRoom;
            }
        }
        if let Some(entry) = entries.get_mut(&run) {
            entry.phase = Phase::Running;
            entry.gate = gate.cloned();
        }
        Begun::Yes(start)
    }

    /// Connects a running body with what can stop it. `false`: it was cancelled before.
    pub(super) fn attach(&self, run: RunId, execution: &Arc<Execution>) -> bool {
        match self.entries().get_mut(&run) {
            Some(entry) => {
                entry.execution = Some(execution.clone());
                !entry.cancelled
            }
            None => true,
        }
    }

    /// Tells a body that its run is cancelled.
    pub(super) fn cancel(&self, run: RunId, generation: Generation) {
        let execution = {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(&run).filter(|entry| entry.start.generation == generation) else {
                return;
            };
            entry.cancelled = true;
            entry.execution.clone()
        };
        if let Some(execution) = execution {
            execution.cancelled.cancel();
        }
    }

    /// Ends every body that has not ended, as a shutdown does after its grace. Gives the runs that are left.
    pub(crate) fn hand_back_all(&self) -> Vec<RunId> {
        let entries = self.entries();
        for execution in entries.values().filter_map(|entry| entry.execution.as_ref()) {
            execution.judge(Verdict::HandedBack);
        }
        entries.keys().copied().collect()
    }

    /// The last code of a body is gone.
    pub(super) fn gone(&self, run: RunId, generation: Generation, reported: bool) -> Option<Gone> {
        let mut entries = self.entries();
        let entry = entries.get_mut(&run).filter(|entry| entry.start.generation == generation)?;
        entry.phase = Phase::Stopped { reported };
        entry.execution = None;
        Some(Gone { gate: entry.gate.take() })
    }

    /// Forgets a stopped body; says whether its end was reported with its outcome.
    pub(super) fn forget(&self, run: RunId, generation: Generation) -> Option<bool> {
        let mut entries = self.entries();
        match entries.get(&run)? {
            Entry { start, phase: Phase::Stopped { reported }, .. } if start.generation == generation => {
                let reported = *reported;
                entries.remove(&run);
                Some(reported)
            }
            _ => None,
        }
    }

    /// Whether a key has bodies, begun or not.
    pub(super) fn uses(&self, key: &KeyName) -> bool {
        self.entries().values().any(|entry| entry.start.key.as_ref().is_some_and(|(name, _)| name == key))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<RunId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an attempt to begin a body went.
pub(super) enum Begun {
    Yes(Arc<Start>),
    /// Running bodies hold the key.
    NoRoom,
    /// It has begun already, or is no more.
    Gone,
}

/// Running bodies of a key, and the smallest limit among them and the candidate's.
fn holding(entries: &BTreeMap<RunId, Entry>, key: &KeyName, limit: u32) -> (usize, usize) {
    let running = entries.values().filter(|entry| entry.phase == Phase::Running);
    let held = running.filter_map(|entry| entry.start.key.as_ref()).filter(|(name, _)| name == key);
    held.fold((0, limit as usize), |(count, limit), (_, other)| (count + 1, limit.min(*other as usize)))
}
