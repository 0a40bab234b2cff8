//! Every word of up to three calls, cut at every change with every part of what was not flushed.
//!
//! A case is a word: it begins with a trigger, since without one there is nothing that the others could do anything to. Where
//! more is not flushed than can be enumerated, parts are drawn.

use crate::suites::disk::{Change, subset, torn};
use crate::suites::program::{ALPHABET, Act, Ledger, empty};
use crate::suites::several::{InTurn, side_by_side};
use crate::suites::suite::{Plan, Report, Suite, caught};

use super::Loss;
use super::history::{Cutter, History, live};

pub const SUITE: Suite = Suite { name: "words", run, cases: [2, WORDS as u64 + 1, 3 * WORDS as u64 + 1] };

/// The acts of the alphabet that trigger are the first of it.
const TRIGGERS: usize = 3;
const LETTERS: usize = ALPHABET.len();
const WORDS: usize = TRIGGERS * (1 + LETTERS + LETTERS * LETTERS);
/// More unflushed changes than this are sampled, not enumerated.
const SUBSET_CHANGES_MAX: usize = 12;
const SAMPLES: u64 = 1 << SUBSET_CHANGES_MAX;

/// A word of up to four calls.
pub fn random(rng: &mut fastrand::Rng) -> Vec<Act> {
    let mut word = vec![ALPHABET[rng.usize(..TRIGGERS)]];
    (0..rng.usize(..=3)).for_each(|_| word.push(ALPHABET[rng.usize(..LETTERS)]));
    word
}

/// The word of a number: a trigger, then up to two acts.
fn word(number: usize) -> Vec<Act> {
    let (first, rest) = (ALPHABET[number % TRIGGERS], number / TRIGGERS);
    match rest.checked_sub(1) {
        None => vec![first],
        Some(rest) if rest < LETTERS => vec![first, ALPHABET[rest]],
        Some(rest) => vec![first, ALPHABET[(rest - LETTERS) % LETTERS], ALPHABET[(rest - LETTERS) / LETTERS]],
    }
}

fn run(plan: &Plan) -> Report {
    let (mut seeds, empty) = (InTurn::new(plan, WORDS), empty());
    side_by_side(&mut || seeds.next(), plan.bug.is_some(), |seed| {
        let (mut loss, word) = (Loss::new(seed, plan), word(InTurn::kind_of(seed, WORDS)));
        let mut points = 0;
        let outcome = caught(|| {
            let history = live(&loss.setup, empty.clone(), Ledger::default(), &word, false)?.0;
            points = history.changes.len() as u64 + 1;
            everywhere(&mut loss, &history)
        });
        let mut case = loss.case("words", outcome.map_err(|what| format!("{what}; by {word:?}")));
        case.counts.insert("crash points".to_owned(), points);
        case
    })
}

fn everywhere(loss: &mut Loss, history: &History) -> Result<(), String> {
    let mut cutter = Cutter::new(history);
    for at in 0..=history.changes.len() {
        let pending = cutter.to(at);
        // Without the newest change this is what was there before it, unless something was asked or answered just then.
        let known = at > 0 && !pending.is_empty() && !history.ledger.says_at(at);
        if pending.len() > SUBSET_CHANGES_MAX {
            for _ in 0..SAMPLES {
                let kept = torn(&pending, &mut loss.rng);
                loss.strikes(&cutter.durable, &kept, &history.ledger, at)?;
            }
            continue;
        }
        let newest = if known { 1 << (pending.len() - 1) } else { 0 };
        for which in newest..1 << pending.len() {
            let kept: Vec<Change> = subset(&pending, which).collect();
            loss.strikes(&cutter.durable, &kept, &history.ledger, at)?;
        }
    }
    Ok(())
}
