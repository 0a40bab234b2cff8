//! Log lines and progress of a run.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::execution::Execution;
use crate::codec::records::ProgressRecord;
use crate::event::EventKind;
use crate::hooks::Bug;
use crate::job::{cut, is_readable};
use crate::limits::{ERROR_TEXT_BYTES_MAX, LOG_LINE_BYTES_MAX};
use crate::run::{LogLevel, Progress};
use crate::store::op::Line;

/// Writes log lines of a run. Lines are events at once; they are stored with the run's next checkpoint or within a second.
#[derive(Clone)]
pub struct Logger {
    execution: Arc<Execution>,
    step: Option<Arc<str>>,
}

impl std::fmt::Debug for Logger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logger").field("step", &self.step).finish_non_exhaustive()
    }
}

impl Logger {
    pub(super) fn new(execution: Arc<Execution>, step: Option<Arc<str>>) -> Self {
        Logger { execution, step }
    }

    /// What happens. Fields are anything that serde can write as JSON, up to 127 levels deep; `()` is none.
    pub fn info(&self, message: impl Into<String>, fields: impl Serialize) {
        self.write(LogLevel::Info, message.into(), fields);
    }

    /// What should be looked at.
    pub fn warn(&self, message: impl Into<String>, fields: impl Serialize) {
        self.write(LogLevel::Warn, message.into(), fields);
    }

    /// What went wrong.
    pub fn error(&self, message: impl Into<String>, fields: impl Serialize) {
        self.write(LogLevel::Error, message.into(), fields);
    }

    fn write(&self, level: LogLevel, message: String, fields: impl Serialize) {
        let execution = &self.execution;
        if execution.is_over() || execution.is_cancelled() {
            return;
        }
        let message = cut(message, ERROR_TEXT_BYTES_MAX);
        let mut data = serde_json::to_value(fields).unwrap_or(Value::Null);
        let mut fields = serde_json::to_vec(&data).unwrap_or_default();
        let is_readable = is_readable(&data) || execution.means.hooks.plants(Bug::DeepFieldsStored);
        if message.len() + fields.len() > LOG_LINE_BYTES_MAX || !is_readable {
            (data, fields) = (Value::Null, Vec::new());
        }
        execution.note_line(Line {
            level,
            at: execution.now(),
            step: self.step.clone(),
            message: message.clone(),
            fields: fields.into(),
        });
        execution.tell(|| EventKind::LogWritten { step: self.step.clone(), level, message, data });
    }
}

/// A progress that was reported; a message can be added. Its event goes out when this is dropped, at the end of the statement.
pub struct ProgressReport<'s> {
    execution: &'s Execution,
    progress: ProgressRecord,
}

impl std::fmt::Debug for ProgressReport<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgressReport").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl<'s> ProgressReport<'s> {
    pub(super) fn new(execution: &'s Execution, current: u64, total: Option<u64>) -> Self {
        let report = ProgressReport { execution, progress: ProgressRecord { current, total, message: None } };
        report.note();
        report
    }

    /// Adds a few words for people.
    pub fn message(mut self, message: impl Into<String>) {
        self.progress.message = Some(cut(message.into(), ERROR_TEXT_BYTES_MAX));
        self.note();
    }

    fn is_heard(&self) -> bool {
        !self.execution.is_over() && !self.execution.is_cancelled()
    }

    fn note(&self) {
        if self.is_heard() {
            self.execution.note_progress(self.progress.clone());
        }
    }
}

impl Drop for ProgressReport<'_> {
    fn drop(&mut self) {
        if self.is_heard() {
            let ProgressRecord { current, total, message } = self.progress.clone();
            self.execution.tell(|| EventKind::RunProgress { progress: Progress { current, total, message } });
        }
    }
}
