//! What each public operation does, as a document: runs, keys, lines, steps, in a few maps and without a disk.
//!
//! Time stands while an operation is carried out, and everything that it makes possible has happened when it returns. Bodies
//! do what they are told one command at a time.

use std::collections::{BTreeMap, BTreeSet};

use durably::{Disposition, OnConflict, RunStatus};

/// A run's number in the order of triggers.
pub type Number = usize;

/// Recovered and handed back runs (`false`) first, then in order of trigger; resumed ones at the back.
pub type Place = (bool, u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    UnknownJob,
    /// The status forbids it.
    Status(RunStatus),
    KeyConflict,
    Mismatch,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub index: u32,
    pub outcome: Result<u64, String>,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub job: usize,
    pub input: u64,
    pub labels: BTreeMap<String, String>,
    pub idempotency: Option<String>,
    pub ttl_ms: Option<u64>,
    pub concurrency: Option<(String, u32)>,
    pub created_at: u64,
    pub started_at: Option<u64>,
    pub completed_at: Option<u64>,
    pub status: RunStatus,
    /// Its own place, from its trigger.
    pub born: u64,
    pub place: Place,
    pub generation: u64,
    pub recoveries: u32,
    /// Crashes in a row without a checkpoint; while it executes, the one that may come is counted.
    pub crashes: u32,
    pub steps: BTreeMap<String, Stored>,
    pub step_index: u32,
    pub output: Option<u64>,
    pub error: Option<String>,
    pub failed_step: Option<String>,
    pub replaced_by: Option<Number>,
    pub from: Option<Number>,
    pub logs: Vec<String>,
}

/// Code that is running, whatever became of its run.
#[derive(Debug, Clone)]
pub struct Body {
    pub job: usize,
    pub concurrency: Option<(String, u32)>,
    /// It records nothing any more.
    pub ended: bool,
    pub checkpointed: bool,
    pub next_index: u32,
    /// Keys of the steps that this execution has called.
    pub used: BTreeSet<String>,
    /// In a step that has not returned, with its index.
    pub inside: Option<(String, u32)>,
}

#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub job: usize,
    pub input: u64,
    pub labels: BTreeMap<String, String>,
    pub idempotency: Option<String>,
    pub ttl_ms: Option<u64>,
    pub reject_changed: bool,
    pub reuse: bool,
    pub concurrency: Option<(String, u32)>,
    pub on_conflict: OnConflict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub run: Number,
    pub disposition: Disposition,
    pub differs: bool,
}

/// Which runs: AND over the three, OR within statuses and jobs.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub statuses: Vec<RunStatus>,
    pub jobs: Vec<usize>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub runs: BTreeMap<Number, Run>,
    pub bodies: BTreeMap<Number, Body>,
    keys: BTreeMap<(usize, String), Number>,
    /// Jobs whose code is there, with the most runs of each at a time.
    pub registered: BTreeMap<usize, usize>,
    pub slots: usize,
    pub max_recoveries: u32,
    pub paused: bool,
    pub now: u64,
    next_number: Number,
    next_ticket: u64,
}

impl Model {
    pub fn new(slots: usize, max_recoveries: u32) -> Self {
        Model {
            runs: BTreeMap::new(),
            bodies: BTreeMap::new(),
            keys: BTreeMap::new(),
            registered: BTreeMap::new(),
            slots,
            max_recoveries,
            paused: false,
            now: 0,
            next_number: 0,
            next_ticket: 0,
        }
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    // Triggering.

    /// Several are decided in order, and created all or none; what may start starts after the last of them.
    pub fn trigger(&mut self, items: &[Asked]) -> Result<Vec<Answer>, (usize, Refusal)> {
        let mut tried = self.clone();
        let mut answers: Vec<Answer> = Vec::new();
        for (at, item) in items.iter().enumerate() {
            if !self.registered.contains_key(&item.job) {
                return Err((at, Refusal::UnknownJob));
            }
            let answer = tried.decide(item).map_err(|refusal| (at, refusal))?;
            answers.push(answer);
        }
        *self = tried;
        self.start_what_may();
        Ok(answers)
    }

    fn decide(&mut self, item: &Asked) -> Result<Answer, Refusal> {
        if let Some(key) = &item.idempotency {
            let holder = self.keys.get(&(item.job, key.clone())).map(|holder| (*holder, &self.runs[holder]));
            if let Some((run, held)) = holder.filter(|(_, held)| self.in_force(held, item.reuse)) {
                let differs = held.input != item.input;
                if differs && item.reject_changed {
                    return Err(Refusal::Mismatch);
                }
                return Ok(Answer { run, disposition: Disposition::Idempotent, differs });
            }
        }
        let waiting = item.concurrency.as_ref().and_then(|(key, _)| self.waiting(item.job, key));
        let mut place = None;
        let mut replaced = None;
        match (item.on_conflict, waiting) {
            (OnConflict::Reject, Some(_)) => return Err(Refusal::KeyConflict),
            (OnConflict::Skip, Some(run)) => {
                return Ok(Answer { run, disposition: Disposition::Coalesced, differs: false });
            }
            (OnConflict::Replace, Some(run)) => {
                place = self.runs.get(&run).map(|run| run.place.1);
                replaced = Some(run);
            }
            _ => {}
        }
        let run = self.create(item, place, None);
        if let Some(old) = replaced {
            self.end(old, RunStatus::Cancelled);
            self.run(old).replaced_by = Some(run);
        }
        Ok(Answer { run, disposition: Disposition::Created, differs: false })
    }

    fn create(&mut self, item: &Asked, place: Option<u64>, from: Option<Number>) -> Number {
        let number = self.next_number;
        self.next_number += 1;
        let ticket = self.ticket();
        let run = Run {
            job: item.job,
            input: item.input,
            labels: item.labels.clone(),
            idempotency: item.idempotency.clone(),
            ttl_ms: item.ttl_ms,
            concurrency: item.concurrency.clone(),
            created_at: self.now,
            started_at: None,
            completed_at: None,
            status: RunStatus::Pending,
            born: ticket,
            place: (true, place.unwrap_or(ticket)),
            generation: 0,
            recoveries: 0,
            crashes: 0,
            steps: BTreeMap::new(),
            step_index: 0,
            output: None,
            error: None,
            failed_step: None,
            replaced_by: None,
            from,
            logs: Vec::new(),
        };
        if let Some(key) = &item.idempotency {
            self.keys.insert((item.job, key.clone()), number);
        }
        self.runs.insert(number, run);
        number
    }

    fn in_force(&self, run: &Run, reuse: bool) -> bool {
        let failed = matches!(run.status, RunStatus::Failed | RunStatus::Cancelled);
        !run.status.is_terminal() || !((reuse && failed) || self.expired(run))
    }

    fn expired(&self, run: &Run) -> bool {
        run.ttl_ms.is_some_and(|ttl| run.created_at + ttl <= self.now)
    }

    /// The newest in line that has never started.
    fn waiting(&self, job: usize, key: &str) -> Option<Number> {
        let of_key = |run: &Run| run.concurrency.as_ref().is_some_and(|(other, _)| other == key);
        let waits = |(number, run): &(&Number, &Run)| {
            run.job == job && run.generation == 0 && of_key(run) && self.in_line(**number, run)
        };
        self.runs.iter().filter(waits).max_by_key(|(_, run)| run.place).map(|(number, _)| *number)
    }

    /// A run whose older body still runs is in no line yet.
    fn in_line(&self, number: Number, run: &Run) -> bool {
        run.status == RunStatus::Pending && !self.bodies.contains_key(&number)
    }

    // Starting.

    fn start_what_may(&mut self) {
        while !self.paused && self.start_one() {}
    }

    /// The first in line of those that may start.
    fn start_one(&mut self) -> bool {
        if self.bodies.len() >= self.slots {
            return false;
        }
        let mut line: Vec<(Place, Number)> = Vec::new();
        line.extend(self.runs.iter().filter(|(n, run)| self.in_line(**n, run)).map(|(n, run)| (run.place, *n)));
        line.sort_unstable();
        let first = line.iter().find(|(place, number)| self.may_start(&line, *place, *number));
        let Some((_, number)) = first.copied() else { return false };
        let now = self.now;
        let run = self.run(number);
        run.status = RunStatus::Leased;
        run.generation += 1;
        run.crashes += 1;
        run.started_at = run.started_at.or(Some(now));
        let body = Body {
            job: run.job,
            concurrency: run.concurrency.clone(),
            ended: false,
            checkpointed: false,
            next_index: run.steps.values().map(|step| step.index + 1).max().unwrap_or(0),
            used: BTreeSet::new(),
            inside: None,
        };
        self.bodies.insert(number, body);
        true
    }

    fn may_start(&self, line: &[(Place, Number)], place: Place, number: Number) -> bool {
        let Some(run) = self.runs.get(&number) else { return false };
        let Some(most) = self.registered.get(&run.job) else { return false };
        if self.bodies.values().filter(|body| body.job == run.job).count() >= *most {
            return false;
        }
        let Some((key, limit)) = &run.concurrency else { return true };
        // A key's line is strict, over all jobs.
        let before = |other: &(Place, Number)| {
            other.0 < place
                && self.runs.get(&other.1).is_some_and(|run| run.concurrency.as_ref().is_some_and(|(k, _)| k == key))
        };
        let holders = self.bodies.values().filter_map(|body| body.concurrency.as_ref()).filter(|(k, _)| k == key);
        let (count, most) = holders.fold((0, *limit), |(count, most), (_, limit)| (count + 1, most.min(*limit)));
        !line.iter().any(before) && count < most
    }

    // Bodies.

    fn run(&mut self, number: Number) -> &mut Run {
        self.runs.get_mut(&number).expect("a run that there is")
    }

    /// A step is called; says what it gives, or that it gives nothing since its body ends.
    pub fn step(&mut self, number: Number, key: &str, outcome: Result<u64, String>) -> Option<Result<u64, String>> {
        let body = self.bodies.get_mut(&number).expect("a body that there is");
        if body.ended {
            self.stop(number);
            return None;
        }
        body.used.insert(key.to_owned());
        if let Some(stored) = self.runs.get(&number).and_then(|run| run.steps.get(key)) {
            return Some(stored.outcome.clone());
        }
        let index = body.next_index;
        body.next_index += 1;
        body.checkpointed = true;
        self.record(number, key, index, &outcome);
        Some(outcome)
    }

    /// A step is called whose body does not return yet.
    pub fn step_begins(&mut self, number: Number, key: &str) {
        let body = self.bodies.get_mut(&number).expect("a body that there is");
        if body.ended {
            return self.stop(number);
        }
        body.used.insert(key.to_owned());
        body.inside = Some((key.to_owned(), body.next_index));
        body.next_index += 1;
    }

    /// The step that was begun returns. Of a cancelled run nothing is recorded, and its body ends there.
    pub fn step_returns(&mut self, number: Number, outcome: Result<u64, String>) -> Option<Result<u64, String>> {
        let body = self.bodies.get_mut(&number).expect("a body that there is");
        let (key, index) = body.inside.take()?;
        if body.ended {
            self.stop(number);
            return None;
        }
        body.checkpointed = true;
        self.record(number, &key, index, &outcome);
        Some(outcome)
    }

    fn record(&mut self, number: Number, key: &str, index: u32, outcome: &Result<u64, String>) {
        let run = self.run(number);
        if outcome.is_ok() {
            run.step_index = run.step_index.max(index + 1);
        }
        run.steps.insert(key.to_owned(), Stored { index, outcome: outcome.clone() });
    }

    pub fn log(&mut self, number: Number, line: String) {
        if let Some(run) = self.runs.get_mut(&number) {
            run.logs.push(line);
        }
    }

    pub fn completes(&mut self, number: Number, output: u64) {
        if !self.bodies[&number].ended {
            self.end(number, RunStatus::Completed);
            self.run(number).output = Some(output);
        }
        self.stop(number);
    }

    pub fn fails(&mut self, number: Number, error: &str, step: Option<&str>) {
        if !self.bodies[&number].ended {
            self.end(number, RunStatus::Failed);
            let run = self.run(number);
            run.error = Some(error.to_owned());
            run.failed_step = step.map(str::to_owned);
        }
        self.stop(number);
    }

    /// The last of a body's code is gone: key and slot are free.
    pub fn stop(&mut self, number: Number) {
        self.bodies.remove(&number);
        self.start_what_may();
    }

    fn end(&mut self, number: Number, status: RunStatus) {
        let now = self.now;
        let run = self.run(number);
        run.status = status;
        run.completed_at = Some(now);
        run.crashes = 0;
    }

    // From outside.

    pub fn cancel(&mut self, number: Number) -> Result<(), Refusal> {
        let status = self.runs.get(&number).ok_or(Refusal::NotFound)?.status;
        if status.is_terminal() {
            return Err(Refusal::Status(status));
        }
        self.cancel_all(&[number]);
        Ok(())
    }

    /// The body of a cancelled run holds key and slot until it has stopped.
    pub fn cancel_all(&mut self, numbers: &[Number]) {
        for number in numbers {
            if self.runs[number].status == RunStatus::Leased
                && let Some(body) = self.bodies.get_mut(number)
            {
                body.ended = true;
            }
            self.end(*number, RunStatus::Cancelled);
        }
        self.start_what_may();
    }

    pub fn resume(&mut self, number: Number, clear: &[String]) -> Result<(), Refusal> {
        let status = self.runs.get(&number).ok_or(Refusal::NotFound)?.status;
        if !matches!(status, RunStatus::Failed | RunStatus::Cancelled) {
            return Err(Refusal::Status(status));
        }
        self.resume_all(&[number], clear);
        Ok(())
    }

    /// To the back of the line; the failure that ended the run is cleared, one that the body caught stays.
    pub fn resume_all(&mut self, numbers: &[Number], clear: &[String]) {
        for number in numbers {
            let ticket = self.ticket();
            let run = self.run(*number);
            run.status = RunStatus::Pending;
            run.place = (true, ticket);
            (run.completed_at, run.replaced_by, run.error, run.crashes) = (None, None, None, 0);
            let culprit = run.failed_step.take();
            run.steps
                .retain(|key, step| step.outcome.is_ok() || !(culprit.as_ref() == Some(key) || clear.contains(key)));
        }
        self.start_what_may();
    }

    pub fn retrigger(&mut self, number: Number) -> Result<Number, Refusal> {
        let run = self.runs.get(&number).ok_or(Refusal::NotFound)?;
        if !self.registered.contains_key(&run.job) {
            return Err(Refusal::UnknownJob);
        }
        if !run.status.is_terminal() {
            return Err(Refusal::Status(run.status));
        }
        let again = Asked {
            job: run.job,
            input: run.input,
            labels: run.labels.clone(),
            concurrency: run.concurrency.clone(),
            ..Asked::default()
        };
        let new = self.create(&again, None, Some(number));
        self.start_what_may();
        Ok(new)
    }

    pub fn delete(&mut self, number: Number) -> Result<(), Refusal> {
        let status = self.runs.get(&number).ok_or(Refusal::NotFound)?.status;
        if !status.is_terminal() {
            return Err(Refusal::Status(status));
        }
        self.forget(number);
        Ok(())
    }

    fn forget(&mut self, number: Number) {
        let Some(run) = self.runs.remove(&number) else { return };
        if let Some(key) = run.idempotency
            && self.keys.get(&(run.job, key.clone())) == Some(&number)
        {
            self.keys.remove(&(run.job, key));
        }
    }

    /// Runs that ended before a moment, oldest end first; one whose idempotency key has a time waits for it.
    pub fn purge(&mut self, before: u64, limit: usize) -> usize {
        let mut due: Vec<(u64, Number)> = Vec::new();
        for (number, run) in &self.runs {
            if let Some(ended) = run.completed_at
                && run.status.is_terminal()
                && ended < before
                && (run.ttl_ms.is_none() || self.expired(run))
            {
                due.push((ended, *number));
            }
        }
        due.sort_unstable();
        due.truncate(limit);
        due.iter().for_each(|(_, number)| self.forget(*number));
        due.len()
    }

    pub fn register(&mut self, job: usize, most: usize) {
        self.registered.insert(job, most);
        self.start_what_may();
    }

    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.start_what_may();
    }

    /// Works off what can start, with bodies that complete at once; gives how many ended. Nothing is executing before.
    pub fn work_off(&mut self, limit: Option<u64>) -> u64 {
        let (mut started, mut ended) = (0, 0);
        let may = |started: u64| limit.is_none_or(|limit| started < limit);
        loop {
            while may(started) && self.start_one() {
                started += 1;
            }
            let Some(number) = self.bodies.keys().next().copied() else { return ended };
            self.end(number, RunStatus::Completed);
            let run = self.run(number);
            run.output = Some(run.input);
            self.bodies.remove(&number);
            ended += 1;
        }
    }

    /// The process ends and another begins: what executed goes first in line, and has one crash more unless it got on.
    pub fn crash(&mut self) {
        for (number, body) in std::mem::take(&mut self.bodies) {
            if body.ended {
                continue;
            }
            let most = self.max_recoveries;
            let run = self.run(number);
            run.recoveries += 1;
            run.crashes = if body.checkpointed { 0 } else { run.crashes };
            if run.crashes > most {
                run.error = Some(format!("the process ended {} times in a row while this run executed", run.crashes));
                self.end(number, RunStatus::Failed);
            } else {
                (run.status, run.place) = (RunStatus::Pending, (false, run.born));
            }
        }
        self.registered.clear();
    }

    /// The process ends in order: what executed is handed back, first in line, and nothing is counted.
    pub fn shut_down(&mut self) {
        for (number, body) in std::mem::take(&mut self.bodies) {
            if body.ended {
                continue;
            }
            let run = self.run(number);
            run.crashes = if body.checkpointed { 0 } else { run.crashes - 1 };
            (run.status, run.place) = (RunStatus::Pending, (false, run.born));
        }
        self.registered.clear();
    }

    // Reading.

    /// Newest first.
    pub fn find(&self, filter: &Filter) -> Vec<Number> {
        let fits = |run: &Run| {
            (filter.statuses.is_empty() || filter.statuses.contains(&run.status))
                && (filter.jobs.is_empty() || filter.jobs.contains(&run.job))
                && filter.labels.iter().all(|(key, value)| run.labels.get(key) == Some(value))
        };
        self.runs.iter().rev().filter(|(_, run)| fits(run)).map(|(number, _)| *number).collect()
    }

    /// Pending, leased, completed, failed, cancelled runs of a job.
    pub fn counts(&self, job: usize) -> [u64; 5] {
        use RunStatus::{Cancelled, Completed, Failed, Leased, Pending};
        [Pending, Leased, Completed, Failed, Cancelled]
            .map(|status| self.runs.values().filter(|run| run.job == job && run.status == status).count() as u64)
    }
}
