//! Copies while work goes on.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use durably::{Durably, Error, Job, RunFilter, RunStatus, Step};

use crate::support::*;

fn counting() -> Job<u64, u64> {
    Job::new("count", |step: Step, n: u64| async move {
        for at in 0..3u64 {
            step.run(("s", at), || async { Ok(n * 10 + at) }).await?;
        }
        Ok(n)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p25_a_backup_under_load_restores_to_a_prefix_of_history() {
    let file = TempFile::new();
    let durably = Durably::open(file.path()).await.expect("opens");
    // Some values have rows of their own, for their size.
    let job = durably.register(Job::new("count", |step: Step, n: u64| async move {
        for at in 0..3u64 {
            let digits = if n % 4 == at { 20_000 } else { 20 };
            step.run(("s", at), || async { Ok("7".repeat(digits)) }).await?;
        }
        Ok(n)
    }));
    let job = job.expect("registers");
    let stop = durably::CancellationToken::new();
    let (acked, mut known) = tokio::sync::watch::channel(0u64);
    let load = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut n = 0;
            while !stop.is_cancelled() {
                n += 1;
                job.trigger(n).label("pad", "x".repeat(200)).idempotency_key(format!("k{n}")).await.expect("triggers");
                acked.send_replace(n);
            }
        }
    });
    let mut large = 0;
    for round in 0..8 {
        let floor = *known.wait_for(|n| *n > round * 3).await.expect("load goes on");
        let copy = file.beside(&format!("copy-{round}"));
        let found = durably.backup(&copy).await.expect("is copied");
        assert!(found.is_sound(), "{:?}", found.problems);
        let again = durably::verify(&copy).await.expect("reads");
        assert_eq!(again, found);

        let restored = Durably::builder().paused(true).open(&copy).await.expect("opens");
        let mut runs = Vec::new();
        let mut filter = RunFilter::new().limit(1_000);
        loop {
            let page = restored.get_runs(filter.clone()).await.expect("reads");
            let Some(last) = page.last() else { break };
            filter = RunFilter::new().limit(1_000).after(last.id);
            runs.extend(page);
        }
        // All up to one, and none after it: ids are in the order of commits.
        let inputs: Vec<u64> = runs.iter().rev().filter_map(|run| run.input.as_ref()?.as_u64()).collect();
        assert_eq!(inputs, (1..=inputs.len() as u64).collect::<Vec<_>>());
        assert!(inputs.len() as u64 >= floor, "{} runs, and {floor} were acknowledged before", inputs.len());
        for run in runs.iter().filter(|run| run.status == RunStatus::Completed) {
            let steps = restored.get_steps(run.id).await.expect("reads");
            assert_eq!(steps.len(), 3);
            large += steps
                .iter()
                .filter(|step| step.output.as_ref().is_some_and(|text| text.to_string().len() > 20_000))
                .count();
        }
        restored.shutdown().await.expect("closes");
    }
    assert!(large > 0, "no copy had a large value");
    stop.cancel();
    load.await.expect("load ends");
    durably.shutdown().await.expect("closes");
}

#[tokio::test]
async fn a_backup_replaces_nothing() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let taken = file.beside("taken");
    fs::write(&taken, b"precious").expect("writes");
    for path in [taken.clone(), file.path()] {
        let refused = durably.backup(&path).await;
        let is_taken =
            |error: &Error| matches!(error, Error::Open { source, .. } if source.kind() == ErrorKind::AlreadyExists);
        assert!(refused.as_ref().is_err_and(is_taken), "{refused:?}");
    }
    assert_eq!(fs::read(&taken).expect("reads"), b"precious");
    let nowhere = durably.backup(file.beside("no/such/directory")).await;
    assert!(matches!(nowhere, Err(Error::Open { .. })), "{nowhere:?}");
}

#[tokio::test]
async fn a_backup_that_is_dropped_leaves_nothing_or_a_whole_copy() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(counting()).expect("registers");
    job.batch_trigger(1..500u64).await.expect("triggers");
    for micros in [0, 50, 500, 5_000, 20_000] {
        let copy = file.beside(&format!("copy-{micros}"));
        drop(tokio::time::timeout(Duration::from_micros(micros), durably.backup(&copy)).await);
        // A copy made after it is whole, whatever became of the first.
        let whole = file.beside(&format!("whole-{micros}"));
        durably.backup(&whole).await.expect("is copied");
        if copy.exists() {
            assert!(durably::verify(&copy).await.expect("reads").is_sound());
        }
    }
}
