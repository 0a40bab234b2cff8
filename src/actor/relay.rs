//! Answers of large groups, given by a task instead of the writer, which drops the events that theirs push out, too.
//!
//! Waking a task from a thread that is none of its runtime's takes a lock and maybe a system call for each; from a task of the
//! runtime it is a push to a queue. So the writer hands a group over as a whole, and goes on with the next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::event::{Ring, Told};
use crate::store::op::Op;

pub(super) struct Relay {
    queue: Mutex<Queue>,
    arrived: Notify,
    events: Ring<Told>,
}

#[derive(Default)]
struct Queue {
    groups: VecDeque<Vec<Op>>,
    /// Memory of groups that were answered.
    spare: Vec<Op>,
    /// Its task is gone, with the runtime that it was of.
    closed: bool,
}

impl Relay {
    pub(super) fn spawn(events: Ring<Told>) -> Arc<Relay> {
        let relay = Arc::new(Relay { queue: Mutex::default(), arrived: Notify::new(), events });
        tokio::spawn(Task(relay.clone()).run());
        relay
    }

    /// Takes what is to be answered, unless its runtime has gone.
    pub(super) fn answer(&self, ops: &mut Vec<Op>) {
        let mut queue = self.queue();
        if !queue.closed {
            let spare = std::mem::take(&mut queue.spare);
            queue.groups.push_back(std::mem::replace(ops, spare));
            drop(queue);
            self.arrived.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.arrived.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wherever it ends, nobody is left without an answer.
struct Task(Arc<Relay>);

impl Task {
    async fn run(self) {
        loop {
            let (ops, closed) = {
                let mut queue = self.0.queue();
                (queue.groups.pop_front(), queue.closed)
            };
            let Some(mut ops) = ops else {
                if closed {
                    return;
                }
                self.0.arrived.notified().await;
                continue;
            };
            ops.drain(..).for_each(|op| op.settle(None));
            self.0.queue().spare = ops;
            self.0.events.settle();
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let left = {
            let mut queue = self.0.queue();
            queue.closed = true;
            std::mem::take(&mut queue.groups)
        };
        left.into_iter().flatten().for_each(|op| op.settle(None));
    }
}
