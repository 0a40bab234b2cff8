//! The actors: who executes what the writer has decided.
//!
//! ```text
//! writer --effects--> supervisor --> job actor --> key actor (the gate) --> run actor --> body, steps --> writer
//! ```
//!
//! The leases of a group that is on disk reach the supervisor as one message and go down to run actors, whose handlers poll the
//! user's futures. Run actors are children of a [`nursery`] that does nothing else, so supervisor, job and key actors can fail and be
//! rebuilt without touching a running body. What such an actor needs for that stands in [`bodies`], never in a mailbox.
//!
//! Supervision is overridden everywhere: ractor's default stops the parent when a child ends. Actors are unnamed: ractor's
//! registry of names is global to the process.

pub(crate) mod bodies;
mod job;
mod key;
pub(crate) mod message;
mod nursery;
mod relay;
mod root;
mod run;
mod supervisor;

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use ractor::{ActorCell, ActorRef};

use crate::durably::Core;
use crate::engine::Generation;
use crate::error::Error;
use crate::hooks::Bug;
use crate::id::RunId;
use crate::store::op::{News, Op};
use crate::store::writer::{Effects, Start};
use bodies::{Bodies, Gone};
use message::{Internal, SupervisorMsg};
use relay::Relay;

/// What the actors of one runtime share.
#[derive(Default)]
pub(crate) struct Hub {
    pub(crate) bodies: Bodies,
    supervisor: RwLock<Option<ActorRef<SupervisorMsg>>>,
    nursery: RwLock<Option<ActorCell>>,
    root: Mutex<Option<ActorCell>>,
    /// Run actors that have done and wait for their next run.
    waiting: Mutex<Vec<ActorRef<run::Execute>>>,
}

/// As many run actors wait for a run at most; each takes 7 KB.
const WAITING_ACTORS_MAX: usize = 1_024;

impl Hub {
    /// The supervisor as it is now.
    pub(crate) fn supervisor(&self) -> Option<ActorRef<SupervisorMsg>> {
        self.supervisor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_supervisor(&self, supervisor: ActorRef<SupervisorMsg>) {
        *self.supervisor.write().unwrap_or_else(PoisonError::into_inner) = Some(supervisor);
    }

    fn nursery(&self) -> Option<ActorCell> {
        self.nursery.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A run actor that waits for a run.
    fn waiting_actor(&self) -> Option<ActorRef<run::Execute>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a run actor for the next run; gives it back if there are enough.
    fn wait_for_run(&self, actor: ActorRef<run::Execute>) -> Option<ActorRef<run::Execute>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING_ACTORS_MAX {
            return Some(actor);
        }
        waiting.push(actor);
        None
    }

    /// Tells the supervisor; one that is being rebuilt reads what it missed from the bodies.
    fn tell(&self, message: Internal) {
        if let Some(supervisor) = self.supervisor() {
            let _ = supervisor.send_message(SupervisorMsg::Internal(message));
        }
    }

    /// Ends every actor at once; bodies are dropped at their next await.
    pub(crate) fn kill(&self) {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner).take();
        for cell in root.into_iter().chain(self.supervisor().map(|actor| actor.get_cell())).chain(self.nursery()) {
            cell.kill();
        }
    }
}

/// Starts the actors of a runtime.
pub(crate) async fn start(core: &Arc<Core>) -> Result<(), Error> {
    let spawned = |error: ractor::SpawnErr| Error::Storage(error.to_string().into());
    let nursery = nursery::spawn().await.map_err(spawned)?;
    *core.hub.nursery.write().unwrap_or_else(PoisonError::into_inner) = Some(nursery);
    let root = root::spawn(core.clone()).await.map_err(spawned)?;
    *core.hub.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(root);
    Ok(())
}

/// The writer's effects as messages.
pub(crate) struct Dispatch {
    core: Weak<Core>,
    relay: Arc<Relay>,
}

impl Dispatch {
    /// Must be called within the runtime whose tasks are to be woken.
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Dispatch { core: Arc::downgrade(core), relay: Relay::spawn(core.store.events().clone()) }
    }
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        self.relay.close();
    }
}

impl Effects for Dispatch {
    fn start(&self, starts: Vec<Arc<Start>>) {
        let Some(core) = self.core.upgrade() else { return };
        let runs = starts.iter().map(|start| start.run).collect();
        core.hub.bodies.assign(starts);
        core.hub.tell(Internal::Start(runs));
    }

    fn cancel(&self, run: RunId, generation: Generation) {
        if let Some(core) = self.core.upgrade() {
            core.hub.bodies.cancel(run, generation);
            if core.config.hooks.plants(Bug::KeyFreeBeforeStop) {
                core.hub.bodies.let_go(run);
            }
        }
    }

    fn news(&self, run: RunId, generation: Generation, news: News) {
        if let Some(core) = self.core.upgrade()
            && let Some(execution) = core.hub.bodies.execution(run, Some(generation))
        {
            execution.news(news);
        }
    }

    fn answer(&self, ops: &mut Vec<Op>) {
        if self.core.upgrade().is_some_and(|core| core.config.hooks.drives_time()) {
            return;
        }
        self.relay.answer(ops);
    }
}

/// The last code of a body is gone. `reported`: the run's end told the writer so.
pub(crate) fn body_gone(core: &Core, run: RunId, generation: Generation, reported: bool) {
    let Some(Gone { gates }) = core.hub.bodies.gone(run, generation, reported) else { return };
    if gates.as_slice().is_empty() {
        return settle(core, run, generation);
    }
    for gate in gates.as_slice() {
        let told = gate.send_message(key::KeyMsg::Stopped(run, generation));
        // The gate reports the key free. Should it be gone itself, that is done here, and the next gate looks anew.
        if told.is_err() {
            settle(core, run, generation);
            core.hub.tell(Internal::Sweep);
        }
    }
}

/// Reports a body as stopped, unless its end did, and forgets it.
fn settle(core: &Core, run: RunId, generation: Generation) {
    if let Some(reported) = core.hub.bodies.forget(run, generation)
        && !reported
    {
        core.store.send(Op::Stopped(run, generation));
    }
}

#[cfg(test)]
mod tests;
