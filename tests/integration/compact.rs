//! Giving space back.

use durably::{Compaction, Durably, Error, JobHandle, RunFilter, RunStatus, SupervisorMsg, Timestamp};

use super::support::{TempFile, job_with, run_of, within, within_minutes};

const RUNS: u32 = 400;
const STEP_BYTES: usize = 10_000;

/// A file that held much more than it holds now: most of its runs are purged.
async fn purged(durably: &Durably) -> (JobHandle<u32, u32>, durably::RunId) {
    let job = job_with("job", (), |step: durably::Step, input, ()| async move {
        step.run("large", || async { Ok("x".repeat(STEP_BYTES)) }).await?;
        Ok(input)
    });
    let job = durably.register(job).expect("registers");
    job.batch_trigger(0..RUNS).await.expect("triggers");
    within_minutes(durably.run_until_idle(None)).await.expect("works");
    within(async { while Timestamp::now() <= newest(durably).await {} }).await;
    assert_eq!(durably.purge_runs(Timestamp::now()).await.expect("purges"), RUNS as usize);
    let kept = job.trigger(7).await.expect("triggers");
    assert_eq!(within(kept.output()).await.expect("completes"), 7);
    (job, kept.id())
}

/// When the last run ended.
async fn newest(durably: &Durably) -> Timestamp {
    let runs = durably.get_runs(RunFilter::new().limit(1_000)).await.expect("reads");
    runs.iter().filter_map(|run| run.completed_at).max().expect("one has ended")
}

fn length(file: &TempFile) -> u64 {
    std::fs::metadata(file.path()).expect("is there").len()
}

#[tokio::test]
async fn a_compaction_gives_space_back_and_keeps_what_is_there() {
    let file = TempFile::new();
    let durably = file.open().await;
    let (job, kept) = purged(&durably).await;
    let before = length(&file);
    let Compaction { bytes_before, bytes_after, .. } = within_minutes(durably.compact()).await.expect("compacts");
    assert_eq!((bytes_before, bytes_after), (before, length(&file)));
    assert!(bytes_after < bytes_before / 2, "{bytes_after} of {bytes_before} bytes are left");
    assert_eq!(run_of(&durably, kept).await.status, RunStatus::Completed);
    assert_eq!(durably.get_steps(kept).await.expect("reads").len(), 1);
    assert_eq!(within(job.trigger(8).await.expect("triggers").output()).await.expect("completes"), 8);
    durably.shutdown().await.expect("shuts down");
    let found = durably::verify(file.path()).await.expect("reads");
    assert!(found.is_sound() && found.runs == 2, "{:?}", found.problems);
}

#[tokio::test]
async fn a_file_is_compacted_when_it_is_opened_if_that_is_asked_for() {
    let file = TempFile::new();
    let durably = file.open().await;
    let (_, kept) = purged(&durably).await;
    durably.shutdown().await.expect("shuts down");
    let before = length(&file);
    let durably = file.open().await;
    assert!(length(&file) >= before / 2, "it is not asked for");
    durably.shutdown().await.expect("shuts down");

    let durably = file.open_with(Durably::builder().compact_on_open(true)).await;
    assert!(length(&file) < before / 2, "{} of {before} bytes are left", length(&file));
    assert_eq!(run_of(&durably, kept).await.status, RunStatus::Completed);
    durably.shutdown().await.expect("shuts down");
    assert!(durably::verify(file.path()).await.expect("reads").is_sound());
}

#[tokio::test]
async fn whoever_writes_or_reads_beside_a_compaction_waits_and_gets_its_answer() {
    let file = TempFile::new();
    let durably = file.open().await;
    let (job, kept) = purged(&durably).await;
    let compacting = async {
        for _ in 0..5 {
            durably.compact().await.expect("compacts");
        }
    };
    let writing = async {
        for n in 0..50 {
            assert_eq!(job.trigger(n).await.expect("triggers").output().await.expect("completes"), n);
        }
    };
    let reading = async {
        for _ in 0..200 {
            assert_eq!(run_of(&durably, kept).await.status, RunStatus::Completed);
            assert!(!durably.get_runs(RunFilter::new().status(RunStatus::Completed)).await.expect("reads").is_empty());
        }
    };
    within_minutes(async { tokio::join!(compacting, writing, reading) }).await;
    let backup = file.beside("copy.redb");
    let (copied, compacted) = tokio::join!(durably.backup(&backup), durably.compact());
    assert!(copied.expect("copies").is_sound());
    assert!(matches!(compacted, Ok(_) | Err(Error::CompactionBlocked { .. })), "{compacted:?}");
    durably.shutdown().await.expect("shuts down");
    assert!(durably::verify(file.path()).await.expect("reads").is_sound());
}

#[tokio::test]
async fn a_compaction_can_be_asked_for_by_message() {
    let durably = Durably::in_memory().await.expect("opens");
    purged(&durably).await;
    let (port, reply) = tokio::sync::oneshot::channel();
    let actor = durably.actor_ref().expect("runs");
    actor.send_message(SupervisorMsg::Compact(port.into())).expect("is there");
    let Compaction { bytes_before, bytes_after, .. } = within_minutes(reply).await.expect("answers").expect("compacts");
    assert!(bytes_after < bytes_before / 2, "{bytes_after} of {bytes_before} bytes are left");
}
