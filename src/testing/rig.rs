//! What a test has put in place under a runtime: whether its bodies are at rest, the moment at which it ends, and what
//! happens in the place of steps.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Notify;

use super::clock::TestClock;
use super::memory::MemoryDisk;
use super::mocks::{Act, Mocks};
use super::suites::Failpoint;
use crate::durably::Core;
use crate::job::{ErrorKind, JobError, JobResult, schema};
use crate::step::StepCx;
use crate::time::Clock;

/// Lines of a trace that are kept; the oldest go first.
const TRACE_MAX: usize = 400;

pub(crate) struct Rig {
    pub(super) clock: TestClock,
    pub(super) disk: Arc<MemoryDisk>,
    pub(super) mocks: Arc<Mocks>,
    core: Mutex<Weak<Core>>,
    dead: AtomicBool,
    /// Counts whatever a body does or is told.
    epoch: AtomicU64,
    pub(super) changed: Notify,
    watch: Mutex<Watch>,
}

/// What has been passed, and where the world is to end.
#[derive(Default)]
struct Watch {
    armed: bool,
    crash_at: Option<usize>,
    passed: usize,
    commits: usize,
    crashed_at: Option<CrashPoint>,
    last_step: Option<String>,
    trace: VecDeque<String>,
}

/// Where a run was cut off.
#[derive(Debug, Clone)]
pub(super) struct CrashPoint {
    pub(super) point: Option<Failpoint>,
    pub(super) commit: usize,
    pub(super) step: Option<String>,
}

impl Rig {
    pub(super) fn new(clock: TestClock, disk: Arc<MemoryDisk>, mocks: Arc<Mocks>) -> Arc<Self> {
        Arc::new(Rig {
            clock,
            disk,
            mocks,
            core: Mutex::default(),
            dead: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            changed: Notify::new(),
            watch: Mutex::default(),
        })
    }

    pub(super) fn connect(&self, core: &Arc<Core>) {
        *self.core.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(core);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn stir(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Counts crash points from here on, and crashes at one of them.
    pub(super) fn arm(&self, crash_at: Option<usize>) {
        let mut watch = self.watch();
        (watch.armed, watch.crash_at, watch.passed, watch.commits) = (true, crash_at, 0, 0);
    }

    /// Crash points that have been passed, and commits.
    pub(super) fn disarm(&self) -> (usize, usize) {
        let mut watch = self.watch();
        watch.armed = false;
        (watch.passed, watch.commits)
    }

    pub(super) fn crashed_at(&self) -> Option<CrashPoint> {
        self.watch().crashed_at.clone()
    }

    pub(super) fn note(&self, line: impl Into<String>) {
        let mut watch = self.watch();
        if watch.trace.len() >= TRACE_MAX {
            watch.trace.pop_front();
        }
        watch.trace.push_back(line.into());
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.watch().trace.iter().cloned().collect()
    }

    pub(crate) fn pass(&self, point: Failpoint) {
        if self.is_dead() {
            return;
        }
        let here = {
            let mut watch = self.watch();
            if !watch.armed {
                return;
            }
            watch.passed += 1;
            if point == Failpoint::BeforeCommit {
                watch.commits += 1;
            }
            let line = format!("{:>4} {point:?} (commit {})", watch.passed, watch.commits);
            watch.trace.push_back(line);
            watch.crash_at == Some(watch.passed)
        };
        if here {
            self.crash(Some(point));
        }
    }

    pub(crate) fn step_begins(&self, job: &str, step: &str) {
        if self.is_dead() {
            return;
        }
        self.note(format!("     {job}: step {step:?}"));
        self.watch().last_step = Some(step.to_owned());
    }

    /// The process dies: what is not flushed is lost, and nothing that still happens counts.
    pub(super) fn crash(&self, point: Option<Failpoint>) {
        if self.dead.swap(true, Ordering::SeqCst) {
            return;
        }
        self.disk.turn_off();
        {
            let mut watch = self.watch();
            let at = CrashPoint { point, commit: watch.commits, step: watch.last_step.clone() };
            watch.crashed_at = Some(at);
            watch.trace.push_back("     crash".to_owned());
        }
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        core.iter().for_each(|core| core.crash());
        self.stir();
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const POLLED: u8 = 1;
const WOKEN: u8 = 2;
const DROPPED: u8 = 4;

/// Whether a body has something to do.
#[derive(Debug)]
pub(crate) struct Motion {
    bits: AtomicU8,
    /// Steps that wait for time only because the test says so.
    delayed: AtomicU32,
}

impl Default for Motion {
    fn default() -> Self {
        // It is about to be polled.
        Motion { bits: AtomicU8::new(POLLED), delayed: AtomicU32::new(0) }
    }
}

impl Motion {
    pub(crate) fn is_at_rest(&self) -> bool {
        self.bits.load(Ordering::SeqCst) == 0
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.bits.load(Ordering::SeqCst) & DROPPED != 0
    }

    pub(crate) fn delayed(&self) -> u32 {
        self.delayed.load(Ordering::SeqCst)
    }
}

/// Wakes a body, and says so.
struct BodyWaker {
    rig: Arc<Rig>,
    motion: Arc<Motion>,
    inner: Waker,
}

impl Wake for BodyWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.motion.bits.fetch_or(WOKEN, Ordering::SeqCst);
        self.rig.stir();
        self.inner.wake_by_ref();
    }
}

/// A body, watched if there is a rig.
pub(crate) fn watched<'a, F>(
    rig: Option<&Arc<Rig>>,
    motion: &Arc<Motion>,
    body: F,
) -> Pin<Box<dyn Future<Output = F::Output> + Send + 'a>>
where
    F: Future + Send + 'a,
{
    match rig {
        None => Box::pin(body),
        Some(rig) => {
            Box::pin(Watched { rig: rig.clone(), motion: motion.clone(), waker: None, body: Some(Box::pin(body)) })
        }
    }
}

struct Watched<F> {
    rig: Arc<Rig>,
    motion: Arc<Motion>,
    waker: Option<(Waker, Waker)>,
    body: Option<Pin<Box<F>>>,
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.body = None;
        self.motion.bits.fetch_or(DROPPED, Ordering::SeqCst);
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Watched { rig, motion, waker, body } = &mut *self;
        if rig.is_dead() {
            // Its actor may have been made after the others were killed: nobody else would drop it.
            *body = None;
            motion.bits.fetch_or(DROPPED, Ordering::SeqCst);
        }
        let Some(body) = body else { return Poll::Pending };
        if waker.as_ref().is_none_or(|(inner, _)| !inner.will_wake(cx.waker())) {
            let (rig, motion, inner) = (rig.clone(), motion.clone(), cx.waker().clone());
            let own = Waker::from(Arc::new(BodyWaker { rig, motion, inner }));
            *waker = Some((cx.waker().clone(), own));
        }
        motion.bits.store(POLLED, Ordering::SeqCst);
        rig.stir();
        let polled = match waker {
            Some((_, own)) => body.as_mut().poll(&mut Context::from_waker(own)),
            None => body.as_mut().poll(cx),
        };
        if polled.is_pending() {
            motion.bits.fetch_and(!POLLED, Ordering::SeqCst);
        }
        rig.stir();
        polled
    }
}

type BodyFuture<'a, T> = Pin<Box<dyn Future<Output = JobResult<T>> + Send + 'a>>;

/// A step's body, or what the test puts in its place.
pub(crate) fn staged<'a, T: DeserializeOwned + Send + 'a>(
    rig: Arc<Rig>,
    cx: StepCx,
    body: &mut (dyn FnMut(StepCx) -> BodyFuture<'a, T> + Send + 'a),
) -> BodyFuture<'a, T> {
    if rig.is_dead() {
        return Box::pin(std::future::pending());
    }
    let motion = cx.motion().clone();
    let call = cx.call();
    rig.step_begins(&call.job, &call.step);
    let Some(act) = rig.mocks.act(&call) else { return body(cx) };
    match act {
        Act::Give(given) => Box::pin(async move { given(&call).and_then(|value| typed(value, &call.step)) }),
        Act::Fail(error) => Box::pin(async move { Err(error) }),
        // As a panic would unwind, without the message that a panic hook prints.
        Act::Panic(message) => Box::pin(async move { std::panic::resume_unwind(Box::new(message)) }),
        Act::Delay(duration) => {
            let body = body(cx);
            Box::pin(async move {
                motion.delayed.fetch_add(1, Ordering::SeqCst);
                let delayed = Delayed(motion);
                rig.clock.sleep(duration).await;
                drop(delayed);
                body.await
            })
        }
        Act::Crash => {
            let body = body(cx);
            Box::pin(async move {
                let _done = body.await;
                rig.crash(None);
                std::future::pending().await
            })
        }
    }
}

struct Delayed(Arc<Motion>);

impl Drop for Delayed {
    fn drop(&mut self) {
        self.0.delayed.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A mocked value as the type that the step's code gives.
fn typed<T: DeserializeOwned>(value: Value, step: &str) -> JobResult<T> {
    schema::decode_value(&value).map_err(|error| {
        let message =
            format!("what the mock gives for step {step:?} does not fit: {} at {:?}", error.message, error.path);
        JobError::of_kind(ErrorKind::Mismatch, message)
    })
}
