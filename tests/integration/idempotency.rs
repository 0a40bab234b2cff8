//! Same key, same run.

use std::time::Duration;

use durably::{Disposition, Durably, Error, OnConflict, RunFilter, RunStatus};
use serde_json::json;

use super::support::{
    Gate, ManualClock, Pair, TempFile, echo, ended, failing, gated, memory, pair, paused, run_of, told_so_far, within,
};

#[tokio::test]
async fn p_idem_01_a_repeat_gives_the_first_run_with_its_own_input_and_labels() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let first = job.trigger(1).idempotency_key("key").label("n", "first").await.expect("triggers");
    let again = job.trigger(2).idempotency_key("key").label("n", "second").await.expect("triggers");
    assert_eq!((again.id(), again.disposition()), (first.id(), Disposition::Idempotent));
    let run = again.get().await.expect("reads");
    assert_eq!((run.input, run.labels["n"].as_str()), (Some(json!(1)), "first"));
    assert_eq!(run.idempotency_key.as_deref(), Some("key"));
}

#[tokio::test]
async fn p_idem_02_a_key_is_its_jobs_own() {
    let durably = paused().await;
    let (one, two) = durably.register((echo("one"), echo("two"))).expect("registers");
    let first = one.trigger(1).idempotency_key("key").await.expect("triggers");
    let second = two.trigger(1).idempotency_key("key").await.expect("triggers");
    assert_eq!(second.disposition(), Disposition::Created);
    assert_ne!(first.id(), second.id());
}

#[tokio::test]
async fn p_idem_03_04_a_key_outlives_the_end_of_its_run_and_gives_its_state() {
    let durably = memory().await;
    let (good, bad) = durably.register((echo("good"), failing("bad", "no"))).expect("registers");
    for (job, stands) in [(&good, RunStatus::Completed), (&bad, RunStatus::Failed)] {
        let run = job.trigger(1).idempotency_key("key").await.expect("triggers").id();
        within(ended(&durably, run)).await;
        let again = job.trigger(1).idempotency_key("key").await.expect("triggers");
        assert_eq!((again.id(), again.disposition(), again.status()), (run, Disposition::Idempotent, stands));
    }
    within(durably.stop()).await.expect("stops");
    let run = good.trigger(1).idempotency_key("cancelled").await.expect("triggers");
    run.cancel().await.expect("cancels");
    let again = good.trigger(1).idempotency_key("cancelled").await.expect("triggers");
    assert_eq!((again.id(), again.status()), (run.id(), RunStatus::Cancelled));
}

#[tokio::test]
async fn a_key_stands_over_restarts() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let run = job.trigger(1).idempotency_key("key").await.expect("triggers").id();
    drop((durably, job));
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    assert_eq!(job.trigger(1).idempotency_key("key").await.expect("triggers").id(), run);
    durably.shutdown().await.expect("closes");
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    assert_eq!(job.trigger(1).idempotency_key("key").await.expect("triggers").id(), run);
}

#[tokio::test]
async fn p_idem_05_deleting_or_purging_the_run_frees_its_key() {
    let clock = ManualClock::new();
    let durably = Durably::builder().clock(clock.clone()).in_memory().await.expect("opens");
    let job = durably.register(echo("job")).expect("registers");
    let first = within(job.trigger_and_wait(1).idempotency_key("key")).await.expect("completes");
    durably.delete_run(first.id).await.expect("deletes");
    let second = within(job.trigger_and_wait(2).idempotency_key("key")).await.expect("completes");
    assert_eq!((second.disposition, second.output), (Disposition::Created, 2));
    clock.advance(Duration::from_secs(1));
    assert_eq!(durably.purge_runs(durably::Timestamp::from_millis(u64::MAX)).await.expect("purges"), 1);
    let third = job.trigger(3).idempotency_key("key").await.expect("triggers");
    assert_eq!(third.disposition(), Disposition::Created);
}

#[tokio::test]
async fn p_idem_06_a_repeat_tells_nobody() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let run = job.trigger(1).idempotency_key("key").await.expect("triggers").id();
    let before = run_of(&durably, run).await;
    let mut events = durably.events();
    job.trigger(2).idempotency_key("key").label("a", "b").await.expect("triggers");
    assert_eq!(within(told_so_far(&durably, &mut events)).await, []);
    assert_eq!(run_of(&durably, run).await, before);
}

#[tokio::test]
async fn p_idem_07_a_repeat_wins_over_every_concurrency_rule() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let held = job.trigger(1).idempotency_key("key").await.expect("triggers").id();
    let waiting = job.trigger(2).concurrency_key("busy").await.expect("triggers").id();
    for policy in [OnConflict::Queue, OnConflict::Reject, OnConflict::Skip, OnConflict::Replace] {
        let again = job.trigger(1).idempotency_key("key").concurrency_key("busy").on_conflict(policy).await;
        let again = again.expect("is a repeat");
        assert_eq!((again.id(), again.disposition()), (held, Disposition::Idempotent), "{policy:?}");
    }
    assert_eq!(run_of(&durably, waiting).await.status, RunStatus::Pending);
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads").len(), 2);
}

#[tokio::test]
async fn p_idem_08_an_invalid_input_is_refused_though_its_key_exists() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    job.trigger(1).idempotency_key("key").await.expect("triggers");
    let refused = durably.trigger_json("job", json!("text")).idempotency_key("key").await;
    assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
}

#[tokio::test]
async fn p_idem_09_another_input_is_reported_and_refused_on_request() {
    let durably = paused().await;
    let job = durably.register(pair()).expect("registers");
    let first = durably.trigger_json("pair", json!({"left": 1, "right": 2})).idempotency_key("key").await;
    let first = first.expect("triggers").id();
    let same =
        durably.trigger_json("pair", json!({"right": 2, "left": 1})).idempotency_key("key").reject_changed_input();
    assert!(!same.await.expect("the order of fields is no difference").input_differs());
    let other = || Pair { left: 1, right: 3 };
    let reported = job.trigger(other()).idempotency_key("key").await.expect("triggers");
    assert!(reported.input_differs());
    assert_eq!(reported.id(), first);
    let refused = job.trigger(other()).idempotency_key("key").reject_changed_input().await;
    assert!(
        matches!(&refused, Err(Error::IdempotencyMismatch { key, run }) if key == "key" && *run == Some(first)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn p_idem_10_waiting_on_a_repeat_waits_for_the_run_there_is() {
    let (durably, gate) = (memory().await, Gate::new());
    let (slow, bad) = durably.register((gated("slow", &gate), failing("bad", "broken"))).expect("registers");
    let first = slow.trigger(1).idempotency_key("key").await.expect("triggers");
    within(gate.reached()).await;
    let waiting = tokio::spawn(std::future::IntoFuture::into_future(slow.trigger_and_wait(2).idempotency_key("key")));
    gate.open();
    let done = within(waiting).await.expect("joins").expect("completes");
    assert_eq!((done.id, done.output, done.disposition), (first.id(), 1, Disposition::Idempotent));
    let at_once = within(slow.trigger_and_wait(3).idempotency_key("key")).await.expect("is done");
    assert_eq!(at_once.output, 1);

    for _ in 0..2 {
        let failed = within(bad.trigger_and_wait(1).idempotency_key("key")).await;
        let Err(Error::RunFailed { run }) = &failed else { panic!("{failed:?}") };
        assert_eq!(run.error.as_ref().map(|error| error.message.as_str()), Some("broken"));
    }
    within(durably.stop()).await.expect("stops");
    let run = slow.trigger(1).idempotency_key("cancelled").await.expect("triggers");
    run.cancel().await.expect("cancels");
    let cancelled = within(slow.trigger_and_wait(1).idempotency_key("cancelled")).await;
    assert!(matches!(cancelled, Err(Error::RunCancelled { run: named }) if named == run.id()), "{cancelled:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p_idem_11_of_64_triggers_of_one_key_at_once_one_creates() {
    let file = TempFile::new();
    let durably = file.open().await;
    let job = durably.register(echo("job")).expect("registers");
    let triggers: Vec<_> = (0..64)
        .map(|n| tokio::spawn(std::future::IntoFuture::into_future(job.trigger(n).idempotency_key("key"))))
        .collect();
    let mut created = 0;
    let mut ids = std::collections::BTreeSet::new();
    for trigger in triggers {
        let run = within(trigger).await.expect("joins").expect("triggers");
        created += u32::from(run.disposition() == Disposition::Created);
        ids.insert(run.id());
    }
    assert_eq!((created, ids.len()), (1, 1));
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads").len(), 1);
}

#[tokio::test]
async fn p_idem_12_an_empty_key_is_refused() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let refused = job.trigger(1).idempotency_key("").await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "idempotency key", .. })), "{refused:?}");
}

#[tokio::test]
async fn p_idem_13_a_retrigger_does_not_take_the_key_over() {
    let durably = memory().await;
    let job = durably.register(echo("job")).expect("registers");
    let old = within(job.trigger_and_wait(1).idempotency_key("key")).await.expect("completes").id;
    let new = durably.retrigger(old).await.expect("retriggers");
    assert_ne!(new.id(), old);
    assert_eq!(new.get().await.expect("reads").idempotency_key, None);
    assert_eq!(job.trigger(1).idempotency_key("key").await.expect("triggers").id(), old);
}

/// A ttl counts from the trigger, and never ends before the run does.
#[tokio::test]
async fn a_key_with_a_time_is_free_after_it_and_not_before_its_run_has_ended() {
    let (clock, gate) = (ManualClock::new(), Gate::new());
    let durably = Durably::builder().clock(clock.clone()).in_memory().await.expect("opens");
    let job = durably.register(gated("job", &gate)).expect("registers");
    let minute = Duration::from_secs(60);
    let first = job.trigger(1).idempotency_key("key").idempotency_ttl(minute).await.expect("triggers");
    within(gate.reached()).await;
    clock.advance(2 * minute);
    let early = job.trigger(1).idempotency_key("key").await.expect("triggers");
    assert_eq!(early.disposition(), Disposition::Idempotent, "its run has not ended");
    gate.open();
    within(first.output()).await.expect("completes");
    let second = job.trigger(2).idempotency_key("key").idempotency_ttl(minute).await.expect("triggers");
    assert_eq!(second.disposition(), Disposition::Created, "the time of the first is over");
    within(second.output()).await.expect("completes");

    clock.advance(minute - Duration::from_millis(1));
    let held = job.trigger(3).idempotency_key("key").await.expect("triggers");
    assert_eq!((held.id(), held.disposition()), (second.id(), Disposition::Idempotent));
    clock.advance(Duration::from_millis(1));
    let third = job.trigger(4).idempotency_key("key").await.expect("triggers");
    assert_eq!(third.disposition(), Disposition::Created);
    within(third.output()).await.expect("completes");
    // The first run is still there, and deleting it does not free the key that another has.
    durably.delete_run(first.id()).await.expect("deletes");
    let again = job.trigger(5).idempotency_key("key").await.expect("triggers");
    assert_eq!(again.id(), third.id());
}

/// A purge waits for the time of a key, a delete frees it at once.
#[tokio::test]
async fn a_purge_waits_for_the_time_of_a_key_and_a_delete_does_not() {
    let clock = ManualClock::new();
    let durably = Durably::builder().clock(clock.clone()).in_memory().await.expect("opens");
    let job = durably.register(echo("job")).expect("registers");
    let hour = Duration::from_secs(3_600);
    let keyed = |n: u32| job.trigger_and_wait(n).idempotency_key(n.to_string()).idempotency_ttl(hour);
    let (kept, deleted) =
        (within(keyed(1)).await.expect("completes").id, within(keyed(2)).await.expect("completes").id);
    let plain = within(job.trigger_and_wait(3)).await.expect("completes").id;
    clock.advance(hour / 2);
    let all = durably::Timestamp::from_millis(u64::MAX);
    assert_eq!(durably.purge_runs(all).await.expect("purges"), 1);
    assert_eq!(durably.get_run(plain).await.expect("reads"), None);
    assert!(durably.get_run(kept).await.expect("reads").is_some());
    durably.delete_run(deleted).await.expect("deletes");
    assert_eq!(job.trigger(9).idempotency_key("2").await.expect("triggers").disposition(), Disposition::Created);
    clock.advance(hour / 2);
    within(durably.stop()).await.expect("stops");
    assert_eq!(durably.purge_runs(all).await.expect("purges"), 2);
    assert_eq!(durably.get_run(kept).await.expect("reads"), None);
}

#[tokio::test]
async fn a_key_whose_run_failed_or_was_cancelled_can_be_used_again_on_request() {
    let durably = memory().await;
    let (good, bad) = durably.register((echo("good"), failing("bad", "no"))).expect("registers");
    let failed = bad.trigger(1).idempotency_key("key").await.expect("triggers").id();
    within(ended(&durably, failed)).await;
    assert_eq!(bad.trigger(1).idempotency_key("key").await.expect("triggers").id(), failed);
    let new = bad.trigger(1).idempotency_key("key").reuse_after_failure().await.expect("triggers");
    assert_eq!(new.disposition(), Disposition::Created);
    assert_ne!(new.id(), failed);
    let latest = bad.trigger(1).idempotency_key("key").await.expect("triggers");
    assert_eq!(latest.id(), new.id(), "the key is the newer run's from here on");
    within(ended(&durably, new.id())).await;

    let done = within(good.trigger_and_wait(1).idempotency_key("key")).await.expect("completes").id;
    let again = good.trigger(1).idempotency_key("key").reuse_after_failure().await.expect("triggers");
    assert_eq!((again.id(), again.disposition()), (done, Disposition::Idempotent), "a completed run keeps it");

    within(durably.stop()).await.expect("stops");
    let cancelled = good.trigger(1).idempotency_key("cancelled").await.expect("triggers");
    let waiting = good.trigger(1).idempotency_key("cancelled").reuse_after_failure().await.expect("triggers");
    assert_eq!(waiting.id(), cancelled.id(), "a run that waits keeps it");
    cancelled.cancel().await.expect("cancels");
    let after = good.trigger(1).idempotency_key("cancelled").reuse_after_failure().await.expect("triggers");
    assert_eq!(after.disposition(), Disposition::Created);
}
