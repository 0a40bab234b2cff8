//! Reading runs.

use durably::{Durably, Error, JobError, JobHandle, Run, RunFilter, RunId, RunStatus};
use redb::ReadableTable;
use serde_json::json;

use super::support::{
    Gate, ManualClock, TempFile, change, echo, failing, gated, job_with, memory, paused, run_of, within,
};

fn ids(runs: &[Run]) -> Vec<RunId> {
    runs.iter().map(|run| run.id).collect()
}

async fn find(durably: &Durably, filter: RunFilter) -> Vec<RunId> {
    ids(&durably.get_runs(filter).await.expect("reads"))
}

/// This many runs, newest first.
async fn runs_of(job: &JobHandle<u32, u32>, count: u32) -> Vec<RunId> {
    let runs = job.batch_trigger(0..count).await.expect("triggers");
    runs.iter().rev().map(|run| run.id()).collect()
}

#[tokio::test]
async fn p_query_01_a_run_is_found_by_its_id_and_by_its_own_jobs_handle() {
    let durably = paused().await;
    let (one, two) = durably.register((echo("one"), echo("two"))).expect("registers");
    let run = one.trigger(1).await.expect("triggers").id();
    assert_eq!(run_of(&durably, run).await.job_name, "one");
    assert!(one.get_run(run).await.expect("reads").is_some());
    assert_eq!(two.get_run(run).await.expect("reads"), None);
    let unknown: RunId = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("is an id");
    assert_eq!(durably.get_run(unknown).await.expect("reads"), None);
    assert_eq!(one.get_run(unknown).await.expect("reads"), None);
}

#[tokio::test]
async fn p_query_02_statuses_and_jobs_are_alternatives_and_everything_combines_with_and() {
    let durably = memory().await;
    let (good, bad, other) = durably.register((echo("good"), failing("bad", "no"), echo("other"))).expect("registers");
    let done = good.trigger(1).label("n", "1").await.expect("triggers").id();
    let failed = bad.trigger(2).label("n", "1").await.expect("triggers").id();
    within(durably.run_until_idle(None)).await.expect("works");
    within(durably.stop()).await.expect("stops");
    let waiting = good.trigger(3).await.expect("triggers").id();
    let elsewhere = other.trigger(4).label("n", "1").await.expect("triggers").id();
    let all = RunFilter::new;
    assert_eq!(find(&durably, all()).await, [elsewhere, waiting, failed, done]);
    assert_eq!(find(&durably, all().status(RunStatus::Failed)).await, [failed]);
    assert_eq!(find(&durably, all().status(RunStatus::Failed).status(RunStatus::Completed)).await, [failed, done]);
    assert_eq!(find(&durably, all().statuses([RunStatus::Pending])).await, [elsewhere, waiting]);
    assert_eq!(find(&durably, all().statuses([])).await.len(), 4, "an empty list is no filter");
    assert_eq!(find(&durably, all().job("good").job("bad")).await, [waiting, failed, done]);
    assert_eq!(find(&durably, all().job("unknown")).await, []);
    assert_eq!(find(&durably, all().job("unknown").job("bad")).await, [failed]);
    assert_eq!(find(&durably, all().job("good").status(RunStatus::Completed).label("n", "1")).await, [done]);
    assert_eq!(find(&durably, all().job("good").status(RunStatus::Failed)).await, []);
    assert_eq!(find(&durably, all().status(RunStatus::Suspended)).await, []);
}

/// Newest first by id, which P-QUERY-03 lacks within a millisecond.
#[tokio::test]
async fn p_query_03_runs_of_one_millisecond_come_newest_first() {
    let clock = ManualClock::new();
    let durably = Durably::builder().paused(true).clock(clock).in_memory().await.expect("opens");
    let job = durably.register(echo("job")).expect("registers");
    let mut wanted = runs_of(&job, 20).await;
    assert!(wanted.is_sorted_by(|a, b| a > b));
    assert_eq!(find(&durably, RunFilter::new()).await, wanted);
    wanted.truncate(7);
    assert_eq!(find(&durably, RunFilter::new().limit(7)).await, wanted);
}

/// The default is 100, the most 1,000.
#[tokio::test]
async fn p_query_04_a_page_has_100_runs_unless_told_and_1000_at_most() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let all = runs_of(&job, 1_001).await;
    assert_eq!(find(&durably, RunFilter::new()).await, all[..100]);
    assert_eq!(find(&durably, RunFilter::new().limit(1_000)).await, all[..1_000]);
    let refused = durably.get_runs(RunFilter::new().limit(1_001)).await;
    assert!(matches!(refused, Err(Error::TooMany { count: 1_001, count_max: 1_000, .. })), "{refused:?}");
}

#[tokio::test]
async fn p_query_05_a_limit_of_none_and_an_offset_beyond_the_end_give_nothing() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let all = runs_of(&job, 5).await;
    assert_eq!(find(&durably, RunFilter::new().limit(0)).await, []);
    assert_eq!(find(&durably, RunFilter::new().offset(5)).await, []);
    assert_eq!(find(&durably, RunFilter::new().offset(3)).await, all[3..]);
    assert_eq!(find(&durably, RunFilter::new().offset(1).limit(2)).await, all[1..3]);
    assert_eq!(find(&durably, RunFilter::new().job("job").offset(10_000)).await, []);
    let refused = durably.get_runs(RunFilter::new().offset(10_001)).await;
    assert!(matches!(refused, Err(Error::TooMany { count: 10_001, count_max: 10_000, .. })), "{refused:?}");
}

#[tokio::test]
async fn p_query_06_a_handle_finds_only_runs_of_its_job() {
    let durably = paused().await;
    let (one, two) = durably.register((echo("one"), echo("two"))).expect("registers");
    let run = one.trigger(1).await.expect("triggers").id();
    two.trigger(1).await.expect("triggers");
    assert_eq!(ids(&one.get_runs(RunFilter::new().job("two")).await.expect("reads")), [run]);
}

/// `.after(id)` as cursor, which does not shift under new and deleted runs.
#[tokio::test]
async fn p_query_07_a_cursor_goes_on_where_the_page_before_ended() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let mut all = runs_of(&job, 6).await;
    durably.shutdown().await.expect("closes");
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    all.splice(0..0, runs_of(&job, 6).await);
    for filter in [RunFilter::new(), RunFilter::new().job("job"), RunFilter::new().status(RunStatus::Pending)] {
        let (mut found, mut page) = (Vec::new(), filter.clone().limit(5));
        for count in [5, 5, 2, 0] {
            let runs = find(&durably, page.clone()).await;
            assert_eq!(runs.len(), count, "{filter:?}");
            page = runs.last().map_or(page, |last| filter.clone().limit(5).after(*last));
            found.extend(runs);
        }
        assert_eq!(found, all, "{filter:?}");
    }
    let page = find(&durably, RunFilter::new().limit(3)).await;
    runs_of(&job, 4).await;
    durably.cancel(page[2]).await.expect("cancels");
    durably.delete_run(page[2]).await.expect("deletes");
    assert_eq!(find(&durably, RunFilter::new().after(page[2]).limit(2)).await, all[3..5], "the run itself may be gone");
}

#[tokio::test]
async fn without_payloads_inputs_and_outputs_are_left_out() {
    let durably = memory().await;
    let job = durably.register(echo("job")).expect("registers");
    let id = within(job.trigger_and_wait(5).label("n", "1")).await.expect("completes").id;
    let mut with = durably.get_runs(RunFilter::new()).await.expect("reads").remove(0);
    assert_eq!((&with.input, &with.output), (&Some(json!(5)), &Some(json!(5))));
    let without = durably.get_runs(RunFilter::new().without_payloads()).await.expect("reads").remove(0);
    assert_eq!(without.id, id);
    (with.input, with.output) = (None, None);
    assert_eq!(without, with);
    assert!(matches!(without.output_as::<u32>(), Err(Error::Decode { what: "output", .. })));
}

/// Every read sees what was acknowledged before it began.
#[tokio::test]
async fn every_read_sees_what_was_acknowledged_before_it() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    for n in 0..50 {
        let run = job.trigger(n).label("n", n.to_string()).await.expect("triggers").id();
        assert_eq!(find(&durably, RunFilter::new().limit(1)).await, [run]);
        assert_eq!(find(&durably, RunFilter::new().label("n", n.to_string())).await, [run]);
        assert_eq!(run_of(&durably, run).await.status, RunStatus::Pending);
        if n % 2 == 0 {
            durably.cancel(run).await.expect("cancels");
            assert_eq!(find(&durably, RunFilter::new().status(RunStatus::Cancelled).limit(1)).await, [run]);
            durably.delete_run(run).await.expect("deletes");
            assert_eq!(durably.get_run(run).await.expect("reads"), None);
            assert_eq!(find(&durably, RunFilter::new().label("n", n.to_string())).await, []);
        }
    }
    let counts = durably.stats().await.expect("reads").jobs.remove(0);
    assert_eq!((counts.count(RunStatus::Pending), counts.count(RunStatus::Cancelled)), (25, 0));
}

#[tokio::test]
async fn leased_and_pending_runs_are_told_apart_also_after_a_crash() {
    let file = TempFile::new();
    let durably = file.open_with(Durably::builder().max_concurrent_runs(3)).await;
    let gate = Gate::new();
    let job = durably.register(gated("job", &gate)).expect("registers");
    let runs = runs_of(&job, 9).await;
    within(gate.reached_by(3)).await;
    let status = |status| RunFilter::new().status(status);
    assert_eq!(find(&durably, status(RunStatus::Leased)).await, runs[6..]);
    assert_eq!(find(&durably, status(RunStatus::Pending)).await, runs[..6]);
    assert_eq!(find(&durably, status(RunStatus::Pending).status(RunStatus::Leased)).await, runs);
    assert_eq!(find(&durably, status(RunStatus::Leased).limit(2)).await, runs[6..8]);
    assert_eq!(find(&durably, status(RunStatus::Leased).after(runs[7])).await, runs[8..]);
    assert_eq!(find(&durably, status(RunStatus::Pending).after(runs[4]).limit(9)).await, runs[5..6]);
    drop((job, durably));

    let durably = file.open_with(Durably::builder().paused(true).lock_wait(std::time::Duration::from_secs(10))).await;
    assert_eq!(find(&durably, status(RunStatus::Leased)).await, []);
    assert_eq!(find(&durably, status(RunStatus::Pending)).await, runs);
    let counts = durably.stats().await.expect("reads").jobs.remove(0);
    assert_eq!((counts.count(RunStatus::Pending), counts.count(RunStatus::Leased)), (9, 0));
}

#[tokio::test]
async fn a_search_ends_whatever_a_damaged_key_of_an_index_says() {
    let file = TempFile::new();
    let durably = file.open().await;
    let job = durably.register(echo("job")).expect("registers");
    within(job.trigger_and_wait(1)).await.expect("completes");
    durably.shutdown().await.expect("closes");
    change::<&[u8]>(&file, "by_status", |table| {
        let completed = table.first().expect("reads").expect("the run").0.value()[0];
        // Before every run, and it ends in the greatest of all.
        let damaged = [&[completed, 0][..], &[0xff; 16]].concat();
        table.insert(&damaged[..], &b""[..]).expect("inserts");
    });

    let durably = file.open_paused().await;
    let completed = RunFilter::new().status(RunStatus::Completed);
    let found = within(durably.get_runs(completed.clone())).await;
    assert!(matches!(&found, Err(Error::Corrupted { table: "by_status", key, .. }) if key.len() == 36), "{found:?}");
    let cancelled = within(durably.cancel_where(completed)).await;
    assert!(matches!(cancelled, Err(Error::Corrupted { table: "by_status", .. })), "{cancelled:?}");
}

/// Small ones stand with their run's state, larger ones in a row of their own, the largest in one of several pages.
#[tokio::test]
async fn an_output_of_any_size_is_read_until_its_run_is_deleted() {
    let file = TempFile::new();
    let durably = file.open().await;
    let job = job_with("job", (), |_, size, ()| async move { Ok("x".repeat(size as usize)) });
    let job = durably.register(job).expect("registers");
    let mut runs = Vec::new();
    for size in [0, 1_000, 1_022, 1_023, 5_000, 40_000] {
        let run = job.trigger(size).await.expect("triggers");
        assert_eq!(within(run.output()).await.expect("completes").len(), size as usize);
        runs.push((run.id(), json!("x".repeat(size as usize))));
    }
    durably.shutdown().await.expect("shuts down");
    let found = durably::verify(file.path()).await.expect("reads");
    assert!(found.is_sound(), "{:?}", found.problems);

    let durably = file.open().await;
    for (run, output) in &runs {
        assert_eq!(run_of(&durably, *run).await.output.as_ref(), Some(output));
        durably.delete_run(*run).await.expect("deletes");
    }
    durably.shutdown().await.expect("shuts down");
    let found = durably::verify(file.path()).await.expect("reads");
    assert!(found.is_sound() && found.blobs == 0, "{:?}", found.problems);
}

/// Bodies go on while the writer is still at work on what they were answered: whoever looks waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_step_was_answered_is_there_when_its_body_looks() {
    const STEPS: u32 = 30;
    let file = TempFile::new();
    let durably = file.open().await;
    let job = job_with("job", durably.clone(), |step, _, durably: Durably| async move {
        for number in 0..STEPS {
            step.run(("step", number), || async { Ok(number) }).await?;
            let run = run_of(&durably, step.run_id()).await;
            if run.current_step_index != number + 1 {
                return Err(JobError::msg(format!("after step {number} it has {}", run.current_step_index)));
            }
        }
        Ok(())
    });
    let job = durably.register(job).expect("registers");
    let runs = job.batch_trigger(0..64).await.expect("triggers");
    for run in runs {
        within(run.output()).await.expect("completes");
    }
    durably.shutdown().await.expect("shuts down");
}
