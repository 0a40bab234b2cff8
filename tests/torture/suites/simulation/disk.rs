//! A disk in memory that loses power, fails, and fills up, as its seed has it.
//!
//! `live` is what reads see, `durable` what a loss of power leaves for sure; changes since the last flush are `pending`, and of
//! those a loss of power keeps what it likes, in whole or in sectors.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use durably::Clock;
use durably::testing::suites::Disk;
use tokio::sync::Notify;

use super::clock::SimClock;

const SECTOR: usize = 512;

/// What goes wrong with a change or a flush of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not done, and says so.
    Fails,
    /// It is done, and says it is not. A flush that fails loses what it should have kept once the disk is opened again.
    DoneAndFails,
    /// Nothing works, opening neither, for so long.
    Away(Duration),
    /// Nothing can be written for so long.
    Full(Duration),
    /// The power goes: this is where the history of the disk ends. Nobody who goes on with it is told.
    PowerLoss,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    random: fastrand::Rng,
    /// Changes and flushes so far.
    ops: u64,
    /// In ascending order of the operation they strike.
    faults: Vec<(u64, Fault)>,
    away_until: Duration,
    full_until: Duration,
    /// A flush failed: the next open sees what really is there.
    stale: bool,
    /// What the power loss left.
    image: Option<Vec<u8>>,
    struck: u64,
}

#[derive(Debug)]
pub struct SimDisk {
    state: Mutex<State>,
    clock: SimClock,
    /// Tells that the power went.
    pub dark: Notify,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            if bytes.len() < at + data.len() {
                bytes.resize(at + data.len(), 0);
            }
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

impl State {
    /// The durable bytes with some of what was pending.
    fn after_power_loss(&mut self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mode = self.random.u8(..4);
        for change in std::mem::take(&mut self.pending) {
            match (mode, &change) {
                (0, _) => {}
                (1, _) => apply(&mut bytes, &change),
                (3, Change::Write(at, data)) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if self.random.bool() {
                            apply(&mut bytes, &Change::Write(at + number * SECTOR, sector.to_vec()));
                        }
                    }
                }
                _ if self.random.bool() => apply(&mut bytes, &change),
                _ => {}
            }
        }
        bytes
    }
}

impl SimDisk {
    pub fn new(clock: &SimClock, seed: u64, bytes: Vec<u8>) -> Arc<Self> {
        let state = State {
            live: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            ops: 0,
            faults: Vec::new(),
            away_until: Duration::ZERO,
            full_until: Duration::ZERO,
            stale: false,
            image: None,
            struck: 0,
        };
        Arc::new(SimDisk { state: Mutex::new(state), clock: clock.clone(), dark: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no operation panics")
    }

    /// This goes wrong with the change or flush that is so many from now.
    pub fn plan(&self, from_now: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.ops + from_now;
        state.faults.push((at, fault));
        state.faults.sort_by_key(|(at, _)| *at);
    }

    /// Nothing more goes wrong.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        (state.away_until, state.full_until) = (Duration::ZERO, Duration::ZERO);
    }

    /// Whether the power has gone.
    pub fn is_dark(&self) -> bool {
        self.state().image.is_some()
    }

    /// Cuts the power, if it has not gone, and gives what is left.
    pub fn cut(&self) -> Vec<u8> {
        let mut state = self.state();
        if state.image.is_none() {
            state.image = Some(state.after_power_loss());
        }
        state.image.clone().unwrap_or_default()
    }

    /// Faults that have struck.
    pub fn struck(&self) -> u64 {
        self.state().struck
    }

    fn change(&self, change: Option<Change>) -> io::Result<()> {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if now < state.away_until {
            return Err(io::Error::other("the disk is away"));
        }
        let number = state.ops;
        state.ops += 1;
        let mut fault = None;
        if state.faults.first().is_some_and(|(at, _)| *at <= number) {
            fault = Some(state.faults.remove(0).1);
            state.struck += 1;
        }
        match fault {
            Some(Fault::PowerLoss) if state.image.is_none() => {
                state.pending.extend(change.clone());
                let image = state.after_power_loss();
                state.image = Some(image);
                self.dark.notify_one();
            }
            Some(Fault::Away(time)) => state.away_until = now + time,
            Some(Fault::Full(time)) => state.full_until = now + time,
            _ => {}
        }
        let full = now < state.full_until && change.is_some();
        let fails = matches!(fault, Some(Fault::Fails | Fault::DoneAndFails | Fault::Away(_))) || full;
        match change {
            Some(change) if !fails || fault == Some(Fault::DoneAndFails) => {
                apply(&mut state.live, &change);
                state.pending.push(change);
            }
            Some(_) => {}
            None if fails => {
                state.stale = true;
                if fault == Some(Fault::DoneAndFails) {
                    for change in std::mem::take(&mut state.pending) {
                        apply(&mut state.durable, &change);
                    }
                } else {
                    state.durable = state.after_power_loss();
                }
            }
            None => {
                let State { pending, durable, .. } = &mut *state;
                pending.drain(..).for_each(|change| apply(durable, &change));
            }
        }
        match (fails, full) {
            (_, true) => Err(io::ErrorKind::StorageFull.into()),
            (true, _) => Err(io::Error::other("injected")),
            (false, false) => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    fn open(&self) -> io::Result<()> {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if now < state.away_until {
            return Err(io::Error::other("the disk is away"));
        }
        if std::mem::take(&mut state.stale) {
            // The page cache is dropped: what was written since the flush that failed is as lost as what it failed to keep.
            let bytes = state.after_power_loss();
            (state.live, state.durable) = (bytes.clone(), bytes);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let from = state.live.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change(Some(Change::Length(bytes as usize)))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Some(Change::Write(offset as usize, data.to_vec())))
    }
}
