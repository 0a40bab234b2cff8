//! A choice among steps: the first to end wins, and the winner is stored.
//!
//! The race itself is no work: while its arms are polled it does not count as busy, so a run whose arms all wait is suspended.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::Instrument;

use super::Claimed;
use super::execution::{Ticket, Verdict};
use super::run::{self, fitting, never};
use crate::job::{ErrorKind, JobError, JobResult};
use crate::limits::STEP_KEY_BYTES_MAX;
use crate::run::StepKind;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = JobResult<T>> + Send + 'a>>;
type Arms<'a, T> = Vec<(String, Boxed<'a, T>)>;

/// A choice among steps: give it its arms, then await it. See [`Step::race`](super::Step::race).
#[must_use = "a step does nothing until it is awaited"]
pub struct StepRace<'a, T> {
    state: State<'a, T>,
}

enum State<'a, T> {
    Called(Ticket, Arms<'a, T>),
    Racing(Boxed<'a, Won<T>>),
    Detached(String),
    Never,
}

/// What a race has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Won<T> {
    arm: String,
    value: T,
}

impl<T> Won<T> {
    /// The name of the arm that won.
    pub fn arm(&self) -> &str {
        &self.arm
    }

    /// What it gave.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// What it gave.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Unpin for StepRace<'_, T> {}

impl<T> fmt::Debug for StepRace<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("StepRace");
        if let State::Called(ticket, arms) = &self.state {
            let names: Vec<&str> = arms.iter().map(|(name, _)| &**name).collect();
            shown.field("key", &ticket.key).field("arms", &names);
        }
        shown.finish_non_exhaustive()
    }
}

impl<'a, T> StepRace<'a, T> {
    pub(super) fn new(claimed: Claimed) -> Self {
        let state = match claimed {
            Claimed::Ticket(ticket) => State::Called(ticket, Vec::new()),
            Claimed::Detached(key) => State::Detached(key),
            Claimed::Never => State::Never,
        };
        StepRace { state }
    }

    /// One more arm. Its name, 1 to 1,024 bytes, is what is stored if it wins, and what [`Won::arm`] gives.
    pub fn arm(mut self, name: impl Into<String>, arm: impl Future<Output = JobResult<T>> + Send + 'a) -> Self {
        let State::Called(ticket, arms) = &mut self.state else { return self };
        let name = name.into();
        let refused = if !(1..=STEP_KEY_BYTES_MAX).contains(&name.len()) {
            Some((ErrorKind::OverLimit, format!("is of {} bytes: 1 to {STEP_KEY_BYTES_MAX}", name.len())))
        } else if arms.iter().any(|(other, _)| *other == name) {
            Some((ErrorKind::StepReused, format!("{name:?} was given twice")))
        } else {
            None
        };
        match refused {
            Some((kind, what)) => {
                ticket.execution.fail(kind, format!("the name of an arm of race {:?} {what}", ticket.key));
                self.state = State::Never;
            }
            None => arms.push((name, Box::pin(arm))),
        }
        self
    }
}

impl<'a, T: Send + 'a> Future for StepRace<'a, T> {
    type Output = JobResult<Won<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<Won<T>>> {
        let state = &mut self.get_mut().state;
        *state = match std::mem::replace(state, State::Never) {
            State::Called(ticket, arms) => begin(ticket, arms),
            state => state,
        };
        match state {
            State::Racing(racing) => racing.as_mut().poll(cx),
            State::Detached(key) => Poll::Ready(Err(run::detached(key))),
            State::Called(..) | State::Never => Poll::Pending,
        }
    }
}

fn begin<'a, T: Send + 'a>(ticket: Ticket, arms: Arms<'a, T>) -> State<'a, T> {
    if let Some(error) = run::outlived(&ticket) {
        return State::Racing(Box::pin(std::future::ready(Err(error))));
    }
    if ticket.execution.is_cancelled() {
        ticket.execution.stuck();
        return State::Never;
    }
    if ticket.is_other_kind(StepKind::Race) {
        return State::Never;
    }
    ticket.note_begin();
    let span = run::span_of(&ticket);
    if ticket.known.is_some() {
        return State::Racing(Box::pin(replay(ticket, arms).instrument(span)));
    }
    State::Racing(Box::pin(race(ticket, arms).instrument(span)))
}

/// A race that was decided before: the arm that won is the only one that is polled.
async fn replay<T>(mut ticket: Ticket, mut arms: Arms<'_, T>) -> JobResult<Won<T>> {
    let winner: String = match run::decided(&mut ticket).await {
        Ok(json) => fitting(&ticket, &json).await,
        Err(record) => return Err(JobError::from_record(record)),
    };
    let Some(at) = arms.iter().position(|(name, _)| *name == winner) else {
        let message = format!("race {:?} was won by arm {winner:?}, which is no arm of it now", ticket.key);
        ticket.execution.fail(ErrorKind::CheckpointMismatch, message);
        return never().await;
    };
    let (arm, running) = arms.swap_remove(at);
    // Those that lost hold keys, and count as busy, for as long as they are there.
    drop(arms);
    ticket.set_idle(true);
    let result = running.await;
    ticket.set_idle(false);
    ticket.done = true;
    result.map(|value| Won { arm, value })
}

async fn race<T>(mut ticket: Ticket, mut arms: Arms<'_, T>) -> JobResult<Won<T>> {
    if arms.is_empty() {
        return Err(JobError::msg(format_args!("race {:?} has no arms", ticket.key)));
    }
    let started_at = ticket.execution.now();
    ticket.set_idle(true);
    let (at, result) = poll_fn(|cx| {
        let ended = arms.iter_mut().enumerate().find_map(|(at, (_, arm))| match arm.as_mut().poll(cx) {
            Poll::Ready(result) => Some((at, result)),
            Poll::Pending => None,
        });
        ended.map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    ticket.set_idle(false);
    let (arm, _) = arms.swap_remove(at);
    drop(arms);
    let execution = &ticket.execution;
    if result.is_err() && execution.is_stopping() {
        // Told to stop, it failed: that decides nothing.
        match execution.is_cancelled() {
            true => execution.stuck(),
            false => execution.judge(Verdict::HandedBack),
        }
        return never().await;
    }
    let winner = serde_json::Value::from(&*arm).to_string();
    run::record_outcome(&mut ticket, StepKind::Race, started_at, None, winner.as_bytes()).await;
    ticket.done = true;
    result.map(|value| Won { arm, value })
}
