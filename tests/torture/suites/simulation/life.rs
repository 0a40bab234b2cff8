//! One life of the runtime after another, over one disk.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::testing::suites::Bug;
use durably::{Clock, Durably, Error, Job, Received, RunFilter, RunStatus, Step, StepRetention};

use super::client::Client;
use super::ledger::Ledger;
use super::trace::Trace;
use super::world::{Handles, JOBS, World};
use crate::suites::clock::{SimClock, one_thread};
use crate::suites::disk::{Fault, Lasts, Plan, SimDisk};

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
        let runtime = one_thread();
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
        if disk.is_opened_for_ever() {
            ledger.lock().expect("whole").violation("P8: the file is opened again and again".into());
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
        // An empty disk is made a file first, which is somebody else's test.
        if !self.quiet && !self.first {
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
        if self.first {
            self.plan_faults(world, random);
        }
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
            let while_away = Lasts::For(Duration::from_millis(random.u64(..12_000)));
            let (fault, lasts) = match random.u8(..8) {
                0 => (Fault::Fails, Lasts::Once),
                1 => (Fault::Short, Lasts::Once),
                2 => (Fault::LostFlush, Lasts::Once),
                3 => (Fault::DoneAndFails, Lasts::Once),
                4 => (Fault::Fails, while_away),
                5 => (Fault::Full, while_away),
                _ => (Fault::PowerLoss, Lasts::Once),
            };
            world.disk.plan(Plan { at: random.u64(..3_000), fault, lasts });
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
            while !matches!(durably.stats().await, Err(Error::ShutDown)) {
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
        world.clock.catch_up();
        loop {
            let unfinished = [RunStatus::Pending, RunStatus::Leased, RunStatus::Suspended];
            let waiting = RunFilter::new().statuses(unfinished).limit(1_000);
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
