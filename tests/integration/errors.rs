//! What a caller learns from an error.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::time::Duration;

use durably::{Advice, Durably, Error, JobError, RunId, RunStatus};

use super::support::{echo, failing, memory, paused, within};

fn run() -> RunId {
    "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("is an id")
}

/// Every error that a caller can make by hand, with its advice and its text.
fn errors() -> Vec<(Error, Advice, &'static str)> {
    let path = || PathBuf::from("/data/jobs.redb");
    let io = || std::io::Error::new(std::io::ErrorKind::PermissionDenied, "permission denied");
    vec![
        (Error::RunNotFound { run: run() }, Advice::Change, "run not found: 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        (Error::JobNotFound { name: "j".into() }, Advice::Change, "unknown job: j"),
        (
            Error::JobAlreadyRegistered { name: "j".into() },
            Advice::Change,
            "job j is already registered with a different definition",
        ),
        (
            Error::InvalidSchema { job: "j".into(), side: "input", message: "m".into() },
            Advice::Change,
            "the input schema of job j can't be used: m",
        ),
        (
            Error::InvalidInput { path: "/items/3/qty".into(), rule: "maximum".into(), message: "m".into() },
            Advice::Change,
            "invalid input at /items/3/qty: m",
        ),
        (
            Error::InvalidInput { path: String::new(), rule: "type".into(), message: "m".into() },
            Advice::Change,
            "invalid input: m",
        ),
        (
            Error::Item { index: 1, error: Box::new(Error::JobNotFound { name: "j".into() }) },
            Advice::Change,
            "at index 1: unknown job: j",
        ),
        (
            Error::Item { index: 1, error: Box::new(Error::Indeterminate) },
            Advice::Retry,
            "at index 1: outcome unknown: the file failed during the commit and did not come back in time",
        ),
        (
            Error::InvalidOption { option: "limit", value: "0".into(), rule: "at least 1" },
            Advice::Change,
            "invalid limit \"0\": must be at least 1",
        ),
        (
            Error::TooLarge { what: "input", bytes: 2, bytes_max: 1 },
            Advice::Change,
            "input of 2 bytes is over the limit of 1",
        ),
        (
            Error::TooMany { what: "labels", count: 65, count_max: 64 },
            Advice::Change,
            "65 labels are over the limit of 64",
        ),
        (
            Error::Conflict { action: "cancel", run: run(), status: RunStatus::Failed },
            Advice::Change,
            "cannot cancel failed run: 01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ),
        (
            Error::KeyConflict { run: None, key: "k".into() },
            Advice::Change,
            "a run of the same job already waits for concurrency key \"k\"",
        ),
        (
            Error::IdempotencyMismatch { key: "k".into(), run: Some(run()) },
            Advice::Change,
            "idempotency key \"k\" belongs to run 01ARZ3NDEKTSV4RRFFQ69G5FAV, which has another input",
        ),
        (
            Error::IdempotencyMismatch { key: "k".into(), run: None },
            Advice::Change,
            "idempotency key \"k\" belongs to an earlier item of the batch, which has another input",
        ),
        (
            Error::Overloaded { waited: Duration::from_secs(1) },
            Advice::Retry,
            "overloaded: no room among the writes that wait for the disk within 1s",
        ),
        (
            Error::Indeterminate,
            Advice::Retry,
            "outcome unknown: the file failed during the commit and did not come back in time",
        ),
        (Error::RunCancelled { run: run() }, Advice::Change, "run was cancelled: 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        (
            Error::WaitTimeout { run: run(), timeout: Duration::from_secs(2) },
            Advice::Retry,
            "waited longer than 2s for run 01ARZ3NDEKTSV4RRFFQ69G5FAV, which goes on",
        ),
        (
            Error::WouldDeadlock { run: run() },
            Advice::Change,
            "waiting for run 01ARZ3NDEKTSV4RRFFQ69G5FAV inside a body could never end: it needs a key or a slot that \
             waiting bodies hold",
        ),
        (
            Error::Decode { what: "output", path: "/a".into(), message: "m".into() },
            Advice::Change,
            "output does not fit at /a: m",
        ),
        (
            Error::Corrupted { table: "runs", key: "00".into(), reason: "r" },
            Advice::Change,
            "row 00 of table runs is corrupted: r",
        ),
        (
            Error::AlreadyOpen { path: path() },
            Advice::Retry,
            "/data/jobs.redb is already open, in this process or another",
        ),
        (Error::NotADatabase { path: path(), reason: "r" }, Advice::Change, "/data/jobs.redb is not a durably file: r"),
        (
            Error::NewerFormat { path: path(), found: 2, supported: 1 },
            Advice::Finished,
            "/data/jobs.redb has format 2, this version reads up to 1: open it with a newer version",
        ),
        (
            Error::Damaged { path: path(), message: "m".into() },
            Advice::Finished,
            "/data/jobs.redb is damaged: m; restore it from a copy",
        ),
        (Error::Open { path: path(), action: "create", source: io() }, Advice::Change, "cannot create /data/jobs.redb"),
        (Error::Storage(Box::new(io())), Advice::Retry, "the file can't be read"),
        (Error::ShutDown, Advice::Finished, "the runtime is shut down"),
        (Error::NoRuntime, Advice::Finished, "no tokio runtime: durably is opened inside one"),
    ]
}

#[test]
fn p_err_01_03_every_error_is_typed_reads_well_and_advises() {
    for (error, advice, text) in errors() {
        assert_eq!(error.advice(), advice, "{error:?}");
        assert_eq!(error.to_string(), text);
    }
}

/// One concrete error that is `Send + Sync + 'static` and keeps its source.
#[test]
fn errors_cross_threads_and_keep_their_source() {
    fn crosses<E: StdError + Send + Sync + 'static>() {}
    crosses::<Error>();
    for (error, _, text) in errors() {
        let has_source = matches!(error, Error::Open { .. } | Error::Storage(_));
        assert_eq!(error.source().is_some(), has_source, "{error:?}");
        if let Some(source) = error.source() {
            assert_eq!(source.to_string(), "permission denied");
            assert!(!text.contains("permission denied"), "the source is not said twice");
        }
        // As a body that triggers other runs gets it.
        let inside: JobError = error.into();
        assert_eq!(inside.message(), text);
    }
}

#[tokio::test]
async fn p_err_02_how_a_waited_for_run_ended_is_told_by_type() {
    let durably = memory().await;
    let (good, bad) = durably.register((echo("good"), failing("bad", "broken"))).expect("registers");
    let failed = within(bad.trigger_and_wait(1)).await;
    let Err(error @ Error::RunFailed { run }) = &failed else { panic!("{failed:?}") };
    assert_eq!((error.to_string().as_str(), error.advice()), ("run failed: broken", Advice::Change));
    assert_eq!(run.status, RunStatus::Failed);
    within(durably.stop()).await.expect("stops");
    let run = good.trigger(1).await.expect("triggers");
    run.cancel().await.expect("cancels");
    let cancelled = within(run.output()).await.expect_err("is cancelled");
    assert_eq!(cancelled.to_string(), format!("run was cancelled: {}", run.id()));
}

#[tokio::test]
async fn what_is_not_there_is_said_so_by_every_call() {
    let durably = paused().await;
    let not_found = |error: Error| matches!(error, Error::RunNotFound { run: named } if named == run());
    assert!(not_found(durably.cancel(run()).await.expect_err("is not there")));
    assert!(not_found(durably.resume(run()).await.expect_err("is not there")));
    assert!(not_found(durably.retrigger(run()).await.expect_err("is not there")));
    assert!(not_found(durably.delete_run(run()).await.expect_err("is not there")));
    assert!(not_found(within(durably.wait_for_run(run())).await.expect_err("is not there")));
    assert!(not_found(durably.subscribe(run()).await.expect_err("is not there")));
}

#[tokio::test]
async fn a_runtime_that_is_shut_down_says_so() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let waiting = job.trigger(1).await.expect("triggers");
    within(durably.shutdown()).await.expect("closes");
    let triggered = job.trigger(2).await;
    assert!(matches!(triggered, Err(Error::ShutDown)), "{triggered:?}");
    let read = durably.get_run(waiting.id()).await;
    assert!(matches!(read, Err(Error::ShutDown)), "{read:?}");
    let cancelled = durably.cancel(waiting.id()).await;
    assert!(matches!(cancelled, Err(Error::ShutDown)), "{cancelled:?}");
    let waited = within(waiting.output()).await;
    assert!(matches!(waited, Err(Error::ShutDown)), "{waited:?}");
    assert!(matches!(durably.stats().await, Err(Error::ShutDown)));
    assert!(matches!(durably.start().await, Err(Error::ShutDown)));
    within(durably.shutdown()).await.expect("does nothing");
}

#[tokio::test]
async fn p_num_02_settings_out_of_their_range_are_refused() {
    let refused = async |builder: durably::Builder| builder.in_memory().await.expect_err("is out of range");
    for (builder, option) in [
        (Durably::builder().max_concurrent_runs(0), "max_concurrent_runs"),
        (Durably::builder().max_concurrent_runs(65_537), "max_concurrent_runs"),
        (Durably::builder().payload_bytes_max(0), "payload_bytes_max"),
        (Durably::builder().payload_bytes_max((64 << 20) + 1), "payload_bytes_max"),
        (Durably::builder().cache_bytes((1 << 20) - 1), "cache_bytes"),
        (Durably::builder().cache_bytes((1 << 40) + 1), "cache_bytes"),
        (Durably::builder().blocking_threads(0), "blocking_threads"),
        (Durably::builder().blocking_threads(4_097), "blocking_threads"),
    ] {
        let error = refused(builder).await;
        assert!(matches!(error, Error::InvalidOption { option: named, .. } if named == option), "{error:?}");
    }
    for builder in [
        Durably::builder().max_concurrent_runs(1).payload_bytes_max(1).cache_bytes(1 << 20).blocking_threads(1),
        Durably::builder().max_concurrent_runs(65_536).payload_bytes_max(64 << 20).blocking_threads(4_096),
    ] {
        builder.in_memory().await.expect("is in range");
    }
}
