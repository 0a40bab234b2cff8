//! What the tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use durably::testing::TestRuntime;
use durably::{Job, JobResult, Run, RunId, Step};

pub const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Fails a test that hangs.
pub async fn within<F: IntoFuture>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs")
}

/// Counts calls. Clones are the same count.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    pub fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// The run, which must be there.
pub async fn run_of(runtime: &TestRuntime, run: RunId) -> Run {
    runtime.get_run(run).await.expect("is read").expect("is there")
}

/// A job whose body gets its own clone of what it shares with the test.
pub fn job_with<S, F, Fut>(name: &str, shared: S, body: F) -> Job<u32, u32>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(Step, u32, S) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = JobResult<u32>> + Send + 'static,
{
    Job::new(name, move |step: Step, input: u32| body(step, input, shared.clone()))
}
