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
    /// The wall clock is set to so many seconds.
    Wall(u64),
    /// What is due at so many seconds is done: the delayed runs that go in line.
    Due(u64, &'static [u128]),
    /// The wall clock says this, in seconds: all alarms that are due now, in order.
    Rings(u64, Vec<(u128, Alarm)>),
}
use Line::{Due, On, Rings, Secs, Starts, Wall};

/// The wall clock of a script begins with it.
fn wall(now: Duration) -> Timestamp {
    Timestamp::from_millis(now.as_millis() as u64)
}

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
        keys: Keys::None,
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

    /// Needs this key, besides those it has.
    fn keyed(self, key: &str, limit: u32) -> Self {
        let more = [(key.into(), limit)];
        let keys: Vec<(String, u32)> =
            self.keys.iter().map(|(name, limit)| (name.to_string(), *limit)).chain(more).collect();
        Queued { keys: Keys::of(&keys), ..self }
    }

    fn of_priority(self, priority: i8) -> Self {
        Queued { place: self.place.with(priority), ..self }
    }

    /// Stands where another stood, or at the back under a ticket of now.
    fn at(self, ticket: u128) -> Self {
        Queued { place: Place::new(false, id(ticket)), ..self }
    }

    fn after(self, generation: Generation) -> Self {
        Queued { generation, ..self }
    }

    /// Not before this many seconds.
    fn from(self, secs: u64) -> Self {
        Queued { not_before: Some(moment(secs)), ..self }
    }
}

/// A moment of the wall clock.
fn moment(secs: u64) -> Timestamp {
    Timestamp::from_millis(secs * 1_000)
}

fn queued(queued: Queued) -> Line {
    On(Event::Queued(queued))
}

fn withdrawn(run: u128, key: Option<&str>) -> Line {
    withdrawn_of(run, key.as_slice(), 0)
}

fn withdrawn_of(run: u128, keys: &[&str], priority: i8) -> Line {
    On(Event::Withdrawn { run: id(run), job: 1, keys: named(keys), priority })
}

/// Keys, one run at a time.
fn named(keys: &[&str]) -> Keys {
    Keys::of(&keys.iter().map(|key| ((*key).to_owned(), 1)).collect::<Vec<_>>())
}

/// A run goes to sleep and its body stops.
fn asleep(run: u128, keys: &[&str]) -> [Line; 2] {
    let sleeper = Sleeper { run: id(run), job: 1, keys: named(keys), due: None };
    [On(Event::Suspended(sleeper)), stopped(run, 1)]
}

fn woken(run: u128, keys: &[&str]) -> Line {
    queued(Queued { keys: named(keys), holds: true, ..recovered(run, 0) })
}

fn rated(of: Throttled, starts: u32, secs: u64) -> Line {
    On(Event::Rated(of, Some(Rate { starts, per: Duration::from_secs(secs) })))
}

fn held(of: Throttled, held: bool) -> Line {
    On(Event::Held(of, held.then_some(Timestamp::from_millis(0))))
}

fn key(name: &str) -> Throttled {
    Throttled::Key(name.into())
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
                engine.tell_time(wall(now));
            }
            Wall(secs) => engine.tell_time(Timestamp::from_millis(secs * 1_000)),
            Rings(secs, expected) => {
                let now = Timestamp::from_millis(secs * 1_000);
                let rung = std::iter::from_fn(|| engine.ring(now)).map(|(run, alarm)| (number(run), alarm));
                assert_eq!(rung.collect::<Vec<_>>(), expected, "line {at}");
            }
            Due(secs, expected) => {
                let rung = std::iter::from_fn(|| engine.ring(moment(secs)));
                let started: Vec<u128> = rung
                    .map(|(run, alarm)| {
                        assert_eq!(alarm, Alarm::Start, "line {at}");
                        number(run)
                    })
                    .collect();
                assert_eq!(started, expected, "line {at}");
                assert!(engine.next_alarm().is_none_or(|next| next > moment(secs)), "line {at}");
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
fn a_delayed_run_starts_at_its_moment_and_no_sooner() {
    check(vec![
        (
            "it stands in nobody's way until then, and goes in line where it was triggered",
            1,
            vec![
                registered(1, 9),
                queued(new(1).from(10)),
                queued(new(2)),
                Starts(&[2]),
                queued(new(3)),
                Due(9, &[]),
                Due(10, &[1]),
                ended(2),
                stopped(2, 1),
                Starts(&[1]),
            ],
        ),
        (
            "it holds no key before",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1).from(10)),
                queued(new(2).keyed("k", 1)),
                Starts(&[2]),
                Due(10, &[1]),
                Starts(&[]),
                ended(2),
                stopped(2, 1),
                Starts(&[1]),
            ],
        ),
        (
            "in order of their moments, at one moment in order of trigger",
            9,
            vec![
                registered(1, 9),
                queued(new(1).from(30)),
                queued(new(3).from(20)),
                queued(new(2).from(20)),
                Due(25, &[2, 3]),
                Starts(&[2, 3]),
                Due(1_000_000, &[1]),
                Starts(&[1]),
            ],
        ),
        (
            "a clock that goes back delays what is not due yet",
            9,
            vec![
                registered(1, 9),
                queued(new(1).from(10)),
                queued(new(2).from(20)),
                Due(10, &[1]),
                Due(0, &[]),
                Starts(&[1]),
                Due(19, &[]),
                Due(20, &[2]),
                Starts(&[2]),
            ],
        ),
        (
            "withdrawn, it has no moment any more",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1).from(10)),
                withdrawn(1, Some("k")),
                Due(10, &[]),
                Starts(&[]),
            ],
        ),
        (
            "one that was handed back to its moment keeps nothing of it",
            9,
            vec![
                registered(1, 9),
                queued(new(1).from(10)),
                Due(10, &[1]),
                Starts(&[1]),
                ended(1),
                queued(new(1).after(1)),
                stopped(1, 1),
                Starts(&[1]),
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
    let waiting = |engine: &Engine| engine.waiting(1, "k", &BTreeSet::new()).map(|(run, place)| (number(run), place));
    assert_eq!(waiting(&engine), Some((3, Place::new(false, id(3)))));
    assert_eq!(engine.waiting(1, "free", &BTreeSet::new()), None);
    for line in [withdrawn(3, Some("k")), queued(new(8).keyed("k", 1).at(3)), withdrawn(2, Some("k"))] {
        if let On(event) = line {
            engine.apply(event, Duration::ZERO);
        }
    }
    assert_eq!(waiting(&engine), Some((8, Place::new(false, id(3)))));
}

/// A run that goes on for another, with the key of that one.
fn successor(run: u128, key: &str) -> Queued {
    Queued { place: Place::new(true, id(run)), holds: true, ..new(run).keyed(key, 1) }
}

fn continued(run: u128, next: Queued) -> Line {
    On(Event::Continued { run: id(run), next })
}

#[test]
fn a_run_that_goes_on_for_another_has_its_key_without_a_gap() {
    check(vec![
        (
            "it starts once the old body has stopped, before everyone else of the key and of its job",
            2,
            vec![
                registered(1, 9),
                registered(2, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).of(2).keyed("k", 1)),
                Starts(&[1]),
                queued(new(3)),
                queued(new(4)),
                continued(1, successor(9, "k")),
                Starts(&[3]),
                stopped(1, 1),
                Starts(&[9]),
                ended(9),
                stopped(9, 1),
                Starts(&[2]),
            ],
        ),
        (
            "its job being full, the key waits with it",
            9,
            vec![
                registered(1, 1),
                registered(2, 9),
                queued(new(1).keyed("k", 1)),
                Starts(&[1]),
                queued(new(2).of(2).keyed("k", 1)),
                continued(1, successor(9, "k").of(3)),
                stopped(1, 1),
                Starts(&[]),
                registered(3, 1),
                Starts(&[9]),
            ],
        ),
        (
            "withdrawn while the old body stops, it leaves the key to the others",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                Starts(&[1]),
                continued(1, successor(9, "k")),
                withdrawn(9, Some("k")),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[2]),
            ],
        ),
        (
            "withdrawn while it waits, it does too",
            1,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                Starts(&[1]),
                continued(1, successor(9, "k")),
                On(Event::Paused(true)),
                stopped(1, 1),
                Starts(&[]),
                withdrawn(9, Some("k")),
                On(Event::Paused(false)),
                Starts(&[2]),
            ],
        ),
        (
            "without a key it goes in line as any new run",
            1,
            vec![
                registered(1, 9),
                queued(new(1)),
                Starts(&[1]),
                queued(new(2)),
                continued(1, new(9)),
                stopped(1, 1),
                Starts(&[2]),
                ended(2),
                stopped(2, 1),
                Starts(&[9]),
            ],
        ),
    ]);
}

#[test]
fn who_waits_for_a_run_waits_for_the_one_that_goes_on_for_it() {
    let mut engine = play(
        9,
        vec![registered(1, 9), queued(new(1).keyed("k", 1)), queued(new(2).keyed("other", 1)), Starts(&[1, 2])],
    );
    assert!(engine.wait(id(2), on_keyed(1, "k")));
    engine.apply(Event::Continued { run: id(1), next: successor(9, "k") }, Duration::ZERO);
    engine.apply(Event::Stopped { run: id(1), generation: 1 }, Duration::ZERO);
    assert_eq!(drain(&mut engine, Duration::ZERO), [9]);
    // The one waits for the other's key, and the other for the one.
    assert!(!engine.wait(id(9), on_keyed(3, "other")));
    engine.wait_over(id(2), id(1));
    assert!(engine.wait(id(9), on_keyed(3, "other")));
}

#[test]
fn a_delayed_run_is_found_as_waiting_until_it_starts() {
    let mut engine = play(
        9,
        vec![
            registered(1, 9),
            queued(new(1).keyed("k", 1)),
            queued(new(2).keyed("k", 1).from(10)),
            queued(new(3).keyed("k", 1).from(5)),
            queued(new(4).of(2).keyed("k", 1).from(5)),
            queued(new(5).keyed("other", 1).from(5)),
            queued(new(6).keyed("k", 1).from(5).after(1)),
            queued(new(7).from(5)),
        ],
    );
    let waiting = |engine: &Engine| engine.waiting(1, "k", &BTreeSet::new()).map(|(run, _)| number(run));
    let on = |engine: &mut Engine, line| {
        if let On(event) = line {
            engine.apply(event, Duration::ZERO);
        }
    };
    assert_eq!(waiting(&engine), Some(3));
    assert_eq!(engine.counts().collect::<Vec<_>>(), [(1, [6, 0, 0]), (2, [1, 0, 0])]);
    on(&mut engine, withdrawn(3, Some("k")));
    assert_eq!(waiting(&engine), Some(2));
    assert_eq!(drain(&mut engine, Duration::ZERO), [1]);
    assert_eq!(engine.ring(moment(10)), Some((id(4), Alarm::Start)));
    while engine.ring(moment(10)).is_some() {}
    assert_eq!(waiting(&engine), Some(2), "in line now");
    on(&mut engine, queued(new(8).keyed("k", 1).at(2).from(20)));
    on(&mut engine, withdrawn(2, Some("k")));
    let none = BTreeSet::new();
    assert_eq!(engine.waiting(1, "k", &none), Some((id(8), Place::new(false, id(2)))), "its place, its own moment");
    assert_eq!(engine.waiting(1, "k", &BTreeSet::from([id(8)])), None, "it is about to be replaced");
    assert_eq!(engine.next_alarm(), Some(moment(20)));
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
    Awaited { run: id(run), asked: id(run), job: 1, keys: Keys::None }
}

fn on_keyed(run: u128, key: &str) -> Awaited {
    Awaited { keys: named(&[key]), ..on(run) }
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

#[test]
fn a_run_of_several_keys_takes_all_or_none() {
    check(vec![
        (
            "it waits for the last of them, and holds none meanwhile",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("a", 1)),
                queued(new(2).keyed("b", 1)),
                queued(new(3).keyed("a", 1).keyed("b", 1)),
                queued(new(4).keyed("c", 1)),
                Starts(&[1, 2, 4]),
                stopped(1, 1),
                Starts(&[]),
                stopped(2, 1),
                Starts(&[3]),
                queued(new(5).keyed("a", 1)),
                queued(new(6).keyed("b", 1)),
                Starts(&[]),
                stopped(3, 1),
                Starts(&[5, 6]),
            ],
        ),
        (
            "nobody overtakes it in any of its lines",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("a", 1)),
                queued(new(2).keyed("a", 1).keyed("b", 1)),
                queued(new(3).keyed("b", 1)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[3]),
            ],
        ),
        (
            "circles do not lock each other out: the order is one for all lines",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("a", 1).keyed("b", 1)),
                queued(new(2).keyed("b", 1).keyed("c", 1)),
                queued(new(3).keyed("c", 1).keyed("a", 1)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[3]),
            ],
        ),
        (
            "each key counts with its own limit",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("a", 2).keyed("b", 1)),
                queued(new(2).keyed("a", 2).keyed("c", 1)),
                queued(new(3).keyed("a", 2)),
                Starts(&[1, 2]),
                stopped(2, 1),
                Starts(&[3]),
            ],
        ),
        (
            "one that comes before it takes its offer back from all its keys",
            9,
            vec![
                registered(1, 9),
                queued(new(5).keyed("a", 1).keyed("b", 1)),
                queued(recovered(9, 0).keyed("b", 1)),
                queued(new(6).keyed("a", 1)),
                Starts(&[9]),
                stopped(9, 2),
                Starts(&[5]),
                stopped(5, 1),
                Starts(&[6]),
            ],
        ),
        (
            "one that is withdrawn leaves every line",
            9,
            vec![
                registered(1, 9),
                queued(new(1).keyed("a", 1)),
                queued(new(2).keyed("a", 1).keyed("b", 1)),
                queued(new(3).keyed("b", 1)),
                Starts(&[1]),
                withdrawn_of(2, &["a", "b"], 0),
                Starts(&[3]),
                queued(new(4).keyed("a", 1)),
                stopped(1, 1),
                Starts(&[4]),
            ],
        ),
        (
            "one that sleeps keeps all of them, and one that is woken",
            9,
            [registered(1, 9), queued(new(1).keyed("a", 1).keyed("b", 1)), Starts(&[1])]
                .into_iter()
                .chain(asleep(1, &["a", "b"]))
                .chain([
                    queued(new(2).keyed("a", 1)),
                    queued(new(3).keyed("b", 1)),
                    Starts(&[]),
                    woken(1, &["a", "b"]),
                    Starts(&[1]),
                    stopped(1, 2),
                    Starts(&[2, 3]),
                ])
                .collect(),
        ),
    ]);
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

#[test]
fn rates_bound_the_starts_of_a_window() {
    let job = || Throttled::Job(1);
    check(vec![
        (
            "a job's holds back its own runs and nobody else's; windows begin with a start",
            99,
            vec![
                registered(1, 9),
                registered(2, 9),
                rated(job(), 2, 10),
                Secs(100),
                queued(new(1)),
                Starts(&[1]),
                Secs(4),
                queued(new(2)),
                queued(new(3)),
                queued(new(4).of(2)),
                queued(new(5)),
                queued(new(6)),
                Starts(&[2, 4]),
                Secs(5),
                Starts(&[]),
                Secs(1),
                Starts(&[3, 5]),
                Secs(9),
                Starts(&[]),
                Secs(1),
                Starts(&[6]),
            ],
        ),
        (
            "a key's holds back its own line",
            99,
            vec![
                registered(1, 9),
                rated(key("k"), 1, 10),
                queued(new(1).keyed("k", 9)),
                queued(new(2).keyed("k", 9)),
                queued(new(3).keyed("other", 1)),
                queued(new(4)),
                Starts(&[1, 3, 4]),
                Secs(10),
                Starts(&[2]),
            ],
        ),
        (
            "recovered and woken ones are neither counted nor held back",
            99,
            vec![
                registered(1, 9),
                rated(job(), 1, 10),
                queued(recovered(1, 0)),
                Starts(&[1]),
                queued(new(2)),
                queued(new(3)),
                Starts(&[2]),
                queued(recovered(4, 0)),
                Starts(&[4]),
                Secs(10),
                Starts(&[3]),
            ],
        ),
        (
            "with several keys each of them counts",
            99,
            vec![
                registered(1, 9),
                rated(key("a"), 1, 10),
                rated(key("b"), 1, 20),
                queued(new(1).keyed("a", 9).keyed("b", 9)),
                queued(new(2).keyed("a", 9).keyed("b", 9)),
                Starts(&[1]),
                Secs(10),
                Starts(&[]),
                Secs(10),
                Starts(&[2]),
            ],
        ),
        (
            "one that is lifted lets go at once",
            99,
            vec![
                registered(1, 9),
                rated(job(), 1, 10),
                queued(new(1)),
                queued(new(2)),
                Starts(&[1]),
                On(Event::Rated(job(), None)),
                Starts(&[2]),
            ],
        ),
        (
            "a clock that is set back holds nothing longer than a window",
            99,
            vec![
                registered(1, 9),
                rated(job(), 1, 10),
                Wall(1_000_000),
                queued(new(1)),
                queued(new(2)),
                Starts(&[1]),
                Wall(5),
                Starts(&[]),
                Wall(15),
                Starts(&[2]),
            ],
        ),
        (
            "a window outlives the engine",
            99,
            vec![
                Wall(100),
                On(Event::Restored(
                    job(),
                    Throttle {
                        window: Window { began: Timestamp::from_millis(95_000), starts: 2 },
                        ..Throttle::default()
                    },
                )),
                registered(1, 9),
                rated(job(), 2, 10),
                queued(new(1)),
                Starts(&[]),
                Wall(105),
                Starts(&[1]),
            ],
        ),
    ]);
}

#[test]
fn the_next_start_of_a_full_window_is_an_alarm() {
    let mut engine =
        play(9, vec![registered(1, 9), rated(key("k"), 1, 10), Wall(7), queued(new(1).keyed("k", 9)), Starts(&[1])]);
    assert_eq!(engine.next_alarm(), Some(Timestamp::from_millis(17_000)));
    engine.tell_time(Timestamp::from_millis(17_000));
    assert_eq!(engine.next_alarm(), None);
}

#[test]
fn what_is_paused_starts_nothing() {
    check(vec![
        (
            "a job, its woken and recovered runs included; other jobs go on",
            9,
            vec![
                registered(1, 9),
                registered(2, 9),
                held(Throttled::Job(1), true),
                queued(new(1)),
                queued(recovered(2, 0)),
                queued(new(3).of(2)),
                Starts(&[3]),
                held(Throttled::Job(1), false),
                Starts(&[2, 1]),
            ],
        ),
        (
            "a key lets nobody in; who holds it goes on",
            9,
            [
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                Starts(&[1]),
                held(key("k"), true),
                queued(new(2).keyed("k", 1)),
                queued(new(3).keyed("other", 1)),
                Starts(&[3]),
            ]
            .into_iter()
            .chain(asleep(1, &["k"]))
            .chain([woken(1, &["k"]), Starts(&[1]), held(key("k"), false), Starts(&[])])
            .chain([stopped(1, 2), Starts(&[2])])
            .collect(),
        ),
    ]);
}

#[test]
fn a_paused_job_s_probationer_holds_nobody_up() {
    check(vec![(
        "one that was let in before and one that comes later",
        9,
        vec![
            registered(1, 9),
            registered(2, 9),
            queued(recovered(1, 2)),
            held(Throttled::Job(1), true),
            queued(recovered(2, 2).of(2)),
            queued(recovered(3, 2)),
            Starts(&[2]),
            stopped(2, 2),
            Starts(&[]),
            held(Throttled::Job(1), false),
            Starts(&[1]),
            stopped(1, 2),
            Starts(&[3]),
        ],
    )]);
}

#[test]
fn keys_take_turns_where_a_job_is_fair() {
    let fair = || On(Event::TakesTurns { job: 1, fair: true });
    let hot = |run| queued(new(run).keyed("hot", 1));
    check(vec![
        (
            "one that comes later waits for one turn",
            1,
            vec![
                registered(1, 9),
                fair(),
                hot(1),
                hot(2),
                hot(3),
                queued(new(8).keyed("cold", 1)),
                queued(new(9).keyed("cold", 1)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[8]),
                stopped(8, 1),
                Starts(&[2]),
                stopped(2, 1),
                Starts(&[9]),
                stopped(9, 1),
                Starts(&[3]),
            ],
        ),
        (
            "runs without a key are one group",
            1,
            vec![
                fair(),
                queued(new(1)),
                queued(new(2)),
                queued(new(3)),
                queued(new(8).keyed("cold", 1)),
                registered(1, 9),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[8]),
                stopped(8, 1),
                Starts(&[2]),
                withdrawn(3, None),
                stopped(2, 1),
                Starts(&[]),
            ],
        ),
        (
            "recovered ones and priorities go before turns",
            9,
            vec![
                registered(1, 9),
                fair(),
                queued(new(1).keyed("a", 1)),
                queued(new(2).keyed("b", 1).of_priority(1)),
                queued(recovered(3, 0).keyed("c", 1)),
                Starts(&[3, 2, 1]),
            ],
        ),
        (
            "without it they go in order of trigger",
            1,
            vec![
                registered(1, 9),
                fair(),
                On(Event::TakesTurns { job: 1, fair: false }),
                hot(1),
                hot(2),
                queued(new(8).keyed("cold", 1)),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[2]),
            ],
        ),
    ]);
}

#[test]
fn the_backlog_of_a_key_is_of_runs_that_never_started() {
    let mut engine = play(
        9,
        vec![
            registered(1, 9),
            queued(new(1).keyed("k", 2)),
            Starts(&[1]),
            queued(new(2).keyed("k", 2)),
            Starts(&[2]),
            queued(new(3).keyed("k", 2)),
            queued(new(4).keyed("k", 2).after(1)),
            queued(recovered(5, 0).keyed("k", 2)),
        ],
    );
    assert_eq!(engine.backlog("k", 2, 0), Some(1));
    assert_eq!(engine.backlog("k", 2, 3), Some(4));
    assert_eq!(engine.backlog("free", 1, 0), None);
    assert_eq!(engine.backlog("free", 1, 1), Some(0));
    engine.apply(Event::Stopped { run: id(1), generation: 1 }, Duration::ZERO);
    engine.apply(Event::Stopped { run: id(2), generation: 1 }, Duration::ZERO);
    assert_eq!(engine.backlog("k", 2, 0), Some(0), "two of three in line find room");
    assert_eq!(engine.backlog("k", 9, 0), None, "all do, and the new one");
    engine.apply(Event::Held(key("free"), Some(Timestamp::from_millis(0))), Duration::ZERO);
    assert_eq!(engine.backlog("free", 1, 0), Some(0), "it lets nobody in");
}

/// The engine as plain lists.
#[derive(Debug, Default)]
struct Model {
    slots: usize,
    paused: bool,
    limits: BTreeMap<JobNumber, usize>,
    throttles: Vec<(Throttled, Hold)>,
    pending: Vec<Queued>,
    executing: Vec<Body>,
    /// Suspended runs, with when they are woken.
    asleep: Vec<(Queued, Option<Timestamp>)>,
    delayed: Vec<Queued>,
    /// Runs that are over and could be resumed.
    over: Vec<Queued>,
}

/// A pause, and a rate with when its window began and how many it had.
#[derive(Debug, Clone, Default)]
struct Hold {
    paused: bool,
    rate: Option<(u32, Duration)>,
    window: Option<(Duration, u32)>,
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

fn behind(queued: &Queued) -> bool {
    queued.place > Place::new(true, id(u128::MAX)).with(i8::MIN)
}

impl Model {
    fn hold(&mut self, of: &Throttled) -> &mut Hold {
        if !self.throttles.iter().any(|(other, _)| other == of) {
            self.throttles.push((of.clone(), Hold::default()));
        }
        self.throttles.iter_mut().find(|(other, _)| other == of).map(|(_, hold)| hold).expect("it is there")
    }

    fn lets_in(&self, of: &Throttled, run: &Queued, now: Duration) -> bool {
        let Some((_, hold)) = self.throttles.iter().find(|(other, _)| other == of) else { return true };
        let full = hold
            .rate
            .is_some_and(|(most, per)| hold.window.is_some_and(|(began, starts)| starts >= most && now < began + per));
        !(hold.paused || full && behind(run))
    }

    /// The limits of those that hold a key: bodies, and runs that sleep or were woken.
    fn holders(&self, name: &KeyName) -> Vec<u32> {
        let bodies = self.executing.iter().map(|body| &body.queued);
        let asleep = self.asleep.iter().map(|(run, _)| run);
        let all = bodies.chain(asleep).chain(self.pending.iter().filter(|run| run.holds));
        all.flat_map(|run| run.keys.iter()).filter(|key| key.0 == *name).map(|key| key.1).collect()
    }

    /// Whether slot, job and keys have room for it, and nobody is before it in the line of any of its keys.
    fn may_start(&self, run: &Queued, now: Duration) -> bool {
        let of_job = self.executing.iter().filter(|body| body.queued.job == run.job).count();
        let limit = self.limits.get(&run.job).copied().unwrap_or(0);
        let keys = run.holds
            || run.keys.iter().all(|(name, limit)| {
                let holders = self.holders(name);
                let least = holders.iter().copied().fold(*limit, u32::min);
                let in_line = self.pending.iter().filter(|other| !other.holds && other.keys.has(name));
                let first = in_line.map(|other| other.place).min();
                holders.len() < least as usize
                    && first == Some(run.place)
                    && self.lets_in(&Throttled::Key(name.clone()), run, now)
            });
        !self.paused
            && self.executing.len() < self.slots
            && of_job < limit
            && keys
            && self.lets_in(&Throttled::Job(run.job), run, now)
    }

    fn next(&self, now: Duration) -> Option<Queued> {
        self.pending.iter().filter(|run| self.may_start(run, now)).min_by_key(|run| run.place).cloned()
    }

    fn start(&mut self, run: RunId, now: Duration) -> Claim {
        let at = self.pending.iter().position(|queued| queued.run == run).expect("it waits");
        let mut queued = self.pending.remove(at);
        let mut counted = false;
        if behind(&queued) {
            let keys = queued.keys.iter().map(|(name, _)| Throttled::Key(name.clone()));
            for of in keys.chain([Throttled::Job(queued.job)]) {
                let hold = self.hold(&of);
                if let Some((_, per)) = hold.rate {
                    let window = hold.window.filter(|(began, _)| now < *began + per).unwrap_or((now, 0));
                    hold.window = Some((window.0, window.1 + 1));
                    counted = true;
                }
            }
        }
        let untouched = queued.generation == 0 && queued.place.ticket() == run;
        queued.generation += 1;
        queued.crashes += 1;
        queued.holds = false;
        let (generation, crashes, keys) = (queued.generation, queued.crashes, queued.keys.clone());
        let claim = Claim { run, generation, crashes, keys, counted, untouched };
        self.executing.push(Body { queued, ended: false, checkpointed: false, started: now, next: None });
        claim
    }

    fn waiting(&self, job: JobNumber, key: &str) -> Option<Queued> {
        let waits = |run: &&Queued| run.job == job && run.keys.has(key) && run.generation == 0;
        self.pending.iter().chain(&self.delayed).filter(waits).max_by_key(|run| run.place).cloned()
    }
}

/// What a step of a random script does; the number picks one of those it can be done to.
#[derive(Debug, Clone)]
enum Act {
    Register(JobNumber, u32),
    Trigger {
        job: JobNumber,
        keys: Vec<(u8, u32)>,
        priority: i8,
    },
    Replace {
        job: JobNumber,
        key: u8,
    },
    Recover {
        job: JobNumber,
        keys: Vec<(u8, u32)>,
        crashes: u32,
    },
    Withdraw(usize),
    Checkpoint(usize),
    End(usize),
    HandBack(usize),
    Suspend(usize, Option<u64>),
    Wake(usize),
    Delay {
        job: JobNumber,
        keys: Vec<(u8, u32)>,
        secs: u64,
    },
    /// All that is due by a wall clock that says this, in seconds.
    Ring(u64),
    Stop(usize),
    Resume(usize),
    Pause(bool),
    Hold {
        of: u8,
        held: bool,
    },
    Rate {
        of: u8,
        rate: Option<(u32, u64)>,
    },
    Secs(u64),
    Claim,
}

/// Jobs and keys that can be held back.
fn throttled(of: u8) -> Throttled {
    match of {
        0..3 => Throttled::Job(JobNumber::from(of) + 1),
        key => Throttled::Key(format!("k{}", key - 3).as_str().into()),
    }
}

fn acts(crashes: u32) -> impl Strategy<Value = Vec<Act>> {
    let job = || 1..4u32;
    let keys = || {
        let limit = || proptest::option::weighted(0.4, 1..4u32);
        let limits = (limit(), limit(), limit()).prop_map(|(a, b, c)| [a, b, c]);
        limits.prop_map(|limits| (0..).zip(limits).filter_map(|(key, limit)| Some((key, limit?))).collect::<Vec<_>>())
    };
    let priority = || prop_oneof![3 => Just(0i8), 1 => Just(1), 1 => Just(-1)];
    let rate = || proptest::option::weighted(0.7, (1..4u32, 1..60u64));
    let act = prop_oneof![
        1 => (job(), 1..4u32).prop_map(|(job, limit)| Act::Register(job, limit)),
        6 => (job(), keys(), priority()).prop_map(|(job, keys, priority)| Act::Trigger { job, keys, priority }),
        2 => (job(), 0..3u8).prop_map(|(job, key)| Act::Replace { job, key }),
        2 => (job(), keys(), 0..=crashes).prop_map(|(job, keys, crashes)| Act::Recover { job, keys, crashes }),
        2 => any::<usize>().prop_map(Act::Withdraw),
        1 => any::<usize>().prop_map(Act::Checkpoint),
        2 => any::<usize>().prop_map(Act::End),
        1 => any::<usize>().prop_map(Act::HandBack),
        3 => (any::<usize>(), proptest::option::of(0..100u64)).prop_map(|(n, due)| Act::Suspend(n, due)),
        3 => any::<usize>().prop_map(Act::Wake),
        1 => (job(), keys(), 0..100u64).prop_map(|(job, keys, secs)| Act::Delay { job, keys, secs }),
        2 => (0..100u64).prop_map(Act::Ring),
        5 => any::<usize>().prop_map(Act::Stop),
        2 => any::<usize>().prop_map(Act::Resume),
        1 => any::<bool>().prop_map(Act::Pause),
        1 => (0..6u8, any::<bool>()).prop_map(|(of, held)| Act::Hold { of, held }),
        1 => (0..6u8, rate()).prop_map(|(of, rate)| Act::Rate { of, rate }),
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
    fn ring(&mut self, now: Timestamp) {
        let wakes = self.model.asleep.iter().filter_map(|(run, due)| Some(((*due)?, run.run, Alarm::Wake)));
        let starts = self.model.delayed.iter().filter_map(|run| Some((run.not_before?, run.run, Alarm::Start)));
        let mut due: Vec<_> = wakes.chain(starts).filter(|(at, ..)| *at <= now).collect();
        due.sort();
        assert!(due.first().is_none_or(|(at, ..)| self.engine.next_alarm().is_some_and(|next| next <= *at)));
        for (_, run, alarm) in due {
            assert_eq!(self.engine.ring(now), Some((run, alarm)));
            if alarm == Alarm::Wake {
                let asleep = self.model.asleep.iter().find(|(asleep, _)| asleep.run == run).expect("it sleeps");
                self.wake(asleep.0.clone());
            } else {
                let at = self.model.delayed.iter().position(|queued| queued.run == run).expect("it is delayed");
                let queued = self.model.delayed.remove(at);
                self.model.pending.push(Queued { not_before: None, ..queued });
            }
        }
        assert_eq!(self.engine.ring(now), None);
    }

    fn withdraw(&mut self, run: &Queued) {
        let priority = i8::MAX.saturating_sub_unsigned(run.place.rank().1);
        self.tell(Event::Withdrawn { run: run.run, job: run.job, keys: run.keys.clone(), priority });
        self.model.pending.retain(|queued| queued.run != run.run);
        self.model.delayed.retain(|queued| queued.run != run.run);
        self.model.asleep.retain(|(asleep, _)| asleep.run != run.run);
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
        let named = |keys: Vec<(u8, u32)>| {
            Keys::of(&keys.into_iter().map(|(key, limit)| (format!("k{key}"), limit)).collect::<Vec<_>>())
        };
        let (executing, over) = (self.model.executing.len(), self.model.over.len());
        match act {
            Act::Register(job, limit) => {
                self.tell(Event::Registered { job, limit });
                self.model.limits.insert(job, limit as usize);
            }
            Act::Trigger { job, keys, priority } => {
                let run = self.fresh();
                let place = Place::new(false, run).with(priority);
                self.queue(Queued { run, job, keys: named(keys), place, ..new(0) });
            }
            Act::Replace { job, key } => {
                let name = format!("k{key}");
                let old = self.model.waiting(job, &name);
                let expected = old.as_ref().map(|old| (old.run, old.place));
                assert_eq!(self.engine.waiting(job, &name, &BTreeSet::new()), expected);
                if let Some(old) = old {
                    self.withdraw(&old);
                    let run = self.fresh();
                    self.queue(Queued { run, ..old });
                }
            }
            Act::Recover { job, keys, crashes } => {
                let run = self.fresh();
                let place = Place::new(true, run);
                self.queue(Queued { run, job, keys: named(keys), place, ..recovered(0, crashes) });
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
            Act::Suspend(n, due) => {
                if let Some(at) = pick(n, executing).filter(|at| !self.model.executing[*at].ended) {
                    self.end(at);
                    let due = due.map(|secs| Timestamp::from_millis(secs * 1_000));
                    let body = &mut self.model.executing[at];
                    let Queued { run, job, ref keys, .. } = body.queued;
                    let sleeper = Sleeper { run, job, keys: keys.clone(), due };
                    body.next = Some(Then::Sleep(body.queued.clone(), due));
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
            Act::Delay { job, keys, secs } => {
                let run = self.fresh();
                let not_before = Some(Timestamp::from_millis(secs * 1_000));
                let place = Place::new(false, run);
                self.queue(Queued { run, job, keys: named(keys), place, not_before, ..new(0) });
            }
            Act::Ring(secs) => self.ring(Timestamp::from_millis(secs * 1_000)),
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
            Act::Pause(paused) => {
                self.tell(Event::Paused(paused));
                self.model.paused = paused;
            }
            Act::Hold { of, held } => {
                let of = throttled(of);
                self.tell(Event::Held(of.clone(), held.then_some(Timestamp::from_millis(0))));
                self.model.hold(&of).paused = held;
            }
            Act::Rate { of, rate } => {
                let of = throttled(of);
                let rate = rate.map(|(starts, secs)| (starts, Duration::from_secs(secs)));
                self.tell(Event::Rated(of.clone(), rate.map(|(starts, per)| Rate { starts, per })));
                let hold = self.model.hold(&of);
                if hold.rate != rate {
                    hold.window = None;
                }
                hold.rate = rate;
            }
            Act::Secs(secs) => {
                self.now += Duration::from_secs(secs);
                self.tell(Event::Tick);
                self.engine.tell_time(wall(self.now));
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
        assert!(self.model.may_start(&run, self.now), "{run:?} has no room");
        let suspect = |queued: &Queued| queued.crashes >= 2;
        if suspect(&run) {
            let other = self.model.executing.iter().find(|body| body.is_probationer(self.now));
            assert!(other.is_none(), "{run:?} on probation beside {other:?}");
        }
        let first = self
            .model
            .pending
            .iter()
            .filter(|run| !suspect(run) && self.model.may_start(run, self.now))
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
                let next = pair.model.next(pair.now);
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
        for of in 0..6 {
            pair.act(Act::Hold { of, held: false });
            pair.act(Act::Rate { of, rate: None });
        }
        pair.act(Act::Ring(1_000));
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
