//! Schedules: what is due by the wall clock is triggered, in the commit that moves its schedule on.
//!
//! Definition and standing are rows; here stands only when each is due next, in order, rebuilt from the rows. The arithmetic
//! is in [`schedule`](crate::schedule).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::turn::Turn;
use super::{Fault, Writer};
use crate::codec::records::{ScheduleRecord, StandingRecord};
use crate::codec::{self, Corrupted};
use crate::error::Error;
use crate::limits::{ALARMS_IN_GROUP_MAX, SCHEDULE_ON_TIME, SCHEDULES_MAX};
use crate::run::RunStatus;
use crate::schedule::{Missed, Standing, Timetable};
use crate::store::op::{Change, Concurrency, Idempotency, NewRun, NewSchedule, NotBefore, Triggered};
use crate::store::tables::Table;
use crate::store::view::Rows;
use crate::time::Timestamp;
use crate::trigger::OnConflict;

/// When every schedule is due next.
#[derive(Debug)]
pub(super) struct Schedules {
    by_name: BTreeMap<Arc<str>, Entry>,
    due: BTreeSet<(Timestamp, Arc<str>)>,
    /// The latest that the wall clock has shown since it last went back.
    latest: Timestamp,
}

#[derive(Debug)]
struct Entry {
    /// `None`: its expression or zone can't be read any more.
    timetable: Option<Timetable>,
    /// `None`: it is paused, or never due again.
    next: Option<Timestamp>,
}

impl Default for Schedules {
    fn default() -> Self {
        Schedules { by_name: BTreeMap::new(), due: BTreeSet::new(), latest: Timestamp::from_millis(0) }
    }
}

impl Schedules {
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    fn first_due(&self, now: Timestamp) -> Option<Arc<str>> {
        self.due.first().filter(|(at, _)| *at <= now).map(|(_, name)| name.clone())
    }

    fn remove(&mut self, name: &Arc<str>) {
        if let Some(Entry { next: Some(next), .. }) = self.by_name.remove(name) {
            self.due.remove(&(next, name.clone()));
        }
    }

    fn set(&mut self, name: &Arc<str>, timetable: Option<Timetable>, next: Option<Timestamp>) {
        self.remove(name);
        let next = next.filter(|_| timetable.is_some());
        self.due.extend(next.map(|next| (next, name.clone())));
        self.by_name.insert(name.clone(), Entry { timetable, next });
    }

    fn timetable(&self, name: &Arc<str>) -> Option<Timetable> {
        self.by_name.get(name)?.timetable.clone()
    }
}

/// A schedule's rows.
struct Stored {
    record: ScheduleRecord,
    input: Bytes,
    standing: StandingRecord,
}

impl Writer {
    /// Fires what is due, a slice of it.
    pub(super) fn fire_due(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        if self.schedules.by_name.is_empty() {
            return Ok(());
        }
        if turn.now.saturating_add(SCHEDULE_ON_TIME) < self.schedules.latest {
            self.rewind(turn)?;
        }
        self.schedules.latest = self.schedules.latest.max(turn.now);
        let mut fired = 0;
        while fired < ALARMS_IN_GROUP_MAX
            && let Some(name) = self.schedules.first_due(turn.now)
        {
            fired += 1;
            match self.fire_one(turn, &name) {
                Ok(firings) => fired += firings,
                Err(Fault::Corrupted(row)) => {
                    // Its next due time may find it repaired, or what it met gone.
                    tracing::error!(schedule = %name, error = %row, "what is due can't be fired");
                    let timetable = self.schedules.timetable(&name);
                    let next = timetable.as_ref().and_then(|timetable| timetable.next_after(turn.now));
                    self.schedules.set(&name, timetable, next);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Fires what is due of one schedule; says how many firings that were.
    fn fire_one(&mut self, turn: &mut Turn<'_>, name: &Arc<str>) -> Result<usize, Fault> {
        let (Some(timetable), Some(mut stored)) = (self.schedules.timetable(name), stored(turn, name)?) else {
            self.schedules.remove(name);
            return Ok(0);
        };
        let (due, next) = standing(&stored.standing).fire(&timetable, missed(name, &stored.record)?, turn.now);
        for at in &due {
            stored.standing.last_due = Some(*at);
            stored.standing.last_run = match self.fire_at(turn, name, &stored, Some(*at))? {
                Ok(triggered) => Some(triggered.run),
                Err(error) => {
                    tracing::warn!(schedule = %name, due = %at, %error, "a firing is refused");
                    None
                }
            };
        }
        (stored.standing.next, stored.standing.fired) = (next.next, next.fired);
        self.put_standing(turn, name, &stored.standing);
        self.schedules.set(name, Some(timetable), next.next);
        Ok(due.len())
    }

    /// Triggers what a schedule triggers.
    fn fire_at(
        &mut self,
        turn: &mut Turn<'_>,
        name: &Arc<str>,
        stored: &Stored,
        due: Option<Timestamp>,
    ) -> Result<Result<Triggered, Error>, Fault> {
        let Stored { record, input, .. } = stored;
        let concurrency = (!record.keys.is_empty()).then(|| Concurrency {
            keys: record.keys.clone(),
            on_conflict: OnConflict::from_byte(record.on_conflict),
            max_queued: record.max_queued,
        });
        // Its run may have gone by the time that a clock comes back here; the standing knows better then.
        let idempotency = due.map(|due| Idempotency {
            key: format!("durably.schedule/{name}/{due}"),
            ttl: None,
            reject_changed_input: false,
            reuse_after_failure: false,
        });
        let item = NewRun {
            job: self.job_name(record.job),
            input: input.clone(),
            fingerprint: record.fingerprint,
            idempotency,
            concurrency,
            labels: record.labels.clone(),
            version: record.version,
            retriggered_from: None,
            forked: None,
            parent: None,
            priority: record.priority,
            not_before: record.delay_ms.map(|ms| NotBefore::After(Duration::from_millis(ms))),
            deadline: record.deadline_ms.map(Duration::from_millis),
            schedule: Some((name.clone(), due)),
        };
        match self.decide_all(turn, std::slice::from_ref(&item), &[record.job])? {
            Ok(mut decisions) => match decisions.pop() {
                Some(decision) => self.carry_out(turn, &item, record.job, decision, &[]).map(Ok),
                None => Ok(Err(Error::ShutDown)),
            },
            Err(error) => Ok(Err(error)),
        }
    }

    /// The clock went back: what lies between then and now is due again, but for what has fired.
    fn rewind(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        self.schedules.latest = turn.now;
        let is_later = |entry: &Entry| {
            let first = entry.timetable.as_ref().and_then(|timetable| timetable.next_after(turn.now));
            first.is_some_and(|first| entry.next.is_none_or(|next| first < next))
        };
        let names = self.schedules.by_name.iter().filter(|(_, entry)| is_later(entry));
        let names: Vec<Arc<str>> = names.map(|(name, _)| name.clone()).collect();
        for name in names {
            let stored = match stored(turn, &name) {
                Err(Fault::Corrupted(_)) => None,
                stored => stored?,
            };
            if let (Some(mut stored), Some(timetable)) = (stored, self.schedules.timetable(&name))
                && !stored.standing.paused
                && let Some(rewound) = standing(&stored.standing).rewound(&timetable, turn.now)
            {
                stored.standing.next = rewound.next;
                self.put_standing(turn, &name, &stored.standing);
                self.schedules.set(&name, Some(timetable), rewound.next);
            }
        }
        Ok(())
    }

    /// Registers a schedule, or replaces the definition of the one that has its name.
    pub(super) fn schedule(&mut self, turn: &mut Turn<'_>, new: &NewSchedule) -> Result<Result<(), Error>, Fault> {
        let NewSchedule { name, timetable, expression, time_zone, missed, run } = new;
        let known = match stored(turn, name) {
            // One that can't be read is replaced.
            Err(Fault::Corrupted(_)) => None,
            known => known?,
        };
        let count = self.schedules.by_name.len() + 1;
        if !self.schedules.by_name.contains_key(name) && count > SCHEDULES_MAX {
            return Ok(Err(Error::TooMany { what: "schedules", count, count_max: SCHEDULES_MAX }));
        }
        let (missed, missed_max) = missed.to_numbers();
        let record = ScheduleRecord {
            job: self.job_number(turn, &run.job),
            expression: expression.clone(),
            time_zone: time_zone.clone(),
            missed,
            missed_max,
            keys: run.keys().to_vec(),
            on_conflict: run.concurrency.as_ref().map_or(OnConflict::Queue, |other| other.on_conflict).to_byte(),
            max_queued: run.concurrency.as_ref().and_then(|concurrency| concurrency.max_queued),
            priority: run.priority,
            labels: run.labels.clone(),
            delay_ms: run.not_before.and_then(NotBefore::delay_ms),
            deadline_ms: run.deadline.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            version: run.version,
            fingerprint: run.fingerprint,
            created_at: known.as_ref().map_or(turn.now, |known| known.record.created_at),
        };
        let same_times = known
            .as_ref()
            .is_some_and(|known| known.record.expression == *expression && known.record.time_zone == *time_zone);
        let changed = known.as_ref().is_none_or(|known| known.record != record || known.input != run.input);
        let mut standing = known.map_or_else(StandingRecord::default, |known| known.standing);
        if !same_times {
            let fresh = Standing::begin(timetable, turn.now);
            (standing.next, standing.fired) = (fresh.next.filter(|_| !standing.paused), fresh.fired);
            self.put_standing(turn, name, &standing);
        }
        if changed {
            turn.stage.put(Table::Schedules, name.as_bytes(), codec::seal(&record, &run.input));
        }
        if self.schedules.by_name.is_empty() {
            self.schedules.latest = turn.now;
        }
        self.schedules.set(name, Some(timetable.clone()), standing.next);
        Ok(Ok(()))
    }

    pub(super) fn change_schedule(
        &mut self,
        turn: &mut Turn<'_>,
        name: &Arc<str>,
        change: Change,
    ) -> Result<Result<(), Error>, Fault> {
        let not_found = || Ok(Err(Error::ScheduleNotFound { name: name.to_string() }));
        if change == Change::Remove {
            if !self.schedules.by_name.contains_key(name) {
                return not_found();
            }
            turn.stage.delete(Table::Schedules, name.as_bytes());
            turn.stage.delete(Table::Standings, name.as_bytes());
            self.schedules.remove(name);
            return Ok(Ok(()));
        }
        let Some(Stored { standing: mut record, .. }) = stored(turn, name)? else { return not_found() };
        let pauses = change == Change::Pause;
        if record.paused != pauses {
            let timetable = self.schedules.timetable(name);
            record.paused = pauses;
            record.next = match &timetable {
                Some(timetable) if !pauses => standing(&record).next_unfired(timetable, turn.now),
                _ => None,
            };
            self.put_standing(turn, name, &record);
            self.schedules.set(name, timetable, record.next);
        }
        Ok(Ok(()))
    }

    /// Triggers what a schedule triggers, now.
    pub(super) fn fire_now(&mut self, turn: &mut Turn<'_>, name: &Arc<str>) -> Result<Result<Triggered, Error>, Fault> {
        let Some(stored) = stored(turn, name)? else {
            return Ok(Err(Error::ScheduleNotFound { name: name.to_string() }));
        };
        let mut fired = self.fire_at(turn, name, &stored, None)?;
        self.claim(turn)?;
        if let Ok(triggered) = &mut fired
            && self.bodies.contains_key(&triggered.run)
        {
            triggered.status = RunStatus::Leased;
        }
        Ok(fired)
    }

    fn put_standing(&self, turn: &mut Turn<'_>, name: &Arc<str>, standing: &StandingRecord) {
        turn.stage.put(Table::Standings, name.as_bytes(), codec::seal(standing, &[]));
    }

    /// When every schedule is due, from the rows.
    pub(super) fn read_schedules(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let mut names: Vec<Arc<str>> = Vec::new();
        turn.rows().scan_prefix(Table::Schedules, &[], &mut |key, _| {
            names.push(String::from_utf8_lossy(key).into());
            Ok(ControlFlow::Continue(()))
        })?;
        self.schedules = Schedules::default();
        for name in names {
            let (timetable, next) = match stored(turn, &name) {
                Ok(Some(Stored { record, standing, .. })) => {
                    let timetable = Timetable::parse(&record.expression, &record.time_zone);
                    if let Err(error) = &timetable {
                        tracing::error!(schedule = %name, %error, "a schedule fires nothing until it is registered again");
                    }
                    (timetable.ok(), standing.next)
                }
                Ok(None) => continue,
                Err(Fault::Corrupted(row)) => {
                    tracing::error!(schedule = %name, error = %row, "a schedule fires nothing until it is registered again");
                    (None, None)
                }
                Err(fault) => return Err(fault),
            };
            self.schedules.set(&name, timetable, next);
        }
        if self.schedules.by_name.is_empty() { Ok(()) } else { self.rewind(turn) }
    }
}

fn stored(turn: &Turn<'_>, name: &Arc<str>) -> Result<Option<Stored>, Fault> {
    let key = name.as_bytes();
    let Some(row) = turn.rows().get(Table::Schedules, key)? else { return Ok(None) };
    let (record, input) = codec::open(Table::Schedules, key, &row)?;
    let row = turn.rows().get(Table::Standings, key)?;
    let row = row.ok_or_else(|| Corrupted::new(Table::Standings, key, "row is missing"))?;
    Ok(Some(Stored { record, input, standing: codec::open(Table::Standings, key, &row)?.0 }))
}

fn standing(record: &StandingRecord) -> Standing {
    Standing { next: record.next, fired: record.fired.clone() }
}

fn missed(name: &str, record: &ScheduleRecord) -> Result<Missed, Corrupted> {
    Missed::from_numbers((record.missed, record.missed_max))
        .ok_or_else(|| Corrupted::new(Table::Schedules, name.as_bytes(), "unknown policy"))
}
