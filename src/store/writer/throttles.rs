//! What holds jobs and keys back, on disk: pauses, the rates of keys, and the windows of rates.
//!
//! A window's count rides on the commit of the lease that it counts.

use std::ops::ControlFlow;
use std::time::Duration;

use super::turn::Turn;
use super::{Fault, Writer};
use crate::codec::records::ThrottleRecord;
use crate::codec::{self, keys};
use crate::engine::{Event as EngineEvent, Keys, Rate, Throttle, Throttled, Window};
use crate::error::Error;
use crate::id::RunId;
use crate::store::op::{Part, Paused, ThrottleChange, Throttling};
use crate::store::tables::Table;
use crate::store::view::Rows;

impl Writer {
    pub(super) fn throttle(&mut self, turn: &mut Turn<'_>, asked: &Throttling) -> Result<(), Error> {
        let of = match &asked.of {
            Part::Key(key) => Throttled::Key(key.as_str().into()),
            Part::Job(name) => match self.jobs.numbers.get(name.as_str()) {
                Some(job) => Throttled::Job(*job),
                None => return Err(Error::JobNotFound { name: name.clone() }),
            },
        };
        let before = self.engine.throttle_of(&of).cloned();
        let paused = before.as_ref().and_then(|throttle| throttle.paused);
        let event = match asked.change {
            ThrottleChange::Pause(true) => EngineEvent::Held(of.clone(), paused.or(Some(turn.now))),
            ThrottleChange::Pause(false) => EngineEvent::Held(of.clone(), None),
            ThrottleChange::Rate(rate) => EngineEvent::Rated(of.clone(), rate),
        };
        self.tell_engine(turn, event);
        if self.engine.throttle_of(&of) != before.as_ref() {
            self.put_throttle(turn, &of);
        }
        Ok(())
    }

    /// Writes the windows that a start was counted in.
    pub(super) fn put_windows(&self, turn: &mut Turn<'_>, run: RunId, keys: &Keys) {
        let job = self.engine.job_of(run).map(Throttled::Job);
        for of in job.into_iter().chain(keys.iter().map(|(name, _)| Throttled::Key(name.clone()))) {
            if self.engine.throttle_of(&of).is_some_and(|throttle| throttle.rate.is_some()) {
                self.put_throttle(turn, &of);
            }
        }
    }

    fn put_throttle(&self, turn: &mut Turn<'_>, of: &Throttled) {
        let (key, of_key) = match of {
            Throttled::Job(job) => (keys::job_throttle(*job), false),
            Throttled::Key(name) => (keys::key_throttle(name), true),
        };
        let throttle = self.engine.throttle_of(of).cloned().unwrap_or_default();
        let Window { began, starts } = throttle.window;
        let rate = throttle.rate.filter(|_| of_key);
        let record = ThrottleRecord {
            paused_at: throttle.paused,
            rate: rate.map(|rate| (rate.starts, u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX))),
            window: (starts > 0).then_some((began, starts)),
        };
        if record == ThrottleRecord::default() {
            turn.stage.delete(Table::Throttles, key);
        } else {
            turn.stage.put(Table::Throttles, key, codec::seal(&record, &[]));
        }
    }

    /// What is held back, from its rows. Jobs are not registered yet: their code says their rates.
    pub(super) fn read_throttles(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let mut stored = Vec::new();
        turn.rows().scan_prefix(Table::Throttles, &[], &mut |key, row| {
            let of = match keys::read_throttle(key) {
                Some(Ok(job)) => Some(Throttled::Job(job)),
                Some(Err(name)) => Some(Throttled::Key(name.into())),
                None => None,
            };
            match (of, codec::open::<ThrottleRecord>(Table::Throttles, key, &row)) {
                (Some(of), Ok((record, _))) => stored.push((of, record)),
                (None, _) => tracing::error!(key = keys::show(key), "a row of throttles is of nothing"),
                // It is let go, as if nobody had held it back: what can be read of other things goes on.
                (_, Err(row)) => tracing::error!(error = %row, "what is paused or has a rate can't be read"),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (of, record) in stored {
            let window = record.window.map(|(began, starts)| Window { began, starts }).unwrap_or_default();
            let rate = record.rate.map(|(starts, ms)| Rate { starts, per: Duration::from_millis(ms) });
            let throttle = Throttle { paused: record.paused_at, rate, window };
            self.tell_engine(turn, EngineEvent::Restored(of, throttle));
        }
        Ok(())
    }

    /// What is paused, jobs first, each by name.
    pub(super) fn throttled(&self) -> Vec<Paused> {
        let paused = self.engine.held().map(|(of, since)| Paused {
            of: match of {
                Throttled::Job(job) => Part::Job(self.job_name(job).to_string()),
                Throttled::Key(name) => Part::Key(name.to_string()),
            },
            since,
        });
        paused.collect()
    }
}
