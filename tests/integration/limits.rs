//! Every limit: just allowed, and just refused with nothing written.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use durably::limits::{
    BATCH_BYTES_MAX, BATCH_ITEMS_MAX, ERROR_TEXT_BYTES_MAX, EVENT_BUFFER_BYTES, EVENT_PAYLOAD_BYTES_MAX,
    JOB_NAME_BYTES_MAX, KEY_BYTES_MAX, LABEL_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, LOG_BYTES_MAX,
    LOG_LINE_BYTES_MAX, LOG_LINES_MAX, PAYLOAD_BYTES_CEILING, PAYLOAD_BYTES_DEFAULT, STEP_KEY_BYTES_MAX,
    STEPS_BYTES_MAX, STEPS_MAX, UNACKED_BYTES_MAX, UNACKED_CALLS_MAX,
};
use durably::{
    Clock, Durably, Error, ErrorKind, EventKind, Job, JobResult, Received, RunFilter, RunStatus, Step, StepStatus,
    Timestamp,
};
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};

use super::support::{ManualClock, echo, ended, memory, next_event, paused, within, within_minutes};

/// A text whose JSON has this many bytes.
fn text(json_bytes: usize) -> String {
    "a".repeat(json_bytes - 2)
}

/// Gives the length of a text.
fn length() -> Job<String, usize> {
    Job::new("length", |_: Step, input: String| async move { Ok(input.len()) })
}

/// Gives a text whose JSON has as many bytes as it is told.
fn texts() -> Job<usize, String> {
    Job::new("texts", |_: Step, bytes: usize| async move { Ok(text(bytes)) })
}

fn assert_too_large<T: std::fmt::Debug>(refused: Result<T, Error>, wanted: &str, size: usize, limit: usize) {
    match &refused {
        Err(Error::TooLarge { what, bytes, bytes_max }) => {
            assert_eq!((*what, *bytes, *bytes_max), (wanted, size, limit));
        }
        other => panic!("{other:?}"),
    }
}

async fn assert_nothing_written(durably: &Durably) {
    assert_eq!(durably.get_runs(RunFilter::new()).await.expect("reads"), []);
}

#[tokio::test]
async fn a_job_name_has_128_bytes() {
    let durably = memory().await;
    durably.register(echo(&"n".repeat(JOB_NAME_BYTES_MAX))).expect("is within");
    assert_too_large(durably.register(echo(&"n".repeat(129))), "job name", 129, 128);
}

#[tokio::test]
async fn a_label_key_has_128_bytes_a_value_256_and_a_run_64_of_them() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let key = |bytes| "k".repeat(bytes);
    let refused = job.trigger(1).label(key(LABEL_KEY_BYTES_MAX + 1), "v").await;
    assert_too_large(refused, "label key", 129, 128);
    let refused = job.trigger(1).label("k", key(LABEL_VALUE_BYTES_MAX + 1)).await;
    assert_too_large(refused, "label value", 257, 256);
    let labels = |count: usize| (0..count).map(|n| (format!("key-{n}"), "v"));
    let refused = job.trigger(1).labels(labels(LABELS_MAX + 1)).await;
    assert!(matches!(refused, Err(Error::TooMany { what: "labels", count: 65, count_max: 64 })), "{refused:?}");
    assert_nothing_written(&durably).await;
    let longest = (key(LABEL_KEY_BYTES_MAX), key(LABEL_VALUE_BYTES_MAX));
    let run = job.trigger(1).labels(labels(LABELS_MAX - 1)).label(&longest.0, &longest.1).await.expect("is within");
    assert_eq!(run.get().await.expect("reads").labels.len(), 64);
    let found = durably.get_runs(RunFilter::new().label(&longest.0, &longest.1)).await.expect("reads");
    assert_eq!(found[0].id, run.id());
}

#[tokio::test]
async fn idempotency_and_concurrency_keys_have_512_bytes() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let key = |bytes| "k".repeat(bytes);
    let refused = job.trigger(1).idempotency_key(key(KEY_BYTES_MAX + 1)).await;
    assert_too_large(refused, "idempotency key", 513, 512);
    let refused = job.trigger(1).concurrency_key(key(KEY_BYTES_MAX + 1)).await;
    assert_too_large(refused, "concurrency key", 513, 512);
    assert_nothing_written(&durably).await;
    let call = job.trigger(1).idempotency_key(key(KEY_BYTES_MAX)).concurrency_key(key(KEY_BYTES_MAX));
    let run = call.await.expect("is within").id();
    assert_eq!(job.trigger(1).idempotency_key(key(KEY_BYTES_MAX)).await.expect("is a repeat").id(), run);
}

#[tokio::test]
async fn an_input_has_1_mib_by_default() {
    let durably = paused().await;
    let job = durably.register(length()).expect("registers");
    let over = || text(PAYLOAD_BYTES_DEFAULT + 1);
    assert_too_large(job.trigger(over()).await, "input", (1 << 20) + 1, 1 << 20);
    let refused = durably.trigger_json("length", Value::String(over())).await;
    assert_too_large(refused, "input", (1 << 20) + 1, 1 << 20);
    let refused = job.batch_trigger([text(9), over()]).await.expect_err("is over");
    assert!(matches!(&refused, Error::Item { index: 1, error } if matches!(**error, Error::TooLarge { .. })));
    assert_nothing_written(&durably).await;
    let run = job.trigger(text(PAYLOAD_BYTES_DEFAULT)).await.expect("is within");
    durably.start().await.expect("starts");
    assert_eq!(within(run.output()).await.expect("completes"), PAYLOAD_BYTES_DEFAULT - 2);
}

#[tokio::test]
async fn the_limit_of_payloads_can_be_set() {
    assert_eq!(PAYLOAD_BYTES_CEILING, 64 << 20);
    let durably = Durably::builder().payload_bytes_max(3 << 20).in_memory().await.expect("opens");
    let job = durably.register(length()).expect("registers");
    assert_too_large(job.trigger(text((3 << 20) + 1)).await, "input", (3 << 20) + 1, 3 << 20);
    let run = job.trigger(text(3 << 20)).await.expect("is within");
    assert_eq!(within(run.output()).await.expect("completes"), (3 << 20) - 2);
}

#[tokio::test]
async fn an_output_over_its_limit_fails_the_run() {
    let durably = Durably::builder().payload_bytes_max(1_000).in_memory().await.expect("opens");
    let job = durably.register(texts()).expect("registers");
    assert_eq!(within(job.trigger_and_wait(1_000)).await.expect("is within").output.len(), 998);
    let run = job.trigger(1_001).await.expect("triggers").id();
    let run = within(ended(&durably, run)).await;
    let error = run.error.expect("failed");
    assert_eq!((run.status, run.output, error.kind), (RunStatus::Failed, None, ErrorKind::OverLimit));
    assert!(error.message.contains("1001") && error.message.contains("1000"), "{}", error.message);
}

#[tokio::test]
async fn a_checkpoint_over_its_limit_fails_its_step_and_the_body_can_go_on() {
    let durably = Durably::builder().payload_bytes_max(1_000).in_memory().await.expect("opens");
    let job = Job::new("job", |step: Step, (): ()| async move {
        step.run("within", || async { Ok(text(1_000)) }).await?;
        let error = step.run("over", || async { Ok(text(1_001)) }).await.expect_err("is over");
        assert_eq!(error.kind(), ErrorKind::OverLimit);
        Ok(error.message().to_owned())
    });
    let job = durably.register(job).expect("registers");
    let done = within(job.trigger_and_wait(())).await.expect("completes");
    assert!(done.output.contains("1001") && done.output.contains("1000"), "{}", done.output);
    let steps = durably.get_steps(done.id).await.expect("reads");
    let outcomes: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.status, step.output.is_some())).collect();
    assert_eq!(outcomes, [("within", StepStatus::Completed, true), ("over", StepStatus::Failed, false)]);
}

#[tokio::test]
async fn a_step_key_has_1024_bytes_and_at_least_one() {
    let durably = memory().await;
    let job = Job::new("job", |step: Step, bytes: usize| async move {
        step.run("before", || async { Ok(()) }).await?;
        step.run("k".repeat(bytes), || async { Ok(()) }).await?;
        Ok(())
    });
    let job = durably.register(job).expect("registers");
    within(job.trigger_and_wait(STEP_KEY_BYTES_MAX)).await.expect("is within");
    for bytes in [0, STEP_KEY_BYTES_MAX + 1] {
        let run = job.trigger(bytes).await.expect("triggers").id();
        let error = within(ended(&durably, run)).await.error.expect("failed");
        assert_eq!(error.kind, ErrorKind::OverLimit);
        assert!(error.message.contains(&bytes.to_string()) && error.message.contains("1024"), "{}", error.message);
        let steps = durably.get_steps(run).await.expect("reads");
        assert_eq!(steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["before"]);
    }
}

/// Makes this many steps, a thousand at a time.
async fn make_steps(step: &Step, count: u32) -> JobResult<()> {
    for from in (0..count).step_by(1_000) {
        let upto = count.min(from + 1_000);
        try_join_all((from..upto).map(|n| step.run(n.to_string(), || async { Ok(()) }))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_has_100_000_steps() {
    let durably = memory().await;
    let job = Job::new("job", |step: Step, count: u32| async move { make_steps(&step, count).await });
    let job = durably.register(job).expect("registers");
    let allowed = job.trigger(STEPS_MAX).await.expect("triggers").id();
    let run = within_minutes(ended(&durably, allowed)).await;
    assert_eq!((run.status, run.completed_step_count), (RunStatus::Completed, 100_000));
    let refused = job.trigger(STEPS_MAX + 1).await.expect("triggers").id();
    let run = within_minutes(ended(&durably, refused)).await;
    let error = run.error.expect("failed");
    assert_eq!((run.completed_step_count, error.kind), (100_000, ErrorKind::OverLimit));
    assert!(error.message.contains("100000"), "{}", error.message);
}

/// A checkpoint counts with its key and 64 bytes.
#[tokio::test]
async fn the_checkpoints_of_a_run_have_256_mib() {
    let builder = Durably::builder().payload_bytes_max(PAYLOAD_BYTES_CEILING);
    let durably = builder.in_memory().await.expect("opens");
    let job = Job::new("job", |step: Step, (): ()| async move {
        for n in 0..4 {
            let bytes = STEPS_BYTES_MAX / 4 - 65;
            step.run(n.to_string(), move || async move { Ok(text(bytes)) }).await?;
        }
        step.run("one more", || async { Ok(()) }).await
    });
    let job = durably.register(job).expect("registers");
    let run = job.trigger(()).await.expect("triggers").id();
    let run = within_minutes(ended(&durably, run)).await;
    let error = run.error.expect("failed");
    assert_eq!((run.completed_step_count, error.kind), (4, ErrorKind::OverLimit));
    assert!(error.message.contains(&STEPS_BYTES_MAX.to_string()), "{}", error.message);
}

#[tokio::test]
async fn a_batch_has_100_000_items() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let refused = job.batch_trigger(0..100_001).await;
    assert!(
        matches!(refused, Err(Error::TooMany { what: "items of a batch", count: 100_001, count_max: BATCH_ITEMS_MAX })),
        "{refused:?}"
    );
    assert_nothing_written(&durably).await;
    let runs = within_minutes(job.batch_trigger(0..100_000)).await.expect("is within");
    assert_eq!(runs.len(), BATCH_ITEMS_MAX);
    let stats = durably.stats().await.expect("reads");
    assert_eq!(stats.jobs[0].count(RunStatus::Pending), 100_000);
}

/// A clock that the writer stands still at, so that what it has not committed piles up.
#[derive(Debug, Clone)]
struct HeldClock {
    held: Arc<(Mutex<bool>, Condvar)>,
    clock: ManualClock,
}

impl HeldClock {
    fn new() -> Self {
        HeldClock { held: Arc::default(), clock: ManualClock::new() }
    }

    fn hold(&self, hold: bool) {
        *self.held.0.lock().expect("not poisoned") = hold;
        self.held.1.notify_all();
    }
}

impl Clock for HeldClock {
    fn now(&self) -> Timestamp {
        if std::thread::current().name() == Some("durably-writer") {
            let held = self.held.0.lock().expect("not poisoned");
            drop(self.held.1.wait_while(held, |held| *held).expect("not poisoned"));
        }
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

/// A batch, and the un-acked writes. An item counts with 256 bytes more than its input.
#[tokio::test]
async fn a_batch_has_64_mib_and_no_more_than_that_wait_for_the_disk() {
    let clock = HeldClock::new();
    let builder = Durably::builder().paused(true).clock(clock.clone()).admission_timeout(Duration::from_millis(1));
    let durably = builder.in_memory().await.expect("opens");
    let job = durably.register(length()).expect("registers");
    let mut items: Vec<_> = (0..64).map(|_| text((1 << 20) - 256)).collect();
    items[63].push('a');
    assert_too_large(job.batch_trigger(items.clone()).await, "batch", BATCH_BYTES_MAX + 1, BATCH_BYTES_MAX);
    assert_nothing_written(&durably).await;

    items[63].pop();
    clock.hold(true);
    let mut full = Box::pin(job.batch_trigger(items));
    assert!((&mut full).now_or_never().is_none(), "waits for its commit");
    assert_eq!(UNACKED_BYTES_MAX, BATCH_BYTES_MAX);
    let one_more = text(100_000);
    let at_once = job.try_trigger(one_more.clone()).await;
    assert!(matches!(at_once, Err(Error::Overloaded { waited: Duration::ZERO })), "{at_once:?}");
    let waited = job.trigger(one_more.clone()).await;
    assert!(matches!(waited, Err(Error::Overloaded { waited }) if !waited.is_zero()), "{waited:?}");
    let by_name = durably.trigger_json("length", Value::String(one_more.clone())).without_waiting().await;
    assert!(matches!(by_name, Err(Error::Overloaded { .. })), "{by_name:?}");
    clock.hold(false);
    assert_eq!(within_minutes(full).await.expect("is within").len(), 64);
    job.try_trigger(one_more).await.expect("there is room again");
    let runs = job.get_runs(RunFilter::new().without_payloads()).await.expect("reads");
    assert_eq!(runs.len(), 65, "what was refused was not written");
}

/// Admission is bounded by count too.
#[tokio::test]
async fn no_more_than_65_536_calls_wait_for_the_disk() {
    let clock = HeldClock::new();
    let durably = Durably::builder().paused(true).clock(clock.clone()).in_memory().await.expect("opens");
    let job = durably.register(echo("job")).expect("registers");
    let unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("is an id");
    clock.hold(true);
    let mut calls: Vec<_> = (0..UNACKED_CALLS_MAX).map(|_| Box::pin(durably.cancel(unknown))).collect();
    for call in &mut calls {
        assert!(call.now_or_never().is_none(), "waits for its commit");
    }
    let refused = job.try_trigger(2).await;
    assert!(matches!(refused, Err(Error::Overloaded { waited: Duration::ZERO })), "{refused:?}");
    clock.hold(false);
    let answers = within_minutes(join_all(calls)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::RunNotFound { .. }))), "each is answered");
    assert_nothing_written(&durably).await;
    job.try_trigger(2).await.expect("there is room again");
}

#[tokio::test]
async fn an_event_carries_64_kib_of_payload_and_leaves_a_larger_one_out() {
    let durably = paused().await;
    let job = durably.register(length()).expect("registers");
    let mut events = durably.events();
    for (bytes, carried) in [(EVENT_PAYLOAD_BYTES_MAX, true), (EVENT_PAYLOAD_BYTES_MAX + 1, false)] {
        let run = job.trigger(text(bytes)).await.expect("triggers").id();
        let event = within(next_event(&mut events, |event| event.run_id == run)).await;
        let EventKind::RunTriggered { input } = &event.kind else { panic!("{event:?}") };
        assert_eq!(input.as_bytes().map(<[u8]>::len), carried.then_some(bytes));
        assert_eq!(input.decode::<String>().is_ok(), carried);
    }
}

#[tokio::test]
async fn the_buffer_of_events_has_16_mib_and_tells_a_slow_listener_what_it_missed() {
    let durably = paused().await;
    let job = durably.register(length()).expect("registers");
    let (mut quick, mut slow) = (durably.events(), durably.events());
    let count = EVENT_BUFFER_BYTES / EVENT_PAYLOAD_BYTES_MAX + 10;
    for _ in 0..count {
        job.trigger(text(EVENT_PAYLOAD_BYTES_MAX)).await.expect("triggers");
        assert!(quick.next().await.is_some_and(|received| received.event().is_some()), "misses nothing");
    }
    let Some(Received::Lagged { missed }) = slow.next().await else { panic!("it should lag") };
    assert!((10..40).contains(&missed), "{missed}");
    let mut left = 0;
    while let Some(received) = slow.next().now_or_never().flatten() {
        assert!(received.event().is_some(), "misses no more");
        left += 1;
    }
    assert_eq!(missed + left, count as u64);
}

#[tokio::test]
async fn a_run_keeps_its_newest_10_000_log_lines() {
    let durably = memory().await;
    let job = Job::new("job", |step: Step, lines: u32| async move {
        for n in 0..lines {
            step.log().info(n.to_string(), ());
            if n % 1_000 == 999 {
                step.run(n.to_string(), || async { Ok(()) }).await?;
            }
        }
        Ok(())
    });
    let job = durably.register(job).expect("registers");
    for (lines, dropped) in [(LOG_LINES_MAX, 0), (LOG_LINES_MAX + 5, 5)] {
        let run = job.trigger(lines).await.expect("triggers").id();
        within(ended(&durably, run)).await;
        let kept = durably.get_logs(run).await.expect("reads");
        assert_eq!(kept.len(), 10_000);
        assert_eq!((kept[0].number, kept[0].message.as_str()), (dropped, dropped.to_string().as_str()));
        assert!(kept.is_sorted_by_key(|line| line.number));
    }
}

#[tokio::test]
async fn a_run_keeps_its_newest_4_mib_of_log_lines() {
    let durably = memory().await;
    let job = Job::new("job", |step: Step, lines: u32| async move {
        for n in 0..lines {
            step.log().warn(n.to_string(), "x".repeat(60_000));
        }
        Ok(())
    });
    let job = durably.register(job).expect("registers");
    for (lines, kept_wanted) in [(69, 69), (75, 69)] {
        let run = job.trigger(lines).await.expect("triggers").id();
        within(ended(&durably, run)).await;
        let kept = durably.get_logs(run).await.expect("reads");
        assert_eq!(kept.len(), kept_wanted);
        assert_eq!(kept.last().map(|line| line.message.clone()), Some((lines - 1).to_string()));
        assert!(kept.iter().map(|line| line.data.to_string().len()).sum::<usize>() <= LOG_BYTES_MAX);
    }
}

#[tokio::test]
async fn a_log_line_has_64_kib_beyond_which_its_fields_are_left_out() {
    let durably = memory().await;
    let job = Job::new("job", |step: Step, (): ()| async move {
        step.log().info("m", text(LOG_LINE_BYTES_MAX - 1));
        step.log().info("m", text(LOG_LINE_BYTES_MAX));
        step.log().info("m".repeat(100_000), ());
        Ok(())
    });
    let job = durably.register(job).expect("registers");
    let run = job.trigger(()).await.expect("triggers").id();
    within(ended(&durably, run)).await;
    let lines = durably.get_logs(run).await.expect("reads");
    assert_eq!(lines[0].data, json!(text(LOG_LINE_BYTES_MAX - 1)));
    assert_eq!((lines[1].message.as_str(), &lines[1].data), ("m", &Value::Null));
    assert!(lines[2].message.len() <= LOG_LINE_BYTES_MAX && lines[2].message.starts_with("mmm"));
}

#[tokio::test]
async fn an_error_text_has_16_kib() {
    let durably = memory().await;
    let job = Job::new("job", |_: Step, bytes: usize| async move {
        Err::<(), _>(durably::JobError::msg("é".repeat(bytes / 2)).context("é".repeat(bytes / 2)))
    });
    let job = durably.register(job).expect("registers");
    for bytes in [ERROR_TEXT_BYTES_MAX, ERROR_TEXT_BYTES_MAX + 2] {
        let run = job.trigger(bytes).await.expect("triggers").id();
        let error = within(ended(&durably, run)).await.error.expect("failed");
        assert_eq!((error.message.len(), error.chain[0].len()), (16 << 10, 16 << 10));
    }
}
