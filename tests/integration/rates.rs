//! Rates: so many starts in a time, of a job or a key, over restarts and a clock that is set.

use std::time::Duration;

use durably::{Durably, Error, Job, RateLimit, RunId, RunStatus, Step};

use crate::support::{Count, ManualClock, TempFile, echo, ended, job_with, next_event, run_of, within};

const MINUTE: Duration = Duration::from_secs(60);

fn rated(name: &str) -> Job<u32, u32> {
    echo(name).rate_limit(2, MINUTE)
}

/// How many of the runs have been started, once everything that could start has.
async fn started(durably: &Durably, runs: &[RunId]) -> usize {
    // The writer looks at what is due at the next operation.
    durably.stats().await.unwrap();
    let mut started = 0;
    for run in runs {
        started += usize::from(run_of(durably, *run).await.lease_generation > 0);
    }
    started
}

#[tokio::test]
async fn a_job_starts_no_more_runs_in_a_window_than_its_rate_and_holds_up_no_other() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let (job, other) = durably.register((rated("job"), echo("other"))).unwrap();
        let mut runs = Vec::new();
        for n in 0..5 {
            runs.push(job.trigger(n).await.unwrap().id());
        }
        assert_eq!(other.trigger_and_wait(7).await.unwrap().output, 7);
        assert_eq!(started(&durably, &runs).await, 2);
        clock.advance(MINUTE - Duration::from_millis(1));
        assert_eq!(started(&durably, &runs).await, 2, "a millisecond early");
        clock.advance(Duration::from_millis(1));
        assert_eq!(started(&durably, &runs).await, 4);
        clock.advance(MINUTE);
        assert_eq!(started(&durably, &runs).await, 5);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 0, "nothing is left");
    })
    .await;
}

#[tokio::test]
async fn a_window_survives_a_restart() {
    within(async {
        let (file, clock) = (TempFile::new(), ManualClock::new());
        let open = || file.open_with(Durably::builder().clock(clock.clone()));
        let mut runs = Vec::new();
        {
            let durably = open().await;
            let job = durably.register(rated("job")).unwrap();
            durably.limit_key("key", RateLimit::new(1, 10 * MINUTE)).await.unwrap();
            for n in 0..3 {
                runs.push(job.trigger(n).await.unwrap().id());
            }
            let other = durably.register(echo("other")).unwrap();
            for n in 0..2 {
                runs.push(other.trigger(n).concurrency_key("key").limit(9).await.unwrap().id());
            }
            ended(&durably, runs[1]).await;
            ended(&durably, runs[3]).await;
        }
        clock.advance(MINUTE / 2);
        let durably = open().await;
        durably.register((rated("job"), echo("other"))).unwrap();
        assert_eq!(started(&durably, &runs).await, 3, "two of the job, one of the key, before the restart");
        clock.advance(MINUTE / 2);
        assert_eq!(started(&durably, &runs[..3]).await, 3);
        clock.advance(9 * MINUTE);
        assert_eq!(started(&durably, &runs).await, 5);
    })
    .await;
}

#[tokio::test]
async fn a_key_s_rate_holds_for_all_jobs_and_is_lifted() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let (one, two) = durably.register((echo("one"), echo("two"))).unwrap();
        durably.limit_key("key", RateLimit::new(2, MINUTE)).await.unwrap();
        let mut runs = Vec::new();
        for job in [&one, &two, &one, &two, &one, &two] {
            runs.push(job.trigger(0).concurrency_key("key").limit(9).await.unwrap().id());
        }
        assert_eq!(one.trigger_and_wait(3).concurrency_key("other").await.unwrap().output, 3);
        assert_eq!(started(&durably, &runs).await, 2);
        clock.advance(MINUTE);
        assert_eq!(started(&durably, &runs).await, 4);
        durably.limit_key("key", None).await.unwrap();
        assert_eq!(started(&durably, &runs).await, 6);
        for refused in [RateLimit::new(0, MINUTE), RateLimit::new(1, Duration::ZERO)] {
            let refused = durably.limit_key("key", refused).await.unwrap_err();
            assert!(matches!(refused, Error::InvalidOption { option: "rate limit", .. }), "{refused:?}");
        }
        let refused = durably.register(echo("three").rate_limit(0, MINUTE)).unwrap_err();
        assert!(matches!(refused, Error::InvalidOption { option: "rate limit", .. }));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_is_woken_is_no_start() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let calls = Count::default();
        let job = durably
            .register(
                job_with("job", calls.clone(), |step: Step, _, calls| async move {
                    let value: u32 = step.wait_signal("go", "go").await?;
                    calls.up();
                    Ok(value)
                })
                .rate_limit(1, MINUTE),
            )
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        next_event(&mut events, |event| event.kind.name() == "run:suspend").await;
        let next = job.trigger(0).await.unwrap();
        assert_eq!(started(&durably, &[run.id(), next.id()]).await, 1);
        durably.signal(run.id(), "go", &1).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 1, "though the window is full");
        assert_eq!(started(&durably, &[next.id()]).await, 0);
        clock.advance(MINUTE);
        assert_eq!(started(&durably, &[next.id()]).await, 1, "its wake-up was not counted");
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_holds_nothing_longer_than_a_window() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let job = durably.register(rated("job")).unwrap();
        let mut runs = Vec::new();
        for n in 0..3 {
            runs.push(job.trigger(n).await.unwrap().id());
        }
        clock.set_back(Duration::from_secs(365 * 24 * 3600));
        assert_eq!(started(&durably, &runs).await, 2);
        assert_eq!(run_of(&durably, runs[2]).await.status, RunStatus::Pending);
        clock.advance(MINUTE);
        assert_eq!(started(&durably, &runs).await, 3);
    })
    .await;
}

/// Without a test's clock: nobody has to ask.
#[tokio::test]
async fn the_next_window_is_waited_for() {
    within(async {
        let durably = Durably::in_memory().await.unwrap();
        let job = durably.register(echo("job").rate_limit(1, Duration::from_millis(50))).unwrap();
        let runs = job.batch_trigger(0..3).await.unwrap();
        for run in runs {
            run.output().await.unwrap();
        }
    })
    .await;
}
