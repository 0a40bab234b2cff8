//! Files that are not as they were left: damaged, cut, of others, of the future. Each is opened right or refused with a typed
//! error, unchanged; none loses anything in silence, none panics, none makes memory grow as it likes (P13, P22, M3, M4).
//!
//! A child of little memory makes a file and damages it in many ways, one after the other: each is a case.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use durably::testing::{Bug, Disk, verify_on};
use durably::{Durably, Error};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use rustix::process::Resource;
use serde::{Deserialize, Serialize};

use super::clock::simulated;
use super::disk::SimDisk;
use super::process::{Process, Role, data, limit, number_of, say};
use super::program::{Act, Ledger, Life, Setup, check, empty};
use super::several::{Case, side_by_side, until_done};
use super::suite::{Plan, Report, Suite};

pub const SUITE: Suite = Suite { name: "images", run, cases: [3_000, 300_000, 3_000_000] };

/// Damages of a file.
const DAMAGES: u64 = 200;
/// What a child may take beside what it has when its file is made: a few copies of the file, the cache of a runtime over it and
/// what an open reads of it. A length out of a damaged page that is believed takes more.
const MEMORY: u64 = 48 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

const PAGE: usize = 4096;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
const LOGICAL: [&str; 12] = [
    "jobs",
    "runs",
    "states",
    "outputs",
    "steps",
    "logs",
    "idempotency",
    "by_status",
    "by_job",
    "by_label",
    "ended",
    "tallies",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Damage {
    Bits,
    ZeroPage,
    SwapPages,
    Header,
    Cut,
    Foreign(u8),
    Newer,
    /// A row's value, with redb's own checksums right: what memory or a bug of somebody's did.
    Row,
    JournalRow,
}

/// A file, and what is in it.
struct Subject {
    setup: Setup,
    bytes: Vec<u8>,
    ledger: Ledger,
    clean: bool,
}

fn run(plan: &Plan) -> Report {
    let cases = AtomicU64::new(0);
    let mut report = side_by_side(&mut until_done(plan, &cases), plan.bug.is_some(), |seed| {
        let outcome = of_a_child(Damaging { seed, bug: number_of(plan.bug) });
        let (Done { damages, refused }, violation) = match outcome {
            Ok(done) => (done, None),
            Err((done, what)) => (done, Some(what)),
        };
        cases.fetch_add(damages, Ordering::Relaxed);
        let counts = [("files", 1), ("refused", refused)].map(|(what, count)| (what.to_owned(), count));
        Case { faults: damages, counts: counts.into_iter().collect(), violation }
    });
    report.cases = cases.into_inner();
    report
}

/// What a child is to do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Damaging {
    seed: u64,
    bug: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// This is done to it next.
    Damage(Damage),
    Refused,
    Violation(String),
    Done,
}

#[derive(Debug, Default)]
struct Done {
    damages: u64,
    refused: u64,
}

fn of_a_child(damaging: Damaging) -> Result<Done, (Done, String)> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = Process::start(&Role::Images(damaging), directory.path());
    let (mut done, mut last, mut ended) = (Done::default(), None, None);
    for said in process.rest(PATIENCE).unwrap_or_default() {
        match said {
            Said::Damage(damage) => {
                done.damages += 1;
                last = Some(damage);
            }
            Said::Refused => done.refused += 1,
            Said::Violation(what) => ended = Some(Err(what)),
            Said::Done => ended = Some(Ok(())),
        }
    }
    match ended {
        Some(Ok(())) => Ok(done),
        Some(Err(what)) => Err((done, what)),
        None => Err((done, format!("{last:?}: the child hangs or died: {}", process.last_words()))),
    }
}

pub fn damage(damaging: &Damaging) {
    let mut rng = fastrand::Rng::with_seed(damaging.seed);
    let subject = Subject::new(damaging.bug.map(|bug| Bug::ALL[bug]), &mut rng);
    limit(Resource::Data, Some(data() + MEMORY));
    for _ in 0..DAMAGES {
        match subject.suffer(&mut rng) {
            Ok(false) => {}
            Ok(true) => say(&Said::Refused),
            Err(what) => return say(&Said::Violation(what)),
        }
    }
    say(&Said::Done);
}

impl Subject {
    fn new(bug: Option<Bug>, rng: &mut fastrand::Rng) -> Subject {
        let clean = rng.bool();
        // An unclean stop and one-phase commits may lose the last commit to damage: documented, and two-phase does not.
        let setup = Setup { two_phase: !clean, fold: (1 << 20, 4_096), ..Setup::random(rng, bug) };
        let disk = SimDisk::of(empty());
        let acts: Vec<Act> = (0..40).map(|_| Act::random(rng)).collect();
        let ledger = simulated(async {
            let mut life = Life::begin(&setup, &disk, Ledger::default()).await.expect("opens");
            for act in acts {
                life.act(act).await.expect("acts");
            }
            if clean {
                life.durably.shutdown().await.expect("closes");
            } else {
                // The bytes at this moment are those of a kill.
                return (life.ledger(), disk.live());
            }
            (life.ledger(), disk.live())
        });
        let (ledger, bytes) = ledger;
        Subject { setup, bytes, ledger, clean }
    }

    /// Gives whether it was refused.
    fn suffer(&self, rng: &mut fastrand::Rng) -> Result<bool, String> {
        let damage = match rng.u32(..16) {
            0..=3 => Damage::Bits,
            4..=5 => Damage::ZeroPage,
            6..=7 => Damage::SwapPages,
            8 if self.clean => Damage::Header,
            9 => Damage::Cut,
            10 => Damage::Foreign(rng.u8(..4)),
            11 => Damage::Newer,
            12..=13 if !self.clean => Damage::JournalRow,
            _ => Damage::Row,
        };
        say(&Said::Damage(damage));
        let Some(image) = self.damaged(damage, rng) else { return Ok(false) };
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge(damage, image)));
        judged.unwrap_or_else(|_| Err("a panic".into())).map_err(|what| format!("{damage:?}: {what}"))
    }

    fn judge(&self, damage: Damage, image: Vec<u8>) -> Result<bool, String> {
        let disk = SimDisk::of(image);
        disk.record();
        let verified = verify_on(disk.clone() as Arc<dyn Disk>);
        if disk.at() > 0 {
            return Err("verifying it wrote to it".into());
        }
        simulated(async {
            match self.setup.open(&disk, true).await {
                Err(error) => {
                    self.is_named(damage, &error)?;
                    if !matches!(damage, Damage::Row | Damage::JournalRow) && disk.at() > 0 {
                        return Err(format!("refused with {error}, and written to"));
                    }
                    if verified.as_ref().is_ok_and(|verified| verified.is_sound()) {
                        return Err(format!("refused with {error}, and verified as sound"));
                    }
                    Ok(true)
                }
                Ok(durably) => self.is_right(damage, &durably, &verified).await.map(|()| false),
            }
        })
    }

    /// The error says what it is.
    fn is_named(&self, damage: Damage, error: &Error) -> Result<(), String> {
        let right = match damage {
            Damage::Foreign(_) => matches!(error, Error::NotADatabase { .. }),
            Damage::Newer => matches!(error, Error::NewerFormat { found: 7, .. }),
            Damage::Row | Damage::JournalRow => matches!(error, Error::Corrupted { .. }),
            _ => matches!(error, Error::Damaged { .. } | Error::NotADatabase { .. } | Error::Corrupted { .. }),
        };
        if right { Ok(()) } else { Err(format!("refused as {error:?}")) }
    }

    /// It was opened: nothing is missing in silence.
    async fn is_right(
        &self,
        damage: Damage,
        durably: &Durably,
        verified: &Result<durably::Verification, Error>,
    ) -> Result<(), String> {
        if matches!(damage, Damage::Foreign(_) | Damage::Newer | Damage::JournalRow) {
            return Err("opened".into());
        }
        match check(durably, &self.ledger, usize::MAX - 1).await {
            // A row that rots is found by whoever verifies, at the latest; one that was already replaced matters to nobody.
            Err(_) if damage == Damage::Row => match verified {
                Ok(verified) if verified.is_sound() => Err("a row is not what it was, and verified as sound".into()),
                _ => Ok(()),
            },
            outcome => outcome.map(drop),
        }
    }

    fn damaged(&self, damage: Damage, rng: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        let pages = bytes.len() / PAGE;
        match damage {
            Damage::Bits => {
                for _ in 0..rng.usize(1..8) {
                    let at = rng.usize(PAGE..bytes.len());
                    bytes[at] ^= 1 << rng.u32(..8);
                }
            }
            Damage::ZeroPage => {
                let at = rng.usize(1..pages) * PAGE;
                bytes[at..at + PAGE].fill(0);
            }
            Damage::SwapPages => {
                let (a, b) = (rng.usize(1..pages) * PAGE, rng.usize(1..pages) * PAGE);
                let held = bytes[a..a + PAGE].to_vec();
                bytes.copy_within(b..b + PAGE, a);
                bytes[b..b + PAGE].copy_from_slice(&held);
            }
            Damage::Header => bytes[rng.usize(..320)] ^= 1 << rng.u32(..8),
            Damage::Cut => bytes.truncate(rng.usize(1..bytes.len())),
            Damage::Foreign(kind) => bytes = foreign(kind, rng),
            Damage::Newer => {
                return edit(bytes, |txn| {
                    txn.open_table(META).expect("ours").insert("format", 7).map(drop).expect("writes")
                });
            }
            Damage::Row => {
                let name = LOGICAL[rng.usize(..LOGICAL.len())];
                let table: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(name);
                let (nth, bit) = (rng.usize(..), rng.usize(..));
                return edit(bytes, |txn| {
                    let mut table = txn.open_table(table).expect("ours");
                    let rows: Vec<(Vec<u8>, Vec<u8>)> = (table.iter().expect("reads").flatten())
                        .map(|(key, value)| (key.value().to_vec(), value.value().to_vec()))
                        .filter(|(_, value)| !value.is_empty())
                        .collect();
                    if let Some((key, mut value)) = nth.checked_rem(rows.len()).map(|nth| rows[nth].clone()) {
                        let bit = bit % (value.len() * 8);
                        value[bit / 8] ^= 1 << (bit % 8);
                        table.insert(&key[..], &value[..]).expect("writes");
                    }
                });
            }
            Damage::JournalRow => {
                let (nth, bit) = (rng.usize(..), rng.usize(..));
                let mut hit = false;
                let bytes = edit(bytes, |txn| {
                    let mut table = txn.open_table(JOURNAL).expect("ours");
                    let rows: Vec<(u64, Vec<u8>)> = (table.iter().expect("reads").flatten())
                        .map(|(key, value)| (key.value(), value.value().to_vec()))
                        .collect();
                    if let Some((key, mut value)) = nth.checked_rem(rows.len()).map(|nth| rows[nth].clone()) {
                        let bit = bit % (value.len() * 8);
                        value[bit / 8] ^= 1 << (bit % 8);
                        table.insert(key, &value[..]).expect("writes");
                        hit = true;
                    }
                });
                return bytes.filter(|_| hit);
            }
        }
        (bytes != self.bytes).then_some(bytes)
    }
}

/// A file of somebody else.
fn foreign(kind: u8, rng: &mut fastrand::Rng) -> Vec<u8> {
    match kind {
        0 => {
            let mut bytes = b"SQLite format 3\0".to_vec();
            bytes.resize(2 * PAGE, 0);
            bytes
        }
        1 => (0..rng.usize(1..3 * PAGE)).map(|_| rng.u8(..)).collect(),
        2 => vec![0; rng.usize(1..3 * PAGE)],
        _ => {
            let mut bytes = Vec::new();
            with_redb(&mut bytes, |db| {
                let txn = db.begin_write().expect("begins");
                let table: TableDefinition<'_, &str, &str> =
                    TableDefinition::new(if rng.bool() { "meta" } else { "theirs" });
                txn.open_table(table).expect("opens").insert("format", "of another program").map(drop).expect("writes");
                txn.commit().expect("commits");
            });
            bytes
        }
    }
}

/// Changes rows as redb does, and closes the file.
fn edit(mut bytes: Vec<u8>, change: impl FnOnce(&redb::WriteTransaction)) -> Option<Vec<u8>> {
    with_redb(&mut bytes, |db| {
        let txn = db.begin_write().expect("begins");
        change(&txn);
        txn.commit().expect("commits");
        drop(db.begin_read());
    });
    Some(bytes)
}

fn with_redb(bytes: &mut Vec<u8>, work: impl FnOnce(&redb::Database)) {
    let disk = SimDisk::of(std::mem::take(bytes));
    let db = redb::Database::builder().create_with_backend(Plain(disk.clone())).expect("opens");
    work(&db);
    drop(db);
    *bytes = disk.live();
}

/// The disk, as redb asks for it.
#[derive(Debug)]
struct Plain(Arc<SimDisk>);

impl redb::StorageBackend for Plain {
    fn len(&self) -> std::io::Result<u64> {
        Disk::len(&*self.0)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        Disk::read(&*self.0, offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        Disk::set_len(&*self.0, len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        Disk::write(&*self.0, offset, data)
    }
}
