//! Tells everyone what is on disk.
//!
//! It is told in two parts. First, while readers are still kept from the tail, what bodies wait for: they go on on another core
//! while this one brings the tail up to date, and whoever of them reads waits for that. Then, once readers are let in, what may
//! run foreign code, which may read: the wakers of listeners, of callers, and of what a body awaits beside its answers. Where
//! such a waker comes before an answer, that comes then, too.

use std::sync::Arc;

use super::turn::{Effect, News};
use super::{Alive, Condition, Effects, Start};
use crate::event::{Bell, Ended, Ring, Told, Wakers};
use crate::hooks::{Failpoint, Hooks};
use crate::id::{RunId, RunMap};
use crate::limits::GROUP_BYTES_MAX;
use crate::store::op::Op;

/// Answers are left to another thread from this many on: below it, handing them over costs more than waking.
const RELAYED_OPS_MIN: usize = 16;

pub(super) struct Publisher {
    /// Whom to tell what is to be done. Nothing is started before it is there.
    pub(super) effects: Option<Arc<dyn Effects>>,
    pub(super) events: Ring<Told>,
    pub(super) bell: Arc<Bell>,
    pub(super) condition: Arc<Condition>,
    /// Bodies that the actors have been told to start and that have not stopped: what survives a reopening.
    pub(super) alive: RunMap<Alive>,
    pub(super) hooks: Hooks,
}

/// What is left to be told of a group.
#[must_use]
#[derive(Debug)]
pub(super) struct Rest {
    wakers: Wakers,
    /// Who answers the group drops the events that its own push out.
    relayed: bool,
}

impl Publisher {
    /// The first part, of a group of so many bytes: events, up to this sequence, what is to be done, and the answers of bodies
    /// where they are many.
    pub(super) fn tell(&mut self, news: &mut News, bytes: usize, sequence: u64, ops: &mut Vec<Op>) -> Rest {
        self.condition.set_sequence(sequence);
        let relayed = news.events.len() >= RELAYED_OPS_MIN && bytes <= GROUP_BYTES_MAX;
        let wakers = self.events.publish_group(&mut news.events, std::mem::take(&mut news.row));
        self.hooks.pass(Failpoint::PublishedHalf);
        if !news.effects.iter().any(Effect::may_run_foreign_code) {
            self.tell_bodies(&mut news.effects, ops);
        }
        Rest { wakers, relayed }
    }

    /// The second part: listeners, who waits for the end of a run, and bodies that have heard of nothing yet.
    pub(super) fn tell_rest(&mut self, rest: Rest, news: &mut News, ends: &[(RunId, Ended)], ops: &mut Vec<Op>) {
        if !news.effects.is_empty() {
            self.tell_bodies(&mut news.effects, ops);
        }
        if !rest.relayed {
            self.events.settle();
        }
        rest.wakers.wake();
        for (run, ended) in ends {
            self.bell.ring(*run, ended);
        }
    }

    /// Tells what is to be done, then answers bodies where they are many. Takes from `ops` those that are answered.
    fn tell_bodies(&mut self, effects: &mut Vec<Effect>, ops: &mut Vec<Op>) {
        let mut starts = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                // Together, since each message to the actors costs about as much as all else that a start does here.
                Effect::Start(start) => {
                    let alive = Alive { generation: start.generation, job: start.job, keys: start.keys.clone() };
                    self.alive.insert(start.run, alive);
                    starts.push(start);
                }
                Effect::Stopped(run, generation) => {
                    if self.alive.get(&run).is_some_and(|alive| alive.generation == generation) {
                        self.alive.remove(&run);
                    }
                }
                Effect::Cancel(run, generation) => {
                    self.start(&mut starts);
                    if let Some(effects) = &self.effects {
                        effects.cancel(run, generation);
                    }
                }
                Effect::News(run, generation, news) => {
                    self.start(&mut starts);
                    if let Some(effects) = &self.effects {
                        effects.news(run, generation, news);
                    }
                }
            }
        }
        self.start(&mut starts);
        self.hooks.pass(Failpoint::Published);
        self.answer(ops);
    }

    fn start(&self, starts: &mut Vec<Arc<Start>>) {
        if let Some(effects) = &self.effects
            && !starts.is_empty()
        {
            effects.start(std::mem::take(starts));
        }
    }

    /// Where they are many, a task of the bodies' runtime answers the bodies: waking them is dearer from this thread, and the next
    /// group need not wait for it. Callers from outside may be of another runtime, or of none.
    fn answer(&self, ops: &mut Vec<Op>) {
        if ops.len() >= RELAYED_OPS_MIN
            && let Some(effects) = &self.effects
        {
            let others: Vec<Op> = ops.extract_if(.., |op| !op.is_of_body()).collect();
            effects.answer(ops);
            ops.extend(others);
        }
    }
}
