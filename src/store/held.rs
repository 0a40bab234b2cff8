//! Storage whose changes are held back in memory until what is in it has been looked at.
//!
//! redb writes to a file as soon as it opens it: flags in the header, repairs, its own close. Over a [`Held`] all of that stays in
//! memory until [`Held::release`], which does it in the order in which it was asked for. A file that is refused, or that was only
//! to be looked at, is never released and keeps every byte.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

use super::backend::lock_inner;

const BLOCK: u64 = 4096;

/// One change that is held back.
#[derive(Debug, Clone)]
enum Change {
    Length(u64),
    Write(u64, Vec<u8>),
    Flush,
}

#[derive(Debug, Default)]
struct Overlay {
    len: u64,
    /// Bytes of the storage beneath that still show through.
    beneath: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
    changes: Vec<Change>,
}

/// Storage that is held.
pub(super) struct Held {
    inner: Arc<dyn StorageBackend>,
    holds: AtomicBool,
    overlay: Mutex<Overlay>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("holds", &self.holds).finish_non_exhaustive()
    }
}

impl Held {
    /// Holds back everything from here on. Should it be released in the end, the changes are kept in order.
    pub(super) fn over(inner: Arc<dyn StorageBackend>) -> io::Result<Self> {
        let len = inner.len()?;
        let overlay = Overlay { len, beneath: len, ..Overlay::default() };
        Ok(Held { inner, holds: AtomicBool::new(true), overlay: Mutex::new(overlay) })
    }

    /// Does what was held back, and holds back nothing any more.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut overlay = self.overlay();
        for change in std::mem::take(&mut overlay.changes) {
            match change {
                Change::Length(len) => self.inner.set_len(len)?,
                Change::Write(offset, data) => self.inner.write(offset, &data)?,
                Change::Flush => self.inner.sync_data()?,
            }
        }
        *overlay = Overlay::default();
        // Inside the lock: nobody may see the storage beneath before all of it is there.
        self.holds.store(false, Ordering::Release);
        Ok(())
    }

    fn overlay(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The overlay, while anything is held.
    fn held(&self) -> Option<MutexGuard<'_, Overlay>> {
        if !self.holds.load(Ordering::Acquire) {
            return None;
        }
        let overlay = self.overlay();
        self.holds.load(Ordering::Acquire).then_some(overlay)
    }
}

impl Overlay {
    /// Fills `out` from the storage beneath, with zeros where it has been cut.
    fn read_beneath(&self, inner: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.beneath.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (file, zeros) = out.split_at_mut(there);
        if !file.is_empty() {
            inner.read(offset, file)?;
        }
        zeros.fill(0);
        Ok(())
    }

    fn check(&self, offset: u64, bytes: usize) -> io::Result<u64> {
        let end = offset.checked_add(bytes as u64).filter(|end| *end <= self.len);
        end.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))
    }

    fn read(&self, inner: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = self.check(offset, out.len())?;
        self.read_beneath(inner, offset, out)?;
        for (block, bytes) in self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = block * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            let source = &bytes[(from - start) as usize..(to - start) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }

    fn write(&mut self, inner: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = self.check(offset, data.len())?;
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            let start = block * BLOCK;
            if !self.blocks.contains_key(&block) {
                let mut bytes = vec![0; BLOCK as usize].into_boxed_slice();
                self.read_beneath(inner, start, &mut bytes)?;
                self.blocks.insert(block, bytes);
            }
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            if let Some(bytes) = self.blocks.get_mut(&block) {
                let source = &data[(from - offset) as usize..(to - offset) as usize];
                bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(source);
            }
        }
        self.changes.push(Change::Write(offset, data.to_vec()));
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.beneath = self.beneath.min(len);
            self.blocks.split_off(&len.div_ceil(BLOCK));
            if let Some(bytes) = self.blocks.get_mut(&(len / BLOCK)) {
                bytes[(len % BLOCK) as usize..].fill(0);
            }
        }
        self.len = len;
        self.changes.push(Change::Length(len));
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        match self.held() {
            Some(overlay) => Ok(overlay.len),
            None => self.inner.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.held() {
            Some(overlay) => overlay.read(&*self.inner, offset, out),
            None => self.inner.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.held() {
            Some(mut overlay) => {
                overlay.set_len(len);
                Ok(())
            }
            None => self.inner.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.held() {
            Some(mut overlay) => {
                overlay.changes.push(Change::Flush);
                Ok(())
            }
            None => self.inner.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.held() {
            Some(mut overlay) => overlay.write(&*self.inner, offset, data),
            None => self.inner.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    lock_inner!();
}

#[cfg(test)]
mod tests {
    use super::super::backend::SharedMemory;
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Act {
        Write(u64, u8, usize),
        Length(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0..20_000u64, any::<u8>(), 0..9_000usize).prop_map(|(at, byte, len)| Act::Write(at, byte, len)),
            (0..20_000u64).prop_map(Act::Length),
        ];
        proptest::collection::vec(act, 0..12)
    }

    fn all(storage: &dyn StorageBackend) -> Vec<u8> {
        let mut out = vec![0; storage.len().unwrap() as usize];
        storage.read(0, &mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn held_storage_reads_as_if_it_were_written_and_releases_just_that(acts in acts(), fill in 1..10_000u64) {
            let memory: Arc<dyn StorageBackend> = Arc::new(SharedMemory::default().backend());
            memory.set_len(fill).unwrap();
            memory.write(0, &vec![7; fill as usize]).unwrap();
            let before = all(&*memory);
            let model = SharedMemory::default().backend();
            model.set_len(fill).unwrap();
            model.write(0, &before).unwrap();
            let held = Held::over(memory.clone()).unwrap();
            for act in acts {
                match act {
                    Act::Length(len) => {
                        held.set_len(len).unwrap();
                        model.set_len(len).unwrap();
                    }
                    Act::Write(at, byte, len) => {
                        let data = vec![byte; len];
                        prop_assert_eq!(held.write(at, &data).is_ok(), model.write(at, &data).is_ok());
                    }
                }
                prop_assert_eq!(all(&held), all(&model));
                prop_assert_eq!(all(&*memory), before.clone());
            }
            held.release().unwrap();
            prop_assert_eq!(all(&*memory), all(&model));
            prop_assert_eq!(all(&held), all(&model));
        }
    }
}
