//! Runs that go on for others.

use super::*;

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
