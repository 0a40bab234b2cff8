//! One concurrency key: the gate that its bodies pass.
//!
//! Gets bodies from job actors in the order in which the writer gave out their leases. The writer admits no more than the
//! key's limit; the gate makes sure that this holds of *bodies*, and reports the key free only when one has really stopped.
//! A body of several keys waits at all their gates: whichever finds room for all its keys lets it in, and each looks again
//! when a body of its key has stopped.
//!
//! Invariant: at most `limit` bodies of the key are running.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::bodies::{Begun, Gates};
use super::message::Internal;
use super::{body_gone, run, settle};
use crate::durably::Core;
use crate::engine::{Generation, KeyName};
use crate::id::RunId;

pub(super) struct KeyActor {
    pub(super) core: Arc<Core>,
    pub(super) key: KeyName,
}

#[derive(Debug)]
pub(crate) enum KeyMsg {
    /// A body of this key is assigned; all its gates.
    Start(RunId, Gates),
    /// The last code of a body is gone.
    Stopped(RunId, Generation),
}

#[derive(Default)]
pub(super) struct Gate {
    waiting: VecDeque<(RunId, Gates)>,
    /// Bodies that were sent here so far.
    seen: u64,
}

impl Actor for KeyActor {
    type Msg = KeyMsg;
    type State = Gate;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<KeyMsg>, (): ()) -> Result<Gate, ActorProcessingErr> {
        Ok(Gate::default())
    }

    async fn handle(&self, _: ActorRef<KeyMsg>, message: KeyMsg, gate: &mut Gate) -> Result<(), ActorProcessingErr> {
        match message {
            KeyMsg::Start(run, gates) => {
                gate.seen += 1;
                gate.waiting.push_back((run, gates));
            }
            KeyMsg::Stopped(run, generation) => settle(&self.core, run, generation),
        }
        let mut at = 0;
        while let Some((run, gates)) = gate.waiting.get(at) {
            let run = *run;
            match self.core.hub.bodies.begin(run, gates) {
                // What it lacks may be another key, which those behind it do not need.
                Begun::NoRoom if matches!(gates, Gates::Several(_)) => at += 1,
                Begun::NoRoom => break,
                Begun::Gone => drop(gate.waiting.remove(at)),
                Begun::Yes(start) => {
                    gate.waiting.remove(at);
                    let generation = start.generation;
                    if let Err(error) = run::spawn(&self.core, start).await {
                        tracing::error!(%run, %error, "a run actor can't be made");
                        body_gone(&self.core, run, generation, false);
                    }
                }
            }
        }
        if gate.waiting.is_empty() && !self.core.hub.bodies.uses(&self.key) {
            self.core.hub.tell(Internal::KeyIdle(self.key.clone(), gate.seen));
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<KeyMsg>,
        _: SupervisionEvent,
        _: &mut Gate,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
