//! A durable run that is killed again and again, and never does finished work twice.
//!
//! ```text
//! cargo run --release --example crash_resume -- [DIR] [--kills N] [--out DIR]
//! ```
//!
//! Hashes every file under DIR as one run with one step per file. The run lives in a child process, this executable started
//! again, which the parent kills with SIGKILL at N random moments (default 3) and starts anew. The run goes on after its last
//! checkpoint each time, and its last step writes a manifest for `sha256sum -c`.
//!
//! The parent is the witness. The child reports `BEGIN` before a step's body and `CKPT` after the step has resolved, and the
//! parent, which no kill touches, looks for a `BEGIN` that comes after its `CKPT`.
//!
//! Without DIR it takes this repository, without `target` and `.git`. Symbolic links and special files are passed over; what
//! can't be read, or changes or vanishes meanwhile, is reported and in no line of the manifest. Database and manifest go to a
//! fresh directory inside `--out`, by default inside the system's directory for temporary files.
//!
//! Exit codes: 0 the manifest is written, also where files were left out of it; 1 the run failed, or a finished step ran
//! twice; 2 the arguments are wrong.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use durably::limits::STEPS_MAX;
use durably::{Clock, Durably, Job, JobError, JobResult, Step, StepKey, SystemClock};
use futures::StreamExt;
use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const USAGE: &str = "usage: crash_resume [DIR] [--kills N] [--out DIR]
  DIR        the tree to hash (default: this repository, without target and .git)
  --kills N  how often to kill the process that hashes, 0 to 10000 (default 3)
  --out DIR  where to make a fresh directory for database and manifest (default: the system's for temporary files)";

/// Hidden first argument of the process that hashes; tree, output directory and kills follow.
const CHILD: &str = "--child-of-crash-resume";
/// Steps under way at a time. What is finished together is committed together, so more of them are cheaper per file; a kill
/// cuts off what is under way.
const UNDER_WAY_MAX: usize = 256;
/// JSON of one chunk of the list of files, about; half of what a checkpoint may have by default.
const CHUNK_BYTES: usize = 512 << 10;
/// Longest name in the key of a file's step, bytes, so that the whole key stays within 1,024.
const NAME_BYTES_MAX: usize = 1_000;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == CHILD) {
        return finish(child(&args[1..]).map(|()| true));
    }
    match Options::parse(args) {
        Ok(Some(options)) => finish(parent(&options)),
        Ok(None) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("crash_resume: {error:#}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn finish(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crash_resume: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    tree: PathBuf,
    out: PathBuf,
    kills: u32,
}

impl Options {
    /// `None`: help was asked for.
    fn parse(args: Vec<OsString>) -> anyhow::Result<Option<Options>> {
        let (mut tree, mut out, mut kills, mut only_names) = (None, std::env::temp_dir(), 3, false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let text = arg.to_str().filter(|_| !only_names).unwrap_or("");
            let (name, inline) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.into())));
            let mut value = || inline.clone().or_else(|| args.next()).with_context(|| format!("{name} needs a value"));
            match name {
                "-h" | "--help" => return Ok(None),
                "--" => only_names = true,
                "--out" => out = PathBuf::from(value()?),
                "--kills" => {
                    let given = value()?;
                    let number = given.to_str().and_then(|text| text.parse().ok()).filter(|kills| *kills <= 10_000);
                    kills = number.with_context(|| format!("--kills {given:?} is no number from 0 to 10000"))?;
                }
                name if name.starts_with('-') => bail!("unknown option {text:?}"),
                _ if tree.is_some() => bail!("more than one directory: {arg:?}"),
                _ => tree = Some(PathBuf::from(arg)),
            }
        }
        let tree = tree.unwrap_or_else(repository);
        let tree = tree.canonicalize().with_context(|| format!("cannot hash {tree:?}"))?;
        fs::read_dir(&tree).with_context(|| format!("cannot hash {tree:?}"))?;
        fs::create_dir_all(&out).with_context(|| format!("cannot write to {out:?}"))?;
        let out = fresh_directory(&out.canonicalize()?).with_context(|| format!("cannot write to {out:?}"))?;
        Ok(Some(Options { tree, out, kills }))
    }
}

/// This repository: where cargo runs it, or else where it was built.
fn repository() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

fn fresh_directory(inside: &Path) -> io::Result<PathBuf> {
    loop {
        let path = inside.join(format!("crash_resume-{:08x}", fastrand::u32(..)));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
}

// ---- The child: the durable run.

#[derive(Serialize, Deserialize, JsonSchema)]
struct Tree {
    /// Absolute, as [`text_of`] writes it.
    root: String,
    out: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Summary {
    files: usize,
    bytes: u64,
    left_out: usize,
}

fn child(args: &[OsString]) -> anyhow::Result<()> {
    let [tree, out, kills] = args else { bail!("{CHILD} is not for people") };
    let kills: u32 = kills.to_str().and_then(|text| text.parse().ok()).context("kills")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let clock = SystemClock::default();
        let durably = Durably::builder()
            // A run that ends its process again and again without a checkpoint in between is failed as poisoned, by default
            // after three times. Here it is innocent: many kills in a row can hit before the first new checkpoint.
            .max_recoveries(kills)
            .open(Path::new(out).join("jobs.redb"))
            .await?;
        let report = Report::default();
        report.say(format_args!("OPEN {}", clock.monotonic().as_micros()));
        let hash_tree = durably.register(hash_tree(report.clone(), kills))?;
        let input = Tree { root: text_of(tree.as_bytes()), out: text_of(out.as_bytes()) };
        // Every life asks; the key makes all of them mean the same run.
        let run = hash_tree.trigger(input).idempotency_key("the tree").await?;
        let summary = run.output().await?;
        report.say(format_args!("DONE {}", serde_json::to_string(&summary)?));
        durably.shutdown().await?;
        Ok(())
    })
}

fn hash_tree(report: Report, kills: u32) -> Job<Tree, Summary> {
    Job::new("hash-tree", move |step: Step, tree: Tree| {
        let report = report.clone();
        async move {
            let reported = Reported { step, report: report.clone() };
            let (root, out) = (path_of(&tree.root)?, path_of(&tree.out)?);
            let listed = list(&reported, &root, &out).await?;
            let files = listed.iter().filter(|(_, problem)| problem.is_none()).count();
            report.say(format_args!("FILES {files}"));
            // A small tree would be done before it could be killed often, were all of it under way at once.
            let under_way = (files / (2 * (kills as usize + 1))).clamp(1, UNDER_WAY_MAX);
            let hashing = listed.into_iter().enumerate().map(|(at, (name, problem))| {
                let (reported, path) = (&reported, root.join(&name));
                async move {
                    let outcome = match problem {
                        Some(problem) => Err(JobError::msg(problem)),
                        None => reported.step(file_key(at, &name), move || hash_file(&path)).await,
                    };
                    (name, outcome.map_err(|error| error.to_string()))
                }
            });
            let mut hashed: Vec<_> = futures::stream::iter(hashing).buffer_unordered(under_way).collect().await;
            hashed.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            let hashed = Arc::new(hashed);
            reported.step("manifest".into(), move || Ok(write_manifest(&root, &out, &hashed)?)).await
        }
    })
}

/// `sha256[path]`, where the path can be told from its text again. One too long for a key is named by its place in the list,
/// which checkpoints hold fast; as a relative path never begins with `/`, the two are never the same.
fn file_key(at: usize, name: &OsStr) -> StepKey {
    match text_of(name.as_bytes()) {
        name if name.len() <= NAME_BYTES_MAX => ("sha256", name).into(),
        _ => ("sha256", format!("/{at}")).into(),
    }
}

/// Steps whose bodies block, reported to the parent.
struct Reported {
    step: Step,
    report: Report,
}

impl Reported {
    async fn step<T, F>(&self, key: StepKey, mut body: F) -> JobResult<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: FnMut() -> JobResult<T> + Send + 'static,
    {
        let ran = Arc::new(AtomicBool::new(false));
        let (begun, report, name) = (ran.clone(), self.report.clone(), key.to_string());
        let outcome = self.step.run_blocking(key.clone(), move || {
            report.say(format_args!("BEGIN {name}"));
            begun.store(true, Ordering::Relaxed);
            body()
        });
        let outcome = outcome.await;
        if ran.load(Ordering::Relaxed) {
            self.report.say(format_args!("CKPT {key}"));
        } else {
            self.report.came_back();
        }
        outcome
    }
}

/// Lines to the parent.
#[derive(Clone, Default)]
struct Report {
    /// Steps that came back from the file since the last line.
    back: Arc<AtomicUsize>,
}

impl Report {
    fn say(&self, line: std::fmt::Arguments<'_>) {
        let back = self.back.swap(0, Ordering::Relaxed);
        let back = if back > 0 { format!("BACK {back}\n") } else { String::new() };
        let written = io::stdout().lock().write_all(format!("{back}{line}\n").as_bytes());
        if written.is_err() {
            // The parent is gone, and with it the witness.
            std::process::exit(1);
        }
    }

    fn came_back(&self) {
        self.back.fetch_add(1, Ordering::Relaxed);
    }
}

// ---- The list of files.

/// A path below the root, and why it can't be hashed if that is known already.
type Listed = (OsString, Option<String>);
/// The same as it is stored: how many bytes it shares with the path before it, the rest of it, the problem.
type Stored = (usize, String, Option<String>);

/// The files as they are now, or as they were when this run first asked: each chunk is a step, and goes on after the last
/// path of the chunk before it.
async fn list(reported: &Reported, root: &Path, out: &Path) -> JobResult<Vec<Listed>> {
    let walked = Arc::new(OnceLock::new());
    let mut listed: Vec<Listed> = Vec::new();
    for number in 0.. {
        let after = listed.last().map(|(name, _)| name.clone());
        let (walked, root, out) = (walked.clone(), root.to_owned(), out.to_owned());
        let chunk = reported.step(("list", number).into(), move || {
            let walked = walked.get_or_init(|| walk(&root, &out));
            let rest = after.as_ref().map_or(0, |after| walked.partition_point(|(name, _)| name <= after));
            Ok(chunk(&walked[rest..]))
        });
        let chunk: Vec<Stored> = chunk.await?;
        if chunk.is_empty() {
            return Ok(listed);
        }
        let mut name = Vec::new();
        for (shared, rest, problem) in chunk {
            name.truncate(shared);
            name.extend(bytes_of(&rest)?);
            listed.push((OsString::from_vec(name.clone()), problem));
        }
        // The steps of the list and of the manifest need room as well.
        if listed.len() > STEPS_MAX as usize - 1_000 {
            let max = STEPS_MAX - 1_000;
            return Err(JobError::msg(format!(
                "there are more than {max} files, and a run has no more steps than that"
            )));
        }
    }
    Ok(listed)
}

fn chunk(walked: &[Listed]) -> Vec<Stored> {
    let (mut chunk, mut bytes, mut before): (Vec<Stored>, _, &[u8]) = (Vec::new(), 0, &[]);
    for (name, problem) in walked {
        let name = name.as_bytes();
        let shared = name.iter().zip(before).take_while(|(a, b)| a == b).count();
        let rest = text_of(&name[shared..]);
        // In JSON a character takes two bytes at most, as control characters are percent-encoded.
        bytes += 2 * rest.len() + 32 + problem.as_ref().map_or(0, |problem| 2 * problem.len());
        if bytes > CHUNK_BYTES && !chunk.is_empty() {
            break;
        }
        chunk.push((shared, rest, problem.clone()));
        before = name;
    }
    chunk
}

/// Every file below the root, by the bytes of its path.
fn walk(root: &Path, out: &Path) -> Vec<Listed> {
    let ours = repository().canonicalize().is_ok_and(|repository| repository == root);
    let passed_over = |path: &Path| {
        let build = ours && path.parent() == Some(root);
        path == out || (build && (path.ends_with("target") || path.ends_with(".git")))
    };
    let (mut found, mut directories) = (Vec::new(), vec![root.to_owned()]);
    let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).as_os_str().to_owned();
    while let Some(directory) = directories.pop() {
        let listing = fs::read_dir(&directory).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                match entry.file_type() {
                    _ if passed_over(&path) => {}
                    Ok(kind) if kind.is_dir() => directories.push(path),
                    Ok(kind) if kind.is_file() => found.push((relative(&path), None)),
                    // Links, sockets, pipes, devices.
                    Ok(_) => {}
                    Err(error) => found.push((relative(&path), Some(error.to_string()))),
                }
            }
            Ok(())
        });
        if let Err(error) = listing {
            found.push((relative(&directory), Some(format!("the directory can't be read: {error}"))));
        }
    }
    found.sort_unstable();
    found
}

/// Bytes as text: UTF-8 as it is, but for `%` and control characters; those and all else as `%` and two hex digits.
fn text_of(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let escape = |text: &mut String, bytes: &[u8]| bytes.iter().for_each(|byte| *text += &format!("%{byte:02X}"));
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '%' | '\0'..' ' | '\x7f' => escape(&mut text, &[char as u8]),
                _ => text.push(char),
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn bytes_of(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or("").as_bytes());
    for part in parts {
        let (hex, rest) = part.split_at_checked(2).with_context(|| format!("no path: {text:?}"))?;
        bytes.push(u8::from_str_radix(hex, 16).with_context(|| format!("no path: {text:?}"))?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Ok(bytes)
}

fn path_of(text: &str) -> anyhow::Result<PathBuf> {
    Ok(OsString::from_vec(bytes_of(text)?).into())
}

// ---- Hashing, and the manifest.

#[derive(Serialize, Deserialize)]
struct Hashed {
    sha256: String,
    state: State,
}

/// What tells that a file is as it was when it was hashed.
#[derive(Serialize, Deserialize, PartialEq)]
struct State {
    bytes: u64,
    modified: (i64, i64),
}

impl State {
    fn of(file: &fs::Metadata) -> State {
        State { bytes: file.len(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

fn hash_file(path: &Path) -> JobResult<Hashed> {
    for _ in 0..3 {
        // Whatever has come to lie there since the list was made must not be followed, or waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let before = file.metadata()?;
        if !before.is_file() {
            return Err(JobError::msg("it is no file any more"));
        }
        let mut hasher = Sha256::new();
        // One that grows as fast as it is read is not read for ever.
        let mut rest = (&file).take(before.len() + 1);
        let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0);
        loop {
            let read = match rest.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            bytes += read as u64;
        }
        let state = State::of(&before);
        if bytes == state.bytes && State::of(&file.metadata()?) == state {
            let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(Hashed { sha256, state });
        }
    }
    Err(JobError::msg("it changed while it was read"))
}

/// Writes the manifest, and beside it what is not in it. Done again after a kill, it writes both anew.
fn write_manifest(root: &Path, out: &Path, hashed: &[(OsString, Result<Hashed, String>)]) -> anyhow::Result<Summary> {
    let mut summary = Summary { files: 0, bytes: 0, left_out: 0 };
    write_whole(&out.join("left-out.txt"), |left_out| {
        write_whole(&out.join("manifest.sha256"), |manifest| {
            for (name, outcome) in hashed {
                let path = root.join(name);
                let now = || fs::symlink_metadata(&path).map(|file| State::of(&file));
                let problem = match (outcome, outcome.as_ref().map(|_| now())) {
                    (Ok(hashed), Ok(Ok(state))) if state == hashed.state => {
                        manifest.write_all(&manifest_line(&hashed.sha256, &path))?;
                        summary.files += 1;
                        summary.bytes += state.bytes;
                        continue;
                    }
                    (_, Ok(Ok(_))) => "it changed after it was hashed",
                    (_, Ok(Err(error))) => &format!("it went after it was hashed: {error}"),
                    (Err(problem), _) | (_, Err(problem)) => problem.as_str(),
                };
                summary.left_out += 1;
                writeln!(left_out, "{}: {problem}", text_of(path.as_os_str().as_bytes()))?;
            }
            Ok(())
        })
    })?;
    Ok(summary)
}

/// A line as `sha256sum` writes it: one whose name has a backslash or a line's end begins with a backslash and escapes them.
fn manifest_line(sha256: &str, path: &Path) -> Vec<u8> {
    let (mut name, mut escaped) = (Vec::new(), false);
    for byte in path.as_os_str().as_bytes() {
        let letter = match byte {
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            _ => {
                name.push(*byte);
                continue;
            }
        };
        name.extend([b'\\', letter]);
        escaped = true;
    }
    let mut line = if escaped { b"\\".to_vec() } else { Vec::new() };
    line.extend(sha256.as_bytes());
    line.extend(b"  ");
    line.extend(name);
    line.push(b'\n');
    line
}

/// A file that is there as a whole or not at all.
fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let unfinished = path.with_extension("tmp");
    let mut file = BufWriter::new(File::create(&unfinished)?);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&unfinished, path)?;
    Ok(())
}

// ---- The parent: kills, and keeps the ledger.

/// What the child reported over all its lives.
#[derive(Default)]
struct Ledger {
    /// By key: bodies begun, and whether the step was finished.
    steps: HashMap<String, (u32, bool)>,
    files: Option<usize>,
    files_finished: usize,
    ran_twice: Vec<String>,
    summary: Option<Summary>,
}

/// One life of the child.
#[derive(Default)]
struct Life {
    ran: usize,
    back: usize,
    opened: Option<Duration>,
    /// From its start to its first new step.
    resumed: Option<Duration>,
    /// When it was killed, in words.
    killed: Option<String>,
}

/// When a life is to end.
enum Kill {
    Never,
    /// So long after it began: while it opens the file, or a little later.
    After(Duration),
    /// After some new checkpoints. How many is decided when the child has said how many files there are.
    Within {
        kills_left: usize,
        decided: Option<(usize, Duration)>,
    },
}

fn parent(options: &Options) -> anyhow::Result<bool> {
    let clock = SystemClock::default();
    println!("hashing {}", options.tree.display());
    let (mut ledger, mut lives, mut kills) = (Ledger::default(), Vec::<Life>::new(), 0);
    while ledger.summary.is_none() {
        let kill = next_kill(options.kills - kills, &ledger, &lives);
        let life = live(options, &clock, kill, &mut ledger)?;
        kills += u32::from(life.killed.is_some());
        println!("life {:>3}: {}", lives.len() + 1, life.tell());
        lives.push(life);
    }
    let Some(summary) = &ledger.summary else { bail!("the run gave no summary") };
    println!(
        "{} of {} kills hit{}",
        kills,
        options.kills,
        if kills < options.kills { ": the run was finished before there were more" } else { "" }
    );
    let good = ledger.judge();
    tell_times("opening the file took", lives.iter().skip(1).filter_map(|life| life.opened));
    tell_times("from a restart to the first new step it took", lives.iter().skip(1).filter_map(|life| life.resumed));
    println!("{} files of {} bytes hashed, {} left out", summary.files, summary.bytes, summary.left_out);
    let left_out = options.out.join("left-out.txt");
    for line in BufReader::new(File::open(&left_out)?).lines().take(20) {
        println!("  left out: {}", line?);
    }
    if summary.left_out > 20 {
        println!("  and {} more, see {}", summary.left_out - 20, left_out.display());
    }
    println!("database: {}", options.out.join("jobs.redb").display());
    let mut stdout = io::stdout().lock();
    stdout.write_all(b"manifest: ")?;
    stdout.write_all(options.out.join("manifest.sha256").as_os_str().as_bytes())?;
    stdout.write_all(b"\n")?;
    Ok(good)
}

fn next_kill(kills_left: u32, ledger: &Ledger, lives: &[Life]) -> Kill {
    if kills_left == 0 {
        return Kill::Never;
    }
    let kills_left = kills_left as usize;
    let files_left = ledger.files.map(|files| files - ledger.files_finished.min(files));
    // With fewer files than kills, kills must do without a new checkpoint in between.
    if files_left.is_some_and(|files| files <= kills_left) || fastrand::u8(..5) == 0 {
        let resumed = lives.iter().filter_map(|life| life.resumed).min().unwrap_or(Duration::from_millis(20));
        return Kill::After(log_uniform(Duration::from_micros(100), resumed.mul_f64(0.9)));
    }
    Kill::Within { kills_left, decided: None }
}

/// One life, to its end or its kill.
fn live(options: &Options, clock: &SystemClock, kill: Kill, ledger: &mut Ledger) -> anyhow::Result<Life> {
    let mut life = Life::default();
    let mut kill = kill;
    let began = clock.monotonic();
    let mut child = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .args([options.tree.as_os_str(), options.out.as_os_str()])
        .arg(options.kills.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no pipe")?);
    let mut killed = None;
    if let Kill::After(after) = kill {
        std::thread::sleep(after);
        child.kill()?;
        killed = Some(format!("{after:.1?} after it began"));
    }
    let mut line = Vec::new();
    // After the kill there is still to be read what it said before. A line without its end was cut off with it.
    while lines.read_until(b'\n', &mut line)? > 0 && line.pop() == Some(b'\n') {
        let told = std::str::from_utf8(&line)?;
        ledger.read(told, &mut life)?;
        if told.starts_with("BEGIN ") && life.resumed.is_none() {
            life.resumed = Some(clock.monotonic().saturating_sub(began));
        }
        if killed.is_none()
            && let Kill::Within { kills_left, decided } = &mut kill
        {
            if let (None, Some(files)) = (&decided, told.strip_prefix("FILES ")) {
                let files_left = files.parse::<usize>()?.saturating_sub(ledger.files_finished);
                *decided = Some(decide(files_left, *kills_left, life.ran));
            }
            if let Some((ran, after)) = decided.filter(|(ran, _)| life.ran >= *ran) {
                std::thread::sleep(after);
                child.kill()?;
                killed = Some(match after {
                    Duration::ZERO => format!("at its new step {ran}"),
                    after => format!("{after:.1?} after its new step {ran}"),
                });
            }
        }
        line.clear();
    }
    let status = child.wait()?;
    match status.signal() {
        Some(9) if killed.is_some() => life.killed = killed,
        _ if status.success() => {}
        _ => bail!("the process that hashes ended by itself: {status}"),
    }
    Ok(life)
}

/// After how many new steps of a life, and how long after that, it is to be killed: any time, more often early, and so
/// that enough is left for the kills to come.
fn decide(files_left: usize, kills_left: usize, ran: usize) -> (usize, Duration) {
    let share = files_left / (kills_left + 1);
    if share < 2 {
        return (ran + share, Duration::ZERO);
    }
    let steps =
        if fastrand::bool() { fastrand::usize(1..=share) } else { (share as f64).powf(fastrand::f64()) as usize };
    let after = log_uniform(Duration::from_micros(10), Duration::from_millis(5));
    (ran + steps, if share < UNDER_WAY_MAX { Duration::ZERO } else { after })
}

fn log_uniform(least: Duration, most: Duration) -> Duration {
    let times = (most.as_secs_f64() / least.as_secs_f64()).max(1.0);
    least.mul_f64(times.powf(fastrand::f64()))
}

impl Ledger {
    fn read(&mut self, line: &str, life: &mut Life) -> anyhow::Result<()> {
        let (word, rest) = line.split_once(' ').with_context(|| format!("no report: {line:?}"))?;
        match word {
            "OPEN" => life.opened = Some(Duration::from_micros(rest.parse()?)),
            "FILES" => self.files = Some(rest.parse()?),
            "BACK" => life.back += rest.parse::<usize>()?,
            "BEGIN" => {
                let (begun, finished) = self.steps.entry(rest.to_owned()).or_default();
                *begun += 1;
                if *finished {
                    self.ran_twice.push(rest.to_owned());
                }
            }
            "CKPT" => {
                life.ran += 1;
                let (_, finished) = self.steps.entry(rest.to_owned()).or_default();
                *finished = true;
                self.files_finished += usize::from(rest.starts_with("sha256["));
            }
            "DONE" => self.summary = Some(serde_json::from_str(rest)?),
            _ => bail!("no report: {line:?}"),
        }
        Ok(())
    }

    /// Says what was seen, and whether it is what was promised.
    fn judge(&self) -> bool {
        let begun: usize = self.steps.values().map(|(begun, _)| *begun as usize).sum();
        println!(
            "{} steps, {} of them begun again after a kill had cut them off",
            self.steps.len(),
            begun - self.steps.len()
        );
        for key in &self.ran_twice {
            println!("RAN TWICE: {key}");
        }
        let hashed = self.steps.keys().filter(|key| key.starts_with("sha256[")).count();
        let all = self.files == Some(hashed);
        if !all {
            println!("NOT ALL: {hashed} steps of files began, of {:?}", self.files);
        }
        if self.ran_twice.is_empty() {
            println!("no finished step ran twice");
        }
        self.ran_twice.is_empty() && all
    }
}

impl Life {
    fn tell(&self) -> String {
        let opened =
            self.opened.map_or("killed while it opened the file".into(), |took| format!("opened in {took:.1?}"));
        let resumed = self.resumed.map_or("no new step".into(), |took| format!("first new step after {took:.1?}"));
        let end = self.killed.as_ref().map_or("ended".into(), |killed| format!("killed {killed}"));
        format!("{:>6} steps ran, {:>6} came back from the file; {opened}, {resumed}; {end}", self.ran, self.back)
    }
}

fn tell_times(what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    if let Some(most) = times.last() {
        println!(
            "{what} {:.1?} at the median, {most:.1?} at most, over {} restarts",
            times[times.len() / 2],
            times.len()
        );
    }
}
