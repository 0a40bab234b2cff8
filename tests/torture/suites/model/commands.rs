//! What bodies are told to do.

use std::time::Duration;

use super::bodies::Command;
use super::case::{Case, STEPS, same};
use super::operation::Kind;

impl Case<'_> {
    pub async fn command(&mut self, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let inside = kind == Kind::StepReturns;
        let Some((number, id)) = self.any_body(random, inside) else { return Ok(()) };
        let body = self.model.bodies[&number].clone();
        let outcome = if random.u8(..3) == 0 { Err(format!("no {}", random.u8(..))) } else { Ok(random.u64(..100)) };
        let unused: Vec<&str> = STEPS.iter().copied().filter(|key| !body.used.contains(*key)).collect();
        let stored = |key: &str| self.model.runs.get(&number).is_some_and(|run| run.steps.contains_key(key));
        let (_, _) = (self.bodies.take_ran(), self.bodies.take_given());
        let (mut ran, mut given) = (Vec::new(), Vec::new());
        match kind {
            Kind::Step | Kind::StepBegins => {
                let begins = kind == Kind::StepBegins;
                let unused = unused.into_iter().filter(|key| !begins || !stored(key));
                let Some(key) = random.choice(unused.collect::<Vec<_>>()) else { return Ok(()) };
                let known = stored(key);
                if begins {
                    self.bodies.tell(id, Command::Begin(key.to_owned()));
                    self.model.step_begins(number, key);
                } else {
                    self.bodies.tell(id, Command::Step(key.to_owned(), outcome.clone()));
                    given.extend(self.model.step(number, key, outcome.clone()).map(|got| (id, key.to_owned(), got)));
                }
                if !body.ended && !known {
                    ran.push((id, key.to_owned()));
                }
                self.count(kind, outcome.is_ok() && !body.ended);
            }
            Kind::StepReturns => {
                let key = body.inside.as_ref().map(|(key, _)| key.clone()).unwrap_or_default();
                self.bodies.tell(id, Command::Settle(outcome.clone()));
                given.extend(self.model.step_returns(number, outcome.clone()).map(|got| (id, key, got)));
                self.count(kind, outcome.is_ok() && !body.ended);
            }
            Kind::Returns => {
                self.bodies.tell(id, Command::Return(7));
                self.model.completes(number, 7);
                self.count(kind, !body.ended);
            }
            Kind::Fails => {
                self.bodies.tell(id, Command::Fail("it does not work".to_owned()));
                self.model.fails(number, "it does not work", None);
                self.count(kind, !body.ended);
            }
            Kind::Propagates => {
                // A step that fails, and its error ends the run.
                let unused = unused.into_iter().filter(|key| !stored(key));
                let Some(key) = random.choice(unused.collect::<Vec<_>>()) else { return Ok(()) };
                if body.ended {
                    return Ok(());
                }
                self.bodies.tell(id, Command::Step(key.to_owned(), Err("no".to_owned())));
                self.bodies.tell(id, Command::Propagate);
                given.extend(self.model.step(number, key, Err("no".to_owned())).map(|got| (id, key.to_owned(), got)));
                ran.push((id, key.to_owned()));
                self.model.fails(number, "no", Some(key));
                self.count(kind, true);
            }
            Kind::Panics => {
                self.bodies.tell(id, Command::Panic);
                self.model.fails(number, "a body panics", None);
                self.count(kind, !body.ended);
            }
            _ => {
                let line = format!("line {}", random.u8(..));
                self.bodies.tell(id, Command::Log(line.clone()));
                self.model.log(number, line);
                self.count(kind, true);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        same!(self.bodies.take_ran(), ran, "steps whose bodies ran");
        same!(self.bodies.take_given(), given, "what the step gave");
        Ok(())
    }
}
