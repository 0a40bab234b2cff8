//! The engine as tables of cases: events in, the whole list of claims out. And against a model that is too simple to be wrong.

mod sleeping;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits::PROBATION;
use crate::run::RunStatus;

/// One line of a case.
enum Line {
    /// Something happens.
    On(Event),
    /// All claims that are due now, as run numbers in order.
    Starts(&'static [u128]),
    /// Seconds go by.
    Secs(u64),
    /// The wall clock says this, in seconds: all alarms that are due now, in order.
    Rings(u64, Vec<(u128, Alarm)>),
}
use Line::{On, Rings, Secs, Starts};

fn id(n: u128) -> RunId {
    RunId::numbered(n)
}

fn registered(job: JobNumber, limit: u32) -> Line {
    On(Event::Registered { job, limit })
}

/// A run of job 1, newly triggered.
fn new(run: u128) -> Queued {
    Queued {
        run: id(run),
        job: 1,
        key: None,
        place: Place::new(false, id(run)),
        generation: 0,
        crashes: 0,
        touched: false,
        holds: false,
        not_before: None,
    }
}

/// A run of job 1 that a crash interrupted.
fn recovered(run: u128, crashes: u32) -> Queued {
    Queued { place: Place::new(true, id(run)), generation: 1, crashes, ..new(run) }
}

impl Queued {
    fn of(self, job: JobNumber) -> Self {
        Queued { job, ..self }
    }

    fn keyed(self, key: &str, limit: u32) -> Self {
        Queued { key: Some((key.into(), limit)), ..self }
    }

    /// Stands where another stood, or at the back under a ticket of now.
    fn at(self, ticket: u128) -> Self {
        Queued { place: Place::new(false, id(ticket)), ..self }
    }

    fn after(self, generation: Generation) -> Self {
        Queued { generation, ..self }
    }
}

fn queued(queued: Queued) -> Line {
    On(Event::Queued(queued))
}

fn withdrawn(run: u128, key: Option<&str>) -> Line {
    On(Event::Withdrawn { run: id(run), job: 1, key: key.map(Into::into) })
}

fn ended(run: u128) -> Line {
    On(Event::Ended { run: id(run) })
}

fn stopped(run: u128, generation: Generation) -> Line {
    On(Event::Stopped { run: id(run), generation })
}

fn number(run: RunId) -> u128 {
    u128::from_be_bytes(*run.as_bytes())
}

fn drain(engine: &mut Engine, now: Duration) -> Vec<u128> {
    std::iter::from_fn(|| engine.claim(now)).map(|claim| number(claim.run)).collect()
}

fn play(slots: u32, lines: Vec<Line>) -> Engine {
    let (mut engine, mut now) = (Engine::new(slots, false), Duration::ZERO);
    for (at, line) in lines.into_iter().enumerate() {
        match line {
            On(event) => engine.apply(event, now),
            Starts(expected) => assert_eq!(drain(&mut engine, now), expected, "line {at}"),
            Secs(secs) => {
                now += Duration::from_secs(secs);
                engine.apply(Event::Tick, now);
            }
            Rings(secs, expected) => {
                let wall = Timestamp::from_millis(secs * 1_000);
                let rung: Vec<_> =
                    std::iter::from_fn(|| engine.ring(wall)).map(|(run, alarm)| (number(run), alarm)).collect();
                assert_eq!(rung, expected, "line {at}");
            }
        }
    }
    engine
}

fn check(cases: Vec<(&str, u32, Vec<Line>)>) {
    for (name, slots, lines) in cases {
        eprintln!("{name}");
        play(slots, lines);
    }
}

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
fn a_key_admits_one_at_a_time() {
    check(vec![
        (
            "in order, and held until the body has stopped",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3).keyed("k", 1)),
                Starts(&[1]),
                ended(1),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[3]),
            ],
        ),
        (
            "limit(n) is the least over holders and candidate",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 3)),
                queued(new(2).keyed("k", 2)),
                queued(new(3).keyed("k", 3)),
                Starts(&[1, 2]),
                stopped(2, 1),
                Starts(&[3]),
                queued(new(4).keyed("k", 3)),
                queued(new(5).keyed("k", 3)),
                Starts(&[4]),
                stopped(1, 1),
                Starts(&[5]),
            ],
        ),
        (
            "a stricter one waits for the key to be empty, and nobody overtakes it",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 3)),
                queued(new(2).keyed("k", 1)),
                queued(new(3).keyed("k", 3)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[3]),
            ],
        ),
        (
            "the line is one for all jobs",
            9,
            vec![
                registered(1, 1),
                registered(2, 9),
                queued(new(1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3).of(2).keyed("k", 1)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[3]),
            ],
        ),
        (
            "a hot key delays no other key and no run without one",
            3,
            vec![
                registered(1, 9),
                queued(new(1).keyed("hot", 1)),
                queued(new(2).keyed("hot", 1)),
                queued(new(3).keyed("hot", 1)),
                queued(new(4).keyed("cold", 1)),
                queued(new(5)),
                Starts(&[1, 4, 5]),
            ],
        ),
        (
            "a recovered one goes before the one that was offered",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(recovered(9, 0).keyed("k", 1)),
                Starts(&[9]),
                stopped(9, 2),
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
        Claim { run: id(2), generation: 7, crashes: 2, key: Some(("k".into(), 3)), untouched: false },
        Claim { run: id(1), generation: 1, crashes: 1, key: None, untouched: true },
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
fn probationers_start_one_at_a_time() {
    let three = || vec![registered(1, 9), queued(recovered(1, 2)), queued(recovered(2, 2)), queued(recovered(3, 3))];
    let with = |lines: Vec<Line>| three().into_iter().chain(lines).collect();
    check(vec![
        ("beside normal work, which one crash is", 9, with(vec![queued(recovered(4, 1)), Starts(&[1, 4])])),
        (
            "cleared by the end of the body",
            9,
            with(vec![Starts(&[1]), ended(1), Starts(&[]), stopped(1, 2), Starts(&[2])]),
        ),
        (
            "cleared by a checkpoint",
            9,
            with(vec![Starts(&[1]), On(Event::Checkpointed { run: id(1) }), Starts(&[2]), Starts(&[])]),
        ),
        (
            "cleared by time, counted from its start",
            9,
            with(vec![
                Secs(100),
                Starts(&[1]),
                Secs(PROBATION.as_secs() - 1),
                Starts(&[]),
                Secs(1),
                Starts(&[2]),
                Secs(PROBATION.as_secs()),
                Starts(&[3]),
            ]),
        ),
        (
            "a checkpoint of somebody else clears nobody",
            9,
            with(vec![queued(new(9)), Starts(&[1, 9]), On(Event::Checkpointed { run: id(9) }), Starts(&[])]),
        ),
        (
            "one whose job is not registered holds nobody up",
            9,
            vec![
                registered(1, 9),
                queued(recovered(1, 2).of(2)),
                queued(recovered(2, 2)),
                Starts(&[2]),
                registered(2, 9),
                Starts(&[]),
                stopped(2, 2),
                Starts(&[1]),
            ],
        ),
    ]);
}

#[test]
fn probation_says_when_it_is_over() {
    let mut engine = play(9, vec![registered(1, 9), queued(recovered(1, 2))]);
    assert_eq!(engine.deadline(), None);
    let now = Duration::from_secs(7);
    assert_eq!(drain(&mut engine, now), [1]);
    assert_eq!(engine.deadline(), Some(now + PROBATION));
    engine.apply(Event::Tick, now + PROBATION);
    assert_eq!(engine.deadline(), None);
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
    let waiting = |engine: &Engine| engine.waiting(1, "k").map(|(run, place)| (number(run), place));
    assert_eq!(waiting(&engine), Some((3, Place::new(false, id(3)))));
    assert_eq!(engine.waiting(1, "free"), None);
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
fn an_adopted_probationer_stays_on_probation() {
    let mut engine = Engine::new(9, false);
    engine.apply(Event::Registered { job: 1, limit: 9 }, Duration::ZERO);
    // Its lease counted the execution under way.
    engine.adopt(&recovered(1, 3), false, Duration::ZERO);
    engine.apply(Event::Queued(recovered(2, 2)), Duration::ZERO);
    assert_eq!(drain(&mut engine, Duration::ZERO), [0; 0]);
    engine.apply(Event::Tick, PROBATION);
    assert_eq!(drain(&mut engine, PROBATION), [2]);
}

/// What a wait is for: a run of job 1.
fn on(run: u128) -> Awaited {
    Awaited { run: id(run), job: 1, key: None, key_limit: 0 }
}

fn on_keyed(run: u128, key: &str) -> Awaited {
    Awaited { key: Some(key.to_owned()), key_limit: 1, ..on(run) }
}

#[test]
fn waits_that_could_never_end_are_refused() {
    let executing = |slots, limit, runs: &[Queued]| {
        let lines = runs.iter().cloned().map(queued);
        let mut engine = play(slots, [registered(1, limit), registered(2, 9)].into_iter().chain(lines).collect());
        assert_eq!(drain(&mut engine, Duration::ZERO).len(), runs.len());
        engine
    };
    // Its own key.
    let mut engine = executing(9, 9, &[new(1).keyed("k", 1)]);
    assert!(!engine.wait(id(1), on_keyed(5, "k")));
    assert!(engine.wait(id(1), on_keyed(5, "other")));
    assert!(engine.wait(id(1), on(5)));

    // A key that another body holds which goes on, and one that waits for the waiter.
    let mut engine = executing(9, 9, &[new(1), new(2).keyed("k", 1)]);
    assert!(engine.wait(id(1), on_keyed(5, "k")));
    assert!(!engine.wait(id(2), on(1)), "a circle through the key");
    engine.wait_over(id(1), id(5));
    assert!(engine.wait(id(2), on(1)));
    assert!(!engine.wait(id(1), on_keyed(5, "k")));

    // The last slot.
    let mut engine = executing(1, 9, &[new(1)]);
    assert!(!engine.wait(id(1), on(5)));
    let mut engine = executing(2, 9, &[new(1), new(2)]);
    assert!(engine.wait(id(1), on(5)), "the other body will free its slot");
    assert!(!engine.wait(id(2), on(6)), "and now no one will");

    // The job's limit.
    let mut engine = executing(9, 1, &[new(1)]);
    assert!(!engine.wait(id(1), on(5)));
    let mut engine = executing(9, 1, &[new(1).of(2)]);
    assert!(engine.wait(id(1), on(5)));

    // Circles and chains of executing runs.
    let mut engine = executing(9, 9, &[new(1), new(2), new(3)]);
    assert!(!engine.wait(id(1), on(1)), "itself");
    assert!(engine.wait(id(1), on(2)));
    assert!(engine.wait(id(2), on(3)));
    assert!(!engine.wait(id(3), on(1)));
    assert!(engine.wait(id(3), on(5)), "a refused wait leaves nothing behind");

    // One that has ended is waited for by nobody, and waits for nobody.
    let mut engine = executing(9, 9, &[new(1), new(2)]);
    assert!(engine.wait(id(1), on(2)));
    engine.apply(Event::Ended { run: id(1) }, Duration::ZERO);
    assert!(engine.wait(id(2), on(1)));
}

#[test]
fn a_wait_behind_one_that_can_end_is_not_taken_for_a_circle() {
    // 1 waits for a pending run that needs a slot; 2, the only one of job 2, waits for 1; 3 is free. All of them can end, so
    // waiting for a run of job 2 can too, in whatever order the bodies are looked at.
    let mut engine = play(
        4,
        vec![registered(1, 9), registered(2, 1), queued(new(1)), queued(new(2).of(2)), queued(new(3)), queued(new(4))],
    );
    assert_eq!(drain(&mut engine, Duration::ZERO).len(), 4);
    assert!(engine.wait(id(1), on(8)));
    assert!(engine.wait(id(2), on(1)));
    assert!(engine.wait(id(4), Awaited { job: 2, ..on(9) }));
}

#[test]
fn waits_outlive_a_rebuilt_engine() {
    let mut before = play(2, vec![registered(1, 9), queued(new(1)), queued(new(2)), Starts(&[1, 2])]);
    assert!(before.wait(id(1), on(2)));
    let mut engine = Engine::new(2, false);
    engine.adopt(&new(1).after(1), false, Duration::ZERO);
    engine.adopt(&new(2).after(1), false, Duration::ZERO);
    engine.keep_waits(before.waits());
    assert!(!engine.wait(id(2), on(1)));
}

/// The engine as plain lists.
#[derive(Debug, Default)]
struct Model {
    slots: usize,
    paused: bool,
    limits: BTreeMap<JobNumber, usize>,
    pending: Vec<Queued>,
    executing: Vec<Body>,
    /// Suspended runs, with when they are woken.
    asleep: Vec<(Queued, Option<Timestamp>)>,
    delayed: Vec<Queued>,
    /// Runs that are over and could be resumed.
    over: Vec<Queued>,
}

#[derive(Debug, Clone)]
struct Body {
    queued: Queued,
    ended: bool,
    checkpointed: bool,
    started: Duration,
    next: Option<Then>,
}

/// What becomes of a run once its body has stopped.
#[derive(Debug, Clone)]
enum Then {
    Queue(Queued),
    Sleep(Queued, Option<Timestamp>),
}

impl Then {
    fn run(&self) -> &Queued {
        match self {
            Then::Queue(run) | Then::Sleep(run, _) => run,
        }
    }
}

impl Body {
    /// It started on probation and nothing has cleared it.
    fn is_probationer(&self, now: Duration) -> bool {
        self.queued.crashes > 2 && !self.checkpointed && now < self.started + PROBATION
    }
}

fn key_of(queued: &Queued) -> Option<&str> {
    queued.key.as_ref().map(|(name, _)| &**name)
}

impl Model {
    /// Whether slot, job and key have room for it, and nobody is before it in its key's line.
    fn may_start(&self, run: &Queued) -> bool {
        let of_job = self.executing.iter().filter(|body| body.queued.job == run.job).count();
        let limit = self.limits.get(&run.job).copied().unwrap_or(0);
        let key = run.holds
            || run.key.as_ref().is_none_or(|(name, limit)| {
                let executing = self.executing.iter().map(|body| &body.queued);
                let woken = self.pending.iter().filter(|other| other.holds);
                let holders: Vec<u32> = executing
                    .chain(woken)
                    .chain(self.asleep.iter().map(|(run, _)| run))
                    .filter_map(|holder| holder.key.as_ref())
                    .filter(|key| key.0 == *name)
                    .map(|key| key.1)
                    .collect();
                let least = holders.iter().copied().fold(*limit, u32::min);
                let waiting = self.pending.iter().filter(|other| key_of(other) == Some(name) && !other.holds);
                let first = waiting.map(|other| other.place).min();
                holders.len() < least as usize && first == Some(run.place)
            });
        !self.paused && self.executing.len() < self.slots && of_job < limit && key
    }

    fn next(&self) -> Option<Queued> {
        self.pending.iter().filter(|run| self.may_start(run)).min_by_key(|run| run.place).cloned()
    }

    fn start(&mut self, run: RunId, now: Duration) -> Claim {
        let at = self.pending.iter().position(|queued| queued.run == run).expect("it waits");
        let mut queued = self.pending.remove(at);
        let untouched = queued.generation == 0 && queued.place.ticket == run;
        queued.generation += 1;
        queued.crashes += 1;
        queued.holds = false;
        let (generation, crashes) = (queued.generation, queued.crashes);
        let claim = Claim { run, generation, crashes, key: queued.key.clone(), untouched };
        self.executing.push(Body { queued, ended: false, checkpointed: false, started: now, next: None });
        claim
    }

    fn waiting(&self, job: JobNumber, key: &str) -> Option<Queued> {
        let waits = |run: &&Queued| run.job == job && key_of(run) == Some(key) && run.generation == 0;
        self.pending.iter().filter(waits).max_by_key(|run| run.place).cloned()
    }
}

/// What a step of a random script does; the number picks one of those it can be done to.
#[derive(Debug, Clone)]
enum Act {
    Register(JobNumber, u32),
    Trigger {
        job: JobNumber,
        key: Option<(u8, u32)>,
    },
    Replace {
        job: JobNumber,
        key: u8,
    },
    Recover {
        job: JobNumber,
        key: Option<(u8, u32)>,
        crashes: u32,
    },
    Withdraw(usize),
    Checkpoint(usize),
    End(usize),
    HandBack(usize),
    Stop(usize),
    Resume(usize),
    Suspend(usize, Option<u64>),
    Wake(usize),
    Delay {
        job: JobNumber,
        key: Option<(u8, u32)>,
        secs: u64,
    },
    /// The wall clock says this, in seconds.
    Wall(u64),
    Pause(bool),
    Secs(u64),
    Claim,
}

fn acts(crashes: u32) -> impl Strategy<Value = Vec<Act>> {
    let job = || 1..4u32;
    let key = || proptest::option::weighted(0.7, (0..3u8, 1..4u32));
    let act = prop_oneof![
        1 => (job(), 1..4u32).prop_map(|(job, limit)| Act::Register(job, limit)),
        6 => (job(), key()).prop_map(|(job, key)| Act::Trigger { job, key }),
        2 => (job(), 0..3u8).prop_map(|(job, key)| Act::Replace { job, key }),
        2 => (job(), key(), 0..=crashes).prop_map(|(job, key, crashes)| Act::Recover { job, key, crashes }),
        2 => any::<usize>().prop_map(Act::Withdraw),
        1 => any::<usize>().prop_map(Act::Checkpoint),
        2 => any::<usize>().prop_map(Act::End),
        1 => any::<usize>().prop_map(Act::HandBack),
        5 => any::<usize>().prop_map(Act::Stop),
        2 => any::<usize>().prop_map(Act::Resume),
        3 => (any::<usize>(), proptest::option::of(0..100u64)).prop_map(|(n, due)| Act::Suspend(n, due)),
        3 => any::<usize>().prop_map(Act::Wake),
        1 => (job(), key(), 0..100u64).prop_map(|(job, key, secs)| Act::Delay { job, key, secs }),
        2 => (0..100u64).prop_map(Act::Wall),
        1 => any::<bool>().prop_map(Act::Pause),
        1 => (1..40u64).prop_map(Act::Secs),
        6 => Just(Act::Claim),
    ];
    proptest::collection::vec(act, 1..120)
}

/// Engine and model side by side.
struct Pair {
    engine: Engine,
    model: Model,
    now: Duration,
    last: u128,
}

impl Pair {
    fn new(slots: u32) -> Self {
        let model = Model { slots: slots as usize, ..Model::default() };
        Pair { engine: Engine::new(slots, false), model, now: Duration::ZERO, last: 0 }
    }

    fn tell(&mut self, event: Event) {
        self.engine.apply(event, self.now);
    }

    fn fresh(&mut self) -> RunId {
        self.last += 1;
        id(self.last)
    }

    fn queue(&mut self, queued: Queued) {
        self.tell(Event::Queued(queued.clone()));
        match self.model.executing.iter_mut().find(|body| body.queued.run == queued.run) {
            Some(body) => body.next = Some(Then::Queue(queued)),
            None => {
                self.model.asleep.retain(|(asleep, _)| asleep.run != queued.run);
                let waiting = match queued.not_before {
                    Some(_) => &mut self.model.delayed,
                    None => &mut self.model.pending,
                };
                waiting.push(queued);
            }
        }
    }

    fn wake(&mut self, asleep: Queued) {
        self.queue(Queued { place: Place::new(true, asleep.run), crashes: 0, holds: true, ..asleep });
    }

    /// Rings all alarms that are due, and does what they are for.
    fn ring(&mut self, wall: Timestamp) {
        let wakes = self.model.asleep.iter().filter_map(|(run, due)| Some(((*due)?, run.run, Alarm::Wake)));
        let starts = self.model.delayed.iter().filter_map(|run| Some((run.not_before?, run.run, Alarm::Start)));
        let mut due: Vec<_> = wakes.chain(starts).filter(|(at, ..)| *at <= wall).collect();
        due.sort();
        assert_eq!(self.engine.next_alarm().is_some_and(|at| at <= wall), !due.is_empty());
        for (_, run, alarm) in due {
            assert_eq!(self.engine.ring(wall), Some((run, alarm)));
            if alarm == Alarm::Wake {
                let asleep = self.model.asleep.iter().find(|(asleep, _)| asleep.run == run).expect("it sleeps");
                self.wake(asleep.0.clone());
            } else {
                let at = self.model.delayed.iter().position(|queued| queued.run == run).expect("it is delayed");
                let queued = self.model.delayed.remove(at);
                self.model.pending.push(Queued { not_before: None, ..queued });
            }
        }
        assert_eq!(self.engine.ring(wall), None);
    }

    fn withdraw(&mut self, run: &Queued) {
        let key = run.key.as_ref().map(|(name, _)| name.clone());
        self.tell(Event::Withdrawn { run: run.run, job: run.job, key });
        self.model.pending.retain(|queued| queued.run != run.run);
        self.model.delayed.retain(|queued| queued.run != run.run);
        self.model.asleep.retain(|(queued, _)| queued.run != run.run);
        for body in &mut self.model.executing {
            body.next.take_if(|next| next.run().run == run.run);
        }
    }

    fn end(&mut self, at: usize) {
        let body = &mut self.model.executing[at];
        body.ended = true;
        let run = body.queued.run;
        self.tell(Event::Ended { run });
    }

    /// Does it to both; claims are left to the caller.
    fn act(&mut self, act: Act) {
        let pick = |n: usize, of: usize| (of > 0).then(|| n % of.max(1));
        let named = |key: Option<(u8, u32)>| key.map(|(key, limit)| (format!("k{key}").as_str().into(), limit));
        let (executing, over) = (self.model.executing.len(), self.model.over.len());
        match act {
            Act::Register(job, limit) => {
                self.tell(Event::Registered { job, limit });
                self.model.limits.insert(job, limit as usize);
            }
            Act::Trigger { job, key } => {
                let run = self.fresh();
                let queued = Queued { run, job, key: named(key), place: Place::new(false, run), ..new(0) };
                self.queue(queued);
            }
            Act::Replace { job, key } => {
                let name = format!("k{key}");
                let old = self.model.waiting(job, &name);
                let expected = old.as_ref().map(|old| (old.run, old.place));
                assert_eq!(self.engine.waiting(job, &name), expected);
                if let Some(old) = old {
                    self.withdraw(&old);
                    let run = self.fresh();
                    self.queue(Queued { run, ..old });
                }
            }
            Act::Recover { job, key, crashes } => {
                let run = self.fresh();
                let recovered = recovered(0, crashes);
                self.queue(Queued { run, job, key: named(key), place: Place::new(true, run), ..recovered });
            }
            Act::Withdraw(n) => {
                let model = &self.model;
                let decided = model.executing.iter().filter_map(|body| body.next.as_ref().map(Then::run));
                let asleep = model.asleep.iter().map(|(run, _)| run);
                let waiting = model.pending.iter().chain(&model.delayed).chain(asleep).chain(decided);
                let waiting: Vec<Queued> = waiting.cloned().collect();
                if let Some(at) = pick(n, waiting.len()) {
                    self.withdraw(&waiting[at]);
                }
            }
            Act::Checkpoint(n) => {
                if let Some(at) = pick(n, executing) {
                    self.model.executing[at].checkpointed = true;
                    let run = self.model.executing[at].queued.run;
                    self.tell(Event::Checkpointed { run });
                }
            }
            Act::End(n) => {
                if let Some(at) = pick(n, executing) {
                    self.end(at);
                }
            }
            Act::HandBack(n) => {
                if let Some(at) = pick(n, executing).filter(|at| !self.model.executing[*at].ended) {
                    self.end(at);
                    let queued = self.model.executing[at].queued.clone();
                    self.queue(Queued { place: Place::new(true, queued.run), crashes: 0, ..queued });
                }
            }
            Act::Stop(n) => {
                if let Some(at) = pick(n, executing) {
                    self.end(at);
                    let Body { queued, next, .. } = self.model.executing.remove(at);
                    self.tell(Event::Stopped { run: queued.run, generation: queued.generation });
                    match next {
                        Some(Then::Queue(next)) => self.model.pending.push(next),
                        Some(Then::Sleep(run, due)) => self.model.asleep.push((run, due)),
                        None => self.model.over.push(queued),
                    }
                }
            }
            Act::Resume(n) => {
                let ending: Vec<_> = (0..executing)
                    .filter(|at| self.model.executing[*at].ended && self.model.executing[*at].next.is_none())
                    .collect();
                let Some(at) = pick(n, over + ending.len()) else { return };
                let queued = match at.checked_sub(over) {
                    None => self.model.over.remove(at),
                    Some(at) => self.model.executing[ending[at]].queued.clone(),
                };
                let ticket = self.fresh();
                self.queue(Queued { place: Place::new(false, ticket), crashes: 0, ..queued });
            }
            Act::Suspend(n, due) => {
                if let Some(at) = pick(n, executing).filter(|at| !self.model.executing[*at].ended) {
                    self.end(at);
                    let due = due.map(|secs| Timestamp::from_millis(secs * 1_000));
                    let body = &mut self.model.executing[at];
                    let queued = body.queued.clone();
                    let sleeper = Sleeper { run: queued.run, job: queued.job, key: queued.key.clone(), due };
                    body.next = Some(Then::Sleep(queued, due));
                    self.tell(Event::Suspended(sleeper));
                }
            }
            Act::Wake(n) => {
                let asleep = self.model.asleep.iter().map(|(run, _)| run);
                let stopping = self.model.executing.iter().filter_map(|body| match &body.next {
                    Some(Then::Sleep(run, _)) => Some(run),
                    Some(Then::Queue(_)) | None => None,
                });
                let asleep: Vec<Queued> = asleep.chain(stopping).cloned().collect();
                if let Some(at) = pick(n, asleep.len()) {
                    self.wake(asleep[at].clone());
                }
            }
            Act::Delay { job, key, secs } => {
                let run = self.fresh();
                let not_before = Some(Timestamp::from_millis(secs * 1_000));
                let place = Place::new(false, run);
                self.queue(Queued { run, job, key: named(key), place, not_before, ..new(0) });
            }
            Act::Wall(secs) => self.ring(Timestamp::from_millis(secs * 1_000)),
            Act::Pause(paused) => {
                self.tell(Event::Paused(paused));
                self.model.paused = paused;
            }
            Act::Secs(secs) => {
                self.now += Duration::from_secs(secs);
                self.tell(Event::Tick);
            }
            Act::Claim => {}
        }
        for body in &self.model.executing {
            let Queued { run, generation, .. } = body.queued;
            let expected = if body.ended { Fence::Ended } else { Fence::Holds };
            assert_eq!(self.engine.fence(run, generation), expected);
            assert_eq!(self.engine.fence(run, generation - 1), Fence::Stale);
        }
    }

    /// Takes a claim and holds it against the rules, where several could be next because of probation.
    fn claim_lawfully(&mut self) -> bool {
        let Some(claim) = self.engine.claim(self.now) else { return false };
        let run = self.model.pending.iter().find(|queued| queued.run == claim.run).cloned().expect("it waits");
        assert!(self.model.may_start(&run), "{run:?} has no room");
        let suspect = |queued: &Queued| queued.crashes >= 2;
        if suspect(&run) {
            let other = self.model.executing.iter().find(|body| body.is_probationer(self.now));
            assert!(other.is_none(), "{run:?} on probation beside {other:?}");
        }
        let first = self
            .model
            .pending
            .iter()
            .filter(|run| !suspect(run) && self.model.may_start(run))
            .map(|run| run.place)
            .min();
        assert!(first.is_none_or(|first| run.place <= first), "{run:?} goes before {first:?}");
        assert_eq!(self.model.start(claim.run, self.now), claim);
        true
    }
}

proptest! {
    #[test]
    fn every_claim_is_the_one_that_a_naive_model_makes(slots in 1..5u32, acts in acts(1)) {
        let mut pair = Pair::new(slots);
        for act in acts {
            let claims = matches!(act, Act::Claim);
            pair.act(act);
            if !claims {
                continue;
            }
            loop {
                let next = pair.model.next();
                let expected = next.map(|run| pair.model.start(run.run, pair.now));
                let claim = pair.engine.claim(pair.now);
                prop_assert_eq!(&claim, &expected);
                if claim.is_none() {
                    break;
                }
            }
        }
    }

    #[test]
    fn with_probation_every_claim_is_lawful_and_every_run_gets_its_turn(slots in 1..5u32, acts in acts(4)) {
        let mut pair = Pair::new(slots);
        for act in acts {
            let claims = matches!(act, Act::Claim);
            pair.act(act);
            while claims && pair.claim_lawfully() {}
        }
        pair.act(Act::Pause(false));
        pair.act(Act::Wall(1_000));
        for job in 1..4 {
            pair.act(Act::Register(job, 1));
        }
        for _ in 0..1_000 {
            while pair.claim_lawfully() {}
            pair.act(Act::Wake(0));
            pair.act(Act::Stop(0));
        }
        prop_assert!(pair.model.pending.is_empty(), "left waiting: {:?}", pair.model.pending);
        prop_assert_eq!(pair.engine.bodies(), 0);
        prop_assert!(!pair.engine.has_startable());
    }
}
