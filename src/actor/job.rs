//! One job: hands its bodies to the gates of their keys, or begins them where they have none.
//!
//! Holds nothing that is not in the bodies, so stopping it loses nothing.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::bodies::{Begun, Gates};
use super::key::KeyMsg;
use super::{body_gone, run};
use crate::durably::Core;
use crate::id::RunId;

pub(super) struct JobActor {
    pub(super) core: Arc<Core>,
}

#[derive(Debug)]
pub(super) enum JobMsg {
    /// Bodies of this job are assigned; the gates of each one's keys.
    Start(Vec<(RunId, Gates)>),
}

impl Actor for JobActor {
    type Msg = JobMsg;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<JobMsg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<JobMsg>, message: JobMsg, (): &mut ()) -> Result<(), ActorProcessingErr> {
        let JobMsg::Start(bodies) = message;
        for (run, gates) in bodies {
            for gate in gates.as_slice() {
                // A gate that is gone is made again by the supervisor, which then looks for what was lost.
                let _ = gate.send_message(KeyMsg::Start(run, gates.clone()));
            }
            if let Gates::None = gates
                && let Begun::Yes(start) = self.core.hub.bodies.begin(run, &gates)
            {
                let generation = start.generation;
                if let Err(error) = run::spawn(&self.core, start).await {
                    tracing::error!(%run, %error, "a run actor can't be made");
                    body_gone(&self.core, run, generation, false);
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<JobMsg>,
        _: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
