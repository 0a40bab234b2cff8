//! What a runtime is told when it is opened.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::hooks::Hooks;
use crate::limits::{CONCURRENT_RUNS_MAX, PAYLOAD_BYTES_CEILING, PAYLOAD_BYTES_DEFAULT};
use crate::time::{Clock, SystemClock};

/// How long checkpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StepRetention {
    /// As long as their run.
    #[default]
    WithRun,
    /// Until the run ends: a resumed run then starts from its first step.
    UntilTerminal,
}

/// How long log lines are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LogRetention {
    /// As long as their run.
    #[default]
    WithRun,
    /// Until the run ends.
    UntilTerminal,
    /// Not at all: they are events only.
    Off,
}

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) max_concurrent_runs: usize,
    pub(crate) max_recoveries: u32,
    pub(crate) cancel_grace: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) admission_timeout: Duration,
    pub(crate) payload_bytes_max: usize,
    pub(crate) keep_steps: StepRetention,
    pub(crate) keep_logs: LogRetention,
    pub(crate) retain_runs: Option<Duration>,
    pub(crate) paused: bool,
    pub(crate) two_phase_commit: bool,
    pub(crate) compact_on_open: bool,
    pub(crate) cache_bytes: usize,
    pub(crate) lock_wait: Duration,
    pub(crate) blocking_threads: usize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) seed: Option<u64>,
    pub(crate) hooks: Hooks,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_concurrent_runs: 64,
            max_recoveries: 3,
            cancel_grace: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(20),
            admission_timeout: Duration::from_secs(1),
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT,
            keep_steps: StepRetention::default(),
            keep_logs: LogRetention::default(),
            retain_runs: None,
            paused: false,
            two_phase_commit: false,
            compact_on_open: false,
            cache_bytes: 64 << 20,
            lock_wait: Duration::from_secs(1),
            blocking_threads: 64,
            clock: Arc::new(SystemClock::default()),
            seed: None,
            hooks: Hooks::default(),
        }
    }
}

impl Config {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let within = |option, value: usize, range: std::ops::RangeInclusive<usize>, rule| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(Error::InvalidOption { option, value: value.to_string(), rule })
            }
        };
        within("max_concurrent_runs", self.max_concurrent_runs, 1..=CONCURRENT_RUNS_MAX, "between 1 and 65536")?;
        within("payload_bytes_max", self.payload_bytes_max, 1..=PAYLOAD_BYTES_CEILING, "between 1 byte and 64 MiB")?;
        within("cache_bytes", self.cache_bytes, 1 << 20..=1 << 40, "between 1 MiB and 1 TiB")?;
        within("blocking_threads", self.blocking_threads, 1..=4_096, "between 1 and 4096")?;
        Ok(())
    }
}
