//! Asking for runs, and the record that a run becomes.

use std::time::Duration;

use durably::{
    Disposition, Durably, Error, ErrorKind, EventKind, Job, JobError, Run, RunFilter, RunId, RunStatus, Step,
    StepRetention, Timestamp,
};
use futures::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::support::{
    Gate, ManualClock, TempFile, echo, ended, failing, gated, memory, paused, run_of, told_so_far, within,
};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    item: String,
    #[serde(default = "one")]
    quantity: u32,
}

fn one() -> u32 {
    1
}

fn order() -> Job<Order, u32> {
    Job::new("order", |_: Step, input: Order| async move { Ok(input.quantity) })
}

#[tokio::test]
async fn p_trig_01_a_trigger_answers_with_the_run_on_disk_and_does_not_wait_for_it() {
    let (file, gate) = (TempFile::new(), Gate::new());
    let durably = file.open().await;
    let job = durably.register(gated("job", &gate)).expect("registers");
    let run = job.trigger(1).await.expect("triggers");
    assert_eq!(run.disposition(), Disposition::Created);
    assert!(!run.input_differs());
    within(gate.reached()).await;
    assert_eq!(run.get().await.expect("is there").status, RunStatus::Leased);
    // As a crash would end it.
    drop(durably);
    let durably = file.open_paused().await;
    assert_eq!(run_of(&durably, run.id()).await.input, Some(json!(1)));
}

/// The answer has the state as committed.
#[tokio::test]
async fn a_run_that_can_start_at_once_is_leased_in_the_commit_of_its_trigger() {
    let gate = Gate::new();
    let durably = Durably::builder().max_concurrent_runs(1).in_memory().await.expect("opens");
    let job = durably.register(gated("job", &gate)).expect("registers");
    let first = job.trigger(1).await.expect("triggers");
    let second = job.trigger(2).await.expect("triggers");
    assert_eq!((first.status(), second.status()), (RunStatus::Leased, RunStatus::Pending));
    gate.open();
    within(second.output()).await.expect("completes");
}

#[tokio::test]
async fn p_trig_02_the_first_check_that_fails_is_told_and_checks_come_before_keys() {
    let durably = paused().await;
    durably.register(order()).expect("registers");
    let trigger = |input: Value| durably.trigger_json("order", input);
    let bad_input = trigger(json!({})).label("no spaces", "").idempotency_key("").await;
    assert!(matches!(bad_input, Err(Error::InvalidInput { .. })), "{bad_input:?}");
    let tea = || json!({"item": "tea"});
    let bad_label = trigger(tea()).label("no spaces", "").idempotency_key("").await;
    assert!(matches!(bad_label, Err(Error::InvalidOption { option: "label key", .. })), "{bad_label:?}");
    let bad_key = trigger(tea()).idempotency_key("").limit(0).await;
    assert!(matches!(bad_key, Err(Error::InvalidOption { option: "idempotency key", .. })), "{bad_key:?}");
    trigger(tea()).idempotency_key("key").await.expect("triggers");
    // Ours differs: what is wrong is told on a repeat too.
    let repeat = trigger(tea()).idempotency_key("key").label("no spaces", "").await;
    assert!(matches!(repeat, Err(Error::InvalidOption { option: "label key", .. })), "{repeat:?}");
}

#[tokio::test]
async fn options_that_belong_to_a_key_are_refused_without_it() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let ttl = job.trigger(1).idempotency_ttl(Duration::from_secs(1)).await;
    assert!(matches!(ttl, Err(Error::InvalidOption { option: "idempotency_ttl", .. })), "{ttl:?}");
    let reject = job.trigger(1).reject_changed_input().await;
    assert!(matches!(reject, Err(Error::InvalidOption { option: "reject_changed_input", .. })), "{reject:?}");
    let reuse = job.trigger(1).reuse_after_failure().await;
    assert!(matches!(reuse, Err(Error::InvalidOption { option: "reuse_after_failure", .. })), "{reuse:?}");
    let limit = job.trigger(1).limit(2).await;
    assert!(matches!(limit, Err(Error::InvalidOption { option: "limit", .. })), "{limit:?}");
    let none = job.trigger(1).concurrency_key("k").limit(0).await;
    assert!(matches!(none, Err(Error::InvalidOption { option: "limit", .. })), "{none:?}");
}

#[tokio::test]
async fn p_trig_03_a_refused_input_stores_nothing_and_tells_nobody() {
    let durably = paused().await;
    durably.register(order()).expect("registers");
    let mut events = durably.events();
    let refused = durably.trigger_json("order", json!({"item": 5})).await.expect_err("is no text");
    assert_eq!(refused.to_string().split(':').next(), Some("invalid input at /item"));
    assert_eq!(durably.get_runs(RunFilter::new()).await.expect("reads"), []);
    assert_eq!(within(told_so_far(&durably, &mut events)).await, []);
}

#[tokio::test]
async fn p_trig_04_the_typed_input_is_stored_with_defaults_and_without_what_it_does_not_know() {
    let durably = paused().await;
    durably.register(order()).expect("registers");
    let run = durably.trigger_json("order", json!({"unknown": true, "item": "tea"})).await.expect("triggers");
    assert_eq!(run.get().await.expect("reads").input, Some(json!({"item": "tea", "quantity": 1})));
}

#[tokio::test]
async fn p_trig_07_no_input_is_null() {
    let durably = memory().await;
    let nothing = Job::new("nothing", |_: Step, (): ()| async { Ok(()) });
    let (nothing, _) = durably.register((nothing, echo("number"))).expect("registers");
    within(nothing.trigger_and_wait(())).await.expect("completes");
    let run = durably.trigger_json("nothing", Value::Null).await.expect("triggers");
    assert_eq!(run.get().await.expect("reads").input, Some(Value::Null));
    let refused = durably.trigger_json("number", Value::Null).await;
    assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
}

#[tokio::test]
async fn p_trig_10_triggers_work_before_the_start_and_while_stopped() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let before = job.trigger(1).await.expect("triggers");
    assert_eq!(before.status(), RunStatus::Pending);
    durably.start().await.expect("starts");
    within(before.output()).await.expect("completes");
    within(durably.stop()).await.expect("stops");
    let stopped = job.trigger(2).await.expect("triggers");
    assert_eq!(stopped.status(), RunStatus::Pending);
    durably.start().await.expect("starts");
    assert_eq!(within(stopped.output()).await.expect("completes"), 2);
}

#[tokio::test]
async fn p_trig_11_one_event_is_there_when_the_trigger_returns_and_the_run_with_it() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let mut events = durably.events();
    let run = job.trigger(9).label("tenant", "acme").await.expect("triggers");
    let received = events.next().now_or_never().expect("told before it returned").expect("runs");
    let event = received.event().expect("an event");
    assert_eq!((event.run_id, event.committed), (run.id(), true));
    assert_eq!((event.kind.name(), &*event.job_name), ("run:trigger", "job"));
    assert_eq!(event.labels["tenant"], "acme");
    assert!(matches!(&event.kind, EventKind::RunTriggered { input } if input.value() == Some(json!(9))));
    assert_eq!(within(told_so_far(&durably, &mut events)).await, [], "told once");
}

#[tokio::test]
async fn a_trigger_that_is_not_awaited_does_nothing() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    drop(job.trigger(1));
    assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads"), []);
}

#[tokio::test]
async fn p_run_01_a_run_has_every_field_and_absent_ones_are_null() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let run = job.trigger(1).await.expect("triggers").get().await.expect("reads");
    let json = serde_json::to_value(&run).expect("is JSON");
    let fields = json.as_object().expect("an object");
    for field in ["id", "jobName", "input", "status", "currentStepIndex", "completedStepCount", "labels"]
        .into_iter()
        .chain(["leaseGeneration", "createdAt", "updatedAt", "recoveries"])
    {
        assert!(fields.get(field).is_some_and(|value| !value.is_null()), "{field} in {json}");
    }
    for field in ["idempotencyKey", "concurrencyKey", "progress", "output", "error", "leaseOwner", "leaseExpiresAt"]
        .into_iter()
        .chain(["startedAt", "completedAt", "retriggeredFrom", "replacedBy", "blocked"])
    {
        assert_eq!(fields.get(field), Some(&Value::Null), "{field} in {json}");
    }
    assert_eq!(json["labels"], json!({}));
    assert_eq!(serde_json::from_value::<Run>(json).expect("reads back"), run);
}

#[test]
fn p_run_02_statuses_have_their_names_and_three_are_terminal() {
    let names: Vec<_> = RunStatus::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["pending", "leased", "suspended", "completed", "failed", "cancelled"]);
    for (status, name) in RunStatus::ALL.into_iter().zip(&names) {
        assert_eq!(name.parse(), Ok(status));
        assert_eq!(serde_json::to_value(status).expect("is JSON"), json!(name));
    }
    let terminal: Vec<_> = RunStatus::ALL.into_iter().filter(|status| status.is_terminal()).collect();
    assert_eq!(terminal, [RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled]);
    assert!("running".parse::<RunStatus>().is_err());
}

#[tokio::test]
async fn p_run_03_no_cancel_moves_a_run_out_of_a_terminal_status() {
    let durably = memory().await;
    let (good, bad) = durably.register((echo("good"), failing("bad", "no"))).expect("registers");
    let completed = good.trigger(1).await.expect("triggers").id();
    let failed = bad.trigger(1).await.expect("triggers").id();
    within(ended(&durably, completed)).await;
    within(ended(&durably, failed)).await;
    within(durably.stop()).await.expect("stops");
    let cancelled = good.trigger(1).await.expect("triggers").id();
    durably.cancel(cancelled).await.expect("a pending run can be cancelled");
    for (run, stands) in
        [(completed, RunStatus::Completed), (failed, RunStatus::Failed), (cancelled, RunStatus::Cancelled)]
    {
        let before = run_of(&durably, run).await;
        assert_eq!(before.status, stands);
        let refused = durably.cancel(run).await;
        assert!(
            matches!(&refused, Err(Error::Conflict { action: "cancel", run: named, status })
                if *named == run && *status == stands),
            "{refused:?}"
        );
        assert_eq!(run_of(&durably, run).await, before);
    }
}

#[tokio::test]
async fn p_run_04_a_new_run_has_nothing_behind_it() {
    let clock = ManualClock::new();
    let durably = Durably::builder().paused(true).clock(clock).in_memory().await.expect("opens");
    let job = durably.register(echo("job")).expect("registers");
    let run = job.trigger(1).await.expect("triggers").get().await.expect("reads");
    assert_eq!(run.status, RunStatus::Pending);
    assert_eq!((run.current_step_index, run.completed_step_count, run.lease_generation), (0, 0, 0));
    assert_eq!((run.recoveries, run.created_at), (0, run.updated_at));
    assert!(!run.is_terminal());
}

#[tokio::test]
async fn p_run_05_a_run_starts_once_and_every_end_has_its_time() {
    let (file, gate, clock) = (TempFile::new(), Gate::new(), ManualClock::new());
    let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
    let job = durably.register(gated("job", &gate)).expect("registers");
    let run = job.trigger(1).await.expect("triggers").id();
    within(gate.reached()).await;
    let first = run_of(&durably, run).await;
    assert_eq!((first.started_at, first.completed_at), (Some(first.created_at), None));
    drop((durably, job));

    clock.advance(Duration::from_secs(60));
    gate.open();
    let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
    let (job, bad) = durably.register((gated("job", &gate), failing("bad", "no"))).expect("registers");
    let again = within(ended(&durably, run)).await;
    assert_eq!(again.started_at, first.started_at);
    assert_eq!(again.completed_at, Some(first.created_at.saturating_add(Duration::from_secs(60))));
    let failed = bad.trigger(1).await.expect("triggers").id();
    assert!(within(ended(&durably, failed)).await.completed_at.is_some());
    within(durably.stop()).await.expect("stops");
    let cancelled = job.trigger(1).await.expect("triggers");
    cancelled.cancel().await.expect("cancels");
    let cancelled = cancelled.get().await.expect("reads");
    assert_eq!((cancelled.started_at, cancelled.completed_at.is_some()), (None, true));
}

#[tokio::test]
async fn p_run_06_a_lease_has_an_owner_while_it_lasts_and_its_generation_only_grows() {
    let (file, gate) = (TempFile::new(), Gate::new());
    let durably = file.open().await;
    let job = durably.register(gated("job", &gate)).expect("registers");
    let run = job.trigger(1).await.expect("triggers").id();
    within(gate.reached()).await;
    let leased = run_of(&durably, run).await;
    assert!(leased.lease_owner.is_some());
    assert_eq!((leased.lease_expires_at, leased.lease_generation), (None, 1));
    drop((durably, job));

    let durably = file.open_paused().await;
    let recovered = run_of(&durably, run).await;
    assert_eq!((recovered.status, recovered.lease_owner), (RunStatus::Pending, None));
    assert_eq!((recovered.lease_generation, recovered.recoveries), (1, 1));
    durably.register(gated("job", &gate)).expect("registers");
    durably.start().await.expect("starts");
    gate.open();
    let done = within(ended(&durably, run)).await;
    assert_eq!((done.status, done.lease_owner, done.lease_generation), (RunStatus::Completed, None, 2));
}

/// Ids grow in trigger order though the clock stands still or goes back.
#[tokio::test]
async fn p_run_07_ids_are_ulids_that_only_grow() {
    let (file, clock) = (TempFile::new(), ManualClock::new());
    let mut ids: Vec<RunId> = Vec::new();
    for _ in 0..2 {
        let durably = file.open_with(Durably::builder().paused(true).clock(clock.clone())).await;
        let job = durably.register(echo("job")).expect("registers");
        for n in 0..5 {
            ids.push(job.trigger(n).await.expect("triggers").id());
        }
        clock.set_back(Duration::from_secs(3_600));
        for n in 0..5 {
            ids.push(job.trigger(n).await.expect("triggers").id());
        }
        durably.shutdown().await.expect("closes");
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    for id in ids {
        let text = id.to_string();
        assert_eq!((text.len(), text.parse()), (26, Ok(id)));
        assert_eq!(serde_json::to_value(id).expect("is JSON"), json!(text));
    }
    assert!("not an id".parse::<RunId>().is_err());
}

#[test]
fn p_run_08_timestamps_show_as_utc_with_milliseconds() {
    assert_eq!(Timestamp::from_millis(1_770_000_000_123).to_string(), "2026-02-02T02:40:00.123Z");
}

#[tokio::test]
async fn p_run_09_an_error_keeps_its_message_kind_step_and_chain() {
    let durably = memory().await;
    let job = Job::new("job", |step: Step, _: u32| async move {
        step.run("read", || async {
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
            Err::<(), _>(JobError::from(anyhow::Error::new(missing).context("reading the list")))
        })
        .await?;
        Ok(0)
    });
    let (job, plain, empty) =
        durably.register((job, failing("plain", "plain text"), failing("empty", ""))).expect("registers");
    let run = job.trigger(1).await.expect("triggers").id();
    let error = within(ended(&durably, run)).await.error.expect("failed");
    assert_eq!((error.kind, error.step.as_deref()), (ErrorKind::Error, Some("read")));
    assert_eq!((error.message.as_str(), &error.chain[..]), ("reading the list", &["no such file".to_owned()][..]));
    for (job, message) in [(plain, "plain text"), (empty, "")] {
        let run = job.trigger(1).await.expect("triggers").id();
        let error = within(ended(&durably, run)).await.error.expect("failed");
        assert_eq!((error.message.as_str(), error.step), (message, None));
    }
}

#[tokio::test]
async fn p_run_10_outputs_come_back_as_they_were() {
    let durably = memory().await;
    let same = Job::new("same", |_: Step, input: Value| async move { Ok(input) });
    let nothing = Job::new("nothing", |_: Step, _: u32| async { Ok(()) });
    let float = Job::new("float", |_: Step, input: f64| async move { Ok(input / 10.0) });
    let not_a_number = Job::new("nan", |_: Step, _: u32| async { Ok(f64::NAN) });
    let (same, nothing, float, not_a_number) =
        durably.register((same, nothing, float, not_a_number)).expect("registers");
    for value in [json!(null), json!(0), json!(""), json!(false), json!([]), json!({})] {
        let run = same.trigger(value.clone()).await.expect("triggers");
        assert_eq!(within(run.output()).await.expect("completes"), value);
        assert_eq!(run.get().await.expect("reads").output, Some(value));
    }
    let run = nothing.trigger(1).await.expect("triggers");
    within(run.output()).await.expect("completes");
    assert_eq!(run.get().await.expect("reads").output, Some(Value::Null));
    let third = within(float.trigger_and_wait(1.0 / 3.0)).await.expect("completes").output;
    assert_eq!(third.to_bits(), ((1.0 / 3.0) / 10.0_f64).to_bits());
    // Ours differs: what JSON can't hold fails, rather than turn into null.
    let run = not_a_number.trigger(1).await.expect("triggers").id();
    assert_eq!(within(ended(&durably, run)).await.error.expect("failed").kind, ErrorKind::InvalidOutput);
}

#[tokio::test]
async fn p_run_11_12_progress_and_counters_outlive_the_end_and_the_steps() {
    let builder = Durably::builder().keep_steps(StepRetention::UntilTerminal);
    let durably = builder.in_memory().await.expect("opens");
    let job = Job::new("job", |step: Step, _: u32| async move {
        for n in 0..3 {
            step.run(("part", n), || async move { Ok(n) }).await?;
            step.progress(n, 3).message("parts");
        }
        Ok(0)
    });
    let job = durably.register(job).expect("registers");
    let run = job.trigger(1).await.expect("triggers").id();
    let run = within(ended(&durably, run)).await;
    let progress = run.progress.expect("was reported");
    assert_eq!((progress.current, progress.total, progress.message.as_deref()), (2, Some(3), Some("parts")));
    assert_eq!((run.current_step_index, run.completed_step_count), (3, 3));
    assert_eq!(durably.get_steps(run.id).await.expect("reads"), []);
}

#[tokio::test]
async fn p_run_13_updated_at_moves_with_what_is_recorded_and_not_with_a_failed_step() {
    let (clock, gate) = (ManualClock::new(), Gate::new());
    let durably = Durably::builder().clock(clock.clone()).in_memory().await.expect("opens");
    let inside = gate.clone();
    let job = Job::new("job", move |step: Step, _: u32| {
        let gate = inside.clone();
        async move {
            step.run("good", || async { Ok(()) }).await?;
            gate.pass().await;
            let failed = step.run("bad", || async { Err::<(), _>("no".into()) }).await;
            gate.pass().await;
            Ok(failed.is_err())
        }
    });
    let job = durably.register(job).expect("registers");
    let run = job.trigger(1).await.expect("triggers");
    within(gate.reached()).await;
    let after_good = run.get().await.expect("reads");
    clock.advance(Duration::from_secs(1));
    gate.let_one_on();
    within(gate.reached()).await;
    assert_eq!(run.get().await.expect("reads").updated_at, after_good.updated_at);
    gate.open();
    assert!(within(run.output()).await.expect("completes"));
    let done = run.get().await.expect("reads");
    assert_eq!(done.updated_at, after_good.updated_at.saturating_add(Duration::from_secs(1)));
    assert_eq!(done.completed_at, Some(done.updated_at));
}
