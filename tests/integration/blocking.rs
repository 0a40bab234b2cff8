//! Blocking steps that outlive their body, or have no thread yet when it ends.

use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::thread::{self, ThreadId};
use std::time::Duration;

use durably::{Clock, Durably, ErrorKind, Job, RunStatus, Step, SystemClock, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use crate::support::{Count, Gate, ended, job_with, run_of, within};

/// The system's clock. Armed on a thread, the next look at it from there lets a blocking step return, and waits until its thread
/// has nothing of it any more.
#[derive(Debug, Clone)]
struct Meddling(Arc<Looks>);

#[derive(Debug)]
struct Looks {
    system: SystemClock,
    armed: Mutex<Option<ThreadId>>,
    release: mpsc::Sender<()>,
    gone: Mutex<mpsc::Receiver<()>>,
}

impl Meddling {
    fn arm(&self) {
        *self.0.armed.lock().unwrap() = Some(thread::current().id());
    }
}

impl Clock for Meddling {
    fn now(&self) -> Timestamp {
        self.0.system.now()
    }

    fn monotonic(&self) -> Duration {
        let Looks { system, armed, release, gone } = &*self.0;
        let here = armed.lock().unwrap().take_if(|on| *on == thread::current().id());
        if here.is_some() {
            release.send(()).unwrap();
            gone.lock().unwrap().recv_timeout(Duration::from_secs(20)).expect("the step returns");
        }
        system.monotonic()
    }
}

/// What a step gives; tells when nobody has it any more.
#[derive(Serialize, Deserialize)]
struct Given {
    #[serde(skip)]
    gone: Option<mpsc::Sender<()>>,
}

impl Drop for Given {
    fn drop(&mut self) {
        if let Some(gone) = &self.gone {
            gone.send(()).ok();
        }
    }
}

#[tokio::test]
async fn a_blocking_step_that_returns_while_its_body_ends_does_not_have_the_body_run_again() {
    within(async {
        let ((release, held), (gone, watched)) = (mpsc::channel(), mpsc::channel());
        let looks =
            Looks { system: SystemClock::default(), armed: Mutex::default(), release, gone: Mutex::new(watched) };
        let clock = Meddling(Arc::new(looks));
        let (begun, bodies) = (Gate::new(), Count::default());
        let shared = (clock.clone(), begun.clone(), bodies.clone(), Arc::new(Mutex::new(held)), gone);
        let job = job_with("job", shared, |step: Step, input, (clock, begun, bodies, held, gone)| async move {
            if bodies.up() > 1 {
                return Ok(input);
            }
            let gate = begun.clone();
            let mut dropped = step.run_blocking("block", move || {
                drop(gate.enter());
                held.lock().unwrap().recv().ok();
                Ok(Given { gone: Some(gone.clone()) })
            });
            assert!(futures::poll!(&mut dropped).is_pending());
            begun.reached().await;
            drop(dropped);
            // How long the body took is asked for between its end and the moment at which the writer has that.
            clock.arm();
            Ok(input)
        });
        let durably = Durably::builder().clock(clock).in_memory().await.unwrap();
        let run = durably.register(job).unwrap().trigger(7).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 7);
        durably.stop().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.status, record.lease_generation, bodies.get()), (RunStatus::Completed, 1, 1));
    })
    .await;
}

/// The code of a blocking step: counts its calls, and tells when it is gone.
struct Code {
    calls: Count,
    gone: UnboundedSender<()>,
}

impl Code {
    fn call(&self) {
        self.calls.up();
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        self.gone.send(()).ok();
    }
}

/// What the bodies of [`queueing`] share with a test.
#[derive(Clone)]
struct Queue {
    /// A body is here once its step is in the pool.
    queued: Gate,
    calls: Count,
    gone: UnboundedSender<()>,
    held: Arc<Mutex<mpsc::Receiver<()>>>,
}

/// A job of a blocking step. Input 0 holds its thread until it is let go of, 1 has no time to wait for one.
fn queueing(queue: &Queue) -> Job<u32, u32> {
    job_with("job", queue.clone(), |step: Step, input, queue: Queue| async move {
        let Queue { queued, calls, gone, held } = queue;
        let code = Code { calls, gone };
        let mut blocking = step.run_blocking("block", move || {
            code.call();
            if input == 0 {
                held.lock().unwrap().recv().ok();
            }
            Ok(input)
        });
        if input == 1 {
            blocking = blocking.timeout(Duration::from_millis(1));
        }
        if let Poll::Ready(result) = futures::poll!(&mut blocking) {
            return result;
        }
        drop(queued.enter());
        blocking.await
    })
}

/// What there is of a runtime whose only thread for blocking steps is held.
struct Held {
    queue: Queue,
    release: mpsc::Sender<()>,
    gone: tokio::sync::mpsc::UnboundedReceiver<()>,
}

fn held() -> Held {
    let ((release, held), (gone, watched)) = (mpsc::channel(), tokio::sync::mpsc::unbounded_channel());
    let held = Arc::new(Mutex::new(held));
    Held { queue: Queue { queued: Gate::new(), calls: Count::default(), gone, held }, release, gone: watched }
}

#[tokio::test]
async fn a_blocking_step_without_a_thread_does_not_begin_once_its_run_is_cancelled() {
    within(async {
        let forever = Duration::from_secs(3_600);
        let durably = Durably::builder().blocking_threads(1).cancel_grace(forever).in_memory().await.unwrap();
        let Held { queue, release, .. } = held();
        let jobs = durably.register(queueing(&queue)).unwrap();
        let first = jobs.trigger(0).await.unwrap();
        queue.queued.reached().await;
        let waiting = jobs.trigger(2).await.unwrap();
        queue.queued.reached().await;
        waiting.cancel().await.unwrap();
        release.send(()).unwrap();
        assert_eq!(first.output().await.unwrap(), 0);
        // Its body is at a step that can't go on, so the grace is not waited for.
        durably.stop().await.unwrap();
        assert_eq!(queue.calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_blocking_step_that_gets_no_thread_in_its_time_does_not_begin() {
    within(async {
        let durably = Durably::builder().blocking_threads(1).in_memory().await.unwrap();
        let Held { queue, release, .. } = held();
        let jobs = durably.register(queueing(&queue)).unwrap();
        let first = jobs.trigger(0).await.unwrap();
        queue.queued.reached().await;
        let waiting = jobs.trigger(1).await.unwrap();
        assert_eq!(ended(&durably, waiting.id()).await.error.unwrap().kind, ErrorKind::Timeout);
        release.send(()).unwrap();
        assert_eq!(first.output().await.unwrap(), 0);
        // The thread takes steps in their order, so it has passed that one by then.
        assert_eq!(jobs.trigger_and_wait(2).await.unwrap().output, 2);
        assert_eq!(queue.calls.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_blocking_step_without_a_thread_does_not_begin_after_a_shutdown() {
    within(async {
        let grace = Duration::from_millis(10);
        let durably = Durably::builder().blocking_threads(1).shutdown_grace(grace).in_memory().await.unwrap();
        let Held { queue, release, mut gone } = held();
        let jobs = durably.register(queueing(&queue)).unwrap();
        jobs.trigger(0).await.unwrap();
        queue.queued.reached().await;
        jobs.trigger(2).await.unwrap();
        queue.queued.reached().await;
        durably.shutdown().await.unwrap();
        release.send(()).unwrap();
        for _ in 0..2 {
            gone.recv().await.unwrap();
        }
        assert_eq!(queue.calls.get(), 1);
    })
    .await;
}
