//! Rates and pauses.

use super::*;

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
