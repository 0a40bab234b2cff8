//! Storage that fails on demand, a clock moved by hand, and a store over both whose writer runs inline.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use redb::StorageBackend;

use crate::codec;
use crate::codec::keys::Key;
use crate::codec::records::{StepRecord, StepRecordRef, WaitRecord};
use crate::config::Config;
use crate::engine::Generation;
use crate::error::Error;
use crate::event::ring::Received;
use crate::event::{self, Event, Reader, StepTold};
use crate::id::RunId;
use crate::run::{Run, RunFilter, RunStatus, StepInfo, StepKind};
use crate::store::backend::BackendFactory;
use crate::store::file::Medium;
use crate::store::op::{
    Accepted, Admitted, Await, Call, Checkpoint, Concurrency, End, Idempotency, JobSpec, NewRun, Notes, Op, Outcome,
    Resume, Settled, Targets, Terms, Triggered,
};
use crate::store::stage::Stage;
use crate::store::tables::Table;
use crate::store::view::Rows;
use crate::store::writer::{Effects, Start};
use crate::store::{self, Placement, Store};
use crate::time::{Clock, Timestamp};
use crate::trigger::OnConflict;

/// A clock moved by hand.
#[derive(Debug, Default)]
pub(super) struct Hand(AtomicU64);

impl Hand {
    pub(super) fn at(ms: u64) -> Arc<Self> {
        Arc::new(Hand(ms.into()))
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// What an operation that fails does all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fails {
    /// Nothing; a failed flush loses what was written since the last.
    Before,
    /// Everything: only the answer is an error.
    After,
}

/// One fault: the operation of that number fails, and where it is sticky everything after it until so many opens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) at: u64,
    pub(super) fails: Fails,
    /// Opens that fail before the storage works again; `None`: only the one operation fails.
    pub(super) opens: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<u8>,
    /// As of the last flush.
    durable: Vec<u8>,
    ops: u64,
    plan: Option<Plan>,
    /// The plan after that one.
    then: Option<Plan>,
    down: Option<u32>,
    /// Bytes as of every operation, live and durable, where wanted.
    history: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// Storage that outlives the stores over it.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
    clock: Arc<Hand>,
    /// How long an open that fails takes.
    open_takes: Duration,
}

impl Disk {
    pub(super) fn new(clock: &Arc<Hand>) -> Self {
        Disk { state: Arc::default(), clock: clock.clone(), open_takes: Duration::from_millis(100) }
    }

    /// Storage that holds these bytes, all of them flushed.
    pub(super) fn of(bytes: Vec<u8>, clock: &Arc<Hand>) -> Self {
        let state = State { live: bytes.clone(), durable: bytes, ..State::default() };
        Disk { state: Arc::new(Mutex::new(state)), ..Disk::new(clock) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no operation panics")
    }

    /// Operations from here on are numbered from 0, and one of them fails.
    pub(super) fn plan(&self, plan: impl Into<Option<Plan>>) {
        let mut state = self.state();
        (state.ops, state.plan, state.then) = (0, plan.into(), None);
    }

    /// Once the planned fault has happened, operations are numbered from 0 again, and this one follows.
    pub(super) fn then(&self, plan: Plan) {
        self.state().then = Some(plan);
    }

    /// The last fault has not happened yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.state().plan.is_some()
    }

    pub(super) fn ops(&self) -> u64 {
        self.state().ops
    }

    pub(super) fn opens_take(&mut self, takes: Duration) {
        self.open_takes = takes;
    }

    /// What a kill leaves, and what a power loss leaves.
    pub(super) fn images(&self) -> [Vec<u8>; 2] {
        let state = self.state();
        [state.live.clone(), state.durable.clone()]
    }

    pub(super) fn record(&self) {
        self.state().history = Some(Vec::new());
    }

    pub(super) fn recorded(&self) -> usize {
        self.state().history.as_ref().map_or(0, Vec::len)
    }

    pub(super) fn history(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.state().history.take().unwrap_or_default()
    }

    fn op<T>(&self, flushes: bool, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let failure = || io::Error::other("injected");
        if state.down.is_some() {
            return Err(failure());
        }
        let number = state.ops;
        state.ops += 1;
        if let Some(plan) = state.plan.take_if(|plan| plan.at == number) {
            if let Some(next) = state.then.take() {
                (state.ops, state.plan) = (0, Some(next));
            }
            match plan.fails {
                Fails::After => drop(act(&mut state)?),
                Fails::Before if flushes => state.live = state.durable.clone(),
                Fails::Before => {}
            }
            state.down = plan.opens;
            return Err(failure());
        }
        let done = act(&mut state);
        let image = (state.live.clone(), state.durable.clone());
        if let Some(history) = &mut state.history
            && history.last() != Some(&image)
        {
            history.push(image);
        }
        done
    }
}

impl BackendFactory for Disk {
    fn backend(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state();
        match state.down {
            None => Ok(Box::new(self.clone())),
            Some(0) => {
                state.down = None;
                Ok(Box::new(self.clone()))
            }
            Some(opens) => {
                state.down = Some(opens - 1);
                self.clock.advance(self.open_takes);
                Err(io::Error::other("injected"))
            }
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.op(false, |state| Ok(state.live.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.op(false, |state| {
            let from = state.live.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
            out.copy_from_slice(from.ok_or(ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.op(false, |state| {
            state.live.resize(len as usize, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.op(true, |state| {
            state.durable.clone_from(&state.live);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.op(false, |state| {
            let to = state.live.get_mut(offset as usize..).and_then(|rest| rest.get_mut(..data.len()));
            to.ok_or(ErrorKind::UnexpectedEof)?.copy_from_slice(data);
            Ok(())
        })
    }
}

/// What the actors would have been told.
#[derive(Default)]
pub(super) struct Told {
    /// Done inside the next start, while the writer is at work: what it submits is one group.
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub(super) starts: Mutex<Vec<(RunId, Generation)>>,
    pub(super) cancels: Mutex<Vec<(RunId, Generation)>>,
}

impl Effects for Told {
    fn start(&self, starts: Vec<Arc<Start>>) {
        self.starts.lock().expect("whole").extend(starts.iter().map(|start| (start.run, start.generation)));
        let then = self.then.lock().expect("whole").take();
        then.into_iter().for_each(|then| then());
    }

    fn cancel(&self, run: RunId, generation: Generation) {
        self.cancels.lock().expect("whole").push((run, generation));
    }
}

/// A store whose writer runs on this thread: every answer is there when the call returns.
pub(super) struct World {
    pub(super) disk: Disk,
    pub(super) clock: Arc<Hand>,
    pub(super) store: Store,
    pub(super) told: Arc<Told>,
    events: Mutex<Reader<event::Told>>,
}

impl World {
    pub(super) fn new() -> Self {
        let clock = Hand::at(1_000_000);
        World::open(Disk::new(&clock), &clock, |_| {})
    }

    /// A store over the disk, with nobody told anything yet of what was before.
    pub(super) fn open(disk: Disk, clock: &Arc<Hand>, with: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            clock: clock.clone(),
            seed: Some(1),
            cache_bytes: 1 << 20,
            max_concurrent_runs: 8,
            ..Config::default()
        };
        with(&mut config);
        let medium = Medium::Custom(Arc::new(disk.clone()));
        let store = Store::open(medium, &config, Placement::Inline).expect("opens");
        let told = Arc::new(Told::default());
        let events = Mutex::new(store.events().subscribe_after(0));
        store.connect(told.clone()).expect("connects");
        World { disk, clock: clock.clone(), store, told, events }
    }

    /// Another process over what a kill leaves.
    pub(super) fn killed(self, with: impl FnOnce(&mut Config)) -> Self {
        let [live, _] = self.disk.images();
        World::open(Disk::of(live, &self.clock), &self.clock, with)
    }

    /// Another process over what a kill leaves, where somebody has put this row meanwhile.
    pub(super) fn with_row(self, table: Table, key: Key, row: Vec<u8>) -> Self {
        let clock = self.clock.clone();
        let [live, _] = self.disk.images();
        drop(self);
        let disk = Disk::of(live, &clock);
        let medium = Medium::Custom(Arc::new(disk.clone()));
        let mut file = store::disk::Disk::open(medium, Default::default(), clock.clone(), false).expect("opens");
        let mut stage = Stage::default();
        stage.put(table, key, row);
        file.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
        drop(file);
        World::open(disk, &clock, |_| {})
    }

    pub(super) fn ask<Q, A>(&self, wrap: impl FnOnce(Call<Q, A>) -> Op, request: Q) -> Result<A, Error> {
        let pending = self.store.submit(wrap, request, Admitted::default());
        pending.answer().now_or_never().expect("the writer answers inline")
    }

    /// Does this while the writer is at work, so that what it submits is one group.
    pub(super) fn inside_next_start(&self, act: impl FnOnce() + Send + 'static) {
        *self.told.then.lock().expect("whole") = Some(Box::new(act));
    }

    /// Submits all of these to the writer as one group, and gives the answers.
    pub(super) fn trigger_together(&self, runs: Vec<NewRun>) -> Vec<Result<Triggered, Error>> {
        let (store, answers) = (self.store.clone(), Arc::new(Mutex::new(Vec::new())));
        let pending = answers.clone();
        let submit = move || {
            let submit = |run| store.submit(Op::Trigger, vec![run], Admitted::default());
            pending.lock().expect("whole").extend(runs.into_iter().map(submit));
        };
        self.inside_next_start(submit);
        let other = self.trigger(new("the one whose start submits the others")).expect("triggers");
        assert_eq!(other.status, RunStatus::Leased);
        let pending = std::mem::take(&mut *answers.lock().expect("whole"));
        let answers = pending.into_iter().map(|pending| pending.answer().now_or_never().expect("answered inline"));
        answers.map(|answer| answer.map(|mut answers| answers.pop().expect("one"))).collect()
    }

    pub(super) fn register(&self, jobs: &[(&str, u32)]) {
        let specs = jobs.iter().map(|(name, limit)| JobSpec {
            name: (*name).into(),
            terms: Terms { limit: *limit, rate: None, fair: false },
        });
        self.ask(Op::Register, specs.collect()).expect("registers");
    }

    pub(super) fn trigger(&self, run: NewRun) -> Result<Triggered, Error> {
        self.ask(Op::Trigger, vec![run]).map(|mut answers| answers.pop().expect("one"))
    }

    pub(super) fn checkpoint(&self, run: RunId, generation: Generation, index: u32, value: &str) -> Accepted {
        self.ask(Op::Checkpoint, self.checkpoint_of(run, generation, index, value)).expect("bodies get no errors")
    }

    pub(super) fn checkpoint_of(&self, run: RunId, generation: Generation, index: u32, value: &str) -> Checkpoint {
        let now = self.clock.now();
        let step = format!("step-{index}");
        let (key, attempts) = (step.as_str(), 1);
        let header = StepRecordRef {
            key,
            kind: 0,
            version: 0,
            generation,
            started_at: now,
            completed_at: now,
            attempts,
            error: None,
            open: None,
            tries: &[],
        };
        let mut record = Vec::new();
        let output = json(value);
        let Ok(output_at) = codec::seal_into(&mut record, &header, |out| {
            out.extend_from_slice(&output);
            Ok::<(), std::convert::Infallible>(())
        });
        let told = StepTold {
            step: key.into(),
            index,
            duration: Duration::ZERO,
            record: record.into(),
            output_at,
            error: None,
        };
        Checkpoint { run, generation, told, part: false, notes: None }
    }

    /// A step begins to wait, or asks again where its record is on disk.
    pub(super) fn waits(&self, lease: (RunId, Generation), index: u32, record: StepRecord, stored: bool) -> Settled {
        let (run, generation) = lease;
        let asked = Await { run, generation, index, record, stored };
        self.ask(|call| Op::Await(Box::new(call)), asked).expect("bodies get no errors")
    }

    /// The record of a step that begins to wait.
    pub(super) fn waiting(&self, generation: Generation, kind: StepKind, open: WaitRecord) -> StepRecord {
        let now = self.clock.now();
        StepRecord {
            key: "waits".into(),
            kind: kind.to_byte(),
            version: 0,
            generation,
            started_at: now,
            completed_at: now,
            attempts: 1,
            error: None,
            open: Some(open),
            tries: Vec::new(),
        }
    }

    pub(super) fn end(&self, run: RunId, generation: Generation, outcome: Outcome, stopped: bool) -> Accepted {
        let notes = Notes::default();
        let end = End { run, generation, outcome, stopped, duration: Duration::ZERO, notes, unused: Vec::new() };
        self.ask(Op::end, end).expect("bodies get no errors")
    }

    pub(super) fn complete(&self, run: RunId, generation: Generation) -> Accepted {
        self.end(run, generation, Outcome::Completed(json("done")), true)
    }

    pub(super) fn stopped(&self, run: RunId, generation: Generation) {
        self.store.send(Op::Stopped(run, generation));
    }

    pub(super) fn cancel(&self, run: RunId) -> Result<usize, Error> {
        self.ask(Op::Cancel, Targets { runs: vec![run], strict: true })
    }

    pub(super) fn resume(&self, run: RunId) -> Result<usize, Error> {
        let targets = Targets { runs: vec![run], strict: true };
        self.ask(Op::Resume, Resume { targets, clear_failures: Vec::new() })
    }

    pub(super) fn delete(&self, run: RunId) -> Result<(), Error> {
        self.ask(Op::Delete, run)
    }

    pub(super) fn run(&self, run: RunId) -> Option<Run> {
        self.store.get_run(run).now_or_never().expect("reads inline").expect("reads")
    }

    /// All runs, oldest first.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs = self.store.get_runs(RunFilter::new()).now_or_never().expect("reads inline").expect("reads");
        runs.reverse();
        runs
    }

    pub(super) fn steps(&self, run: RunId) -> Vec<StepInfo> {
        self.store.get_steps(run).now_or_never().expect("reads inline").expect("reads")
    }

    /// The tables with a row whose key names a run.
    pub(super) fn tables_that_name(&self, run: RunId) -> Vec<Table> {
        let view = self.store.inner.shared.view().expect("view");
        let names = |table: &Table| {
            let keys = view.keys(*table, &[]).expect("reads");
            keys.iter().any(|key| key.windows(RunId::BYTES).any(|part| part == run.as_bytes()))
        };
        Table::ALL.into_iter().filter(names).collect()
    }

    /// The events since this was last asked.
    pub(super) fn events(&self) -> Vec<Arc<Event>> {
        let mut reader = self.events.lock().expect("whole");
        std::iter::from_fn(|| match reader.try_next() {
            Poll::Ready(Some(received)) => Some(received),
            _ => None,
        })
        .filter_map(|received| match received {
            Received::Event(event) => Some(event),
            Received::Lagged { .. } => None,
        })
        .collect()
    }

    /// Runs that were started since this was last asked.
    pub(super) fn starts(&self) -> Vec<(RunId, Generation)> {
        std::mem::take(&mut *self.told.starts.lock().expect("whole"))
    }
}

pub(super) fn json(value: &str) -> Bytes {
    format!("{value:?}").into()
}

/// A run of job `a`.
pub(super) fn new(input: &str) -> NewRun {
    NewRun {
        job: "a".into(),
        input: json(input),
        fingerprint: fingerprint(input),
        idempotency: None,
        concurrency: None,
        labels: vec![("input".to_owned(), input.chars().take(20).collect())],
        version: 0,
        retriggered_from: None,
        forked: None,
        parent: None,
        not_before: None,
        deadline: None,
        priority: 0,
        schedule: None,
    }
}

fn fingerprint(input: &str) -> [u8; 16] {
    let mut print = [0; 16];
    input.bytes().enumerate().for_each(|(at, byte)| print[at % 16] ^= byte);
    print
}

impl NewRun {
    pub(super) fn idempotent(mut self, key: &str) -> Self {
        let (ttl, reject_changed_input, reuse_after_failure) = (None, false, false);
        self.idempotency = Some(Idempotency { key: key.into(), ttl, reject_changed_input, reuse_after_failure });
        self
    }

    pub(super) fn rejecting_changes(mut self) -> Self {
        if let Some(idempotency) = &mut self.idempotency {
            idempotency.reject_changed_input = true;
        }
        self
    }

    pub(super) fn keyed(mut self, key: &str, on_conflict: OnConflict) -> Self {
        self.concurrency = Some(Concurrency { keys: vec![(key.into(), 1)], on_conflict, max_queued: None });
        self
    }
}
