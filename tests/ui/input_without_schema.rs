//! An input that serde knows and schemars does not.

use durably::{Job, Step};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Order {
    item: String,
}

fn main() {
    let _ = Job::new("order", |_: Step, order: Order| async move { Ok(order.item) });
}
