//! The engine beside a model that is too simple to be wrong.

use proptest::prelude::*;

use super::*;

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
                assert_eq!(self.engine.waiting(job, &name, &BTreeSet::new(), None), expected);
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
