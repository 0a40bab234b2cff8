//! A body that keeps something that can't cross threads over an await.

use std::rc::Rc;

use durably::{Job, Step};

fn main() {
    let _ = Job::new("not-send", |step: Step, input: u32| async move {
        let shared = Rc::new(input);
        step.run("one", || async { Ok(1_u32) }).await?;
        Ok(*shared)
    });
}
