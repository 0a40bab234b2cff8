//! What the writer decides: inside the transaction, whole or not at all, and never for a lease that is over.

use std::time::Duration;

use futures::FutureExt;

use crate::codec;
use crate::codec::records::{StepRecord, WaitRecord};
use crate::error::Error;
use crate::job::{ErrorKind, JobError};
use crate::run::{RunStatus, StepKind};
use crate::store::op::{Accepted, Admitted, NewRun, Notes, NotesOf, Op, Outcome, Purge, Settled, Signal, Triggered};
use crate::store::tests::world::{World, json, new};
use crate::time::Timestamp;
use crate::trigger::{Disposition, OnConflict};

fn world() -> World {
    let world = World::new();
    world.register(&[("a", 100), ("b", 100)]);
    world
}

#[test]
fn of_64_triggers_of_one_key_in_one_group_one_is_created() {
    let world = world();
    let commits = || world.ask(Op::Stats, ()).expect("counts").commits;
    let before = commits();
    let runs = (0..64).map(|n| new(&format!("{}", n % 2)).idempotent("once")).collect();
    let answers: Vec<_> = world.trigger_together(runs).into_iter().map(|answer| answer.expect("triggers")).collect();
    assert_eq!(commits() - before, 2, "the one whose start submitted the others, and all of those");
    assert_eq!(answers[0].disposition, Disposition::Created);
    assert!(answers.iter().all(|answer| answer.run == answers[0].run && answer.status == RunStatus::Leased));
    assert!(answers[1..].iter().all(|answer| answer.disposition == Disposition::Idempotent));
    assert!(answers.iter().enumerate().all(|(n, answer)| answer.input_differs == (n % 2 == 1)));
    assert_eq!(world.runs().len(), 2);
    let again = world.trigger(new("0").idempotent("once")).expect("triggers");
    assert_eq!((again.run, again.disposition), (answers[0].run, Disposition::Idempotent));
}

#[test]
fn of_64_items_of_one_key_in_one_batch_one_is_created() {
    let world = world();
    let items: Vec<_> = (0..64).map(|n| new(&format!("{}", n % 2)).idempotent("once")).collect();
    let answers = world.ask(Op::Trigger, items).expect("triggers");
    assert_eq!(answers[0].disposition, Disposition::Created);
    assert!(answers.iter().all(|answer| answer.run == answers[0].run && answer.status == RunStatus::Leased));
    assert!(answers[1..].iter().all(|answer| answer.disposition == Disposition::Idempotent));
    assert!(answers.iter().enumerate().all(|(n, answer)| answer.input_differs == (n % 2 == 1)));
    assert_eq!(world.runs().len(), 1);
}

#[test]
fn a_batch_that_is_refused_leaves_nothing() {
    let world = world();
    let holder = world.trigger(new("1").idempotent("taken")).expect("triggers").run;
    let executing = world.trigger(new("2").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let waiting = world.trigger(new("3").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let (before, _) = (world.events().len(), world.starts());
    let good = || new("4").keyed("fresh", OnConflict::Queue).idempotent("free");
    let refused = [
        vec![good(), new("5").keyed("k", OnConflict::Reject), good()],
        vec![good(), new("changed").idempotent("taken").rejecting_changes()],
        vec![good(), new("5").keyed("fresh", OnConflict::Reject)],
        vec![good(), new("other").idempotent("free").rejecting_changes()],
        vec![good(), new("6").keyed("k", OnConflict::Replace), new("changed").idempotent("taken").rejecting_changes()],
    ];
    for (at, items) in refused.into_iter().enumerate() {
        let error = world.ask(Op::Trigger, items).expect_err("refused");
        let Error::Item { index, error } = error else { panic!("case {at}: {error}") };
        match (at, *error) {
            (0, Error::KeyConflict { run, .. }) => assert_eq!((index, run), (1, Some(waiting))),
            (1, Error::IdempotencyMismatch { run, .. }) => assert_eq!((index, run), (1, Some(holder))),
            (2, Error::KeyConflict { run, .. }) => assert_eq!((index, run), (1, None)),
            (3, Error::IdempotencyMismatch { run, .. }) => assert_eq!((index, run), (1, None)),
            (4, Error::IdempotencyMismatch { run, .. }) => assert_eq!((index, run), (2, Some(holder))),
            (at, error) => panic!("case {at}: {error}"),
        }
        assert_eq!(world.runs().len(), 3, "case {at}");
        assert_eq!((world.events().len(), world.starts().len()), (0, 0), "case {at}");
    }
    assert!(before > 0);
    // Nor is anything left in the engine: the keys are free, and the line is as it was.
    let fresh = world.trigger(good()).expect("triggers");
    assert_eq!((fresh.disposition, fresh.status), (Disposition::Created, RunStatus::Leased));
    assert_eq!(world.complete(executing, 1), Accepted::Recorded);
    assert_eq!(world.run(waiting).expect("there").status, RunStatus::Leased);
}

#[test]
fn a_batch_answers_with_each_run_as_it_was_committed() {
    let world = world();
    world.trigger(new("0").keyed("k", OnConflict::Queue)).expect("triggers");
    let items = vec![
        new("1").keyed("k", OnConflict::Queue).idempotent("i"),
        new("1").idempotent("i"),
        new("2").keyed("k", OnConflict::Replace),
        new("3"),
        new("4").keyed("k", OnConflict::Skip),
    ];
    let answers = world.ask(Op::Trigger, items).expect("triggers");
    let expected = [
        (Disposition::Created, RunStatus::Cancelled),
        (Disposition::Idempotent, RunStatus::Cancelled),
        (Disposition::Created, RunStatus::Pending),
        (Disposition::Created, RunStatus::Leased),
        (Disposition::Coalesced, RunStatus::Pending),
    ];
    for (answer, (disposition, status)) in answers.iter().zip(expected) {
        assert_eq!((answer.disposition, answer.status), (disposition, status));
        assert_eq!(world.run(answer.run).expect("there").status, status);
    }
    assert_eq!(answers[4].run, answers[2].run);
}

#[test]
fn a_batch_replaces_and_skips_what_the_same_triggers_would_one_by_one() {
    use OnConflict::{Queue, Replace, Skip};
    let item = |input: &str, priority, on_conflict| NewRun { priority, ..new(input).keyed("k", on_conflict) };
    let cases = [
        vec![item("a", 10, Queue), item("b", 0, Replace)],
        vec![item("a", 10, Queue), item("b", 10, Skip), item("c", 10, Replace), item("d", 10, Replace)],
        vec![
            item("a", 0, Queue),
            item("b", -5, Queue),
            item("c", 0, Replace),
            item("d", 0, Skip),
            item("e", 0, Replace),
        ],
        // One that replaces another stands where that stood among those of its own priority.
        vec![item("a", -9, Queue), item("b", -5, Queue), item("c", -5, Replace), item("d", -5, Replace)],
        vec![item("a", -9, Replace), item("b", -9, Queue), item("c", -9, Replace), item("d", -9, Replace)],
    ];
    let waiting = || {
        let world = world();
        for input in ["holds", "waits"] {
            world.trigger(item(input, 0, Queue)).expect("triggers");
        }
        world
    };
    // What became of each, and what of its run.
    let became = |world: &World, answers: &[Triggered]| {
        let answers = answers.iter().map(|answer| {
            let run = world.run(answer.run).expect("there");
            (answer.disposition, run.input)
        });
        let answers: Vec<_> = answers.collect();
        (answers, world.runs().into_iter().map(|run| (run.input, run.status)).collect::<Vec<_>>())
    };
    for (at, items) in cases.into_iter().enumerate() {
        let (together, one_by_one) = (waiting(), waiting());
        let answers: Vec<_> = items.iter().map(|item| one_by_one.trigger(item.clone()).expect("triggers")).collect();
        let expected = became(&one_by_one, &answers);
        let answers = together.ask(Op::Trigger, items).expect("triggers");
        assert_eq!(became(&together, &answers), expected, "case {at}");
    }
}

#[test]
fn only_the_lease_in_force_writes() {
    let world = world();
    let run = world.trigger(new("1")).expect("triggers").run;
    assert_eq!(world.checkpoint(run, 1, 0, "x"), Accepted::Recorded);
    assert_eq!(world.end(run, 1, Outcome::HandedBack, true), Accepted::Recorded);
    assert_eq!(world.starts(), [(run, 1), (run, 2)]);
    let refuses = |generation| {
        let notes = NotesOf { run, generation, notes: Notes::default() };
        assert_eq!(world.checkpoint(run, generation, 7, "late"), Accepted::Refused);
        assert_eq!(world.ask(Op::notes, notes).expect("answered"), Accepted::Refused);
        assert_eq!(world.end(run, generation, Outcome::Completed(json("late")), true), Accepted::Refused);
        world.stopped(run, generation);
    };
    refuses(1);
    refuses(3);
    assert_eq!(world.run(run).expect("there").status, RunStatus::Leased);
    assert_eq!(world.steps(run).len(), 1);
    assert_eq!(world.checkpoint(run, 2, 1, "y"), Accepted::Recorded);
    assert_eq!(world.complete(run, 2), Accepted::Recorded);
    assert_eq!(world.starts(), []);
}

#[test]
fn a_step_whose_signal_does_not_fit_is_not_counted_as_completed() {
    let world = world();
    let run = world.trigger(new("1")).expect("triggers").run;
    assert_eq!(world.checkpoint(run, 1, 0, "x"), Accepted::Recorded);
    let signal = Signal { run, name: "go".into(), payload: json("not what it takes") };
    world.ask(Op::signal, signal).expect("signals");
    let wait = WaitRecord { signal: Some("go".to_owned()), ..WaitRecord::default() };
    let record = world.waiting(1, StepKind::Signal, wait);
    let settled = world.waits((run, 1), 1, record.clone(), false);
    assert!(matches!(settled, Settled::Decided(Ok(_))), "{settled:?}");
    let counts = |world: &World| {
        let run = world.run(run).expect("there");
        (run.completed_step_count, run.current_step_index)
    };
    assert_eq!(counts(&world), (2, 2));
    let error = JobError::of_kind(ErrorKind::Mismatch, "it does not fit".to_owned()).into_record();
    let sealed = codec::seal(&StepRecord { error: Some(error.clone()), open: None, ..record }, &[]);
    let mut failed = world.checkpoint_of(run, 1, 1, "");
    failed.told.output_at = sealed.len();
    failed.told.record = sealed.into();
    failed.told.error = Some(Box::new(error));
    for _ in 0..2 {
        assert_eq!(world.ask(Op::Checkpoint, failed.clone()).expect("bodies get no errors"), Accepted::Recorded);
        assert_eq!(counts(&world), (1, 1));
    }
    assert_eq!(counts(&world.killed(|_| {})), (1, 1));
}

#[test]
fn after_a_cancel_nothing_is_recorded_and_the_key_is_held_until_the_body_stops() {
    let world = world();
    let run = world.trigger(new("1").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let next = world.trigger(new("2").keyed("k", OnConflict::Queue)).expect("triggers").run;
    world.starts();
    assert_eq!(world.cancel(run).expect("cancels"), 1);
    assert_eq!(*world.told.cancels.lock().expect("whole"), [(run, 1)]);
    assert_eq!(world.checkpoint(run, 1, 0, "late"), Accepted::Refused);
    assert!(matches!(world.cancel(run), Err(Error::Conflict { .. })));
    assert_eq!(world.end(run, 1, Outcome::Completed(json("late")), false), Accepted::Refused);
    assert_eq!((world.starts(), world.steps(run).len()), (vec![], 0));
    assert_eq!(world.run(run).expect("there").status, RunStatus::Cancelled);
    world.stopped(run, 1);
    assert_eq!(world.starts(), [(next, 1)]);
}

#[test]
fn a_run_that_is_deleted_while_its_body_stops_is_gone_and_its_key_held() {
    let world = world();
    let run = world.trigger(new("1").keyed("k", OnConflict::Queue)).expect("triggers").run;
    world.cancel(run).expect("cancels");
    world.delete(run).expect("deletes");
    assert!(world.run(run).is_none());
    let next = world.trigger(new("2").keyed("k", OnConflict::Queue)).expect("triggers").run;
    assert_eq!(world.run(next).expect("there").status, RunStatus::Pending);
    world.stopped(run, 1);
    assert_eq!(world.run(next).expect("there").status, RunStatus::Leased);
}

#[test]
fn a_run_cancelled_before_its_first_start_can_be_resumed_completed_and_deleted() {
    let world = World::new();
    let run = world.trigger(new("1")).expect("triggers").run;
    world.cancel(run).expect("cancels");
    world.resume(run).expect("resumes");
    // A new process has folded the journal, so that its state is in the table.
    let world = world.killed(|_| {});
    world.register(&[("a", 100)]);
    assert_eq!(world.starts(), [(run, 1)]);
    assert_eq!(world.complete(run, 1), Accepted::Recorded);
    world.delete(run).expect("deletes");
    assert!(world.run(run).is_none());
    assert_eq!(world.tables_that_name(run), []);
    let world = world.killed(|_| {});
    assert_eq!(world.tables_that_name(run), []);
}

#[test]
fn a_blocked_run_that_is_cancelled_after_a_restart_does_not_start() {
    let world = world();
    let run = world.trigger(new("1")).expect("triggers").run;
    assert_eq!(world.end(run, 1, Outcome::Blocked("no".into()), true), Accepted::Recorded);
    let blocked = world.run(run).expect("there");
    assert_eq!((blocked.status, blocked.blocked.as_deref()), (RunStatus::Pending, Some("no")));
    let world = world.killed(|_| {});
    world.cancel(run).expect("cancels");
    world.register(&[("a", 100)]);
    assert_eq!(world.starts(), []);
    assert_eq!(world.run(run).expect("there").status, RunStatus::Cancelled);
}

#[test]
fn committed_events_are_numbered_without_gaps_and_those_that_write_nothing_take_no_number() {
    let world = world();
    world.trigger(new("1").keyed("k", OnConflict::Queue)).expect("triggers");
    world.trigger(new("2").keyed("k", OnConflict::Queue)).expect("triggers");
    for _ in 0..3 {
        let skipped = world.trigger(new("3").keyed("k", OnConflict::Skip)).expect("triggers");
        assert_eq!(skipped.disposition, Disposition::Coalesced);
    }
    world.trigger(new("4")).expect("triggers");
    let numbers = |events: &[std::sync::Arc<crate::event::Event>]| {
        events.iter().map(|event| (event.sequence, event.committed)).collect::<Vec<_>>()
    };
    let told = [(1, true), (2, true), (3, true), (3, false), (3, false), (3, false), (4, true), (5, true)];
    assert_eq!(numbers(&world.events()), told);
    let world = world.killed(|_| {});
    // Two runs were executing, and are handed back.
    assert_eq!(numbers(&world.events()), [(6, true), (7, true)]);
}

#[test]
fn runs_that_their_keys_hold_use_up_nothing_of_what_a_purge_may_delete() {
    let world = World::new();
    world.register(&[("a", 99)]);
    let held = |n: usize| {
        let mut run = new("1").idempotent(&n.to_string());
        if let Some(idempotency) = &mut run.idempotency {
            idempotency.ttl = Some(Duration::from_secs(3_600));
        }
        run
    };
    let mut runs: Vec<NewRun> = (0..10).map(held).collect();
    runs.extend([new("2"), new("3"), new("4")]);
    for run in runs {
        let run = world.trigger(run).expect("triggers").run;
        assert_eq!(world.complete(run, 1), Accepted::Recorded);
        world.stopped(run, 1);
    }
    // One executes, so that a commit deletes two at most.
    world.trigger(new("5")).expect("triggers");
    let before = Timestamp::from_millis(u64::MAX);
    let purge = |after| world.ask(Op::Purge, Purge { before, limit: 100, after }).expect("purges");
    let first = purge(None);
    assert_eq!(first.deleted, 2);
    let second = purge(first.after);
    assert_eq!((second.deleted, second.after), (1, None));
}

#[test]
fn working_off_for_some_does_not_cut_short_what_others_ask_for() {
    for (limits, together) in [([None, Some(1)], 4), ([Some(1), None], 4), ([Some(1), Some(2)], 3)] {
        let world = World::new().killed(|config| config.paused = true);
        world.register(&[("a", 1)]);
        for n in 0..4 {
            world.trigger(new(&n.to_string())).expect("triggers");
        }
        let ask = |limit| Box::pin(world.store.submit(Op::Idle, limit, Admitted::default()).answer());
        let mut idle = limits.map(ask);
        for _ in 0..together {
            assert!(idle.iter_mut().all(|idle| idle.now_or_never().is_none()), "{limits:?}");
            let [(run, generation)] = world.starts()[..] else { panic!("{limits:?}: one is to be started") };
            assert_eq!(world.complete(run, generation), Accepted::Recorded);
        }
        let ended = idle.map(|idle| idle.now_or_never().expect("it is over").expect("works"));
        assert_eq!((ended, world.starts()), ([together; 2], vec![]), "{limits:?}");
    }
}
