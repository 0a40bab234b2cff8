//! A body without its input, and one that is not async.

use durably::{Job, Step};

fn main() {
    let _ = Job::<u32, u32>::new("no-input", |_: Step| async { Ok(1) });
    let _ = Job::<u32, u32>::new("not-async", |_: Step, input: u32| Ok(input));
}
