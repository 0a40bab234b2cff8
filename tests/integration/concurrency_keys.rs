//! Several concurrency keys, priorities, turns, and bounds on what waits for a key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use durably::{Durably, Error, Job, JobHandle, OnConflict, RunFilter, RunId, RunStatus, Step, Trigger};

use crate::support::{Gate, TempFile, echo, ended, gated, memory, next_event, paused, run_of, within};

/// The next runs to be leased.
async fn leases(events: &mut durably::Events, count: usize) -> Vec<RunId> {
    let mut runs = Vec::new();
    while runs.len() < count {
        runs.push(next_event(events, |event| event.kind.name() == "run:leased").await.run_id);
    }
    runs
}

async fn statuses<const N: usize>(durably: &Durably, runs: [RunId; N]) -> [RunStatus; N] {
    let mut found = [RunStatus::Pending; N];
    for (status, run) in found.iter_mut().zip(runs) {
        *status = run_of(durably, run).await.status;
    }
    found
}

use RunStatus::{Leased, Pending};

#[tokio::test]
async fn a_run_of_several_keys_waits_for_all_of_them_and_holds_none_meanwhile() {
    within(async {
        let (durably, gate) = (memory().await, Gate::new());
        let job = durably.register(gated("job", &gate)).unwrap();
        let a = job.trigger(1).concurrency_key("a").await.unwrap().id();
        let both = job.trigger(2).concurrency_keys(["a", "b"]).await.unwrap().id();
        let b = job.trigger(3).concurrency_key("b").await.unwrap().id();
        let c = job.trigger(4).concurrency_key("c").await.unwrap().id();
        assert_eq!(statuses(&durably, [a, both, b, c]).await, [Leased, Pending, Pending, Leased], "lines are strict");
        let run = run_of(&durably, both).await;
        assert_eq!((run.concurrency_key.as_deref(), run.concurrency_keys), (Some("a"), vec!["a".into(), "b".into()]));
        gate.reached_by(2).await;
        gate.let_one_on();
        gate.let_one_on();
        ended(&durably, a).await;
        gate.reached().await;
        assert_eq!(statuses(&durably, [both, b]).await, [Leased, Pending]);
        gate.open();
        ended(&durably, b).await;
        assert_eq!(gate.arrivals(), 4);
    })
    .await;
}

/// Every pair and triple of keys, and limits: nothing locks up, and no key is ever over its limit.
#[tokio::test]
async fn runs_of_overlapping_keys_all_end_and_no_key_is_held_by_more_than_may() {
    within(async {
        #[derive(Default)]
        struct Held {
            now: BTreeMap<&'static str, usize>,
            most: BTreeMap<&'static str, usize>,
        }
        const KEYS: [&str; 4] = ["a", "b", "c", "d"];
        let held = Arc::new(Mutex::new(Held::default()));
        let inside = held.clone();
        let job = Job::new("job", move |step: Step, mask: u32| {
            let inside = inside.clone();
            async move {
                let keys = || (0..4).filter(move |at| mask & (1 << at) != 0).map(|at| KEYS[at]);
                for key in keys() {
                    let mut held = inside.lock().unwrap();
                    let now = held.now.entry(key).or_default();
                    *now += 1;
                    let now = *now;
                    let most = held.most.entry(key).or_default();
                    *most = now.max(*most);
                }
                for n in 0..3 {
                    step.run(("step", n), || async {
                        tokio::task::yield_now().await;
                        Ok(())
                    })
                    .await?;
                }
                for key in keys() {
                    *inside.lock().unwrap().now.entry(key).or_default() -= 1;
                }
                Ok(mask)
            }
        });
        let durably = memory().await;
        let job = durably.register(job).unwrap();
        for round in 0..20u32 {
            let items = (1..16).map(|mask| {
                let mask = (mask * 7 + round) % 16;
                // Key `d` lets two in.
                (0..4).filter(|at| mask & (1 << at) != 0).fold(Trigger::new(mask), |item, at| {
                    item.concurrency_key(KEYS[at as usize]).limit(if at == 3 { 2 } else { 1 })
                })
            });
            job.batch_trigger(items).await.unwrap();
        }
        durably.run_until_idle(None).await.unwrap();
        let most = held.lock().unwrap().most.clone();
        assert!(KEYS[..3].iter().all(|key| most[key] == 1), "{most:?}");
        assert!(most["d"] <= 2, "{most:?}");
        let left = durably.get_runs(RunFilter::new().statuses([Pending, Leased])).await.unwrap();
        assert_eq!(left.len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_suspended_run_keeps_all_its_keys_also_over_a_restart() {
    within(async {
        let waits = || Job::new("waits", |step: Step, _: u32| async move { step.wait_signal::<u32>("go", "go").await });
        let file = TempFile::new();
        let (run, behind) = {
            let durably = file.open().await;
            let mut events = durably.events();
            let (job, other) = durably.register((waits(), echo("other"))).unwrap();
            let run = job.trigger(0).concurrency_keys(["a", "b"]).await.unwrap().id();
            next_event(&mut events, |event| event.kind.name() == "run:suspend").await;
            let behind = other.trigger(1).concurrency_key("b").await.unwrap().id();
            durably.shutdown().await.unwrap();
            (run, behind)
        };
        let durably = file.open().await;
        let (_, other) = durably.register((waits(), echo("other"))).unwrap();
        assert_eq!(other.trigger(2).concurrency_key("a").await.unwrap().status(), Pending);
        assert_eq!(run_of(&durably, behind).await.status, Pending);
        durably.signal(run, "go", &5).await.unwrap();
        assert_eq!(ended(&durably, run).await.output.unwrap(), 5);
        ended(&durably, behind).await;
    })
    .await;
}

#[tokio::test]
async fn on_conflict_looks_at_every_key() {
    within(async {
        let durably = paused().await;
        let job = durably.register(echo("job")).unwrap();
        let a = job.trigger(1).concurrency_key("a").await.unwrap();
        let b = job.trigger(2).concurrency_key("b").await.unwrap();
        let both = |policy| job.trigger(3).concurrency_keys(["a", "b"]).on_conflict(policy);
        let refused = both(OnConflict::Reject).await.unwrap_err();
        assert!(
            matches!(&refused, Error::KeyConflict { run: Some(run), key } if *run == b.id() && key == "b"),
            "{refused:?}"
        );
        assert_eq!(both(OnConflict::Skip).await.unwrap().id(), b.id());
        let replaced = both(OnConflict::Replace).await.unwrap();
        assert_eq!(run_of(&durably, b.id()).await.replaced_by, Some(replaced.id()));
        // In one batch: each of them takes the place of the one before, whatever key they share.
        let item = |n, keys: &[&str]| Trigger::new(n).concurrency_keys(keys.to_vec()).on_conflict(OnConflict::Replace);
        let runs = job.batch_trigger([item(4, &["b", "c"]), item(5, &["c"]), item(6, &["b"])]).await.unwrap();
        assert_eq!(run_of(&durably, replaced.id()).await.replaced_by, Some(runs[0].id()));
        assert_eq!(run_of(&durably, runs[0].id()).await.replaced_by, Some(runs[1].id()));
        assert_eq!(run_of(&durably, runs[2].id()).await.status, Pending, "nothing waits for b any more");
        assert_eq!(within(durably.run_until_idle(None)).await.unwrap(), 3);
        assert_eq!(run_of(&durably, a.id()).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn options_of_keys_are_checked() {
    let durably = paused().await;
    let job = durably.register(echo("job")).unwrap();
    let refused = job.trigger(0).limit(2).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidOption { option: "limit", .. }));
    let refused = job.trigger(0).max_queued(2).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidOption { option: "max_queued", .. }));
    let refused = job.trigger(0).concurrency_keys(["a", ""]).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidOption { option: "concurrency key", .. }));
    let refused = job.trigger(0).concurrency_key("a").limit(0).concurrency_key("b").await.unwrap_err();
    assert!(matches!(refused, Error::InvalidOption { option: "limit", .. }));
    let refused = job.trigger(0).concurrency_keys((0..17).map(|n| n.to_string())).await.unwrap_err();
    assert!(matches!(refused, Error::TooMany { count: 17, count_max: 16, .. }), "{refused:?}");
    let run = job.trigger(0).limit(3).concurrency_keys(["a", "a", "b"]).limit(2).await.unwrap();
    assert_eq!(run_of(&durably, run.id()).await.concurrency_keys, ["a", "b"], "each once");
}

#[tokio::test]
async fn higher_priorities_go_first_also_after_a_restart() {
    within(async {
        let file = TempFile::new();
        let (low, plain, high, keyed, urgent) = {
            let durably = file.open_paused().await;
            let (one, two) = durably.register((echo("one"), echo("two"))).unwrap();
            let low = one.trigger(0).priority(-1).await.unwrap().id();
            let plain = one.trigger(0).concurrency_key("key").await.unwrap().id();
            let high = two.trigger(0).priority(7).await.unwrap().id();
            let keyed = two.trigger(0).priority(3).concurrency_key("key").await.unwrap().id();
            let urgent = one.trigger(0).priority(127).await.unwrap().id();
            assert_eq!(run_of(&durably, low).await.priority, -1);
            durably.shutdown().await.unwrap();
            (low, plain, high, keyed, urgent)
        };
        let durably = file.open_with(Durably::builder().paused(true).max_concurrent_runs(1)).await;
        let mut events = durably.events();
        durably.register((echo("one"), echo("two"))).unwrap();
        durably.start().await.unwrap();
        assert_eq!(leases(&mut events, 5).await, [urgent, high, keyed, plain, low]);
        ended(&durably, low).await;
        let again = durably.retrigger(low).await.unwrap();
        assert_eq!(run_of(&durably, again.id()).await.priority, -1, "a retrigger takes it over");
    })
    .await;
}

#[tokio::test]
async fn keys_of_a_fair_job_take_turns() {
    within(async {
        async fn order(fair: bool) -> Vec<u32> {
            let durably = Durably::builder().paused(true).max_concurrent_runs(1).in_memory().await.unwrap();
            let job = echo("job");
            let job = durably.register(if fair { job.fair() } else { job }).unwrap();
            let mut events = durably.events();
            let mut runs = BTreeMap::new();
            let keys = ["hot", "hot", "hot", "hot", "cold", "cold", "", ""];
            for (n, key) in (0..).zip(keys) {
                let call = job.trigger(n);
                let call = if key.is_empty() { call } else { call.concurrency_key(key) };
                runs.insert(call.await.unwrap().id(), n);
            }
            durably.start().await.unwrap();
            leases(&mut events, keys.len()).await.into_iter().map(|run| runs[&run]).collect()
        }
        assert_eq!(order(true).await, [0, 4, 6, 1, 5, 7, 2, 3]);
        assert_eq!(order(false).await, [0, 1, 2, 3, 4, 5, 6, 7]);
    })
    .await;
}

#[tokio::test]
async fn a_full_line_refuses_the_next_run() {
    within(async {
        let (durably, gate) = (memory().await, Gate::new());
        let job = durably.register(gated("job", &gate)).unwrap();
        let bounded = |job: &JobHandle<u32, u32>, n| job.trigger(n).concurrency_key("key").max_queued(2);
        for n in 0..3 {
            bounded(&job, n).idempotency_key(format!("i{n}")).await.unwrap();
        }
        let refused = bounded(&job, 3).await.unwrap_err();
        assert!(
            matches!(&refused, Error::QueueFull { key, queued: 2, queued_max: 2 } if key == "key"),
            "one executes, two wait: {refused:?}"
        );
        assert_eq!(refused.to_string(), "2 runs wait for concurrency key \"key\" already, over the limit of 2");
        bounded(&job, 2).idempotency_key("i2").await.expect("a repeat is no new run");
        let other = job.trigger(0).concurrency_keys(["free", "key"]).max_queued(2).await.unwrap_err();
        assert!(matches!(&other, Error::QueueFull { key, .. } if key == "key"), "any of its keys");
        bounded(&job, 4).on_conflict(OnConflict::Replace).await.expect("what it replaces leaves");
        let batch = [Trigger::new(5).concurrency_key("new"), Trigger::new(6).concurrency_key("key").max_queued(2)];
        let refused = job.batch_trigger(batch).await.unwrap_err();
        assert!(matches!(&refused, Error::Item { index: 1, .. }), "{refused:?}");
        assert_eq!(job.get_runs(RunFilter::new()).await.unwrap().len(), 4, "the batch was refused whole");
        let item = |n| Trigger::new(n).concurrency_key("batch").max_queued(1);
        let refused = job.batch_trigger((0..3).map(item)).await.unwrap_err();
        assert!(matches!(&refused, Error::Item { index: 2, .. }), "one finds it free, one waits: {refused:?}");
        gate.open();
        durably.run_until_idle(None).await.unwrap();
        bounded(&job, 7).max_queued(0).await.expect("it is free");
    })
    .await;
}
