//! Actors that fail while bodies run: the bodies go on, keys stay exclusive, nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ractor::{ActorCell, ActorStatus};
use tokio::sync::Semaphore;

use super::job::JobMsg;
use super::key::KeyMsg;
use super::message::{Internal, SupervisorMsg};
use crate::limits::UNACKED_CALLS_MAX;
use crate::{Durably, Error, Job, JobHandle, Run, RunHandle, RunStatus, Step};

/// Where bodies wait to be let on, and how many were there at once.
#[derive(Clone)]
struct Place(Arc<Counts>);

struct Counts {
    arrived: Semaphore,
    open: Semaphore,
    inside: AtomicUsize,
    most: AtomicUsize,
}

impl Place {
    fn new() -> Self {
        Place(Arc::new(Counts {
            arrived: Semaphore::new(0),
            open: Semaphore::new(0),
            inside: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        }))
    }

    async fn pass(&self) {
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(inside, Ordering::SeqCst);
        self.0.arrived.add_permits(1);
        self.0.open.acquire().await.unwrap().forget();
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }

    async fn reached(&self) {
        self.0.arrived.acquire().await.unwrap().forget();
    }

    fn let_on(&self, bodies: usize) {
        self.0.open.add_permits(bodies);
    }
}

async fn within<F: Future>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs")
}

async fn runtime(place: &Place) -> (Durably, JobHandle<u32, u32>) {
    let durably = Durably::builder().cancel_grace(Duration::from_millis(20)).in_memory().await.unwrap();
    let place = place.clone();
    let job = Job::new("job", move |step: Step, input: u32| {
        let place = place.clone();
        async move {
            place.pass().await;
            step.run("a", || async { Ok(input) }).await
        }
    });
    let jobs = durably.register(job).unwrap();
    (durably, jobs)
}

async fn trigger(jobs: &JobHandle<u32, u32>, key: Option<&str>, input: u32) -> RunHandle<u32> {
    let call = jobs.trigger(input);
    match key {
        Some(key) => call.concurrency_key(key).await.unwrap(),
        None => call.await.unwrap(),
    }
}

/// The supervisor's children of a kind.
fn children<M: ractor::Message>(durably: &Durably) -> Vec<ActorCell> {
    let supervisor = durably.actor_ref().unwrap();
    supervisor.get_children().into_iter().filter(|cell| cell.is_message_type_of::<M>() == Some(true)).collect()
}

/// Makes an actor end in the middle of whatever it does.
async fn kill(cell: ActorCell) {
    cell.kill();
    while cell.get_status() != ActorStatus::Stopped {
        tokio::task::yield_now().await;
    }
}

async fn panic_supervisor(durably: &Durably) {
    let before = durably.actor_ref().unwrap();
    before.send_message(SupervisorMsg::Internal(Internal::Panic)).unwrap();
    while durably.actor_ref().unwrap().get_id() == before.get_id() {
        tokio::task::yield_now().await;
    }
}

async fn kill_supervisor(durably: &Durably) {
    let before = durably.actor_ref().unwrap();
    before.kill();
    while durably.actor_ref().unwrap().get_id() == before.get_id() {
        tokio::task::yield_now().await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    PanicSupervisor,
    KillSupervisor,
    KillJobs,
    KillKeys,
}

async fn strike(durably: &Durably, fault: Fault) {
    match fault {
        Fault::PanicSupervisor => panic_supervisor(durably).await,
        Fault::KillSupervisor => kill_supervisor(durably).await,
        Fault::KillJobs => {
            for cell in children::<JobMsg>(durably) {
                kill(cell).await;
            }
        }
        Fault::KillKeys => {
            for cell in children::<KeyMsg>(durably) {
                kill(cell).await;
            }
        }
    }
}

const FAULTS: [Fault; 4] = [Fault::PanicSupervisor, Fault::KillSupervisor, Fault::KillJobs, Fault::KillKeys];

#[tokio::test]
async fn a_fault_touches_no_running_body_and_what_waits_starts_afterwards() {
    within(async {
        for fault in FAULTS {
            let place = Place::new();
            let (durably, jobs) = runtime(&place).await;
            let mut runs = Vec::new();
            for input in 0..6 {
                runs.push(trigger(&jobs, Some(if input % 2 == 0 { "even" } else { "odd" }), input).await);
            }
            runs.push(trigger(&jobs, None, 6).await);
            for _ in 0..3 {
                place.reached().await;
            }
            assert!(!children::<JobMsg>(&durably).is_empty() && children::<KeyMsg>(&durably).len() == 2);
            strike(&durably, fault).await;
            runs.push(trigger(&jobs, Some("even"), 7).await);
            runs.push(trigger(&jobs, None, 8).await);
            place.reached().await;
            place.let_on(100);
            for (input, run) in (0..).zip(&runs) {
                assert_eq!(run.output().await.unwrap(), input, "{fault:?}");
                let record = run.get().await.unwrap();
                assert_eq!((record.lease_generation, record.recoveries), (1, 0), "{fault:?}");
            }
            // Two keys of one each, and two without a key.
            assert!(place.0.most.load(Ordering::SeqCst) <= 4, "{fault:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_wait_that_nobody_waits_for_any_more_makes_room_for_other_requests() {
    within(async {
        let place = Place::new();
        let (durably, jobs) = runtime(&place).await;
        let run = trigger(&jobs, None, 1).await;
        place.reached().await;
        let (supervisor, requests) = (durably.actor_ref().unwrap(), &jobs.core.requests);
        let (asked, answer) = ractor::concurrency::oneshot::<Result<Run, Error>>();
        supervisor.send_message(SupervisorMsg::Wait(run.id(), None, asked.into())).unwrap();
        let (abandoned, nobody) = ractor::concurrency::oneshot();
        supervisor.send_message(SupervisorMsg::Wait(run.id(), None, abandoned.into())).unwrap();
        // Answered in turn, so the waits have begun.
        supervisor.call(SupervisorMsg::Health, None).await.unwrap();
        assert_eq!(requests.available_permits(), UNACKED_CALLS_MAX - 2);
        drop(nobody);
        // All but the one of the wait that is still waited for.
        drop(requests.acquire_many(UNACKED_CALLS_MAX as u32 - 1).await.unwrap());
        assert_eq!(run.get().await.unwrap().status, RunStatus::Leased);
        place.let_on(1);
        assert_eq!(answer.await.unwrap().unwrap().output, Some(1.into()));
        drop(requests.acquire_many(UNACKED_CALLS_MAX as u32).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_key_stays_exclusive_over_every_fault() {
    within(async {
        for fault in FAULTS {
            let place = Place::new();
            let (durably, jobs) = runtime(&place).await;
            let mut runs = Vec::new();
            for input in 0..8 {
                runs.push(trigger(&jobs, Some("k"), input).await);
            }
            for _ in 0..8 {
                place.reached().await;
                strike(&durably, fault).await;
                place.let_on(1);
            }
            for run in runs {
                run.output().await.unwrap();
            }
            assert_eq!(place.0.most.load(Ordering::SeqCst), 1, "{fault:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_fault_while_a_cancelled_body_stops_frees_its_key_afterwards() {
    within(async {
        for fault in FAULTS {
            let place = Place::new();
            let (durably, jobs) = runtime(&place).await;
            let first = trigger(&jobs, Some("k"), 1).await;
            place.reached().await;
            let next = trigger(&jobs, Some("k"), 2).await;
            let (cancelled, ()) = tokio::join!(first.cancel(), strike(&durably, fault));
            cancelled.unwrap();
            place.reached().await;
            place.let_on(2);
            assert_eq!(next.output().await.unwrap(), 2, "{fault:?}");
            assert_eq!(first.get().await.unwrap().status, RunStatus::Cancelled, "{fault:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_under_a_rain_of_faults() {
    within(async {
        let place = Place::new();
        place.let_on(10_000);
        let (durably, jobs) = runtime(&place).await;
        let striking = {
            let durably = durably.clone();
            tokio::spawn(async move {
                for fault in FAULTS.into_iter().cycle().take(60) {
                    strike(&durably, fault).await;
                    tokio::task::yield_now().await;
                }
            })
        };
        let mut runs = Vec::new();
        for input in 0..400u32 {
            let key = format!("k{}", input % 7);
            runs.push(trigger(&jobs, (input % 3 > 0).then_some(key.as_str()), input).await);
        }
        striking.await.unwrap();
        for (input, run) in (0..).zip(runs) {
            assert_eq!(run.output().await.unwrap(), input);
            assert_eq!(run.get().await.unwrap().lease_generation, 1);
        }
        durably.shutdown().await.unwrap();
    })
    .await;
}
