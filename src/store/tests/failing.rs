//! A file that fails: no answer is untrue, nothing acknowledged is lost, nothing happens twice.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;

use crate::error::{Advice, Error};
use crate::id::RunId;
use crate::run::{RunFilter, RunStatus};
use crate::schedule::{Missed, Timetable};
use crate::store::op::{Accepted, NewSchedule, Op, Triggered};
use crate::store::tests::world::{Disk, Fails, Hand, Plan, World, json, new};
use crate::trigger::{Disposition, OnConflict};

/// A value of this length has a row of its own.
const LARGE: usize = 20 << 10;

/// What was acknowledged, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Acked {
    Triggered { input: &'static str, run: RunId },
    Checkpoint { run: RunId, index: u32 },
    Completed(RunId),
    Cancelled(RunId),
    Resumed(RunId),
    Deleted(RunId),
}

/// A bit of everything. Every answer is the one that an untouched file gives; `acked` is told of each.
fn scenario(world: &World, mut acked: impl FnMut(Acked)) {
    let trigger =
        |input, key| world.trigger(new(input).idempotent(input).keyed(key, OnConflict::Queue)).expect("triggers");
    world.register(&[("a", 9)]);
    let runs: Vec<RunId> = [("1", "k1"), ("2", "k2"), ("3", "k2")]
        .map(|(input, key)| {
            let Triggered { run, disposition, .. } = trigger(input, key);
            assert_eq!(disposition, Disposition::Created);
            acked(Acked::Triggered { input, run });
            run
        })
        .to_vec();
    let again = trigger("2", "k2");
    assert_eq!((again.run, again.disposition), (runs[1], Disposition::Idempotent));
    for (index, value) in [(0, "small".to_owned()), (1, "x".repeat(LARGE))] {
        assert_eq!(world.checkpoint(runs[0], 1, index, &value), Accepted::Recorded);
        acked(Acked::Checkpoint { run: runs[0], index });
    }
    assert_eq!(world.run(runs[0]).expect("there").completed_step_count, 2);
    assert_eq!(world.complete(runs[0], 1), Accepted::Recorded);
    acked(Acked::Completed(runs[0]));
    assert_eq!(world.cancel(runs[1]).expect("cancels"), 1);
    acked(Acked::Cancelled(runs[1]));
    assert_eq!(world.checkpoint(runs[1], 1, 0, "late"), Accepted::Refused);
    assert_eq!(world.run(runs[2]).expect("there").status, RunStatus::Pending, "the key is held");
    world.stopped(runs[1], 1);
    assert_eq!(world.run(runs[2]).expect("there").status, RunStatus::Leased);
    assert_eq!(world.resume(runs[1]).expect("resumes"), 1);
    acked(Acked::Resumed(runs[1]));
    // It may fail where the file does, and changes nothing either way.
    let _ = world.ask(Op::Compact, ());
    assert_eq!(world.checkpoint(runs[2], 1, 0, "x"), Accepted::Recorded);
    acked(Acked::Checkpoint { run: runs[2], index: 0 });
    world.delete(runs[0]).expect("deletes");
    acked(Acked::Deleted(runs[0]));
    assert_eq!(world.run(runs[1]).expect("there").status, RunStatus::Pending, "the key is held again");
}

/// What someone who knows no ids sees of a world.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Run and generation.
    starts: Vec<(usize, u64)>,
    /// Sequence, kind and run.
    events: Vec<(u64, String, usize)>,
    /// Each with its steps.
    runs: Vec<String>,
}

fn seen(world: &World) -> Seen {
    let events = world.events();
    let ids: BTreeSet<RunId> = events.iter().map(|event| event.run_id).collect();
    let nth = |run: RunId| ids.iter().position(|id| *id == run).expect("its trigger is an event");
    let starts = world.starts().into_iter().map(|(run, generation)| (nth(run), generation)).collect();
    let events = events.iter().map(|event| (event.sequence, event.kind.name().to_owned(), nth(event.run_id))).collect();
    let show = |run: crate::run::Run| {
        let steps = world.steps(run.id);
        let steps: Vec<_> = steps.iter().map(|step| (step.index, &step.output, step.attempts)).collect();
        let counts = (run.current_step_index, run.completed_step_count, run.lease_generation, run.recoveries);
        format!("{:?} {:?} {:?} {counts:?} {steps:?}", run.input, run.status, run.idempotency_key)
    };
    Seen { starts, events, runs: world.runs().into_iter().map(show).collect() }
}

/// Everything acknowledged is there, and nothing else, in a new process over these bytes.
fn check_image(image: Vec<u8>, acked: &[Acked]) {
    let clock = Hand::at(2_000_000);
    let world = World::open(Disk::of(image, &clock), &clock, |_| {});
    let gone: Vec<RunId> =
        acked.iter().filter_map(|fact| if let Acked::Deleted(run) = fact { Some(*run) } else { None }).collect();
    for fact in acked {
        match *fact {
            Acked::Deleted(run) => assert!(world.run(run).is_none(), "{fact:?}"),
            Acked::Triggered { run, .. }
            | Acked::Checkpoint { run, .. }
            | Acked::Completed(run)
            | Acked::Cancelled(run)
            | Acked::Resumed(run)
                if gone.contains(&run) || world.run(run).is_none() =>
            {
                // The last of them may have been deleted without its answer.
                let last = acked.iter().rev().find(|fact| !matches!(fact, Acked::Checkpoint { .. }));
                assert!(gone.contains(&run) || matches!(last, Some(Acked::Resumed(_))), "{fact:?} is lost");
            }
            Acked::Triggered { input, run } => {
                assert_eq!(world.run(run).expect("there").input, Some(input.into()));
                let again = world.trigger(new(input).idempotent(input)).expect("triggers");
                assert_eq!((again.run, again.disposition), (run, Disposition::Idempotent), "{fact:?}");
            }
            Acked::Checkpoint { run, index } => {
                assert!(world.steps(run).iter().any(|step| step.index == index), "{fact:?} is lost");
            }
            Acked::Completed(run) => assert_eq!(world.run(run).expect("there").status, RunStatus::Completed),
            Acked::Cancelled(run) => {
                let status = world.run(run).expect("there").status;
                let stands = status == RunStatus::Cancelled || acked.len() >= 7 && status == RunStatus::Pending;
                assert!(stands, "{fact:?} is {status}");
            }
            Acked::Resumed(run) => assert_eq!(world.run(run).expect("there").status, RunStatus::Pending),
        }
    }
    let created = acked.iter().filter(|fact| matches!(fact, Acked::Triggered { .. })).count();
    let runs = world.runs().len() + gone.len();
    assert!(runs <= 3 && runs <= created + 1, "{runs} runs of {created}");
}

/// Fails one operation after another until the scenario passes untouched.
fn sweep(fails: Fails, opens: Option<u32>) {
    let untouched = World::new();
    scenario(&untouched, |_| {});
    let expected = seen(&untouched);
    for at in 0.. {
        let world = World::new();
        world.disk.plan(Plan { at, fails, opens });
        let mut acked = Vec::new();
        scenario(&world, |fact| acked.push(fact));
        let missed = world.disk.is_untouched();
        world.disk.plan(None);
        let found = seen(&world);
        assert_eq!(found, expected, "operation {at}");
        assert!(!world.store.is_degraded(), "operation {at}");
        let [_, durable] = world.disk.images();
        check_image(durable, &acked);
        if missed {
            assert!(at > 50, "the sweep is over after {at} operations");
            return;
        }
    }
}

#[test]
fn an_operation_that_is_not_done_is_made_good() {
    sweep(Fails::Before, None);
}

#[test]
fn an_operation_that_is_done_and_says_it_is_not_is_not_done_again() {
    sweep(Fails::After, None);
}

#[test]
fn a_file_that_stays_away_for_a_while_is_waited_for() {
    sweep(Fails::Before, Some(2));
}

#[test]
fn a_file_that_stays_away_after_a_commit_is_waited_for() {
    sweep(Fails::After, Some(2));
}

#[test]
fn a_kill_at_any_operation_loses_nothing_acknowledged_and_invents_nothing() {
    let world = World::new();
    world.disk.record();
    let mut acked = Vec::new();
    scenario(&world, |fact| acked.push((world.disk.recorded(), fact)));
    let history = world.disk.history();
    let mut durable_seen = None;
    for (at, (live, durable)) in history.into_iter().enumerate() {
        let known: Vec<Acked> = acked.iter().filter(|(when, _)| *when <= at).map(|(_, fact)| fact.clone()).collect();
        check_image(live, &known);
        // A power loss; the image changes with each flush only.
        if durable_seen.as_ref() != Some(&durable) {
            check_image(durable.clone(), &known);
            durable_seen = Some(durable);
        }
    }
}

#[test]
fn an_outage_over_5_s_is_indeterminate_to_callers_and_nothing_to_bodies() {
    for (fails, is_there) in [(Fails::Before, false), (Fails::After, true)] {
        let clock = Hand::at(1_000_000);
        let mut disk = Disk::new(&clock);
        disk.opens_take(Duration::from_secs(3));
        let world = World::open(disk, &clock, |_| {});
        world.register(&[("a", 9)]);
        let run = world.trigger(new("1")).expect("triggers").run;

        let sync = syncs(&world);
        world.disk.plan(Plan { at: sync, fails, opens: Some(3) });
        let outcome = world.trigger(new("2").idempotent("2"));
        assert!(matches!(outcome, Err(Error::Indeterminate)), "{outcome:?}");
        world.disk.plan(None);
        let again = world.trigger(new("2").idempotent("2")).expect("triggers");
        assert_eq!(again.disposition == Disposition::Idempotent, is_there);
        assert_eq!(world.runs().len(), 2);

        world.disk.plan(Plan { at: sync, fails, opens: Some(3) });
        assert_eq!(world.checkpoint(run, 1, 0, "x"), Accepted::Recorded);
        world.disk.plan(Plan { at: sync, fails, opens: Some(3) });
        assert_eq!(world.complete(run, 1), Accepted::Recorded);
        world.disk.plan(None);
        let found = world.run(run).expect("there");
        assert_eq!((found.status, found.completed_step_count, found.lease_generation), (RunStatus::Completed, 1, 1));
        let names: Vec<_> =
            world.events().iter().filter(|event| event.run_id == run).map(|event| event.kind.name()).collect();
        assert_eq!(names, ["step:complete", "run:complete"]);
        assert!(!world.store.is_degraded());
    }
}

/// The number of the operation that flushes an ordinary commit: the last one.
fn syncs(world: &World) -> u64 {
    world.disk.plan(None);
    world.trigger(new("probe").idempotent("probe")).expect("triggers");
    let ops = world.disk.ops();
    let probe = world.runs().pop().expect("there").id;
    assert_eq!(world.complete(probe, 1), Accepted::Recorded);
    world.delete(probe).expect("deletes");
    world.events();
    ops - 1
}

#[test]
fn a_shutdown_waits_no_longer_for_a_file_that_stays_away_than_callers_do() {
    let clock = Hand::at(1_000_000);
    let mut disk = Disk::new(&clock);
    disk.opens_take(Duration::from_secs(3));
    let world = World::open(disk, &clock, |_| {});
    world.register(&[("a", 9)]);
    world.trigger(new("1")).expect("triggers");
    // It never comes back. The close hands back what executes, which needs the file.
    world.disk.plan(Plan { at: 0, fails: Fails::Before, opens: Some(u32::MAX) });
    let closed = world.ask(Op::Close, true);
    assert!(matches!(closed, Err(Error::Storage(_))), "{closed:?}");
    assert!(matches!(world.trigger(new("2")), Err(Error::ShutDown)));
}

#[test]
fn a_read_that_fails_is_repaired_though_nothing_is_written() {
    let clock = Hand::at(1_000_000);
    let world = World::open(Disk::new(&clock), &clock, |_| {});
    world.register(&[("a", 9)]);
    let run = world.trigger(new("1")).expect("triggers").run;
    world.ask(Op::Close, true).expect("closes");
    let [bytes, _] = world.disk.images();
    // Nothing of it is in memory, and nobody writes.
    let world = World::open(Disk::of(bytes, &clock), &clock, |config| config.cache_bytes = 0);
    let query = || world.store.get_steps(run).now_or_never().expect("reads inline");
    world.disk.plan(Plan { at: 0, fails: Fails::Before, opens: None });
    let failed = query();
    assert!(matches!(failed, Err(Error::Storage(_))), "{failed:?}");
    assert_eq!(query().expect("reads").len(), 0);
    assert!(!world.store.is_degraded());
}

#[test]
fn a_file_that_stays_away_is_no_shutdown_to_who_reads() {
    let clock = Hand::at(1_000_000);
    let world = World::open(Disk::new(&clock), &clock, |_| {});
    world.store.inner.shared.take_away();
    let read = world.store.get_runs(RunFilter::new()).now_or_never().expect("reads inline");
    assert!(matches!(read, Err(Error::Storage(_))), "{read:?}");
    assert_eq!(read.unwrap_err().advice(), Advice::Retry);
}

#[test]
fn bodies_keep_key_slot_and_counters_over_an_outage() {
    let world = World::new();
    world.register(&[("a", 9)]);
    let stopping = world.trigger(new("1").keyed("gone", OnConflict::Queue)).expect("triggers").run;
    let executing = world.trigger(new("2").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let behind = world.trigger(new("3").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let after = world.trigger(new("4").keyed("gone", OnConflict::Queue)).expect("triggers").run;
    assert_eq!(world.checkpoint(executing, 1, 0, "x"), Accepted::Recorded);
    world.cancel(stopping).expect("cancels");
    world.delete(stopping).expect("deletes");
    let events = world.events().last().expect("some").sequence;
    world.starts();

    world.disk.plan(Plan { at: 0, fails: Fails::Before, opens: Some(1) });
    // Nothing but the outage happens: a trigger that is refused writes nothing of its own.
    let triggered = world.trigger(new("5").keyed("k", OnConflict::Queue)).expect("triggers");
    world.disk.plan(None);
    assert_eq!(triggered.status, RunStatus::Pending);
    assert_eq!(world.starts(), [], "nobody starts beside a body that is there");
    let found = world.run(executing).expect("there");
    assert_eq!((found.status, found.completed_step_count, found.current_step_index), (RunStatus::Leased, 1, 1));
    assert_eq!(world.events().iter().map(|event| event.sequence).collect::<Vec<_>>(), [events + 1]);
    world.stopped(stopping, 1);
    assert_eq!(world.starts(), [(after, 1)]);
    assert_eq!(world.checkpoint(executing, 1, 1, "y"), Accepted::Recorded);
    assert_eq!(world.complete(executing, 1), Accepted::Recorded);
    assert_eq!(world.starts(), [(behind, 1)]);
}

#[test]
fn an_allowance_is_not_used_up_by_a_commit_that_was_lost() {
    let clock = Hand::at(1_000_000);
    let world = World::open(Disk::new(&clock), &clock, |config| config.paused = true);
    world.register(&[("a", 1)]);
    let runs = ["1", "2", "3"].map(|input| world.trigger(new(input)).expect("triggers").run);
    let idle = world.store.submit(Op::Idle, Some(2), Default::default());
    assert_eq!(world.starts(), [(runs[0], 1)]);
    // The end of the first and the start of the second are one commit, and it fails.
    world.disk.plan(Plan { at: 0, fails: Fails::Before, opens: None });
    assert_eq!(world.complete(runs[0], 1), Accepted::Recorded);
    world.disk.plan(None);
    assert_eq!(world.starts(), [(runs[1], 1)]);
    assert_eq!(world.complete(runs[1], 1), Accepted::Recorded);
    assert_eq!(futures::executor::block_on(idle.answer()).expect("answers"), 2);
    assert_eq!(world.starts(), []);
}

#[test]
fn nothing_starts_before_the_end_whatever_is_asked_for_and_whatever_fails() {
    let world = World::new();
    world.register(&[("a", 1)]);
    let executing = world.trigger(new("1")).expect("triggers").run;
    world.trigger(new("2")).expect("triggers");
    assert_eq!(world.starts(), [(executing, 1)]);
    world.store.send(Op::Drain);
    let idle = world.store.submit(Op::Idle, None, Default::default());
    world.ask(Op::Pause, false).expect("is answered");
    world.disk.plan(Plan { at: 0, fails: Fails::Before, opens: None });
    assert_eq!(world.complete(executing, 1), Accepted::Recorded);
    world.disk.plan(None);
    assert_eq!(world.starts(), []);
    assert_eq!(futures::executor::block_on(idle.answer()).expect("answers"), 1);
}

#[test]
fn a_row_that_cannot_be_read_is_its_callers_answer_and_nobody_elses() {
    use crate::codec::keys;
    use crate::store::tables::Table;
    let world = World::new();
    world.register(&[("a", 1)]);
    let executing = world.trigger(new("1")).expect("triggers").run;
    let bad = world.trigger(new("2").idempotent("bad")).expect("triggers").run;
    let good = world.trigger(new("3")).expect("triggers").run;
    // Bits rot.
    let world = world.with_row(Table::Runs, keys::run(bad), b"\x01rot".to_vec());
    world.register(&[("a", 1)]);
    assert_eq!(world.starts(), [(executing, 2)]);
    for answer in [
        world.cancel(bad).map(drop),
        world.delete(bad),
        world.resume(bad).map(drop),
        world.trigger(new("2").idempotent("bad")).map(drop),
    ] {
        assert!(matches!(answer, Err(Error::Corrupted { table: "runs", .. })), "{answer:?}");
    }
    assert!(!world.store.is_degraded());
    let targets = crate::store::op::Targets { runs: vec![bad, good], strict: false };
    assert_eq!(world.ask(Op::Cancel, targets).expect("cancels"), 1, "the one that can be read");
    let next = world.trigger(new("4")).expect("triggers").run;
    assert_eq!(world.checkpoint(executing, 2, 0, "x"), Accepted::Recorded);
    assert_eq!(world.end(executing, 2, crate::store::op::Outcome::Completed(json("x")), true), Accepted::Recorded);
    assert_eq!(world.starts(), [(next, 1)]);
}

#[test]
fn an_idempotency_key_that_leads_to_another_run_is_not_answered_with_it() {
    use crate::codec::keys;
    use crate::store::tables::Table;
    let world = World::new();
    world.register(&[("a", 1)]);
    world.trigger(new("1").idempotent("one")).expect("triggers");
    let two = world.trigger(new("2").idempotent("two")).expect("triggers").run;
    let world = world.with_row(Table::Idempotency, keys::idempotency(1, "one"), two.as_bytes().to_vec());
    world.register(&[("a", 1)]);
    let answer = world.trigger(new("1").idempotent("one"));
    assert!(matches!(answer, Err(Error::Corrupted { table: "idempotency", .. })), "{answer:?}");
    let again = world.trigger(new("2").idempotent("two")).expect("triggers");
    assert_eq!((again.run, again.disposition), (two, Disposition::Idempotent));
    assert!(!world.store.is_degraded());
}

#[test]
fn a_wait_whose_group_was_lost_is_one_wait() {
    let world = World::new();
    world.register(&[("a", 9)]);
    let runs = ["1", "2"].map(|input| world.trigger(new(input)).expect("triggers").run);
    // The wait and a trigger are one group, so that there is a commit to fail.
    let (store, disk) = (world.store.clone(), world.disk.clone());
    world.inside_next_start(move || {
        drop(store.submit(Op::Wait, (runs[0], runs[1]), Default::default()));
        drop(store.submit(Op::Trigger, vec![new("4")], Default::default()));
        disk.plan(Plan { at: 0, fails: Fails::Before, opens: None });
    });
    world.trigger(new("3")).expect("triggers");
    assert!(!world.disk.is_untouched(), "the fault has happened");
    assert!(matches!(world.ask(Op::Wait, (runs[1], runs[0])), Err(Error::WouldDeadlock { .. })), "it is kept");
    world.store.send(Op::WaitOver(runs[0], runs[1]));
    world.ask(Op::Wait, (runs[1], runs[0])).expect("no circle");
}

#[test]
fn a_wait_is_kept_whatever_fails_while_the_engine_is_rebuilt() {
    for at in 0.. {
        let world = World::new();
        world.register(&[("a", 9)]);
        let runs = ["1", "2"].map(|input| world.trigger(new(input)).expect("triggers").run);
        world.ask(Op::Wait, (runs[0], runs[1])).expect("no circle");
        let fails = |at| Plan { at, fails: Fails::Before, opens: None };
        world.disk.plan(fails(0));
        world.disk.then(fails(at));
        world.trigger(new("3")).expect("triggers");
        let is_over = world.disk.is_untouched();
        world.disk.plan(None);
        let circle = world.ask(Op::Wait, (runs[1], runs[0]));
        assert!(matches!(circle, Err(Error::WouldDeadlock { .. })), "operation {at}: {circle:?}");
        if is_over {
            assert!(at > 3, "nothing is read again");
            return;
        }
    }
}

#[test]
fn a_jobs_name_or_count_that_cannot_be_read_takes_no_other_job_down() {
    use crate::store::stage::Stage;
    use crate::store::tables::Table;
    let world = World::new();
    world.register(&[("a", 9), ("b", 9)]);
    let (done, pending) =
        (world.trigger(new("1")).expect("triggers").run, world.trigger(new("2")).expect("triggers").run);
    assert_eq!(world.complete(done, 1), Accepted::Recorded);
    let clock = world.clock.clone();
    let [live, _] = world.disk.images();
    drop(world);
    let disk = Disk::of(live, &clock);
    let medium = crate::store::file::Medium::Custom(std::sync::Arc::new(disk.clone()));
    let mut file = crate::store::disk::Disk::open(medium, Default::default(), clock.clone(), false).expect("opens");
    let mut stage = Stage::default();
    stage.put(Table::Jobs, &b"b"[..], b"\x01rot".to_vec());
    stage.put(Table::Tallies, &1u32.to_be_bytes()[..], b"\x01rot".to_vec());
    file.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    drop(file);

    let world = World::open(disk, &clock, |_| {});
    let counts = world.ask(Op::Stats, ()).expect("counts").jobs;
    let [completed, failed] = [RunStatus::Completed, RunStatus::Failed].map(|status| usize::from(status.to_byte()));
    assert_eq!(counts.iter().map(|(_, counts)| (counts[completed], counts[failed])).collect::<Vec<_>>(), [(1, 0)]);
    world.register(&[("a", 9), ("b", 9)]);
    assert_eq!(world.starts(), [(pending, 2)]);
    assert_eq!(world.runs().len(), 2);
    assert_eq!(world.complete(pending, 2), Accepted::Recorded);
}

/// Registers a schedule that is named as its expression.
fn every(world: &World, interval: &str) {
    let (expression, time_zone) = (format!("@every {interval}"), "UTC".to_owned());
    let timetable = Timetable::parse(&expression, &time_zone).expect("is allowed");
    let (name, run) = (interval.into(), new("due"));
    let new = NewSchedule { name, timetable, expression, time_zone, missed: Missed::All(9), run };
    world.ask(Op::Schedule, Box::new(new)).expect("registers");
}

/// What has fired, by due time in seconds.
fn fired(world: &World) -> Vec<(u64, String)> {
    let scheduled = world.runs().into_iter().filter_map(|run| run.schedule);
    let mut fired: Vec<_> = scheduled.map(|of| (of.due.expect("not by hand").as_millis() / 1_000, of.name)).collect();
    fired.sort();
    fired
}

#[test]
fn a_due_time_fires_once_whatever_operation_fails() {
    for (fails, opens) in
        [(Fails::Before, None), (Fails::After, None), (Fails::Before, Some(1)), (Fails::After, Some(1))]
    {
        for at in 0.. {
            let world = World::new();
            world.register(&[("a", 9)]);
            every(&world, "20s");
            every(&world, "30s");
            // From 1,000 s on.
            world.clock.advance(Duration::from_secs(20));
            world.disk.plan(Plan { at, fails, opens });
            world.ask(Op::Stats, ()).expect("is answered");
            let is_over = world.disk.is_untouched();
            world.disk.plan(None);
            world.clock.advance(Duration::from_secs(20));
            world.ask(Op::Stats, ()).expect("is answered");
            let expected = [(1_020, "20s".to_owned()), (1_020, "30s".to_owned()), (1_040, "20s".to_owned())];
            assert_eq!(fired(&world), expected, "{fails:?} {opens:?} {at}");
            if is_over {
                assert!(at > 3, "nothing was written");
                break;
            }
        }
    }
}

#[test]
fn a_due_time_fires_once_whenever_the_process_is_killed() {
    let world = World::new();
    world.register(&[("a", 9)]);
    every(&world, "20s");
    world.disk.record();
    for _ in 0..2 {
        world.clock.advance(Duration::from_secs(20));
        world.ask(Op::Stats, ()).expect("is answered");
    }
    let history = world.disk.history();
    assert!(history.len() > 3, "nothing was written");
    for (at, (live, durable)) in history.into_iter().enumerate() {
        for image in [live, durable] {
            let clock = Hand::at(1_041_000);
            let world = World::open(Disk::of(image, &clock), &clock, |_| {});
            world.ask(Op::Stats, ()).expect("is answered");
            assert_eq!(fired(&world), [(1_020, "20s".to_owned()), (1_040, "20s".to_owned())], "image {at}");
        }
    }
}
