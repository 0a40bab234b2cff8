//! Runs that took the process with them.

use super::*;

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
