//! Runs that the clock triggers: one a due time, over crashes and whatever the clock does.

use std::future::IntoFuture;
use std::time::Duration;

use durably::limits::SCHEDULES_MAX;
use durably::{
    Clock, Durably, Error, EventKind, JobHandle, Missed, OnConflict, Reply, Run, RunFilter, RunStatus, ScheduleRequest,
    Scheduled, SupervisorMsg, Timestamp, TriggerRequest,
};
use futures::future::try_join_all;
use ractor::rpc::CallResult;
use serde_json::json;

use crate::support::{
    Gate, ManualClock, TempFile, echo, ended, gated, memory, next_event, pair, run_of, within, within_minutes,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A clock at a whole hour.
fn clock() -> ManualClock {
    let clock = ManualClock::new();
    clock.advance(Duration::from_millis(3_600_000 - clock.now().as_millis() % 3_600_000));
    clock
}

async fn with(clock: &ManualClock) -> (Durably, JobHandle<u32, u32>) {
    let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
    let job = durably.register(echo("job")).unwrap();
    (durably, job)
}

/// The writer does what is due.
async fn poke(durably: &Durably) {
    durably.stats().await.unwrap();
}

async fn advance(durably: &Durably, clock: &ManualClock, by: Duration) {
    clock.advance(by);
    poke(durably).await;
}

/// The runs there are, oldest first.
async fn runs(durably: &Durably) -> Vec<Run> {
    let mut runs = durably.get_runs(RunFilter::new().limit(1_000)).await.unwrap();
    runs.reverse();
    runs
}

/// The due times that have fired, in the order of their runs.
async fn fired(durably: &Durably) -> Vec<Timestamp> {
    runs(durably).await.iter().filter_map(|run| run.schedule.as_ref()?.due).collect()
}

fn minutes_after(start: Timestamp, minutes: &[u64]) -> Vec<Timestamp> {
    minutes.iter().map(|minute| start.saturating_add(MINUTE * *minute as u32)).collect()
}

#[tokio::test]
async fn a_schedule_triggers_its_job_once_every_due_time_with_its_options() {
    within(async {
        let clock = clock();
        let (durably, job) = with(&clock).await;
        let start = clock.now();
        let schedule = durably
            .schedule("a/b", "* * * * *")
            .trigger(&job, 7)
            .label("tenant", "acme")
            .concurrency_keys(["k", "l"])
            .priority(3)
            .await
            .unwrap();
        assert_eq!((schedule.next_due, schedule.last_due), (Some(start.saturating_add(MINUTE)), None));
        poke(&durably).await;
        assert_eq!(fired(&durably).await, [], "what was due at its registration is not");
        advance(&durably, &clock, MINUTE - Duration::from_millis(1)).await;
        assert_eq!(fired(&durably).await, [], "a millisecond early");
        advance(&durably, &clock, Duration::from_millis(1)).await;
        poke(&durably).await;
        advance(&durably, &clock, MINUTE + SECOND * 3).await;
        assert_eq!(fired(&durably).await, minutes_after(start, &[1, 2]));
        let run = runs(&durably).await.remove(0);
        let due = start.saturating_add(MINUTE);
        let scheduled = run.schedule.clone().unwrap();
        assert_eq!((scheduled.name.as_str(), scheduled.due), ("a/b", Some(due)));
        assert_eq!(run.idempotency_key, Some(format!("durably.schedule/a/b/{due}")));
        assert_eq!((run.labels["tenant"].as_str(), run.priority), ("acme", 3));
        assert_eq!(run.concurrency_keys, ["k", "l"]);
        let run = ended(&durably, run.id).await;
        assert_eq!((run.status, run.output), (RunStatus::Completed, Some(7.into())));
        let known = durably.get_schedule("a/b").await.unwrap().unwrap();
        assert_eq!(
            (known.last_due, known.next_due),
            (Some(start.saturating_add(MINUTE * 2)), Some(start.saturating_add(MINUTE * 3)))
        );
        assert_eq!(known.last_run, Some(runs(&durably).await[1].id));
    })
    .await;
}

#[tokio::test]
async fn a_schedule_needs_no_poking_by_the_real_clock() {
    within(async {
        let durably = memory().await;
        let job = durably.register(echo("job")).unwrap();
        let mut events = durably.events();
        durably.schedule("often", "@every 1s").trigger(&job, 1).await.unwrap();
        for _ in 0..2 {
            let event = next_event(&mut events, |event| matches!(event.kind, EventKind::RunTriggered { .. })).await;
            let due = run_of(&durably, event.run_id).await.schedule.unwrap().due.unwrap();
            assert!(event.timestamp >= due && due.as_millis() % 1_000 == 0);
        }
    })
    .await;
}

#[tokio::test]
async fn a_schedule_survives_crashes_and_registering_it_again_keeps_its_due_time() {
    within(async {
        let (file, clock) = (TempFile::new(), clock());
        let start = clock.now();
        for life in 0..4u32 {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let job = durably.register(echo("job")).unwrap();
            durably.schedule("s", "*/10 * * * *").trigger(&job, life).await.unwrap();
            poke(&durably).await;
            for _ in 0..3 {
                advance(&durably, &clock, MINUTE * 5).await;
            }
            if life == 2 {
                durably.shutdown().await.unwrap();
            }
        }
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        assert_eq!(fired(&durably).await, minutes_after(start, &[10, 20, 30, 40, 50, 60]));
        let inputs: Vec<_> = runs(&durably).await.into_iter().map(|run| run.input.unwrap()).collect();
        assert_eq!(inputs, [0, 1, 1, 2, 3, 3], "each by the definition as it was then");
    })
    .await;
}

#[tokio::test]
async fn what_was_missed_while_nobody_was_there_fires_as_the_policy_says() {
    within(async {
        let expected: [(Missed, &[u64]); 4] = [
            (Missed::Skip, &[]),
            (Missed::Once, &[60]),
            (Missed::All(3), &[40, 50, 60]),
            (Missed::All(1_000), &[10, 20, 30, 40, 50, 60]),
        ];
        for (missed, minutes) in expected {
            let (file, clock) = (TempFile::new(), clock());
            let start = clock.now();
            {
                let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
                let job = durably.register(echo("job")).unwrap();
                durably.schedule("s", "*/10 * * * *").missed(missed).trigger(&job, 1).await.unwrap();
            }
            clock.advance(MINUTE * 65);
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            durably.register(echo("job")).unwrap();
            poke(&durably).await;
            assert_eq!(fired(&durably).await, minutes_after(start, minutes), "{missed:?}");
            advance(&durably, &clock, MINUTE * 5).await;
            assert_eq!(fired(&durably).await.last(), minutes_after(start, &[70]).last(), "{missed:?}");
            let known = durably.schedules().await.unwrap().remove(0);
            assert_eq!((known.missed, known.next_due), (missed, minutes_after(start, &[80]).pop()));
        }
    })
    .await;
}

#[tokio::test]
async fn p19_a_clock_that_jumps_by_ten_years_fires_no_due_time_twice_and_goes_on_where_it_is() {
    within(async {
        for (missed, there) in [(Missed::Once, 1), (Missed::All(3), 3), (Missed::Skip, 1)] {
            let (file, clock) = (TempFile::new(), clock());
            let start = clock.now();
            let open = || file.open_with(Durably::builder().clock(clock.clone()));
            let mut durably = open().await;
            let job = durably.register(echo("job")).unwrap();
            durably.schedule("s", "* * * * *").missed(missed).trigger(&job, 1).await.unwrap();
            advance(&durably, &clock, MINUTE).await;
            // Forward, and on from there.
            advance(&durably, &clock, YEAR * 10).await;
            let far = clock.now();
            advance(&durably, &clock, MINUTE).await;
            assert_eq!(fired(&durably).await.len(), 1 + there + 1, "{missed:?}");
            assert_eq!(fired(&durably).await.last(), Some(&far.saturating_add(MINUTE)));
            // Back to where it was.
            clock.set_back(YEAR * 10 + MINUTE);
            poke(&durably).await;
            advance(&durably, &clock, MINUTE).await;
            assert_eq!(fired(&durably).await.last(), minutes_after(start, &[2]).last(), "{missed:?}");
            // Behind its beginning, and over a restart.
            drop(durably);
            clock.set_back(YEAR * 10);
            durably = open().await;
            durably.register(echo("job")).unwrap();
            let before = clock.now();
            advance(&durably, &clock, MINUTE).await;
            assert_eq!(fired(&durably).await.last(), Some(&before.saturating_add(MINUTE)), "{missed:?}");
            // Home again: the minutes that have fired do not fire again, though their runs are gone.
            for run in runs(&durably).await {
                ended(&durably, run.id).await;
                durably.delete_run(run.id).await.unwrap();
            }
            clock.advance(YEAR * 10 - MINUTE);
            poke(&durably).await;
            assert_eq!(clock.now(), start.saturating_add(MINUTE * 2));
            assert_eq!(fired(&durably).await, [], "{missed:?}");
            advance(&durably, &clock, MINUTE).await;
            assert_eq!(fired(&durably).await, minutes_after(start, &[3]), "{missed:?}");
            clock.advance(YEAR * 10 - MINUTE * 3);
            assert_eq!(clock.now(), far.saturating_sub(MINUTE));
            clock.advance(MINUTE * 2);
            poke(&durably).await;
            assert_eq!(fired(&durably).await, minutes_after(start, &[3]), "{missed:?}: fired in the first visit");
            advance(&durably, &clock, MINUTE).await;
            assert_eq!(fired(&durably).await.last(), Some(&far.saturating_add(MINUTE * 2)), "{missed:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn named_hours_fire_once_a_day_in_the_zone_of_the_schedule() {
    within(async {
        // Noon before both changes of the clock in Berlin, in UTC; and what is due in that night: at 03:00 where 02:30 is left
        // out, at the first 02:30 where there are two.
        for (eve, due) in [(1_774_699_200_000, 1_774_746_000_000), (1_792_843_200_000, 1_792_888_200_000)] {
            let (clock, due) = (ManualClock::new(), Timestamp::from_millis(due));
            clock.advance(Timestamp::from_millis(eve).since(clock.now()));
            let (durably, job) = with(&clock).await;
            let call = durably.schedule("s", "30 2 * * *").time_zone("Europe/Berlin").trigger(&job, 1);
            assert_eq!(call.await.unwrap().next_due, Some(due));
            for _ in 0..24 {
                advance(&durably, &clock, HOUR).await;
            }
            assert_eq!(fired(&durably).await, [due]);
        }
    })
    .await;
}

#[tokio::test]
async fn registering_it_again_replaces_the_definition_in_place() {
    within(async {
        let clock = clock();
        let (durably, job) = with(&clock).await;
        let start = clock.now();
        let first = durably.schedule("s", "0 * * * *").trigger(&job, 1).await.unwrap();
        let commits = durably.stats().await.unwrap().commits;
        assert_eq!(durably.schedule("s", "0 * * * *").trigger(&job, 1).await.unwrap(), first);
        assert_eq!(durably.stats().await.unwrap().commits, commits, "the same again writes nothing");
        clock.advance(MINUTE * 30);
        let second = durably.schedule("s", "0 * * * *").trigger(&job, 2).label("n", "2").await.unwrap();
        assert_eq!((second.next_due, second.created_at), (first.next_due, first.created_at));
        assert_eq!((second.input, second.labels["n"].as_str()), (json!(2), "2"));
        let third = durably.schedule("s", "@every 10m").trigger(&job, 2).await.unwrap();
        assert_eq!(third.next_due, minutes_after(start, &[40]).pop(), "from now on");
        let fourth = durably.schedule("s", "0 * * * *").time_zone("Asia/Kathmandu").trigger(&job, 2).await.unwrap();
        assert_eq!(fourth.next_due, minutes_after(start, &[75]).pop(), "5:45 ahead");
        assert_eq!(durably.schedules().await.unwrap(), [fourth]);
    })
    .await;
}

#[tokio::test]
async fn a_paused_schedule_fires_nothing_and_its_resume_does_not_catch_up() {
    within(async {
        let (file, clock) = (TempFile::new(), clock());
        let start = clock.now();
        {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let job = durably.register(echo("job")).unwrap();
            durably.schedule("s", "*/10 * * * *").missed(Missed::All(9)).trigger(&job, 1).await.unwrap();
            durably.pause_schedule("s").await.unwrap();
            durably.pause_schedule("s").await.unwrap();
            let paused = durably.get_schedule("s").await.unwrap().unwrap();
            assert_eq!((paused.paused, paused.next_due), (true, None));
            assert_eq!(paused.due_after(start, 2), minutes_after(start, &[10, 20]));
        }
        clock.advance(MINUTE * 35);
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        let job = durably.register(echo("job")).unwrap();
        let again = durably.schedule("s", "*/10 * * * *").missed(Missed::All(9)).trigger(&job, 2).await.unwrap();
        assert!(again.paused, "a program that registers it again does not resume it");
        poke(&durably).await;
        assert_eq!(fired(&durably).await, []);
        durably.resume_schedule("s").await.unwrap();
        poke(&durably).await;
        assert_eq!(fired(&durably).await, []);
        advance(&durably, &clock, MINUTE * 5).await;
        assert_eq!(fired(&durably).await, minutes_after(start, &[40]));
    })
    .await;
}

#[tokio::test]
async fn a_schedule_is_fired_by_hand_beside_its_due_times_and_is_removed_without_its_runs() {
    within(async {
        let clock = clock();
        let (durably, job) = with(&clock).await;
        let schedule = durably.schedule("s", "0 * * * *").trigger(&job, 5).await.unwrap();
        durably.pause_schedule("s").await.unwrap();
        let run = durably.fire_schedule("s").await.unwrap();
        assert_eq!(run.output().await.unwrap(), json!(5));
        let record = run_of(&durably, run.id()).await;
        assert_eq!(record.schedule.map(|scheduled| (scheduled.name, scheduled.due)), Some(("s".into(), None)));
        assert_ne!(durably.fire_schedule("s").await.unwrap().id(), run.id());
        durably.resume_schedule("s").await.unwrap();
        assert_eq!(durably.get_schedule("s").await.unwrap().unwrap().next_due, schedule.next_due);
        durably.remove_schedule("s").await.unwrap();
        assert_eq!(durably.schedules().await.unwrap(), []);
        assert_eq!(durably.get_schedule("s").await.unwrap(), None);
        advance(&durably, &clock, HOUR * 2).await;
        assert_eq!(runs(&durably).await.len(), 2);
        for gone in [
            durably.remove_schedule("s").await,
            durably.pause_schedule("s").await,
            durably.resume_schedule("s").await,
            durably.fire_schedule("s").await.map(drop),
        ] {
            assert!(matches!(gone, Err(Error::ScheduleNotFound { ref name }) if name == "s"), "{gone:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn conflicts_delays_and_repeats_are_those_of_triggers() {
    within(async {
        let clock = clock();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let gate = Gate::new();
        let job = durably.register(gated("job", &gate)).unwrap();
        let every = |name: &str, policy| {
            let call = durably.schedule(name, "* * * * *").trigger(&job, 1);
            call.concurrency_key(name.to_owned()).on_conflict(policy)
        };
        every("skip", OnConflict::Skip).await.unwrap();
        every("reject", OnConflict::Reject).await.unwrap();
        every("replace", OnConflict::Replace).await.unwrap();
        durably.schedule("later", "0 * * * *").trigger(&job, 1).delay(MINUTE).await.unwrap();
        for _ in 0..4 {
            advance(&durably, &clock, MINUTE).await;
        }
        let of = |runs: &[Run], name: &str, status| {
            let ours = runs.iter().filter(|run| run.concurrency_key.as_deref() == Some(name));
            ours.filter(|run| run.status == status).count()
        };
        let all = runs(&durably).await;
        for (name, pending, cancelled) in [("skip", 1, 0), ("reject", 1, 0), ("replace", 1, 2)] {
            assert_eq!(of(&all, name, RunStatus::Leased), 1, "{name}");
            assert_eq!(of(&all, name, RunStatus::Pending), pending, "{name}");
            assert_eq!(of(&all, name, RunStatus::Cancelled), cancelled, "{name}");
        }
        let refused = durably.get_schedule("reject").await.unwrap().unwrap();
        assert_eq!((refused.last_due, refused.last_run), (Some(clock.now()), None));
        clock.advance(HOUR - MINUTE * 4);
        poke(&durably).await;
        let later: Vec<Run> = runs(&durably).await.into_iter().filter(|run| run.concurrency_key.is_none()).collect();
        assert_eq!((later.len(), later[0].not_before), (1, Some(clock.now().saturating_add(MINUTE))));
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn runs_of_a_job_that_is_not_registered_wait_and_so_do_those_of_a_paused_runtime() {
    within(async {
        let (file, clock) = (TempFile::new(), clock());
        {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let job = durably.register(echo("job")).unwrap();
            durably.schedule("s", "0 * * * *").trigger(&job, 1).await.unwrap();
            durably.shutdown().await.unwrap();
        }
        clock.advance(HOUR);
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        poke(&durably).await;
        let run = runs(&durably).await.remove(0);
        assert_eq!((run.status, run.job_name.as_str()), (RunStatus::Pending, "job"));
        assert_eq!(durably.get_schedule("s").await.unwrap().unwrap().job_name, "job");
        durably.register(echo("job")).unwrap();
        ended(&durably, run.id).await;
        durably.stop().await.unwrap();
        advance(&durably, &clock, HOUR).await;
        let run = runs(&durably).await.remove(1);
        assert_eq!(run.status, RunStatus::Pending);
        durably.start().await.unwrap();
        ended(&durably, run.id).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_a_schedule_is_said_and_nothing_is_stored() {
    within(async {
        let durably = memory().await;
        let (job, pair) = durably.register((echo("job"), pair())).unwrap();
        let invalid = |what: &'static str, error: Option<Error>| match error {
            Some(Error::InvalidSchedule { what: named, .. }) => assert_eq!(named, what),
            other => panic!("{other:?}"),
        };
        invalid("expression", durably.schedule("s", "0 3 * *").trigger(&job, 1).await.err());
        invalid("expression", durably.schedule("s", "0 25 * * *").trigger(&job, 1).await.err());
        invalid("expression", durably.schedule("s", "0 0 30 2 *").trigger(&job, 1).await.err());
        invalid("time zone", durably.schedule("s", "@daily").time_zone("Mars/Olympus").trigger(&job, 1).await.err());
        let error = durably.schedule("s", "@daily").trigger_json("pair", json!({"left": 1})).await.unwrap_err();
        assert!(matches!(error, Error::InvalidInput { .. }), "{error}");
        let error = durably.schedule("s", "@daily").trigger_json("other", json!(1)).await.unwrap_err();
        assert!(matches!(error, Error::JobNotFound { .. }), "{error}");
        let refused = |option: &'static str, error: Option<Error>| match error {
            Some(Error::InvalidOption { option: named, .. }) => assert_eq!(named, option),
            other => panic!("{other:?}"),
        };
        let daily = |name: &str| durably.schedule(name, "@daily").trigger(&job, 1);
        refused("schedule name", daily("").await.err());
        refused("schedule name", daily("a b").await.err());
        refused("idempotency_key", daily("s").idempotency_key("i").await.err());
        refused("idempotency_ttl", daily("s").idempotency_ttl(HOUR).await.err());
        refused("at", daily("s").at(Timestamp::from_millis(1)).await.err());
        refused("on_conflict", daily("s").on_conflict(OnConflict::Skip).await.err());
        refused("missed", durably.schedule("s", "@daily").missed(Missed::All(0)).trigger(&job, 1).await.err());
        refused("missed", durably.schedule("s", "@daily").missed(Missed::All(1_001)).trigger(&job, 1).await.err());
        assert!(matches!(daily(&"x".repeat(129)).await, Err(Error::TooLarge { what: "schedule name", .. })));
        assert_eq!(durably.schedules().await.unwrap(), []);
        drop(pair);
    })
    .await;
}

#[tokio::test]
async fn a_file_with_schedules_is_sound_and_so_is_its_copy() {
    within(async {
        let (file, clock) = (TempFile::new(), clock());
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        let job = durably.register(echo("job")).unwrap();
        durably.schedule("one", "* * * * *").trigger(&job, 1).await.unwrap();
        durably.schedule("two", "* * * * *").trigger(&job, 1).await.unwrap();
        durably.pause_schedule("two").await.unwrap();
        advance(&durably, &clock, MINUTE).await;
        let copy = durably.backup(file.beside("copy.redb")).await.unwrap();
        assert!(copy.is_sound(), "{:?}", copy.problems);
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.problems);
    })
    .await;
}

async fn ask<T: std::fmt::Debug + Send + 'static>(
    durably: &Durably,
    message: impl FnOnce(Reply<T>) -> SupervisorMsg,
) -> Result<T, Error> {
    match durably.actor_ref().expect("it runs").call(message, None).await.expect("is there") {
        CallResult::Success(answer) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

#[tokio::test]
async fn schedules_are_driven_by_message() {
    within(async {
        let clock = clock();
        let (durably, _job) = with(&clock).await;
        let trigger = TriggerRequest::new("job", json!(3)).label("n", "3");
        let request =
            ScheduleRequest::new("s", "0 9 * * *", trigger).time_zone("America/New_York").missed(Missed::Skip);
        let schedule = ask(&durably, |reply| SupervisorMsg::Schedule(request, reply)).await.unwrap();
        assert_eq!((schedule.time_zone.as_str(), schedule.missed), ("America/New_York", Missed::Skip));
        assert_eq!(ask(&durably, SupervisorMsg::Schedules).await.unwrap(), [schedule]);
        ask(&durably, |reply| SupervisorMsg::PauseSchedule("s".into(), reply)).await.unwrap();
        let known = ask(&durably, |reply| SupervisorMsg::GetSchedule("s".into(), reply)).await.unwrap();
        assert!(known.unwrap().paused);
        ask(&durably, |reply| SupervisorMsg::ResumeSchedule("s".into(), reply)).await.unwrap();
        let fired = ask(&durably, |reply| SupervisorMsg::FireSchedule("s".into(), reply)).await.unwrap();
        assert_eq!(ended(&durably, fired.run).await.output, Some(json!(3)));
        ask(&durably, |reply| SupervisorMsg::RemoveSchedule("s".into(), reply)).await.unwrap();
        let gone = ask(&durably, |reply| SupervisorMsg::RemoveSchedule("s".into(), reply)).await;
        assert!(matches!(gone, Err(Error::ScheduleNotFound { .. })), "{gone:?}");
    })
    .await;
}

#[tokio::test]
async fn a_firing_is_told_as_any_trigger_and_stored_as_json() {
    within(async {
        let clock = clock();
        let (durably, job) = with(&clock).await;
        durably.schedule("s", "* * * * *").trigger(&job, 1).await.unwrap();
        let mut events = durably.events();
        advance(&durably, &clock, MINUTE).await;
        let event = next_event(&mut events, |event| matches!(event.kind, EventKind::RunTriggered { .. })).await;
        let run = run_of(&durably, event.run_id).await;
        let shown = serde_json::to_value(&run).unwrap();
        assert_eq!(shown["schedule"]["name"], "s");
        let read: Scheduled = serde_json::from_value(shown["schedule"].clone()).unwrap();
        assert_eq!(Some(read), run.schedule);
    })
    .await;
}

#[tokio::test]
async fn a_file_holds_10_000_schedules() {
    within_minutes(async {
        let durably = memory().await;
        let job = durably.register(echo("job")).unwrap();
        let register = |n: usize| durably.schedule(format!("s/{n}"), "@every 366d").trigger(&job, 1).into_future();
        try_join_all((0..SCHEDULES_MAX).map(register)).await.unwrap();
        let refused = register(SCHEDULES_MAX).await;
        assert!(matches!(refused, Err(Error::TooMany { what: "schedules", count: 10_001, .. })), "{refused:?}");
        register(0).await.unwrap();
        assert_eq!(durably.schedules().await.unwrap().len(), SCHEDULES_MAX);
        durably.remove_schedule("s/7").await.unwrap();
        register(SCHEDULES_MAX).await.unwrap();
    })
    .await;
}
