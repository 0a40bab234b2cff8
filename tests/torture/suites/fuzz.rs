//! Bytes and JSON that nobody in his right mind would send, at every place where some come in; and what bodies leave behind,
//! nested as deep as they like, can be read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use durably::testing::suites::{Bug, fuzz};
use durably::{Durably, Error, Job, Step};
use serde_json::{Map, Value, json};

use super::clock::{SimClock, one_thread};
use super::disk::SimDisk;
use super::suite::{Plan, Report, Suite, Violation};

pub const SUITE: Suite = Suite { name: "fuzz", run, cases: [40_000, 1_000_000_000, 10_000_000_000] };

/// How many inputs go to one function before a whole runtime gets one.
const RUNTIME_EVERY: u64 = 1_000;

const DECODERS: [&str; 7] = ["records", "journal", "keys", "json", "segments", "filters", "schedules"];

fn bytes(random: &mut fastrand::Rng, most: usize) -> Vec<u8> {
    (0..random.usize(..most)).map(|_| random.u8(..)).collect()
}

/// Something whole with a few bytes that are not its own.
fn damaged(random: &mut fastrand::Rng, mut whole: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.u8(..4) {
        if whole.is_empty() {
            break;
        }
        let at = random.usize(..whole.len());
        match random.u8(..4) {
            0 => whole[at] ^= 1 << random.u8(..8),
            1 => whole[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xfe, 0xff][random.usize(..9)],
            2 => whole.truncate(at),
            _ => whole.insert(at, random.u8(..)),
        }
    }
    whole
}

/// JSON text, mostly well formed: deep, with numbers of any size, with keys given twice.
fn text(random: &mut fastrand::Rng, depth: u32) -> String {
    let items = random.usize(..4);
    match random.u8(..if depth == 0 { 8 } else { 14 }) {
        0 => "null".to_owned(),
        1 => random.bool().to_string(),
        2 => random.i64(..).to_string(),
        3 => random.u64(..).to_string(),
        4 => format!("{}{}e{}", ["", "-"][random.usize(..2)], random.u64(..), random.i16(-400..400)),
        5 => format!("{:?}", random.f64()),
        6 => ["1".repeat(random.usize(1..400)), format!("0.{}", "3".repeat(random.usize(1..400)))][random.usize(..2)]
            .clone(),
        7 => format!(
            "\"{}\"",
            ["a", "\\u0000", "\\ud800", "\\ud83d\\ude00", "é", "\u{202e}", "", "a\\"][random.usize(..8)]
        ),
        8 | 9 => format!("[{}]", (0..items).map(|_| text(random, depth - 1)).collect::<Vec<_>>().join(",")),
        10 => {
            let levels = random.usize(..300);
            format!("{}{}{}", "[".repeat(levels), random.u8(..), "]".repeat(levels))
        }
        11 => format!("{{\"items\":[{}],\"items\":[],\"factor\":{}}}", text(random, depth - 1), text(random, 0)),
        12 => format!(
            "{{\"items\":[{{\"kind\":\"piece\",\"qty\":{}}}],\"x\":{}}}",
            random.i64(-2..1 << 33),
            text(random, depth - 1)
        ),
        _ => {
            let fields = (0..items)
                .map(|_| format!("\"{}\":{}", ["a", "note", "items", ""][random.usize(..4)], text(random, depth - 1)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
    }
}

/// JSON that no text gives: nested deeper than a parser goes.
fn nested(random: &mut fastrand::Rng) -> Value {
    let levels = [random.usize(..130), random.usize(120..132), random.usize(..600)][random.usize(..3)];
    (0..levels).fold(json!(1), |inner, _| {
        if random.bool() { Value::Array(vec![inner]) } else { Value::Object(Map::from_iter([("k".to_owned(), inner)])) }
    })
}

/// One input for one function; says whether it was accepted.
fn decode(which: usize, random: &mut fastrand::Rng) -> bool {
    let checksummed = random.u8(..8) != 0;
    match which {
        0 => {
            let table = random.u8(..fuzz::TABLES);
            let body = if random.bool() { bytes(random, 200) } else { fuzz::sample(table, random.u64(..)) };
            fuzz::record(table, &damaged(random, body), checksummed)
        }
        1 => {
            // A header, then records that are nearly right.
            let mut row = bytes(random, 40);
            row.resize(29, 0);
            for _ in 0..random.u8(..5) {
                let (key, value) = (bytes(random, 20), bytes(random, 60));
                row.push(random.u8(..19));
                row.extend_from_slice(&(key.len() as u16).to_le_bytes());
                row.extend_from_slice(&key);
                row.extend_from_slice(&(value.len() as u32).to_le_bytes());
                row.extend_from_slice(&value);
            }
            fuzz::journal(&damaged(random, row), checksummed)
        }
        2 => {
            let mut both = bytes(random, 90);
            if random.bool() {
                // Two that are nearly the same.
                both.extend_from_within(..);
                both = damaged(random, both);
            }
            fuzz::keys(&both);
            true
        }
        3 if random.u8(..4) == 0 => fuzz::json_value(&nested(random)),
        3 => fuzz::json_input(&damaged_text(random)),
        4 => {
            // A head, two ranges, then what may be entries.
            let mut segment = vec![0; 12];
            segment.extend_from_slice(&[2, random.u8(..), random.u8(..), random.u8(..), random.u8(..)]);
            segment.extend_from_slice(&[random.u8(..), 2, b'1', b'2']);
            fuzz::segment(&damaged(random, segment), random.u64(..1_000))
        }
        5 => fuzz::filter(&bytes(random, 60)),
        _ => {
            // Moments of all sizes: years of two digits as well as those that calendars do not have.
            let after = random.u64(..) >> random.u8(10..64);
            let text = if random.u8(..8) == 0 { bytes(random, 60) } else { schedule(random) };
            fuzz::schedule(&String::from_utf8_lossy(&text), after)
        }
    }
}

/// An expression and a zone, nearly right.
fn schedule(random: &mut fastrand::Rng) -> Vec<u8> {
    const NAMES: [&str; 12] = ["MON", "sun", "JAN", "dec", "L", "W", "H", "FRI#2", "5L", "15W", "?", "0"];
    const ZONES: [&str; 10] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Asia/Kathmandu",
        "Africa/Casablanca",
        "Etc/GMT+12",
        "Europe/Atlantis",
        "",
    ];
    fn number(random: &mut fastrand::Rng, most: u8) -> u8 {
        if random.u8(..32) == 0 { random.u8(..) } else { random.u8(1..=most) }
    }
    fn item(random: &mut fastrand::Rng, most: u8) -> String {
        let (one, other) = (number(random, most), number(random, most));
        match random.u8(..16) {
            0..=5 => one.to_string(),
            6..=8 => format!("{}-{}", one.min(other), one.max(other)),
            9 | 10 => format!("*/{one}"),
            11 => format!("{}-{}/{}", one.min(other), one.max(other), random.u32(..300)),
            12 => NAMES[random.usize(..NAMES.len())].to_owned(),
            13 => format!("{one}-{other}"),
            _ => "*".to_owned(),
        }
    }
    let mut expression = if random.u8(..8) == 0 {
        format!("@every {}{}", random.u64(..) >> random.u8(..64), ["s", "m", "h", "d", "x", ""][random.usize(..6)])
    } else {
        let fields = [59u8, 23, 31, 12, 7].map(|most| {
            let items: Vec<String> = (0..random.u8(1..3)).map(|_| item(random, most)).collect();
            items.join(",")
        });
        fields.join(" ")
    };
    if random.u8(..4) == 0 {
        expression = String::from_utf8_lossy(&damaged(random, expression.into_bytes())).into_owned();
    }
    format!("{expression}\n{}", ZONES[random.usize(..ZONES.len())]).into_bytes()
}

fn damaged_text(random: &mut fastrand::Rng) -> Vec<u8> {
    let whole = text(random, 4).into_bytes();
    if random.u8(..4) == 0 { damaged(random, whole) } else { whole }
}

/// Hostile inputs to a whole runtime, and bodies that leave hostile values behind: whatever is accepted can be read.
async fn whole(seed: u64, bug: Option<Bug>) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let clock = SimClock::default();
    clock.begin();
    let mut builder = Durably::builder().clock(clock.clone()).seed(seed).cache_bytes(1 << 20);
    if let Some(bug) = bug {
        builder = builder.plant(bug);
    }
    let opened = builder.open_simulated(SimDisk::new(&clock, seed, Vec::new())).await;
    let durably = opened.map_err(|error| error.to_string())?;
    let leaves = Job::new("leaves", |step: Step, seed: u64| async move {
        let mut random = fastrand::Rng::with_seed(seed);
        step.log().info("fields", nested(&mut random));
        let _ = step.run("step", || async { Ok(nested(&mut fastrand::Rng::with_seed(seed))) }).await;
        Ok(nested(&mut random))
    });
    let takes =
        Job::new(
            "takes",
            |step: Step, input: Value| async move { step.run("step", || async { Ok(input.clone()) }).await },
        );
    let (leaves, _takes) = durably.register((leaves, takes)).map_err(|error| error.to_string())?;
    let mut runs = Vec::new();
    for _ in 0..12 {
        let triggered = if random.bool() {
            leaves.trigger(random.u64(..)).await.map(|run| run.id())
        } else {
            let input = serde_json::from_slice(&damaged_text(&mut random)).unwrap_or_else(|_| nested(&mut random));
            durably.trigger_json("takes", input).await.map(|run| run.id())
        };
        match triggered {
            Ok(run) => runs.push(run),
            Err(Error::InvalidInput { .. } | Error::TooLarge { .. }) => {}
            Err(error) => return Err(format!("a trigger gave {error}")),
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let all = durably.get_runs(durably::RunFilter::new()).await.map_err(|error| format!("get_runs: {error}"))?;
    if all.len() != runs.len() {
        return Err(format!("{} runs, triggered {}", all.len(), runs.len()));
    }
    for run in all {
        if !run.is_terminal() {
            return Err(format!("{} is {}: {:?}", run.id, run.status, run.blocked));
        }
        durably.get_steps(run.id).await.map_err(|error| format!("get_steps: {error}"))?;
        durably.get_logs(run.id).await.map_err(|error| format!("get_logs: {error}"))?;
    }
    durably.shutdown().await.map_err(|error| error.to_string())
}

fn run(plan: &Plan) -> Report {
    let mut report = Report::default();
    let mut accepted = [0u64; DECODERS.len()];
    let mut runtimes = 0;
    while plan.goes_on(report.cases) {
        let seed = plan.seed_of(report.cases);
        let mut random = fastrand::Rng::with_seed(seed);
        // A case alone, to be repeated by its seed, does both.
        if report.cases.is_multiple_of(RUNTIME_EVERY) {
            runtimes += 1;
            let held = one_thread().block_on(whole(seed, plan.bug));
            report.violations.extend(held.err().map(|what| Violation { seed, what }));
        }
        let which = random.usize(..DECODERS.len());
        match catch_unwind(AssertUnwindSafe(|| decode(which, &mut random))) {
            Ok(yes) => accepted[which] += u64::from(yes),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                report.violations.push(Violation { seed, what: format!("{} panicked: {text}", DECODERS[which]) });
            }
        }
        report.cases += 1;
        if report.violations.len() >= 5 || (plan.bug.is_some() && !report.violations.is_empty()) {
            break;
        }
    }
    report.faults = report.cases;
    let names = DECODERS.iter().map(|name| format!("{name} accepted"));
    report.counts = names.zip(accepted).chain([("runtimes".to_owned(), runtimes)]).collect();
    report
}
