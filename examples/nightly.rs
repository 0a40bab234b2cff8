//! Schedules: a report every night in three places, and a heartbeat every second, so that there is something to see.
//!
//! ```text
//! cargo run --example nightly
//! ```
//!
//! The schedules are stored: the program ends without a word while beats are due, starts again, and the beats that were missed
//! meanwhile fire as the schedule's policy says.

use std::time::Duration;

use durably::{Durably, EventKind, Job, JobHandle, Missed, Received, Step};

fn report() -> Job<String, String> {
    Job::new("report", |step: Step, place: String| async move {
        let sales = step.run("count", || async { Ok(place.len() * 100) }).await?;
        Ok(format!("{sales} sold in {place}"))
    })
}

fn heartbeat() -> Job<(), ()> {
    Job::new("heartbeat", |_: Step, (): ()| async move { Ok(()) })
}

/// As programs do at every start: what is registered already stays as it is.
async fn register(durably: &Durably) -> Result<(JobHandle<String, String>, JobHandle<(), ()>), durably::Error> {
    let (report, heartbeat) = durably.register((report(), heartbeat()))?;
    for (place, zone) in
        [("Berlin", "Europe/Berlin"), ("New York", "America/New_York"), ("Kathmandu", "Asia/Kathmandu")]
    {
        let name = format!("nightly/{}", place.to_lowercase().replace(' ', "-"));
        durably
            .schedule(name, "30 2 * * *")
            .time_zone(zone)
            .trigger(&report, place.to_owned())
            .label("place", place)
            .await?;
    }
    durably.schedule("heartbeat", "@every 1s").missed(Missed::All(10)).trigger(&heartbeat, ()).await?;
    Ok((report, heartbeat))
}

/// Shows beats as they are triggered.
async fn show_beats(durably: &Durably, count: usize) -> Result<(), durably::Error> {
    let mut events = durably.events();
    let mut left = count;
    while left > 0 {
        let Some(Received::Event(event)) = events.next().await else { continue };
        if !matches!(event.kind, EventKind::RunTriggered { .. }) {
            continue;
        }
        let run = durably.get_run(event.run_id).await?;
        if let Some(scheduled) = run.and_then(|run| run.schedule)
            && let Some(due) = scheduled.due
        {
            println!("  {} of {due}, triggered at {}", scheduled.name, event.timestamp);
            left -= 1;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("nightly.redb");

    let durably = Durably::open(&path).await?;
    register(&durably).await?;
    println!("due next (UTC):");
    for schedule in durably.schedules().await? {
        let Some(next) = schedule.next_due else { continue };
        println!("  {:20} {:12} {:17} {next}", schedule.name, schedule.expression, schedule.time_zone);
        for later in schedule.due_after(next, 2) {
            println!("  {:51} {later}", "");
        }
    }
    println!("two beats:");
    show_beats(&durably, 2).await?;

    println!("nobody is there for three seconds, then (up to ten that were missed, and one more):");
    drop(durably);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let durably = Durably::builder().paused(true).open(&path).await?;
    register(&durably).await?;
    let mut beats = durably.get_runs(durably::RunFilter::new().job("heartbeat")).await?;
    beats.reverse();
    for beat in beats {
        let due = beat.schedule.and_then(|scheduled| scheduled.due);
        println!("  {} of {}: {}", beat.job_name, due.map(|due| due.to_string()).unwrap_or_default(), beat.status);
    }
    durably.start().await?;
    show_beats(&durably, 1).await?;

    let run = durably.fire_schedule("nightly/berlin").await?;
    println!("the report of Berlin by hand: {}", run.output().await?);
    durably.remove_schedule("heartbeat").await?;
    durably.shutdown().await?;
    Ok(())
}
