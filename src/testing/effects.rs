//! What a job's steps do to the world, counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::rig::Rig;
use crate::id::RunId;
use crate::step::current;

/// Records what a job's steps do to the world, and what may be expected of that over crashes. Clones are the same record.
///
/// ```
/// use durably::testing::Effects;
///
/// let effects = Effects::new().exactly_once_per_checkpoint("charge").at_least("mail", 1).at_most("mail", 2);
/// effects.record("mail");
/// assert_eq!(effects.count("mail"), 1);
/// ```
#[derive(Clone, Default)]
pub struct Effects(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    expected: BTreeMap<String, Vec<Expected>>,
    /// Whose end ends the counting.
    rig: Weak<Rig>,
    /// Starts of the process in this trial.
    life: usize,
    records: Vec<Record>,
    /// Steps whose outcome was on disk when a life began.
    stored: Vec<BTreeSet<(RunId, String)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    OncePerCheckpoint,
    AtLeast(usize),
    AtMost(usize),
}

#[derive(Debug, Clone)]
struct Record {
    name: String,
    by: Option<(RunId, String)>,
    life: usize,
}

/// How many steps did each effect, undisturbed.
#[derive(Debug, Clone, Default)]
pub(super) struct Undisturbed(BTreeMap<String, usize>);

impl Effects {
    /// Nothing is recorded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The effect is done inside of steps, by as many as in an undisturbed run, and not again once the outcome of its step is on
    /// disk. Cut off before that, it is done again: at least once is what a step can promise. This is expected of every effect
    /// that nothing else is said of.
    pub fn exactly_once_per_checkpoint(self, effect: impl Into<String>) -> Self {
        self.expect(effect.into(), Expected::OncePerCheckpoint)
    }

    /// The effect is done so often or more, over all executions of a run and its children.
    pub fn at_least(self, effect: impl Into<String>, count: usize) -> Self {
        self.expect(effect.into(), Expected::AtLeast(count))
    }

    /// The effect is done no more often than this, over all executions of a run and its children.
    pub fn at_most(self, effect: impl Into<String>, count: usize) -> Self {
        self.expect(effect.into(), Expected::AtMost(count))
    }

    fn expect(self, effect: String, expected: Expected) -> Self {
        self.book().expected.entry(effect).or_default().push(expected);
        self
    }

    /// The effect is done, now. Which step does it is noted where this is called in a step's body.
    pub fn record(&self, effect: impl Into<String>) {
        let mut book = self.book();
        let rig = book.rig.upgrade();
        if rig.as_ref().is_some_and(|rig| rig.is_dead()) {
            // Of a body that has not been dropped yet, though its process is dead.
            return;
        }
        let record = Record { name: effect.into(), by: current::run_and_step(), life: book.life };
        if let Some(rig) = rig {
            rig.note(format!("     effect {:?}", record.name));
        }
        book.records.push(record);
    }

    /// How often the effect was done since the last trial began.
    pub fn count(&self, effect: &str) -> usize {
        self.book().records.iter().filter(|record| record.name == effect).count()
    }

    /// Forgets what was recorded.
    pub fn clear(&self) {
        let mut book = self.book();
        (book.life, book.rig) = (0, Weak::new());
        book.records.clear();
        book.stored.clear();
    }

    /// A process starts, with these steps' outcomes on disk.
    pub(super) fn begin_life(&self, rig: &Arc<Rig>, stored: BTreeSet<(RunId, String)>) {
        let mut book = self.book();
        book.rig = Arc::downgrade(rig);
        book.stored.push(stored);
        book.life = book.stored.len() - 1;
    }

    pub(super) fn undisturbed(&self) -> Undisturbed {
        let book = self.book();
        let names = book.records.iter().map(|record| record.name.clone());
        Undisturbed(names.map(|name| (name.clone(), book.steps(&name).len())).collect())
    }

    /// What is not as expected.
    pub(super) fn violation(&self, undisturbed: &Undisturbed) -> Option<String> {
        let book = self.book();
        let mut names: BTreeSet<&String> = book.records.iter().map(|record| &record.name).collect();
        names.extend(book.expected.keys().chain(undisturbed.0.keys()));
        let once = vec![Expected::OncePerCheckpoint];
        names.into_iter().find_map(|name| {
            let count = book.records.iter().filter(|record| record.name == *name).count();
            book.expected.get(name).unwrap_or(&once).iter().find_map(|expected| match *expected {
                Expected::AtLeast(least) if count < least => {
                    Some(format!("effect {name:?} was done {count} times, not {least} or more"))
                }
                Expected::AtMost(most) if count > most => {
                    Some(format!("effect {name:?} was done {count} times, not {most} at most"))
                }
                Expected::AtLeast(_) | Expected::AtMost(_) => None,
                Expected::OncePerCheckpoint => book.repeated(name, undisturbed),
            })
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// The steps that did an effect.
    fn steps(&self, name: &str) -> BTreeSet<&(RunId, String)> {
        self.records.iter().filter(|record| record.name == name).filter_map(|record| record.by.as_ref()).collect()
    }

    fn repeated(&self, name: &str, undisturbed: &Undisturbed) -> Option<String> {
        for record in self.records.iter().filter(|record| record.name == name) {
            let Some(by) = &record.by else {
                return Some(format!(
                    "effect {name:?} was done outside of a step, where every execution does it again"
                ));
            };
            if self.stored.get(record.life).is_some_and(|stored| stored.contains(by)) {
                return Some(format!(
                    "effect {name:?} was done again, though the outcome of step {:?} was on disk",
                    by.1
                ));
            }
        }
        let (steps, wanted) = (self.steps(name), undisturbed.0.get(name).copied().unwrap_or_default());
        if steps.len() == wanted {
            return None;
        }
        let keys: Vec<&str> = steps.iter().map(|(_, step)| step.as_str()).collect();
        Some(format!("effect {name:?} was done by {} steps, {keys:?}, and undisturbed by {wanted}", steps.len()))
    }
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = self.book();
        f.debug_struct("Effects")
            .field("expected", &book.expected)
            .field("records", &book.records)
            .finish_non_exhaustive()
    }
}
