//! A step whose body gives an error of its own type: `Ok(..?)` turns it into the step's.

use durably::{Job, Step};

async fn fetch() -> Result<u32, std::io::Error> {
    Ok(1)
}

fn main() {
    let _ = Job::new("job", |step: Step, (): ()| async move {
        let fetched: u32 = step.run("fetch", || fetch()).await?;
        Ok(fetched)
    });
}
