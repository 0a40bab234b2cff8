//! The disk of a [`TestRuntime`](super::TestRuntime): bytes in memory that lose, at a crash, what was not flushed.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::suites::Disk;

#[derive(Default)]
pub(super) struct MemoryDisk(Mutex<State>);

#[derive(Default)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// The machine is off: nothing is written any more.
    off: bool,
}

enum Change {
    Length(usize),
    Write(usize, Vec<u8>),
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Change::Length(length) => bytes.resize(length, 0),
            Change::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[at..end].copy_from_slice(&data);
            }
        }
    }
}

impl MemoryDisk {
    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        MemoryDisk(Mutex::new(State { live: bytes.clone(), durable: bytes, ..State::default() }))
    }

    /// The machine goes off.
    pub(super) fn turn_off(&self) {
        self.state().off = true;
    }

    /// What is left once the machine is off.
    pub(super) fn take_durable(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().durable)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.off { Err(io::Error::other("the process has crashed")) } else { Ok(state) }
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").field("bytes", &self.state().live.len()).finish_non_exhaustive()
    }
}

impl Disk for MemoryDisk {
    fn open(&self) -> io::Result<()> {
        self.on().map(drop)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let from = state.live.get(offset..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut state = self.on()?;
        state.live.resize(length, 0);
        state.pending.push(Change::Length(length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.on()?;
        let State { durable, pending, .. } = &mut *state;
        pending.drain(..).for_each(|change| change.apply(durable));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.on()?;
        Change::Write(offset, data.to_vec()).apply(&mut state.live);
        state.pending.push(Change::Write(offset, data.to_vec()));
        Ok(())
    }
}
