//! A CSV file imported as typed rows, one step per chunk, with progress and log lines as they happen.
//!
//! ```text
//! cargo run --example import_csv                  # makes a file, crashes half-way, and goes on
//! cargo run --example import_csv -- people.csv    # imports that file; stop it with ctrl-c and start it again
//! ```
//!
//! Columns are `name`, `email` and `age`. Rows go to `people.csv.imported/`, a file per chunk; the run's database is
//! `people.csv.redb`. A step that a crash cuts off runs again, so it is written to do no harm twice: it replaces its own file.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use durably::{Durably, Job, JobHandle, JobResult, LogLine, Progress, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

const ROWS_PER_CHUNK: usize = 100;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Import {
    file: PathBuf,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
struct Imported {
    rows: usize,
    refused: usize,
}

/// A row of the file, as the code wants it.
#[derive(Serialize, Deserialize)]
struct Person {
    name: String,
    email: String,
    age: u8,
}

/// Where a chunk begins.
#[derive(Serialize, Deserialize, Clone, Copy, Default)]
struct Place {
    byte: u64,
    line: u64,
}

/// What the step of a chunk leaves behind: few bytes, as the rows themselves are where they belong.
#[derive(Serialize, Deserialize)]
struct Chunk {
    rows: usize,
    refused: usize,
    next: Place,
}

fn import_csv() -> Job<Import, Imported> {
    Job::new("import-csv", |step: Step, import: Import| async move {
        let bytes = step.run("measure", || async { Ok(fs::metadata(&import.file)?.len()) }).await?;
        let (mut place, mut sum) = (Place::default(), Imported { rows: 0, refused: 0 });
        for number in 0.. {
            let (file, log) = (import.file.clone(), step.clone());
            let chunk = step.run_blocking(("chunk", number), move || import_chunk(&log, &file, number, place)).await?;
            if chunk.rows + chunk.refused == 0 {
                break;
            }
            place = chunk.next;
            sum.rows += chunk.rows;
            sum.refused += chunk.refused;
            let message = format!("{} rows imported", sum.rows);
            step.progress(place.byte as usize, bytes as usize).message(message);
        }
        step.log().info("import finished", &sum);
        Ok(sum)
    })
}

fn import_chunk(step: &Step, file: &Path, number: usize, from: Place) -> JobResult<Chunk> {
    let mut reader = csv::Reader::from_path(file)?;
    let headers = reader.headers()?.clone();
    if from.byte > 0 {
        let mut position = csv::Position::new();
        position.set_byte(from.byte).set_line(from.line);
        reader.seek(position)?;
    }
    let (mut people, mut refused) = (Vec::<Person>::new(), 0);
    let mut record = csv::StringRecord::new();
    while people.len() + refused < ROWS_PER_CHUNK && reader.read_record(&mut record)? {
        match record.deserialize(Some(&headers)) {
            Ok(person) => people.push(person),
            Err(error) => {
                refused += 1;
                let line = record.position().map(csv::Position::line);
                step.log().warn("row refused", json!({ "line": line, "why": error.to_string() }));
            }
        }
    }
    if !people.is_empty() {
        let directory = beside(file, "imported");
        fs::create_dir_all(&directory)?;
        let mut rows = File::create(directory.join(format!("{number:06}.jsonl")))?;
        for person in &people {
            writeln!(rows, "{}", serde_json::to_string(person)?)?;
        }
        // The checkpoint says that the rows are there, so they must be, also after a loss of power.
        rows.sync_all()?;
        step.log().info("written", json!({ "rows": people.len(), "from line": from.line.max(2) }));
    }
    let next = Place { byte: reader.position().byte(), line: reader.position().line() };
    Ok(Chunk { rows: people.len(), refused, next })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match std::env::args_os().nth(1) {
        Some(file) => {
            let file = PathBuf::from(file);
            let file = file.canonicalize().with_context(|| format!("cannot import {}", file.display()))?;
            import(&file).await
        }
        None => {
            let directory = tempfile::tempdir()?;
            let file = directory.path().join("people.csv");
            generate(&file, 2_000)?;
            crash_half_way(&file).await?;
            println!("-- crashed; again, where chunks that are done come back and write nothing --");
            import(&file).await
        }
    }
}

/// The same for the same state of a file: one that was changed is another import.
fn import_key(file: &Path) -> anyhow::Result<String> {
    let changed = fs::metadata(file)?.modified()?.duration_since(std::time::UNIX_EPOCH)?;
    Ok(format!("import at {}", changed.as_millis()))
}

/// Opens the file's database and imports, or goes on with what an earlier process has begun.
async fn import(file: &Path) -> anyhow::Result<()> {
    let (durably, imports) = open(file).await?;
    let finished = imports
        .trigger_and_wait(Import { file: file.to_owned() })
        .idempotency_key(import_key(file)?)
        .on_progress(tell_progress)
        .on_log(tell_line)
        .await?;
    println!("{:?}, {:?}; rows are in {}", finished.disposition, finished.output, beside(file, "imported").display());
    durably.shutdown().await?;
    Ok(())
}

/// Does as `import`, and drops the runtime in the middle of it, which ends it like a crash.
async fn crash_half_way(file: &Path) -> anyhow::Result<()> {
    let (durably, imports) = open(file).await?;
    let run = imports.trigger(Import { file: file.to_owned() }).idempotency_key(import_key(file)?).await?;
    let (told, mut progress) = mpsc::unbounded_channel();
    let wait = run.wait().on_log(tell_line).on_progress(move |now| {
        tell_progress(now);
        let _ = told.send(now.current);
    });
    tokio::select! {
        ended = wait => println!("it was faster than the crash: {}", ended?.status),
        () = async { for _ in 0..5 { progress.recv().await; } } => {}
    }
    drop(durably);
    Ok(())
}

async fn open(file: &Path) -> anyhow::Result<(Durably, JobHandle<Import, Imported>)> {
    let durably = Durably::open(beside(file, "redb")).await?;
    let imports = durably.register(import_csv())?;
    Ok((durably, imports))
}

fn tell_progress(progress: &Progress) {
    let percent = progress.current * 100 / progress.total.unwrap_or(1).max(1);
    println!("{percent:>3} %  {}", progress.message.as_deref().unwrap_or(""));
}

fn tell_line(line: &LogLine) {
    println!("       {:?} {}: {} {}", line.level, line.step_name.as_deref().unwrap_or("-"), line.message, line.data);
}

/// `people.csv` and `redb` are `people.csv.redb`.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// A file of so many people, of whom some have an age that is none.
fn generate(file: &Path, rows: usize) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_path(file)?;
    writer.write_record(["name", "email", "age"])?;
    for row in 0..rows {
        let age = if row % 450 == 449 { "unknown".to_owned() } else { (18 + row % 70).to_string() };
        writer.write_record([format!("Person, {row}"), format!("p{row}@example.org"), age])?;
    }
    Ok(writer.flush()?)
}
