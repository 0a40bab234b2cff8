//! What is due by the wall clock: in slices, in order, after a restart as before, and each moment once.

use std::time::Duration;

use crate::error::Error;
use crate::id::RunId;
use crate::job::ErrorKind;
use crate::limits::{ALARM_RECHECK, ALARMS_IN_GROUP_MAX};
use crate::run::RunStatus;
use crate::store::op::{NewRun, Op, Outcome, Suspension};
use crate::store::tests::world::{Fails, Plan, World, new};
use crate::time::{Clock, Timestamp};

const HOUR: Duration = Duration::from_secs(3600);

/// A world with room for all of its runs.
fn world() -> World {
    let world = World::new().killed(|config| config.max_concurrent_runs = 10_000);
    world.register(&[("a", 10_000)]);
    world
}

impl World {
    /// A run that sleeps until then.
    fn asleep(&self, run: NewRun, due: Timestamp) -> RunId {
        let run = self.trigger(run).expect("triggers").run;
        let (_, generation) = self.starts().pop().expect("it started");
        let suspension = Suspension { due: Some(due), signals: Vec::new(), heard: 0 };
        let _ = self.end(run, generation, Outcome::Suspended(suspension), true);
        run
    }

    /// What an operation in passing makes the writer look at.
    fn tick(&self) {
        self.store.send(Op::Tick);
    }

    fn status(&self, run: RunId) -> RunStatus {
        self.run(run).expect("is there").status
    }
}

#[test]
fn very_many_that_are_due_at_once_are_rung_in_slices_first_due_first() {
    let world = world();
    let began = world.clock.now();
    let count = 2 * ALARMS_IN_GROUP_MAX + 100;
    // The later it was triggered the sooner it is due.
    let due = |n: usize| began.saturating_add(HOUR - Duration::from_millis(n as u64));
    let runs: Vec<RunId> = (0..count).map(|n| world.asleep(new("x"), due(n))).collect();
    // A crash, and the storm comes with the next start: runs are woken a slice a commit, beside what else is asked for.
    world.clock.advance(HOUR);
    let world = world.killed(|config| config.max_concurrent_runs = 10_000);
    world.register(&[("a", 10_000)]);
    let due: Vec<RunId> = runs.into_iter().rev().collect();
    let asleep = || due.iter().filter(|run| world.status(**run) == RunStatus::Suspended).count();
    let mut left = asleep();
    while left > 0 {
        let first: Vec<RunId> = due[due.len() - left..].to_vec();
        assert!(
            first.iter().all(|run| world.status(*run) == RunStatus::Suspended),
            "what was due first was rung first"
        );
        world.tick();
        let now = asleep();
        assert!(now < left, "a tick rings some");
        left = now;
    }
    // A commit starts so many of them; the next goes on.
    let mut started = world.starts().len();
    while started < count {
        world.tick();
        let more = world.starts().len();
        assert!(more > 0, "{started} of {count} have started");
        started += more;
    }
}

#[test]
fn a_deadline_is_armed_by_the_trigger_and_by_every_start() -> Result<(), Error> {
    let world = world();
    let run = |hours: u32| NewRun { deadline: Some(hours * HOUR), ..new("x") };
    let executing = world.trigger(run(1))?.run;
    let asleep = world.asleep(run(2), world.clock.now().saturating_add(9 * HOUR));
    let done = world.trigger(run(1))?.run;
    let (_, generation) = world.starts().pop().expect("started");
    let _ = world.complete(done, generation);
    world.clock.advance(HOUR);
    world.tick();
    assert_eq!(world.status(executing), RunStatus::Failed);
    assert_eq!(world.told.cancels.lock().expect("whole")[..], [(executing, 1)], "its body is told");
    assert_eq!(world.status(done), RunStatus::Completed);
    let world = world.killed(|_| {});
    assert_eq!(world.status(asleep), RunStatus::Suspended);
    world.clock.advance(HOUR);
    world.tick();
    let failed = world.run(asleep).expect("is there");
    let kind = failed.error.map(|error| error.kind);
    assert_eq!((failed.status, kind), (RunStatus::Failed, Some(ErrorKind::DeadlineExceeded)));
    // What it would have been woken for has gone with it.
    world.clock.advance(9 * HOUR);
    world.tick();
    assert_eq!((world.status(asleep), world.starts().len()), (RunStatus::Failed, 0));
    Ok(())
}

#[test]
fn an_overdue_run_is_not_started_first() {
    let world = World::new();
    let run = world.trigger(NewRun { deadline: Some(HOUR), ..new("x") }).expect("triggers").run;
    world.clock.advance(HOUR);
    world.register(&[("a", 1)]);
    assert_eq!((world.status(run), world.starts().len()), (RunStatus::Failed, 0));
}

#[test]
fn a_moment_that_comes_while_the_commit_fails_is_not_lost() {
    // The alarm rings into a group that does not come about; the engine that is built again rings it again.
    for at in 0.. {
        let world = world();
        let run = world.asleep(new("x"), world.clock.now().saturating_add(HOUR));
        world.clock.advance(HOUR);
        world.disk.plan(Plan { at, fails: Fails::Before, opens: None });
        world.tick();
        let missed = world.disk.is_untouched();
        world.disk.plan(None);
        assert_eq!(world.status(run), RunStatus::Leased, "operation {at}");
        assert_eq!(world.starts(), [(run, 2)], "operation {at}");
        if missed {
            assert!(at > 0, "nothing failed");
            return;
        }
    }
}

#[test]
fn moments_are_looked_at_again_every_30_s_at_the_latest() {
    let world = world();
    let timeout = |world: &World| world.store.idle_for().and_then(|idle| idle.timeout);
    world.asleep(new("x"), world.clock.now().saturating_add(1_000 * HOUR));
    // Nothing is left to fold after an opening, which would be looked at as often.
    let world = world.killed(|_| {});
    world.register(&[]);
    assert_eq!(timeout(&world), Some(ALARM_RECHECK), "the wall clock may be set meanwhile");
    world.register(&[("a", 9)]);
    world.asleep(new("x"), world.clock.now().saturating_add(Duration::from_secs(7)));
    assert_eq!(timeout(&world), Some(Duration::from_secs(7)));
    world.clock.advance(Duration::from_secs(8));
    assert_eq!(timeout(&world), Some(Duration::ZERO));
}
