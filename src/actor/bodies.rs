//! The bodies there are: what of an actor's state must outlive the actor.
//!
//! A body is *assigned* when its lease is on disk, *running* once a run actor has been made for it, *stopped* when the last
//! of its code is gone, and forgotten when the writer has been told. Each of these moves happens once, whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;

use super::key::KeyMsg;
use crate::engine::{Generation, KeyName};
use crate::id::{RunId, RunMap};
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
    gates: Gates,
}

/// The gates of a body's keys.
#[derive(Debug, Clone, Default)]
pub(super) enum Gates {
    #[default]
    None,
    One([ActorRef<KeyMsg>; 1]),
    Several(Arc<[ActorRef<KeyMsg>]>),
}

impl Gates {
    pub(super) fn of(mut gates: Vec<ActorRef<KeyMsg>>) -> Self {
        match gates.pop() {
            None => Gates::None,
            Some(gate) if gates.is_empty() => Gates::One([gate]),
            Some(gate) => {
                gates.push(gate);
                Gates::Several(gates.into())
            }
        }
    }

    pub(super) fn as_slice(&self) -> &[ActorRef<KeyMsg>] {
        match self {
            Gates::None => &[],
            Gates::One(gate) => gate,
            Gates::Several(gates) => gates,
        }
    }
}

#[derive(Default)]
pub(crate) struct Bodies {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: RunMap<Entry>,
    keys: BTreeMap<KeyName, Users>,
}

/// The bodies of one key.
#[derive(Default)]
struct Users {
    /// All of them, in whatever phase.
    bodies: usize,
    /// Those that are running, with the limit each asked for.
    running: Vec<(RunId, u32)>,
}

impl Users {
    fn has_room(&self, limit: u32) -> bool {
        let most = self.running.iter().map(|(_, limit)| *limit).fold(limit, u32::min);
        self.running.len() < most as usize
    }
}

/// Who is to hear that a body is gone.
pub(super) struct Gone {
    pub(super) gates: Gates,
}

impl Bodies {
    pub(super) fn assign(&self, starts: Vec<Arc<Start>>) {
        let mut table = self.table();
        for start in starts {
            table.insert(Entry {
                start,
                phase: Phase::Assigned,
                cancelled: false,
                execution: None,
                gates: Gates::None,
            });
        }
    }

    /// Of these bodies, those that have been assigned and not begun.
    pub(super) fn assigned(&self, runs: &[RunId]) -> Vec<Arc<Start>> {
        let table = self.table();
        let entries = runs.iter().filter_map(|run| table.entries.get(run));
        entries.filter(|entry| entry.phase == Phase::Assigned).map(|entry| entry.start.clone()).collect()
    }

    /// Every body that has been assigned and not begun, in the order of their runs.
    pub(super) fn all_assigned(&self) -> Vec<RunId> {
        let table = self.table();
        sorted(table.entries.iter().filter(|(_, entry)| entry.phase == Phase::Assigned).map(|(run, _)| *run))
    }

    /// Stopped bodies that the writer has not heard of, since their gate has gone.
    pub(super) fn all_stopped(&self) -> Vec<(RunId, Generation)> {
        let table = self.table();
        let stopped = table.entries.iter().filter(|(_, entry)| matches!(entry.phase, Phase::Stopped { .. }));
        sorted(stopped.map(|(run, entry)| (*run, entry.start.generation)))
    }

    /// Takes an assigned body to begin it, if all its keys have room among the bodies that are running. The caller makes its
    /// actor. It takes all keys or none, so that bodies of several keys can't hold each other up.
    pub(super) fn begin(&self, run: RunId, gates: &Gates) -> Begun {
        let mut table = self.table();
        let Some(entry) = table.entries.get(&run).filter(|entry| entry.phase == Phase::Assigned) else {
            return Begun::Gone;
        };
        let start = entry.start.clone();
        if !start.keys.iter().all(|(key, limit)| table.keys.get(key).is_none_or(|users| users.has_room(*limit))) {
            return Begun::NoRoom;
        }
        for (key, limit) in start.keys.iter() {
            table.keys.entry(key.clone()).or_default().running.push((run, *limit));
        }
        if let Some(entry) = table.entries.get_mut(&run) {
            entry.phase = Phase::Running;
            entry.gates = gates.clone();
        }
        Begun::Yes(start)
    }

    /// Connects a running body with what can stop it. `false`: it was cancelled before.
    pub(super) fn attach(&self, run: RunId, execution: &Arc<Execution>) -> bool {
        match self.table().entries.get_mut(&run) {
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
            let mut table = self.table();
            let Some(entry) = table.entries.get_mut(&run).filter(|entry| entry.start.generation == generation) else {
                return;
            };
            entry.cancelled = true;
            entry.execution.clone()
        };
        if let Some(execution) = execution {
            execution.cancel();
        }
    }

    /// What a body executes, if it has begun: of a lease, or of whichever it has.
    pub(crate) fn execution(&self, run: RunId, generation: Option<Generation>) -> Option<Arc<Execution>> {
        let table = self.table();
        let entry = table.entries.get(&run)?;
        let asked = generation.is_none_or(|generation| entry.start.generation == generation);
        entry.execution.clone().filter(|_| asked)
    }

    /// A body's keys have room for another, though it is still there: what [`Bug::KeyFreeBeforeStop`](crate::hooks::Bug) does.
    pub(super) fn let_go(&self, run: RunId) {
        self.table().keys.values_mut().for_each(|users| users.running.retain(|(other, _)| *other != run));
    }

    /// Ends every body that has not ended, as a shutdown does after its grace. Gives the runs that are left.
    pub(crate) fn hand_back_all(&self) -> Vec<RunId> {
        let table = self.table();
        let runs = sorted(table.entries.keys().copied());
        for execution in runs.iter().filter_map(|run| table.entries.get(run)?.execution.as_ref()) {
            execution.judge(Verdict::HandedBack);
        }
        runs
    }

    /// The last code of a body is gone.
    pub(super) fn gone(&self, run: RunId, generation: Generation, reported: bool) -> Option<Gone> {
        let mut table = self.table();
        let entry = table.entries.get_mut(&run).filter(|entry| entry.start.generation == generation)?;
        entry.phase = Phase::Stopped { reported };
        entry.execution = None;
        let gates = std::mem::take(&mut entry.gates);
        let start = entry.start.clone();
        for (key, _) in start.keys.iter() {
            if let Some(users) = table.keys.get_mut(key) {
                users.running.retain(|(other, _)| *other != run);
            }
        }
        Some(Gone { gates })
    }

    /// Forgets a stopped body; says whether its end was reported with its outcome.
    pub(super) fn forget(&self, run: RunId, generation: Generation) -> Option<bool> {
        let mut table = self.table();
        match table.entries.get(&run)? {
            Entry { start, phase: Phase::Stopped { reported }, .. } if start.generation == generation => {
                let reported = *reported;
                table.remove(run);
                Some(reported)
            }
            _ => None,
        }
    }

    /// Whether a key has bodies, begun or not.
    pub(super) fn uses(&self, key: &KeyName) -> bool {
        self.table().keys.contains_key(key)
    }

    /// How far the bodies are from doing nothing: how many there are, and whether one waits for something outside. `None`: at
    /// least one has something to do.
    #[cfg(feature = "testing")]
    pub(crate) fn at_rest(&self) -> Option<(usize, bool)> {
        let (mut count, mut outside) = (0, false);
        for entry in self.table().entries.values() {
            let execution = entry.execution.as_ref().filter(|_| entry.phase == Phase::Running)?;
            if !execution.motion.is_at_rest() {
                return None;
            }
            count += 1;
            outside |= execution.waits_outside();
        }
        Some((count, outside))
    }

    /// Whether every body that had begun is dropped, as after a kill.
    #[cfg(feature = "testing")]
    pub(crate) fn are_dropped(&self) -> bool {
        let table = self.table();
        let mut begun = table.entries.values().filter_map(|entry| entry.execution.as_ref());
        begun.all(|execution| execution.motion.is_dropped())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// A body of a new lease takes the place of an older one of its run, whose end the writer knows.
    fn insert(&mut self, entry: Entry) {
        let run = entry.start.run;
        self.remove(run);
        for (key, _) in entry.start.keys.iter() {
            self.keys.entry(key.clone()).or_default().bodies += 1;
        }
        self.entries.insert(run, entry);
    }

    fn remove(&mut self, run: RunId) {
        let Some(entry) = self.entries.remove(&run) else { return };
        for (key, _) in entry.start.keys.iter() {
            let Some(users) = self.keys.get_mut(key) else { continue };
            users.bodies -= 1;
            users.running.retain(|(other, _)| *other != run);
            if users.bodies == 0 {
                self.keys.remove(key);
            }
        }
    }
}

/// What came in no order, in order: what is done to bodies is done in the same order every time.
fn sorted<T: Ord>(found: impl Iterator<Item = T>) -> Vec<T> {
    let mut found: Vec<T> = found.collect();
    found.sort_unstable();
    found
}

/// How an attempt to begin a body went.
pub(super) enum Begun {
    Yes(Arc<Start>),
    /// Running bodies hold one of its keys.
    NoRoom,
    /// It has begun already, or is no more.
    Gone,
}
