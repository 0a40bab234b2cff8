//! Loss of power, at every operation of the disk, with any part of what was not flushed: nothing answered is lost, nothing is
//! invented (P1, P2, P5, P6).
//!
//! Half of the workloads are words of up to four calls, cut at random; [`words`] cuts such words everywhere. The other half are
//! long lives, one after the other, each beginning with what a loss has left. A quarter of all losses is followed by another
//! one while recovering. A case is a loss.

mod history;
pub mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::simulated;
use super::disk::{Change, SimDisk, apply, torn};
use super::program::{Act, Ledger, Setup, check, check_keys, empty};
use super::several::{Case, side_by_side, until_done};
use super::suite::{Plan, Report, Suite, caught};
use history::{Cutter, History, live};

pub const SUITE: Suite = Suite { name: "powerloss", run, cases: [6_000, 1_000_000, 10_000_000] };

fn run(plan: &Plan) -> Report {
    let (losses, empty) = (AtomicU64::new(0), empty());
    let mut report = side_by_side(&mut until_done(plan, &losses), plan.bug.is_some(), |seed| {
        let mut loss = Loss::new(seed, plan);
        // By the seed, so that a workload is the same where it is the first.
        let is_small = loss.rng.bool();
        let outcome = caught(|| if is_small { small(&mut loss, &empty) } else { long(&mut loss, &empty) });
        losses.fetch_add(loss.losses, Ordering::Relaxed);
        loss.case(if is_small { "small workloads" } else { "long workloads" }, outcome)
    });
    report.cases = report.faults;
    report
}

/// One word, cut at some of its changes.
fn small(loss: &mut Loss, empty: &[u8]) -> Result<(), String> {
    let word = words::random(&mut loss.rng);
    let history = live(&loss.setup, empty.to_vec(), Ledger::default(), &word, false)?.0;
    let mut cutter = Cutter::new(&history);
    for at in 0..=history.changes.len() {
        let pending = cutter.to(at);
        if loss.rng.u32(..4) == 0 || pending.is_empty() {
            let kept = torn(&pending, &mut loss.rng);
            loss.strikes(&cutter.durable, &kept, &history.ledger, at)?;
        }
    }
    Ok(())
}

/// A long life, and those after it.
fn long(loss: &mut Loss, empty: &[u8]) -> Result<(), String> {
    let (mut base, mut ledger) = (empty.to_vec(), Ledger::default());
    for _ in 0..3 {
        let acts: Vec<Act> = (0..loss.rng.usize(20..90)).map(|_| Act::random(&mut loss.rng)).collect();
        let clean = loss.rng.bool();
        let (history, closed) = live(&loss.setup, base, ledger, &acts, clean)?;
        let mut cutter = Cutter::new(&history);
        let mut points: Vec<usize> = (0..30).map(|_| loss.rng.usize(..=history.changes.len())).collect();
        points.sort_unstable();
        let mut last = None;
        for at in points {
            let kept = torn(&cutter.to(at), &mut loss.rng);
            last = Some(loss.strikes(&cutter.durable, &kept, &history.ledger, at)?);
        }
        (base, ledger) = match closed {
            Some(bytes) => recover(&loss.setup, bytes, &history.ledger, usize::MAX - 1)?.0,
            None => last.ok_or("no loss")?,
        };
    }
    Ok(())
}

/// Losses of power over one workload.
struct Loss {
    setup: Setup,
    rng: fastrand::Rng,
    losses: u64,
    nested: u64,
}

/// A file's bytes, and what is known of what is in them.
type Recovered = (Vec<u8>, Ledger);

impl Loss {
    fn new(seed: u64, plan: &Plan) -> Loss {
        let mut rng = fastrand::Rng::with_seed(seed);
        Loss { setup: Setup::random(&mut rng, plan.bug), rng, losses: 0, nested: 0 }
    }

    /// Power is lost; gives what is recovered.
    fn strikes(&mut self, durable: &[u8], kept: &[Change], ledger: &Ledger, at: usize) -> Result<Recovered, String> {
        self.losses += 1;
        let mut image = durable.to_vec();
        kept.iter().for_each(|change| apply(&mut image, change));
        if self.rng.u32(..4) > 0 {
            return Ok(recover(&self.setup, image, ledger, at)?.0);
        }
        let (_, disk) = recover(&self.setup, image.clone(), ledger, at)?;
        self.losses += 1;
        self.nested += 1;
        // Recovering changed the file as well, and that is cut now.
        let history = History { base: image, changes: disk.recorded(), ledger: Ledger::default() };
        let mut cutter = Cutter::new(&history);
        let pending = cutter.to(self.rng.usize(..=history.changes.len()));
        let mut image = std::mem::take(&mut cutter.durable);
        torn(&pending, &mut self.rng).iter().for_each(|change| apply(&mut image, change));
        let recovered = recover(&self.setup, image, ledger, at).map_err(|what| format!("while recovering: {what}"))?;
        Ok(recovered.0)
    }

    fn case(self, kind: &str, outcome: Result<(), String>) -> Case {
        let counts = [(kind, 1), ("losses while recovering", self.nested)];
        let counts = counts.into_iter().map(|(what, count)| (what.to_owned(), count)).collect();
        Case { faults: self.losses, counts, violation: outcome.err() }
    }
}

fn recover(setup: &Setup, image: Vec<u8>, ledger: &Ledger, at: usize) -> Result<(Recovered, Arc<SimDisk>), String> {
    let disk = SimDisk::of(image);
    disk.record();
    let kept = simulated(async {
        let durably = setup.open(&disk, true).await.map_err(|error| format!("can't be opened: {error}"))?;
        let kept = check(&durably, ledger, at).await?;
        check_keys(&durably, &kept).await?;
        Ok::<_, String>(kept)
    })?;
    Ok(((disk.live(), kept), disk))
}
