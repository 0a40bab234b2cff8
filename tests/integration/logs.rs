//! Log lines: in order, of the right step, bounded, kept as told.

use durably::limits::{LOG_BYTES_MAX, LOG_LINES_MAX};
use durably::{Durably, EventKind, LogLevel, LogRetention, Step};
use serde_json::json;

use crate::support::{Count, Gate, ended, job_with, memory, next_event, within};

#[tokio::test]
async fn p_log_01_04_lines_are_told_and_stored_in_order() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, _, ()| async move {
            step.log().info("one", ());
            step.log().warn("two", json!({"n": 2}));
            step.log().error("three", [3]);
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let run = jobs.trigger(0).label("a", "b").await.unwrap().id();
        let wanted = [
            (LogLevel::Info, "one", json!(null)),
            (LogLevel::Warn, "two", json!({"n": 2})),
            (LogLevel::Error, "three", json!([3])),
        ];
        for (level, message, data) in &wanted {
            let event = next_event(&mut events, |event| event.kind.name() == "log:write").await;
            assert_eq!((event.run_id, &*event.job_name, event.labels["a"].as_str()), (run, "job", "b"));
            let told =
                EventKind::LogWritten { step: None, level: *level, message: (*message).to_owned(), data: data.clone() };
            assert_eq!(event.kind, told);
        }
        ended(&durably, run).await;
        let lines = durably.get_logs(run).await.unwrap();
        assert_eq!(lines.len(), 3);
        for (number, (line, (level, message, data))) in lines.iter().zip(&wanted).enumerate() {
            assert_eq!((line.run_id, line.number as usize, line.level), (run, number, *level));
            assert_eq!((line.message.as_str(), &line.data, &line.step_name), (*message, data, &None));
        }
        assert!(lines.is_sorted_by_key(|line| line.created_at));
    })
    .await;
}

#[tokio::test]
async fn p_log_02_lines_of_steps_side_by_side_are_told_apart() {
    within(async {
        let durably = memory().await;
        let (a, b) = (Gate::new(), Gate::new());
        let job = job_with("job", (a, b), |step: Step, _, (a, b)| async move {
            step.log().info("before", ());
            let first = step.run("first", || async {
                step.log().info("in first", ());
                drop(a.enter());
                b.reached().await;
                step.log().info("in first", ());
                Ok(())
            });
            let second = step.run_with("second", |cx| {
                let (step, a, b) = (step.clone(), a.clone(), b.clone());
                async move {
                    a.reached().await;
                    step.log().info("in second", ());
                    drop(b.enter());
                    tokio::task::yield_now().await;
                    cx.log().info("in second", ());
                    Ok(())
                }
            });
            let (first, second) = tokio::join!(first, second);
            first.and(second)?;
            let thread_log = step.clone();
            step.run_blocking("blocking", move || {
                thread_log.log().info("in blocking", ());
                Ok(())
            })
            .await?;
            step.log().info("after", ());
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let lines = durably.get_logs(run.id()).await.unwrap();
        assert_eq!(lines.len(), 7);
        for line in lines {
            let step = line.message.strip_prefix("in ").map(str::to_owned);
            assert_eq!(line.step_name, step, "{}", line.message);
        }
    })
    .await;
}

#[tokio::test]
async fn p_log_05_lines_are_kept_as_told() {
    within(async {
        let kept = [(LogRetention::WithRun, 1), (LogRetention::UntilTerminal, 0), (LogRetention::Off, 0)];
        for (retention, kept) in kept {
            let durably = Durably::builder().keep_logs(retention).in_memory().await.unwrap();
            let gate = Gate::new();
            let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
                step.log().info("hello", ());
                step.run("flush", || async { Ok(()) }).await?;
                gate.pass().await;
                if input == 0 { Err("no".into()) } else { Ok(()) }
            });
            let jobs = durably.register(job).unwrap();
            let mut events = durably.events();
            let runs = jobs.batch_trigger([0, 1, 2]).await.unwrap();
            next_event(&mut events, |event| event.kind.name() == "log:write").await;
            gate.reached_by(3).await;
            let before = usize::from(retention != LogRetention::Off);
            assert_eq!(durably.get_logs(runs[2].id()).await.unwrap().len(), before, "{retention:?}");
            runs[2].cancel().await.unwrap();
            gate.open();
            for run in &runs {
                ended(&durably, run.id()).await;
                assert_eq!(durably.get_logs(run.id()).await.unwrap().len(), kept, "{retention:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_run_keeps_the_lines_that_were_written_before() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            step.log().info("last words", ());
            gate.pass().await;
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        durably.stop().await.unwrap();
        let lines = durably.get_logs(run.id()).await.unwrap();
        assert_eq!(lines.iter().map(|line| line.message.as_str()).collect::<Vec<_>>(), ["last words"]);
    })
    .await;
}

#[tokio::test]
async fn a_run_keeps_its_newest_ten_thousand_lines_and_the_numbers_show_what_went() {
    within(async {
        let durably = memory().await;
        // In one go, and with a commit now and then.
        for pause in [None, Some(3_000)] {
            let name = format!("job-{}", pause.is_some());
            let job = job_with(&name, (), move |step: Step, lines, ()| async move {
                for n in 0..lines {
                    step.log().info(n.to_string(), ());
                    if pause.is_some_and(|pause| n % pause == 0) {
                        step.run(("flush", n), || async { Ok(()) }).await?;
                    }
                }
                Ok(())
            });
            let jobs = durably.register(job).unwrap();
            let run = jobs.trigger(25_003).await.unwrap();
            run.output().await.unwrap();
            let lines = durably.get_logs(run.id()).await.unwrap();
            assert_eq!(lines.len(), LOG_LINES_MAX as usize, "{pause:?}");
            for (line, number) in lines.iter().zip(15_003u32..) {
                assert_eq!((line.number, &line.message), (number, &number.to_string()), "{pause:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_run_keeps_no_more_than_four_mebibytes_of_lines() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, lines, ()| async move {
            for _ in 0..lines {
                step.log().info("x", json!({"text": "y".repeat(40_000)}));
            }
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(300).await.unwrap();
        run.output().await.unwrap();
        let lines = durably.get_logs(run.id()).await.unwrap();
        let room = LOG_BYTES_MAX / 40_000;
        assert!((room - 5..=room).contains(&lines.len()), "{} lines", lines.len());
        assert_eq!(lines.last().unwrap().number, 299);
    })
    .await;
}

#[tokio::test]
async fn a_line_over_its_limit_is_kept_without_its_fields() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, _, ()| async move {
            step.log().info("large", "y".repeat(70_000));
            step.log().info("ß".repeat(70_000), ());
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let lines = durably.get_logs(run.id()).await.unwrap();
        assert_eq!((lines[0].message.as_str(), &lines[0].data), ("large", &json!(null)));
        assert!(lines[1].message.len() < 70_000 && lines[1].message.starts_with('ß'));
    })
    .await;
}

#[tokio::test]
async fn lines_of_replayed_work_are_not_written_again_by_their_steps() {
    within(async {
        let durably = memory().await;
        let tries = Count::default();
        let job = job_with("job", tries, |step: Step, _, tries| async move {
            step.run("a", || async {
                step.log().info("in a", ());
                Ok(())
            })
            .await?;
            if tries.up() == 1 { Err("again".into()) } else { Ok(()) }
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        run.output().await.unwrap();
        assert_eq!(durably.get_logs(run.id()).await.unwrap().len(), 1);
    })
    .await;
}
