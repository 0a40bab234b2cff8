//! The supervisor: routes bodies to their job and key actors, and serves everything that can be asked by message.
//!
//! Keeps which job and key actors there are, nothing else; a new one reads what was under way from the bodies.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::OwnedSemaphorePermit;

use super::bodies::Gates;
use super::job::{JobActor, JobMsg};
use super::key::{KeyActor, KeyMsg};
use super::message::{Internal, Reply, SupervisorMsg, TriggerReply, TriggerRequest};
use super::run::panicked;
use super::settle;
use crate::durably::{Core, JobInfo};
use crate::engine::{JobNumber, KeyName, Keys};
use crate::error::Error;
use crate::event::{Events, RunEvents};
use crate::id::RunId;
use crate::store::op::{Change, NewRun, Op, Part, ThrottleChange, Triggered};
use crate::trigger::{WaitForRun, batch};

/// What a write takes of the room for bytes, at least.
const WRITE_BYTES_MIN: usize = 64;
/// How long a port may have been closed before a request that waits notices.
const LOOK_AT_PORT_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Supervisor {
    pub(super) core: Arc<Core>,
}

#[derive(Default)]
pub(super) struct Routes {
    jobs: BTreeMap<JobNumber, ActorRef<JobMsg>>,
    keys: BTreeMap<KeyName, Gate>,
}

struct Gate {
    actor: ActorRef<KeyMsg>,
    /// Bodies sent to it so far.
    sent: u64,
}

impl Actor for Supervisor {
    type Msg = SupervisorMsg;
    type State = Routes;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<SupervisorMsg>, (): ()) -> Result<Routes, ActorProcessingErr> {
        Ok(Routes::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        routes: &mut Routes,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Internal(Internal::Start(runs)) => self.route(&myself, routes, &runs).await,
            SupervisorMsg::Internal(Internal::KeyIdle(key, seen)) => retire(routes, &key, seen),
            SupervisorMsg::Internal(Internal::Sweep) => self.sweep(&myself),
            #[cfg(test)]
            SupervisorMsg::Internal(Internal::Panic) => panic!("asked to"),
            asked => self.serve(asked),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        routes: &mut Routes,
    ) -> Result<(), ActorProcessingErr> {
        let ended: ActorId = match &event {
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(actor = %cell.get_id(), %error, "a job or key actor failed; it is rebuilt");
                cell.get_id()
            }
            SupervisionEvent::ActorTerminated(cell, ..) => cell.get_id(),
            _ => return Ok(()),
        };
        let before = routes.jobs.len() + routes.keys.len();
        routes.jobs.retain(|_, actor| actor.get_id() != ended);
        routes.keys.retain(|_, gate| gate.actor.get_id() != ended);
        // One that was retired is not among the routes any more. For any other, what was in its mailbox is lost.
        if routes.jobs.len() + routes.keys.len() < before {
            self.sweep(&myself);
        }
        Ok(())
    }
}

impl Supervisor {
    /// Sends bodies down: to their jobs, with the gates of their keys.
    async fn route(&self, myself: &ActorRef<SupervisorMsg>, routes: &mut Routes, runs: &[RunId]) {
        let mut starts = self.core.hub.bodies.assigned(runs);
        starts.sort_by_key(|start| start.job);
        for of_job in starts.chunk_by(|start, next| start.job == next.job) {
            let (job, mut bodies) = (of_job[0].job, Vec::with_capacity(of_job.len()));
            for start in of_job {
                match self.gates(myself, routes, &start.keys).await {
                    Ok(gates) => bodies.push((start.run, gates)),
                    Err(error) => tracing::error!(run = %start.run, %error, "a key actor can't be made"),
                }
            }
            match self.job(myself, routes, job).await {
                // One that has failed is made again when the news of that arrives, and its bodies are found by the sweep.
                Ok(actor) => drop(actor.send_message(JobMsg::Start(bodies))),
                Err(error) => tracing::error!(job, %error, "a job actor can't be made"),
            }
        }
    }

    /// The gates of a body's keys, which learn that it is on its way.
    async fn gates(
        &self,
        myself: &ActorRef<SupervisorMsg>,
        routes: &mut Routes,
        keys: &Keys,
    ) -> Result<Gates, SpawnErr> {
        for (key, _) in keys.iter() {
            if !routes.keys.contains_key(key) {
                let actor = KeyActor { core: self.core.clone(), key: key.clone() };
                let (actor, _) = Actor::spawn_linked(None, actor, (), myself.get_cell()).await?;
                routes.keys.insert(key.clone(), Gate { actor, sent: 0 });
            }
        }
        let mut gates = Vec::new();
        for (key, _) in keys.iter() {
            if let Some(gate) = routes.keys.get_mut(key) {
                gate.sent += 1;
                gates.push(gate.actor.clone());
            }
        }
        Ok(Gates::of(gates))
    }

    async fn job<'r>(
        &self,
        myself: &ActorRef<SupervisorMsg>,
        routes: &'r mut Routes,
        job: JobNumber,
    ) -> Result<&'r ActorRef<JobMsg>, SpawnErr> {
        Ok(match routes.jobs.entry(job) {
            Entry::Occupied(actor) => actor.into_mut(),
            Entry::Vacant(place) => {
                let actor = JobActor { core: self.core.clone() };
                let (actor, _) = Actor::spawn_linked(None, actor, (), myself.get_cell()).await?;
                place.insert(actor)
            }
        })
    }

    /// Finds what lost messages were about: bodies not begun, and bodies stopped that the writer has not heard of.
    fn sweep(&self, myself: &ActorRef<SupervisorMsg>) {
        let bodies = &self.core.hub.bodies;
        for (run, generation) in bodies.all_stopped() {
            settle(&self.core, run, generation);
        }
        let _ = myself.send_message(SupervisorMsg::Internal(Internal::Start(bodies.all_assigned())));
    }

    /// Answers a request, in a task of its own where that takes time.
    fn serve(&self, message: SupervisorMsg) {
        let core = self.core.clone();
        match message {
            SupervisorMsg::Trigger(request, reply) => {
                let run = self.build(request);
                self.trigger(run.map(|run| vec![run]), move |answer| {
                    send(reply, answer.and_then(|mut replies| replies.pop().ok_or(Error::ShutDown)));
                });
            }
            SupervisorMsg::BatchTrigger(requests, reply) => {
                let runs = batch::gather(requests.into_iter(), |request| self.build(request));
                self.trigger(runs, move |answer| send(reply, answer.map_err(batch::named)));
            }
            SupervisorMsg::Cancel(run, reply) => self.write(reply, async move { core.cancel(run).await }),
            SupervisorMsg::CancelWhere(filter, reply) => {
                self.write(reply, async move { core.cancel_where(filter).await });
            }
            SupervisorMsg::Retrigger(run, reply) => {
                self.write(reply, async move { Ok(core.retrigger(run).await?.run) });
            }
            SupervisorMsg::RetriggerWhere(filter, reply) => {
                self.write(reply, async move { core.retrigger_where(filter).await });
            }
            SupervisorMsg::Fork(request, reply) => {
                self.write(reply, async move { Ok(core.fork(request).await?.run) });
            }
            SupervisorMsg::Resume(run, clear_failures, reply) => {
                self.write(reply, async move { core.resume(run, clear_failures).await });
            }
            SupervisorMsg::ResumeWhere(filter, reply) => {
                self.write(reply, async move { core.resume_where(filter, Vec::new()).await });
            }
            SupervisorMsg::Signal(run, name, value, reply) => self.write(reply, async move {
                let payload = value.to_string().into_bytes();
                core.signal(run, &name, payload).await
            }),
            SupervisorMsg::Schedule(request, reply) => {
                self.write(reply, async move { core.schedule(request).await });
            }
            SupervisorMsg::Schedules(reply) => self.spawn(reply, async move { core.store.schedules().await }),
            SupervisorMsg::GetSchedule(name, reply) => {
                self.spawn(reply, async move { core.store.get_schedule(&name).await });
            }
            SupervisorMsg::PauseSchedule(name, reply) => {
                self.write(reply, async move { core.change_schedule(&name, Change::Pause).await });
            }
            SupervisorMsg::ResumeSchedule(name, reply) => {
                self.write(reply, async move { core.change_schedule(&name, Change::Resume).await });
            }
            SupervisorMsg::FireSchedule(name, reply) => {
                self.write(reply, async move { core.fire_schedule(&name).await.map(told) });
            }
            SupervisorMsg::RemoveSchedule(name, reply) => {
                self.write(reply, async move { core.change_schedule(&name, Change::Remove).await });
            }
            SupervisorMsg::Delete(run, reply) => self.write(reply, async move { core.delete_run(run).await }),
            SupervisorMsg::Purge(before, limit, reply) => {
                self.write(reply, async move { core.purge_runs(before, limit.unwrap_or(usize::MAX)).await });
            }
            SupervisorMsg::GetJob(name, reply) => send(reply, Ok(JobInfo::of(&core, &name))),
            SupervisorMsg::GetRun(run, reply) => self.spawn(reply, async move { core.store.get_run(run).await }),
            SupervisorMsg::GetRuns(filter, reply) => {
                self.spawn(reply, async move { core.store.get_runs(filter).await });
            }
            SupervisorMsg::GetSteps(run, reply) => self.spawn(reply, async move { core.store.get_steps(run).await }),
            SupervisorMsg::GetLogs(run, reply) => self.spawn(reply, async move { core.store.get_logs(run).await }),
            SupervisorMsg::Wait(run, timeout, reply) => self.spawn_while_asked(reply, async move {
                let wait = WaitForRun::new(core, run);
                match timeout {
                    Some(timeout) => wait.timeout(timeout).await,
                    None => wait.await,
                }
            }),
            SupervisorMsg::Subscribe(run, reply) => {
                self.spawn(reply, async move { RunEvents::new(core, run).await });
            }
            SupervisorMsg::Events(after, reply) => {
                let events = Events::new(core);
                send(
                    reply,
                    Ok(match after {
                        Some(sequence) => events.after(sequence),
                        None => events,
                    }),
                );
            }
            SupervisorMsg::CheckPending(reply) => self.spawn(reply, async move { core.check_pending().await }),
            SupervisorMsg::Explain(run, reply) => self.spawn(reply, async move { core.explain(run).await }),
            SupervisorMsg::PauseJob(name, reply) => self.throttle(reply, Part::Job(name), ThrottleChange::Pause(true)),
            SupervisorMsg::ResumeJob(name, reply) => {
                self.throttle(reply, Part::Job(name), ThrottleChange::Pause(false))
            }
            SupervisorMsg::PauseKey(key, reply) => self.throttle(reply, Part::Key(key), ThrottleChange::Pause(true)),
            SupervisorMsg::ResumeKey(key, reply) => self.throttle(reply, Part::Key(key), ThrottleChange::Pause(false)),
            SupervisorMsg::Paused(reply) => self.spawn(reply, async move { core.paused_parts().await }),
            SupervisorMsg::LimitKey(key, limit, reply) => {
                self.write(reply, async move { core.limit_key(key, limit).await });
            }
            SupervisorMsg::Stats(reply) => self.spawn(reply, async move { core.stats().await }),
            SupervisorMsg::Compact(reply) => self.write(reply, async move { core.compact().await }),
            SupervisorMsg::Backup(path, reply) => self.spawn(reply, async move { core.store.backup(path).await }),
            SupervisorMsg::Health(reply) => send(reply, Ok(core.health())),
            SupervisorMsg::Start(reply) => self.spawn(reply, async move { core.pause(false).await }),
            SupervisorMsg::Stop(reply) => self.spawn(reply, async move { core.stop().await }),
            SupervisorMsg::RunUntilIdle(limit, reply) => {
                self.spawn(reply, async move { core.run_until_idle(limit).await });
            }
            SupervisorMsg::Shutdown(reply) => {
                // The actors end with the runtime, so the task is nobody's child.
                tokio::spawn(async move { send(reply, core.shutdown().await) });
            }
            // Handled before.
            SupervisorMsg::Internal(_) => {}
        }
    }

    fn throttle(&self, reply: Reply<()>, of: Part, change: ThrottleChange) {
        let core = self.core.clone();
        self.write(reply, async move { core.throttle(of, change).await });
    }

    /// Checks a trigger. That reads its input with code of the user's, and a panic there is not to end this actor.
    fn build(&self, request: TriggerRequest) -> Result<NewRun, Error> {
        let TriggerRequest { job, input, options } = request;
        let built = catch_unwind(AssertUnwindSafe(|| self.core.build_json(&job, &input, options, None)));
        built.unwrap_or_else(|panic| {
            let said = panicked(panic);
            Err(Error::InvalidInput {
                path: String::new(),
                rule: "type".into(),
                message: format!("reading it panics: {said}"),
            })
        })
    }

    /// Admits what was checked, here, so that what is refused holds nothing.
    fn trigger(
        &self,
        checked: Result<Vec<NewRun>, Error>,
        answer: impl FnOnce(Result<Vec<TriggerReply>, Error>) + Send + 'static,
    ) {
        let runs = match checked {
            Ok(runs) => runs,
            Err(error) => return answer(Err(error)),
        };
        if runs.is_empty() {
            return answer(Ok(Vec::new()));
        }
        let admitted = match self.core.store.try_admit(runs.iter().map(NewRun::bytes).sum()) {
            Ok(admitted) => admitted,
            Err(error) => return answer(Err(error)),
        };
        let pending = self.core.store.submit(Op::Trigger, runs, admitted);
        tokio::spawn(async move {
            let triggered = pending.answer().await;
            answer(triggered.map(|triggered| triggered.into_iter().map(told).collect()));
        });
    }

    /// Serves a request that writes, if there is room for it. Should that be taken before it gets there, it waits as a call does.
    fn write<T: Send + 'static>(&self, reply: Reply<T>, work: impl Future<Output = Result<T, Error>> + Send + 'static) {
        match self.core.store.try_admit(WRITE_BYTES_MIN) {
            Ok(_) => self.spawn(reply, work),
            Err(error) => send(reply, Err(error)),
        }
    }

    /// Serves a request in a task, if one more may be under way.
    fn spawn<T: Send + 'static>(&self, reply: Reply<T>, work: impl Future<Output = Result<T, Error>> + Send + 'static) {
        if let Some((reply, permit)) = self.place(reply) {
            tokio::spawn(async move {
                send(reply, work.await);
                drop(permit);
            });
        }
    }

    /// The same for what may take for ever and changes nothing: it ends once nobody waits for its answer any more.
    fn spawn_while_asked<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) {
        if let Some((reply, permit)) = self.place(reply) {
            tokio::spawn(async move {
                let answer = tokio::select! {
                    biased;
                    answer = work => Some(answer),
                    () = abandoned(&reply) => None,
                };
                if let Some(answer) = answer {
                    send(reply, answer);
                }
                drop(permit);
            });
        }
    }

    /// A place among the requests that are under way; where there is none, the port is told so.
    fn place<T>(&self, reply: Reply<T>) -> Option<(Reply<T>, OwnedSemaphorePermit)> {
        match self.core.requests.clone().try_acquire_owned() {
            Ok(permit) => Some((reply, permit)),
            Err(_) => {
                send(reply, Err(Error::Overloaded { waited: Duration::ZERO }));
                None
            }
        }
    }
}

/// Ends a gate that has had nothing to do since the last body was sent to it.
fn retire(routes: &mut Routes, key: &KeyName, seen: u64) {
    if routes.keys.get(key).is_some_and(|gate| gate.sent == seen)
        && let Some(gate) = routes.keys.remove(key)
    {
        gate.actor.stop(None);
    }
}

fn told(triggered: Triggered) -> TriggerReply {
    let Triggered { run, disposition, status, input_differs } = triggered;
    TriggerReply { run, disposition, status, input_differs }
}

/// Resolves once nobody waits on a port any more. A port tells nobody of that, so it is looked at now and then.
async fn abandoned<T>(reply: &Reply<T>) {
    while !reply.is_closed() {
        tokio::time::sleep(LOOK_AT_PORT_AFTER).await;
    }
}

/// Answers a port; one that nobody waits on is not answered.
fn send<T>(reply: Reply<T>, answer: Result<T, Error>) {
    let _ = reply.send(answer);
}
