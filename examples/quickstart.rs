//! The README's quick start: one job of two steps, triggered once by its key and waited for.

use durably::{Durably, Job, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    item: String,
    quantity: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place_order = Job::new("place-order", |step: Step, order: Order| async move {
        let price = step.run("price", || async { Ok(order.quantity * 3) }).await?;
        let receipt = step.run("charge", || async { Ok(format!("{} for {price}", order.item)) }).await?;
        Ok(receipt)
    });
    let durably = Durably::open("orders.redb").await?;
    let orders = durably.register(place_order)?;

    let run = orders.trigger(Order { item: "tea".into(), quantity: 2 }).idempotency_key("order-1").await?;
    println!("run {} was {:?}", run.id(), run.disposition());
    println!("receipt: {}", run.output().await?);

    durably.shutdown().await?;
    Ok(())
}
