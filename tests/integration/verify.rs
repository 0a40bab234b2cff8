//! What a file that no runtime has open is found to be.

use std::fs;
use std::io::ErrorKind;

use durably::{Error, Job, Step};
use redb::ReadableTable;

use crate::support::*;

fn counting() -> Job<u64, u64> {
    Job::new("count", |step: Step, n: u64| async move {
        for at in 0..3u64 {
            step.run(("s", at), || async { Ok(n * 10 + at) }).await?;
        }
        Ok(n)
    })
}

#[tokio::test]
async fn verifying_reads_a_file_and_changes_no_byte_of_it() {
    let file = TempFile::new();
    let missing = durably::verify(file.path()).await;
    assert!(matches!(&missing, Err(Error::Open { source, .. }) if source.kind() == ErrorKind::NotFound), "{missing:?}");
    assert!(!file.path().exists(), "nothing is created");

    let durably = file.open_paused().await;
    let job = durably.register(counting()).expect("registers");
    job.batch_trigger(1..20u64).await.expect("triggers");
    assert!(matches!(durably::verify(file.path()).await, Err(Error::AlreadyOpen { .. })));
    // As a kill leaves it: the journal is not folded, the file not closed.
    let killed = file.beside("killed");
    fs::copy(file.path(), &killed).expect("copies");
    durably.shutdown().await.expect("closes");
    for path in [killed, file.path()] {
        let before = fs::read(&path).expect("reads");
        let found = durably::verify(&path).await.expect("reads");
        assert!(found.is_sound() && found.runs == 19, "{found:?}");
        assert!(fs::read(&path).expect("reads") == before, "{} was changed", path.display());
    }
}

#[tokio::test]
async fn verifying_names_table_and_key_of_what_is_wrong() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    durably.register(counting()).expect("registers").trigger(1).await.expect("triggers");
    durably.shutdown().await.expect("closes");
    change::<&[u8]>(&file, "by_job", |table| table.retain(|_, _| false).expect("removes"));
    let found = durably::verify(file.path()).await.expect("reads");
    assert!(!found.is_sound());
    assert_eq!((found.problem_count, found.problems[0].table), (1, "by_job"));
    assert!(found.problems[0].key.starts_with("00000001"), "{}", found.problems[0]);
}

/// A closed file of runs that have completed, three steps each.
async fn completed(runs: u64) -> TempFile {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    durably.register(counting()).expect("registers").batch_trigger(1..=runs).await.expect("triggers");
    durably.run_until_idle(None).await.expect("works");
    durably.shutdown().await.expect("closes");
    file
}

#[tokio::test]
async fn verifying_names_rows_of_indexes_that_their_runs_contradict() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(counting()).expect("registers");
    job.trigger(1).label("city", "Rome").await.expect("triggers");
    durably.run_until_idle(None).await.expect("works");
    durably.shutdown().await.expect("closes");
    for (index, of_its_value) in [("by_label", 8), ("ended", 7)] {
        change::<&[u8]>(&file, index, |table| {
            let (key, row) = first_row(table);
            let mut other = key.clone();
            // A letter of the label, or the last byte of the time.
            other[of_its_value] ^= 1;
            table.remove(&key[..]).expect("removes");
            table.insert(&other[..], &row[..]).expect("inserts");
        });
    }
    let found = durably::verify(file.path()).await.expect("reads");
    let mut problems: Vec<_> = found.problems.iter().map(|problem| (problem.table, problem.what)).collect();
    problems.sort_unstable();
    let expected =
        ["by_label", "ended"].map(|index| [(index, "a run is not in it"), (index, "its run says otherwise")]);
    assert_eq!(problems, expected.concat());
}

/// The first row of a table, which of checkpoints is a block.
fn first_row(table: &redb::Table<'_, &'static [u8], &'static [u8]>) -> (Vec<u8>, Vec<u8>) {
    let (key, block) = table.first().expect("reads").expect("a block");
    (key.value().to_vec(), block.value().to_vec())
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn verifying_names_a_block_of_checkpoints_that_is_cut_once_for_all_its_runs() {
    let file = completed(5).await;
    assert_eq!(durably::verify(file.path()).await.expect("reads").steps, 15);
    let mut damaged = Vec::new();
    change::<&[u8]>(&file, "steps", |table| {
        let (key, block) = first_row(table);
        table.insert(&key[..], &block[..block.len() - 1]).expect("inserts");
        damaged = key;
    });
    let found = durably::verify(file.path()).await.expect("reads");
    let problem = &found.problems[0];
    assert_eq!((found.problem_count, problem.table, problem.what), (1, "steps", "block is cut"));
    assert_eq!(problem.key, hex(&damaged));
}

#[tokio::test]
async fn verifying_names_a_block_of_checkpoints_that_the_one_before_reaches_into() {
    let file = completed(5).await;
    let mut within = Vec::new();
    change::<&[u8]>(&file, "steps", |table| {
        let (key, block) = first_row(table);
        // The same run from its second step on, which the first block has too; without the checksum that a block begins with.
        within = [&key[..16], &1u32.to_be_bytes()].concat();
        let first = &block[12..];
        let length = u32::from_le_bytes(first[4..8].try_into().expect("a length")) as usize;
        table.insert(&within[..], &first[8 + length..]).expect("inserts");
    });
    let found = durably::verify(file.path()).await.expect("reads");
    let problem = &found.problems[0];
    assert_eq!((found.problem_count, problem.table), (1, "steps"), "{:?}", found.problems);
    assert_eq!(problem.what, "the block before it goes further");
    assert_eq!(problem.key, hex(&within));
}

#[tokio::test]
async fn verifying_counts_all_that_is_wrong_and_lists_a_thousand() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = Job::new("large", |step: Step, _: ()| async move {
        step.run("s", || async { Ok("x".repeat(20_000)) }).await?;
        Ok(())
    });
    durably.register(job).expect("registers").batch_trigger(vec![(); 1_010]).await.expect("triggers");
    durably.run_until_idle(None).await.expect("works");
    durably.shutdown().await.expect("closes");
    change::<u64>(&file, "blobs", |table| table.retain(|_, _| false).expect("removes"));
    let found = durably::verify(file.path()).await.expect("reads");
    assert_eq!((found.problem_count, found.problems.len()), (1_010, 1_000));
}
