//! Registration: which definitions there are, by name.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Definition, Job, JobHandle, Payload};
use crate::durably::Core;
use crate::error::Error;
use crate::quietly::quietly;
use crate::store::op::{Admitted, JobSpec, Op};

/// What can be registered: a job, or a tuple of up to eight.
pub trait Register: sealed::Sealed {
    /// The handles it gives: one a job.
    type Handles;

    #[doc(hidden)]
    fn definitions(&self, definitions: &mut Vec<sealed::Erased>);

    #[doc(hidden)]
    fn handles(self, maker: &mut sealed::Maker) -> Self::Handles;
}

mod sealed {
    use super::{Arc, Core, Definition};

    pub trait Sealed {}

    /// A definition on its way into the registry.
    #[derive(Debug)]
    pub struct Erased(pub(super) Arc<Definition>);

    /// Makes handles for what has been registered.
    pub struct Maker(pub(super) Arc<Core>);

    impl std::fmt::Debug for Maker {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Maker")
        }
    }
}
use sealed::{Erased, Maker};

impl std::fmt::Debug for Definition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Definition").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<I: Payload, O: Payload> sealed::Sealed for Job<I, O> {}

impl<I: Payload, O: Payload> Register for Job<I, O> {
    type Handles = JobHandle<I, O>;

    fn definitions(&self, definitions: &mut Vec<Erased>) {
        definitions.push(Erased(self.definition.clone()));
    }

    fn handles(self, maker: &mut Maker) -> JobHandle<I, O> {
        JobHandle { core: maker.0.clone(), definition: self.definition, types: PhantomData }
    }
}

macro_rules! tuples {
    ($(($($name:ident $at:tt),+))+) => {$(
        impl<$($name: Register),+> sealed::Sealed for ($($name,)+) {}

        impl<$($name: Register),+> Register for ($($name,)+) {
            type Handles = ($($name::Handles,)+);

            fn definitions(&self, definitions: &mut Vec<Erased>) {
                $(self.$at.definitions(definitions);)+
            }

            fn handles(self, maker: &mut Maker) -> Self::Handles {
                ($(self.$at.handles(maker),)+)
            }
        }
    )+};
}
tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
}

/// The registered definitions, by name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    by_name: Mutex<BTreeMap<Arc<str>, Arc<Definition>>>,
}

impl Registry {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Definition>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn all(&self) -> Vec<Arc<Definition>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Lets go of all of them at the end: their bodies may hold handles, which hold the runtime.
    pub(crate) fn close(&self) {
        let definitions = std::mem::take(&mut *self.by_name.lock().unwrap_or_else(PoisonError::into_inner));
        for definition in definitions.into_values() {
            quietly("what a job's body holds", || drop(definition));
        }
    }

    /// Takes all of them up or none.
    fn add(&self, definitions: &[Erased]) -> Result<(), Error> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let mut added: BTreeMap<Arc<str>, Arc<Definition>> = BTreeMap::new();
        for Erased(definition) in definitions {
            definition.validate()?;
            match by_name.get(&definition.name).or_else(|| added.get(&definition.name)) {
                Some(known) if Arc::ptr_eq(known, definition) => {}
                Some(_) => return Err(Error::JobAlreadyRegistered { name: definition.name.to_string() }),
                None => drop(added.insert(definition.name.clone(), definition.clone())),
            }
        }
        by_name.append(&mut added);
        Ok(())
    }
}

/// Registers jobs and lets their runs start.
pub(crate) fn register<R: Register>(core: &Arc<Core>, jobs: R) -> Result<R::Handles, Error> {
    let mut definitions = Vec::new();
    jobs.definitions(&mut definitions);
    add(core, &definitions)?;
    Ok(jobs.handles(&mut Maker(core.clone())))
}

/// Registers what another runtime had registered.
#[cfg(feature = "testing")]
pub(crate) fn register_again(core: &Arc<Core>, definitions: Vec<Arc<Definition>>) -> Result<(), Error> {
    add(core, &definitions.into_iter().map(Erased).collect::<Vec<_>>())
}

fn add(core: &Core, definitions: &[Erased]) -> Result<(), Error> {
    core.registry.add(definitions)?;
    let specs: Vec<JobSpec> = definitions
        .iter()
        .map(|Erased(definition)| JobSpec { name: definition.name.clone(), terms: definition.terms() })
        .collect();
    // Nobody waits for the commit: the writer has this before any trigger of the jobs.
    drop(core.store.submit(Op::Register, specs, Admitted::default()));
    Ok(())
}
