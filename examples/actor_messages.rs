//! Another actor drives the runtime by messages alone: trigger, wait, subscribe, cancel, each answered by a message.
//!
//! ```text
//! cargo run --example actor_messages
//! ```
//!
//! The desk never waits inside its handler: it asks the runtime's supervisor, and the answers come to its mailbox.

use std::collections::BTreeMap;
use std::time::Duration;

use durably::{Durably, Error, Job, Reply, Run, RunEvents, RunId, Step, SupervisorMsg, TriggerReply, TriggerRequest};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Print {
    title: String,
    pages: u32,
}

fn print_pages() -> Job<Print, String> {
    Job::new("print", |step: Step, print: Print| async move {
        for page in 1..=print.pages {
            step.run(("page", page), || async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(())
            })
            .await?;
        }
        Ok(format!("{} on {} pages", print.title, print.pages))
    })
}

/// The front desk: takes orders and prints them by durable runs.
struct Desk;

enum DeskMsg {
    Order { title: &'static str, pages: u32 },
    Accepted(&'static str, Result<TriggerReply, Error>),
    Watching(&'static str, Result<RunEvents, Error>),
    Happened(RunId, &'static str),
    Recalled(&'static str, Result<(), Error>),
    Ended(RunId, Box<Result<Run, Error>>),
}

struct Orders {
    durably: ActorRef<SupervisorMsg>,
    accepted: BTreeMap<RunId, &'static str>,
    /// Ordered and not ended.
    open: usize,
    recalled: bool,
}

impl Actor for Desk {
    type Msg = DeskMsg;
    type State = Orders;
    type Arguments = ActorRef<SupervisorMsg>;

    async fn pre_start(
        &self,
        _: ActorRef<DeskMsg>,
        durably: ActorRef<SupervisorMsg>,
    ) -> Result<Orders, ActorProcessingErr> {
        Ok(Orders { durably, accepted: BTreeMap::new(), open: 0, recalled: false })
    }

    async fn handle(
        &self,
        me: ActorRef<DeskMsg>,
        message: DeskMsg,
        orders: &mut Orders,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeskMsg::Order { title, pages } => {
                orders.open += 1;
                let request = TriggerRequest::new("print", json!({ "title": title, "pages": pages }));
                let request = request.idempotency_key(title).label("desk", "front");
                let trigger = |reply| SupervisorMsg::Trigger(request, reply);
                ask(&orders.durably, trigger, &me, move |accepted| DeskMsg::Accepted(title, accepted))?;
            }
            DeskMsg::Accepted(title, accepted) => {
                let TriggerReply { run, disposition, status, .. } = accepted?;
                println!("{title}: run {run} {disposition:?}, {status}");
                orders.accepted.insert(run, title);
                let subscribe = |reply| SupervisorMsg::Subscribe(run, reply);
                ask(&orders.durably, subscribe, &me, move |events| DeskMsg::Watching(title, events))?;
                let wait = |reply| SupervisorMsg::Wait(run, None, reply);
                ask(&orders.durably, wait, &me, move |ended| DeskMsg::Ended(run, Box::new(ended)))?;
            }
            DeskMsg::Watching(title, events) => {
                let mut events = events?;
                println!("{title}: watching");
                tokio::spawn(async move {
                    while let Some(received) = events.next().await {
                        let Some(event) = received.event() else { continue };
                        let _ = me.send_message(DeskMsg::Happened(event.run_id, event.kind.name()));
                    }
                });
            }
            DeskMsg::Happened(run, what) => {
                let Some(title) = orders.accepted.get(&run).copied() else { return Ok(()) };
                println!("{title}: {what}");
                if title == "encyclopaedia" && what == "step:complete" && !orders.recalled {
                    orders.recalled = true;
                    println!("{title}: too long, it is recalled");
                    let cancel = |reply| SupervisorMsg::Cancel(run, reply);
                    ask(&orders.durably, cancel, &me, move |recalled| DeskMsg::Recalled(title, recalled))?;
                }
            }
            DeskMsg::Recalled(title, recalled) => {
                recalled?;
                println!("{title}: the recall is on disk");
            }
            DeskMsg::Ended(run, ended) => {
                let title = orders.accepted.remove(&run).unwrap_or("?");
                match *ended {
                    Ok(run) => println!("{title}: printed {}", run.output_as::<String>()?),
                    Err(error) => println!("{title}: {error}"),
                }
                orders.open -= 1;
                if orders.open == 0 {
                    me.stop(None);
                }
            }
        }
        Ok(())
    }
}

/// Asks the runtime; the answer goes to the desk's mailbox.
fn ask<T: Send + 'static>(
    durably: &ActorRef<SupervisorMsg>,
    request: impl FnOnce(Reply<T>) -> SupervisorMsg,
    desk: &ActorRef<DeskMsg>,
    answer: impl FnOnce(Result<T, Error>) -> DeskMsg + Send + 'static,
) -> Result<(), ActorProcessingErr> {
    durably.call_and_forward(request, desk, answer, None)?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let durably = Durably::in_memory().await?;
    durably.register(print_pages())?;
    let supervisor = durably.actor_ref().ok_or(Error::ShutDown)?;
    let (desk, ended) = Actor::spawn(None, Desk, supervisor.clone()).await?;
    desk.send_message(DeskMsg::Order { title: "leaflet", pages: 2 })?;
    desk.send_message(DeskMsg::Order { title: "encyclopaedia", pages: 30_000 })?;
    ended.await?;

    let stats = ractor::call!(supervisor, SupervisorMsg::Stats)??;
    for job in stats.jobs {
        println!("job {}: {:?}", job.name, job.counts);
    }
    ractor::call!(supervisor, SupervisorMsg::Shutdown)??;
    println!("shut down: {:?}", durably.health());
    Ok(())
}
