//! What is checked before anything is written, and before a run completes.

use std::collections::BTreeMap;

use durably::{Durably, Error, ErrorKind, EventKind, Job, Received, RunFilter, RunStatus, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::support::{TempFile, echo, ended, memory, next_event, paused, run_of, within};

#[derive(Serialize, Deserialize, JsonSchema, Clone)]
struct Cart {
    #[schemars(length(min = 1, max = 3))]
    items: Vec<Item>,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone)]
struct Item {
    #[schemars(regex(pattern = "^[A-Z]{2}-[0-9]+$"))]
    sku: String,
    #[schemars(range(min = 1, max = 10))]
    qty: u32,
    #[serde(default)]
    size: Size,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Default)]
#[serde(rename_all = "lowercase")]
enum Size {
    #[default]
    Small,
    Large,
}

fn cart() -> Job<Cart, usize> {
    Job::new("cart", |_: Step, input: Cart| async move { Ok(input.items.len()) })
}

fn item(sku: &str, qty: i64) -> Value {
    json!({"sku": sku, "qty": qty})
}

/// Constraints count, not only types; the error names path and rule.
#[tokio::test]
async fn a_refused_input_names_the_path_and_the_rule() {
    let durably = paused().await;
    durably.register(cart()).expect("registers");
    let four: Vec<_> = (0..4).map(|_| item("AB-1", 1)).collect();
    let cases = [
        (json!({"items": [item("AB-1", 1), item("AB-2", 11)]}), "/items/1/qty", "maximum"),
        (json!({"items": [item("AB-1", 0)]}), "/items/0/qty", "minimum"),
        (json!({"items": [item("ab-1", 1)]}), "/items/0/sku", "pattern"),
        (json!({"items": []}), "/items", "minItems"),
        (json!({"items": four}), "/items", "maxItems"),
        (json!({"items": [{"sku": "AB-1", "qty": 1, "size": "huge"}]}), "/items/0/size", "enum"),
        (json!({"items": [{"sku": "AB-1"}]}), "/items/0", "required"),
        (json!({"items": [item("AB-1", 1)], "note": 5}), "/note", "type"),
        (json!({"items": "AB-1"}), "/items", "type"),
        (json!(null), "", "type"),
    ];
    for (input, wanted_path, wanted_rule) in cases {
        let refused = durably.trigger_json("cart", input.clone()).await;
        let Err(Error::InvalidInput { path, rule, message }) = &refused else { panic!("{input}: {refused:?}") };
        assert_eq!((path.as_str(), rule.as_str()), (wanted_path, wanted_rule), "{input}: {message}");
    }
    assert_eq!(durably.get_runs(RunFilter::new()).await.expect("reads"), []);
}

#[tokio::test]
async fn a_typed_trigger_is_checked_against_the_constraints_too() {
    let durably = paused().await;
    let job = durably.register(cart()).expect("registers");
    let too_many = Cart { items: vec![Item { sku: "AB-1".into(), qty: 99, size: Size::Large }], note: None };
    let refused = job.trigger(too_many.clone()).await;
    assert!(matches!(&refused, Err(Error::InvalidInput { path, .. }) if path == "/items/0/qty"), "{refused:?}");
    let refused = job.trigger_and_wait(too_many).await;
    assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_normalised_input_is_what_is_stored_and_told() {
    let durably = paused().await;
    durably.register(cart()).expect("registers");
    let mut events = durably.events();
    let input = json!({"extra": 1, "items": [item("AB-1", 2)]});
    let run = durably.trigger_json("cart", input).await.expect("triggers");
    let stored = json!({"items": [{"sku": "AB-1", "qty": 2, "size": "small"}], "note": null});
    assert_eq!(run.get().await.expect("reads").input, Some(stored.clone()));
    let event = within(next_event(&mut events, |event| event.kind.name() == "run:trigger")).await;
    assert!(matches!(&event.kind, EventKind::RunTriggered { input } if input.value() == Some(stored)), "{event:?}");
}

/// What does not read back as it was written is refused where it is written.
#[tokio::test]
async fn an_input_that_can_not_be_stored_is_refused() {
    let durably = paused().await;
    let float = Job::new("float", |_: Step, input: f64| async move { Ok(input) });
    let pairs = Job::new("pairs", |_: Step, input: BTreeMap<(u8, u8), u8>| async move { Ok(input.len()) });
    let (float, pairs) = durably.register((float, pairs)).expect("registers");
    let refused = float.trigger(f64::NAN).await;
    assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
    let refused = pairs.trigger(BTreeMap::from([((1, 2), 3)])).await;
    assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Score {
    #[schemars(range(max = 100))]
    points: u32,
}

/// The output is checked before the run completes.
#[tokio::test]
async fn an_output_against_its_schema_fails_the_run_and_stores_no_output() {
    let durably = memory().await;
    let job = Job::new("score", |_: Step, points: u32| async move { Ok(Score { points }) });
    let job = durably.register(job).expect("registers");
    assert_eq!(within(job.trigger_and_wait(100)).await.expect("completes").output.points, 100);
    let run = job.trigger(101).await.expect("triggers").id();
    let run = within(ended(&durably, run)).await;
    assert_eq!((run.status, &run.output), (RunStatus::Failed, &None));
    let error = run.error.expect("failed");
    assert_eq!(error.kind, ErrorKind::InvalidOutput);
    assert!(error.message.contains("/points") && error.message.contains("100"), "{}", error.message);
}

/// A stored input that the code can't decode any more.
#[tokio::test]
async fn an_undecodable_stored_input_leaves_the_run_pending_and_reported_until_the_code_is_fixed() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let run = job.trigger(5).concurrency_key("key").await.expect("triggers").id();
    durably.shutdown().await.expect("closes");

    let durably = file.open_paused().await;
    let mut events = durably.events();
    let text = Job::new("job", |_: Step, input: String| async move { Ok(input) });
    let (_, other) = durably.register((text, echo("other"))).expect("registers");
    durably.start().await.expect("starts");
    let event = within(next_event(&mut events, |event| event.kind.name() == "run:blocked")).await;
    assert_eq!(event.run_id, run);
    let blocked = run_of(&durably, run).await;
    assert_eq!((blocked.status, blocked.recoveries), (RunStatus::Pending, 0));
    assert!(blocked.blocked.as_deref().is_some_and(|reason| reason.contains("decoded")), "{blocked:?}");
    assert_eq!(counts(&durably).await, [1, 0]);
    // It stands in nobody's way: neither its key nor a slot is held.
    within(other.trigger_and_wait(1).concurrency_key("key")).await.expect("completes");
    assert_eq!(run_of(&durably, run).await.status, RunStatus::Pending);
    within(durably.shutdown()).await.expect("closes");

    let durably = file.open().await;
    durably.register(echo("job")).expect("registers");
    let done = within(durably.wait_for_run(run)).await.expect("completes");
    assert_eq!((done.output, done.blocked), (Some(json!(5)), None));
}

#[tokio::test]
async fn a_blocked_run_can_be_cancelled_and_is_told_by_its_own_stream() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let run = durably.register(echo("job")).expect("registers").trigger(5).await.expect("triggers").id();
    durably.shutdown().await.expect("closes");
    let durably = file.open_paused().await;
    durably.register(Job::new("job", |_: Step, input: String| async move { Ok(input) })).expect("registers");
    let mut events = durably.subscribe(run).await.expect("is there");
    durably.start().await.expect("starts");
    within(async {
        while let Some(Received::Event(event)) = events.next().await {
            match event.kind {
                EventKind::RunBlocked { .. } => durably.cancel(run).await.expect("cancels"),
                EventKind::RunCancelled { .. } => return,
                _ => {}
            }
        }
        panic!("the stream ended before the run did");
    })
    .await;
    assert_eq!(run_of(&durably, run).await.status, RunStatus::Cancelled);
    assert_eq!(counts(&durably).await, [0, 1]);
}

/// Pending and cancelled runs of the job `job`.
async fn counts(durably: &Durably) -> [u64; 2] {
    let stats = durably.stats().await.expect("counts");
    let job = stats.jobs.iter().find(|job| job.name == "job").expect("is registered");
    [RunStatus::Pending, RunStatus::Cancelled].map(|status| job.count(status))
}

#[tokio::test]
async fn p_trig_05_stricter_code_takes_what_is_stored_and_refuses_a_retrigger_of_it() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Loose {
        count: u32,
    }
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Strict {
        #[schemars(range(max = 10))]
        count: u32,
    }
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let loose = Job::new("job", |_: Step, input: Loose| async move { Ok(input.count) });
    let run = durably.register(loose).expect("registers").trigger(Loose { count: 11 }).await.expect("triggers").id();
    durably.shutdown().await.expect("closes");
    let durably = file.open().await;
    let strict = Job::new("job", |_: Step, input: Strict| async move { Ok(input.count) });
    durably.register(strict).expect("registers");
    assert_eq!(within(durably.wait_for_run(run)).await.expect("completes").output, Some(json!(11)));
    let refused = durably.retrigger(run).await;
    assert!(matches!(&refused, Err(Error::InvalidInput { path, .. }) if path == "/count"), "{refused:?}");
}

/// Arrays in arrays.
fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!([inner]))
}

#[tokio::test]
async fn json_nested_too_deep_to_be_read_back_is_not_stored() {
    within(async {
        let durably = memory().await;
        let job = Job::new("job", |step: Step, levels: usize| async move {
            step.log().info("deep", nested(levels));
            Ok(nested(levels))
        });
        let jobs = durably.register(job).unwrap();
        let deep = jobs.trigger(128).await.unwrap().id();
        let run = ended(&durably, deep).await;
        assert_eq!((run.status, run.error.unwrap().kind), (RunStatus::Failed, ErrorKind::NotStorable));
        assert_eq!(durably.get_logs(deep).await.unwrap()[0].data, Value::Null);
        let readable = jobs.trigger(127).await.unwrap().id();
        let run = ended(&durably, readable).await;
        assert_eq!((run.status, run.output), (RunStatus::Completed, Some(nested(127))));
        assert_eq!(durably.get_logs(readable).await.unwrap()[0].data, nested(127));
        // One run must not keep a list from being read.
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap().len(), 2);
    })
    .await;
}
