//! Whether the registered code can read what runs in flight have stored.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Core;
use crate::error::Error;
use crate::id::RunId;
use crate::job::Definition;
use crate::job::schema::DecodeError;
use crate::limits::UNREADABLE_LISTED_MAX;
use crate::store::pending::{InFlight, Place};

/// What [`Durably::check_pending`](crate::Durably::check_pending) has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingCheck {
    /// Runs in flight that were looked at.
    pub checked: u64,
    /// What can't be read, at most 1,000 of it.
    pub unreadable: Vec<Unreadable>,
    /// How much can't be read, listed or not.
    pub unreadable_count: u64,
    /// Runs whose job is not registered, by its name: nothing is known of these.
    pub unregistered: BTreeMap<String, u64>,
}

impl PendingCheck {
    /// Everything that could be checked can be read, and the code for every run is there.
    pub fn is_ok(&self) -> bool {
        self.unreadable_count == 0 && self.unregistered.is_empty()
    }
}

/// A stored value that the registered code can't read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreadable {
    /// The run.
    pub run_id: RunId,
    /// Its job.
    pub job_name: String,
    /// The step whose output it is; `None`: it is the run's input.
    pub step: Option<String>,
    /// The [version](crate::Job::version) of the code that stored it.
    pub version: u32,
    /// What is wrong: what was expected, where, and the beginning of what is stored.
    pub message: String,
}

impl Core {
    pub(crate) async fn check_pending(&self) -> Result<PendingCheck, Error> {
        let (mut found, mut place) = (PendingCheck::default(), Some(Place::START));
        while let Some(from) = place {
            let (runs, next) = self.store.in_flight(from).await?;
            for run in runs {
                found.checked += 1;
                match self.registry.get(&run.job) {
                    Some(definition) => self.check_run(&mut found, &definition, &run).await?,
                    None => *found.unregistered.entry(run.job.to_string()).or_default() += 1,
                }
            }
            place = next;
            // What is decoded here must not keep the thread from others.
            tokio::task::yield_now().await;
        }
        Ok(found)
    }

    async fn check_run(
        &self,
        found: &mut PendingCheck,
        definition: &Arc<Definition>,
        run: &InFlight,
    ) -> Result<(), Error> {
        let read = guarded(|| definition.check_input(run.version, &run.input));
        found.note(run, None, run.version, &run.input, read);
        let mut from = (!definition.expectations.is_empty()).then_some(0);
        while let Some(index) = from {
            let of = definition.clone();
            let wanted = move |key: &str| of.expectations.iter().any(|expected| expected.is_about(key));
            let (steps, next) = self.store.outputs(run.run, index, wanted).await?;
            for step in steps {
                let expected = definition.expectations.iter().filter(|expected| expected.is_about(&step.key));
                let read = guarded(|| expected.map(|of| of.check(step.version, &step.output)).collect());
                found.note(run, Some(step.key), step.version, &step.output, read);
            }
            from = next;
        }
        Ok(())
    }
}

impl PendingCheck {
    fn note(&mut self, run: &InFlight, step: Option<String>, version: u32, stored: &[u8], read: Result<(), String>) {
        let Err(message) = read else { return };
        self.unreadable_count += 1;
        if self.unreadable.len() < UNREADABLE_LISTED_MAX {
            let shown: String = String::from_utf8_lossy(stored).chars().take(200).collect();
            let message = format!("{message}; stored: {shown}");
            let (run_id, job_name) = (run.run, run.job.to_string());
            self.unreadable.push(Unreadable { run_id, job_name, step, version, message });
        }
    }
}

/// Runs the user's decoding, which may do anything.
fn guarded(read: impl FnOnce() -> Result<(), DecodeError>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("it does not fit {}: {} at {:?}", error.expected, error.message, error.path)),
        Err(_) => Err("reading it panics".into()),
    }
}
