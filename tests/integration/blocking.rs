//! Blocking steps that outlive their body, or have no thread yet when it ends.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use durably::{Clock, Durably, RunStatus, Step, SystemClock, Timestamp};
use serde::{Deserialize, Serialize};

use crate::support::{Count, Gate, job_with, run_of, within};

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
