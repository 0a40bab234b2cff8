//! One life of the runtime after another, over one disk, on one thread.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::testing::suites::Bug;
use durably::{
    Clock, Durably, Error, Job, JobError, JobHandle, JobResult, OnConflict, Received, RunFilter, RunId, RunStatus,
    Step, StepRetention, Trigger,
};

use super::clock::SimClock;
use super::disk::{Fault, SimDisk};
use super::ledger::{Ledger, Outcome};
use super::trace::Trace;

const JOBS: [&str; 3] = ["free", "two", "parent"];
const KEYS: [(&str, u32); 4] = [("alpha", 1), ("beta", 1), ("gamma", 2), ("delta", 3)];
const IDEMPOTENCY: [&str; 4] = ["i", "j", "k", "l"];
/// A quiet phase that takes longer than this in virtual time is one that does not end.
const QUIET_MAX: Duration = Duration::from_secs(1_800);

/// What a seed decides once for all lives.
#[derive(Debug, Clone)]
struct Settings {
    slots: usize,
    max_recoveries: u32,
    two_phase: bool,
    cancel_grace: Duration,
    /// Bytes of the tail and rows of a slice.
    folding: (usize, usize),
    clients: usize,
    lives: u64,
    ops: u64,
    bug: Option<Bug>,
}

/// What bodies and clients of a life share.
#[derive(Clone)]
struct World {
    ledger: Arc<Mutex<Ledger>>,
    random: Arc<Mutex<fastrand::Rng>>,
    trace: Trace,
    clock: SimClock,
    disk: Arc<SimDisk>,
    seed: u64,
    /// Waits for a child, started by a body, need it.
    durably: Arc<Mutex<Option<std::sync::Weak<Handles>>>>,
}

struct Handles {
    durably: Durably,
    jobs: Vec<JobHandle<u64, u64>>,
}

impl World {
    /// Does this, unless the power went: the dead tell nothing.
    fn tell(&self, tell: impl FnOnce(&mut Ledger)) -> bool {
        let lives = !self.disk.is_dark();
        if lives {
            tell(&mut self.ledger.lock().expect("whole"));
        }
        lives
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        if !self.disk.is_dark() {
            self.trace.note(self.clock.monotonic(), what);
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.random.lock().expect("whole").u64(..below)
    }

    fn key_of(&self, nonce: u64) -> Option<(&'static str, u32)> {
        KEYS.get((self.script(nonce).u64(..7)) as usize).copied()
    }

    /// What everything about an input derives from.
    fn script(&self, nonce: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed ^ nonce.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Lets others go first, a little or for a while.
    async fn noise(&self) {
        match self.draw(6) {
            0 => {}
            1 => tokio::time::sleep(Duration::from_micros(self.draw(5_000))).await,
            yields => {
                for _ in 2..yields {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn step(&self, step: &Step, name: String, fails: bool) -> Outcome {
        let run = step.run_id();
        let (world, key) = (self.clone(), name.clone());
        let done = step.run(name.as_str(), move || {
            let (world, key) = (world.clone(), key.clone());
            async move {
                world.tell(|ledger| ledger.step_begins(run, &key));
                world.noise().await;
                let value = world.draw(1 << 40);
                if fails { Err(JobError::msg(format!("no {value}"))) } else { Ok(value) }
            }
        });
        let outcome = done.await.map_err(|error| error.message().to_owned());
        self.note(format_args!("{run} {name} gives {outcome:?}"));
        self.tell(|ledger| ledger.step_gives(run, &name, outcome.clone()));
        self.noise().await;
        outcome
    }

    async fn body(self, step: Step, nonce: u64, parent: bool) -> JobResult<u64> {
        let run = step.run_id();
        let _running = Running::new(&self, run, self.key_of(nonce));
        let mut script = self.script(nonce);
        let _ = script.u64(..7);
        let mut sum = nonce;
        for number in 0..script.u64(1..7) {
            let name = format!("s{number}");
            match script.u64(..24) {
                0 => drop(self.step(&step, name, true).await),
                1 => {
                    let error = self.step(&step, name, true).await;
                    return Err(JobError::msg(error.expect_err("it fails")));
                }
                2 => std::panic::panic_any("a body panics".to_owned()),
                3 => tokio::time::sleep(Duration::from_millis(script.u64(..20_000))).await,
                4 => {
                    let (a, b) = tokio::join!(
                        self.step(&step, format!("{name}a"), false),
                        self.step(&step, format!("{name}b"), script.bool())
                    );
                    sum = sum.wrapping_add(a.unwrap_or(1)).wrapping_add(b.unwrap_or(2));
                }
                5 => {
                    tokio::select! {
                        biased;
                        _ = self.step(&step, name, false) => {}
                        () = tokio::time::sleep(Duration::from_millis(2)) => {}
                    }
                }
                6 => {
                    step.progress(number as usize, 7).message("on the way");
                    step.log().info("a line", number);
                }
                7 | 8 if parent => {
                    let child = self.child(&step, &name, nonce).await;
                    self.note(format_args!("{run} waited: {child:?}"));
                }
                9 => {
                    self.tell(|ledger| {
                        ledger.hanging.insert(run);
                    });
                    step.cancelled().cancelled().await;
                }
                _ => sum = sum.wrapping_add(self.step(&step, name, false).await.unwrap_or_default()),
            }
            self.noise().await;
        }
        Ok(sum & 0xffff_ffff)
    }

    /// Triggers a run inside a step and waits for its end outside of it.
    async fn child(&self, step: &Step, name: &str, nonce: u64) -> Result<RunStatus, String> {
        let held = self.durably.lock().expect("whole").clone();
        let Some(handles) = held.and_then(|weak| weak.upgrade()) else { return Err("too late".to_owned()) };
        let input = nonce + (1 << 32);
        let world = self.clone();
        let (job, key) = (handles.jobs[0].clone(), self.key_of(input));
        let child = step
            .run((name, "child"), move || {
                let (job, world) = (job.clone(), world.clone());
                async move {
                    world.tell(|ledger| ledger.requests(input));
                    let mut call = job.trigger(input);
                    if let Some((key, limit)) = key {
                        call = call.concurrency_key(key).limit(limit);
                    }
                    let child = call.idempotency_key(format!("child-{input}")).await?.id();
                    world.tell(|ledger| ledger.acked(child));
                    Ok(child)
                }
            })
            .await
            .map_err(|error| error.to_string())?;
        match handles.durably.wait_for_run(child).await {
            Ok(run) => Ok(run.status),
            Err(Error::RunFailed { .. }) => Ok(RunStatus::Failed),
            Err(Error::RunCancelled { .. }) => Ok(RunStatus::Cancelled),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Says when a body has really stopped.
struct Running {
    world: World,
    run: RunId,
    key: Option<&'static str>,
    began: bool,
}

impl Running {
    fn new(world: &World, run: RunId, key: Option<(&'static str, u32)>) -> Self {
        let began = world.tell(|ledger| ledger.begins(run, key));
        world.note(format_args!("{run} begins"));
        Running { world: world.clone(), run, key: key.map(|(key, _)| key), began }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.began {
            self.world.note(format_args!("{} stops", self.run));
            // Also of the dead, whose bodies have stopped with them.
            self.world.ledger.lock().expect("whole").stops(self.run, self.key);
        }
    }
}

/// What a seed did.
#[derive(Debug)]
pub struct Done {
    pub violations: Vec<String>,
    pub events: u64,
    pub hash: u64,
    pub lines: u64,
    pub crashes: u64,
    pub faults: u64,
}

/// Runs one seed from an empty disk to a quiet end.
pub fn simulate(seed: u64, bug: Option<Bug>, printed: bool) -> Done {
    let mut random = fastrand::Rng::with_seed(seed);
    let settings = Settings {
        slots: random.usize(1..12),
        max_recoveries: *random.choice(&[1, 3, 100]).unwrap_or(&3),
        two_phase: random.u8(..4) == 0,
        cancel_grace: Duration::from_millis(random.u64(..3_000)),
        folding: (1 << random.u32(8..25), random.usize(1..200)),
        clients: random.usize(1..5),
        lives: random.u64(2..6),
        ops: random.u64(12..40),
        bug,
    };
    let (clock, trace) = (SimClock::default(), Trace::new(printed));
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let (mut bytes, mut crashes, mut faults) = (Vec::new(), 0, 0);
    for life in 0..=settings.lives {
        let quiet = life == settings.lives;
        let disk = SimDisk::new(&clock, random.u64(..), bytes);
        let world = World {
            ledger: ledger.clone(),
            random: Arc::new(Mutex::new(random.fork())),
            trace: trace.clone(),
            clock: clock.clone(),
            disk: disk.clone(),
            seed,
            durably: Arc::default(),
        };
        trace.note(clock.monotonic(), format_args!("life {life} of {settings:?}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O");
        let plan = Life { settings: &settings, quiet, number: life, first: life == 0 };
        let ended = runtime.block_on(plan.live(&world, &mut random));
        bytes = disk.cut();
        faults += disk.struck();
        crashes += u64::from(!quiet);
        // Everything of this life goes, in the middle of whatever it was at.
        drop(runtime);
        if let Err(error) = ended {
            let mut ledger = ledger.lock().expect("whole");
            ledger.violation(error);
        }
        if !ledger.lock().expect("whole").violations.is_empty() {
            break;
        }
    }
    let mut ledger = ledger.lock().expect("whole");
    Done {
        violations: std::mem::take(&mut ledger.violations),
        events: ledger.events,
        hash: trace.hash(),
        lines: trace.lines(),
        crashes,
        faults,
    }
}

struct Life<'a> {
    settings: &'a Settings,
    quiet: bool,
    number: u64,
    first: bool,
}

impl Life<'_> {
    async fn live(&self, world: &World, random: &mut fastrand::Rng) -> Result<(), String> {
        world.clock.begin();
        if !self.quiet {
            self.plan_faults(world, random);
        }
        let sleeping = world.clock.clone();
        let mut builder = Durably::builder()
            .clock(world.clock.clone())
            .seed(random.u64(..))
            .max_concurrent_runs(self.settings.slots)
            .max_recoveries(self.settings.max_recoveries)
            .two_phase_commit(self.settings.two_phase)
            .cancel_grace(self.settings.cancel_grace)
            .fold_at(self.settings.folding.0, self.settings.folding.1)
            .keep_steps(StepRetention::WithRun)
            .cache_bytes(1 << 20)
            .sleeping_by(move |pause| sleeping.pass(pause));
        if let Some(bug) = self.settings.bug {
            builder = builder.plant(bug);
        }
        // The disk may fail while it is being opened; whoever opens tries again.
        let durably = loop {
            match builder.clone().open_simulated(world.disk.clone()).await {
                Ok(durably) => break durably,
                Err(_) if world.disk.is_dark() => return Ok(()),
                Err(error) if self.quiet => return Err(format!("P1: the file can't be opened: {error}")),
                Err(error) => {
                    world.note(format_args!("not opened: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let jobs = JOBS.iter().map(|name| {
            let (world, parent) = (world.clone(), *name == "parent");
            let job = Job::new(*name, move |step: Step, nonce: u64| world.clone().body(step, nonce, parent));
            durably.register(if *name == "two" { job.concurrency(2) } else { job })
        });
        let jobs = jobs.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let handles = Arc::new(Handles { durably, jobs });
        *world.durably.lock().expect("whole") = Some(Arc::downgrade(&handles));
        self.listen(world, &handles);
        self.compare(world, &handles).await?;
        if self.quiet {
            return self.calm(world, &handles).await;
        }
        let clients: Vec<_> = (0..self.settings.clients)
            .map(|_| {
                let client = Client { world: world.clone(), handles: handles.clone(), random: random.fork() };
                tokio::spawn(client.work(self.settings.ops))
            })
            .collect();
        let lasts = Duration::from_millis(random.u64(..8_000));
        let stops = random.u8(..4) == 0;
        let living = async {
            tokio::time::sleep(lasts).await;
            if stops {
                for client in clients {
                    let _ = client.await;
                }
                let ended = handles.durably.shutdown().await;
                world.note(format_args!("shut down: {ended:?}"));
            }
        };
        tokio::select! {
            biased;
            () = world.disk.dark.notified() => {}
            () = living => {}
        }
        Ok(())
    }

    fn plan_faults(&self, world: &World, random: &mut fastrand::Rng) {
        for _ in 0..random.u64(..4) {
            let fault = match random.u8(..6) {
                0 | 1 => Fault::Fails,
                2 => Fault::DoneAndFails,
                3 => Fault::Away(Duration::from_millis(random.u64(..12_000))),
                4 => Fault::Full(Duration::from_millis(random.u64(..12_000))),
                _ => Fault::PowerLoss,
            };
            // An empty disk is made a file first, which is somebody else's test.
            let from = if self.first { 200 } else { 0 };
            world.disk.plan(from + random.u64(..3_000), fault);
        }
    }

    fn listen(&self, world: &World, handles: &Handles) {
        let after = world.ledger.lock().expect("whole").last_sequence;
        let mut events = handles.durably.events().after(after);
        let world = world.clone();
        tokio::spawn(async move {
            let mut first = true;
            while let Some(received) = events.next().await {
                match received {
                    Received::Event(event) => {
                        let kind = event.kind.name();
                        world.note(format_args!("#{} {} {kind}", event.sequence, event.run_id));
                        if event.committed {
                            world.tell(|ledger| ledger.event(event.sequence, first));
                            first = false;
                        }
                    }
                    // What was told to the life before is not in this one's buffer.
                    received => world.note(format_args!("{received:?}")),
                }
            }
        });
        // Inline, the writer is at work only when it is asked something; this is what its timeouts are elsewhere.
        let durably = handles.durably.clone();
        tokio::spawn(async move {
            while durably.stats().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    async fn compare(&self, world: &World, handles: &Handles) -> Result<(), String> {
        let mut runs = Vec::new();
        loop {
            let mut filter = RunFilter::new().limit(500);
            if let Some(last) = runs.last() {
                let last: &durably::Run = last;
                filter = filter.after(last.id);
            }
            let page = handles.durably.get_runs(filter).await;
            match page {
                Ok(page) if page.is_empty() => break,
                Ok(page) => runs.extend(page),
                Err(_) if !self.quiet => return Ok(()),
                Err(error) => return Err(format!("P1: runs can't be read: {error}")),
            }
        }
        world.tell(|ledger| ledger.compare(&runs));
        Ok(())
    }

    /// Nothing goes wrong any more: everything is to end.
    async fn calm(&self, world: &World, handles: &Handles) -> Result<(), String> {
        let began = world.clock.monotonic();
        loop {
            let waiting = RunFilter::new().statuses([RunStatus::Pending, RunStatus::Leased]).limit(1_000);
            let left = handles.durably.get_runs(waiting).await.map_err(|error| error.to_string())?;
            if left.is_empty() {
                break;
            }
            if world.clock.monotonic() - began > QUIET_MAX {
                let ids: Vec<_> = left.iter().map(|run| (run.id, run.status, run.concurrency_key.clone())).collect();
                return Err(format!("P8: these do not end: {ids:?}"));
            }
            // Some bodies wait for their cancel.
            for run in left.iter().filter(|run| run.status == RunStatus::Leased) {
                let hangs = world.ledger.lock().expect("whole").hanging.contains(&run.id);
                if hangs {
                    let _ = handles.durably.cancel(run.id).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        self.compare(world, handles).await?;
        handles.durably.shutdown().await.map_err(|error| format!("P15: {error}"))?;
        world.note(format_args!("life {} is calm", self.number));
        Ok(())
    }
}

struct Client {
    world: World,
    handles: Arc<Handles>,
    random: fastrand::Rng,
}

impl Client {
    async fn work(mut self, ops: u64) {
        for _ in 0..ops {
            self.world.noise().await;
            self.act().await;
            if self.random.u8(..3) == 0 {
                tokio::time::sleep(Duration::from_millis(self.random.u64(..120))).await;
            }
        }
    }

    fn any_run(&mut self) -> Option<RunId> {
        let ledger = self.world.ledger.lock().expect("whole");
        let runs: Vec<_> = ledger.runs.keys().rev().take(40).copied().collect();
        drop(ledger);
        self.random.choice(runs)
    }

    async fn act(&mut self) {
        let durably = self.handles.durably.clone();
        let world = self.world.clone();
        match self.random.u8(..40) {
            0..17 => self.trigger().await,
            17..19 => self.batch().await,
            19..23 => {
                let Some(run) = self.any_run() else { return };
                let ended = durably.cancel(run).await;
                world.note(format_args!("cancel {run}: {}", told(&ended)));
                if ended.is_ok() {
                    // Resumed meanwhile, it would not be: nobody can tell, so only an undisturbed cancel counts.
                    let status = durably.get_run(run).await.ok().flatten().map(|run| run.status);
                    if let Some(status) = status {
                        world.tell(|ledger| ledger.seen(run, status));
                    }
                }
            }
            23..26 => {
                let Some(run) = self.any_run() else { return };
                world.tell(|ledger| ledger.resumes(run));
                let resumed = durably.resume(run).await;
                world.note(format_args!("resume {run}: {}", told(&resumed)));
            }
            26..28 => {
                let Some(run) = self.any_run() else { return };
                let Ok(Some(old)) = durably.get_run(run).await else { return };
                let nonce = old.input.as_ref().and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX);
                world.tell(|ledger| ledger.requests(nonce));
                let again = durably.retrigger(run).await;
                world.note(format_args!("retrigger {run}: {}", told(&again)));
                if let Ok(again) = again {
                    world.tell(|ledger| ledger.acked(again.id()));
                }
            }
            28 => {
                let Some(run) = self.any_run() else { return };
                world.tell(|ledger| ledger.maybe_deleted(run));
                let deleted = durably.delete_run(run).await;
                world.note(format_args!("delete {run}: {}", told(&deleted)));
            }
            29 => {
                let before = world.clock.now().saturating_sub(Duration::from_secs(self.random.u64(..20)));
                if self.random.u8(..4) == 0 {
                    world.tell(Ledger::all_ended_maybe_deleted);
                    let purged = durably.purge_runs(before).await;
                    world.note(format_args!("purge: {purged:?}"));
                }
            }
            30..33 => {
                let Some(run) = self.any_run() else { return };
                if let Ok(Some(run)) = durably.get_run(run).await {
                    world.tell(|ledger| ledger.seen(run.id, run.status));
                    let steps = durably.get_steps(run.id).await.map(|steps| steps.len());
                    world.note(format_args!("{} is {} with {steps:?}", run.id, run.status));
                }
            }
            33..36 => {
                let Some(run) = self.any_run() else { return };
                let patience = Duration::from_millis(self.random.u64(..2_000));
                let waited = durably.wait_for_run(run).timeout(patience).await;
                world.note(format_args!("wait {run}: {}", told(&waited)));
            }
            36 => {
                let years = i64::from(self.random.i8(-10..=10));
                world.clock.jump(years * 365 * 86_400_000);
                world.note(format_args!("the wall jumps {years} years"));
            }
            37 => {
                let patience = Duration::from_millis(self.random.u64(..500));
                let stopped = tokio::time::timeout(patience, durably.stop()).await;
                world.note(format_args!("stop: {stopped:?}"));
                self.world.noise().await;
                let _ = durably.start().await;
            }
            38 => {
                let filter = RunFilter::new().label("kind", ["x", "y"][self.random.usize(..2)]).limit(5);
                let found = durably.get_runs(filter).await;
                world.note(format_args!("filter: {:?}", found.map(|runs| runs.len()).ok()));
            }
            _ => {
                let stats = durably.stats().await;
                world.note(format_args!("stats: {:?}", stats.map(|stats| stats.jobs).ok()));
            }
        }
    }

    fn next(&mut self) -> (usize, Trigger<u64>, Option<&'static str>) {
        let at = self.random.usize(..JOBS.len());
        let nonce = self.random.u64(..1 << 30);
        self.world.tell(|ledger| ledger.requests(nonce));
        let mut trigger = Trigger::new(nonce).label("kind", ["x", "y"][self.random.usize(..2)]);
        if let Some((key, limit)) = self.world.key_of(nonce) {
            let policies = [OnConflict::Queue, OnConflict::Queue, OnConflict::Skip, OnConflict::Replace];
            trigger = trigger.concurrency_key(key).limit(limit);
            trigger = trigger.on_conflict(policies[self.random.usize(..4)]);
        }
        let idempotency = (self.random.u8(..4) == 0).then(|| IDEMPOTENCY[self.random.usize(..4)]);
        if let Some(key) = idempotency {
            trigger = trigger.idempotency_key(key);
        }
        (at, trigger, idempotency)
    }

    async fn trigger(&mut self) {
        let (at, trigger, idempotency) = self.next();
        let answer = self.handles.jobs[at].batch_trigger([trigger]).await;
        let world = self.world.clone();
        let Ok(mut runs) = answer else {
            return world.note(format_args!("trigger: {}", told(&answer)));
        };
        if let Some(run) = runs.pop() {
            world.note(format_args!("trigger {}: {} {:?}", JOBS[at], run.id(), run.disposition()));
            world.tell(|ledger| {
                ledger.acked(run.id());
                if let Some(key) = idempotency
                    && run.disposition() != durably::Disposition::Coalesced
                {
                    ledger.keyed(JOBS[at], key, run.id(), run.disposition() == durably::Disposition::Created);
                }
            });
        }
    }

    async fn batch(&mut self) {
        let items: Vec<_> = (0..self.random.u8(1..6)).map(|_| self.next().1).collect();
        let at = self.random.usize(..JOBS.len());
        let answer = self.handles.jobs[at].batch_trigger(items).await;
        self.world.note(format_args!("batch: {}", told(&answer)));
        for run in answer.into_iter().flatten() {
            self.world.tell(|ledger| ledger.acked(run.id()));
        }
    }
}

fn told<T>(answer: &Result<T, Error>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    }
}
