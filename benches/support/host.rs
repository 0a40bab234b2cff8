//! What the machine says: times of the process, its memory, what lies under a folder.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// CPU time of this process so far, all threads, to 10 ms.
pub fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Bytes that this process has handed to the system to write so far.
pub fn bytes_written() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}

/// Resident memory of this process, bytes.
pub fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The file system under a folder, by name.
pub fn file_system(dir: &Path) -> String {
    let kind = rustix::fs::statfs(dir).map_or(0, |found| found.f_type as u64);
    let known = KINDS.iter().find(|(magic, _)| *magic == kind);
    known.map_or_else(|| format!("unknown ({kind:#x})"), |(_, name)| (*name).to_owned())
}

const KINDS: &[(u64, &str)] = &[
    (0xEF53, "ext4"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0xF2F5_2010, "f2fs"),
    (0x2FC1_2FC1, "zfs"),
    (0x794C_7630, "overlay"),
    (0x6969, "nfs"),
];

/// The median time of a flush of 4 KiB written over in place.
pub fn flush_time(dir: &Path) -> Duration {
    let mut file = tempfile::tempfile_in(dir).expect("a file");
    file.write_all(&[0; 64 << 10]).expect("writes");
    file.sync_all().expect("flushes");
    let mut times: Vec<Duration> = (0..100u64)
        .map(|round| {
            std::os::unix::fs::FileExt::write_all_at(&file, &[round as u8; 4 << 10], (round % 16) << 12)
                .expect("writes");
            let began = Instant::now();
            file.sync_data().expect("flushes");
            began.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}
