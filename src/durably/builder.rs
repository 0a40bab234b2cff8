//! How a runtime is to be opened.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Core, Durably};
use crate::config::{Config, LogRetention, StepRetention};
use crate::error::Error;
use crate::store::backend::SharedMemory;
use crate::store::file::Medium;
use crate::store::{Placement, Store};
use crate::time::Clock;

/// How a runtime is to be opened.
#[derive(Debug, Clone, Default)]
#[must_use = "a builder opens nothing by itself"]
pub struct Builder {
    pub(crate) config: Config,
}

impl Builder {
    /// Runs that execute at a time, 1 to 65,536; default 64.
    pub fn max_concurrent_runs(mut self, runs: usize) -> Self {
        self.config.max_concurrent_runs = runs;
        self
    }

    /// How often in a row a run may take the process with it, without a new checkpoint, before it is failed as poisoned;
    /// default 3.
    pub fn max_recoveries(mut self, recoveries: u32) -> Self {
        self.config.max_recoveries = recoveries;
        self
    }

    /// How long a body may go on after its cancel before it is dropped; default 5 s.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.config.cancel_grace = grace;
        self
    }

    /// How long a shutdown waits for executing runs; default 20 s.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.config.shutdown_grace = grace;
        self
    }

    /// How long a call waits for room among the writes that wait for the disk; default 1 s.
    pub fn admission_timeout(mut self, timeout: Duration) -> Self {
        self.config.admission_timeout = timeout;
        self
    }

    /// The most bytes of JSON that an input, an output and a checkpoint may have each, 1 byte to 64 MiB; default 1 MiB.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.config.payload_bytes_max = bytes;
        self
    }

    /// How long checkpoints are kept; default as long as their run.
    pub fn keep_steps(mut self, retention: StepRetention) -> Self {
        self.config.keep_steps = retention;
        self
    }

    /// How long log lines are kept; default as long as their run.
    pub fn keep_logs(mut self, retention: LogRetention) -> Self {
        self.config.keep_logs = retention;
        self
    }

    /// Purge terminal runs this long after their end, in the background; default never.
    pub fn retain_runs(mut self, retention: Duration) -> Self {
        self.config.retain_runs = Some(retention);
        self
    }

    /// Start no run before [`Durably::start`]; default false.
    pub fn paused(mut self, paused: bool) -> Self {
        self.config.paused = paused;
        self
    }

    /// Commit in two phases always. By default a commit is one flush, which survives every crash and power loss on a disk that
    /// keeps its word; two phases also survive damage to the newest page, at two flushes a commit.
    pub fn two_phase_commit(mut self, two_phase: bool) -> Self {
        self.config.two_phase_commit = two_phase;
        self
    }

    /// Give space that the file does not need back to the file system before anything is started; default false. The open takes
    /// as long as [`Durably::compact`] does.
    pub fn compact_on_open(mut self, compact: bool) -> Self {
        self.config.compact_on_open = compact;
        self
    }

    /// Memory for cached pages of the file, bytes, 1 MiB to 1 TiB; default 64 MiB.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.config.cache_bytes = bytes;
        self
    }

    /// How long an open waits for another holder to let go of the file; default 1 s.
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.config.lock_wait = wait;
        self
    }

    /// Threads for blocking steps, 1 to 4,096, started when they are needed; default 64.
    pub fn blocking_threads(mut self, threads: usize) -> Self {
        self.config.blocking_threads = threads;
        self
    }

    /// The clock; default the system's.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.config.clock = Arc::new(clock);
        self
    }

    /// Fixes the random part of run ids, for tests that compare them.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// Opens the file, or creates it. See [`Durably::open`].
    ///
    /// # Errors
    /// Those of [`Durably::open`], and [`Error::InvalidOption`] for a setting out of its range.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<Durably, Error> {
        self.open_medium(Medium::File(path.as_ref().to_owned()), Placement::Threads).await
    }

    /// Opens a runtime in memory. See [`Durably::in_memory`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a setting out of its range, [`Error::NoRuntime`].
    pub async fn in_memory(self) -> Result<Durably, Error> {
        self.open_medium(Medium::Memory(SharedMemory::default()), Placement::Threads).await
    }

    pub(crate) async fn open_medium(self, medium: Medium, placement: Placement) -> Result<Durably, Error> {
        let config = self.config;
        config.validate()?;
        tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        if cfg!(panic = "abort") {
            tracing::warn!(
                "built with panic=abort: a panic in a job's body ends the process instead of failing its run"
            );
        }
        let opening = config.clone();
        let open = move || Store::open(medium, &opening, placement);
        let store = match placement {
            Placement::Threads => tokio::task::spawn_blocking(open).await.map_err(|_| Error::ShutDown)??,
            Placement::Inline => open()?,
        };
        let core = Core::new(store, config);
        // From here on, dropping this future ends what has been started.
        let durably = Durably::over(core.clone());
        core.begin().await?;
        Ok(durably)
    }
}
