//! A disk that loses power, and whose operations fail, as disks do.
//!
//! It keeps what was flushed, and what was asked for since. A loss of power keeps the first and, of the second, any part: each
//! operation whole or not at all, in any combination, or torn at sectors or bytes; a change of length like any other. It knows
//! nothing of names: whether the directory was flushed can't be seen here.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use durably::testing::suites::Disk;

use super::ledger::Ticking;

const SECTOR: usize = 512;

/// Something that was asked of the disk and changes it.
#[derive(Debug, Clone)]
pub enum Change {
    Write(u64, Arc<[u8]>),
    Length(u64),
    Flush,
}

/// What goes wrong at one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation is not done and says so.
    Eio,
    /// A write is done in part, anything else not at all, and says so.
    Short,
    /// The operation is done, and says that it is not.
    DoneButSaysNot,
    /// There is no room: writes and changes of length fail, the rest works.
    NoSpace,
    /// A flush fails once; what it was to flush looks written and is lost, as if it had never been asked for, once the cache
    /// or the power goes.
    LostFlush,
    /// All is done, in its own time: with [`SimDisk::takes_time`] this is seconds.
    Slow,
}

/// From which operation on, and for how many opens, a fault holds.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub at: u64,
    pub fault: Fault,
    /// Operations fail until so many further opens were tried; `None`: only the one fails.
    pub opens: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Changes that the cache shows as written though they never were.
    phantom: bool,
    /// All changes since it was asked for.
    history: Option<Vec<Change>>,
    ops: u64,
    plan: Option<Plan>,
    /// A sticky fault that has begun, with the opens that are left.
    down: Option<(Fault, u32)>,
    hits: u64,
    opens: u64,
    clock: Option<Arc<Ticking>>,
}

/// A runtime that opens its file more often will do so for ever.
const OPENS_MAX: u64 = 30;

/// What an operation takes that is slow, and an open that fails.
const SLOW: Duration = Duration::from_secs(3);

/// A disk that outlives the runtimes over it.
#[derive(Debug, Default)]
pub struct SimDisk(Mutex<State>);

impl SimDisk {
    /// A disk that holds these bytes, all of them flushed.
    pub fn of(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(SimDisk(Mutex::new(State { live: bytes.clone(), durable: bytes, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Operations from here on are numbered from 0, and fail as planned.
    pub fn plan(&self, plan: impl Into<Option<Plan>>) {
        let mut state = self.state();
        (state.ops, state.plan, state.down) = (0, plan.into(), None);
    }

    /// What fails, or is slow, takes seconds of this clock.
    pub fn takes_time(&self, clock: &Arc<Ticking>) {
        self.state().clock = Some(clock.clone());
    }

    /// Operations that were failed.
    pub fn hits(&self) -> u64 {
        self.state().hits
    }

    /// How often it was opened: what a back-off can be counted by.
    pub fn opens(&self) -> u64 {
        self.state().opens
    }

    /// What is there now, to whoever reads it.
    pub fn live(&self) -> Vec<u8> {
        self.state().live.clone()
    }

    /// What a loss of power certainly leaves, and what it may leave besides.
    pub fn unflushed(&self) -> (Vec<u8>, Vec<Change>) {
        let state = self.state();
        (state.durable.clone(), state.pending.clone())
    }
}

impl State {
    /// What is to go wrong with this operation.
    fn fault(&mut self, writes: bool, flushes: bool) -> Option<Fault> {
        let op = self.ops;
        self.ops += 1;
        if let Some((fault, opens)) = self.down {
            // Room comes back by itself, as soon as the store has asked for it often enough.
            if opens > 0 && (fault != Fault::NoSpace || writes) {
                self.hits += 1;
                return Some(fault);
            }
            return None;
        }
        let plan = self.plan.filter(|plan| op >= plan.at)?;
        let concerned = match plan.fault {
            Fault::LostFlush => flushes,
            Fault::NoSpace | Fault::Short => writes,
            Fault::Eio | Fault::DoneButSaysNot | Fault::Slow => true,
        };
        if !concerned {
            return None;
        }
        if plan.fault == Fault::Slow {
            if op == plan.at {
                self.hits += 1;
            }
            self.wait();
            return None;
        }
        self.plan = None;
        self.down = plan.opens.filter(|_| plan.fault != Fault::LostFlush).map(|opens| (plan.fault, opens));
        self.hits += 1;
        Some(plan.fault)
    }

    fn wait(&self) {
        if let Some(clock) = &self.clock {
            clock.advance(SLOW);
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        if let Change::Flush = change {
            // After a failed flush only what came later is still known to be dirty.
            for change in std::mem::take(&mut self.pending) {
                apply(&mut self.durable, &change);
            }
        } else {
            self.pending.push(change.clone());
        }
        if let Some(history) = &mut self.history {
            history.push(change);
        }
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => ErrorKind::StorageFull.into(),
        _ => io::Error::other("the disk fails"),
    }
}

impl Disk for SimDisk {
    fn open(&self) -> io::Result<()> {
        let mut state = self.state();
        state.opens += 1;
        if state.opens > OPENS_MAX {
            drop(state);
            panic!("the file is opened again and again");
        }
        if let Some((fault, opens)) = state.down {
            if opens == 0 {
                state.down = None;
            } else {
                state.down = Some((fault, opens - 1));
                state.wait();
                if fault != Fault::NoSpace {
                    return Err(error(fault));
                }
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state();
        match state.fault(false, false) {
            Some(fault) => Err(error(fault)),
            None => Ok(state.live.len() as u64),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.fault(false, false) {
            return Err(error(fault));
        }
        let at = offset as usize;
        let found = state.live.get(at..at + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.fault(true, false);
        if matches!(fault, None | Some(Fault::DoneButSaysNot)) {
            state.change(Change::Length(bytes));
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.fault(false, true);
        match fault {
            None | Some(Fault::DoneButSaysNot) => state.change(Change::Flush),
            Some(Fault::LostFlush) => {
                state.pending.clear();
                state.phantom = true;
            }
            Some(_) => {}
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.fault(true, false);
        match fault {
            None | Some(Fault::DoneButSaysNot) => state.change(Change::Write(offset, data.into())),
            Some(Fault::Short) => state.change(Change::Write(offset, data[..data.len() / 2].into())),
            Some(_) => {}
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.phantom {
            let mut live = state.durable.clone();
            state.pending.iter().for_each(|change| apply(&mut live, change));
            (state.live, state.phantom) = (live, false);
        }
        Ok(())
    }
}

/// Does a change to bytes. A write beyond the end, its change of length being lost, lengthens them.
pub fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
        Change::Length(len) => bytes.resize(*len as usize, 0),
        Change::Flush => {}
    }
}

/// What of the unflushed changes survives, by the bits of a number.
pub fn subset(pending: &[Change], which: u64) -> impl Iterator<Item = Change> + '_ {
    let kept = move |at: &usize| at < &64 && which >> at & 1 == 1;
    pending.iter().enumerate().filter(move |(at, _)| kept(at)).map(|(_, change)| change.clone())
}

/// A random part of the unflushed changes: kept, dropped, torn at sectors, cut before or after a byte.
pub fn torn(pending: &[Change], rng: &mut fastrand::Rng) -> Vec<Change> {
    let keeps = [0, 20, 50, 80, 100][rng.usize(..5)];
    let tears = rng.u32(..3) > 0;
    let mut left = Vec::new();
    for change in pending {
        let Change::Write(offset, data) = change else {
            if rng.u32(..100) < keeps {
                left.push(change.clone());
            }
            continue;
        };
        match if tears { rng.u32(..6) } else { 0 } {
            0..=2 => {
                if rng.u32(..100) < keeps {
                    left.push(change.clone());
                }
            }
            3 => {
                for (at, sector) in data.chunks(SECTOR).enumerate() {
                    if rng.u32(..100) < keeps {
                        left.push(Change::Write(offset + (at * SECTOR) as u64, sector.into()));
                    }
                }
            }
            4 => left.push(Change::Write(*offset, data[..rng.usize(..=data.len())].into())),
            _ => {
                let from = rng.usize(..=data.len());
                left.push(Change::Write(offset + from as u64, data[from..].into()));
            }
        }
    }
    left
}
