//! The process that is killed: triggers, cancels and runs, and reports each thing as it happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use durably::testing::suites::Failpoint;
use durably::{
    Builder, Clock, Durably, Error, Job, JobHandle, JobResult, RunHandle, RunId, Step, SystemClock, Timestamp,
};
use futures::future::join_all;
use rustix::process::Signal;

use super::life::{DiesAt, Life, Report, Work};
use crate::suites::process::{die, on_threads, refuse_writes, say, told, with_bug};

/// Triggers of one life; each may be several runs.
const TRIGGERS: u32 = 40;
/// Callers of one idempotency key at once.
const BURST: usize = 64;

/// Says when a body is gone, however it went.
pub struct Entered(pub RunId, pub u32);

impl Drop for Entered {
    fn drop(&mut self) {
        say(&Report::Exit(self.0, self.1));
    }
}

fn work() -> Job<Work, u64> {
    static BODIES: AtomicU32 = AtomicU32::new(0);
    Job::new("work", |step: Step, work: Work| async move {
        let body = BODIES.fetch_add(1, Ordering::Relaxed);
        say(&Report::Enter(step.run_id(), body, work.clone()));
        let _entered = Entered(step.run_id(), body);
        let mut sum = 0;
        if work.side_by_side {
            for value in join_all((0..work.steps).map(|number| one_step(&step, body, number, &work))).await {
                sum += value?;
            }
        } else {
            for number in 0..work.steps {
                sum += one_step(&step, body, number, &work).await?;
                // A cancel, too, may come between two steps.
                tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
            }
        }
        Ok(sum)
    })
}

/// A step whose value no other execution of it would come to.
async fn one_step(step: &Step, body: u32, number: u32, work: &Work) -> JobResult<u64> {
    let (run, ran) = (step.run_id(), AtomicBool::new(false));
    let takes = if work.slow && number == 0 { 200_000 } else { fastrand::u64(..3_000) };
    let value = step.run(("step", number), || async {
        say(&Report::Begin(run, body, number));
        ran.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_micros(takes)).await;
        Ok(fastrand::u64(..1 << 40))
    });
    let value = value.await?;
    say(&Report::Resolved(run, body, number, value, ran.load(Ordering::Relaxed)));
    Ok(value)
}

/// A clock on which half a minute is over soon.
#[derive(Debug, Default)]
struct Hurried(SystemClock);

impl Clock for Hurried {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic() * 1_000
    }
}

/// The settings of child and parent. Kills are many here, and no run is to blame for them.
pub fn builder() -> Builder {
    Durably::builder().max_recoveries(u32::MAX).max_concurrent_runs(16).shutdown_grace(Duration::from_millis(50))
}

pub fn live(life: &Life) {
    on_threads(if life.on_one_thread() { 1 } else { 2 }).block_on(async {
        let mut builder = with_bug(builder(), life.bug);
        if life.hurries() {
            builder = builder.clock(Hurried::default());
        }
        if let Some(dies_at) = life.dies_at {
            let passes = AtomicU32::new(0);
            builder = builder.at_failpoint(move |point| pass(&dies_at, point, &passes));
        }
        let durably = builder.open(&life.path).await.expect("the file opens");
        say(&Report::Opened);
        let jobs = durably.register(work()).expect("the job");
        if life.last {
            durably.run_until_idle(None).await.expect("idle");
            durably.shutdown().await.expect("a clean end");
            return say(&Report::Closed);
        }
        if let Some((after, lasts)) = life.outage {
            refuse_writes(after, lasts);
        }
        tokio::select! {
            line = told() => {
                if line.as_deref() == Some("shutdown") {
                    durably.shutdown().await.expect("a clean end");
                    say(&Report::Closed);
                }
            }
            () = storm(life, &durably, &jobs) => {}
        }
    });
}

fn pass(dies_at: &DiesAt, point: Failpoint, passes: &AtomicU32) {
    if Failpoint::ALL[dies_at.point] == point && passes.fetch_add(1, Ordering::Relaxed) + 1 == dies_at.pass {
        say(&Report::Dies(dies_at.point));
        std::thread::sleep(dies_at.linger);
        if dies_at.aborts {
            std::process::abort();
        }
        die(Signal::KILL);
    }
}

/// Asks for all kinds of things, and then waits for the kill.
async fn storm(life: &Life, durably: &Durably, jobs: &JobHandle<Work, u64>) {
    let mut rng = fastrand::Rng::with_seed(life.seed);
    let known: Arc<std::sync::Mutex<Vec<RunId>>> = Arc::default();
    for number in 0..TRIGGERS {
        if number == 0 || rng.u32(..TRIGGERS) == 0 {
            // Also of names that earlier lives have used.
            let work = Work::once(format!("burst-{}", (life.number + number).saturating_sub(rng.u32(..2))));
            tokio::spawn(burst(jobs.clone(), work));
        }
        let name = format!("{}-{number}", life.number);
        let work = Work::random(&mut rng, name);
        let task = Task {
            jobs: jobs.clone(),
            durably: durably.clone(),
            known: known.clone(),
            rng: rng.fork(),
            purges: life.purges,
        };
        tokio::spawn(async move {
            // No answer is an error but those that a shutdown or an outage gives.
            if let Err(error) = task.run(work).await
                && !matches!(error, Error::ShutDown | Error::Indeterminate | Error::Overloaded { .. })
            {
                say(&Report::Unexpected(format!("{error:?}")));
            }
        });
        tokio::time::sleep(Duration::from_micros(rng.u64(..3_000))).await;
    }
    std::future::pending().await
}

async fn burst(jobs: JobHandle<Work, u64>, work: Work) {
    say(&Report::Bursting(work.clone()));
    let calls = (0..BURST).map(|_| async {
        // What a shutdown or an outage refuses was never acknowledged.
        if let Ok(runs) = jobs.batch_trigger([work.trigger()]).await {
            runs.iter().for_each(|run| say(&Report::Triggered(work.name.clone(), run.id())));
        }
    });
    join_all(calls).await;
}

/// One thing that is asked for.
struct Task {
    jobs: JobHandle<Work, u64>,
    durably: Durably,
    /// Runs whose end somebody waits for, which others may cancel.
    known: Arc<std::sync::Mutex<Vec<RunId>>>,
    rng: fastrand::Rng,
    purges: bool,
}

impl Task {
    async fn run(mut self, work: Work) -> Result<(), Error> {
        match self.rng.u8(..12) {
            0 => self.batch(&work).await,
            1 | 2 => {
                let work = Work::once(format!("once-{}", self.rng.u32(..12)));
                for asked in join_all((0..4).map(|_| self.ask(&work))).await {
                    asked?;
                }
                Ok(())
            }
            3 | 4 => self.await_output(&work).await,
            5..8 => self.cancel(&work).await,
            8 if self.purges => {
                say(&Report::Purging);
                self.durably.purge_runs(SystemClock::default().now()).await.map(drop)
            }
            _ => self.ask(&work).await.map(drop),
        }
    }

    async fn ask(&self, work: &Work) -> Result<RunHandle<u64>, Error> {
        say(&Report::Asking(vec![work.clone()]));
        let batch = self.jobs.batch_trigger([work.trigger()]).await?;
        let run = batch.into_iter().next().expect("one run");
        say(&Report::Triggered(work.name.clone(), run.id()));
        Ok(run)
    }

    async fn batch(&self, work: &Work) -> Result<(), Error> {
        let item = |at| Work { name: format!("{}-{at}", work.name), batch: Some(work.name.clone()), ..work.clone() };
        let items: Vec<Work> = (0..3).map(item).collect();
        say(&Report::Asking(items.clone()));
        let runs = self.jobs.batch_trigger(items.iter().map(Work::trigger)).await?;
        items.iter().zip(&runs).for_each(|(item, run)| say(&Report::Triggered(item.name.clone(), run.id())));
        Ok(())
    }

    /// Waits for the end, and sometimes deletes what has ended.
    async fn await_output(&mut self, work: &Work) -> Result<(), Error> {
        let run = self.ask(work).await?;
        self.known.lock().expect("known").push(run.id());
        // It may be cancelled, or purged when it has ended.
        let Ok(output) = run.output().await else { return Ok(()) };
        say(&Report::Output(run.id(), output));
        if self.rng.bool() {
            say(&Report::Deleting(run.id()));
            match self.durably.delete_run(run.id()).await {
                Ok(()) => say(&Report::Deleted(run.id())),
                Err(Error::RunNotFound { .. }) if self.purges => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Cancels a run, and sometimes resumes it.
    async fn cancel(&mut self, work: &Work) -> Result<(), Error> {
        let victim = self.known.lock().expect("known").pop();
        let victim = match victim {
            Some(run) => run,
            None => self.ask(work).await?.id(),
        };
        tokio::time::sleep(Duration::from_micros(self.rng.u64(..4_000))).await;
        say(&Report::Cancelling(victim));
        match self.durably.cancel(victim).await {
            Ok(()) => say(&Report::Cancelled(victim)),
            // It has ended already.
            Err(Error::Conflict { .. } | Error::RunNotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        if self.rng.bool() {
            tokio::time::sleep(Duration::from_micros(self.rng.u64(..4_000))).await;
            say(&Report::Resuming(victim));
            match self.durably.resume(victim).await {
                Err(Error::RunNotFound { .. }) if self.purges => {}
                resumed => resumed?,
            }
        }
        Ok(())
    }
}
