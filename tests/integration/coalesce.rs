//! A trigger answered with the run that waits already.

use durably::{Disposition, Error, EventKind, OnConflict, RunFilter};
use serde_json::json;

use super::support::{Gate, echo, gated, memory, next_event, paused, told_so_far, within};

#[tokio::test]
async fn p_coal_02_a_policy_without_a_key_is_refused() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    for policy in [OnConflict::Skip, OnConflict::Reject, OnConflict::Replace] {
        let refused = job.trigger(1).on_conflict(policy).await;
        assert!(matches!(refused, Err(Error::InvalidOption { option: "on_conflict", .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn p_coal_03_the_waiting_run_is_given_unchanged_and_nothing_is_written() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let first = job.trigger(1).concurrency_key("key").label("n", "first").await.expect("triggers");
    let before = first.get().await.expect("reads");
    let again = job.trigger(2).concurrency_key("key").on_conflict(OnConflict::Skip).label("n", "second");
    let again = again.idempotency_key("unused").await.expect("coalesces");
    assert_eq!((again.id(), again.disposition()), (first.id(), Disposition::Coalesced));
    assert!(!again.input_differs());
    assert_eq!(first.get().await.expect("reads"), before);
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads").len(), 1);
    let keyed = job.trigger(3).idempotency_key("unused").await.expect("triggers");
    assert_eq!(keyed.disposition(), Disposition::Created, "the key of a trigger that made no run is free");
}

#[tokio::test]
async fn p_coal_04_05_an_executing_run_is_not_waiting_and_none_is_none() {
    let (durably, gate) = (memory().await, Gate::new());
    let job = durably.register(gated("job", &gate)).expect("registers");
    let skip = |n| job.trigger(n).concurrency_key("key").on_conflict(OnConflict::Skip);
    let executing = skip(1).await.expect("triggers");
    assert_eq!(executing.disposition(), Disposition::Created);
    within(gate.reached()).await;
    let waiting = skip(2).await.expect("triggers");
    assert_eq!(waiting.disposition(), Disposition::Created);
    let third = skip(3).await.expect("triggers");
    assert_eq!((third.id(), third.disposition()), (waiting.id(), Disposition::Coalesced));
    gate.open();
    assert_eq!(within(third.output()).await.expect("completes"), 2);
}

#[tokio::test]
async fn another_jobs_waiting_run_is_not_coalesced_with() {
    let durably = paused().await;
    let (one, two) = durably.register((echo("one"), echo("two"))).expect("registers");
    one.trigger(1).concurrency_key("key").await.expect("triggers");
    let other = two.trigger(1).concurrency_key("key").on_conflict(OnConflict::Skip).await.expect("triggers");
    assert_eq!(other.disposition(), Disposition::Created);
}

#[tokio::test]
async fn p_coal_06_one_event_tells_of_the_skipped_trigger() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let first = job.trigger(1).concurrency_key("key").label("n", "first").await.expect("triggers");
    let mut events = durably.events();
    let skip = |n| job.trigger(n).concurrency_key("key").on_conflict(OnConflict::Skip);
    skip(2).label("n", "second").await.expect("coalesces");
    skip(3).await.expect("coalesces");
    for (input, labels) in [(2, vec![("n", "second")]), (3, vec![])] {
        let event = within(next_event(&mut events, |_| true)).await;
        assert_eq!((event.run_id, event.labels["n"].as_str()), (first.id(), "first"));
        let EventKind::RunCoalesced { skipped_input, skipped_labels } = &event.kind else { panic!("{event:?}") };
        assert_eq!(skipped_input.value(), Some(json!(input)));
        let told: Vec<_> = skipped_labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(told, labels);
    }
    assert_eq!(within(told_so_far(&durably, &mut events)).await, []);
}

#[tokio::test]
async fn p_coal_07_waiting_on_a_coalesced_trigger_waits_for_the_run_there_is() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let first = job.trigger(1).concurrency_key("key").await.expect("triggers");
    let call = job.trigger_and_wait(2).concurrency_key("key").on_conflict(OnConflict::Skip);
    let (done, _) = within(async {
        let mut events = durably.events();
        let start = async {
            next_event(&mut events, |event| event.kind.name() == "run:coalesced").await;
            durably.start().await.expect("starts");
        };
        tokio::join!(call.into_future(), start)
    })
    .await;
    let done = done.expect("completes");
    assert_eq!((done.id, done.output, done.disposition), (first.id(), 1, Disposition::Coalesced));
}

/// P-COAL-08 can't happen: the decision is made in the transaction that would create the run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p_coal_08_of_many_triggers_at_once_one_creates_the_run_that_waits() {
    let (durably, gate) = (memory().await, Gate::new());
    let job = durably.register(gated("job", &gate)).expect("registers");
    job.trigger(0).concurrency_key("key").await.expect("triggers");
    within(gate.reached()).await;
    let skip = |n| job.trigger(n).concurrency_key("key").on_conflict(OnConflict::Skip);
    let triggers: Vec<_> = (1..=32).map(|n| tokio::spawn(std::future::IntoFuture::into_future(skip(n)))).collect();
    let mut created = 0;
    for trigger in triggers {
        let run = within(trigger).await.expect("joins").expect("no conflict");
        created += u32::from(run.disposition() == Disposition::Created);
    }
    assert_eq!(created, 1);
    gate.open();
}

/// P-COAL-09: `Replace` keeps the newest input.
#[tokio::test]
async fn p_coal_09_the_newest_input_can_be_kept_instead() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let old = job.trigger(1).concurrency_key("key").await.expect("triggers");
    let new = job.trigger(2).concurrency_key("key").on_conflict(OnConflict::Replace).await.expect("triggers");
    assert_eq!(new.disposition(), Disposition::Created);
    durably.start().await.expect("starts");
    assert_eq!(within(new.output()).await.expect("completes"), 2);
    assert!(matches!(within(old.output()).await, Err(Error::RunCancelled { .. })));
}
