//! Does the same to the runtime and to the reference, and compares everything that can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use durably::testing::suites::Bug;
use durably::{
    Clock, Disposition, Durably, Error, Events, Job, JobHandle, OnConflict, Received, RunFilter, RunHandle, RunId,
    RunStatus, Step, Timestamp, Trigger,
};
use futures::FutureExt;
use serde_json::{Value, json};

use super::bodies::{Bodies, Command};
use super::reference::{Answer, Asked, Filter, Model, Number, Refusal};
use crate::suites::simulation::clock::SimClock;
use crate::suites::simulation::disk::{Fault, SimDisk};

const JOBS: [(&str, usize); 3] = [("many", usize::MAX), ("two", 2), ("one", 1)];
const KEYS: [(&str, u32); 3] = [("a", 1), ("b", 2), ("b", 1)];
const IDEMPOTENCY: [&str; 3] = ["i", "j", "k"];
const STEPS: [&str; 4] = ["s", "t", "u", "v"];
/// Far from everything else, so that a cancelled body ends only where it is told to.
const GRACE: Duration = Duration::from_secs(1_000_000);

macro_rules! operations {
    ($($name:ident $weight:literal,)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($name),+ }

        /// Every operation, with how often it is drawn.
        pub const KINDS: &[(Kind, u32)] = &[$((Kind::$name, $weight)),+];
    };
}
operations! {
    Trigger 14, TryTrigger 2, TriggerJson 3, Batch 5, Wait 2, Cancel 6, CancelWhere 1, Retrigger 3, RetriggerWhere 1,
    Resume 6, ResumeWhere 1, Delete 3, Purge 4, PurgeUpTo 1, GetRun 1, GetRuns 4, GetSteps 1, GetLogs 1, Stats 1,
    Subscribe 1, Register 2, Start 2, Stop 2, RunUntilIdle 2, Step 16, StepBegins 5, StepReturns 6, Returns 6, Fails 2,
    Propagates 3, Panics 1, Logs 2, Crash 3, Shutdown 2, Fault 3, Jump 2, Advance 2,
}

/// An operation with what its arguments derive from.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub kind: Kind,
    pub seed: u64,
}

pub type Counts = BTreeMap<(Kind, bool), u64>;

/// Carries the operations out; the first difference ends it.
pub fn carry_out(seed: u64, operations: &[Operation], bug: Option<Bug>, counts: &mut Counts) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (slots, max_recoveries) = (random.usize(1..5), random.u32(..2));
    let clock = SimClock::default();
    let mut case = Case {
        model: Model::new(slots, max_recoveries),
        ids: Vec::new(),
        bodies: Bodies::default(),
        disk: SimDisk::new(&clock, seed, Vec::new()),
        clock,
        random,
        bug,
        last_sequence: 0,
        counts,
        uncertain_logs: BTreeSet::new(),
    };
    let mut left = operations;
    let mut registered = 0b111;
    let mut paused = false;
    loop {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O");
        let ended = runtime.block_on(case.live(&mut left, registered, paused));
        let bytes = case.disk.cut();
        drop(runtime);
        match ended.map_err(|what| format!("{what}, with {} of {} left", left.len(), operations.len()))? {
            Some(arguments) => (registered, paused) = (arguments.0, arguments.1),
            None => return Ok(()),
        }
        case.disk = SimDisk::new(&case.clock, case.random.u64(..), bytes);
        case.bodies = Bodies::default();
    }
}

struct Case<'a> {
    model: Model,
    /// Ids by number.
    ids: Vec<RunId>,
    bodies: Bodies,
    disk: Arc<SimDisk>,
    clock: SimClock,
    random: fastrand::Rng,
    bug: Option<Bug>,
    last_sequence: u64,
    counts: &'a mut Counts,
    /// Runs whose lines may have gone with a crash or a cancel.
    uncertain_logs: BTreeSet<Number>,
}

struct Life {
    durably: Durably,
    jobs: BTreeMap<usize, JobHandle<u64, u64>>,
    events: Events,
}

/// Which jobs the next life registers, and whether it begins paused.
type Next = (u8, bool);

macro_rules! same {
    ($is:expr, $should:expr, $($what:tt)+) => {{
        let (is, should) = ($is, $should);
        if is != should {
            return Err(format!("{}: is {is:?}, should be {should:?}", format_args!($($what)+)));
        }
    }};
}

impl Case<'_> {
    async fn live(&mut self, left: &mut &[Operation], registered: u8, paused: bool) -> Result<Option<Next>, String> {
        self.clock.begin();
        let sleeping = self.clock.clone();
        let mut builder = Durably::builder()
            .clock(self.clock.clone())
            .seed(self.random.u64(..))
            .max_concurrent_runs(self.model.slots)
            .max_recoveries(self.model.max_recoveries)
            .cancel_grace(GRACE)
            .shutdown_grace(Duration::from_millis(10))
            .cache_bytes(1 << 20)
            .paused(paused)
            .fold_at(1 << self.random.u32(8..25), self.random.usize(1..50))
            .sleeping_by(move |pause| sleeping.pass(pause));
        if let Some(bug) = self.bug {
            builder = builder.plant(bug);
        }
        self.model.now = self.clock.now().as_millis();
        self.model.paused = paused;
        let opened = builder.open_simulated(self.disk.clone()).await;
        let durably = opened.map_err(|error| format!("the file can't be opened: {error}"))?;
        let events = durably.events().after(self.last_sequence);
        let mut life = Life { durably, jobs: BTreeMap::new(), events };
        for job in (0..JOBS.len()).filter(|job| registered & (1 << job) != 0) {
            self.register(&mut life, job)?;
        }
        self.settle(&mut life).await?;
        self.compare(&life).await?;
        while let Some((operation, rest)) = left.split_first() {
            *left = rest;
            let ended = self.operate(&mut life, *operation).await;
            let ended = ended.map_err(|what| format!("{:?}: {what}", operation.kind))?;
            if ended.is_some() {
                return Ok(ended);
            }
            let kept = async {
                self.settle(&mut life).await?;
                self.compare(&life).await
            };
            kept.await.map_err(|what| format!("after {:?}: {what}", operation.kind))?;
        }
        Ok(None)
    }

    fn register(&mut self, life: &mut Life, job: usize) -> Result<(), String> {
        let bodies = self.bodies.clone();
        let (name, most) = JOBS[job];
        let mut definition = Job::new(name, move |step: Step, input: u64| bodies.clone().body(step, input));
        if most < usize::MAX {
            definition = definition.concurrency(most as u32);
        }
        let registered = life.durably.register(definition);
        self.count(Kind::Register, registered.is_ok());
        match (registered, self.model.registered.contains_key(&job)) {
            (Ok(handle), false) => {
                life.jobs.insert(job, handle);
                self.model.register(job, most);
                Ok(())
            }
            (Err(Error::JobAlreadyRegistered { .. }), true) => Ok(()),
            (other, known) => Err(format!("registering {name}, known {known}: {other:?}")),
        }
    }

    fn count(&mut self, kind: Kind, worked: bool) {
        *self.counts.entry((kind, worked)).or_default() += 1;
    }

    /// Everything that can happen has happened, and what was told of it is in order.
    async fn settle(&mut self, life: &mut Life) -> Result<(), String> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Some(Some(received)) = life.events.next().now_or_never() {
            match received {
                Received::Event(event) if event.committed => {
                    same!(event.sequence, self.last_sequence + 1, "P23: the sequence of {}", event.kind.name());
                    self.last_sequence = event.sequence;
                }
                Received::Event(_) => {}
                lagged => return Err(format!("P23: {lagged:?}")),
            }
        }
        Ok(())
    }

    fn number(&self, id: RunId) -> Option<Number> {
        self.ids.iter().position(|known| *known == id)
    }

    fn any(&self, random: &mut fastrand::Rng) -> Option<(Number, RunId)> {
        if self.ids.is_empty() {
            return None;
        }
        // Mostly of the newest, so that what is done collides.
        let newest = self.ids.len() - random.usize(1..=self.ids.len().min(6));
        let number = if random.u8(..4) == 0 { random.usize(..self.ids.len()) } else { newest };
        Some((number, self.ids[number]))
    }

    /// A body that is not inside a step, or one that is.
    fn any_body(&self, random: &mut fastrand::Rng, inside: bool) -> Option<(Number, RunId)> {
        let bodies = self.model.bodies.iter().filter(|(_, body)| body.inside.is_some() == inside);
        let numbers: Vec<Number> = bodies.map(|(number, _)| *number).collect();
        random.choice(numbers).map(|number| (number, self.ids[number]))
    }

    async fn operate(&mut self, life: &mut Life, operation: Operation) -> Result<Option<Next>, String> {
        let mut random = fastrand::Rng::with_seed(operation.seed);
        self.model.now = self.clock.now().as_millis();
        let kind = operation.kind;
        match kind {
            Kind::Trigger | Kind::TryTrigger | Kind::TriggerJson => self.trigger(life, kind, &mut random).await?,
            Kind::Batch => self.batch(life, &mut random).await?,
            Kind::Register => self.register(life, random.usize(..JOBS.len()))?,
            Kind::Step
            | Kind::StepBegins
            | Kind::StepReturns
            | Kind::Returns
            | Kind::Fails
            | Kind::Propagates
            | Kind::Panics
            | Kind::Logs => self.command(kind, &mut random).await?,
            Kind::GetRuns | Kind::GetRun | Kind::GetSteps | Kind::GetLogs | Kind::Stats | Kind::Subscribe => {
                self.read(life, kind, &mut random).await?;
            }
            Kind::Start => {
                let started = life.durably.start().await;
                self.count(kind, started.is_ok());
                started.map_err(|error| error.to_string())?;
                self.model.pause(false);
            }
            Kind::Stop => {
                let stopped = tokio::time::timeout(Duration::from_millis(1), life.durably.stop()).await;
                self.count(kind, stopped.is_ok());
                same!(stopped.is_ok(), self.model.bodies.is_empty(), "stop returned");
                self.model.pause(true);
            }
            Kind::RunUntilIdle if self.model.bodies.is_empty() => {
                let limit = random.bool().then_some(1);
                self.bodies.set_auto(true);
                let ended = life.durably.run_until_idle(limit).await;
                self.bodies.set_auto(false);
                self.count(kind, ended.is_ok());
                let should = if self.model.paused { self.model.work_off(limit) } else { 0 };
                same!(ended.ok(), Some(should), "run_until_idle({limit:?})");
            }
            Kind::RunUntilIdle => {}
            Kind::Fault => {
                let fault = if random.bool() { Fault::Fails } else { Fault::DoneAndFails };
                // One at a time: the second would strike the reopening, which then waits.
                self.disk.heal();
                self.disk.plan(random.u64(..6), fault);
                self.count(kind, true);
            }
            Kind::Jump => {
                self.clock.jump(i64::from(random.i8(-10..=10)) * 365 * 86_400_000);
                self.count(kind, true);
            }
            Kind::Advance => {
                tokio::time::sleep(Duration::from_millis(random.u64(..10_000))).await;
                self.count(kind, true);
            }
            Kind::Crash => {
                self.count(kind, true);
                self.uncertain_logs.extend(self.model.runs.keys());
                self.disk.heal();
                self.disk.cut();
                self.model.now = self.clock.now().as_millis();
                self.model.crash();
                return Ok(Some((random.u8(..8) | random.u8(..8), random.u8(..4) == 0)));
            }
            Kind::Shutdown => {
                self.disk.heal();
                let ended = life.durably.shutdown().await;
                self.count(kind, ended.is_ok());
                ended.map_err(|error| error.to_string())?;
                self.uncertain_logs.extend(self.model.runs.keys());
                self.model.shut_down();
                self.settle(life).await?;
                self.closed(life).await?;
                return Ok(Some((random.u8(..8) | random.u8(..8), random.u8(..4) == 0)));
            }
            Kind::Wait => self.wait(life, &mut random).await?,
            _ => self.outside(life, kind, &mut random).await?,
        }
        Ok(None)
    }

    // Triggers.

    fn asked(&self, random: &mut fastrand::Rng, job: usize) -> Asked {
        let mut asked = Asked { job, input: random.u64(..3), ..Asked::default() };
        if random.bool() {
            let (key, limit) = KEYS[random.usize(..KEYS.len())];
            asked.concurrency = Some((key.to_owned(), limit));
            let policies = [OnConflict::Queue, OnConflict::Reject, OnConflict::Skip, OnConflict::Replace];
            asked.on_conflict = policies[random.usize(..4)];
        }
        if random.u8(..3) == 0 {
            asked.idempotency = Some(IDEMPOTENCY[random.usize(..3)].to_owned());
            asked.ttl_ms = random.bool().then(|| random.u64(..60_000));
            asked.reject_changed = random.u8(..3) == 0;
            asked.reuse = random.u8(..3) == 0;
        }
        for key in ["x", "y"] {
            if random.bool() {
                asked.labels.insert(key.to_owned(), ["0", "1"][random.usize(..2)].to_owned());
            }
        }
        asked
    }

    async fn trigger(&mut self, life: &Life, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let job = random.usize(..JOBS.len());
        let asked = self.asked(random, job);
        let invalid = random.u8(..12) == 0;
        let answer = match (kind, life.jobs.get(&job)) {
            (Kind::TriggerJson, _) | (_, None) => {
                let input = if invalid { json!("no number") } else { json!(asked.input) };
                let call = with(life.durably.trigger_json(JOBS[job].0, input), &asked);
                call.await.map(|run| (run.id(), run.disposition(), run.input_differs(), run.status()))
            }
            (Kind::TryTrigger, Some(handle)) => {
                let call = with(handle.try_trigger(asked.input), &asked);
                told(if invalid { call.label("not a key!", "").await } else { call.await })
            }
            (_, Some(handle)) => {
                let call = with(handle.trigger(asked.input), &asked);
                told(if invalid { call.label("not a key!", "").await } else { call.await })
            }
        };
        self.count(kind, answer.is_ok());
        if invalid && self.model.registered.contains_key(&job) {
            return match answer {
                Err(Error::InvalidInput { .. } | Error::InvalidOption { .. }) => Ok(()),
                other => Err(format!("an invalid trigger: {other:?}")),
            };
        }
        let should = self.model.trigger(&[asked]).map_err(|(_, refusal)| refusal);
        self.answered(answer.map(|answer| vec![answer]), should)
    }

    async fn batch(&mut self, life: &Life, random: &mut fastrand::Rng) -> Result<(), String> {
        let jobs: Vec<usize> = life.jobs.keys().copied().collect();
        let Some(job) = random.choice(jobs) else { return Ok(()) };
        let asked: Vec<Asked> = (0..random.usize(..6)).map(|_| self.asked(random, job)).collect();
        let items = asked.iter().map(|asked| with(Trigger::new(asked.input), asked));
        let answer = life.jobs[&job].batch_trigger(items).await;
        self.count(Kind::Batch, answer.is_ok());
        let answer = answer.map(|runs| runs.into_iter().map(|run| told(Ok(run))).collect::<Result<Vec<_>, _>>());
        let answer = match answer {
            Ok(runs) => runs,
            Err(error) => Err(error),
        };
        match (answer, self.model.trigger(&asked)) {
            (Err(Error::Item { index, error }), Err((at, refusal))) => {
                same!(index, at, "the item that is refused");
                self.answered(Err(*error), Err(refusal))
            }
            (answer, should) => self.answered(answer, should.map_err(|(_, refusal)| refusal)),
        }
    }

    fn answered(
        &mut self,
        answer: Result<Vec<(RunId, Disposition, bool, RunStatus)>, Error>,
        should: Result<Vec<Answer>, Refusal>,
    ) -> Result<(), String> {
        match (answer, should) {
            (Ok(answers), Ok(should)) => {
                same!(answers.len(), should.len(), "answers");
                for ((id, disposition, differs, status), should) in answers.into_iter().zip(should) {
                    same!(disposition, should.disposition, "disposition of {id}");
                    same!(differs, should.differs, "input_differs of {id}");
                    if disposition == Disposition::Created {
                        self.created(id, should.run)?;
                    }
                    same!(Some(id), self.ids.get(should.run).copied(), "the run of the answer");
                    same!(status, self.model.runs[&should.run].status, "status of the answer");
                }
                Ok(())
            }
            (Err(error), Err(refusal)) if fits(&error, &refusal) => Ok(()),
            (answer, should) => Err(format!("is {answer:?}, should be {should:?}")),
        }
    }

    fn created(&mut self, id: RunId, number: Number) -> Result<(), String> {
        same!(self.ids.len(), number, "the number of a new run");
        if self.ids.last().is_some_and(|last| *last >= id) {
            return Err(format!("ids do not grow: {id} after {:?}", self.ids.last()));
        }
        self.ids.push(id);
        Ok(())
    }

    // What bodies do.

    async fn command(&mut self, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let inside = kind == Kind::StepReturns;
        let Some((number, id)) = self.any_body(random, inside) else { return Ok(()) };
        let body = self.model.bodies[&number].clone();
        let outcome = if random.u8(..3) == 0 { Err(format!("no {}", random.u8(..))) } else { Ok(random.u64(..100)) };
        let unused: Vec<&str> = STEPS.iter().copied().filter(|key| !body.used.contains(*key)).collect();
        let stored = |key: &str| self.model.runs.get(&number).is_some_and(|run| run.steps.contains_key(key));
        let (_, _) = (self.bodies.take_ran(), self.bodies.take_given());
        let (mut ran, mut given) = (Vec::new(), Vec::new());
        match kind {
            Kind::Step | Kind::StepBegins => {
                let begins = kind == Kind::StepBegins;
                let unused = unused.into_iter().filter(|key| !begins || !stored(key));
                let Some(key) = random.choice(unused.collect::<Vec<_>>()) else { return Ok(()) };
                let known = stored(key);
                if begins {
                    self.bodies.tell(id, Command::Begin(key.to_owned()));
                    self.model.step_begins(number, key);
                } else {
                    self.bodies.tell(id, Command::Step(key.to_owned(), outcome.clone()));
                    given.extend(self.model.step(number, key, outcome.clone()).map(|got| (id, key.to_owned(), got)));
                }
                if !body.ended && !known {
                    ran.push((id, key.to_owned()));
                }
                self.count(kind, outcome.is_ok() && !body.ended);
            }
            Kind::StepReturns => {
                let key = body.inside.as_ref().map(|(key, _)| key.clone()).unwrap_or_default();
                self.bodies.tell(id, Command::Settle(outcome.clone()));
                given.extend(self.model.step_returns(number, outcome.clone()).map(|got| (id, key, got)));
                self.count(kind, outcome.is_ok() && !body.ended);
            }
            Kind::Returns => {
                self.bodies.tell(id, Command::Return(7));
                self.model.completes(number, 7);
                self.count(kind, !body.ended);
            }
            Kind::Fails => {
                self.bodies.tell(id, Command::Fail("it does not work".to_owned()));
                self.model.fails(number, "it does not work", None);
                self.count(kind, !body.ended);
            }
            Kind::Propagates => {
                // A step that fails, and its error ends the run.
                let unused = unused.into_iter().filter(|key| !stored(key));
                let Some(key) = random.choice(unused.collect::<Vec<_>>()) else { return Ok(()) };
                if body.ended {
                    return Ok(());
                }
                self.bodies.tell(id, Command::Step(key.to_owned(), Err("no".to_owned())));
                self.bodies.tell(id, Command::Propagate);
                given.extend(self.model.step(number, key, Err("no".to_owned())).map(|got| (id, key.to_owned(), got)));
                ran.push((id, key.to_owned()));
                self.model.fails(number, "no", Some(key));
                self.count(kind, true);
            }
            Kind::Panics => {
                self.bodies.tell(id, Command::Panic);
                self.model.fails(number, "a body panics", None);
                self.count(kind, !body.ended);
            }
            _ => {
                let line = format!("line {}", random.u8(..));
                self.bodies.tell(id, Command::Log(line.clone()));
                self.model.log(number, line);
                self.count(kind, true);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        same!(self.bodies.take_ran(), ran, "steps whose bodies ran");
        same!(self.bodies.take_given(), given, "what the step gave");
        Ok(())
    }

    // What is done to runs.

    fn done<T: std::fmt::Debug>(
        &mut self,
        kind: Kind,
        is: Result<T, Error>,
        should: Result<(), Refusal>,
    ) -> Result<Option<T>, String> {
        self.count(kind, is.is_ok());
        match (is, should) {
            (Ok(done), Ok(())) => Ok(Some(done)),
            (Err(error), Err(refusal)) if fits(&error, &refusal) => Ok(None),
            (is, should) => Err(format!("is {is:?}, should be {should:?}")),
        }
    }

    fn filter(&self, random: &mut fastrand::Rng) -> (Filter, RunFilter) {
        let (mut filter, mut asked) = (Filter::default(), RunFilter::new());
        for key in ["x", "y"] {
            if random.bool() {
                let value = ["0", "1"][random.usize(..2)];
                filter.labels.insert(key.to_owned(), value.to_owned());
                asked = asked.label(key, value);
            }
        }
        if random.u8(..3) == 0 {
            for _ in 0..random.usize(1..3) {
                let job = random.usize(..JOBS.len());
                filter.jobs.push(job);
                asked = asked.job(JOBS[job].0);
            }
        }
        (filter, asked)
    }

    async fn outside(&mut self, life: &Life, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let durably = &life.durably;
        match kind {
            Kind::CancelWhere | Kind::ResumeWhere | Kind::RetriggerWhere => {
                let (mut filter, asked) = self.filter(random);
                let most = random.usize(..4);
                let asked = asked.limit(most);
                use RunStatus::{Cancelled, Completed, Failed, Leased, Pending};
                filter.statuses = match kind {
                    Kind::CancelWhere => vec![Pending, Leased],
                    Kind::ResumeWhere => vec![Failed, Cancelled],
                    _ => vec![Completed, Failed, Cancelled],
                };
                let mut found = self.model.find(&filter);
                found.truncate(most);
                match kind {
                    Kind::CancelWhere => {
                        let count = durably.cancel_where(asked).await;
                        same!(count.ok(), Some(found.len()), "cancelled");
                        self.uncertain_logs.extend(&found);
                        self.model.cancel_all(&found);
                    }
                    Kind::ResumeWhere => {
                        let count = durably.resume_where(asked).await;
                        same!(count.ok(), Some(found.len()), "resumed");
                        self.model.resume_all(&found, &[]);
                    }
                    _ => {
                        let new = durably.retrigger_where(asked).await;
                        let mut should = Ok(Vec::new());
                        for number in found {
                            match (self.model.retrigger(number), &mut should) {
                                (Ok(new), Ok(list)) => list.push(new),
                                (Err(refusal), should) => {
                                    *should = Err(refusal);
                                    break;
                                }
                                _ => {}
                            }
                        }
                        match (new, should) {
                            (Ok(new), Ok(should)) => {
                                same!(new.len(), should.len(), "retriggered");
                                for (id, number) in new.into_iter().zip(should) {
                                    self.created(id, number)?;
                                }
                            }
                            // What was retriggered before the one that is refused stays, and its id is not told.
                            (Err(error), Err(refusal)) if fits(&error, &refusal) => self.adopt(life).await?,
                            (is, should) => return Err(format!("is {is:?}, should be {should:?}")),
                        }
                    }
                }
                self.count(kind, true);
            }
            Kind::Purge | Kind::PurgeUpTo => {
                let before = self.model.now.saturating_sub(random.u64(..20_000)) + 1;
                let limit = if kind == Kind::Purge { usize::MAX } else { random.usize(..3) };
                let at = Timestamp::from_millis(before);
                let purged = match kind {
                    Kind::Purge => durably.purge_runs(at).await,
                    _ => durably.purge_up_to(at, limit).await,
                };
                self.count(kind, purged.is_ok());
                same!(purged.ok(), Some(self.model.purge(before, limit)), "purged");
            }
            _ => {
                let Some((number, id)) = self.any(random) else { return Ok(()) };
                match kind {
                    Kind::Cancel => {
                        let is = durably.cancel(id).await;
                        self.uncertain_logs.insert(number);
                        let should = self.model.cancel(number);
                        self.done(kind, is, should)?;
                    }
                    Kind::Retrigger => {
                        let is = durably.retrigger(id).await;
                        let should = self.model.retrigger(number);
                        let made = should.clone().ok();
                        if let (Some(run), Some(made)) = (self.done(kind, is, should.map(drop))?, made) {
                            self.created(run.id(), made)?;
                        }
                    }
                    Kind::Resume => {
                        let clear: Vec<String> =
                            STEPS.iter().filter(|_| random.u8(..4) == 0).map(|key| (*key).to_owned()).collect();
                        let is = durably.resume(id).clear_failures(clear.iter()).await;
                        let should = self.model.resume(number, &clear);
                        self.done(kind, is, should)?;
                    }
                    Kind::Delete => {
                        let is = durably.delete_run(id).await;
                        let should = self.model.delete(number);
                        self.done(kind, is, should)?;
                    }
                    other => return Err(format!("{other:?} is carried out nowhere")),
                }
            }
        }
        Ok(())
    }

    /// Learns the ids of runs that were created without being told.
    async fn adopt(&mut self, life: &Life) -> Result<(), String> {
        let runs = life.durably.get_runs(RunFilter::new().limit(1_000)).await.map_err(|error| error.to_string())?;
        let last = self.ids.last().copied();
        let new: Vec<RunId> = runs.iter().map(|run| run.id).filter(|id| last.is_none_or(|last| *id > last)).collect();
        self.ids.extend(new.into_iter().rev());
        Ok(())
    }

    async fn wait(&mut self, life: &Life, random: &mut fastrand::Rng) -> Result<(), String> {
        let Some((number, id)) = self.any(random) else { return Ok(()) };
        let waited = life.durably.wait_for_run(id).timeout(Duration::from_millis(1)).await;
        self.count(Kind::Wait, waited.is_ok());
        let is = match &waited {
            Ok(run) => Some(run.status),
            Err(Error::RunFailed { .. }) => Some(RunStatus::Failed),
            Err(Error::RunCancelled { .. }) => Some(RunStatus::Cancelled),
            Err(Error::WaitTimeout { .. }) => Some(RunStatus::Pending),
            Err(Error::RunNotFound { .. }) => None,
            Err(other) => return Err(other.to_string()),
        };
        let should = self
            .model
            .runs
            .get(&number)
            .map(|run| if run.status.is_terminal() { run.status } else { RunStatus::Pending });
        same!(is, should, "waiting for {id}");
        Ok(())
    }

    /// Whoever asks after the end is told so.
    async fn closed(&mut self, life: &Life) -> Result<(), String> {
        let durably = &life.durably;
        let id = self.ids.last().copied().unwrap_or_else(some_id);
        let filter = || RunFilter::new();
        let before = Timestamp::from_millis(0);
        let answers = [
            (Kind::CancelWhere, durably.cancel_where(filter()).await.err()),
            (Kind::ResumeWhere, durably.resume_where(filter()).await.err()),
            (Kind::RetriggerWhere, durably.retrigger_where(filter()).await.err()),
            (Kind::Purge, durably.purge_runs(before).await.err()),
            (Kind::PurgeUpTo, durably.purge_up_to(before, 1).await.err()),
            (Kind::GetRun, durably.get_run(id).await.err()),
            (Kind::GetRuns, durably.get_runs(filter()).await.err()),
            (Kind::GetSteps, durably.get_steps(id).await.err()),
            (Kind::GetLogs, durably.get_logs(id).await.err()),
            (Kind::Stats, durably.stats().await.err()),
            (Kind::Subscribe, durably.subscribe(id).await.err()),
            (Kind::Start, durably.start().await.err()),
            (Kind::Stop, durably.stop().await.err()),
            (Kind::RunUntilIdle, durably.run_until_idle(None).await.err()),
        ];
        for (kind, error) in answers {
            self.count(kind, error.is_none());
            if !matches!(error, Some(Error::ShutDown)) {
                return Err(format!("{kind:?} after the end: {error:?}"));
            }
        }
        Ok(())
    }

    // What is read.

    async fn read(&mut self, life: &Life, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let durably = &life.durably;
        if kind == Kind::GetRuns {
            let (mut filter, mut asked) = self.filter(random);
            for _ in 0..random.usize(..3) {
                let status = RunStatus::ALL[random.usize(..6)];
                filter.statuses.push(status);
                asked = asked.status(status);
            }
            let mut should = self.model.find(&filter);
            if random.bool()
                && let Some((number, id)) = self.any(random)
            {
                should.retain(|found| *found < number);
                asked = asked.after(id);
            }
            let (offset, limit) = (random.usize(..4), random.usize(..8));
            let should: Vec<Number> = should.into_iter().skip(offset).take(limit).collect();
            let found = durably.get_runs(asked.offset(offset).limit(limit)).await;
            let found = found.map_err(|error| error.to_string())?;
            let found: Vec<_> = found.iter().map(|run| self.number(run.id)).collect();
            let should: Vec<_> = should.into_iter().map(Some).collect();
            same!(found, should, "get_runs");
            self.count(kind, true);
            return Ok(());
        }
        if kind == Kind::Stats {
            let stats = durably.stats().await.map_err(|error| error.to_string())?;
            for (job, (name, _)) in JOBS.iter().enumerate() {
                let counts = stats.jobs.iter().find(|counts| counts.name == *name);
                let [pending, leased, completed, failed, cancelled] = self.model.counts(job);
                let should = [pending, leased, 0, completed, failed, cancelled];
                same!(counts.map_or([0; 6], |counts| counts.counts), should, "stats of {name}");
            }
            self.count(kind, true);
            return Ok(());
        }
        let Some((number, id)) = self.any(random) else { return Ok(()) };
        let there = self.model.runs.contains_key(&number);
        match kind {
            Kind::GetRun => same!(durably.get_run(id).await.ok().map(|run| run.is_some()), Some(there), "get_run"),
            Kind::GetSteps => self.compare_steps(life, number).await?,
            Kind::GetLogs => self.compare_logs(life, number).await?,
            _ => {
                let subscribed = durably.subscribe(id).await;
                self.count(kind, subscribed.is_ok());
                match subscribed {
                    Ok(mut events) => {
                        let first = events.next().now_or_never().flatten();
                        let first = first.as_ref().and_then(|first| first.event().map(|event| event.run_id));
                        // One that waits for its first start has no past.
                        same!(first.unwrap_or(id), id, "the run of a subscription");
                    }
                    Err(Error::RunNotFound { .. }) if !there => {}
                    Err(error) => return Err(format!("subscribe: {error}")),
                }
                return Ok(());
            }
        }
        self.count(kind, true);
        Ok(())
    }

    async fn compare_steps(&self, life: &Life, number: Number) -> Result<(), String> {
        let steps = life.durably.get_steps(self.ids[number]).await.map_err(|error| error.to_string())?;
        let is: BTreeMap<u32, (String, Option<u64>, Option<String>)> = steps
            .into_iter()
            .map(|step| {
                let error = step.error.map(|error| error.message);
                (step.index, (step.name, step.output.as_ref().and_then(Value::as_u64), error))
            })
            .collect();
        let stored = self.model.runs.get(&number).into_iter().flat_map(|run| &run.steps);
        let should = stored.map(|(key, step)| {
            (step.index, (key.clone(), step.outcome.as_ref().ok().copied(), step.outcome.as_ref().err().cloned()))
        });
        same!(is, should.collect(), "steps of {}", self.ids[number]);
        Ok(())
    }

    async fn compare_logs(&self, life: &Life, number: Number) -> Result<(), String> {
        let lines = life.durably.get_logs(self.ids[number]).await.map_err(|error| error.to_string())?;
        let lines: Vec<String> = lines.into_iter().map(|line| line.message).collect();
        let Some(run) = self.model.runs.get(&number) else {
            same!(lines, Vec::<String>::new(), "lines of a run that is gone");
            return Ok(());
        };
        if run.status == RunStatus::Completed && !self.uncertain_logs.contains(&number) {
            same!(&lines, &run.logs, "lines of {}", self.ids[number]);
        }
        // Lines that are not flushed may be lost, never reordered.
        let mut all = run.logs.iter();
        if !lines.iter().all(|line| all.any(|other| other == line)) {
            return Err(format!("lines {lines:?} are not among {:?}", run.logs));
        }
        Ok(())
    }

    async fn compare(&mut self, life: &Life) -> Result<(), String> {
        if let Some(run) = self.bodies.doubled() {
            return Err(format!("P7: two bodies of {run} at once"));
        }
        let alive: BTreeSet<Option<Number>> = self.bodies.alive().into_iter().map(|id| self.number(id)).collect();
        let should: BTreeSet<Option<Number>> = self.model.bodies.keys().copied().map(Some).collect();
        same!(alive, should, "bodies that are running");
        let runs = life.durably.get_runs(RunFilter::new().limit(1_000)).await.map_err(|error| error.to_string())?;
        let numbers: Vec<Option<Number>> = runs.iter().rev().map(|run| self.number(run.id)).collect();
        same!(numbers, self.model.runs.keys().copied().map(Some).collect::<Vec<_>>(), "runs");
        for (run, (number, should)) in runs.iter().rev().zip(&self.model.runs) {
            let id = run.id;
            same!(&run.job_name, JOBS[should.job].0, "job of {id}");
            same!(run.status, should.status, "status of {id} (number {number})");
            same!(run.lease_generation, should.generation, "generation of {id}");
            same!(run.recoveries, should.recoveries, "recoveries of {id}");
            same!(run.input.as_ref().and_then(Value::as_u64), Some(should.input), "input of {id}");
            same!(&run.labels, &should.labels, "labels of {id}");
            same!(&run.idempotency_key, &should.idempotency, "idempotency key of {id}");
            let key = should.concurrency.as_ref().map(|(key, _)| key.clone());
            same!(&run.concurrency_key, &key, "concurrency key of {id}");
            same!(run.created_at.as_millis(), should.created_at, "created_at of {id}");
            same!(run.started_at.map(Timestamp::as_millis), should.started_at, "started_at of {id}");
            same!(run.completed_at.map(Timestamp::as_millis), should.completed_at, "completed_at of {id}");
            let output = (run.status == RunStatus::Completed).then_some(should.output).flatten();
            same!(run.output.as_ref().and_then(Value::as_u64), output, "output of {id}");
            same!(run.error.as_ref().map(|error| &error.message), should.error.as_ref(), "error of {id}");
            let completed = should.steps.values().filter(|step| step.outcome.is_ok()).count();
            same!(run.completed_step_count as usize, completed, "completed steps of {id}");
            same!(run.current_step_index, should.step_index, "step index of {id}");
            same!(run.retriggered_from, should.from.map(|from| self.ids[from]), "source of {id}");
            same!(run.replaced_by, should.replaced_by.map(|by| self.ids[by]), "successor of {id}");
            if run.status == RunStatus::Leased && !should.steps.is_empty() {
                self.compare_steps(life, *number).await?;
            }
        }
        Ok(())
    }
}

/// An id for questions that nobody answers.
fn some_id() -> RunId {
    "01KWDFKD007RZR956N5TAESCXH".parse().expect("an id")
}

fn told<O>(run: Result<RunHandle<O>, Error>) -> Result<(RunId, Disposition, bool, RunStatus), Error> {
    run.map(|run| (run.id(), run.disposition(), run.input_differs(), run.status()))
}

fn fits(error: &Error, refusal: &Refusal) -> bool {
    match (error, refusal) {
        (Error::RunNotFound { .. }, Refusal::NotFound)
        | (Error::JobNotFound { .. }, Refusal::UnknownJob)
        | (Error::KeyConflict { .. }, Refusal::KeyConflict)
        | (Error::IdempotencyMismatch { .. }, Refusal::Mismatch) => true,
        (Error::Conflict { status, .. }, Refusal::Status(other)) => status == other,
        _ => false,
    }
}

/// The options of a trigger, for the three builders that have them.
trait Optioned: Sized {
    fn options(self, asked: &Asked) -> Self;
}

macro_rules! optioned {
    ($($type:ty),+) => {$(
        impl Optioned for $type {
            fn options(self, asked: &Asked) -> Self {
                let mut call = self.labels(asked.labels.clone());
                if let Some(key) = &asked.idempotency {
                    call = call.idempotency_key(key);
                    if let Some(ttl) = asked.ttl_ms {
                        call = call.idempotency_ttl(Duration::from_millis(ttl));
                    }
                    if asked.reject_changed {
                        call = call.reject_changed_input();
                    }
                    if asked.reuse {
                        call = call.reuse_after_failure();
                    }
                }
                if let Some((key, limit)) = &asked.concurrency {
                    call = call.concurrency_key(key).limit(*limit).on_conflict(asked.on_conflict);
                }
                call
            }
        }
    )+};
}
optioned!(durably::JsonTrigger, durably::TriggerCall<u64, u64>, Trigger<u64>);

fn with<C: Optioned>(call: C, asked: &Asked) -> C {
    call.options(asked)
}
