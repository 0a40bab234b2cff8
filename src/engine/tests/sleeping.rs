//! Runs that wait for a moment, or for something that the writer tells of: their alarms, keys and places in line.

use super::*;

/// A moment of the wall clock, in seconds.
fn at(secs: u64) -> Timestamp {
    Timestamp::from_millis(secs * 1_000)
}

/// A run of job 1 that sleeps, until a moment or without one.
fn asleep(run: u128, due: Option<u64>) -> Sleeper {
    Sleeper { run: id(run), job: 1, keys: Keys::None, due: due.map(at) }
}

impl Sleeper {
    fn keyed(self, key: &str, limit: u32) -> Self {
        Sleeper { keys: Keys::one(key.into(), limit), ..self }
    }
}

fn suspended(sleeper: Sleeper) -> Line {
    On(Event::Suspended(sleeper))
}

/// A run of job 1 that was suspended after its first lease and goes on.
fn woken(run: u128) -> Queued {
    Queued { holds: true, ..recovered(run, 0) }
}

fn delayed(run: u128, secs: u64) -> Queued {
    Queued { not_before: Some(at(secs)), ..new(run) }
}

fn deadline(run: u128, secs: u64, armed: bool) -> Line {
    On(Event::Deadline { run: id(run), at: at(secs), armed })
}

fn rings(secs: u64, alarms: &[(u128, Alarm)]) -> Line {
    Rings(secs, alarms.to_vec())
}

use Alarm::{Deadline, Start, Wake};

#[test]
fn alarms_ring_once_at_their_moment_and_in_their_order() {
    check(vec![
        (
            "none before its moment, and none twice",
            1,
            vec![
                suspended(asleep(1, Some(10))),
                rings(9, &[]),
                rings(10, &[(1, Wake)]),
                rings(10, &[]),
                rings(99, &[]),
            ],
        ),
        (
            "by moment first, then by run, then a start before a wake before a deadline",
            1,
            vec![
                deadline(1, 20, true),
                suspended(asleep(3, Some(20))),
                suspended(asleep(1, Some(20))),
                suspended(asleep(2, Some(10))),
                queued(delayed(5, 20)),
                deadline(5, 20, true),
                rings(20, &[(2, Wake), (1, Wake), (1, Deadline), (3, Wake), (5, Start), (5, Deadline)]),
            ],
        ),
        (
            "a clock that goes back delays those that have not rung, and no others",
            1,
            vec![
                suspended(asleep(1, Some(10))),
                suspended(asleep(2, Some(20))),
                rings(15, &[(1, Wake)]),
                rings(5, &[]),
                rings(20, &[(2, Wake)]),
            ],
        ),
        (
            "a clock that leaps ahead loses none",
            1,
            vec![
                suspended(asleep(1, Some(10))),
                suspended(asleep(2, Some(u64::MAX / 1_000))),
                rings(u64::MAX / 1_000, &[(1, Wake), (2, Wake)]),
            ],
        ),
        (
            "one that waits for no moment has no alarm",
            1,
            vec![suspended(asleep(1, None)), rings(u64::MAX / 1_000, &[])],
        ),
        (
            "one that was woken before its moment has none any more",
            1,
            vec![registered(1, 9), suspended(asleep(1, Some(10))), queued(woken(1)), rings(10, &[]), Starts(&[1])],
        ),
        (
            "one that is suspended anew waits for its new moment only",
            1,
            vec![
                registered(1, 9),
                suspended(asleep(1, Some(10))),
                queued(woken(1)),
                Starts(&[1]),
                suspended(asleep(1, Some(30))),
                stopped(1, 2),
                rings(29, &[]),
                rings(30, &[(1, Wake)]),
            ],
        ),
        (
            "one that was cancelled has none either",
            1,
            vec![
                suspended(asleep(1, Some(10))),
                withdrawn(1, None),
                queued(delayed(2, 10)),
                withdrawn(2, None),
                rings(10, &[]),
            ],
        ),
        (
            "a deadline that was disarmed does not ring, and another one of the run does",
            1,
            vec![deadline(1, 10, true), deadline(1, 20, true), deadline(1, 10, false), rings(20, &[(1, Deadline)])],
        ),
        (
            "a deadline rings whatever became of the run: who hears it looks",
            1,
            vec![registered(1, 9), deadline(1, 10, true), queued(new(1)), Starts(&[1]), rings(10, &[(1, Deadline)])],
        ),
        ("one that is disarmed twice, or was never armed, is nothing", 1, vec![deadline(1, 10, false), rings(10, &[])]),
    ]);
}

#[test]
fn the_next_alarm_is_the_first_that_could_ring() {
    let mut engine = Engine::new(1, false);
    assert_eq!(engine.next_alarm(), None);
    for (event, expected) in [
        (Event::Suspended(asleep(1, Some(30))), Some(30)),
        (Event::Suspended(asleep(2, None)), Some(30)),
        (Event::Queued(delayed(3, 20)), Some(20)),
        (Event::Deadline { run: id(1), at: at(10), armed: true }, Some(10)),
        (Event::Deadline { run: id(1), at: at(10), armed: false }, Some(20)),
        (Event::Withdrawn { run: id(3), job: 1, keys: Keys::None, priority: 0 }, Some(30)),
        (Event::Queued(woken(1)), None),
    ] {
        let told = format!("{event:?}");
        engine.apply(event, Duration::ZERO);
        assert_eq!(engine.next_alarm(), expected.map(at), "{told}");
    }
}

#[test]
fn a_suspended_run_keeps_its_key_and_takes_no_slot() {
    check(vec![
        (
            "its slot is free once its body has stopped, its key is not",
            1,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                queued(new(3)),
                Starts(&[1]),
                ended(1),
                suspended(asleep(1, None).keyed("k", 1)),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[3]),
                stopped(3, 1),
                Starts(&[]),
            ],
        ),
        (
            "nor does its job's limit count it",
            9,
            vec![
                registered(1, 1),
                queued(new(1)),
                queued(new(2)),
                Starts(&[1]),
                ended(1),
                suspended(asleep(1, None)),
                stopped(1, 1),
                Starts(&[2]),
            ],
        ),
        (
            "woken, it goes first and needs no other to let the key go",
            1,
            vec![
                registered(1, 9),
                queued(new(1)),
                queued(new(2).keyed("k", 1)),
                suspended(asleep(5, Some(10)).keyed("k", 1)),
                rings(10, &[(5, Wake)]),
                queued(woken(5).keyed("k", 1)),
                Starts(&[5]),
                stopped(5, 2),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[2]),
            ],
        ),
        (
            "two of a key with room for two sleep, and a third waits for one of them to end",
            9,
            vec![
                registered(1, 9),
                suspended(asleep(1, None).keyed("k", 2)),
                suspended(asleep(2, None).keyed("k", 2)),
                queued(new(3).keyed("k", 2)),
                Starts(&[]),
                queued(woken(2).keyed("k", 2)),
                Starts(&[2]),
                ended(2),
                stopped(2, 2),
                Starts(&[3]),
            ],
        ),
        (
            "after a restart it holds its key before anyone is in line",
            9,
            vec![
                suspended(asleep(1, None).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                registered(1, 9),
                Starts(&[]),
                withdrawn(1, Some("k")),
                Starts(&[2]),
            ],
        ),
        (
            "woken and not started, it still holds it; cancelled then, no more",
            9,
            vec![
                suspended(asleep(1, None).keyed("k", 1)),
                queued(woken(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                withdrawn(1, Some("k")),
                registered(1, 9),
                Starts(&[2]),
            ],
        ),
        (
            "woken in a job that is not registered, it waits and holds",
            9,
            vec![
                registered(2, 9),
                suspended(asleep(1, None).keyed("k", 1)),
                queued(woken(1).keyed("k", 1)),
                queued(new(2).of(2).keyed("k", 1)),
                Starts(&[]),
                registered(1, 9),
                Starts(&[1]),
                ended(1),
                stopped(1, 2),
                Starts(&[2]),
            ],
        ),
    ]);
}

#[test]
fn what_is_decided_while_a_body_stops_counts_once_it_has_stopped() {
    check(vec![
        (
            "a run that is suspended and woken before its body has stopped starts after that, its key never free",
            2,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                Starts(&[1]),
                ended(1),
                suspended(asleep(1, Some(10)).keyed("k", 1)),
                queued(woken(1).keyed("k", 1)),
                rings(10, &[]),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[1]),
                ended(1),
                stopped(1, 2),
                Starts(&[2]),
            ],
        ),
        (
            "its alarm is set when it has stopped",
            2,
            vec![
                registered(1, 9),
                queued(new(1)),
                Starts(&[1]),
                ended(1),
                suspended(asleep(1, Some(10))),
                rings(10, &[]),
                stopped(1, 1),
                rings(10, &[(1, Wake)]),
            ],
        ),
        (
            "cancelled meanwhile, it neither sleeps nor holds",
            2,
            vec![
                registered(1, 9),
                queued(new(1).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                Starts(&[1]),
                ended(1),
                suspended(asleep(1, Some(10)).keyed("k", 1)),
                withdrawn(1, Some("k")),
                Starts(&[]),
                stopped(1, 1),
                Starts(&[2]),
                rings(10, &[]),
            ],
        ),
    ]);
}

#[test]
fn a_delayed_run_stands_in_no_line_before_its_moment() {
    check(vec![
        (
            "it starts after its moment, at its own place",
            1,
            vec![
                registered(1, 9),
                queued(delayed(1, 10)),
                queued(new(2)),
                queued(new(3)),
                Starts(&[2]),
                stopped(2, 1),
                rings(10, &[(1, Start)]),
                Starts(&[1]),
                stopped(1, 1),
                Starts(&[3]),
            ],
        ),
        (
            "it holds nobody of its key up",
            1,
            vec![
                registered(1, 9),
                queued(delayed(1, 10).keyed("k", 1)),
                queued(new(2).keyed("k", 1)),
                Starts(&[2]),
                rings(10, &[(1, Start)]),
                Starts(&[]),
                stopped(2, 1),
                Starts(&[1]),
            ],
        ),
        (
            "cancelled before, it never starts",
            1,
            vec![registered(1, 9), queued(delayed(1, 10)), withdrawn(1, None), rings(10, &[]), Starts(&[])],
        ),
        (
            "its moment comes before its job is registered",
            1,
            vec![queued(delayed(1, 10)), rings(10, &[(1, Start)]), Starts(&[]), registered(1, 9), Starts(&[1])],
        ),
    ]);
}

#[test]
fn runs_that_wait_are_counted_where_they_are() {
    let mut engine = play(
        9,
        vec![
            registered(1, 9),
            queued(new(1)),
            queued(new(2)),
            queued(delayed(3, 10)),
            suspended(asleep(4, None)),
            suspended(asleep(5, Some(10))),
        ],
    );
    let counts = |engine: &Engine| engine.counts().map(|(_, counts)| counts).collect::<Vec<_>>();
    assert_eq!(counts(&engine), [[3, 0, 2]]);
    assert_eq!(drain(&mut engine, Duration::ZERO), [1, 2]);
    engine.apply(Event::Yielded { run: id(1) }, Duration::ZERO);
    engine.apply(Event::Suspended(asleep(1, None)), Duration::ZERO);
    assert_eq!(counts(&engine), [[1, 1, 3]], "also while its body still stops");
    engine.apply(Event::Stopped { run: id(1), generation: 1 }, Duration::ZERO);
    assert_eq!(counts(&engine), [[1, 1, 3]]);
    engine.apply(Event::Queued(woken(4)), Duration::ZERO);
    assert_eq!(engine.ring(at(10)), Some((id(3), Start)));
    assert_eq!(counts(&engine), [[2, 1, 2]]);
    engine.apply(Event::Withdrawn { run: id(5), job: 1, keys: Keys::None, priority: 0 }, Duration::ZERO);
    assert_eq!(counts(&engine), [[2, 1, 1]]);
    assert_eq!(engine.ring(at(10)), None);
}

#[test]
fn who_waits_for_a_run_that_is_suspended_waits_on() {
    let mut engine = play(2, vec![registered(1, 9), queued(new(1)), queued(new(2))]);
    assert_eq!(drain(&mut engine, Duration::ZERO), [1, 2]);
    assert!(engine.wait(id(1), on(2)));
    engine.apply(Event::Yielded { run: id(2) }, Duration::ZERO);
    engine.apply(Event::Suspended(asleep(2, None)), Duration::ZERO);
    engine.apply(Event::Stopped { run: id(2), generation: 1 }, Duration::ZERO);
    engine.apply(Event::Queued(new(3)), Duration::ZERO);
    assert_eq!(drain(&mut engine, Duration::ZERO), [3]);
    assert!(!engine.wait(id(3), on(9)), "nobody would be left to make room for the one that sleeps");
}
