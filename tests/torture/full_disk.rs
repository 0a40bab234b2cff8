//! Disks that are really full: the process goes on once there is room again, without a new start (M6).
//!
//! They need a file system of their own. Where none can be mounted, the tests say so and do nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use durably::{Durably, Error, Health, Job, JobHandle, RunFilter, Step};

/// A small file system, unmounted when dropped.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(mount: impl Fn(&Path, &Path) -> bool) -> Option<Mounted> {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("mounted");
        fs::create_dir(&at).expect("makes a directory");
        mount(dir.path(), &at).then_some(Mounted { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mounted").join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[&self.path("")]);
    }
}

fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> bool {
    let output = Command::new(program).args(arguments.iter().map(|argument| argument.as_ref())).output();
    output.is_ok_and(|output| output.status.success())
}

fn job() -> Job<String, usize> {
    Job::new("fills", |_: Step, input: String| async move { Ok(input.len()) })
}

async fn trigger(job: &JobHandle<String, usize>, nth: u64) -> Result<durably::RunId, Error> {
    Ok(job.trigger("x".repeat(100 << 10)).idempotency_key(format!("{nth}")).await?.id())
}

/// Somebody else takes what there is.
fn fill(filler: &Path) {
    let mut bytes = 1 << 20;
    let mut filled = Vec::new();
    while bytes >= 4096 {
        filled.resize(filled.len() + bytes, 1);
        if fs::write(filler, &filled).is_err() {
            filled.truncate(filled.len() - bytes);
            bytes /= 2;
        }
    }
}

async fn goes_on_after_a_full_disk(disk: Mounted) {
    let durably = Durably::builder().paused(true).open(disk.path("jobs.redb")).await.expect("opens");
    let job = durably.register(job()).expect("registers");
    let mut acked = vec![trigger(&job, 0).await.expect("triggers")];
    let filler = disk.path("filler");
    fill(&filler);
    let mut nth = 0;
    let unknown = loop {
        nth += 1;
        match trigger(&job, nth).await {
            Ok(run) => acked.push(run),
            Err(error) => break error,
        }
    };
    assert!(matches!(unknown, Error::Indeterminate), "{unknown:?}");
    assert_eq!(durably.health(), Health::Degraded);

    fs::remove_file(&filler).expect("removes");
    // The first that is answered again says that it goes on; those before it wait for the disk at most as long as is promised.
    let again = loop {
        match trigger(&job, nth).await {
            Ok(run) => break run,
            Err(Error::Indeterminate | Error::Overloaded { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error:?}"),
        }
    };
    acked.push(again);
    let found: Vec<_> =
        durably.get_runs(RunFilter::new().limit(1_000)).await.expect("reads").iter().map(|run| run.id).rev().collect();
    assert_eq!(found, acked, "all that was acknowledged, each once");
    durably.shutdown().await.expect("closes");
    assert!(durably::verify(disk.path("jobs.redb")).await.expect("reads").is_sound());
}

/// Room for what opening writes, and not for a reserve.
const LEFT: u64 = 512 << 10;

async fn opens_on_a_full_disk(disk: Mounted) {
    let open = || Durably::builder().paused(true).open(disk.path("jobs.redb"));
    let durably = open().await.expect("opens");
    trigger(&durably.register(job()).expect("registers"), 0).await.expect("triggers");
    durably.shutdown().await.expect("closes");
    let (filler, reserve) = (disk.path("filler"), disk.path("jobs.redb.reserve"));
    fill(&filler);
    let file = fs::File::options().write(true).open(&filler).expect("opens");
    file.set_len(file.metadata().expect("is there").len() - LEFT).expect("cuts");
    drop(file);

    let durably = open().await.expect("opens");
    assert_eq!(durably.health(), Health::Degraded);
    let job = durably.register(job()).expect("registers");
    fs::remove_file(&filler).expect("removes");
    // Though nothing is asked for.
    tokio::time::timeout(Duration::from_secs(20), async {
        while durably.health() != Health::Ok {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it notices");
    assert!(reserve.exists());
    trigger(&job, 1).await.expect("triggers");
    durably.shutdown().await.expect("closes");
    assert!(!reserve.exists());
    assert!(durably::verify(disk.path("jobs.redb")).await.expect("reads").is_sound());
}

fn tmpfs() -> Option<Mounted> {
    let mounted = Mounted::new(|_, at| run("mount", &[&"-t", &"tmpfs", &"-o", &"size=12m", &"durably-test", &at]));
    if mounted.is_none() {
        eprintln!("skipped: no tmpfs can be mounted here");
    }
    mounted
}

fn ext4() -> Option<Mounted> {
    let mounted = Mounted::new(|dir, at| {
        let image = dir.join("image");
        let file = fs::File::create(&image).and_then(|file| file.set_len(24 << 20));
        file.is_ok() && run("mkfs.ext4", &[&"-q", &"-F", &image]) && run("mount", &[&"-o", &"loop", &image, &at])
    });
    if mounted.is_none() {
        eprintln!("skipped: no ext4 can be mounted over a file here");
    }
    mounted
}

#[tokio::test]
async fn a_full_tmpfs_is_waited_for() {
    if let Some(disk) = tmpfs() {
        goes_on_after_a_full_disk(disk).await;
    }
}

#[tokio::test]
async fn a_full_ext4_is_waited_for() {
    if let Some(disk) = ext4() {
        goes_on_after_a_full_disk(disk).await;
    }
}

#[tokio::test]
async fn a_file_on_a_full_tmpfs_is_opened_degraded_until_there_is_room() {
    if let Some(disk) = tmpfs() {
        opens_on_a_full_disk(disk).await;
    }
}

#[tokio::test]
async fn a_file_on_a_full_ext4_is_opened_degraded_until_there_is_room() {
    if let Some(disk) = ext4() {
        opens_on_a_full_disk(disk).await;
    }
}
