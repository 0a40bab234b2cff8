//! The supervisor's supervisor: makes a new one when it fails.

use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use super::message::Internal;
use super::supervisor::Supervisor;
use crate::durably::Core;

struct Root {
    core: Arc<Core>,
}

pub(super) async fn spawn(core: Arc<Core>) -> Result<ActorCell, SpawnErr> {
    let (root, _) = Actor::spawn(None, Root { core: core.clone() }, ()).await?;
    let (supervisor, _) = Actor::spawn_linked(None, Supervisor { core: core.clone() }, (), root.get_cell()).await?;
    core.hub.set_supervisor(supervisor);
    Ok(root.get_cell())
}

impl Actor for Root {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let ended = match &event {
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(actor = %cell.get_id(), %error, "the supervisor failed; it is rebuilt");
                true
            }
            SupervisionEvent::ActorTerminated(..) => !self.core.is_closed(),
            _ => false,
        };
        if !ended {
            return Ok(());
        }
        match Actor::spawn_linked(None, Supervisor { core: self.core.clone() }, (), myself.get_cell()).await {
            Ok((supervisor, _)) => {
                self.core.hub.set_supervisor(supervisor);
                self.core.hub.tell(Internal::Sweep);
            }
            Err(error) => tracing::error!(%error, "the supervisor can't be rebuilt"),
        }
        Ok(())
    }
}
