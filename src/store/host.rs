//! Where the writer runs: on its own thread, or inline for a simulation.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::Notify;

use super::inbox::Inbox;
use super::op::Op;
use super::writer::{Effects, Writer};
use crate::error::Error;

/// The seam between the async handle and the writer.
pub(super) trait Host: Send + Sync {
    /// Gives the writer its effects and lets it work.
    fn connect(&self, effects: Arc<dyn Effects>) -> Result<(), Error>;

    /// How long the writer may be left alone, if someone has to see to it.
    fn idle_for(&self) -> Option<Idle> {
        None
    }

    /// How long until something is due, and how many bodies there are, of a writer without a thread.
    #[cfg(feature = "testing")]
    fn outlook(&self) -> (Option<Duration>, usize) {
        (None, 0)
    }

    /// Hands an operation over; gives it back once the writer has ended.
    #[must_use]
    fn submit(&self, op: Op) -> Option<Op>;
}

/// A writer without a thread waits for nothing by itself.
pub(crate) struct Idle {
    /// Until it has something to do; `None`: as long as nobody asks for anything.
    pub(crate) timeout: Option<Duration>,
    /// Notified whenever that may be another.
    pub(crate) changed: Arc<Notify>,
}

/// The writer on a thread of its own: its flushes block no async thread.
pub(super) struct Threaded {
    writer: Mutex<Option<Writer>>,
    inbox: Arc<Inbox>,
}

impl Threaded {
    pub(super) fn new(writer: Writer, inbox: Arc<Inbox>) -> Self {
        Threaded { writer: Mutex::new(Some(writer)), inbox }
    }
}

impl Host for Threaded {
    fn connect(&self, effects: Arc<dyn Effects>) -> Result<(), Error> {
        let Some(mut writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        writer.connect(effects);
        let spawned = std::thread::Builder::new().name("durably-writer".into()).spawn(move || writer.run());
        // Nobody joins it: it answers a close after it has let go of the file.
        spawned.map(drop).map_err(|error| Error::Storage(error.into()))
    }

    fn submit(&self, op: Op) -> Option<Op> {
        self.inbox.push(op)
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        // Nobody can ask for anything any more: the writer finishes what it has and lets go of the file. It is not waited
        // for here, since this may be an async thread.
        let (call, _) = super::op::Call::new(false, super::op::Admitted::default());
        let _ = self.inbox.push(Op::Close(call));
    }
}

/// The writer on whatever thread hands it something, in call order and never twice at once.
pub(super) struct Inline {
    writer: Mutex<Option<Writer>>,
    inbox: Arc<Inbox>,
    changed: Arc<Notify>,
}

impl Inline {
    pub(super) fn new(writer: Writer, inbox: Arc<Inbox>) -> Self {
        Inline { writer: Mutex::new(Some(writer)), inbox, changed: Arc::default() }
    }

    /// Looks at the writer, and does what was handed over meanwhile.
    fn look<T>(&self, look: impl FnOnce(&Writer) -> T) -> Option<T> {
        let seen = self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look);
        self.work();
        seen
    }

    fn work(&self) {
        loop {
            // Held already: whoever holds it takes up what was pushed, before it lets go or right after.
            let mut held = match self.writer.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(held)) => held.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let Some(writer) = held.as_mut() else { return };
            while writer.has_pending() || !self.inbox.is_empty() {
                if writer.step(Some(Duration::ZERO)) {
                    held.take().into_iter().for_each(Writer::close);
                    return;
                }
            }
            drop(held);
            if self.inbox.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

impl Host for Inline {
    fn connect(&self, effects: Arc<dyn Effects>) -> Result<(), Error> {
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            writer.connect(effects);
        }
        self.work();
        Ok(())
    }

    fn submit(&self, op: Op) -> Option<Op> {
        let refused = self.inbox.push(op);
        self.work();
        self.changed.notify_one();
        refused
    }

    fn idle_for(&self) -> Option<Idle> {
        let timeout = self.look(Writer::timeout)?;
        Some(Idle { timeout, changed: self.changed.clone() })
    }

    #[cfg(feature = "testing")]
    fn outlook(&self) -> (Option<Duration>, usize) {
        self.look(Writer::outlook).unwrap_or((None, 0))
    }
}
