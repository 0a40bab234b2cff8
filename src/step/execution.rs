//! One execution of a run, as its steps see it: what is stored, what is in use, and how the runtime ends the body.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::blocking::Pool;
use super::signals::{Signal, Signals};
use crate::codec::records::{StepRecord, WaitRecord};
use crate::event::{EventKind, StepTold, Told, What};
use crate::hash::SeededMap;
use crate::hooks::{Bug, Hooks};
use crate::job::{ErrorKind, JobError, Retry};
use crate::limits::{STEPS_BYTES_MAX, STEPS_MAX, SUSPEND_AFTER};
use crate::quietly::quietly;
use crate::run::StepKind;
use crate::store::op::{Accepted, Admitted, Checkpoint, Line, News, Notes, NotesOf, Op, Settled, Suspension};
use crate::store::read::{ReplayOutcome, ReplayStep};
use crate::store::writer::Start;
use crate::store::{Pending, Store};
use crate::time::{Clock, Timestamp};

/// Why the runtime ends a body. None of it ever reaches the body itself.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The run fails with this.
    Fails(JobError),
    /// The run is pending again.
    HandedBack,
    /// Another run with this input goes on for it.
    Continues(serde_json::Value),
    /// The run has its outcome already.
    Over,
}

/// What all executions of a runtime work with.
pub(crate) struct Means {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) draining: CancellationToken,
    pub(crate) payload_bytes_max: usize,
    pub(crate) hooks: Hooks,
}

pub(crate) struct Execution {
    pub(crate) start: Arc<Start>,
    pub(crate) means: Arc<Means>,
    is_cancelled: AtomicBool,
    /// Fires with it. Made for the first who asks for it, since hardly any body does.
    cancelled: OnceLock<CancellationToken>,
    /// Someone holds the token, so the body gets its grace after a cancel.
    watched: AtomicBool,
    /// How the job's steps are tried again that say nothing themselves.
    retry: OnceLock<Retry>,
    steps: Mutex<Steps>,
    /// Steps that are called and do not just wait.
    busy: AtomicU32,
    /// Steps that wait, for the look at every poll.
    parked: AtomicU32,
    notes: Mutex<Notes>,
    verdict: Mutex<Option<Verdict>>,
    pub(crate) signals: Signals,
    /// The version of the code.
    version: AtomicU32,
    /// The body has ended: nothing of it may go on.
    over: AtomicBool,
    /// Held by whatever may still run code of this body.
    alive: Mutex<Option<Arc<Alive>>>,
    /// Whether it has something to do, where a test asks for that.
    #[cfg(feature = "testing")]
    pub(crate) motion: Arc<crate::testing::Motion>,
}

/// Says when the last code of a body is really gone.
pub(crate) struct Alive {
    gone: Option<Box<dyn FnOnce(bool) + Send + Sync>>,
}

impl Alive {
    /// `gone` is told whether the end of the run has reported it.
    pub(crate) fn new(gone: impl FnOnce(bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Alive { gone: Some(Box::new(gone)) })
    }

    /// The last of it: the end that is about to be handed over reports it.
    pub(crate) fn report(mut self) {
        if let Some(gone) = self.gone.take() {
            gone(true);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some(gone) = self.gone.take() {
            gone(false);
        }
    }
}

/// Room for so many steps is made at once: to grow there step by step costs more.
const STEPS_EXPECTED: usize = 14;

#[derive(Default)]
struct Steps {
    known: BTreeMap<String, Known>,
    in_use: SeededMap<Arc<str>, &'static Location<'static>>,
    next_index: u32,
    count: u32,
    bytes: usize,
    /// Steps that wait, by index.
    parked: BTreeMap<u32, Parked>,
    /// Waiting steps that the writer has given an outcome; they may not have looked yet.
    decided: BTreeSet<u32>,
    /// Steps on disk that were asked for and dropped.
    dropped: BTreeSet<u32>,
    /// Signals that came during this execution.
    signals: u64,
    /// News of either sort.
    heard: u64,
}

/// A step that waits in memory.
struct Parked {
    open: WaitRecord,
    waker: Waker,
    /// It is to ask again.
    told: bool,
}

/// A key whose outcome is decided.
pub(super) enum Known {
    /// By code of this version.
    Replayed(u32, StepKind, u32, ReplayOutcome),
    /// It waits, or was dropped while it waited: its record is on disk.
    Waits(u32, Box<StepRecord>),
    /// Handed to the writer by a step that was dropped before it heard.
    Handed(u32, Handed),
    /// Asked of the writer by one that was: what it is answered is the step's.
    Asked(u32, Box<Asked>),
}

/// A question of a waiting step that is with the writer.
pub(super) struct Asked {
    pub(super) record: StepRecord,
    /// Signals that had come when it was asked.
    pub(super) signals: u64,
    pub(super) pending: Pending<Settled>,
}

/// An outcome that is with the writer.
pub(super) struct Handed {
    pub(super) told: StepTold,
    pub(super) pending: Pending<Accepted>,
}

/// A step's claim on its key, for as long as it is not dropped.
pub(super) struct Ticket {
    pub(super) execution: Arc<Execution>,
    pub(super) key: Arc<str>,
    pub(super) index: u32,
    /// Boxed, since it is rarely there and the ticket is moved often.
    pub(super) known: Option<Box<Known>>,
    /// What was handed to the writer, until it is known to be on disk.
    pub(super) handed: Option<Handed>,
    /// What was asked of the writer, until it is answered.
    pub(super) asked: Option<Box<Asked>>,
    /// The step has given its outcome to the body: the key stays used.
    pub(super) done: bool,
    /// It waits, and does not count as busy.
    parked: bool,
    /// It does nothing but poll other steps, and does not count as busy.
    idle: bool,
}

impl Execution {
    pub(crate) fn new(start: Arc<Start>, means: Arc<Means>, alive: Arc<Alive>) -> Arc<Self> {
        Arc::new(Execution {
            start,
            means,
            is_cancelled: AtomicBool::new(false),
            cancelled: OnceLock::new(),
            watched: AtomicBool::new(false),
            retry: OnceLock::new(),
            steps: Mutex::default(),
            busy: AtomicU32::new(0),
            parked: AtomicU32::new(0),
            notes: Mutex::default(),
            verdict: Mutex::default(),
            signals: Signals::default(),
            version: AtomicU32::new(0),
            over: AtomicBool::new(false),
            alive: Mutex::new(Some(alive)),
            #[cfg(feature = "testing")]
            motion: Arc::default(),
        })
    }

    /// Tells the body that its run is cancelled.
    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        // Said before the token is looked for, and looked at after it is made: one of the two sees the other.
        fence(Ordering::SeqCst);
        if let Some(token) = self.cancelled.get() {
            quietly("who waits for a cancel", || token.cancel());
        }
        self.signals.raise(Signal::Cancelled);
        if self.parked.load(Ordering::Relaxed) > 0 {
            self.stuck();
        }
    }

    /// Whether the body was told that its run is cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }

    /// Tells the body that something which its steps may wait for is on disk.
    pub(crate) fn news(&self, news: News) {
        let mut steps = self.steps();
        steps.heard += 1;
        match news {
            News::Step(index) => {
                steps.decided.insert(index);
                if let Some(parked) = steps.parked.get_mut(&index) {
                    parked.tell();
                }
            }
            News::Signal(name) => {
                steps.signals += 1;
                let waiting = steps.parked.values_mut();
                waiting.filter(|parked| parked.open.signal.as_deref() == Some(&*name)).for_each(Parked::tell);
            }
        }
    }

    /// Something that is no step is under way in the body, so it is not to be suspended.
    pub(crate) fn set_busy(&self, busy: bool) {
        if busy {
            self.busy.fetch_add(1, Ordering::Relaxed);
        } else {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What would wake the run, if all that its steps do is wait, for longer than it is worth to stay in memory for.
    pub(crate) fn suspension(&self) -> Option<Suspension> {
        if self.parked.load(Ordering::Relaxed) == 0 || self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let steps = self.steps();
        // Another task may poll a step that waited, and take it from here after the look above. It counts as busy before it does,
        // so with the lock one of the two shows; without, a run could be suspended that nothing wakes.
        if steps.parked.is_empty() || self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        }
        if steps.parked.values().any(|parked| parked.told) || self.is_cancelled() {
            return None;
        }
        let due = steps.parked.values().filter_map(|parked| parked.open.due).min();
        // At a shutdown nothing is worth to stay for.
        let short = self.means.hooks.suspend_after(SUSPEND_AFTER);
        let is_soon = |due: Timestamp| due.since(self.now()) <= short;
        if due.is_some_and(is_soon) && !self.means.draining.is_cancelled() {
            return None;
        }
        let names: BTreeSet<&str> = steps.parked.values().filter_map(|parked| parked.open.signal.as_deref()).collect();
        Some(Suspension { due, signals: names.into_iter().map(Into::into).collect(), heard: steps.heard })
    }

    /// Whether it waits for something that is neither time nor told by the runtime.
    #[cfg(feature = "testing")]
    pub(crate) fn waits_outside(&self) -> bool {
        let (busy, delayed) = (self.busy.load(Ordering::SeqCst), self.motion.delayed());
        busy > delayed || (delayed == 0 && self.parked.load(Ordering::SeqCst) == 0)
    }

    /// Takes up the job's default.
    pub(crate) fn set_retry(&self, retry: &Option<Retry>) {
        if let Some(retry) = retry {
            // Set once, before the body begins.
            let _ = self.retry.set(retry.clone());
        }
    }

    pub(super) fn retry(&self) -> Option<&Retry> {
        self.retry.get()
    }

    /// Steps on disk that this execution has not asked for, by index.
    pub(crate) fn unused(&self) -> Vec<(u32, String)> {
        let steps = self.steps();
        let mut unused: Vec<_> = steps
            .known
            .iter()
            .filter_map(|(key, known)| match known {
                Known::Replayed(index, ..) | Known::Waits(index, _) => Some((*index, key)),
                Known::Handed(..) | Known::Asked(..) => None,
            })
            .filter(|(index, _)| !steps.dropped.contains(index))
            .map(|(index, key)| (index, key.clone()))
            .collect();
        unused.sort_unstable();
        unused
    }

    /// Signals that have come so far.
    pub(super) fn signals_heard(&self) -> u64 {
        self.steps().signals
    }

    /// The version of the code, recorded with every step.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// Says which code executes.
    pub(crate) fn set_version(&self, version: u32) {
        self.version.store(version, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.means.clock.now()
    }

    pub(crate) fn elapsed_since(&self, began: Duration) -> Duration {
        self.means.clock.monotonic().saturating_sub(began)
    }

    /// Takes up what earlier executions have stored.
    pub(crate) fn load(&self, replayed: Vec<ReplayStep>) {
        let mut steps = self.steps();
        for step in replayed {
            if !self.means.hooks.plants(Bug::StepIndexReused) {
                steps.next_index = steps.next_index.max(step.last_index + 1);
            }
            steps.bytes += step.bytes;
            steps.count += step.records;
            let known = match step.outcome {
                ReplayOutcome::Open(mut record) => {
                    if self.means.hooks.plants(Bug::TriesForgotten) {
                        record.attempts = 0;
                    }
                    Known::Waits(step.index, record)
                }
                outcome => Known::Replayed(step.index, step.kind, step.version, outcome),
            };
            steps.known.insert(step.key, known);
        }
    }

    /// Claims a key for a step that is called now. On misuse the run is ended, and there is nothing to claim.
    pub(super) fn claim(self: &Arc<Self>, key: Arc<str>, at: &'static Location<'static>) -> Option<Ticket> {
        if let Some(outer) = super::current::step(self.start.run, self.start.generation) {
            let message = format!("step {key:?} was called inside the body of step {outer:?}, at {at}");
            self.fail(ErrorKind::StepNested, message);
            return None;
        }
        let mut steps = self.steps();
        if let Some(first) = steps.in_use.get(&key) {
            let message = format!("step key {key:?} was used twice in one execution: at {first} and at {at}");
            drop(steps);
            self.fail(ErrorKind::StepReused, message);
            return None;
        }
        let known = if self.means.hooks.plants(Bug::ReplayByPosition) {
            steps.known.pop_first().map(|(_, known)| known)
        } else {
            steps.known.remove(&*key)
        };
        let index = match &known {
            Some(
                Known::Replayed(index, ..) | Known::Waits(index, _) | Known::Handed(index, _) | Known::Asked(index, _),
            ) => *index,
            None => {
                let over = steps.count >= STEPS_MAX;
                if over {
                    drop(steps);
                    self.fail(ErrorKind::OverLimit, format!("a run can't have more than {STEPS_MAX} steps"));
                    return None;
                }
                steps.count += 1;
                steps.next_index += 1;
                steps.next_index - 1
            }
        };
        if steps.in_use.capacity() == 0 {
            steps.in_use.reserve(STEPS_EXPECTED);
        }
        steps.in_use.insert(key.clone(), at);
        drop(steps);
        self.set_busy(true);
        let known = known.map(Box::new);
        Some(Ticket {
            execution: self.clone(),
            key,
            index,
            known,
            handed: None,
            asked: None,
            done: false,
            parked: false,
            idle: false,
        })
    }

    /// Keys of the steps that were called so far.
    pub(crate) fn called(&self) -> Vec<String> {
        self.steps().in_use.keys().map(|key| key.to_string()).collect()
    }

    /// Counts the bytes of a checkpoint; says whether they are within the limit.
    pub(super) fn count_bytes(&self, bytes: usize) -> bool {
        let mut steps = self.steps();
        let fits = steps.bytes + bytes <= STEPS_BYTES_MAX;
        if fits {
            steps.bytes += bytes;
        }
        fits
    }

    /// Ends the body: its checkpoints are over their limit.
    pub(super) fn fail_over_bytes(&self) {
        let message = format!("the checkpoints of a run can't be more than {STEPS_BYTES_MAX} bytes");
        self.fail(ErrorKind::OverLimit, message);
    }

    /// Hands a step's outcome to the writer, with the notes that have gathered.
    pub(super) fn hand_over(&self, told: StepTold, admitted: Admitted) -> Handed {
        let Start { run, generation, .. } = *self.start;
        let notes = Some(self.take_notes()).filter(|notes| !notes.is_empty()).map(Box::new);
        let checkpoint = Checkpoint { run, generation, told: told.clone(), notes, part: false };
        Handed { told, pending: self.means.store.submit(Op::Checkpoint, checkpoint, admitted) }
    }

    /// Hands a part of a step to the writer, with the notes that have gathered.
    pub(super) fn hand_part(&self, told: StepTold, admitted: Admitted) -> Pending<Accepted> {
        let Start { run, generation, .. } = *self.start;
        let notes = Some(self.take_notes()).filter(|notes| !notes.is_empty()).map(Box::new);
        let checkpoint = Checkpoint { run, generation, told, notes, part: true };
        self.means.store.submit(Op::Checkpoint, checkpoint, admitted)
    }

    /// What is answered once all that was handed over before is on disk.
    pub(super) fn hand_nothing(&self) -> Pending<Accepted> {
        let Start { run, generation, .. } = *self.start;
        let nothing = NotesOf { run, generation, notes: Notes::default() };
        self.means.store.submit(Op::notes, nothing, Admitted::default())
    }

    /// The index of one more part; without one left, the run is ended.
    pub(super) fn next_part(&self) -> Option<u32> {
        let mut steps = self.steps();
        if steps.count >= STEPS_MAX {
            drop(steps);
            self.fail(
                ErrorKind::OverLimit,
                format!("a run can't have more than {STEPS_MAX} steps and segments of maps"),
            );
            return None;
        }
        steps.count += 1;
        steps.next_index += 1;
        Some(steps.next_index - 1)
    }

    /// Ends the body: the run fails with this.
    pub(super) fn fail(&self, kind: ErrorKind, message: String) {
        self.judge(Verdict::Fails(JobError::of_kind(kind, message)));
    }

    /// Ends the body. The first verdict stands.
    pub(crate) fn judge(&self, verdict: Verdict) {
        let mut held = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(verdict);
            self.signals.raise(Signal::Judged);
        }
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A step can't go on, since its run is cancelled. Without anyone who watches for that, the rest of the grace is no use.
    pub(super) fn stuck(&self) {
        if self.is_cancelled() && !self.watched.load(Ordering::Relaxed) {
            self.judge(Verdict::Over);
        }
    }

    pub(super) fn watch(&self) -> CancellationToken {
        self.watched.store(true, Ordering::Relaxed);
        // One of its own: whoever cancels it cancels no run.
        self.token().child_token()
    }

    /// Fires when the run is cancelled.
    pub(super) fn token(&self) -> &CancellationToken {
        let token = self.cancelled.get_or_init(CancellationToken::new);
        fence(Ordering::SeqCst);
        if self.is_cancelled() {
            quietly("who waits for a cancel", || token.cancel());
        }
        token
    }

    /// Whether an error must not be recorded, since the body was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_cancelled() || self.means.draining.is_cancelled()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(crate) fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// What keeps the body counted as alive.
    pub(super) fn alive(&self) -> Option<Arc<Alive>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The body is gone; whether with it all of its code is.
    pub(crate) fn release(&self) -> Option<Arc<Alive>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Tells listeners something that is not on disk. It is no part of the history, so without a listener nobody is told.
    pub(crate) fn tell(&self, kind: impl FnOnce() -> EventKind) {
        let store = &self.means.store;
        if !store.events().has_readers() {
            return;
        }
        store.events().publish([Told {
            sequence: store.sequence(),
            committed: false,
            timestamp: self.now(),
            subject: self.start.subject.clone(),
            what: What::Kind(Box::new(kind())),
        }]);
    }

    pub(super) fn note_progress(&self, progress: crate::codec::records::ProgressRecord) {
        self.notes().progress = Some(progress);
        self.signals.raise(Signal::Noted);
    }

    pub(super) fn note_line(&self, line: Line) {
        self.notes().push(line);
        self.signals.raise(Signal::Noted);
    }

    pub(crate) fn take_notes(&self) -> Notes {
        std::mem::take(&mut *self.notes())
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parked {
    fn tell(&mut self) {
        self.told = true;
        quietly("who wakes a step", || self.waker.wake_by_ref());
    }
}

impl Ticket {
    /// Tells a test that follows the body that the step begins, if no earlier execution has begun it.
    pub(super) fn note_begin(&self) {
        if self.known.is_none() {
            self.execution.means.hooks.step_begins(&self.execution.start.subject.job_name, &self.key);
        }
    }

    /// Whether its key held another sort of step before, which ends the run.
    pub(super) fn is_other_kind(&self, asked: StepKind) -> bool {
        let held = match self.known.as_deref() {
            Some(Known::Replayed(_, kind, ..)) => *kind,
            Some(Known::Waits(_, record)) => StepKind::from_byte(record.kind).unwrap_or(asked),
            Some(Known::Asked(_, question)) => StepKind::from_byte(question.record.kind).unwrap_or(asked),
            Some(Known::Handed(..)) | None => return false,
        };
        if held != asked {
            let message = format!("step {:?} was a {held} and is a {asked} now", self.key);
            self.execution.fail(ErrorKind::CheckpointMismatch, message);
        }
        held != asked
    }

    /// Waits without keeping the run in memory. Says whether there is something to ask for already: `signals` is how many
    /// signals had come when the step asked last.
    pub(super) fn park(&mut self, open: &WaitRecord, signals: u64, waker: &Waker) -> bool {
        let mut steps = self.execution.steps();
        if let Some(parked) = steps.parked.get_mut(&self.index) {
            parked.waker.clone_from(waker);
            return parked.told;
        }
        let missed = open.signal.is_some() && steps.signals != signals;
        if missed || steps.decided.contains(&self.index) {
            return true;
        }
        steps.parked.insert(self.index, Parked { open: open.clone(), waker: waker.clone(), told: false });
        drop(steps);
        self.parked = true;
        self.execution.parked.fetch_add(1, Ordering::Relaxed);
        self.execution.set_busy(false);
        // Counted before the cancel is looked for; a cancel is said before it looks for what is counted: one of the two sees the
        // other.
        fence(Ordering::SeqCst);
        if self.execution.is_cancelled() {
            self.execution.stuck();
        }
        false
    }

    /// Whether it does nothing but poll other steps, which count for themselves.
    pub(super) fn set_idle(&mut self, idle: bool) {
        if std::mem::replace(&mut self.idle, idle) != idle {
            self.execution.set_busy(!idle);
        }
    }

    /// Waits no more.
    pub(super) fn unpark(&mut self) {
        if std::mem::take(&mut self.parked) {
            self.execution.set_busy(true);
            self.execution.parked.fetch_sub(1, Ordering::Relaxed);
            self.execution.steps().parked.remove(&self.index);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.unpark();
        self.set_idle(false);
        self.execution.set_busy(false);
        if self.done {
            return;
        }
        let mut steps = self.execution.steps();
        steps.in_use.remove(&self.key);
        // What is stored, or on its way to the disk, is what a later call of this key gets.
        let known = match (self.handed.take(), self.asked.take()) {
            (Some(handed), _) => Some(Known::Handed(self.index, handed)),
            (None, Some(asked)) => Some(Known::Asked(self.index, asked)),
            (None, None) => self.known.take().map(|known| *known),
        };
        match known {
            Some(known) => {
                if let Known::Replayed(index, ..) | Known::Waits(index, _) = &known {
                    steps.dropped.insert(*index);
                }
                steps.known.insert(self.key.to_string(), known);
            }
            None => steps.count -= 1,
        }
    }
}
