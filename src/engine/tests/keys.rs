//! One key, several keys, and their turns.

use super::*;

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
