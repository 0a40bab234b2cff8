//! Live equals replayed, and what reaches a body.

use std::collections::{BTreeMap, HashMap};

use durably::{Durably, ErrorKind, Job, RunStatus, Step};
use serde::{Deserialize, Serialize};

use crate::support::{Count, Gate, TempFile, ended, job_with, memory, run_of, within};

/// What a type of its own makes of a value is seen live as well as replayed.
#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
struct Lossy {
    kept: u32,
    #[serde(skip)]
    skipped: u32,
}

/// Writes a text and reads a number.
#[derive(Debug)]
struct Asymmetric;

impl Serialize for Asymmetric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("text")
    }
}

impl<'de> Deserialize<'de> for Asymmetric {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer).map(|_| Asymmetric)
    }
}

/// Refuses to be written at all.
#[derive(Deserialize)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not today"))
    }
}

#[tokio::test]
async fn live_equals_replayed_for_floats_maps_and_lossy_types() {
    within(async {
        let durably = memory().await;
        let (tries, seen) = (Count::default(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
        let job = job_with("job", (tries, seen.clone()), |step, _, (tries, seen)| async move {
            let floats = step
                .run("floats", || async { Ok(vec![0.1 + 0.2, 1e308, 5e-324, -0.0, 1.0 / 3.0, 123_456_789.123_456_79]) })
                .await?;
            let map =
                step.run("map", || async { Ok(HashMap::from([(1u64, "a".to_owned()), (2, "b".into())])) }).await?;
            let lossy = step.run("lossy", || async { Ok(Lossy { kept: 1, skipped: 2 }) }).await?;
            let wide = step.run("wide", || async { Ok((u64::MAX, i64::MIN, 'ß', Some(()))) }).await?;
            let bits: Vec<u64> = floats.iter().map(|float: &f64| float.to_bits()).collect();
            let map: BTreeMap<u64, String> = map.into_iter().collect();
            let text = format!("{bits:?} {map:?} {lossy:?} {wide:?}");
            seen.lock().unwrap().push(text);
            if tries.up() == 1 { Err("again".into()) } else { Ok(lossy.skipped) }
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        // What serde leaves out is gone at once and not only after a restart.
        assert_eq!(run.output().await.unwrap(), 0);
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0], seen[1]);
        for float in [0.1 + 0.2, 1e308, 5e-324, -0.0, 1.0 / 3.0, 123_456_789.123_456_79_f64] {
            assert!(seen[0].contains(&float.to_bits().to_string()), "{float}");
        }
    })
    .await;
}

#[tokio::test]
async fn p_step_18_a_value_that_cannot_be_read_back_is_a_typed_error_at_the_write() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            let mut kinds = Vec::new();
            kinds.push(step.run("asymmetric", || async { Ok(Asymmetric) }).await.unwrap_err());
            kinds.push(step.run("unwritable", || async { Ok(Unwritable) }).await.map(drop).unwrap_err());
            kinds.push(step.run("nan", || async { Ok(f64::NAN) }).await.unwrap_err());
            Ok(kinds.iter().map(|error| format!("{:?}", error.kind())).collect::<Vec<_>>())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), ["NotStorable"; 3]);
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert!(steps[0].error.as_ref().unwrap().message.contains("read back"), "{steps:?}");
        assert!(steps[1].error.as_ref().unwrap().message.contains("not today"), "{steps:?}");
    })
    .await;
}

#[tokio::test]
async fn an_error_is_the_same_data_live_and_replayed() {
    within(async {
        let durably = memory().await;
        let tries = Count::default();
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let job = job_with("job", (tries, seen.clone()), |step, _, (tries, seen)| async move {
            let error = step
                .run("bad", || async {
                    Err::<u32, _>(durably::JobError::from(std::io::Error::other("inner")).context("outer").terminal())
                })
                .await
                .unwrap_err();
            let chain: Vec<_> = error.chain().map(str::to_owned).collect();
            let shown = format!("{error} {error:?} {:?} {:?} {}", error.kind(), error.step(), error.is_terminal());
            seen.lock().unwrap().push((shown, chain));
            if tries.up() == 1 { Err("again".into()) } else { Ok(()) }
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        run.output().await.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0].1, ["inner"]);
    })
    .await;
}

#[tokio::test]
async fn a_large_checkpoint_is_read_again_whole() {
    within(async {
        let file = TempFile::new();
        let (parked, calls) = (Gate::new(), Count::default());
        let job = job_with("job", (parked.clone(), calls.clone()), |step, _, (parked, calls)| async move {
            let mut lengths = Vec::new();
            for item in 0..20u32 {
                // Twenty of them are more than an execution keeps in memory, and each more than a row holds inline.
                let text = step
                    .run(("large", item), || async {
                        calls.up();
                        Ok(char::from(b'a' + item as u8).to_string().repeat(900_000))
                    })
                    .await?;
                lengths.push((text.len(), text.as_bytes()[899_999]));
            }
            parked.pass().await;
            Ok(lengths)
        });
        let durably = file.open().await;
        let run = durably.register(job.clone()).unwrap().trigger(0).await.unwrap().id();
        parked.reached().await;
        drop(durably);
        parked.open();
        let durably = file.open().await;
        durably.register(job).unwrap();
        let lengths: Vec<(usize, u8)> = durably.wait_for_run(run).await.unwrap().output_as().unwrap();
        assert_eq!(lengths, (0..20).map(|item| (900_000, b'a' + item)).collect::<Vec<_>>());
        assert_eq!(calls.get(), 20);
    })
    .await;
}

#[tokio::test]
async fn a_stored_output_that_no_longer_fits_fails_the_run_and_can_be_resumed_after_a_fix() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let (calls, went_on) = (Count::default(), Count::default());
        let first = job_with("job", (gate.clone(), calls.clone()), |step, _, (gate, calls)| async move {
            let text = step
                .run("fetch", || async {
                    calls.up();
                    Ok("seven".to_owned())
                })
                .await?;
            gate.pass().await;
            Ok(text)
        });
        let durably = file.open().await;
        let run = durably.register(first.clone()).unwrap().trigger(0).await.unwrap().id();
        gate.reached().await;
        drop(durably);

        // A new version expects a number.
        let wrong = job_with("job", went_on.clone(), |step, _, went_on| async move {
            let caught = step.run("fetch", || async { Ok(7u64) }).await;
            went_on.up();
            Ok(caught.unwrap_or(0).to_string())
        });
        let durably = file.open().await;
        durably.register(wrong).unwrap();
        let record = ended(&durably, run).await;
        let error = record.error.unwrap();
        assert_eq!((record.status, error.kind), (RunStatus::Failed, ErrorKind::CheckpointMismatch));
        for part in ["\"fetch\"", "\"seven\"", "u64"] {
            assert!(error.message.contains(part), "{part}: {}", error.message);
        }
        assert_eq!(went_on.get(), 0);
        assert_eq!(durably.get_steps(run).await.unwrap().len(), 1);
        durably.shutdown().await.unwrap();

        gate.open();
        let durably = file.open().await;
        durably.register(first).unwrap();
        durably.resume(run).await.unwrap();
        assert_eq!(durably.wait_for_run(run).await.unwrap().output, Some("seven".into()));
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_catches_everything_does_not_go_on_after_a_cancel() {
    within(async {
        let durably = memory().await;
        let (gate, went_on) = (Gate::new(), Count::default());
        let job = job_with("job", (gate.clone(), went_on.clone()), |step, _, (gate, went_on)| async move {
            // It watches, so that it is alive when the step ends.
            let _token = step.cancelled();
            let caught = step
                .run("a", || async {
                    gate.pass().await;
                    Ok(1)
                })
                .await;
            went_on.up();
            Ok(caught.unwrap_or(2))
        });
        let durably_builder = Durably::builder().cancel_grace(std::time::Duration::from_millis(50));
        drop(durably);
        let durably = durably_builder.in_memory().await.unwrap();
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        durably.stop().await.unwrap();
        assert_eq!(went_on.get(), 0);
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled);
        assert_eq!(durably.get_steps(run.id()).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn a_step_in_a_loop_that_retries_everything_ends_with_the_cancel() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job: Job<u32, u32> = job_with("job", gate.clone(), |step: Step, _, gate: Gate| async move {
            for round in 0u32.. {
                let tried = step
                    .run(("round", round), || async {
                        gate.pass().await;
                        Err::<u32, _>("no".into())
                    })
                    .await;
                if let Ok(value) = tried {
                    return Ok(value);
                }
            }
            Ok(0)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        gate.let_one_on();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        durably.stop().await.unwrap();
        assert_eq!(gate.arrivals(), 2);
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled);
    })
    .await;
}
