//! What a world did, as one number: the same seed gives the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    hash: u64,
    lines: u64,
    printed: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<State>>);

impl Trace {
    /// `printed`: each line goes to standard output as well.
    pub fn new(printed: bool) -> Self {
        Trace(Arc::new(Mutex::new(State { hash: 0xcbf2_9ce4_8422_2325, lines: 0, printed })))
    }

    pub fn note(&self, at: Duration, what: std::fmt::Arguments<'_>) {
        let mut state = self.0.lock().expect("nothing panics here");
        let line = format!("{:>12} us  {what}", at.as_micros());
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        state.lines += 1;
        if state.printed {
            println!("{line}");
        }
    }

    pub fn hash(&self) -> u64 {
        self.0.lock().expect("nothing panics here").hash
    }

    pub fn lines(&self) -> u64 {
        self.0.lock().expect("nothing panics here").lines
    }
}
