//! A program that uses a runtime over a [`SimDisk`], and the ledger of what it was told.
//!
//! The ledger is outside of whatever crashes. It knows of everything that was asked when it began and, if it was answered, when:
//! a place in the disk's history. Whatever the disk then keeps of that history, what was answered before must be there, what was
//! not may be, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use durably::testing::suites::{Bug, Disk};
use durably::{
    Clock, Disposition, Durably, Error, Job, JobHandle, Run, RunFilter, RunId, RunStatus, Step, Timestamp, Trigger,
};
use tokio::sync::{mpsc, oneshot};

use super::simdisk::SimDisk;

/// A value of this length has a row of its own in the file.
const LARGE: usize = 17 << 10;

pub type Tag = u64;

/// What a user does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Trigger {
        idempotency: Option<u8>,
        concurrency: Option<u8>,
        large: bool,
    },
    Batch(u8),
    /// Of the runs that execute, the one of this rank.
    Checkpoint {
        nth: usize,
        large: bool,
    },
    Finish {
        nth: usize,
        ok: bool,
    },
    /// Of all runs.
    Cancel(usize),
    Resume(usize),
    Delete(usize),
    Purge,
}

/// The acts of which small workloads are all the words.
pub const ALPHABET: [Act; 9] = [
    Act::Trigger { idempotency: Some(1), concurrency: Some(1), large: false },
    Act::Trigger { idempotency: None, concurrency: Some(1), large: true },
    Act::Batch(2),
    Act::Checkpoint { nth: 0, large: true },
    Act::Finish { nth: 0, ok: true },
    Act::Cancel(0),
    Act::Resume(0),
    Act::Delete(0),
    Act::Purge,
];

impl Act {
    pub fn random(rng: &mut fastrand::Rng) -> Act {
        match rng.u32(..20) {
            0..=4 => Act::Trigger {
                idempotency: rng.bool().then(|| rng.u8(..6)),
                concurrency: rng.bool().then(|| rng.u8(..3)),
                large: rng.u32(..4) == 0,
            },
            5 => Act::Batch(rng.u8(2..5)),
            6..=10 => Act::Checkpoint { nth: rng.usize(..8), large: rng.u32(..3) == 0 },
            11..=13 => Act::Finish { nth: rng.usize(..8), ok: rng.u32(..3) > 0 },
            14..=15 => Act::Cancel(rng.usize(..)),
            16 => Act::Resume(rng.usize(..)),
            17..=18 => Act::Delete(rng.usize(..)),
            _ => Act::Purge,
        }
    }
}

/// What was asked about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Created { batch: Option<u64> },
    Step(u32, String),
    Ends(RunStatus),
    Resumed,
    Deleted,
}

#[derive(Debug, Clone)]
struct Entry {
    begun: usize,
    answered: Option<usize>,
    what: What,
}

/// All that is known of a run.
#[derive(Debug, Clone, Default)]
struct Known {
    run: Option<RunId>,
    key: Option<String>,
    entries: Vec<Entry>,
}

/// What was asked and answered.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    runs: BTreeMap<Tag, Known>,
    next: Tag,
    /// Where in history which event was the last that was told of.
    sequences: Vec<(usize, u64)>,
    /// The first event of this life must come after this one.
    floor: u64,
}

impl Known {
    /// Statuses that it may have after this much of history, and whether it must be there.
    fn allowed(&self, at: usize) -> (BTreeSet<RunStatus>, bool, bool) {
        let mut allowed = BTreeSet::new();
        let (mut must, mut may) = (false, false);
        for entry in self.entries.iter().filter(|entry| entry.begun <= at) {
            let answered = entry.answered.is_some_and(|answered| answered <= at);
            let statuses: &[RunStatus] = match &entry.what {
                What::Created { .. } => {
                    (must, may) = (must || answered, true);
                    &[RunStatus::Pending, RunStatus::Leased]
                }
                What::Resumed => &[RunStatus::Pending, RunStatus::Leased],
                What::Ends(status) => std::slice::from_ref(status),
                What::Step(..) => continue,
                What::Deleted => {
                    must = false;
                    may &= !answered;
                    continue;
                }
            };
            if answered {
                allowed.clear();
            }
            allowed.extend(statuses.iter().copied());
        }
        (allowed, must, may)
    }

    /// Whether it has certainly ended, or certainly not.
    fn is_terminal(&self) -> Option<bool> {
        let (allowed, must, _) = self.allowed(usize::MAX);
        let terminal = allowed.iter().filter(|status| status.is_terminal()).count();
        if !must {
            None
        } else if terminal == allowed.len() {
            Some(true)
        } else if terminal == 0 {
            Some(false)
        } else {
            None
        }
    }
}

/// Moves by itself, a little with each look: time passes, the same in each run.
#[derive(Debug)]
pub struct Ticking(AtomicU64);

impl Ticking {
    pub fn new() -> Arc<Self> {
        Arc::new(Ticking(AtomicU64::new(1_700_000_000_000_000)))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_micros() as u64, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
struct Shared(Arc<Ticking>);

impl Clock for Shared {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.0.fetch_add(10, Ordering::Relaxed) / 1_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.0.fetch_add(10, Ordering::Relaxed))
    }
}

enum Command {
    Step(Tag, String, oneshot::Sender<()>),
    Finish(bool),
}

/// The bodies that execute, and the ledger that they write to.
#[derive(Default)]
struct Gates {
    open: Mutex<BTreeMap<Tag, mpsc::UnboundedSender<Command>>>,
    ledger: Mutex<Ledger>,
    /// The ledger while it is checked in another thread's place.
    disk: Arc<SimDisk>,
}

impl Gates {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("the ledger is sound")
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Tag, mpsc::UnboundedSender<Command>>> {
        self.open.lock().expect("the gates are sound")
    }

    /// Something is asked; gives its place.
    fn begin(&self, tag: Tag, what: What) -> (Tag, usize) {
        let begun = self.disk.at();
        let mut ledger = self.ledger();
        let entries = &mut ledger.runs.entry(tag).or_default().entries;
        entries.push(Entry { begun, answered: None, what });
        (tag, entries.len() - 1)
    }

    fn answered(&self, (tag, at): (Tag, usize)) {
        let now = self.disk.at();
        if let Some(known) = self.ledger().runs.get_mut(&tag) {
            known.entries[at].answered = Some(now);
        }
    }

    /// It was refused: it has not happened.
    fn refused(&self, (tag, at): (Tag, usize)) {
        if let Some(known) = self.ledger().runs.get_mut(&tag) {
            // As if it began after all of history, so that places stay.
            known.entries[at].begun = usize::MAX;
        }
    }

    /// What an answer says.
    fn settle<T>(&self, place: (Tag, usize), answer: &Result<T, Error>) {
        match answer {
            Ok(_) => self.answered(place),
            Err(Error::Indeterminate | Error::Storage(_)) => {}
            Err(_) => self.refused(place),
        }
    }
}

/// Closes a gate with its body.
struct Closes(Arc<Gates>, Tag);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.open().remove(&self.1);
    }
}

type Input = (Tag, String);

fn work(gates: Arc<Gates>) -> Job<Input, u64> {
    Job::new("work", move |step: Step, (tag, _): Input| {
        let gates = gates.clone();
        async move {
            let (sender, mut commands) = mpsc::unbounded_channel();
            gates.open().insert(tag, sender);
            let _closes = Closes(gates.clone(), tag);
            // Replays what is recorded, however many there are.
            let recorded = gates.ledger().steps_of(tag);
            for (index, value) in recorded {
                let known = value.clone();
                let found = step.run(("s", index), || async { Ok(known.clone()) }).await?;
                assert_eq!(found, value, "replayed");
            }
            while let Some(command) = commands.recv().await {
                match command {
                    Command::Step(index, value, done) => {
                        let place = gates.begin(tag, What::Step(index as u32, value.clone()));
                        let given = value.clone();
                        step.run(("s", index), || async { Ok(given.clone()) }).await?;
                        gates.answered(place);
                        let _ = done.send(());
                    }
                    Command::Finish(true) => return Ok(tag),
                    Command::Finish(false) => return Err("as told".into()),
                }
            }
            std::future::pending().await
        }
    })
}

impl Ledger {
    /// The checkpoints of a run that were asked for, in order: each that is recorded is replayed.
    fn steps_of(&self, tag: Tag) -> Vec<(u64, String)> {
        let entries = self.runs.get(&tag).map(|known| &known.entries[..]).unwrap_or_default();
        let steps: BTreeMap<u64, String> = entries
            .iter()
            .filter_map(|entry| match &entry.what {
                What::Step(index, value) if entry.begun != usize::MAX => Some((u64::from(*index), value.clone())),
                _ => None,
            })
            .collect();
        steps.into_iter().collect()
    }
}

/// How runtimes are opened here.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub two_phase: bool,
    pub bug: Option<Bug>,
    /// Bytes at which folding begins, and rows in a slice.
    pub fold: (usize, usize),
    pub seed: u64,
}

impl Setup {
    pub fn random(rng: &mut fastrand::Rng, bug: Option<Bug>) -> Setup {
        let fold = ([200, 2_000, 40_000][rng.usize(..3)], [1, 3, 50, 4_096][rng.usize(..4)]);
        Setup { two_phase: rng.u32(..4) == 0, bug, fold, seed: rng.u64(..) }
    }

    pub async fn open(&self, disk: Arc<SimDisk>, clock: &Arc<Ticking>, paused: bool) -> Result<Durably, Error> {
        let builder = Durably::builder()
            .cache_bytes(1 << 20)
            .cancel_grace(Duration::from_millis(1))
            .max_recoveries(1_000_000)
            .two_phase_commit(self.two_phase)
            .clock(Shared(clock.clone()))
            .seed(self.seed)
            .paused(paused)
            .fold_at(self.fold.0, self.fold.1);
        let builder = if let Some(bug) = self.bug { builder.plant(bug) } else { builder };
        builder.open_simulated(disk as Arc<dyn Disk>).await
    }
}

/// A runtime of a program's life, and what it was told.
pub struct Life {
    pub durably: Durably,
    job: JobHandle<Input, u64>,
    gates: Arc<Gates>,
    events: durably::Events,
}

/// Lets everything happen that can without anybody doing anything more: the clock is paused and moves when all wait.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

impl Life {
    pub async fn begin(
        setup: &Setup,
        disk: &Arc<SimDisk>,
        clock: &Arc<Ticking>,
        ledger: Ledger,
    ) -> Result<Life, Error> {
        let gates = Arc::new(Gates { ledger: Mutex::new(ledger), disk: disk.clone(), ..Gates::default() });
        let durably = setup.open(disk.clone(), clock, false).await?;
        let events = durably.events();
        let job = durably.register(work(gates.clone()))?;
        settle().await;
        Ok(Life { durably, job, gates, events })
    }

    pub fn ledger(&self) -> Ledger {
        self.gates.ledger().clone()
    }

    /// Whether the run that was asked for last was acknowledged.
    pub fn last_is_there(&self) -> bool {
        self.gates.ledger().runs.last_key_value().is_some_and(|(_, known)| known.run.is_some())
    }

    /// Does one thing, and notes what it was told. Gives what must not be.
    pub async fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Trigger { idempotency, concurrency, large } => {
                let (tag, trigger, place) = self.new_run(idempotency, concurrency, large, None);
                let answer = async { self.job.batch_trigger([trigger]).await.map(|mut runs| runs.remove(0)) }.await;
                self.created(tag, place, &answer.map(|run| (run.id(), run.disposition())))?;
            }
            Act::Batch(count) => {
                let batch = Some(self.gates.ledger().next);
                let runs: Vec<_> =
                    (0..count).map(|nth| self.new_run(None, (nth == 0).then_some(2), nth == 1, batch)).collect();
                let answer = self.job.batch_trigger(runs.iter().map(|(_, trigger, _)| trigger.clone())).await;
                for (at, (tag, _, place)) in runs.into_iter().enumerate() {
                    let answer = match &answer {
                        Ok(runs) => Ok((runs[at].id(), runs[at].disposition())),
                        Err(Error::Indeterminate | Error::Storage(_)) => Err(Error::Indeterminate),
                        Err(_) => Err(Error::ShutDown),
                    };
                    self.created(tag, place, &answer)?;
                }
            }
            Act::Checkpoint { nth, large } => {
                let Some((tag, gate)) = self.nth_open(nth) else { return Ok(()) };
                let index = self.gates.ledger().steps_of(tag).len() as u64;
                let value = format!("{tag}:{index}:{}", "x".repeat(if large { LARGE } else { 3 }));
                let (done, wait) = oneshot::channel();
                if gate.send(Command::Step(index, value, done)).is_ok() && wait.await.is_err() {
                    return Err(format!("a checkpoint of run {tag} has no answer"));
                }
            }
            Act::Finish { nth, ok } => {
                let Some((tag, gate)) = self.nth_open(nth) else { return Ok(()) };
                let Some(run) = self.id(tag) else { return Ok(()) };
                let status = if ok { RunStatus::Completed } else { RunStatus::Failed };
                let place = self.gates.begin(tag, What::Ends(status));
                let _ = gate.send(Command::Finish(ok));
                match (ok, self.durably.wait_for_run(run).await) {
                    (true, Ok(_)) | (false, Err(Error::RunFailed { .. })) => self.gates.answered(place),
                    // It can't be read just now; whether it ended is found out later.
                    (_, Err(Error::Storage(_))) => {}
                    (_, other) => return Err(format!("run {tag} was to end {status}: {other:?}")),
                }
            }
            Act::Cancel(nth) => {
                let Some((tag, run)) = self.nth_run(nth) else { return Ok(()) };
                let place = self.gates.begin(tag, What::Ends(RunStatus::Cancelled));
                self.gates.settle(place, &self.durably.cancel(run).await);
            }
            Act::Resume(nth) => {
                let Some((tag, run)) = self.nth_run(nth) else { return Ok(()) };
                let place = self.gates.begin(tag, What::Resumed);
                self.gates.settle(place, &self.durably.resume(run).await);
            }
            Act::Delete(nth) => {
                let Some((tag, run)) = self.nth_run(nth) else { return Ok(()) };
                let place = self.gates.begin(tag, What::Deleted);
                self.gates.settle(place, &self.durably.delete_run(run).await);
            }
            Act::Purge => {
                let all: Vec<_> =
                    self.gates.ledger().runs.iter().map(|(tag, known)| (*tag, known.is_terminal())).collect();
                let begun: Vec<_> = all
                    .into_iter()
                    .filter(|(_, terminal)| *terminal != Some(false))
                    .map(|(tag, terminal)| (self.gates.begin(tag, What::Deleted), terminal))
                    .collect();
                let answer = self.durably.purge_runs(Timestamp::from_millis(u64::MAX >> 8)).await;
                for (place, terminal) in begun {
                    if answer.is_ok() && terminal == Some(true) {
                        self.gates.answered(place);
                    }
                }
            }
        }
        settle().await;
        self.take_events()
    }

    /// Numbers of events grow, in a life and over all of them.
    fn take_events(&mut self) -> Result<(), String> {
        use futures::FutureExt;
        let mut last = self.gates.ledger().sequences.last().map_or(0, |(_, last)| *last);
        while let Some(Some(received)) = self.events.next().now_or_never() {
            let durably::Received::Event(event) = received else { continue };
            if event.committed {
                let floor = self.gates.ledger().floor;
                if event.sequence <= last || event.sequence <= floor {
                    return Err(format!("event {} comes after event {}", event.sequence, last.max(floor)));
                }
                last = event.sequence;
            }
        }
        let at = self.gates.disk.at();
        self.gates.ledger().sequences.push((at, last));
        Ok(())
    }

    fn new_run(
        &self,
        idempotency: Option<u8>,
        concurrency: Option<u8>,
        large: bool,
        batch: Option<u64>,
    ) -> (Tag, Trigger<Input>, (Tag, usize)) {
        let tag = {
            let mut ledger = self.gates.ledger();
            ledger.next += 1;
            ledger.next
        };
        let mut trigger = Trigger::new((tag, "i".repeat(if large { LARGE } else { 5 })))
            .label("parity", if tag % 2 == 0 { "even" } else { "odd" });
        if let Some(key) = idempotency {
            trigger = trigger.idempotency_key(format!("i{key}"));
        }
        if let Some(key) = concurrency {
            trigger = trigger.concurrency_key(format!("c{key}"));
        }
        let place = self.gates.begin(tag, What::Created { batch });
        if let Some(known) = self.gates.ledger().runs.get_mut(&tag) {
            known.key = idempotency.map(|key| format!("i{key}"));
        }
        (tag, trigger, place)
    }

    fn created(
        &self,
        tag: Tag,
        place: (Tag, usize),
        answer: &Result<(RunId, Disposition), Error>,
    ) -> Result<(), String> {
        match answer {
            Ok((run, Disposition::Created)) => {
                let mut ledger = self.gates.ledger();
                let known = ledger.runs.entry(tag).or_default();
                known.run = Some(*run);
                drop(ledger);
                self.gates.answered(place);
            }
            Ok((run, _)) => {
                self.gates.refused(place);
                let ledger = self.gates.ledger();
                if ledger.runs.values().any(|known| known.run == Some(*run) && !known.allowed(usize::MAX).2) {
                    return Err(format!("run {run} is deleted and answers for its key"));
                }
            }
            Err(Error::Indeterminate | Error::Storage(_)) => {}
            Err(_) => self.gates.refused(place),
        }
        Ok(())
    }

    fn id(&self, tag: Tag) -> Option<RunId> {
        self.gates.ledger().runs.get(&tag).and_then(|known| known.run)
    }

    fn nth_open(&self, nth: usize) -> Option<(Tag, mpsc::UnboundedSender<Command>)> {
        let open = self.gates.open();
        let nth = nth.checked_rem(open.len())?;
        open.iter().nth(nth).map(|(tag, gate)| (*tag, gate.clone()))
    }

    fn nth_run(&self, nth: usize) -> Option<(Tag, RunId)> {
        let ledger = self.gates.ledger();
        let runs: Vec<_> = ledger.runs.iter().filter_map(|(tag, known)| Some((*tag, known.run?))).collect();
        runs.get(nth.checked_rem(runs.len())?).copied()
    }
}

/// What is wrong with what was recovered, the disk's history being cut after `at` changes; and what is known from here on.
pub async fn check(durably: &Durably, ledger: &Ledger, at: usize) -> Result<Ledger, String> {
    let found = durably.audit().await.map_err(|error| format!("can't be verified: {error}"))?;
    if !found.is_sound() {
        return Err(format!("{} ({} in all)", found.problems[0], found.problem_count));
    }
    let mut runs: BTreeMap<Tag, Run> = BTreeMap::new();
    for run in durably.get_runs(RunFilter::new().limit(1_000)).await.map_err(|error| format!("runs: {error}"))? {
        let tag = run.input.as_ref().and_then(|input| input.get(0)?.as_u64()).ok_or("an input without a tag")?;
        if let Some(twin) = runs.insert(tag, run) {
            return Err(format!("run {tag} is there twice: the other is {}", twin.id));
        }
    }
    let floor = ledger.sequences.iter().filter(|(told, _)| *told <= at).map(|(_, last)| *last).max();
    let mut kept = Ledger { next: ledger.next, floor: floor.unwrap_or(0).max(ledger.floor), ..Ledger::default() };
    let mut batches: BTreeMap<u64, BTreeSet<bool>> = BTreeMap::new();
    for (tag, known) in &ledger.runs {
        let (allowed, must, may) = known.allowed(at);
        let run = runs.remove(tag);
        let batch =
            known.entries.iter().find_map(|entry| if let What::Created { batch } = entry.what { batch } else { None });
        if let Some(batch) = batch.filter(|_| !known.entries.iter().any(|entry| entry.what == What::Deleted)) {
            batches.entry(batch).or_default().insert(run.is_some());
        }
        let Some(run) = run else {
            if must {
                return Err(format!("run {tag} is lost"));
            }
            continue;
        };
        if !may {
            return Err(format!("run {tag} was deleted, or never asked for, and is there as {}", run.status));
        }
        if known.run.is_some_and(|id| id != run.id) {
            return Err(format!("run {tag} has another id"));
        }
        if !allowed.contains(&run.status) {
            return Err(format!("run {tag} is {}, and may be {allowed:?}", run.status));
        }
        let steps = check_steps(durably, *tag, known, &run, at).await?;
        let entry = |what| Entry { begun: 0, answered: Some(0), what };
        let mut entries = vec![entry(What::Created { batch: None })];
        entries.extend(steps.into_iter().map(|(index, value)| entry(What::Step(index, value))));
        if run.status.is_terminal() {
            entries.push(entry(What::Ends(run.status)));
        }
        kept.runs.insert(*tag, Known { run: Some(run.id), key: run.idempotency_key.clone(), entries });
    }
    if let Some((tag, _)) = runs.first_key_value() {
        return Err(format!("run {tag} was never asked for"));
    }
    if batches.values().any(|there| there.len() > 1) {
        return Err("a batch is there in part".into());
    }
    Ok(kept)
}

/// Steps that were answered are there with what was handed over, and no others are but such as were asked for.
async fn check_steps(
    durably: &Durably,
    tag: Tag,
    known: &Known,
    run: &Run,
    at: usize,
) -> Result<Vec<(u32, String)>, String> {
    let found = durably.get_steps(run.id).await.map_err(|error| format!("steps of {tag}: {error}"))?;
    let found: BTreeMap<String, Option<String>> = found
        .into_iter()
        .map(|step| (step.name, step.output.and_then(|value| value.as_str().map(str::to_owned))))
        .collect();
    let mut steps = Vec::new();
    let mut asked = 0;
    for entry in known.entries.iter().filter(|entry| entry.begun <= at) {
        let What::Step(index, value) = &entry.what else { continue };
        match found.get(&format!("s[{index}]")) {
            Some(Some(output)) if output == value => {
                asked += 1;
                steps.push((*index, value.clone()));
            }
            Some(other) => return Err(format!("step {index} of run {tag} is {:?}", other.as_ref().map(String::len))),
            None if entry.answered.is_some_and(|answered| answered <= at) => {
                return Err(format!("step {index} of run {tag} is lost"));
            }
            None => {}
        }
    }
    if asked != found.len() {
        return Err(format!("run {tag} has {} steps and {asked} were asked for", found.len()));
    }
    Ok(steps)
}

/// Keys of runs that are there answer with them. Writes nothing where they do.
pub async fn check_keys(durably: &Durably, kept: &Ledger) -> Result<(), String> {
    let keyed: Vec<_> =
        kept.runs.iter().filter_map(|(tag, known)| Some((*tag, known.run?, known.key.clone()?))).collect();
    if keyed.is_empty() {
        return Ok(());
    }
    let job = durably.register(work(Arc::default())).map_err(|error| format!("registers: {error}"))?;
    for (tag, run, key) in keyed {
        let again = job.trigger((tag, "again".to_owned())).idempotency_key(key).await;
        let again = again.map_err(|error| format!("asks again: {error}"))?;
        if (again.id(), again.disposition()) != (run, Disposition::Idempotent) {
            return Err(format!("the idempotency key of run {tag} is free"));
        }
    }
    Ok(())
}
