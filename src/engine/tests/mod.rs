//! The engine as tables of cases: events in, the whole list of claims out.

mod delays;
mod keys;
mod lines;
mod model;
mod probation;
mod sleeping;
mod successors;
mod throttles;
mod waits;

use std::time::Duration;

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

/// What a wait is for: a run of job 1.
fn on(run: u128) -> Awaited {
    Awaited { run: id(run), asked: id(run), job: 1, keys: Keys::None }
}

fn on_keyed(run: u128, key: &str) -> Awaited {
    Awaited { keys: named(&[key]), ..on(run) }
}
