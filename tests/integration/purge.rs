//! Purge: terminal runs go by the time of their end.

use std::time::Duration;

use durably::{Durably, RunFilter, RunStatus, Step, Timestamp};

use crate::support::{Gate, ManualClock, echo, ended, gated, job_with, next_event, run_of, told_so_far, within};

#[tokio::test]
async fn p_purge_01_what_ended_strictly_before_goes_oldest_first() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let jobs = durably.register(echo("job")).unwrap();
        let mut runs = Vec::new();
        for input in 0..4 {
            clock.advance(Duration::from_secs(1));
            let run = jobs.trigger(input).await.unwrap().id();
            ended(&durably, run).await;
            runs.push(run);
        }
        let third = run_of(&durably, runs[2]).await.completed_at.unwrap();
        assert_eq!(durably.purge_up_to(third, 1).await.unwrap(), 1);
        assert_eq!(durably.get_run(runs[0]).await.unwrap(), None);
        // The third ended at that moment and not before it.
        assert_eq!(durably.purge_runs(third).await.unwrap(), 1);
        assert_eq!(durably.purge_runs(third).await.unwrap(), 0);
        let left: Vec<_> = durably.get_runs(RunFilter::new()).await.unwrap().iter().map(|run| run.id).collect();
        assert_eq!(left, [runs[3], runs[2]]);
    })
    .await;
}

#[tokio::test]
async fn p_purge_02_what_has_not_ended_stays() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(1).in_memory().await.unwrap();
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        jobs.trigger(1).await.unwrap();
        gate.reached().await;
        jobs.trigger(2).await.unwrap();
        assert_eq!(durably.purge_runs(Timestamp::from_millis(u64::MAX)).await.unwrap(), 0);
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap().len(), 2);
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn p_purge_03_07_a_purged_run_goes_whole_and_is_told() {
    within(async {
        let durably = Durably::in_memory().await.unwrap();
        let job = job_with("job", (), |step: Step, _, ()| async move {
            step.log().info("hello", ());
            step.run("a", || async { Ok(()) }).await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).idempotency_key("k").label("a", "b").await.unwrap().id();
        ended(&durably, run).await;
        let mut events = durably.events();
        assert_eq!(durably.purge_runs(Timestamp::from_millis(u64::MAX)).await.unwrap(), 1);
        assert_eq!(told_so_far(&durably, &mut events).await, [(run, "run:delete")]);
        assert_eq!(durably.get_steps(run).await.unwrap(), []);
        assert_eq!(durably.get_logs(run).await.unwrap(), []);
        assert_eq!(durably.get_runs(RunFilter::new().label("a", "b")).await.unwrap(), []);
        let again = jobs.trigger(0).idempotency_key("k").await.unwrap();
        assert_eq!(again.disposition(), durably::Disposition::Created);
    })
    .await;
}

#[tokio::test]
async fn a_purge_takes_more_than_a_slice_and_passes_over_keys_whose_time_is_not_over() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let jobs = durably.register(echo("job")).unwrap();
        let hour = Duration::from_secs(3_600);
        let kept = (0..450u32).map(|n| durably::Trigger::new(n).idempotency_key(n.to_string()).idempotency_ttl(hour));
        jobs.batch_trigger(kept).await.unwrap();
        jobs.batch_trigger(0..350).await.unwrap();
        durably.run_until_idle(None).await.unwrap();
        clock.advance(Duration::from_secs(1));
        let all = Timestamp::from_millis(u64::MAX);
        assert_eq!(durably.purge_runs(all).await.unwrap(), 350);
        clock.advance(hour);
        assert_eq!(durably.purge_up_to(all, 7).await.unwrap(), 7);
        assert_eq!(durably.purge_runs(all).await.unwrap(), 443);
    })
    .await;
}

#[tokio::test]
async fn p_purge_04_08_retention_purges_in_the_background_also_under_load() {
    within(async {
        let retention = Duration::from_millis(300);
        let durably = Durably::builder().retain_runs(retention).in_memory().await.unwrap();
        let gate = Gate::new();
        let (jobs, busy) = durably.register((echo("job"), gated("busy", &gate))).unwrap();
        let executing = busy.trigger(0).await.unwrap().id();
        gate.reached().await;
        let mut events = durably.events();
        let run = jobs.trigger(1).await.unwrap().id();
        let told = next_event(&mut events, |event| event.kind.name() == "run:delete").await;
        assert_eq!(told.run_id, run);
        // What executes is not touched.
        assert_eq!(run_of(&durably, executing).await.status, RunStatus::Leased);
        gate.open();
        next_event(&mut events, |event| event.kind.name() == "run:delete" && event.run_id == executing).await;
    })
    .await;
}
