//! Progress: told at once, coalesced on its way to the disk, kept after the end.

use durably::{EventKind, LogRetention, Progress, Step};

use crate::support::{Gate, TempFile, ended, job_with, memory, next_event, run_of, within};

fn shown(progress: Option<Progress>) -> serde_json::Value {
    serde_json::to_value(progress).unwrap()
}

#[tokio::test]
async fn p_prog_01_progress_is_told_stored_and_stays_after_the_end() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, _, ()| async move {
            step.progress(1, None);
            step.progress(2, 9).message("half");
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let run = jobs.trigger(0).await.unwrap();
        let mut told = Vec::new();
        for _ in 0..2 {
            let event = next_event(&mut events, |event| event.kind.name() == "run:progress").await;
            assert_eq!((event.run_id, event.committed), (run.id(), false));
            let EventKind::RunProgress { progress } = &event.kind else { panic!("{event:?}") };
            told.push(shown(Some(progress.clone())));
        }
        // What was not given is absent.
        assert_eq!(
            told,
            [serde_json::json!({"current": 1}), serde_json::json!({"current": 2, "total": 9, "message": "half"})]
        );
        let record = ended(&durably, run.id()).await;
        assert_eq!(shown(record.progress), told[1]);
    })
    .await;
}

#[tokio::test]
async fn p_prog_04_nothing_is_told_after_a_cancel() {
    within(async {
        let durably = memory().await;
        let (gate, done) = (Gate::new(), Gate::new());
        let job = job_with("job", (gate.clone(), done.clone()), |step: Step, _, (gate, done)| async move {
            let cancelled = step.cancelled();
            step.progress(1, 2);
            drop(gate.enter());
            cancelled.cancelled().await;
            step.progress(2, 2).message("late");
            step.log().info("late", ());
            drop(done.enter());
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        let mut events = durably.events();
        run.cancel().await.unwrap();
        done.reached().await;
        durably.stop().await.unwrap();
        durably.delete_run(run.id()).await.unwrap();
        let mut names = Vec::new();
        while names.last() != Some(&"run:delete") {
            names.push(events.next().await.unwrap().event().unwrap().kind.name());
        }
        assert_eq!(names, ["run:cancel", "run:delete"]);
    })
    .await;
}

#[tokio::test]
async fn p_prog_06_progress_works_in_and_outside_of_steps_and_the_last_wins() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, _, ()| async move {
            step.progress(1, 3);
            step.run("a", || async {
                step.progress(3, 3);
                step.progress(2, 3);
                Ok(())
            })
            .await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        let record = ended(&durably, run.id()).await;
        assert_eq!(record.progress.unwrap().current, 2);
    })
    .await;
}

#[tokio::test]
async fn p_prog_07_progress_rides_on_commits_that_are_made_anyway() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            gate.pass().await;
            for n in 0..5_000 {
                step.progress(n, 5_000);
            }
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        let before = durably.stats().await.unwrap().commits;
        gate.open();
        run.output().await.unwrap();
        assert_eq!(durably.stats().await.unwrap().commits - before, 1);
        assert_eq!(run_of(&durably, run.id()).await.progress.unwrap().current, 4_999);
    })
    .await;
}

#[tokio::test]
async fn progress_goes_to_the_disk_within_a_second_without_a_commit_to_ride_on() {
    within(async {
        let file = TempFile::new();
        let durably = file.open_with(durably::Durably::builder().keep_logs(LogRetention::WithRun)).await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            if gate.arrivals() == 0 {
                step.progress(7, None);
                step.log().warn("hello", ());
            }
            gate.pass().await;
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap().id();
        gate.reached().await;
        while run_of(&durably, run).await.progress.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(durably.get_logs(run).await.unwrap().len(), 1);
        // It survives a crash from there on.
        drop((jobs, durably));
        let durably = file.open_paused().await;
        assert_eq!(run_of(&durably, run).await.progress.unwrap().current, 7);
        assert_eq!(durably.get_logs(run).await.unwrap()[0].message, "hello");
    })
    .await;
}
