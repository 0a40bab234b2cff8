//! A disk in memory that fails, fills up and loses power.
//!
//! It keeps what was flushed, and what was asked for since; what is read is both. A loss of power keeps the first and, of the
//! second, any part. It knows nothing of names: whether the directory was flushed can't be seen here.

mod change;
mod fault;

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use durably::Clock;
use durably::testing::suites::Disk;
use tokio::sync::Notify;

use super::clock::SimClock;
pub use change::{Change, apply, subset, torn};
pub use fault::{Fault, Lasts, Plan};
use fault::{Faults, Operation};

/// A runtime that opens its file more often will do so for ever.
const OPENS_MAX: u64 = 1_000;

#[derive(Debug)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// The cache shows changes as written that never were.
    stale: bool,
    /// All changes since it was asked for.
    history: Option<Vec<Change>>,
    faults: Faults,
    opens: u64,
    random: fastrand::Rng,
    /// What a loss of power has left.
    image: Option<Vec<u8>>,
}

/// A disk that outlives the runtimes over it.
#[derive(Debug)]
pub struct SimDisk {
    state: Mutex<State>,
    clock: SimClock,
    /// Tells that the power went.
    pub dark: Notify,
}

impl SimDisk {
    /// A disk that holds these bytes, all of them flushed, and on which nothing goes wrong.
    pub fn of(bytes: Vec<u8>) -> Arc<Self> {
        SimDisk::new(&SimClock::default(), 0, bytes)
    }

    /// The same, for plans: they go by that clock and draw from that seed.
    pub fn new(clock: &SimClock, seed: u64, bytes: Vec<u8>) -> Arc<Self> {
        let state = State {
            live: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
            stale: false,
            history: None,
            faults: Faults::default(),
            opens: 0,
            random: fastrand::Rng::with_seed(seed),
            image: None,
        };
        Arc::new(SimDisk { state: Mutex::new(state), clock: clock.clone(), dark: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its runtimes should go by as well.
    pub fn clock(&self) -> &SimClock {
        &self.clock
    }

    /// Keeps every change from here on.
    pub fn record(&self) {
        self.state().history = Some(Vec::new());
    }

    /// The changes since [`SimDisk::record`].
    pub fn recorded(&self) -> Vec<Change> {
        self.state().history.clone().unwrap_or_default()
    }

    /// How many changes have been recorded: where in history an answer came.
    pub fn at(&self) -> usize {
        self.state().history.as_ref().map_or(0, Vec::len)
    }

    /// Something is to go wrong.
    pub fn plan(&self, plan: Plan) {
        self.state().faults.plan(plan);
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().faults.heal();
    }

    /// Operations that were struck.
    pub fn struck(&self) -> u64 {
        self.state().faults.struck
    }

    /// How often it was opened: what a back-off can be counted by.
    pub fn opens(&self) -> u64 {
        self.state().opens
    }

    /// Whether a runtime opened it as if for ever. It panics then, which a task may keep to itself.
    pub fn is_opened_for_ever(&self) -> bool {
        self.state().opens > OPENS_MAX
    }

    /// What is there now, to whoever reads it.
    pub fn live(&self) -> Vec<u8> {
        self.state().live.clone()
    }

    /// Whether the power has gone.
    pub fn is_dark(&self) -> bool {
        self.state().image.is_some()
    }

    /// Cuts the power, if it has not gone, and gives what is left.
    pub fn cut(&self) -> Vec<u8> {
        let mut state = self.state();
        state.lose_power();
        state.image.clone().unwrap_or_default()
    }

    /// What goes wrong with an operation that is one now; what is only slow has taken its time.
    fn strike(&self, operation: Operation) -> (MutexGuard<'_, State>, Option<Fault>) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        let fault = state.faults.strike(operation, now);
        if fault == Some(Fault::Slow) {
            self.clock.pass(fault::SLOW);
        }
        (state, fault.filter(|fault| *fault != Fault::Slow))
    }

    /// Changes or flushes, with what goes wrong.
    fn change(&self, operation: Operation, change: Change) -> io::Result<()> {
        let (mut state, fault) = self.strike(operation);
        match (fault, &change) {
            (None | Some(Fault::DoneAndFails), _) => state.change(change),
            (Some(Fault::PowerLoss), _) => {
                // The one that it strikes may be on the disk as well as those before it.
                state.pending.extend(Some(change.clone()).filter(|change| !matches!(change, Change::Flush)));
                if state.lose_power() {
                    self.dark.notify_one();
                }
                // Nobody who goes on is told, and nothing of the disk that they see may fall back to what was there before.
                state.keep_pending();
                state.change(change);
                return Ok(());
            }
            (Some(Fault::Short), Change::Write(offset, data)) => {
                let half = data[..data.len() / 2].into();
                state.change(Change::Write(*offset, half));
            }
            (Some(Fault::LostFlush), Change::Flush) => state.lose_flush(),
            _ => {}
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }
}

impl State {
    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        if let Change::Flush = change {
            // After a failed flush only what came later is still known to be dirty.
            self.keep_pending();
        } else {
            self.pending.push(change.clone());
        }
        if let Some(history) = &mut self.history {
            history.push(change);
        }
    }

    fn keep_pending(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, &change);
        }
    }

    /// Some of what was to be flushed is on disk. The rest looks as if it were.
    fn lose_flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        torn(&pending, &mut self.random).iter().for_each(|change| apply(&mut self.durable, change));
        self.stale = true;
    }

    /// Whether the power was there to go.
    fn lose_power(&mut self) -> bool {
        let goes = self.image.is_none();
        if goes {
            let mut image = self.durable.clone();
            torn(&self.pending, &mut self.random).iter().for_each(|change| apply(&mut image, change));
            self.image = Some(image);
        }
        goes
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Full => ErrorKind::StorageFull.into(),
        _ => io::Error::other("the disk fails"),
    }
}

impl Disk for SimDisk {
    fn open(&self) -> io::Result<()> {
        let now = self.clock.monotonic();
        let mut state = self.state();
        state.opens += 1;
        if state.opens > OPENS_MAX {
            drop(state);
            panic!("the file is opened again and again");
        }
        let (fault, took) = state.faults.open(now);
        self.clock.pass(took);
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn len(&self) -> io::Result<u64> {
        match self.strike(Operation::Read) {
            (_, Some(fault)) => Err(error(fault)),
            (state, None) => Ok(state.live.len() as u64),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (state, fault) = self.strike(Operation::Read);
        if let Some(fault) = fault {
            return Err(error(fault));
        }
        let found = state.live.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(Operation::Write, Change::Length(bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Operation::Flush, Change::Flush)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Operation::Write, Change::Write(offset, data.into()))
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.state();
        if std::mem::take(&mut state.stale) {
            let mut live = state.durable.clone();
            state.pending.iter().for_each(|change| apply(&mut live, change));
            state.live = live;
        }
        Ok(())
    }
}
