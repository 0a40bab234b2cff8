//! Admission: bounded, and never a silent loss.

use std::future::IntoFuture;
use std::task::Poll;
use std::time::Duration;

use durably::limits::UNACKED_CALLS_MAX;
use durably::{Advice, Durably, Error, Health, RunStatus, SupervisorMsg, TriggerRequest};

use crate::support::{Stalling, echo, within};

#[tokio::test]
async fn try_trigger_never_waits_and_what_was_taken_is_not_lost() {
    within(async {
        let clock = Stalling::default();
        let durably = Durably::builder().paused(true).clock(clock.clone()).in_memory().await.unwrap();
        let jobs = durably.register(echo("job")).unwrap();
        clock.stall(true);
        let (mut taken, mut refused) = (Vec::new(), 0);
        // More of the calls are cancels, which count as well and are made quicker.
        let some = durably.trigger_json("job", 0.into()).into_future();
        let mut some = Box::pin(some);
        assert!(futures::poll!(&mut some).is_pending());
        let nowhere = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let mut cancels = Vec::new();
        for _ in 0..UNACKED_CALLS_MAX - 1_001 {
            let mut cancel = Box::pin(durably.cancel(nowhere));
            assert!(futures::poll!(&mut cancel).is_pending());
            cancels.push(cancel);
        }
        for input in 0..3_000 {
            let mut call = jobs.try_trigger(input).into_future();
            match futures::poll!(&mut call) {
                Poll::Pending => taken.push(call),
                Poll::Ready(Err(error @ Error::Overloaded { waited: Duration::ZERO })) => {
                    assert_eq!(error.advice(), Advice::Retry);
                    refused += 1;
                }
                Poll::Ready(other) => panic!("{other:?}"),
            }
        }
        assert_eq!((taken.len(), refused), (1_000, 2_000));
        // A message is answered at once as well, and what was refused holds nothing.
        let supervisor = durably.actor_ref().unwrap();
        let request = TriggerRequest::new("job", 1.into());
        let answer = supervisor.call(|reply| SupervisorMsg::Trigger(request, reply), None).await.unwrap().unwrap();
        assert!(matches!(answer, Err(Error::Overloaded { .. })), "{answer:?}");
        let cancel = |reply| SupervisorMsg::Cancel(nowhere, reply);
        let answer = supervisor.call(cancel, None).await.unwrap().unwrap();
        assert!(matches!(answer, Err(Error::Overloaded { waited: Duration::ZERO })), "{answer:?}");
        assert_eq!(durably.health(), Health::Ok);
        clock.stall(false);
        some.await.unwrap();
        for call in taken {
            call.await.unwrap();
        }
        for cancel in cancels {
            assert!(matches!(cancel.await, Err(Error::RunNotFound { .. })));
        }
        jobs.try_trigger(1).await.unwrap();
        let stats = durably.stats().await.unwrap();
        assert_eq!(stats.jobs[0].count(RunStatus::Pending), 1_002);
    })
    .await;
}

#[tokio::test]
async fn trigger_waits_for_room_up_to_the_admission_timeout() {
    within(async {
        for (timeout, admitted) in
            [(Duration::ZERO, false), (Duration::from_millis(5), false), (Duration::from_secs(15), true)]
        {
            let clock = Stalling::default();
            let builder = Durably::builder().paused(true).clock(clock.clone()).admission_timeout(timeout);
            let durably = builder.in_memory().await.unwrap();
            let jobs = durably.register(echo("job")).unwrap();
            clock.stall(true);
            let nowhere = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
            let mut cancels = Vec::new();
            for _ in 0..UNACKED_CALLS_MAX {
                let mut cancel = Box::pin(durably.cancel(nowhere));
                assert!(futures::poll!(&mut cancel).is_pending());
                cancels.push(cancel);
            }
            let mut call = jobs.trigger(1).into_future();
            if admitted {
                assert!(futures::poll!(&mut call).is_pending());
                clock.stall(false);
                call.await.unwrap();
            } else {
                let error = call.await.unwrap_err();
                assert!(matches!(error, Error::Overloaded { waited } if waited <= timeout), "{error}");
                clock.stall(false);
            }
        }
    })
    .await;
}
