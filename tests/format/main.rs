//! Files of former versions: each format that was ever released has one here, and this build opens it and reads everything (P22).
//!
//! A fixture is what a kill left: runs in all states, a journal that is not folded. It is kept without its zeros: the length,
//! then pieces of `offset u64, length u32, bytes`, little endian.

use std::fs;
use std::path::{Path, PathBuf};

use durably::{Durably, Job, JobError, RunFilter, RunStatus, Step};
use serde_json::json;

const LARGE: usize = 17 << 10;
const CHUNK: usize = 32;

fn fixture(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/format/format-{format}.sparse"))
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    let mut at = 0;
    let is_zero = |at: usize| bytes[at..(at + CHUNK).min(bytes.len())].iter().all(|byte| *byte == 0);
    while at < bytes.len() {
        let start = at;
        while at < bytes.len() && !is_zero(at) {
            at += CHUNK;
        }
        let end = at.min(bytes.len());
        if end > start {
            out.extend_from_slice(&(start as u64).to_le_bytes());
            out.extend_from_slice(&((end - start) as u32).to_le_bytes());
            out.extend_from_slice(&bytes[start..end]);
        } else {
            at += CHUNK;
        }
    }
    out
}

fn unpacked(mut packed: &[u8]) -> Vec<u8> {
    let mut take = |count: usize| {
        let (taken, rest) = packed.split_at_checked(count)?;
        packed = rest;
        Some(taken)
    };
    let length = u64::from_le_bytes(take(8).expect("a length").try_into().expect("8 bytes"));
    let mut bytes = vec![0; length as usize];
    while let Some(offset) = take(8) {
        let offset = u64::from_le_bytes(offset.try_into().expect("8 bytes")) as usize;
        let length = u32::from_le_bytes(take(4).expect("a length").try_into().expect("4 bytes")) as usize;
        bytes[offset..offset + length].copy_from_slice(take(length).expect("a piece"));
    }
    bytes
}

/// Of one run only, so that the fixture stays small.
fn length(fate: &str) -> usize {
    if fate == "completes" { LARGE } else { 3 }
}

/// One job, whose input says what becomes of its run.
fn job() -> Job<String, String> {
    Job::new("fixture", |step: Step, fate: String| async move {
        step.log().info("begins", json!({ "fate": &fate }));
        let first: String = step.run("first", || async { Ok(format!("first of {fate}")) }).await?;
        let large: String = step.run("large", || async { Ok("x".repeat(length(&fate))) }).await?;
        step.progress(2, 3).message("half-way");
        match fate.as_str() {
            "completes" => Ok(format!("{first}, {}", large.len())),
            "fails" => Err(JobError::from("as told")),
            _ => std::future::pending().await,
        }
    })
}

/// Makes the fixture of the format that this build writes: `cargo test --test format -- --ignored`.
#[tokio::test]
#[ignore = "writes the fixture"]
async fn write_the_fixture() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("jobs.redb");
    let durably = Durably::builder().cancel_grace(std::time::Duration::ZERO).open(&path).await.expect("opens");
    let job = durably.register(job()).expect("registers");
    let trigger = |fate: &str| job.trigger(fate.to_owned()).label("fate", fate).idempotency_key(fate);
    trigger("completes").await.expect("triggers").output().await.expect("completes");
    durably.wait_for_run(trigger("fails").await.expect("triggers").id()).await.expect_err("fails");
    for fate in ["cancelled", "executes"] {
        let run = trigger(fate).concurrency_key("key").await.expect("triggers").id();
        while durably.get_run(run).await.expect("reads").expect("there").progress.is_none() {
            tokio::task::yield_now().await;
        }
        if fate == "cancelled" {
            durably.cancel(run).await.expect("cancels");
        }
    }
    trigger("waits").concurrency_key("key").await.expect("triggers");
    fs::write(fixture(1), packed(&fs::read(&path).expect("reads"))).expect("writes");
}

#[tokio::test]
async fn p22_a_file_of_format_1_opens_and_everything_in_it_is_read() {
    let bytes = unpacked(&fs::read(fixture(1)).expect("the fixture is committed"));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("jobs.redb");
    fs::write(&path, &bytes).expect("writes");
    let found = durably::verify(&path).await.expect("reads");
    assert!(found.is_sound(), "{:?}", found.problems);

    let durably = Durably::builder().paused(true).open(&path).await.expect("opens");
    let mut runs = durably.get_runs(RunFilter::new()).await.expect("reads");
    runs.reverse();
    let fates = [
        ("completes", RunStatus::Completed, 2),
        ("fails", RunStatus::Failed, 2),
        ("cancelled", RunStatus::Cancelled, 2),
        ("executes", RunStatus::Pending, 2),
        ("waits", RunStatus::Pending, 0),
    ];
    assert_eq!(runs.len(), fates.len());
    for (run, (fate, status, count)) in runs.iter().zip(fates) {
        assert_eq!((run.input.clone(), run.status), (Some(json!(fate)), status));
        assert_eq!((run.job_name.as_str(), run.labels["fate"].as_str()), ("fixture", fate));
        assert_eq!((run.idempotency_key.as_deref(), run.completed_step_count), (Some(fate), count));
        let steps = durably.get_steps(run.id).await.expect("reads");
        let outputs: Vec<_> = steps.into_iter().map(|step| (step.name, step.output)).collect();
        let expected = [("first", json!(format!("first of {fate}"))), ("large", json!("x".repeat(length(fate))))];
        let expected = expected.map(|(name, output)| (name.to_owned(), Some(output)));
        assert_eq!(outputs, expected[..count as usize]);
        let lines = durably.get_logs(run.id).await.expect("reads");
        assert_eq!(lines.len(), usize::from(count > 0));
        assert!(lines.iter().all(|line| line.message == "begins" && line.data == json!({ "fate": fate })));
    }
    assert_eq!(runs[0].output, Some(json!(format!("first of completes, {LARGE}"))));
    assert_eq!(runs[1].error.as_ref().map(|error| error.message.as_str()), Some("as told"));
    assert_eq!((runs[3].recoveries, runs[3].concurrency_key.as_deref()), (1, Some("key")));
    let job = durably.register(job()).expect("registers");
    let again = job.trigger("completes".to_owned()).idempotency_key("completes").await.expect("triggers");
    assert_eq!(again.id(), runs[0].id);
}
