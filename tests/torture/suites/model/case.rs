//! Does the same to the runtime and to the reference, and compares everything that can be read after each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use durably::testing::Bug;
use durably::{Clock, Durably, Error, Events, Job, JobHandle, Received, RunId, Step};
use futures::FutureExt;

use super::bodies::Bodies;
use super::operation::{Counts, Kind, Operation};
use super::reference::{Model, Number};
use crate::suites::clock::{SimClock, one_thread};
use crate::suites::disk::{Fault, Lasts, Plan, SimDisk};

pub const JOBS: [(&str, usize); 3] = [("many", usize::MAX), ("two", 2), ("one", 1)];
pub const STEPS: [&str; 4] = ["s", "t", "u", "v"];
/// Far from everything else, so that a cancelled body ends only where it is told to.
const GRACE: Duration = Duration::from_secs(1_000_000);

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
        let runtime = one_thread();
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

pub struct Case<'a> {
    pub model: Model,
    /// Ids by number.
    pub ids: Vec<RunId>,
    pub bodies: Bodies,
    pub disk: Arc<SimDisk>,
    pub clock: SimClock,
    pub random: fastrand::Rng,
    pub bug: Option<Bug>,
    pub last_sequence: u64,
    pub counts: &'a mut Counts,
    /// Runs whose lines may have gone with a crash or a cancel.
    pub uncertain_logs: BTreeSet<Number>,
}

pub struct Life {
    pub durably: Durably,
    pub jobs: BTreeMap<usize, JobHandle<u64, u64>>,
    pub events: Events,
}

/// Which jobs the next life registers, and whether it begins paused.
pub type Next = (u8, bool);

macro_rules! same {
    ($is:expr, $should:expr, $($what:tt)+) => {{
        let (is, should) = ($is, $should);
        if is != should {
            return Err(format!("{}: is {is:?}, should be {should:?}", format_args!($($what)+)));
        }
    }};
}
pub(super) use same;

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

    pub fn register(&mut self, life: &mut Life, job: usize) -> Result<(), String> {
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

    pub fn count(&mut self, kind: Kind, worked: bool) {
        *self.counts.entry((kind, worked)).or_default() += 1;
    }

    /// Everything that can happen has happened, and what was told of it is in order.
    pub async fn settle(&mut self, life: &mut Life) -> Result<(), String> {
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

    pub fn number(&self, id: RunId) -> Option<Number> {
        self.ids.iter().position(|known| *known == id)
    }

    pub fn any(&self, random: &mut fastrand::Rng) -> Option<(Number, RunId)> {
        if self.ids.is_empty() {
            return None;
        }
        // Mostly of the newest, so that what is done collides.
        let newest = self.ids.len() - random.usize(1..=self.ids.len().min(6));
        let number = if random.u8(..4) == 0 { random.usize(..self.ids.len()) } else { newest };
        Some((number, self.ids[number]))
    }

    /// A body that is not inside a step, or one that is.
    pub fn any_body(&self, random: &mut fastrand::Rng, inside: bool) -> Option<(Number, RunId)> {
        let bodies = self.model.bodies.iter().filter(|(_, body)| body.inside.is_some() == inside);
        let numbers: Vec<Number> = bodies.map(|(number, _)| *number).collect();
        random.choice(numbers).map(|number| (number, self.ids[number]))
    }

    pub async fn operate(&mut self, life: &mut Life, operation: Operation) -> Result<Option<Next>, String> {
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
                let fault = [Fault::Short, Fault::Full, Fault::DoneAndFails, Fault::LostFlush][random.usize(..4)];
                // One at a time: the second would strike the reopening, which then waits.
                self.disk.heal();
                self.disk.plan(Plan { at: random.u64(..6), fault, lasts: Lasts::Once });
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
}
