//! Bodies that do what they are told, one command at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use durably::{JobError, JobResult, RunId, Step};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[derive(Debug)]
pub enum Command {
    Step(String, Result<u64, String>),
    /// A step that returns at the next command, which is `Settle`.
    Begin(String),
    Settle(Result<u64, String>),
    Log(String),
    Return(u64),
    Fail(String),
    /// End with the error that the last step gave.
    Propagate,
    Panic,
}

#[derive(Debug, Default)]
struct State {
    senders: BTreeMap<RunId, UnboundedSender<Command>>,
    alive: BTreeSet<RunId>,
    /// Steps whose bodies ran, and what steps gave, since this was last asked.
    ran: Vec<(RunId, String)>,
    given: Vec<(RunId, String, Result<u64, String>)>,
    /// Bodies complete at once.
    auto: bool,
    doubled: Option<RunId>,
}

#[derive(Debug, Clone, Default)]
pub struct Bodies(Arc<Mutex<State>>);

type Commands = Arc<tokio::sync::Mutex<UnboundedReceiver<Command>>>;

struct Alive(Bodies, RunId);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.state().alive.remove(&self.1);
    }
}

impl Bodies {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics here")
    }

    pub fn tell(&self, run: RunId, command: Command) {
        if let Some(sender) = self.state().senders.get(&run) {
            let _ = sender.send(command);
        }
    }

    pub fn set_auto(&self, auto: bool) {
        self.state().auto = auto;
    }

    pub fn alive(&self) -> BTreeSet<RunId> {
        self.state().alive.clone()
    }

    pub fn doubled(&self) -> Option<RunId> {
        self.state().doubled
    }

    pub fn take_ran(&self) -> Vec<(RunId, String)> {
        std::mem::take(&mut self.state().ran)
    }

    pub fn take_given(&self) -> Vec<(RunId, String, Result<u64, String>)> {
        std::mem::take(&mut self.state().given)
    }

    fn enter(&self, run: RunId) -> (Alive, Commands, bool) {
        let (sender, receiver) = unbounded_channel();
        let mut state = self.state();
        state.senders.insert(run, sender);
        if !state.alive.insert(run) {
            state.doubled = Some(run);
        }
        (Alive(self.clone(), run), Arc::new(tokio::sync::Mutex::new(receiver)), state.auto)
    }

    pub async fn body(self, step: Step, input: u64) -> JobResult<u64> {
        let run = step.run_id();
        let (_alive, commands, auto) = self.enter(run);
        if auto {
            return Ok(input);
        }
        let mut error = JobError::msg("no step has failed");
        loop {
            let command = commands.lock().await.recv().await;
            let (key, result) = match command {
                None | Some(Command::Settle(_)) => std::future::pending().await,
                Some(Command::Step(key, outcome)) => {
                    let result = self.step(&step, &key, None, outcome).await;
                    (key, result)
                }
                Some(Command::Begin(key)) => {
                    let result = self.step(&step, &key, Some(commands.clone()), Ok(0)).await;
                    (key, result)
                }
                Some(Command::Log(line)) => {
                    step.log().info(line, ());
                    continue;
                }
                Some(Command::Return(output)) => return Ok(output),
                Some(Command::Fail(message)) => return Err(JobError::msg(message)),
                Some(Command::Propagate) => return Err(error),
                Some(Command::Panic) => std::panic::panic_any("a body panics".to_owned()),
            };
            let told = result.as_ref().map_err(|error| error.message().to_owned()).copied();
            self.state().given.push((run, key, told));
            if let Err(failed) = result {
                error = failed;
            }
        }
    }

    async fn step(
        &self,
        step: &Step,
        key: &str,
        commands: Option<Commands>,
        outcome: Result<u64, String>,
    ) -> JobResult<u64> {
        let run = step.run_id();
        step.run(key, move || {
            self.state().ran.push((run, key.to_owned()));
            let (commands, mut outcome) = (commands.clone(), outcome.clone());
            async move {
                if let Some(commands) = commands {
                    outcome = match commands.lock().await.recv().await {
                        Some(Command::Settle(outcome)) => outcome,
                        _ => std::future::pending().await,
                    };
                }
                outcome.map_err(JobError::msg)
            }
        })
        .await
    }
}
