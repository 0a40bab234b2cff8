//! The baseline: what a careful engineer gets out of redb for the same bytes, with no engine, no index and no reads.
//!
//! One thread owns the file, behind a bounded channel. It takes whatever is waiting and commits it with one flush, as one row
//! under an ascending key: of all layouts that redb offers the cheapest.

use std::path::Path;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::VALUE_BYTES;

/// A checkpoint as it stands in the journal: 200 bytes of value, and its key, times, checksum and lengths.
pub const RECORD_BYTES: usize = VALUE_BYTES + 62;
/// As many records as a commit of the library takes operations.
const GROUP_RECORDS_MAX: usize = 1_024;
const WAITING_RECORDS_MAX: usize = 4_096;
/// Rows beside the journal, for reads.
const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
const JOURNAL: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");

struct Record {
    bytes: Vec<u8>,
    committed: oneshot::Sender<()>,
}

/// A redb file behind one writer thread with group commit.
#[derive(Clone)]
pub struct Bare {
    sender: mpsc::Sender<Record>,
}

impl Bare {
    pub fn open(path: &Path) -> Bare {
        let db = Database::builder().set_cache_size(64 << 20).create(path).expect("creates");
        let (sender, receiver) = mpsc::channel(WAITING_RECORDS_MAX);
        std::thread::spawn(move || write(&db, receiver));
        Bare { sender }
    }

    /// Returns once the record is on disk.
    pub async fn record(&self, bytes: Vec<u8>) {
        let (committed, done) = oneshot::channel();
        self.sender.send(Record { bytes, committed }).await.expect("the writer lives");
        done.await.expect("the writer answers");
    }

    /// `total` records by `producers` closed loops, each a task of its own as bodies and callers are.
    pub async fn load(&self, producers: usize, total: usize) -> Duration {
        let began = Instant::now();
        let tasks = (0..producers).map(|_| {
            let bare = self.clone();
            tokio::spawn(async move {
                for _ in 0..total / producers {
                    bare.record(vec![7; RECORD_BYTES]).await;
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        for task in tasks {
            task.await.expect("ends");
        }
        began.elapsed()
    }

    /// Records a second by `producers` closed loops.
    pub async fn rate(&self, producers: usize, total: usize) -> f64 {
        let total = total.next_multiple_of(producers);
        total as f64 / self.load(producers, total).await.as_secs_f64()
    }

    /// Records a second where all of them are one commit.
    pub async fn batch_rate(&self, records: usize) -> f64 {
        let began = Instant::now();
        self.record(vec![7; RECORD_BYTES * records]).await;
        records as f64 / began.elapsed().as_secs_f64()
    }
}

fn write(db: &Database, mut receiver: mpsc::Receiver<Record>) {
    let (mut group, mut records, mut row) = (0u64, Vec::with_capacity(GROUP_RECORDS_MAX), Vec::new());
    while receiver.blocking_recv_many(&mut records, GROUP_RECORDS_MAX) > 0 {
        row.clear();
        for record in &records {
            row.extend_from_slice(&record.bytes);
        }
        group += 1;
        let txn = db.begin_write().expect("begins");
        txn.open_table(JOURNAL).expect("opens").insert(group, &row[..]).expect("inserts");
        txn.commit().expect("commits");
        for record in records.drain(..) {
            let _ = record.committed.send(());
        }
    }
}

/// A redb file with a row a record, for reads.
pub struct BareRows(Database);

impl BareRows {
    pub fn open(path: &Path, rows: u64) -> BareRows {
        let db = Database::builder().set_cache_size(64 << 20).create(path).expect("creates");
        let txn = db.begin_write().expect("begins");
        {
            let mut table = txn.open_table(ROWS).expect("opens");
            for row in 0..rows {
                table.insert(row, &[7; RECORD_BYTES][..]).expect("inserts");
            }
        }
        txn.commit().expect("commits");
        BareRows(db)
    }

    /// How long the newest `count` rows take to read.
    pub fn newest(&self, count: usize) -> Duration {
        let began = Instant::now();
        let txn = self.0.begin_read().expect("begins");
        let table = txn.open_table(ROWS).expect("opens");
        let rows = table.iter().expect("reads").rev().take(count);
        let rows: Vec<Vec<u8>> = rows.map(|row| row.expect("reads").1.value().to_vec()).collect();
        assert_eq!(rows.len(), count);
        began.elapsed()
    }
}
