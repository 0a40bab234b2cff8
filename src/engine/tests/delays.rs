//! Runs that are to start at a moment.

use super::*;

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
    let waiting = |engine: &Engine| engine.waiting(1, "k", &BTreeSet::new(), None).map(|(run, _)| number(run));
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
    assert_eq!(
        engine.waiting(1, "k", &none, None),
        Some((id(8), Place::new(false, id(2)))),
        "its place, its own moment"
    );
    assert_eq!(engine.waiting(1, "k", &BTreeSet::from([id(8)]), None), None, "it is about to be replaced");
    assert_eq!(engine.next_alarm(), Some(moment(20)));
}
