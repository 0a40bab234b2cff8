//! What a new process makes of what a kill left.

use std::time::Duration;

use crate::codec::records::WaitRecord;
use crate::job::ErrorKind;
use crate::run::{RunStatus, StepKind};
use crate::store::op::{Accepted, Op, Outcome, Settled, Suspension};
use crate::store::tests::world::{Disk, Hand, World, new};
use crate::time::Clock;
use crate::trigger::OnConflict;

#[test]
fn a_run_that_takes_the_process_with_it_too_often_is_poisoned() {
    for max_recoveries in [0, 1, 3] {
        let mut world = World::new();
        world.register(&[("a", 1)]);
        let run = world.trigger(new("1")).expect("triggers").run;
        for crash in 1..=max_recoveries {
            world = world.killed(|config| config.max_recoveries = max_recoveries);
            let found = world.run(run).expect("there");
            assert_eq!((found.status, found.recoveries), (RunStatus::Pending, crash));
            world.register(&[("a", 1)]);
            assert_eq!(world.starts(), [(run, u64::from(crash) + 1)]);
        }
        world = world.killed(|config| config.max_recoveries = max_recoveries);
        let found = world.run(run).expect("there");
        assert_eq!(found.status, RunStatus::Failed, "after {max_recoveries} recoveries");
        assert_eq!(found.error.map(|error| error.kind), Some(ErrorKind::Poisoned));
        world.register(&[("a", 1)]);
        assert_eq!(world.starts(), []);
    }
}

#[test]
fn a_run_that_gets_on_is_never_poisoned() {
    let mut world = World::new();
    world.register(&[("a", 1)]);
    let run = world.trigger(new("1")).expect("triggers").run;
    for crash in 1..10 {
        assert_eq!(world.checkpoint(run, crash, crash as u32 - 1, "x"), Accepted::Recorded);
        world = world.killed(|config| config.max_recoveries = 0);
        world.register(&[("a", 1)]);
        assert_eq!(world.starts(), [(run, crash + 1)]);
    }
    let found = world.run(run).expect("there");
    assert_eq!((found.recoveries, found.completed_step_count), (9, 9));
}

#[test]
fn a_wait_that_an_earlier_lease_began_gets_the_run_on_when_it_ends() {
    let world = World::new();
    world.register(&[("a", 1)]);
    let run = world.trigger(new("1")).expect("triggers").run;
    let due = world.clock.now().saturating_add(Duration::from_secs(1));
    let record = world.waiting(1, StepKind::Sleep, WaitRecord { due: Some(due), ..WaitRecord::default() });
    let Settled::Open(record) = world.waits((run, 1), 0, record, false) else { panic!("it is not due") };
    let suspension = Suspension { due: Some(due), signals: Vec::new(), heard: 0 };
    assert_eq!(world.end(run, 1, Outcome::Suspended(suspension), true), Accepted::Recorded);
    world.clock.advance(Duration::from_secs(1));
    world.store.send(Op::Tick);
    assert_eq!(world.starts(), [(run, 1), (run, 2)]);
    assert!(matches!(world.waits((run, 2), 0, *record, true), Settled::Decided(Ok(_))));
    let world = world.killed(|config| config.max_recoveries = 0);
    assert_eq!(world.run(run).expect("there").status, RunStatus::Pending);
}

#[test]
fn a_hand_back_counts_no_crash() {
    let mut world = World::new();
    world.register(&[("a", 1)]);
    let run = world.trigger(new("1")).expect("triggers").run;
    for generation in 1..6 {
        assert_eq!(world.end(run, generation, Outcome::HandedBack, false), Accepted::Recorded);
        world = world.killed(|config| config.max_recoveries = 0);
        world.register(&[("a", 1)]);
        assert_eq!(world.starts(), [(run, generation + 1)]);
    }
    assert_eq!(world.run(run).expect("there").recoveries, 0);
    // So the first real crash is the first that counts.
    let world = world.killed(|config| config.max_recoveries = 1);
    assert_eq!(world.run(run).expect("there").status, RunStatus::Pending);
}

#[test]
fn crashes_before_a_checkpoint_are_forgotten_when_a_body_is_gone_without_a_word() {
    let world = World::new();
    world.register(&[("a", 1)]);
    let run = world.trigger(new("1")).expect("triggers").run;
    let open = |world: World| {
        let world = world.killed(|config| config.max_recoveries = 1);
        assert_eq!(world.run(run).expect("there").status, RunStatus::Pending);
        world
    };
    let world = open(world);
    world.register(&[("a", 1)]);
    assert_eq!(world.checkpoint(run, 2, 0, "x"), Accepted::Recorded);
    world.stopped(run, 2);
    assert_eq!(world.starts(), [(run, 2), (run, 3)]);
    // The one crash since then is the first that counts.
    open(world);
}

#[test]
fn recovered_runs_keep_their_key_and_go_first() {
    let world = World::new();
    world.register(&[("a", 9)]);
    let waiting = world.trigger(new("0")).expect("triggers").run;
    assert_eq!(world.complete(waiting, 1), Accepted::Recorded);
    let executing = world.trigger(new("1").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let behind = world.trigger(new("2").keyed("k", OnConflict::Queue)).expect("triggers").run;
    let world = world.killed(|_| {});
    world.register(&[("a", 9)]);
    assert_eq!(world.starts(), [(executing, 2)]);
    assert_eq!(world.checkpoint(executing, 1, 0, "of the crashed lease"), Accepted::Refused);
    assert_eq!(world.complete(executing, 2), Accepted::Recorded);
    assert_eq!(world.starts(), [(behind, 1)]);
}

#[test]
fn ids_and_sequences_grow_over_restarts_with_the_clock_set_back() {
    let clock = Hand::at(1 << 40);
    let mut world = World::open(Disk::new(&clock), &clock, |_| {});
    let (mut last, mut sequence) = (None, 0);
    for round in 0..5_u64 {
        world.register(&[("a", 1)]);
        for n in 0..3 {
            let run = world.trigger(new(&format!("{round} {n}"))).expect("triggers").run;
            assert!(Some(run) > last, "round {round}");
            last = Some(run);
            for event in world.events() {
                assert_eq!(event.sequence, sequence + 1, "round {round}: {:?}", event.kind.name());
                sequence = event.sequence;
            }
        }
        let [live, _] = world.disk.images();
        // The clock goes back by an hour, then by ten, …
        let clock = Hand::at((1 << 40) - 3_600_000 * 10_u64.pow(round as u32));
        world = World::open(Disk::of(live, &clock), &clock, |_| {});
    }
    assert_eq!(world.runs().len(), 15);
    let mut ids: Vec<_> = world.runs().iter().map(|run| run.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 15);
}

#[test]
fn a_probationer_is_cleared_by_time() {
    let mut world = World::new();
    world.register(&[("a", 9)]);
    let runs = [1, 2].map(|n| world.trigger(new(&n.to_string())).expect("triggers").run);
    for _ in 0..2 {
        world = world.killed(|config| config.max_recoveries = 9);
        world.register(&[("a", 9)]);
    }
    assert_eq!(world.starts(), [(runs[0], 3)]);
    world.clock.advance(Duration::from_secs(30));
    world.trigger(new("3")).expect("triggers");
    assert!(world.starts().contains(&(runs[1], 3)));
}
