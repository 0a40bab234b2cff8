//! Schedules, as they are asked for.

use std::sync::Arc;

use serde_json::Value;

use super::{Core, Durably};
use crate::actor::message::{ScheduleRequest, TriggerRequest};
use crate::error::Error;
use crate::run::RunHandle;
use crate::schedule::{ScheduleBuilder, ScheduleInfo, Timetable};
use crate::store::op::{Change, NewSchedule, NotBefore, Op, Triggered};
use crate::trigger::labels::check_schedule_name;

impl Durably {
    /// Registers a schedule: a trigger that the clock sends. It is stored, fires whenever it is due, and is caught up with
    /// after a restart as its [`Missed`](crate::Missed) policy says.
    ///
    /// Registering it again under its name (1 to 128 bytes of `[A-Za-z0-9._/-]`) replaces its definition in place, as
    /// programs do that register their schedules at every start: it stays paused if it was, and keeps its next due time
    /// unless expression or zone are others. A file holds up to 10,000.
    ///
    /// An expression has five fields: minute, hour, day of month, month, day of week, each `*`, a number, a name (`MON`,
    /// `JAN`), a range `1-5`, a step `*/15` or a list of such; a day of month may be `L` (the last) or `15W` (the nearest
    /// workday), one of the week `FRI#2` or `FRIL`. Where both days are given, either will do. `@hourly`, `@daily`, `@weekly`,
    /// `@monthly` and `@yearly` stand for such, and `@every 90s` (`s`, `m`, `h`, `d`, up to 366 days) for an interval counted
    /// from 1970-01-01T00:00:00 UTC.
    ///
    /// **When clocks are set.** An expression whose hour begins with `*` is due whenever the wall clock shows such a time:
    /// twice in an hour that comes twice, never in one that is left out. One whose hours are named is due once a day for each
    /// of its times: the first time if that comes twice, and as soon as the clock has been set if it is left out.
    ///
    /// **One firing a due time.** A run is created by the commit that moves the schedule to its next due time, so a crash
    /// neither loses nor repeats one, and neither does a clock that jumps. Its [`Run::schedule`](crate::Run::schedule) names
    /// schedule and due time; its idempotency key is `durably.schedule/<name>/<due time>`. Where
    /// [`OnConflict::Reject`](crate::OnConflict::Reject) refuses a firing, that due time is over. Runs of a job that is not
    /// registered wait, as always; a runtime that is paused creates the runs of what is due and starts them later.
    ///
    /// ```
    /// use durably::{Durably, Job, Missed, Step};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let durably = Durably::in_memory().await?;
    /// let report = Job::new("report", |_: Step, region: String| async move { Ok(format!("report for {region}")) });
    /// let report = durably.register(report)?;
    /// let nightly = durably
    ///     .schedule("nightly/eu", "0 3 * * *")
    ///     .time_zone("Europe/Berlin")
    ///     .missed(Missed::Once)
    ///     .trigger(&report, "eu".to_owned())
    ///     .concurrency_key("report/eu")
    ///     .label("region", "eu")
    ///     .await?;
    /// println!("due at {}, then at {:?}", nightly.next_due.unwrap(), nightly.due_after(nightly.next_due.unwrap(), 3));
    /// let now = durably.fire_schedule("nightly/eu").await?;
    /// assert_eq!(now.output().await?, "report for eu");
    /// durably.remove_schedule("nightly/eu").await?;
    /// # durably.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Once it is awaited: [`Error::InvalidSchedule`] for expression and zone, [`Error::InvalidInput`],
    /// [`Error::JobNotFound`], [`Error::InvalidOption`], [`Error::TooMany`], [`Error::TooLarge`], [`Error::Overloaded`],
    /// [`Error::Indeterminate`], [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropped while it is awaited, it may or may not be registered; registering it again is safe.
    pub fn schedule(&self, name: impl Into<String>, expression: impl Into<String>) -> ScheduleBuilder {
        ScheduleBuilder::new(self.core.clone(), name.into(), expression.into())
    }

    /// Every schedule, by name.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Corrupted`].
    pub async fn schedules(&self) -> Result<Vec<ScheduleInfo>, Error> {
        self.core.store.schedules().await
    }

    /// A schedule, if there is one of this name.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_schedule(&self, name: &str) -> Result<Option<ScheduleInfo>, Error> {
        self.core.store.get_schedule(name).await
    }

    /// Lets a schedule fire nothing until it is resumed, over restarts too. Its runs go on.
    ///
    /// # Errors
    /// [`Error::ScheduleNotFound`], [`Error::Overloaded`], [`Error::Indeterminate`], [`Error::ShutDown`].
    pub async fn pause_schedule(&self, name: &str) -> Result<(), Error> {
        self.core.change_schedule(name, Change::Pause).await
    }

    /// Lets a paused schedule fire again, from its next due time on: what came due while it was paused was not missed and does
    /// not fire, whatever its policy.
    ///
    /// # Errors
    /// As of [`Durably::pause_schedule`].
    pub async fn resume_schedule(&self, name: &str) -> Result<(), Error> {
        self.core.change_schedule(name, Change::Resume).await
    }

    /// Triggers what a schedule triggers, now, beside its due times; also while it is paused.
    ///
    /// # Errors
    /// [`Error::ScheduleNotFound`], [`Error::KeyConflict`], [`Error::QueueFull`], [`Error::Overloaded`], [`Error::Indeterminate`],
    /// [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropped while it is awaited, the run may or may not be created.
    pub async fn fire_schedule(&self, name: &str) -> Result<RunHandle<Value>, Error> {
        let triggered = self.core.fire_schedule(name).await?;
        Ok(RunHandle::new(self.core.clone(), triggered))
    }

    /// Removes a schedule. Runs that it has triggered stay, those that wait too.
    ///
    /// # Errors
    /// As of [`Durably::pause_schedule`].
    pub async fn remove_schedule(&self, name: &str) -> Result<(), Error> {
        self.core.change_schedule(name, Change::Remove).await
    }
}

impl Core {
    /// Checks a schedule whole and stores it.
    pub(crate) async fn schedule(&self, request: ScheduleRequest) -> Result<ScheduleInfo, Error> {
        let ScheduleRequest { name, expression, time_zone, missed, trigger } = request;
        check_schedule_name(&name)?;
        missed.check()?;
        let timetable = Timetable::parse(&expression, &time_zone)?;
        let TriggerRequest { job, input, options } = trigger;
        let refuse = |option, rule| Err(Error::InvalidOption { option, value: String::new(), rule });
        if options.idempotency_key.is_some() {
            return refuse("idempotency_key", "left to the schedule, each firing of which has its own");
        }
        if let Some(NotBefore::At(_)) = options.not_before {
            return refuse("at", "left to the schedule, which has times of its own; a delay is allowed");
        }
        let run = self.build_json(&job, &input, options, None)?;
        let admitted = self.store.admit(run.bytes(), true).await?;
        let new = NewSchedule { name: name.as_str().into(), timetable, expression, time_zone, missed, run };
        self.store.submit(Op::Schedule, Box::new(new), admitted).answer().await?;
        self.store.get_schedule(&name).await?.ok_or(Error::ScheduleNotFound { name })
    }

    pub(crate) async fn change_schedule(&self, name: &str, change: Change) -> Result<(), Error> {
        let admitted = self.store.admit(0, true).await?;
        let name: Arc<str> = name.into();
        self.store.submit(Op::ChangeSchedule, (name, change), admitted).answer().await
    }

    pub(crate) async fn fire_schedule(&self, name: &str) -> Result<Triggered, Error> {
        let admitted = self.store.admit(0, true).await?;
        self.store.submit(Op::Fire, name.into(), admitted).answer().await
    }
}
