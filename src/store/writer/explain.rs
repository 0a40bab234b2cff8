//! Why a run is, or is not, executing, as the engine and the run's rows have it at one moment.

use super::turn::{Loaded, Turn};
use super::{Fault, Writer};
use crate::engine::{JobNumber, Keys, Obstacle as Found, Throttled};
use crate::error::Error;
use crate::id::RunId;
use crate::run::{Explanation, Holder, Obstacle, RunStatus};

impl Writer {
    /// All but what the run's steps say.
    pub(super) fn explain(&self, turn: &Turn<'_>, run: RunId) -> Result<Result<Explanation, Error>, Fault> {
        let Some(loaded) = turn.load(run)? else { return Ok(Err(Error::RunNotFound { run })) };
        let Loaded { record, state, .. } = &loaded;
        let since = state.updated_at.unwrap_or(record.created_at);
        Ok(Ok(match loaded.status() {
            RunStatus::Pending => Explanation::pending(self.obstacles(turn, run, &loaded)?),
            RunStatus::Leased => {
                let body = self.bodies.get(&run);
                let since = body.map(|body| body.since).or(state.started_at).unwrap_or(since);
                Explanation::Executing { since, steps: Vec::new(), waiting: Vec::new() }
            }
            RunStatus::Suspended => Explanation::Suspended { since, waiting: Vec::new() },
            status @ (RunStatus::Completed | RunStatus::Failed | RunStatus::Cancelled) => Explanation::Ended {
                status,
                at: state.completed_at.unwrap_or(since),
                error: state.error.as_ref().map(|error| error.message.clone()),
                replaced_by: state.replaced_by,
                stopping: self.engine.job_of(run).is_some(),
            },
        }))
    }

    fn obstacles(&self, turn: &Turn<'_>, run: RunId, loaded: &Loaded) -> Result<Vec<Obstacle>, Fault> {
        let Loaded { record, state, .. } = loaded;
        let found = self.engine.obstacles(run, record.job, &Keys::of(&record.keys), record.priority);
        let Some(found) = found else {
            return Ok(vec![match &state.blocked {
                Some(reason) => Obstacle::Blocked { reason: reason.clone() },
                None => Obstacle::SetAside,
            }]);
        };
        found.into_iter().map(|found| self.obstacle(turn, record.job, found)).collect()
    }

    fn obstacle(&self, turn: &Turn<'_>, job: JobNumber, found: Found) -> Result<Obstacle, Fault> {
        let job = || self.job_name(job).to_string();
        Ok(match found {
            Found::Paused => Obstacle::RuntimePaused,
            Found::Stopping => Obstacle::Stopping,
            Found::Delayed(until) => Obstacle::Delayed { until },
            Found::Unregistered => Obstacle::JobNotRegistered { job: job() },
            Found::Held(Throttled::Job(_), since) => Obstacle::JobPaused { job: job(), since },
            Found::Held(Throttled::Key(key), since) => Obstacle::KeyPaused { key: key.to_string(), since },
            Found::Rated(Throttled::Job(_), rate, until) => {
                Obstacle::JobRate { job: job(), starts: rate.starts, per: rate.per, until }
            }
            Found::Rated(Throttled::Key(key), rate, until) => {
                Obstacle::KeyRate { key: key.to_string(), starts: rate.starts, per: rate.per, until }
            }
            Found::Job { executing, limit } => Obstacle::JobConcurrency { job: job(), executing, limit },
            Found::Slots { executing, slots } => Obstacle::Slots { executing, limit: slots },
            Found::Key { name, holders, limit, ahead } => {
                let holders: Result<Vec<Holder>, Fault> =
                    holders.into_iter().take(HOLDERS_MAX).map(|run| holder(turn, run)).collect();
                Obstacle::Key { key: name.to_string(), holders: holders?, limit, ahead }
            }
            Found::Probation(behind) => Obstacle::Probation { behind },
            Found::Line { ahead } => Obstacle::InLine { ahead },
        })
    }
}

/// Holders that are named; a key's limit may be large.
const HOLDERS_MAX: usize = 64;

/// A holder of a key. It may be deleted even, while its body is still stopping.
fn holder(turn: &Turn<'_>, run: RunId) -> Result<Holder, Fault> {
    match turn.load(run) {
        Ok(loaded) => Ok(Holder {
            run,
            status: loaded.as_ref().map_or(RunStatus::Cancelled, Loaded::status),
            since: loaded.and_then(|loaded| loaded.state.started_at),
        }),
        Err(Fault::Corrupted(_)) => Ok(Holder { run, status: RunStatus::Leased, since: None }),
        Err(fault) => Err(fault),
    }
}
