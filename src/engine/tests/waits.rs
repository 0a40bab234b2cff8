//! Bodies that wait for other runs.

use super::*;

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
fn a_run_that_is_withdrawn_is_awaited_no_more() {
    let mut engine = play(2, vec![registered(1, 9), queued(new(1)), queued(new(2)), Starts(&[1, 2]), queued(new(5))]);
    assert!(engine.wait(id(1), on(5)));
    assert!(!engine.wait(id(2), on(1)));
    engine.apply(Event::Withdrawn { run: id(5), job: 1, keys: Keys::None, priority: 0 }, Duration::ZERO);
    assert!(engine.wait(id(2), on(1)), "nothing keeps the first from going on");
}

#[test]
fn a_body_that_is_being_stopped_waits_for_nobody() {
    let mut engine = play(2, vec![registered(1, 9), queued(new(1)), queued(new(2)), Starts(&[1, 2]), ended(1)]);
    assert!(engine.wait(id(1), on(5)));
    assert!(engine.wait(id(2), on(6)), "the first will free its slot");
    engine.wait_over(id(2), id(6));
    engine.apply(Event::Stopped { run: id(1), generation: 1 }, Duration::ZERO);
    assert!(engine.wait(id(1), on(2)), "nor does one that is gone");
    assert_eq!(engine.waiting_bodies().count(), 0);
}

#[test]
fn waits_outlive_a_rebuilt_engine() {
    let mut before = play(2, vec![registered(1, 9), queued(new(1)), queued(new(2)), Starts(&[1, 2])]);
    assert!(before.wait(id(1), on(2)));
    let mut engine = Engine::new(2, false);
    engine.adopt(&new(1).after(1), false, Duration::ZERO);
    engine.adopt(&new(2).after(1), false, Duration::ZERO);
    engine.keep_waits(before.waits());
    engine.forget_waits_of_others();
    assert!(!engine.wait(id(2), on(1)));
    let mut without = Engine::new(2, false);
    without.keep_waits(before.waits());
    without.forget_waits_of_others();
    assert_eq!(without.waiting_bodies().count(), 0);
}
