//! The bodies that execute, each behind a gate through which it is told what to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use durably::{Error, Job, Step};
use tokio::sync::{mpsc, oneshot};

use super::ledger::{Entry, Ledger, Tag, What};
use crate::suites::disk::SimDisk;

pub enum Command {
    Step(Tag, String, oneshot::Sender<()>),
    Finish(bool),
}

pub type Gate = mpsc::UnboundedSender<Command>;

/// The bodies that execute, and the ledger that they write to.
pub struct Gates {
    open: Mutex<BTreeMap<Tag, Gate>>,
    ledger: Mutex<Ledger>,
    disk: Arc<SimDisk>,
}

impl Gates {
    pub fn new(disk: &Arc<SimDisk>, ledger: Ledger) -> Arc<Gates> {
        Arc::new(Gates { open: Mutex::default(), ledger: Mutex::new(ledger), disk: disk.clone() })
    }

    /// Where in the disk's history it is now.
    pub fn at(&self) -> usize {
        self.disk.at()
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("the ledger is sound")
    }

    pub fn open(&self) -> MutexGuard<'_, BTreeMap<Tag, Gate>> {
        self.open.lock().expect("the gates are sound")
    }

    /// Something is asked; gives its place.
    pub fn begin(&self, tag: Tag, what: What) -> (Tag, usize) {
        let begun = self.disk.at();
        let mut ledger = self.ledger();
        let entries = &mut ledger.runs.entry(tag).or_default().entries;
        entries.push(Entry { begun, answered: None, what });
        (tag, entries.len() - 1)
    }

    pub fn answered(&self, (tag, at): (Tag, usize)) {
        let now = self.disk.at();
        if let Some(known) = self.ledger().runs.get_mut(&tag) {
            known.entries[at].answered = Some(now);
        }
    }

    /// It was refused: it has not happened.
    pub fn refused(&self, (tag, at): (Tag, usize)) {
        if let Some(known) = self.ledger().runs.get_mut(&tag) {
            // As if it began after all of history, so that places stay.
            known.entries[at].begun = usize::MAX;
        }
    }

    /// What an answer says.
    pub fn settle<T>(&self, place: (Tag, usize), answer: &Result<T, Error>) {
        match answer {
            Ok(_) => self.answered(place),
            Err(Error::Indeterminate | Error::Storage(_)) => {}
            Err(_) => self.refused(place),
        }
    }
}

/// Closes a gate with its body.
struct Closes(Arc<Gates>, Tag);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.open().remove(&self.1);
    }
}

pub type Input = (Tag, String);

pub fn work(gates: Arc<Gates>) -> Job<Input, u64> {
    Job::new("work", move |step: Step, (tag, _): Input| {
        let gates = gates.clone();
        async move {
            let (sender, mut commands) = mpsc::unbounded_channel();
            gates.open().insert(tag, sender);
            let _closes = Closes(gates.clone(), tag);
            // Replays what is recorded, however many there are.
            let recorded = gates.ledger().steps_of(tag);
            for (index, value) in recorded {
                let known = value.clone();
                let found = step.run(("s", index), || async { Ok(known.clone()) }).await?;
                assert_eq!(found, value, "replayed");
            }
            while let Some(command) = commands.recv().await {
                match command {
                    Command::Step(index, value, done) => {
                        let place = gates.begin(tag, What::Step(index as u32, value.clone()));
                        let given = value.clone();
                        step.run(("s", index), || async { Ok(given.clone()) }).await?;
                        gates.answered(place);
                        let _ = done.send(());
                    }
                    Command::Finish(true) => return Ok(tag),
                    Command::Finish(false) => return Err("as told".into()),
                }
            }
            std::future::pending().await
        }
    })
}
