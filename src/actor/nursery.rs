//! The parent of all run actors. It does nothing else, so that nothing but the end of the runtime ends it: a parent that
//! ends kills its children.

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

struct Nursery;

pub(super) async fn spawn() -> Result<ActorCell, SpawnErr> {
    let (nursery, _) = Actor::spawn(None, Nursery, ()).await?;
    Ok(nursery.get_cell())
}

impl Actor for Nursery {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        // What a run actor leaves behind is reported by what its body held, whichever way it ended.
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            tracing::error!(actor = %cell.get_id(), %error, "a run actor failed; its run goes on from its last checkpoint");
        }
        Ok(())
    }
}
