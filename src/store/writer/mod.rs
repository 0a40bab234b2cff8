//! The writer: one thread that owns every write transaction and the engine that decides inside it.
//!
//! It drains what is waiting, applies each operation in order to the engine and to the group's rows, commits once, then
//! publishes: answers, events, and effects for the actors. A claim that an operation makes possible is written in the same
//! group. What a commit error leaves unknown is settled by [`outage`]; what opening and reopening have in common is in
//! [`rebuild`].
//!
//! Invariant: nothing is published before the commit that carries it, and no engine state outlives a commit that failed.

mod circles;
mod compacting;
mod continuing;
mod control;
mod execution;
mod explain;
mod linger;
mod look;
mod outage;
mod publisher;
mod rebuild;
mod schedules;
mod throttles;
mod triggers;
mod turn;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::Fault;
use super::disk::Disk;
use super::inbox::Inbox;
use super::op::{Admitted, Call, Counts, End, News, Notes, Op, Outcome, Terms};
use super::reserve::Reserve;
use super::tail::{Counters, LiveChange};
use crate::codec::Corrupted;
use crate::codec::records::{RunRecord, StateRecord, TallyRecord};
use crate::config::{LogRetention, StepRetention};
use crate::engine::{Engine, Event as EngineEvent, Generation, JobNumber, Keys};
use crate::error::Error;
use crate::event::{Bell, Ended, Ring, Subject, Told};
use crate::hooks::{Bug, Failpoint, Hooks};
use crate::id::{IdSource, RunId, RunMap};
use crate::limits::{ALARM_RECHECK, GROUP_BYTES_MAX, GROUP_OPS_MAX, TAIL_AGE_FOLD};
use crate::quietly::discard;
use crate::run::RunStatus;
use crate::time::{Clock, Timestamp};
use linger::Linger;
use look::Look;
use publisher::Publisher;
use turn::Turn;

/// What the writer tells the actors, after the commit.
pub(crate) trait Effects: Send + Sync {
    /// Leases are on disk: start their bodies.
    fn start(&self, starts: Vec<Arc<Start>>);
    /// The run's cancel is on disk: tell the body.
    fn cancel(&self, run: RunId, generation: Generation);
    /// Something that a step of the body may wait for is on disk: tell the body.
    fn news(&self, _run: RunId, _generation: Generation, _news: News) {}
    /// A group is on disk: takes what bodies asked for, to answer it soon and elsewhere; leaves what can't be. Events that the
    /// published ones push out are dropped there too.
    fn answer(&self, _ops: &mut Vec<Op>) {}
}

/// A lease that is on disk, with what its body needs.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    pub(crate) job: JobNumber,
    pub(crate) subject: Arc<Subject>,
    pub(crate) input: Bytes,
    pub(crate) keys: Keys,
    /// Whether it may have checkpoints: it has been leased before, or has begun with those of another run.
    pub(crate) replay: bool,
    /// The version of the job's code that the run was triggered with.
    pub(crate) version: u32,
}

/// Whether the store works, and how far it is.
#[derive(Debug, Default)]
pub(crate) struct Condition {
    degraded: AtomicBool,
    sequence: AtomicU64,
}

impl Condition {
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    fn set_degraded(&self, degraded: bool) {
        self.degraded.store(degraded, Ordering::Relaxed);
    }

    /// The sequence of the last committed event.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    fn set_sequence(&self, sequence: u64) {
        self.sequence.store(sequence, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct WriterConfig {
    pub(crate) slots: u32,
    pub(crate) paused: bool,
    pub(crate) max_recoveries: u32,
    pub(crate) keep_steps: StepRetention,
    pub(crate) keep_logs: LogRetention,
    pub(crate) seed: Option<u64>,
    pub(crate) hooks: Hooks,
    pub(crate) owner: Arc<str>,
}

/// A run whose body is alive, or about to be.
#[derive(Debug, Clone)]
struct Body {
    generation: Generation,
    job: JobNumber,
    subject: Arc<Subject>,
    record: Arc<RunRecord>,
    /// The run's state as of the operations applied so far.
    state: StateRecord,
    /// When this lease was given; where that is not known any more, when the run was started.
    since: Timestamp,
    /// A checkpoint was recorded by this lease.
    checkpointed: bool,
    /// How often it was told of something that its steps may wait for; `None`: that is not known any more.
    news: Option<u64>,
    /// Where its counters stand as readers see them.
    place: u32,
}

impl Body {
    /// Its counters, for readers of the next commit.
    fn live(&self) -> LiveChange {
        LiveChange::Counts(self.place, self.counters())
    }

    fn counters(&self) -> Counters {
        Counters {
            steps_completed: self.state.steps_completed,
            step_index: self.state.step_index,
            updated_at: self.state.updated_at.unwrap_or(self.record.created_at),
        }
    }
}

/// Where counters of bodies stand: places that were left are taken first.
#[derive(Debug, Default)]
struct Places {
    left: Vec<u32>,
    used: u32,
}

impl Places {
    fn take(&mut self) -> u32 {
        self.left.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        })
    }
}

/// What of a body outlives the engine that started it.
#[derive(Debug, Clone)]
struct Alive {
    generation: Generation,
    job: JobNumber,
    keys: Keys,
}

/// Why a group is not on disk, or not known to be.
enum Failed {
    /// This operation met a row that can't be read. Nothing was committed.
    Refused(usize, Corrupted),
    /// The file failed. What was built comes back if the commit had begun.
    File(Option<Box<turn::Done>>, Fault),
}

impl Failed {
    fn file(fault: Fault) -> Box<Self> {
        Box::new(Failed::File(None, fault))
    }
}

/// Someone who waits until bodies are gone.
struct Watcher {
    op: Op,
    /// Runs that had ended when it began to wait.
    ended: u64,
}

#[derive(Debug, Default)]
struct Jobs {
    numbers: BTreeMap<Arc<str>, JobNumber>,
    names: BTreeMap<JobNumber, Arc<str>>,
    /// Those whose code is here.
    registered: BTreeMap<JobNumber, Terms>,
    /// No number up to this one is given out: some have lost their name to a row that can't be read.
    nameless: JobNumber,
}

pub(crate) struct Writer {
    disk: Disk,
    engine: Engine,
    config: WriterConfig,
    clock: Arc<dyn Clock>,
    ids: IdSource,
    jobs: Jobs,
    tallies: BTreeMap<JobNumber, TallyRecord>,
    /// Boxed, so that the way to one leads through little memory.
    bodies: RunMap<Box<Body>>,
    places: Places,
    /// Runs whose end steps of others wait for: the awaited run, the waiting one, its step.
    awaited: BTreeSet<(RunId, RunId, u32)>,
    schedules: schedules::Schedules,
    /// Runs that ended since the start.
    ended: u64,
    /// Start no new run.
    paused: bool,
    /// Nor is that taken back.
    draining: bool,
    /// Runs are started for [`Op::Idle`] all the same: so many more, or any number.
    working_off: bool,
    allowance: Option<u64>,
    /// More can be started than one commit did.
    starts_left: bool,
    /// Groups since a body asked for anything.
    undisturbed: u32,
    watchers: Vec<Watcher>,
    inbox: Arc<Inbox>,
    pending: Vec<Op>,
    /// Memory for the next group.
    spare: turn::Spare,
    spare_ops: Vec<Op>,
    publisher: Publisher,
    reserve: Reserve,
    /// When it was last tried to make one, by the monotonic clock.
    reserve_tried: Duration,
}

/// What a writer works with besides its file.
pub(crate) struct Surroundings {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) events: Ring<Told>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) condition: Arc<Condition>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Whether it is in no group with others.
fn goes_alone(op: &Op) -> bool {
    matches!(op, Op::Close(_) | Op::Compact(_))
}

impl Writer {
    /// A writer over an opened file. Recovers what was executing when the last process ended, and folds the journal.
    pub(crate) fn new(
        disk: Disk,
        reserve: Reserve,
        config: WriterConfig,
        surroundings: Surroundings,
    ) -> Result<Writer, Fault> {
        let Surroundings { inbox, events, bell, condition, clock } = surroundings;
        let mut writer = Writer {
            engine: Engine::new(config.slots, config.paused),
            ids: IdSource::new(disk.last_id(), config.seed),
            disk,
            clock,
            jobs: Jobs::default(),
            tallies: BTreeMap::new(),
            bodies: RunMap::default(),
            places: Places::default(),
            awaited: BTreeSet::new(),
            schedules: schedules::Schedules::default(),
            ended: 0,
            paused: config.paused,
            draining: false,
            working_off: false,
            allowance: None,
            starts_left: false,
            undisturbed: 0,
            watchers: Vec::new(),
            inbox,
            pending: Vec::new(),
            spare: turn::Spare::default(),
            spare_ops: Vec::new(),
            publisher: Publisher {
                effects: None,
                events,
                bell,
                condition,
                alive: RunMap::default(),
                hooks: config.hooks.clone(),
            },
            reserve,
            reserve_tried: Duration::ZERO,
            config,
        };
        writer.reserve_tried = writer.clock.monotonic();
        writer.rebuild()?;
        writer.disk.fold_all()?;
        writer.publisher.condition.set_sequence(writer.disk.next_sequence() - 1);
        // On a disk that is full the reserve is made when there is room.
        writer.publisher.condition.set_degraded(writer.reserve.is_missing());
        Ok(writer)
    }

    /// Whom to tell what is to be done. Nothing is started before.
    pub(crate) fn connect(&mut self, effects: Arc<dyn Effects>) {
        self.publisher.effects = Some(effects);
    }

    /// Works until it is told to close.
    pub(crate) fn run(mut self) {
        match catch_unwind(AssertUnwindSafe(|| self.work())) {
            Ok(()) => self.close(),
            Err(thrown) => {
                discard(thrown);
                self.abandon();
            }
        }
    }

    fn work(&mut self) {
        let (inbox, mut linger) = (self.inbox.clone(), Linger::default());
        let mut look = Look::on(std::thread::available_parallelism().map_or(1, usize::from));
        loop {
            let timeout = if self.pending.is_empty() { self.timeout() } else { Some(Duration::ZERO) };
            if timeout != Some(Duration::ZERO) && look.pays(linger.last()) {
                look.looked(inbox.look(look::LOOK_MAX));
            }
            inbox.take(&mut self.pending, timeout);
            if let Some(wanted) = linger.wanted(self.pending.len(), self.bodies.len()) {
                inbox.linger(&mut self.pending, wanted, linger::LINGER_MAX);
                linger.lingered(self.pending.len() >= wanted);
            }
            linger.took(self.pending.len(), self.pending.iter().filter(|op| op.is_from_outside()).count());
            if self.step(Some(Duration::ZERO)) {
                return;
            }
        }
    }

    /// Ends without a word to the file, so that nobody waits for a writer that is no more: what executes is found as crashed by the
    /// next start.
    fn abandon(mut self) {
        tracing::error!("the writer panicked, which is a fault of the library's; the runtime is at its end");
        self.publisher.condition.set_degraded(true);
        let left = self.inbox.close();
        left.into_iter().chain(self.pending.drain(..)).for_each(|op| op.settle(Some(Error::ShutDown)));
        self.publisher.events.close();
        self.publisher.bell.silence();
    }

    /// One group: waits for the first operation up to `timeout`, then does all that can be done at once. Says whether it is
    /// time to close.
    pub(crate) fn step(&mut self, timeout: Option<Duration>) -> bool {
        let timeout = if self.pending.is_empty() { timeout } else { Some(Duration::ZERO) };
        self.inbox.clone().take(&mut self.pending, timeout);
        while self.disk.must_fold() {
            if self.turn(Vec::new()).is_break() {
                return true;
            }
        }
        let mut ops = self.gather();
        match ops.pop_if(|op| goes_alone(op)) {
            Some(Op::Compact(call)) => return self.compact(call).is_break(),
            Some(op) => {
                self.watchers.push(Watcher { op, ended: self.ended });
                return true;
            }
            None => {}
        }
        if self.turn(ops).is_break() {
            return true;
        }
        self.notice_quiet();
        false
    }

    /// The operations of the next group. Mostly that is all there are, and none is moved.
    fn gather(&mut self) -> Vec<Op> {
        let (mut count, mut bytes) = (0, 0);
        for op in &self.pending {
            let alone = goes_alone(op);
            bytes += op.bytes();
            if count > 0 && (alone || count >= GROUP_OPS_MAX || bytes > GROUP_BYTES_MAX) {
                break;
            }
            count += 1;
            if alone {
                break;
            }
        }
        let mut rest = std::mem::take(&mut self.spare_ops);
        rest.extend(self.pending.drain(count..));
        std::mem::replace(&mut self.pending, rest)
    }

    /// Whether more is to be done than the last group did.
    pub(super) fn has_pending(&self) -> bool {
        self.starts_left || !self.pending.is_empty()
    }

    /// How long to wait for an operation before there is something to do without one.
    pub(super) fn timeout(&self) -> Option<Duration> {
        if self.starts_left || self.disk.wants_folding() {
            return Some(Duration::ZERO);
        }
        let now = self.clock.monotonic();
        let tick = self.engine.deadline().map(|at| at.saturating_sub(now));
        let fold = self.disk.has_tail().then_some(TAIL_AGE_FOLD);
        // Moments are of the wall clock, which may be set meanwhile.
        let alarm = self.next_alarm().map(|left| left.min(ALARM_RECHECK));
        let reserve = self.reserve.is_missing().then_some(outage::RESERVE_AGAIN_AFTER);
        tick.into_iter().chain(fold).chain(alarm).chain(reserve).min()
    }

    /// How long, by the wall clock, until something is due.
    fn next_alarm(&self) -> Option<Duration> {
        let at = self.engine.next_alarm().into_iter().chain(self.schedules.next_due()).min();
        at.map(|at| at.since(self.clock.now()))
    }

    /// How long until something is due, and how many bodies there are.
    #[cfg(feature = "testing")]
    pub(super) fn outlook(&self) -> (Option<Duration>, usize) {
        let tick = self.engine.deadline().map(|at| at.saturating_sub(self.clock.monotonic()));
        (tick.into_iter().chain(self.next_alarm()).min(), self.engine.bodies())
    }

    /// Applies a group, commits it, publishes it; again after an outage, until it is decided. Breaks where the file stays
    /// away and the writer is to end.
    fn turn(&mut self, mut ops: Vec<Op>) -> ControlFlow<()> {
        let mut outage = outage::Outage::default();
        let of_bodies = ops.iter().any(|op| !op.is_from_outside());
        self.undisturbed = if of_bodies { 0 } else { self.undisturbed.saturating_add(1) };
        while self.settle_group(&mut outage, &mut ops).is_continue() {}
        if outage.is_given_up() {
            outage::release(&mut ops, || Error::Indeterminate);
            ops.into_iter().for_each(|op| op.settle(Some(Error::ShutDown)));
            return ControlFlow::Break(());
        }
        self.recovered(&outage);
        let ended = self.ended;
        for op in ops.extract_if(.., |op| matches!(op, Op::Quiet(_) | Op::Idle(_))) {
            self.watchers.push(Watcher { op, ended });
        }
        ops.drain(..).for_each(|op| op.settle(None));
        self.spare_ops = ops;
        ControlFlow::Continue(())
    }

    /// One attempt at a group, with what its failing takes. Breaks once the group is decided, or the writer is to end.
    fn settle_group(&mut self, outage: &mut outage::Outage, ops: &mut Vec<Op>) -> ControlFlow<()> {
        let group = self.disk.next_group();
        let before = (self.working_off, self.allowance, self.engine.waits());
        // A panic on what a damaged file gave is one more way for it to fail.
        let attempt = catch_unwind(AssertUnwindSafe(|| self.attempt(ops)));
        let failed = match attempt.unwrap_or_else(|_| Err(Failed::file(Fault::Panicked))) {
            Ok(done) => {
                self.publish(done, ops);
                return ControlFlow::Break(());
            }
            Err(failed) => *failed,
        };
        match failed {
            Failed::Refused(at, row) => {
                tracing::error!(error = %row, "an operation is refused");
                ops.remove(at).settle(Some(Fault::Corrupted(row).into()));
            }
            Failed::File(done, fault) => {
                self.ride_out(outage, &fault, ops)?;
                if self.disk.has_group(group) && !self.config.hooks.plants(Bug::CommitErrorIsNo) {
                    // Its callers are answered once the engine is there again.
                    done.into_iter().for_each(|done| self.publish(*done, &mut Vec::new()));
                    self.rebuild_or_ride_out(outage, ops)?;
                    return ControlFlow::Break(());
                }
            }
        }
        // The group is not there: what it changed in memory goes with it.
        let waits;
        (self.working_off, self.allowance, waits) = before;
        self.engine.keep_waits(waits);
        self.rebuild_or_ride_out(outage, ops)
    }

    /// Builds a group and commits it.
    fn attempt(&mut self, ops: &mut Vec<Op>) -> Result<turn::Done, Box<Failed>> {
        let shared = self.disk.shared().clone();
        if shared.is_suspect() {
            return Err(Failed::file(Fault::Unread));
        }
        let view = shared.view().map_err(Failed::file)?;
        let (spare, now, monotonic) = (std::mem::take(&mut self.spare), self.clock.now(), self.clock.monotonic());
        let mut turn = Turn::with(spare, &view, self.disk.next_sequence(), now, monotonic);
        self.starts_left = false;
        if self.engine.deadline().is_some_and(|at| at <= turn.monotonic) {
            self.tell_engine(&mut turn, EngineEvent::Tick);
        }
        self.engine.tell_time(turn.now);
        self.ring(&mut turn).map_err(Failed::file)?;
        self.fire_due(&mut turn).map_err(Failed::file)?;
        for (at, op) in ops.iter_mut().enumerate() {
            self.apply(&mut turn, op).map_err(|fault| match fault {
                Fault::Corrupted(row) => Box::new(Failed::Refused(at, row)),
                fault => Failed::file(fault),
            })?;
            self.claim(&mut turn).map_err(Failed::file)?;
        }
        self.claim(&mut turn).map_err(Failed::file)?;
        self.write_tallies(&mut turn);
        let mut done = turn.done();
        drop(view);
        if done.stage.is_empty() && !self.disk.wants_folding() {
            return Ok(done);
        }
        let hooks = self.config.hooks.clone();
        hooks.pass(Failpoint::BeforeCommit);
        if hooks.plants(Bug::AckBeforeCommit) {
            ops.drain(..).for_each(|op| op.settle(None));
        }
        if hooks.plants(Bug::CheckpointBeforeCommit) {
            ops.extract_if(.., |op| matches!(op, Op::Checkpoint(_))).for_each(|op| op.settle(None));
        }
        if hooks.plants(Bug::ClosedBeforeFlush) && self.is_closing() {
            done.news.recorded(&done.stage, None);
            return Ok(done);
        }
        let sequences = if hooks.plants(Bug::SequenceGivenTwice) { 0 } else { done.sequences() };
        let sequence = self.disk.next_sequence() + sequences - 1;
        let turn::Done { stage, news, live, told, .. } = &mut done;
        let committed = self.disk.commit(stage, sequences, self.ids.last(), live, |row| {
            hooks.pass(Failpoint::AfterCommit);
            news.recorded(stage, row);
            *told = Some(self.publisher.tell(news, stage.bytes(), sequence, ops));
        });
        match committed {
            Ok(()) => Ok(done),
            Err(fault) => {
                // Should it be there all the same, it is told.
                done.news.recorded(&done.stage, None);
                Err(Box::new(Failed::File(Some(Box::new(done)), fault)))
            }
        }
    }

    /// Applies one operation. What it can't do is its answer; an error here means that the file, or a row, can't be read.
    fn apply(&mut self, turn: &mut Turn<'_>, op: &mut Op) -> Result<(), Fault> {
        match op {
            Op::Register(call) => {
                self.register(turn, &call.request);
                call.decide(Ok(()));
            }
            Op::Trigger(call) => call.decide(self.trigger(turn, &call.request)?),
            Op::Cancel(call) => call.decide(self.cancel(turn, &call.request)?),
            Op::Resume(call) => call.decide(self.resume(turn, &call.request)?),
            Op::Delete(call) => call.decide(self.delete(turn, call.request)?),
            Op::Purge(call) => call.decide(self.purge(turn, &call.request)?),
            Op::Wait(call) => call.decide(self.wait(turn, call.request.0, call.request.1)?),
            Op::WaitOver(waiter, run) => self.engine.wait_over(*waiter, *run),
            Op::Checkpoint(call) => call.decide(Ok(self.checkpoint(turn, &call.request)?)),
            Op::Await(call) => call.decide(Ok(self.step_waits(turn, &call.request)?)),
            Op::Spawn(call) => call.decide(self.spawn(turn, &call.request)?),
            Op::Signal(call) => call.decide(self.signal(turn, &call.request)?),
            Op::Schedule(call) => call.decide(self.schedule(turn, &call.request)?),
            Op::ChangeSchedule(call) => {
                let (name, change) = &call.request;
                call.decide(self.change_schedule(turn, name, *change)?);
            }
            Op::Fire(call) => call.decide(self.fire_now(turn, &call.request)?),
            Op::End(call) => call.decide(Ok(self.end(turn, &call.request)?)),
            Op::Notes(call) => call.decide(Ok(self.notes(turn, &call.request)?)),
            Op::Stopped(run, generation) => self.stopped(turn, *run, *generation),
            Op::Pause(call) => {
                self.pause(turn, call.request);
                call.decide(Ok(()));
            }
            Op::Drain => {
                self.draining = true;
                self.pause(turn, true);
            }
            Op::Idle(call) => self.work_off(turn, call.request),
            Op::Explain(call) => call.decide(self.explain(turn, call.request)?),
            Op::Throttle(call) => call.decide(self.throttle(turn, &call.request)),
            Op::Throttled(call) => call.decide(Ok(self.throttled())),
            Op::Stats(call) => call.decide(Ok(self.counts())),
            Op::Quiet(_) | Op::Close(_) | Op::Compact(_) | Op::Tick => {}
        }
        Ok(())
    }

    fn tell_engine(&mut self, turn: &mut Turn<'_>, event: EngineEvent) {
        self.engine.apply(event, turn.monotonic);
    }

    /// Tells everyone what is on disk now, but for what was told when it got there. Takes the operations that are answered.
    fn publish(&mut self, mut done: turn::Done, ops: &mut Vec<Op>) {
        let rest = done.told.take().unwrap_or_else(|| {
            self.publisher.tell(&mut done.news, done.stage.bytes(), self.disk.next_sequence() - 1, ops)
        });
        self.ended += done.ends.iter().filter(|(_, ended)| !matches!(ended, Ended::Deleted)).count() as u64;
        self.publisher.tell_rest(rest, &mut done.news, &done.ends, ops);
        self.spare = done.into_spare();
    }

    /// Starts no new run, or goes on. Also ends the working off of a queue: a stop, or a shutdown, starts nothing more.
    fn pause(&mut self, turn: &mut Turn<'_>, paused: bool) {
        (self.paused, self.working_off, self.allowance) = (paused || self.draining, false, None);
        self.tell_engine(turn, EngineEvent::Paused(self.paused));
    }

    /// Starts runs for [`Op::Idle`] though the runtime is paused; for several at once, as many as all of them ask for.
    fn work_off(&mut self, turn: &mut Turn<'_>, limit: Option<u64>) {
        if self.paused && !self.draining {
            self.allowance = match (self.allowance, limit) {
                _ if !self.working_off => limit,
                (Some(left), Some(more)) => Some(left.saturating_add(more)),
                (None, _) | (_, None) => None,
            };
            self.working_off = true;
            self.tell_engine(turn, EngineEvent::Paused(false));
        }
    }

    /// Answers those who wait for bodies to be gone, or for enough runs to have ended.
    fn notice_quiet(&mut self) {
        if self.watchers.is_empty() {
            return;
        }
        let no_bodies = self.engine.bodies() == 0;
        let startable = !self.engine.is_paused() && self.allowance != Some(0) && self.engine.has_startable();
        let (ended, working_off) = (self.ended, self.working_off);
        let is_over = |watcher: &Watcher| match &watcher.op {
            Op::Quiet(_) => no_bodies,
            Op::Idle(call) => {
                let enough = call.request.is_some_and(|limit| ended - watcher.ended >= limit);
                (no_bodies && !startable) || (enough && (no_bodies || !working_off))
            }
            _ => false,
        };
        let (over, waiting): (Vec<Watcher>, _) = std::mem::take(&mut self.watchers).into_iter().partition(is_over);
        self.watchers = waiting;
        for Watcher { mut op, ended: before } in over {
            match &mut op {
                Op::Idle(call) => call.decide(Ok(ended - before)),
                Op::Quiet(call) => call.decide(Ok(())),
                _ => {}
            }
            op.settle(None);
        }
        if self.working_off && !self.watchers.iter().any(|watcher| matches!(watcher.op, Op::Idle(_))) {
            self.working_off = false;
            self.allowance = None;
            self.engine.apply(EngineEvent::Paused(self.paused), self.clock.monotonic());
        }
    }

    fn counts(&self) -> Counts {
        let mut jobs: BTreeMap<JobNumber, [u64; 6]> = BTreeMap::new();
        for (job, [pending, leased, suspended]) in self.engine.counts() {
            let counts = jobs.entry(job).or_default();
            counts[usize::from(RunStatus::Pending.to_byte())] = pending;
            counts[usize::from(RunStatus::Leased.to_byte())] = leased;
            counts[usize::from(RunStatus::Suspended.to_byte())] = suspended;
        }
        for (job, tally) in &self.tallies {
            let counts = jobs.entry(*job).or_default();
            counts[usize::from(RunStatus::Completed.to_byte())] = tally.completed;
            counts[usize::from(RunStatus::Failed.to_byte())] = tally.failed;
            counts[usize::from(RunStatus::Cancelled.to_byte())] = tally.cancelled;
        }
        let named = self.jobs.numbers.iter();
        let named = named.filter_map(|(name, job)| Some((name.to_string(), jobs.remove(job)?)));
        Counts {
            jobs: named.collect(),
            commits: self.disk.commits,
            flushes: self.disk.io.flushes.load(Ordering::Relaxed),
            bytes_written: self.disk.io.bytes_written.load(Ordering::Relaxed),
        }
    }

    /// Whether somebody has asked for the end.
    fn is_closing(&self) -> bool {
        let watching = self.watchers.iter().map(|watcher| &watcher.op);
        watching.chain(&self.pending).any(|op| matches!(op, Op::Close(_)))
    }

    /// Hands back what still has a lease: bodies that a shutdown leaves behind, or whose message was not taken up.
    fn hand_back_all(&mut self) -> ControlFlow<()> {
        let mut bodies: Vec<_> = self.bodies.iter().collect();
        bodies.sort_unstable_by_key(|(run, _)| **run);
        let ends = bodies.into_iter().map(|(run, body)| {
            let end = End {
                run: *run,
                generation: body.generation,
                outcome: Outcome::HandedBack,
                stopped: false,
                duration: Duration::ZERO,
                notes: Notes::default(),
                unused: Vec::new(),
            };
            Op::end(Call::new(end, Admitted::default()).0)
        });
        let ends: Vec<Op> = ends.collect();
        if ends.is_empty() { ControlFlow::Continue(()) } else { self.turn(ends) }
    }

    /// Folds, closes the file, and tells whoever asked for it; everyone else learns that it is over.
    pub(super) fn close(mut self) {
        let hand_back = self.watchers.iter().any(|watcher| matches!(&watcher.op, Op::Close(call) if call.request));
        let away = self.disk.is_away() || (hand_back && self.hand_back_all().is_break());
        if away {
            tracing::error!("the file stays away: what executes is found as crashed by the next start");
        }
        self.config.hooks.pass(Failpoint::HandedBack);
        let left = self.inbox.close();
        for op in left.into_iter().chain(self.pending) {
            match op {
                Op::Close(_) => self.watchers.push(Watcher { op, ended: self.ended }),
                op => op.settle(Some(Error::ShutDown)),
            }
        }
        // While the file is locked: after that it may be the reserve of who has it next. What it frees may be what folding needs.
        if let Err(error) = self.reserve.give_up() {
            tracing::warn!(%error, "the reserve is left beside the file");
        }
        // A panic on what a damaged file gave is one more way for it to fail.
        let disk = self.disk;
        let closed = catch_unwind(AssertUnwindSafe(|| disk.close())).unwrap_or(Err(Fault::Panicked));
        self.config.hooks.pass(Failpoint::Closed);
        self.publisher.events.close();
        self.publisher.bell.silence();
        let mut failure = away.then_some(Fault::Away);
        if let Err(fault) = closed {
            tracing::warn!(error = %fault, "the journal was not folded at the end; the next start will");
            failure.get_or_insert(fault);
        }
        for Watcher { mut op, .. } in self.watchers {
            if let Op::Close(call) = &mut op {
                call.decide(failure.take().map_or(Ok(()), |fault| Err(Error::Storage(Box::new(fault)))));
            }
            op.settle(None);
        }
    }
}
