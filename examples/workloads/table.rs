//! The rows as they are printed, and how a workload and its baseline become one.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::bars;

/// A figure with nothing beside it.
pub const NO_BASELINE: &str = "";

pub struct Table {
    json: bool,
    missed: Vec<String>,
    noisy: Vec<String>,
}

/// A workload as it was measured, round by round, each between two halves of its baseline.
#[derive(Default)]
pub struct Rounds {
    ours: Vec<f64>,
    baselines: Vec<f64>,
}

impl Rounds {
    pub fn push(&mut self, before: f64, ours: f64, after: f64) {
        self.ours.push(ours);
        self.baselines.push(f64::midpoint(before, after));
    }

    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.baselines).map(|(ours, baseline)| ours / baseline).collect()
    }
}

/// One line: the figure, and what stands beside it.
pub struct Row<'a> {
    pub workload: &'a str,
    pub value: f64,
    pub unit: &'a str,
    pub baseline: &'a str,
    pub baseline_value: f64,
    pub note: String,
}

impl Row<'_> {
    fn ratio(&self) -> Option<f64> {
        (self.baseline != NO_BASELINE && self.baseline_value > 0.0).then(|| self.value / self.baseline_value)
    }
}

impl Table {
    pub fn new(json: bool) -> Table {
        Table { json, missed: Vec::new(), noisy: Vec::new() }
    }

    pub fn machine(&self, dir: &Path, file_system: &str, flush: Duration) {
        let (flush_us, cores) =
            (flush.as_secs_f64() * 1e6, std::thread::available_parallelism().map_or(0, usize::from));
        if self.json {
            let dir = dir.display().to_string();
            let line = json!({"workload": "machine", "value": flush_us, "unit": "us a flush", "baseline": null,
                "baseline_value": null, "ratio": null, "dir": dir, "file_system": file_system, "cores": cores});
            println!("{line}");
            return;
        }
        println!("{} on {file_system}, a flush of 4 KiB takes {flush_us:.0} us, {cores} cores\n", dir.display());
        println!(
            "{:<38} {:>10} {:<8} {:>10} {:>7} {:>13}  {:<22} {:<4} beside it",
            "workload", "value", "", "baseline", "ratio", "spread", "bar", "met"
        );
    }

    /// The medians of the rounds.
    pub fn rounds(&mut self, workload: &str, unit: &str, rounds: &Rounds, baseline: &str, note: String) {
        let ratios = rounds.ratios();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let (value, baseline_value) = (median(&rounds.ours), median(&rounds.baselines));
        let row = Row { workload, value, unit, baseline, baseline_value, note };
        self.print(&row, Some(median(&ratios)), Some((least, most)), true);
    }

    /// One figure, with a baseline or without.
    pub fn row(&mut self, row: &Row<'_>) {
        self.print(row, row.ratio(), None, true);
    }

    /// The same, not judged where the baseline is beyond the bar itself: then the machine is not quiet enough.
    pub fn row_if_baseline(&mut self, row: &Row<'_>) {
        let judged = bars::of(row.workload).0.iter().all(|bar| bar.is_met(row.baseline_value, None));
        self.print(row, row.ratio(), None, judged);
    }

    /// One figure that needs no baseline: it is the same on every machine, or is one itself.
    pub fn figure(&mut self, workload: &str, value: f64, unit: &str, note: String) {
        self.row(&Row { workload, value, unit, baseline: NO_BASELINE, baseline_value: 0.0, note });
    }

    fn print(&mut self, row: &Row<'_>, ratio: Option<f64>, spread: Option<(f64, f64)>, judged: bool) {
        let (bars, ambition) = bars::of(row.workload);
        let met = |bars: &[bars::Bar]| bars.iter().all(|bar| bar.is_met(row.value, ratio));
        let verdict = match (bars.is_empty(), met(bars)) {
            (true, _) => "",
            (_, false) if judged => "NO",
            (_, false) => "-",
            (_, true) if !ambition.is_empty() && met(ambition) => "yes+",
            (_, true) => "yes",
        };
        let bar = bars.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let has_baseline = row.baseline != NO_BASELINE;
        if verdict == "NO" {
            self.missed.push(row.workload.to_owned());
        }
        if verdict == "-" {
            self.noisy.push(row.workload.to_owned());
        }
        if self.json {
            let line = json!({
                "workload": row.workload,
                "value": row.value,
                "unit": row.unit,
                "baseline": has_baseline.then_some(row.baseline),
                "baseline_value": has_baseline.then_some(row.baseline_value),
                "ratio": ratio,
                "ratio_min": spread.map(|(least, _)| least),
                "ratio_max": spread.map(|(_, most)| most),
                "bar": (!bar.is_empty()).then_some(&bar),
                "met": (!bars.is_empty()).then(|| met(bars)),
                "judged": judged,
                "note": row.note,
            });
            println!("{line}");
            return;
        }
        let baseline = if has_baseline { figure(row.baseline_value) } else { String::new() };
        let ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let spread = spread.map(|(least, most)| format!("{least:.2} - {most:.2}")).unwrap_or_default();
        let beside =
            if row.note.is_empty() { row.baseline.to_owned() } else { format!("{} {}", row.baseline, row.note) };
        println!(
            "{:<38} {:>10} {:<8} {baseline:>10} {ratio:>7} {spread:>13}  {bar:<22} {verdict:<4} {}",
            row.workload,
            figure(row.value),
            row.unit,
            beside.trim(),
        );
    }

    pub fn end(&self) {
        if self.json {
            return;
        }
        println!(
            "\nyes+ is beyond the bar: what it aims at is reached too. A bar without an x is meant for a quiet machine."
        );
        if !self.missed.is_empty() {
            println!("not met: {}", self.missed.join("; "));
        }
        if !self.noisy.is_empty() {
            let rows = self.noisy.join("; ");
            println!("-: not met, and not judged, since the bare writer is beyond the bar as well here: {rows}");
        }
    }
}

/// Three digits that count, with thousands apart.
fn figure(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut spaced = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    spaced
}

pub fn median(all: &[f64]) -> f64 {
    quantile(all, 0.5)
}

pub fn quantile(all: &[f64], part: f64) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    let at = (all.len() as f64 * part) as usize;
    all.get(at.min(all.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
