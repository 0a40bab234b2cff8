//! Many triggers in one transaction.

use durably::{Disposition, Error, Job, OnConflict, RunFilter, RunStatus, Step, Trigger};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::support::{Gate, echo, gated, memory, paused, told_so_far, within};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Small {
    #[schemars(range(max = 10))]
    size: u32,
}

fn small(size: u32) -> Small {
    Small { size }
}

#[tokio::test]
async fn p_batch_01_an_empty_batch_is_empty_and_touches_nothing() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    job.trigger(0).await.expect("triggers");
    let before = durably.stats().await.expect("reads").commits;
    let none: [u32; 0] = [];
    assert_eq!(job.batch_trigger(none).await.expect("is empty").len(), 0);
    assert_eq!(durably.stats().await.expect("reads").commits, before);
}

#[tokio::test]
async fn p_batch_02_bare_inputs_and_triggers_with_options_are_answered_in_order() {
    let durably = memory().await;
    let job = durably.register(echo("job")).expect("registers");
    let bare = job.batch_trigger([3, 1, 2]).await.expect("triggers");
    for (run, input) in bare.iter().zip([3, 1, 2]) {
        assert_eq!(run.disposition(), Disposition::Created);
        assert_eq!(within(run.output()).await.expect("completes"), input);
    }
    assert!(bare.is_sorted_by(|a, b| a.id() < b.id()));
    let items = [Trigger::new(7).label("kind", "seven"), Trigger::new(8)];
    let runs = job.batch_trigger(items).await.expect("triggers");
    assert_eq!(runs[0].get().await.expect("reads").labels["kind"], "seven");
    assert_eq!(runs[1].get().await.expect("reads").input, Some(json!(8)));
}

#[tokio::test]
async fn p_batch_03_04_one_refused_item_refuses_the_whole_batch_and_is_named() {
    let durably = paused().await;
    let job = durably.register(Job::new("job", |_: Step, input: Small| async move { Ok(input) })).expect("registers");
    let mut events = durably.events();
    let refused = job.batch_trigger([small(1), small(11), small(12)]).await.expect_err("11 is over 10");
    let Error::Item { index: 1, error } = &refused else { panic!("{refused:?}") };
    assert!(matches!(&**error, Error::InvalidInput { path, .. } if path == "/size"), "{error:?}");
    assert!(refused.to_string().starts_with("at index 1: invalid input at /size: "), "{refused}");
    let refused = job.batch_trigger([Trigger::new(small(1)), Trigger::new(small(1)).label("a b", "")]).await;
    assert!(matches!(refused, Err(Error::Item { index: 1, .. })), "{refused:?}");
    let refused = job.batch_trigger([Trigger::new(small(1)).on_conflict(OnConflict::Skip)]).await;
    assert!(matches!(refused, Err(Error::Item { index: 0, .. })), "{refused:?}");
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads"), []);
    assert_eq!(within(told_so_far(&durably, &mut events)).await, []);
}

#[tokio::test]
async fn p_batch_05_a_conflict_on_any_item_creates_none() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let waiting = job.trigger(0).concurrency_key("busy").await.expect("triggers").id();
    let items = [
        Trigger::new(1).idempotency_key("free"),
        Trigger::new(2).concurrency_key("busy").on_conflict(OnConflict::Reject),
    ];
    let refused = job.batch_trigger(items).await.expect_err("the key is busy");
    let Error::Item { index: 1, error } = &refused else { panic!("{refused:?}") };
    assert!(matches!(&**error, Error::KeyConflict { run: Some(run), key } if *run == waiting && key == "busy"));
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads").len(), 1);
    let again = job.trigger(1).idempotency_key("free").await.expect("triggers");
    assert_eq!(again.disposition(), Disposition::Created, "the key of an item that was not created is free");
}

#[tokio::test]
async fn the_only_item_of_a_batch_is_named_and_a_trigger_by_itself_is_not() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    for input in 0..2 {
        job.trigger(input).concurrency_key("busy").idempotency_key(format!("i{input}")).await.expect("triggers");
    }
    let refusals = [
        (
            Trigger::new(5).concurrency_key("busy").on_conflict(OnConflict::Reject),
            job.trigger(5).concurrency_key("busy").on_conflict(OnConflict::Reject),
        ),
        (Trigger::new(5).concurrency_key("busy").max_queued(1), job.trigger(5).concurrency_key("busy").max_queued(1)),
        (
            Trigger::new(5).idempotency_key("i0").reject_changed_input(),
            job.trigger(5).idempotency_key("i0").reject_changed_input(),
        ),
    ];
    for (item, alone) in refusals {
        let alone = alone.await.expect_err("is refused");
        let batch = job.batch_trigger([item]).await.expect_err("is refused");
        let Error::Item { index: 0, error } = &batch else { panic!("{batch:?}") };
        assert!(!matches!(alone, Error::Item { .. }), "{alone:?}");
        assert_eq!(error.to_string(), alone.to_string());
    }
    within(durably.shutdown()).await.expect("closes");
    let refused = job.batch_trigger([5]).await;
    assert!(matches!(refused, Err(Error::ShutDown)), "that is about no item: {refused:?}");
}

/// The items of a batch are decided in order, before any claim of that transaction.
#[tokio::test]
async fn p_batch_06_items_meet_the_items_before_them_though_those_could_start_at_once() {
    let (durably, gate) = (memory().await, Gate::new());
    let job = durably.register(gated("job", &gate)).expect("registers");
    let with = |input, policy| Trigger::new(input).concurrency_key("key").on_conflict(policy);

    let skipped = job.batch_trigger([with(1, OnConflict::Queue), with(2, OnConflict::Skip)]).await.expect("triggers");
    assert_eq!(skipped[1].disposition(), Disposition::Coalesced);
    assert_eq!(skipped[1].id(), skipped[0].id());
    assert_eq!([skipped[0].status(), skipped[1].status()], [RunStatus::Leased; 2], "as committed");

    let refused = job.batch_trigger([with(3, OnConflict::Queue), with(4, OnConflict::Reject)]).await;
    let Err(Error::Item { index: 1, error }) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**error, Error::KeyConflict { run: None, .. }), "{error:?}");

    let other = Trigger::new(5).concurrency_key("other").on_conflict(OnConflict::Reject);
    let both = job.batch_trigger([with(6, OnConflict::Reject), other]).await.expect("keys are independent");
    assert!(both.iter().all(|run| run.disposition() == Disposition::Created));
    gate.open();
    for run in &both {
        within(run.output()).await.expect("completes");
    }
}

#[tokio::test]
async fn an_item_replaces_an_earlier_one_of_its_batch_and_the_answers_are_as_committed() {
    let durably = memory().await;
    let job = durably.register(echo("job")).expect("registers");
    let with = |input, policy| Trigger::new(input).concurrency_key("key").on_conflict(policy);
    let items = [
        with(1, OnConflict::Queue).idempotency_key("first"),
        with(2, OnConflict::Replace),
        with(3, OnConflict::Replace),
        with(4, OnConflict::Queue).idempotency_key("first"),
    ];
    let runs = job.batch_trigger(items).await.expect("triggers");
    let statuses: Vec<_> = runs.iter().map(|run| run.status()).collect();
    assert_eq!(statuses, [RunStatus::Cancelled, RunStatus::Cancelled, RunStatus::Leased, RunStatus::Cancelled]);
    assert_eq!(runs[0].get().await.expect("reads").replaced_by, Some(runs[1].id()));
    assert_eq!(runs[1].get().await.expect("reads").replaced_by, Some(runs[2].id()));
    assert_eq!((runs[3].id(), runs[3].disposition()), (runs[0].id(), Disposition::Idempotent));
    assert_eq!(within(runs[2].output()).await.expect("completes"), 3);
}

/// The items of a batch are decided in order. What one replaces has ended for those after it.
#[tokio::test]
async fn an_item_reuses_the_idempotency_key_of_a_run_that_an_earlier_one_has_replaced() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let keyed = |input| Trigger::new(input).idempotency_key("key");
    let replacing = |input| Trigger::new(input).concurrency_key("busy").on_conflict(OnConflict::Replace);

    let stored = job.trigger(0).idempotency_key("key").concurrency_key("busy").await.expect("triggers").id();
    let items = [keyed(1).reuse_after_failure(), replacing(2), keyed(3), keyed(4).reuse_after_failure(), keyed(5)];
    let runs = job.batch_trigger(items).await.expect("triggers");
    let holders: Vec<_> = runs.iter().map(|run| (run.id(), run.disposition())).collect();
    let (newest, created) = (runs[3].id(), Disposition::Created);
    assert_eq!((holders[0], holders[2]), ((stored, Disposition::Idempotent), (stored, Disposition::Idempotent)));
    assert_eq!((holders[1].1, holders[3].1), (created, created));
    assert_eq!(holders[4], (newest, Disposition::Idempotent));

    // The same of an item's own run: the one without reuse still gets the one that was replaced.
    let other = |input| Trigger::new(input).idempotency_key("other");
    let items = [other(1).concurrency_key("busy"), replacing(2), other(3), other(4).reuse_after_failure(), other(5)];
    let runs = job.batch_trigger(items).await.expect("triggers");
    assert_eq!(runs[2].id(), runs[0].id());
    assert_eq!((runs[3].disposition(), runs[4].id()), (created, runs[3].id()));
    for (key, holder) in [("key", newest), ("other", runs[3].id())] {
        let again = job.trigger(9).idempotency_key(key).await.expect("triggers");
        assert_eq!(again.id(), holder, "{key}");
    }
}

#[tokio::test]
async fn p_batch_07_a_repeat_of_an_idempotency_key_is_the_earlier_items_run() {
    let durably = memory().await;
    let job = durably.register(echo("job")).expect("registers");
    let items = [Trigger::new(1).idempotency_key("key"), Trigger::new(2), Trigger::new(3).idempotency_key("key")];
    let runs = job.batch_trigger(items).await.expect("triggers");
    assert_eq!((runs[2].disposition(), runs[2].id()), (Disposition::Idempotent, runs[0].id()));
    assert_eq!(runs[2].status(), runs[0].status());
    assert!(runs[2].input_differs());
    assert_eq!(within(runs[2].output()).await.expect("completes"), 1);
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads").len(), 2);
}

#[tokio::test]
async fn a_changed_input_is_rejected_within_a_batch_too() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let keyed = |input| Trigger::new(input).idempotency_key("key").reject_changed_input();
    let refused = job.batch_trigger([keyed(1), keyed(2)]).await;
    let Err(Error::Item { index: 1, error }) = &refused else { panic!("{refused:?}") };
    assert!(matches!(&**error, Error::IdempotencyMismatch { key, run: None } if key == "key"), "{error:?}");
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads"), []);
    let same = job.batch_trigger([keyed(1), keyed(1)]).await.expect("triggers");
    assert_eq!(same[1].disposition(), Disposition::Idempotent);
}

#[tokio::test]
async fn p_batch_08_events_come_in_item_order_each_by_its_disposition() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let old = job.trigger(0).idempotency_key("old").await.expect("triggers").id();
    let mut events = durably.events();
    let items = [
        Trigger::new(1).concurrency_key("key"),
        Trigger::new(2).idempotency_key("old"),
        Trigger::new(3).concurrency_key("key").on_conflict(OnConflict::Skip),
        Trigger::new(4),
    ];
    let runs = job.batch_trigger(items).await.expect("triggers");
    assert_eq!(runs[1].id(), old);
    let told = within(told_so_far(&durably, &mut events)).await;
    let (first, last) = (runs[0].id(), runs[3].id());
    assert_eq!(told, [(first, "run:trigger"), (first, "run:coalesced"), (last, "run:trigger")]);
}

#[tokio::test]
async fn p_batch_09_an_input_with_a_field_called_input_is_an_input() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Nested {
        input: String,
    }
    let durably = memory().await;
    let job = Job::new("job", |_: Step, nested: Nested| async move { Ok(nested.input) });
    let job = durably.register(job).expect("registers");
    let runs = job.batch_trigger([Nested { input: "x".into() }]).await.expect("triggers");
    assert_eq!(within(runs[0].output()).await.expect("completes"), "x");
}
