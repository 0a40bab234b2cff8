//! Which runs start, and in which order.

use super::*;

#[test]
fn runs_start_in_order() {
    check(vec![
        (
            "in order of trigger, whatever the job and the order they were told in",
            1,
            vec![
                registered(1, 9),
                registered(2, 9),
                queued(new(3)),
                queued(new(1).of(2)),
                queued(new(2)),
                Starts(&[1]),
                ended(1),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[3]),
                stopped(3, 1),
                Starts(&[]),
            ],
        ),
        (
            "recovered ones first, among themselves in order of trigger",
            9,
            vec![
                registered(1, 9),
                queued(new(1)),
                queued(new(9)),
                queued(recovered(7, 0)),
                queued(recovered(5, 0)),
                Starts(&[5, 7, 1, 9]),
            ],
        ),
        (
            "a resumed one goes last",
            9,
            vec![
                registered(1, 9),
                queued(new(2)),
                queued(new(1).at(8).after(3)),
                queued(new(3)),
                queued(new(9)),
                Starts(&[2, 3, 1, 9]),
            ],
        ),
        (
            "one that replaces another takes its place",
            1,
            vec![
                registered(1, 9),
                queued(new(1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3)),
                withdrawn(2, Some("k")),
                queued(new(4).keyed("k", 1).at(2)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[4]),
                stopped(4, 1),
                Starts(&[3]),
            ],
        ),
        (
            "one that replaces a replacing one too",
            9,
            vec![
                registered(1, 9),
                queued(new(2).keyed("k", 1)),
                withdrawn(2, Some("k")),
                queued(new(4).keyed("k", 1).at(2)),
                queued(new(5)),
                withdrawn(4, Some("k")),
                queued(new(6).keyed("k", 1).at(2)),
                Starts(&[6, 5]),
            ],
        ),
    ]);
}

#[test]
fn jobs_and_slots_bound_what_executes() {
    check(vec![
        (
            "a job's limit holds its own runs back and nobody else's",
            9,
            vec![
                registered(1, 2),
                registered(2, 1),
                queued(new(1)),
                queued(new(2)),
                queued(new(3)),
                queued(new(4).of(2)),
                queued(new(5).of(2)),
                Starts(&[1, 2, 4]),
                stopped(2, 1),
                Starts(&[3]),
                stopped(4, 1),
                Starts(&[5]),
            ],
        ),
        (
            "a limit that is raised lets more start, one that is lowered ends nobody",
            9,
            vec![
                registered(1, 1),
                queued(new(1)),
                queued(new(2)),
                queued(new(3)),
                queued(new(4)),
                Starts(&[1]),
                registered(1, 3),
                Starts(&[2, 3]),
                registered(1, 1),
                stopped(1, 1),
                stopped(2, 1),
                Starts(&[]),
                stopped(3, 1),
                Starts(&[4]),
            ],
        ),
        (
            "runs of a job that is not registered wait until it is",
            9,
            vec![
                queued(new(1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3).of(2)),
                registered(2, 9),
                Starts(&[3]),
                registered(1, 9),
                Starts(&[1, 2]),
            ],
        ),
        (
            "slots bound all, and a slot is held until the body has stopped",
            2,
            vec![
                registered(1, 9),
                queued(new(1)),
                queued(new(2)),
                queued(new(3)),
                Starts(&[1, 2]),
                ended(1),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[3]),
            ],
        ),
        (
            "nothing starts while paused",
            9,
            vec![
                registered(1, 9),
                On(Event::Paused(true)),
                queued(new(1)),
                Starts(&[]),
                On(Event::Paused(false)),
                Starts(&[1]),
            ],
        ),
    ]);
}

#[test]
fn what_is_withdrawn_does_not_start() {
    check(vec![
        ("without a key", 9, vec![registered(1, 9), queued(new(1)), queued(new(2)), withdrawn(1, None), Starts(&[2])]),
        (
            "the one that the key offers, and the one behind it",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3).keyed("k", 1)),
                withdrawn(1, Some("k")),
                withdrawn(3, Some("k")),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[]),
            ],
        ),
        (
            "one that is not in line, which changes nothing",
            9,
            vec![registered(1, 9), queued(new(1)), withdrawn(5, None), withdrawn(5, Some("k")), Starts(&[1])],
        ),
        (
            "one on probation makes room for the next",
            9,
            vec![
                registered(1, 1),
                queued(recovered(3, 0)),
                Starts(&[3]),
                queued(recovered(1, 2)),
                queued(recovered(2, 2)),
                withdrawn(1, None),
                stopped(3, 2),
                Starts(&[2]),
            ],
        ),
        (
            "one that is put aside behind another on probation",
            9,
            vec![
                registered(1, 9),
                queued(recovered(1, 2)),
                queued(recovered(2, 2)),
                withdrawn(2, None),
                Starts(&[1]),
                stopped(1, 2),
                Starts(&[]),
            ],
        ),
    ]);
}

#[test]
fn no_run_starts_while_an_older_body_of_it_is_alive() {
    check(vec![
        (
            "resumed while stopping: it goes in line when that body is gone",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                Starts(&[1]),
                ended(1),
                queued(new(1).keyed("k", 1).at(9).after(1)),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[1]),
            ],
        ),
        (
            "and cancelled again before that: it does not",
            9,
            vec![
                registered(1, 9),
                queued(new(1)),
                Starts(&[1]),
                ended(1),
                queued(new(1).at(9).after(1)),
                withdrawn(1, None),
                stopped(1, 1),
                Starts(&[]),
            ],
        ),
        (
            "an older lease's stop stops nothing",
            9,
            vec![
                registered(1, 1),
                queued(new(1).after(4)),
                queued(new(2)),
                Starts(&[1]),
                stopped(1, 4),
                Starts(&[]),
                stopped(1, 5),
                Starts(&[2]),
            ],
        ),
    ]);
}

#[test]
fn a_claim_carries_lease_crashes_and_key() {
    let mut engine = play(9, vec![registered(1, 9), queued(new(1)), queued(recovered(2, 1).after(6).keyed("k", 3))]);
    let claims: Vec<Claim> = std::iter::from_fn(|| engine.claim(Duration::ZERO)).collect();
    let expected = [
        Claim {
            run: id(2),
            generation: 7,
            crashes: 2,
            keys: Keys::one("k".into(), 3),
            counted: false,
            untouched: false,
        },
        Claim { run: id(1), generation: 1, crashes: 1, keys: Keys::None, counted: false, untouched: true },
    ];
    assert_eq!(claims, expected);
}

#[test]
fn only_the_lease_in_force_may_write() {
    let mut engine = play(9, vec![registered(1, 9), queued(new(1).after(2))]);
    let fences = |engine: &Engine| [1, 2, 3, 4].map(|generation| engine.fence(id(1), generation));
    assert_eq!(fences(&engine), [Fence::Stale; 4], "it waits");
    assert_eq!(drain(&mut engine, Duration::ZERO), [1]);
    assert_eq!(fences(&engine), [Fence::Stale, Fence::Stale, Fence::Holds, Fence::Stale]);
    engine.apply(Event::Ended { run: id(1) }, Duration::ZERO);
    assert_eq!(fences(&engine), [Fence::Stale, Fence::Stale, Fence::Ended, Fence::Stale]);
    engine.apply(Event::Stopped { run: id(1), generation: 3 }, Duration::ZERO);
    assert_eq!(fences(&engine), [Fence::Stale; 4], "its body is gone");
    assert_eq!(engine.fence(id(7), 1), Fence::Stale);
}

#[test]
fn what_a_crash_makes_of_a_run() {
    let pending = |crashes| Recovered::Pending { crashes };
    let poisoned = |crashes| Recovered::Poisoned { crashes };
    for (crashes, checkpointed, max, expected) in [
        (1, false, 3, pending(1)),
        (3, false, 3, pending(3)),
        (4, false, 3, poisoned(4)),
        (9, false, 3, poisoned(9)),
        (4, true, 3, pending(0)),
        (9, true, 0, pending(0)),
        (0, false, 0, pending(0)),
        (1, false, 0, poisoned(1)),
        (1, true, 3, pending(0)),
    ] {
        assert_eq!(recover(crashes, checkpointed, max), expected, "{crashes} {checkpointed} {max}");
    }
}

#[test]
fn what_each_status_allows() {
    let allowed = |action| RunStatus::ALL.into_iter().filter(|status| !refuse(action, *status)).collect::<Vec<_>>();
    use RunStatus::{Cancelled, Completed, Failed, Leased, Pending, Suspended};
    assert_eq!(allowed(Action::Cancel), [Pending, Leased, Suspended]);
    assert_eq!(allowed(Action::Retrigger), [Completed, Failed, Cancelled]);
    assert_eq!(allowed(Action::Resume), [Failed, Cancelled]);
    assert_eq!(allowed(Action::Delete), [Completed, Failed, Cancelled]);
}

#[test]
fn the_newest_waiting_run_that_never_started_is_found() {
    let mut engine = play(
        9,
        vec![
            registered(1, 9),
            queued(new(1).keyed("k", 1)),
            Starts(&[1]),
            queued(new(2).keyed("k", 1)),
            queued(new(3).keyed("k", 1)),
            queued(new(4).of(2).keyed("k", 1)),
            queued(new(5).keyed("other", 1)),
            queued(new(6).keyed("k", 1).after(1)),
            queued(recovered(7, 0).keyed("k", 1)),
        ],
    );
    let waiting =
        |engine: &Engine| engine.waiting(1, "k", &BTreeSet::new(), None).map(|(run, place)| (number(run), place));
    assert_eq!(waiting(&engine), Some((3, Place::new(false, id(3)))));
    assert_eq!(engine.waiting(1, "free", &BTreeSet::new(), None), None);
    for line in [withdrawn(3, Some("k")), queued(new(8).keyed("k", 1).at(3)), withdrawn(2, Some("k"))] {
        if let On(event) = line {
            engine.apply(event, Duration::ZERO);
        }
    }
    assert_eq!(waiting(&engine), Some((8, Place::new(false, id(3)))));
}

#[test]
fn counts_are_of_runs_that_wait_and_of_runs_that_execute() {
    let engine = play(
        2,
        vec![
            registered(1, 9),
            queued(new(1)),
            queued(new(2)),
            queued(new(3).keyed("k", 1)),
            queued(new(4).keyed("k", 1)),
            Starts(&[1, 2]),
            ended(1),
            queued(new(1).at(9).after(1)),
        ],
    );
    assert_eq!(
        engine.counts().collect::<Vec<_>>(),
        [(1, [3, 1, 0])],
        "a resumed run waits though its old body still stops"
    );
    assert_eq!(engine.bodies(), 2);
}

#[test]
fn adopted_bodies_keep_slot_place_key_and_lease() {
    let mut engine = Engine::new(3, false);
    let (now, held) = (Duration::ZERO, new(1).keyed("k", 1).after(5));
    engine.apply(Event::Registered { job: 1, limit: 2 }, now);
    engine.adopt(&held, false, now);
    engine.adopt(&new(2).after(1), true, now);
    for run in [new(3).keyed("k", 1), new(4), new(5).of(2)] {
        engine.apply(Event::Queued(run), now);
    }
    engine.apply(Event::Registered { job: 2, limit: 9 }, now);
    assert_eq!(drain(&mut engine, now), [5], "job 1 is full, and so is key k");
    assert_eq!((engine.fence(id(1), 5), engine.fence(id(2), 1)), (Fence::Holds, Fence::Ended));
    engine.apply(Event::Stopped { run: id(2), generation: 1 }, now);
    assert_eq!(drain(&mut engine, now), [4]);
    engine.apply(Event::Stopped { run: id(1), generation: 5 }, now);
    assert_eq!(drain(&mut engine, now), [3]);
}

#[test]
fn higher_priorities_go_first() {
    check(vec![
        (
            "among jobs, then in order of trigger",
            9,
            vec![
                registered(1, 9),
                registered(2, 9),
                queued(new(1)),
                queued(new(2).of_priority(5)),
                queued(new(3).of(2).of_priority(5)),
                queued(new(4).of_priority(-5)),
                queued(new(5).of(2).of_priority(i8::MAX)),
                queued(new(6).of_priority(i8::MIN)),
                Starts(&[5, 2, 3, 1, 4, 6]),
            ],
        ),
        (
            "in a key's line too",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3).keyed("k", 1).of_priority(1)),
                Starts(&[3]),
                stopped(3, 1),
                Starts(&[1]),
            ],
        ),
        (
            "but recovered and woken ones go before them all",
            9,
            vec![
                registered(1, 9),
                queued(new(1).of_priority(100)),
                queued(recovered(2, 0).of_priority(-100)),
                Starts(&[2, 1]),
            ],
        ),
        (
            "one that is withdrawn is found at its priority",
            9,
            vec![
                registered(1, 9),
                queued(new(1).of_priority(3)),
                queued(new(2).of_priority(3).keyed("k", 1)),
                withdrawn_of(1, &[], 3),
                withdrawn_of(2, &["k"], 3),
                Starts(&[]),
            ],
        ),
    ]);
}
