//! Concurrency keys, and how many runs execute at a time.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use durably::{
    Disposition, Durably, Error, EventKind, Events, Job, JobHandle, OnConflict, RunFilter, RunId, RunStatus, Step,
};

use super::support::{Gate, TempFile, echo, ended, gated, memory, next_event, paused, run_of, within};

/// A trigger of a run with this key.
async fn keyed(job: &JobHandle<u32, u32>, key: &str) -> RunId {
    job.trigger(0).concurrency_key(key).await.expect("triggers").id()
}

/// Waits until everything that could start by now has: a run of another job goes from end to end.
async fn settled(durably: &Durably) {
    if durably.get_job("bystander").is_none() {
        durably.register(echo("bystander")).expect("registers");
    }
    let run = durably.trigger_json("bystander", 0.into()).await.expect("triggers");
    within(run.output()).await.expect("completes");
}

/// The next runs to be leased.
async fn leases(events: &mut Events, count: usize) -> Vec<RunId> {
    let mut runs = Vec::new();
    while runs.len() < count {
        runs.push(within(next_event(events, |event| event.kind.name() == "run:leased")).await.run_id);
    }
    runs
}

#[tokio::test]
async fn p_conc_01_of_runs_that_share_a_key_one_executes_whatever_their_jobs() {
    let (durably, gate) = (memory().await, Gate::new());
    let (one, two) = durably.register((gated("one", &gate), gated("two", &gate))).expect("registers");
    let first = keyed(&one, "key").await;
    let second = keyed(&two, "key").await;
    within(gate.reached()).await;
    settled(&durably).await;
    assert_eq!(run_of(&durably, second).await.status, RunStatus::Pending);
    gate.let_one_on();
    within(gate.reached()).await;
    assert_eq!(run_of(&durably, first).await.status, RunStatus::Completed);
    gate.open();
    within(ended(&durably, second)).await;
    assert_eq!((gate.arrivals(), gate.most_inside()), (2, 1));
}

/// Ours differs from P-CONC-02 and -03, any number of runs may wait; P-CONC-05 by `Reject`.
#[tokio::test]
async fn p_conc_02_03_04_any_number_of_runs_wait_for_a_key_and_reject_looks_at_its_own_job() {
    let durably = paused().await;
    let (one, two) = durably.register((echo("one"), echo("two"))).expect("registers");
    for _ in 0..3 {
        keyed(&one, "key").await;
    }
    let other = two.trigger(0).concurrency_key("key").on_conflict(OnConflict::Reject).await.expect("another job's");
    let newest = keyed(&one, "key").await;
    let refused = one.trigger(0).concurrency_key("key").on_conflict(OnConflict::Reject).await;
    assert!(
        matches!(&refused, Err(Error::KeyConflict { run: Some(run), key }) if *run == newest && key == "key"),
        "{refused:?}"
    );
    let refused = two.trigger(0).concurrency_key("key").on_conflict(OnConflict::Reject).await;
    assert!(matches!(&refused, Err(Error::KeyConflict { run: Some(run), .. }) if *run == other.id()), "{refused:?}");
    assert_eq!(within(durably.run_until_idle(None)).await.expect("works"), 5);
}

#[tokio::test]
async fn p_conc_06_runs_without_a_key_are_not_held_up() {
    let (durably, gate) = (memory().await, Gate::new());
    let job = durably.register(gated("job", &gate)).expect("registers");
    job.batch_trigger(0..20).await.expect("triggers");
    within(gate.reached_by(20)).await;
    assert_eq!(gate.most_inside(), 20);
    gate.open();
}

/// A hot key never delays another key.
#[tokio::test]
async fn p_conc_07_a_hot_key_delays_nobody_else() {
    let gate = Gate::new();
    let durably = Durably::builder().max_concurrent_runs(2).in_memory().await.expect("opens");
    let (hot, other) = durably.register((gated("hot", &gate), echo("other"))).expect("registers");
    let items = (0..100).map(|n| durably::Trigger::new(n).concurrency_key("hot"));
    hot.batch_trigger(items).await.expect("triggers");
    within(gate.reached()).await;
    for n in 0..5 {
        let done = within(other.trigger_and_wait(n).concurrency_key("cold")).await.expect("completes");
        assert_eq!(done.output, n);
    }
    // Runs of the hot job itself with another key, too.
    keyed(&hot, "cold").await;
    within(gate.reached()).await;
    gate.open();
    within(durably.run_until_idle(None)).await.expect("works");
    assert_eq!(gate.arrivals(), 101);
}

#[tokio::test]
async fn p_conc_08_runs_of_a_key_go_in_trigger_order_and_keys_go_side_by_side() {
    let (durably, gate) = (paused().await, Gate::new());
    let (one, two) = durably.register((gated("one", &gate), gated("two", &gate))).expect("registers");
    let mut wanted = Vec::new();
    for n in 0..6 {
        wanted.push(keyed(if n % 2 == 0 { &one } else { &two }, "key").await);
    }
    let aside = keyed(&one, "aside").await;
    let mut events = durably.events();
    durably.start().await.expect("starts");
    within(gate.reached_by(2)).await;
    assert_eq!(gate.most_inside(), 2, "two keys execute at once");
    gate.open();
    let mut order = leases(&mut events, 7).await;
    order.retain(|run| *run != aside);
    assert_eq!(order, wanted);
    assert_eq!(gate.most_inside(), 2);
}

/// Also across a crash; recovered runs keep their key and go first.
#[tokio::test]
async fn p_conc_09_after_a_crash_the_run_that_held_the_key_goes_first() {
    let (file, gate) = (TempFile::new(), Gate::new());
    let durably = file.open().await;
    let job = durably.register(gated("job", &gate)).expect("registers");
    let held = keyed(&job, "key").await;
    let waiting = keyed(&job, "key").await;
    within(gate.reached()).await;
    drop((durably, job));

    let gate = Gate::new();
    let durably = file.open().await;
    let mut events = durably.events();
    let job = durably.register(gated("job", &gate)).expect("registers");
    let newer = keyed(&job, "key").await;
    within(gate.reached()).await;
    settled(&durably).await;
    assert_eq!(run_of(&durably, held).await.status, RunStatus::Leased);
    gate.open();
    let mut order = leases(&mut events, 4).await;
    order.retain(|run| [held, waiting, newer].contains(run));
    assert_eq!(order, [held, waiting, newer]);
    within(ended(&durably, newer)).await;
    assert_eq!(gate.most_inside(), 1);
}

/// A cancelled run holds its key until its body has really stopped.
#[tokio::test]
async fn p_conc_10_a_cancelled_run_holds_its_key_until_its_body_is_gone() {
    let durably = Durably::builder().cancel_grace(Duration::ZERO).in_memory().await.expect("opens");
    let (release, held) = mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let (gate, inside) = (Gate::new(), Gate::new());
    let body = inside.clone();
    let blocking = Job::new("blocking", move |step: Step, _: u32| {
        let (held, inside) = (held.clone(), body.clone());
        async move {
            step.run_blocking("block", move || {
                let _inside = inside.enter();
                let _ = held.lock().expect("not poisoned").recv();
                Ok(())
            })
            .await?;
            Ok(0)
        }
    });
    let (blocking, next) = durably.register((blocking, gated("next", &gate))).expect("registers");
    let first = keyed(&blocking, "key").await;
    within(inside.reached()).await;
    let second = keyed(&next, "key").await;
    durably.cancel(first).await.expect("cancels");
    assert_eq!(run_of(&durably, first).await.status, RunStatus::Cancelled);
    settled(&durably).await;
    assert_eq!(run_of(&durably, second).await.status, RunStatus::Pending, "the body still executes");
    // It is cancelled on disk, so it can be resumed; it does not start beside its own older body.
    durably.resume(first).await.expect("resumes");
    settled(&durably).await;
    assert_eq!(run_of(&durably, first).await.status, RunStatus::Pending);
    release.send(()).expect("is held");
    within(gate.reached()).await;
    assert_eq!(run_of(&durably, second).await.status, RunStatus::Leased);
    assert_eq!(run_of(&durably, first).await.status, RunStatus::Pending, "the resumed run goes behind");
    gate.open();
    drop(release);
    assert_eq!(within(ended(&durably, first)).await.status, RunStatus::Completed);
    assert_eq!(inside.most_inside(), 1);
}

#[tokio::test]
async fn p_conc_11_an_empty_key_is_refused() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let refused = job.trigger(1).concurrency_key("").await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "concurrency key", .. })), "{refused:?}");
}

#[tokio::test]
async fn p_conc_12_a_retrigger_takes_key_and_limit_over() {
    let (durably, gate) = (memory().await, Gate::new());
    let (quick, slow) = durably.register((echo("quick"), gated("slow", &gate))).expect("registers");
    let old = within(quick.trigger_and_wait(0).concurrency_key("key").limit(2)).await.expect("completes").id;
    let held = slow.trigger(0).concurrency_key("key").limit(2).await.expect("triggers").id();
    within(gate.reached()).await;
    let new = durably.retrigger(old).await.expect("retriggers");
    within(new.output()).await.expect("completes beside the holder, since both allow two");
    assert_eq!(new.get().await.expect("reads").concurrency_key.as_deref(), Some("key"));
    gate.open();
    within(ended(&durably, held)).await;
}

/// `limit(n)`, the minimum over holders and candidate.
#[tokio::test]
async fn p_conc_13_the_smallest_limit_among_holders_and_candidate_counts() {
    let (durably, gate) = (memory().await, Gate::new());
    let job = durably.register(gated("job", &gate)).expect("registers");
    let limited = |limit| job.trigger(0).concurrency_key("key").limit(limit);
    for _ in 0..5 {
        limited(3).await.expect("triggers");
    }
    within(gate.reached_by(3)).await;
    settled(&durably).await;
    assert_eq!((gate.arrivals(), gate.most_inside()), (3, 3));
    // A candidate of limit 1 waits until nobody holds the key, and nobody overtakes it.
    let alone = limited(1).await.expect("triggers");
    let behind = limited(3).await.expect("triggers");
    for _ in 0..2 {
        gate.let_one_on();
        within(gate.reached()).await;
    }
    for _ in 0..2 {
        gate.let_one_on();
    }
    settled(&durably).await;
    assert_eq!(run_of(&durably, alone.id()).await.status, RunStatus::Pending);
    gate.let_one_on();
    within(gate.reached()).await;
    settled(&durably).await;
    assert_eq!(run_of(&durably, alone.id()).await.status, RunStatus::Leased);
    assert_eq!(run_of(&durably, behind.id()).await.status, RunStatus::Pending, "a holder of limit 1 is alone");
    gate.open();
    within(behind.output()).await.expect("completes");
}

/// A resumed run goes to the back.
#[tokio::test]
async fn a_resumed_run_goes_to_the_back_of_its_key() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let (first, second, third) = (keyed(&job, "key").await, keyed(&job, "key").await, keyed(&job, "key").await);
    durably.cancel(first).await.expect("cancels");
    durably.resume(first).await.expect("resumes");
    let mut events = durably.events();
    durably.start().await.expect("starts");
    assert_eq!(leases(&mut events, 3).await, [second, third, first]);
}

/// That place outlives a restart.
#[tokio::test]
async fn places_in_line_outlive_a_restart() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let (job, other) = durably.register((echo("job"), echo("other"))).expect("registers");
    let (first, second) = (keyed(&job, "key").await, keyed(&job, "key").await);
    let third = durably.trigger_json("job", 0.into()).concurrency_key("key").await.expect("triggers").id();
    durably.cancel(first).await.expect("cancels");
    durably.resume(first).await.expect("resumes");
    let last = keyed(&other, "key").await;
    let replace = job.trigger(1).concurrency_key("key").on_conflict(OnConflict::Replace).await.expect("triggers").id();
    drop((durably, job, other));
    let durably = file.open_paused().await;
    durably.register((echo("job"), echo("other"))).expect("registers");
    let mut events = durably.events();
    durably.start().await.expect("starts");
    // The resumed run was the newest that waited and had never started: its place at the back was taken.
    assert_eq!(leases(&mut events, 4).await, [second, third, replace, last]);
    assert_eq!(run_of(&durably, first).await.replaced_by, Some(replace));
}

/// `Replace`.
#[tokio::test]
async fn a_replacing_run_takes_the_place_in_line_and_the_old_one_keeps_its_idempotency_key() {
    let (durably, gate) = (memory().await, Gate::new());
    let (job, other) = durably.register((gated("job", &gate), gated("other", &gate))).expect("registers");
    keyed(&job, "key").await;
    within(gate.reached()).await;
    let old = job.trigger(1).concurrency_key("key").idempotency_key("old").label("n", "old").await.expect("triggers");
    let between = keyed(&other, "key").await;
    let mut events = durably.events();
    let new = job.trigger(2).concurrency_key("key").on_conflict(OnConflict::Replace).await.expect("triggers");
    assert_eq!((new.disposition(), new.status()), (Disposition::Created, RunStatus::Pending));
    let replaced = old.get().await.expect("reads");
    assert_eq!((replaced.status, replaced.replaced_by), (RunStatus::Cancelled, Some(new.id())));
    assert!(replaced.completed_at.is_some() && replaced.started_at.is_none());
    let told = within(next_event(&mut events, |event| event.run_id == old.id())).await;
    assert_eq!(told.kind, EventKind::RunCancelled { replaced_by: Some(new.id()) });
    let again = job.trigger(1).idempotency_key("old").await.expect("is a repeat");
    assert_eq!((again.id(), again.disposition()), (old.id(), Disposition::Idempotent));
    assert_eq!(again.status(), RunStatus::Cancelled);
    let waited = within(old.output()).await;
    assert!(matches!(waited, Err(Error::RunCancelled { .. })), "{waited:?}");
    gate.open();
    assert_eq!(leases(&mut events, 2).await, [new.id(), between]);
}

/// `Reject`, `Skip` and `Replace` look at runs that have never started.
#[tokio::test]
async fn a_run_that_has_started_before_is_no_conflict() {
    let (file, gate) = (TempFile::new(), Gate::new());
    let durably = file.open().await;
    let job = durably.register(gated("job", &gate)).expect("registers");
    let started = keyed(&job, "key").await;
    within(gate.reached()).await;
    drop((durably, job));
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    assert_eq!(run_of(&durably, started).await.status, RunStatus::Pending);
    let with = |policy| job.trigger(1).concurrency_key("key").on_conflict(policy);
    let skip = with(OnConflict::Skip).await.expect("triggers");
    assert_eq!(skip.disposition(), Disposition::Created);
    durably.cancel(skip.id()).await.expect("cancels");
    let reject = with(OnConflict::Reject).await.expect("triggers");
    durably.cancel(reject.id()).await.expect("cancels");
    let replace = with(OnConflict::Replace).await.expect("triggers");
    assert_eq!(run_of(&durably, started).await.status, RunStatus::Pending);
    durably.start().await.expect("starts");
    within(durably.wait_for_run(started)).await.expect("completes");
    within(durably.wait_for_run(replace.id())).await.expect("completes");
}

/// A run that was withdrawn leaves no trace in the line.
#[tokio::test]
async fn a_cancelled_run_in_line_lets_the_next_one_up() {
    let (durably, gate) = (memory().await, Gate::new());
    let job = durably.register(gated("job", &gate)).expect("registers");
    keyed(&job, "key").await;
    within(gate.reached()).await;
    let (second, third) = (keyed(&job, "key").await, keyed(&job, "key").await);
    durably.cancel(second).await.expect("cancels");
    gate.open();
    assert_eq!(within(ended(&durably, third)).await.status, RunStatus::Completed);
    assert_eq!(run_of(&durably, second).await.lease_generation, 0);
}

#[tokio::test]
async fn no_more_than_max_concurrent_runs_execute_and_the_rest_go_in_order() {
    let gate = Gate::new();
    let durably = Durably::builder().max_concurrent_runs(3).in_memory().await.expect("opens");
    let mut events = durably.events();
    let job = durably.register(gated("job", &gate)).expect("registers");
    let runs: Vec<_> = job.batch_trigger(0..9).await.expect("triggers").iter().map(|run| run.id()).collect();
    within(gate.reached_by(3)).await;
    // Nothing else may start, so only a commit can be waited for.
    durably.stats().await.expect("reads");
    let pending = durably.get_runs(RunFilter::new().status(RunStatus::Pending)).await.expect("reads");
    assert_eq!((pending.len(), gate.arrivals()), (6, 3));
    gate.open();
    assert_eq!(leases(&mut events, 9).await, runs);
    within(durably.run_until_idle(None)).await.expect("works");
    assert_eq!(gate.most_inside(), 3);
}

#[tokio::test]
async fn a_jobs_own_limit_holds_its_runs_and_no_other_jobs() {
    let (durably, gate) = (memory().await, Gate::new());
    let (job, other) = durably.register((gated("job", &gate).concurrency(2), echo("other"))).expect("registers");
    let runs = job.batch_trigger(0..6).await.expect("triggers");
    within(gate.reached_by(2)).await;
    for n in 0..3 {
        within(other.trigger_and_wait(n)).await.expect("completes");
    }
    assert_eq!(gate.arrivals(), 2);
    gate.open();
    for run in runs {
        within(run.output()).await.expect("completes");
    }
    assert_eq!(gate.most_inside(), 2);
}

/// A run that waits for its key holds no slot.
#[tokio::test]
async fn runs_that_wait_for_a_key_take_no_slot() {
    let gate = Gate::new();
    let durably = Durably::builder().max_concurrent_runs(2).in_memory().await.expect("opens");
    let job = durably.register(gated("job", &gate)).expect("registers");
    for _ in 0..3 {
        keyed(&job, "key").await;
    }
    keyed(&job, "other").await;
    within(gate.reached_by(2)).await;
    assert_eq!(gate.most_inside(), 2);
    gate.open();
    within(durably.run_until_idle(None)).await.expect("works");
}
