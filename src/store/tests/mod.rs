//! The writer run inline: what it decides, what a failing file does to it, and what a kill leaves.

mod deciding;
mod due;
mod failing;
mod recovering;
mod world;
