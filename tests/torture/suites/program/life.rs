//! A runtime of a program's life, and what the program was told.

use std::sync::Arc;
use std::time::Duration;

use durably::{Disposition, Durably, Error, Events, JobHandle, Received, RunId, RunStatus, Timestamp, Trigger};
use futures::FutureExt;
use tokio::sync::oneshot;

use super::act::Act;
use super::gates::{Command, Gate, Gates, Input, work};
use super::ledger::{Ledger, Tag, What};
use super::setup::Setup;
use crate::suites::disk::SimDisk;

/// A value of this length has a row of its own in the file.
const LARGE: usize = 17 << 10;

/// A runtime of a program's life, and what it was told.
pub struct Life {
    pub durably: Durably,
    job: JobHandle<Input, u64>,
    gates: Arc<Gates>,
    events: Events,
}

/// Lets everything happen that can without anybody doing anything more: the clock is paused and moves when all wait.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

impl Life {
    pub async fn begin(setup: &Setup, disk: &Arc<SimDisk>, ledger: Ledger) -> Result<Life, Error> {
        let gates = Gates::new(disk, ledger);
        let durably = setup.open(disk, false).await?;
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
        let mut last = self.gates.ledger().sequences.last().map_or(0, |(_, last)| *last);
        while let Some(Some(received)) = self.events.next().now_or_never() {
            let Received::Event(event) = received else { continue };
            if event.committed {
                let floor = self.gates.ledger().floor;
                if event.sequence <= last || event.sequence <= floor {
                    return Err(format!("event {} comes after event {}", event.sequence, last.max(floor)));
                }
                last = event.sequence;
            }
        }
        let at = self.gates.at();
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

    fn nth_open(&self, nth: usize) -> Option<(Tag, Gate)> {
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
