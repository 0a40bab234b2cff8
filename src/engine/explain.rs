//! Why a run that waits does not start.

use super::{Engine, JobNumber, KeyName, Keys, Next, Place, Rate, Throttle, Throttled};
use crate::id::RunId;
use crate::time::Timestamp;

/// One thing that stands in a run's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// No run is started at all.
    Paused,
    /// An earlier body of the run has not stopped.
    Stopping,
    /// It stands in no line before this moment.
    Delayed(Timestamp),
    /// Its job has no code.
    Unregistered,
    Held(Throttled, Timestamp),
    Rated(Throttled, Rate, Timestamp),
    /// As many runs of its job as may execute do.
    Job {
        executing: u32,
        limit: u32,
    },
    /// As many runs as may execute do.
    Slots {
        executing: usize,
        slots: u32,
    },
    /// A key has no room for it, or others stand before it in line for that.
    Key {
        name: KeyName,
        holders: Vec<RunId>,
        limit: u32,
        ahead: usize,
    },
    /// Another run is on probation.
    Probation(Option<RunId>),
    /// So many runs of its job that could start stand before it.
    Line {
        ahead: usize,
    },
}

impl Engine {
    /// What stands in the way of a run that waits, what concerns it alone first. Nothing: it starts as soon as it can be
    /// written. `None`: it is in no line.
    pub(crate) fn obstacles(&self, run: RunId, job: JobNumber, keys: &Keys, priority: i8) -> Option<Vec<Obstacle>> {
        if let Some(executing) = self.executing.get(&run) {
            return Some(vec![Obstacle::Stopping])
                .filter(|_| matches!(executing.next.as_deref(), Some(Next::Queue(_))));
        }
        if self.successors.contains_key(&run) {
            return Some(vec![Obstacle::Stopping]);
        }
        let mut found = Vec::new();
        if let Some(at) = self.sleepers.delayed_until(run) {
            found.push(Obstacle::Delayed(at));
            return Some(found);
        }
        let place = self.pasts.get(&run).map_or(Place::new(false, run).with(priority), |past| past.place);
        let waits_for_keys = !keys.is_empty() && !self.holding.contains_key(&run);
        let line = self.lines.get(&job)?;
        let ready = line.contains(place);
        let parked = self.probation.is_parked(place);
        if waits_for_keys {
            self.key_obstacles(place, keys, &mut found)?;
        } else if !ready && !parked {
            return None;
        }
        if parked {
            found.push(Obstacle::Probation(self.probation.current()));
        }
        if !line.registered {
            found.push(Obstacle::Unregistered);
        }
        throttled(Throttled::Job(job), line.throttle.as_deref(), place, &mut found);
        if line.executing >= line.limit {
            found.push(Obstacle::Job { executing: line.executing, limit: line.limit });
        }
        if self.paused {
            found.push(Obstacle::Paused);
        }
        if self.executing.len() >= self.slots as usize {
            found.push(Obstacle::Slots { executing: self.executing.len(), slots: self.slots });
        }
        let ahead = line.ahead(place);
        if ready && ahead > 0 {
            found.push(Obstacle::Line { ahead });
        }
        Some(found)
    }

    fn key_obstacles(&self, place: Place, keys: &Keys, found: &mut Vec<Obstacle>) -> Option<()> {
        for (name, limit) in keys.iter() {
            let key = self.keys.get(name)?;
            key.waiting(place)?;
            throttled(Throttled::Key(name.clone()), self.throttles.get(name), place, found);
            let ahead = key.ahead(place);
            if ahead > 0 || !key.has_room(*limit) {
                let limit = key.holders.iter().map(|(_, limit)| *limit).fold(*limit, u32::min);
                let holders = key.holders.iter().map(|(run, _)| *run).collect();
                found.push(Obstacle::Key { name: name.clone(), holders, limit, ahead });
            }
        }
        Some(())
    }
}

fn throttled(of: Throttled, throttle: Option<&Throttle>, place: Place, found: &mut Vec<Obstacle>) {
    let Some(throttle) = throttle else { return };
    if let Some(since) = throttle.paused {
        found.push(Obstacle::Held(of.clone(), since));
    }
    if let (Some(rate), Some(until)) = (throttle.rate, throttle.full_until())
        && place.is_behind()
    {
        found.push(Obstacle::Rated(of, rate, until));
    }
}
