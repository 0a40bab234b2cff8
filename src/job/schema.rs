//! JSON Schemas of a job's input and output, and decoding that says where it failed.
//!
//! Gets a type, keeps its schema and the compiled check. Everything a rejection says is bounded: a value from outside is
//! shown shortened, however large it is.
//!
//! Invariant: compiling a schema never leaves the process; a remote `$ref` is an error.

use std::any::type_name;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// Characters of a whole message; the rest comes from the schema (patterns, allowed values) or from serde.
const MESSAGE_CHARS_MAX: usize = 400;
/// Bytes of a path. Keys of maps come from outside too, so a longer path is cut to the nearest ancestor that fits.
const PATH_BYTES_MAX: usize = 512;

/// One side of a job's contract: the JSON Schema of a type and the check of values against it.
#[derive(Debug)]
pub(crate) struct Contract {
    /// Draft 2020-12, as given to HTTP clients and the dashboard.
    schema: Value,
    /// The same schema, compiled once.
    #[cfg(feature = "validate")]
    validator: jsonschema::Validator,
}

/// The schema of a job's type does not compile, so the job cannot be registered.
#[derive(Debug, thiserror::Error)]
#[error("the schema of {type_name} does not compile at \"{path}\"")]
#[cfg_attr(not(feature = "validate"), allow(dead_code, reason = "never constructed where nothing is compiled"))]
pub(crate) struct ContractError {
    /// The Rust type.
    pub(crate) type_name: &'static str,
    /// JSON pointer into the schema, empty for the root.
    pub(crate) path: String,
    /// What the compiler says.
    #[source]
    pub(crate) source: Box<dyn std::error::Error + Send + Sync>,
}

/// The first rule of a schema that a value breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at \"{path}\": {message}")]
pub(crate) struct Violation {
    /// JSON pointer to the offending value, empty for the root. At most 512 bytes.
    pub(crate) path: String,
    /// The schema's keyword, such as `maximum`, `minLength` or `required`.
    pub(crate) rule: String,
    /// What is wrong, with the offending value shortened.
    pub(crate) message: String,
}

/// JSON that is not a value of the expected type.
///
/// Holds serde's message, not its error: that one repeats the offending value whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, at \"{path}\": {message}")]
pub(crate) struct DecodeError {
    /// JSON pointer to the offending place, empty for the root or where the JSON itself is broken there. At most 512 bytes.
    pub(crate) path: String,
    /// What is wrong, shortened.
    pub(crate) message: String,
    /// The Rust type that was asked for.
    pub(crate) expected: &'static str,
}

impl Contract {
    /// What `T` accepts when it is deserialized: a field with a serde default is not required.
    ///
    /// # Errors
    ///
    /// The schema does not compile: a pattern that is no linear-time regular expression, a `$ref` out of the schema.
    pub(crate) fn input_of<T: JsonSchema>() -> Result<Self, ContractError> {
        Self::of::<T>(SchemaSettings::draft2020_12().for_deserialize())
    }

    /// What `T` produces when it is serialized: every field that is always written is required.
    ///
    /// # Errors
    ///
    /// As for [`Contract::input_of`].
    pub(crate) fn output_of<T: JsonSchema>() -> Result<Self, ContractError> {
        Self::of::<T>(SchemaSettings::draft2020_12().for_serialize())
    }

    /// The JSON Schema, draft 2020-12.
    pub(crate) fn schema(&self) -> &Value {
        &self.schema
    }

    /// Generates and compiles.
    fn of<T: JsonSchema>(settings: SchemaSettings) -> Result<Self, ContractError> {
        let schema = settings.into_generator().into_root_schema_for::<T>().to_value();
        Ok(Self {
            #[cfg(feature = "validate")]
            validator: validation::compile(&schema, type_name::<T>())?,
            schema,
        })
    }

    /// Tells the first violation; the same one each time for the same value.
    ///
    /// `format` is an annotation, as the draft has it: the typed decoding behind it is what refuses a bad date.
    /// Without the feature `validate` everything passes.
    ///
    /// # Errors
    ///
    /// The value breaks the schema.
    #[cfg(feature = "validate")]
    pub(crate) fn check(&self, value: &Value) -> Result<(), Violation> {
        self.validator.validate(value).map_err(|error| validation::violation(&error))
    }

    /// Passes everything: the feature `validate` is off.
    ///
    /// # Errors
    ///
    /// None.
    #[cfg(not(feature = "validate"))]
    pub(crate) fn check(&self, _value: &Value) -> Result<(), Violation> {
        Ok(())
    }
}

/// Decodes JSON. Nesting over serde_json's 128 levels is an error, not a stack overflow.
///
/// # Errors
///
/// The bytes are no JSON or no `T`. Only then is the input read a second time, to find the path.
pub(crate) fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(json).map_err(|error| {
        let mut tracked = serde_json::Deserializer::from_slice(json);
        DecodeError::of::<T, _>(&error, serde_path_to_error::deserialize(&mut tracked))
    })
}

/// Decodes a value that is already parsed, without copying it.
///
/// # Errors
///
/// The value is no `T`.
pub(crate) fn decode_value<T: DeserializeOwned>(value: &Value) -> Result<T, DecodeError> {
    T::deserialize(value).map_err(|error| DecodeError::of::<T, _>(&error, serde_path_to_error::deserialize(value)))
}

impl DecodeError {
    /// Joins the fast decode's error with the path from the slow one.
    fn of<T, E>(error: &serde_json::Error, tracked: Result<T, serde_path_to_error::Error<E>>) -> Self {
        Self {
            // Only what follows the value can be wrong where the slow decode, which stops at its end, succeeds.
            path: tracked.map_or_else(|tracked| pointer(tracked.path()), |_| String::new()),
            message: clip(&error.to_string()),
            expected: type_name::<T>(),
        }
    }
}

/// Renders a path as a JSON pointer (RFC 6901).
fn pointer(path: &Path) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("/{index}")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                text.push('/');
                text.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            // A key serde could not name: its parent is the nearest place that can be pointed at.
            Segment::Unknown => break,
        }
    }
    nearest(text)
}

/// Cuts a pointer to the nearest ancestor within the limit.
fn nearest(mut pointer: String) -> String {
    if pointer.len() > PATH_BYTES_MAX {
        let within = &pointer.as_bytes()[..=PATH_BYTES_MAX];
        let parent = within.iter().rposition(|byte| *byte == b'/');
        pointer.truncate(parent.unwrap_or(0));
    }
    pointer
}

/// Cuts the middle out of a long message: the end often says what was expected, and on which line.
fn clip(message: &str) -> String {
    let tail_chars = MESSAGE_CHARS_MAX / 2;
    let head = message.char_indices().nth(MESSAGE_CHARS_MAX - tail_chars);
    let tail = message.char_indices().nth_back(tail_chars - 1);
    match (head, tail) {
        (Some((head, _)), Some((tail, _))) if head < tail => {
            format!("{}…{}", &message[..head], &message[tail..])
        }
        _ => message.to_owned(),
    }
}

/// What talks to the validator.
#[cfg(feature = "validate")]
mod validation {
    use std::fmt::{self, Write as _};

    use jsonschema::error::ValidationErrorKind as Kind;
    use jsonschema::{PatternOptions, ValidationError, Validator};
    use serde_json::Value;

    use super::{ContractError, Violation, clip, nearest};

    /// Characters of an offending value shown in a message.
    pub(super) const VALUE_CHARS_MAX: usize = 120;

    /// Compiles a schema of the type `type_name`.
    pub(super) fn compile(schema: &Value, type_name: &'static str) -> Result<Validator, ContractError> {
        jsonschema::options()
            .offline()
            // Input comes from outside: matching it must take linear time, so no look-around and no back-references.
            .with_pattern_options(PatternOptions::regex())
            .build(schema)
            .map_err(|error| ContractError {
                type_name,
                path: error.instance_path().to_string(),
                source: Box::new(error),
            })
    }

    /// Describes a validator's error.
    pub(super) fn violation(error: &ValidationError<'_>) -> Violation {
        if let Some(inner) = meant(error) {
            return violation(inner);
        }
        let (rule, message) = match error.kind() {
            Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
                let names: Vec<String> = unexpected.iter().take(3).map(Shortened::of).collect();
                let message = format!("unexpected properties: {}", names.join(", "));
                (error.kind().keyword(), message)
            }
            // The keyword whose schema is `false`, such as `additionalProperties` of a type without fields.
            Kind::FalseSchema => {
                let place = error.schema_path().as_str();
                let keyword = place.rsplit('/').next().unwrap_or(place);
                (keyword, "no value is allowed here".to_owned())
            }
            kind => {
                let shown = Shortened::of(error.instance().as_ref());
                (kind.keyword(), error.masked_with(shown).to_string())
            }
        };
        Violation { path: nearest(error.instance_path().to_string()), rule: rule.to_owned(), message: clip(&message) }
    }

    /// The error in the one branch of a union that the value is meant for, where that is clear.
    ///
    /// An optional struct and an enum are unions, and "matches none of them" would hide the rule that was broken.
    fn meant<'e>(error: &'e ValidationError<'_>) -> Option<&'e ValidationError<'static>> {
        let (Kind::AnyOf { context } | Kind::OneOfNotValid { context }) = error.kind() else {
            return None;
        };
        let union = error.instance_path().as_str();
        let of_this_type = |branch: &&Vec<ValidationError<'static>>| {
            !branch.iter().any(|inner| {
                let path = inner.instance_path().as_str();
                let is_tag = path.rsplit_once('/').is_some_and(|(at, _)| at == union);
                match inner.kind() {
                    Kind::Type { .. } | Kind::Enum { .. } => path == union,
                    Kind::Constant { .. } => path == union || is_tag,
                    _ => false,
                }
            })
        };
        // An externally tagged variant names its tag as the one property that is required and allowed.
        let with_this_tag = |branch: &&Vec<ValidationError<'static>>| {
            !branch
                .iter()
                .any(|inner| inner.instance_path().as_str() == union && matches!(inner.kind(), Kind::Required { .. }))
        };
        let candidates: Vec<_> = context.iter().filter(of_this_type).collect();
        let tagged: Vec<_> = candidates.iter().copied().filter(with_this_tag).collect();
        match (&candidates[..], &tagged[..]) {
            ([only], _) | (_, [only]) => only.first(),
            _ => None,
        }
    }

    /// Text that takes a number of characters and then refuses, so a huge value is never rendered whole.
    struct Shortened {
        /// What has been taken.
        text: String,
        /// Characters it still takes.
        left: usize,
    }

    impl Shortened {
        /// The start of what `value` displays.
        fn of(value: &impl fmt::Display) -> String {
            let mut shortened = Self { text: String::new(), left: VALUE_CHARS_MAX };
            if write!(shortened, "{value}").is_err() {
                shortened.text.push('…');
            }
            shortened.text
        }
    }

    impl fmt::Write for Shortened {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            match text.char_indices().nth(self.left) {
                Some((end, _)) => {
                    self.text.push_str(&text[..end]);
                    self.left = 0;
                    Err(fmt::Error)
                }
                None => {
                    self.text.push_str(text);
                    self.left -= text.chars().count();
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
