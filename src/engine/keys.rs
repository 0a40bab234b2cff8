//! The concurrency keys of one run.

use std::ops::Deref;
use std::sync::Arc;

use super::KeyName;

/// The keys that a run needs, each once, with the limit it asks for. None and one take no memory of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Keys {
    #[default]
    None,
    One([(KeyName, u32); 1]),
    Several(Arc<[(KeyName, u32)]>),
}

impl Keys {
    /// From the keys as a record has them.
    pub(crate) fn of(keys: &[(String, u32)]) -> Self {
        match keys {
            [] => Keys::None,
            [(key, limit)] => Keys::One([(key.as_str().into(), *limit)]),
            several => Keys::Several(several.iter().map(|(key, limit)| (key.as_str().into(), *limit)).collect()),
        }
    }

    pub(crate) fn one(name: KeyName, limit: u32) -> Self {
        Keys::One([(name, limit)])
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.iter().any(|(own, _)| **own == *name)
    }
}

impl Deref for Keys {
    type Target = [(KeyName, u32)];

    fn deref(&self) -> &Self::Target {
        match self {
            Keys::None => &[],
            Keys::One(key) => key,
            Keys::Several(keys) => keys,
        }
    }
}
