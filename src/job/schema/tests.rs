//! What the schema and the decoding refuse, and where they say it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Colour {
    Red,
    Green,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Item {
    #[schemars(range(min = 1, max = 10))]
    qty: u32,
    #[schemars(length(min = 2, max = 5))]
    name: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Order {
    #[schemars(regex(pattern = r"^[A-Z]{3}-\d+$"))]
    code: String,
    colour: Colour,
    items: Vec<Item>,
    #[serde(default)]
    note: String,
    #[serde(default)]
    extra: Option<Item>,
    #[serde(default)]
    counts: BTreeMap<String, u8>,
}

fn good() -> Value {
    json!({"code": "ABC-1", "colour": "red", "items": [{"qty": 1, "name": "ab"}]})
}

/// `good()` with one property set, or one item appended.
fn with(pointer: &str, value: Value) -> Value {
    let mut order = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match order.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        Value::Array(list) => list.push(value),
        _ => panic!("no container at {parent}"),
    }
    order
}

#[cfg(feature = "validate")]
fn without(key: &str) -> Value {
    let mut order = good();
    order.as_object_mut().unwrap().remove(key).unwrap();
    order
}

fn item(qty: i64, name: &str) -> Value {
    json!({"qty": qty, "name": name})
}

#[cfg(feature = "validate")]
#[test]
fn the_first_violation_has_a_path_and_a_rule() {
    let contract = Contract::input_of::<Order>().unwrap();
    assert_eq!(contract.check(&good()), Ok(()));
    let cases = [
        (with("/items/-", item(11, "ab")), "/items/1/qty", "maximum"),
        (with("/items/-", item(0, "ab")), "/items/1/qty", "minimum"),
        (with("/items/-", item(1, "a")), "/items/1/name", "minLength"),
        (with("/items/-", item(1, "abcdef")), "/items/1/name", "maxLength"),
        (with("/code", json!("abc")), "/code", "pattern"),
        (with("/colour", json!("blue")), "/colour", "enum"),
        (with("/items", json!({})), "/items", "type"),
        (with("/note", json!(7)), "/note", "type"),
        (without("code"), "", "required"),
        (with("/items/-", json!({"qty": 1})), "/items/1", "required"),
        (with("/surplus", json!(1)), "", "additionalProperties"),
        (with("/counts", json!({"a/b~c": 256})), "/counts/a~1b~0c", "maximum"),
        (with("/extra", item(11, "ab")), "/extra/qty", "maximum"),
        (with("/extra", json!({"qty": 1})), "/extra", "required"),
        (with("/extra", json!("x")), "/extra", "anyOf"),
        (json!([]), "", "type"),
    ];
    for (value, path, rule) in cases {
        let violation = contract.check(&value).unwrap_err();
        println!("{violation}  [{}]", violation.rule);
        assert_eq!((&*violation.path, &*violation.rule), (path, rule), "{value}");
        assert!(!violation.message.is_empty());
    }
}

#[cfg(feature = "validate")]
#[test]
fn the_first_violation_is_the_same_in_every_contract() {
    let value = json!({"code": 1, "colour": 2, "items": [{}, 3], "z": 1});
    let first = Contract::input_of::<Order>().unwrap().check(&value);
    assert!(first.is_err());
    for _ in 0..20 {
        assert_eq!(Contract::input_of::<Order>().unwrap().check(&value), first);
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum External {
    A(Item),
    B {
        level: u8,
    },
    /// Documented variants become branches of their own.
    C,
}

#[cfg(feature = "validate")]
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Internal {
    A(Item),
    B { level: u8 },
}

#[cfg(feature = "validate")]
#[test]
fn a_union_tells_the_rule_broken_in_the_variant_that_was_meant() {
    let external = Contract::input_of::<External>().unwrap();
    let internal = Contract::input_of::<Internal>().unwrap();
    let cases = [
        (&external, json!({"A": item(11, "ab")}), "/A/qty", "maximum"),
        (&external, json!({"B": {"level": 256}}), "/B/level", "maximum"),
        (&external, json!({"B": {}}), "/B", "required"),
        (&external, json!({"Z": {}}), "", "oneOf"),
        (&external, json!("Z"), "", "oneOf"),
        (&internal, json!({"kind": "A", "qty": 11, "name": "ab"}), "/qty", "maximum"),
        (&internal, json!({"kind": "B", "level": -1}), "/level", "minimum"),
        (&internal, json!({"kind": "B"}), "", "required"),
        (&internal, json!({"kind": "Z"}), "", "oneOf"),
    ];
    for (contract, value, path, rule) in cases {
        let violation = contract.check(&value).unwrap_err();
        println!("{violation}  [{}]", violation.rule);
        assert_eq!((&*violation.path, &*violation.rule), (path, rule), "{value}");
    }
}

#[test]
fn a_default_is_optional_in_the_input_and_required_in_the_output() {
    let input = Contract::input_of::<Order>().unwrap();
    let output = Contract::output_of::<Order>().unwrap();
    let requires = |contract: &Contract, field: &str| {
        let required = contract.schema()["required"].as_array().unwrap();
        required.contains(&json!(field))
    };
    assert!(requires(&input, "code") && requires(&output, "code"));
    assert!(!requires(&input, "note") && requires(&output, "note"));
    #[cfg(feature = "validate")]
    {
        assert_eq!(input.check(&good()), Ok(()));
        assert_eq!(output.check(&good()).unwrap_err().rule, "required");
        let order: Order = decode_value(&good()).unwrap();
        assert_eq!(output.check(&serde_json::to_value(order).unwrap()), Ok(()));
    }
}

#[cfg(not(feature = "validate"))]
#[test]
fn without_the_feature_the_schema_stays_and_everything_passes() {
    let contract = Contract::input_of::<Order>().unwrap();
    assert_eq!(contract.schema()["title"], "Order");
    assert_eq!(contract.check(&json!("nonsense")), Ok(()));
}

#[cfg(feature = "validate")]
mod refused {
    use std::borrow::Cow;
    use std::error::Error as _;

    use schemars::{Schema, SchemaGenerator, json_schema};

    use super::*;

    macro_rules! schema_of {
        ($name:ident, $($schema:tt)+) => {
            struct $name;
            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> { stringify!($name).into() }
                fn json_schema(_: &mut SchemaGenerator) -> Schema { json_schema!($($schema)+) }
            }
        };
    }

    schema_of!(BadPattern, {"properties": {"a": {"type": "string", "pattern": "("}}});
    schema_of!(LookAround, {"type": "string", "pattern": "^(?!a)b"});
    schema_of!(Remote, {"$ref": "https://example.com/schema.json"});
    schema_of!(LocalFile, {"$ref": "file:///etc/passwd"});
    schema_of!(Dangling, {"$ref": "#/$defs/absent"});
    schema_of!(BadKeyword, {"minimum": "one"});

    fn refused<T: JsonSchema>() {
        let error = Contract::input_of::<T>().unwrap_err();
        println!("{error}: {}", error.source().unwrap());
        assert_eq!(error.type_name, type_name::<T>());
        assert!(Contract::output_of::<T>().is_err());
    }

    #[test]
    fn a_schema_that_does_not_compile_is_an_error_with_the_type() {
        refused::<BadPattern>();
        refused::<LookAround>();
        refused::<Remote>();
        refused::<LocalFile>();
        refused::<Dangling>();
        refused::<BadKeyword>();
        refused::<Vec<BadPattern>>();
    }
}

#[test]
fn a_decode_error_has_the_path_with_and_without_validation() {
    let cases = [
        (with("/items/-", item(-1, "ab")), "/items/1/qty"),
        (with("/items/-", json!({"qty": 1})), "/items/1"),
        (with("/counts", json!({"a/b~c": 256})), "/counts/a~1b~0c"),
        (with("/colour", json!("blue")), "/colour"),
        (with("/surplus", json!(1)), "/surplus"),
        (with("/extra", json!({"qty": "x", "name": ""})), "/extra/qty"),
        (json!(3), ""),
    ];
    for (value, path) in cases {
        let bytes = serde_json::to_vec(&value).unwrap();
        for error in [decode::<Order>(&bytes).unwrap_err(), decode_value::<Order>(&value).unwrap_err()] {
            println!("{error}");
            assert_eq!(error.path, path, "{value}");
            assert!(error.expected.ends_with("Order"));
        }
    }
    let number = br#"{"7": 1, "8": 256}"#;
    let error = decode::<BTreeMap<u64, u8>>(number).unwrap_err();
    assert_eq!(error.path, "/8", "{error}");
    let variant = br#"{"B": {"level": 256}}"#;
    assert_eq!(decode::<External>(variant).unwrap_err().path, "/B/level");
    assert!(decode::<Order>(&serde_json::to_vec(&good()).unwrap()).is_ok());
}

#[test]
fn broken_json_and_what_follows_the_value_are_refused() {
    let trailing = decode::<u8>(b"1 2").unwrap_err();
    assert_eq!(trailing.path, "");
    assert!(trailing.message.contains("trailing"), "{trailing}");
    assert_eq!(decode::<Vec<u8>>(b"[1, x]").unwrap_err().path, "/1");
    assert!(decode::<u8>(b"").is_err());
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Nested {
    next: Option<Box<Nested>>,
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let deep = |levels: usize| {
        let mut json = r#"{"next":"#.repeat(levels);
        json.push_str("null");
        json.push_str(&"}".repeat(levels));
        json.into_bytes()
    };
    for levels in [128, 200_000] {
        assert!(decode::<Nested>(&deep(levels)).is_err());
        assert!(decode::<Value>(&deep(levels)).is_err());
    }
    let value: Value = decode(&deep(127)).unwrap();
    assert!(decode_value::<Nested>(&value).is_ok());
    assert_eq!(Contract::input_of::<Nested>().unwrap().check(&value), Ok(()));
    assert!(decode::<Vec<Value>>(&b"[".repeat(1_000_000)).is_err());
}

#[test]
fn messages_and_paths_stay_short() {
    let huge = "é".repeat(1_000_000);
    let values = [
        with("/code", json!(huge)),
        with("/note", json!([huge])),
        with("/colour", json!(huge)),
        with(&format!("/{huge}"), json!(1)),
        with("/counts", json!({huge.as_str(): 256})),
        with("/extra", json!({"qty": huge, "name": huge})),
        json!(huge),
    ];
    for value in &values {
        #[cfg(feature = "validate")]
        {
            let contract = Contract::input_of::<Order>().unwrap();
            let violation = contract.check(value).unwrap_err();
            assert!(violation.message.chars().count() <= validation::VALUE_CHARS_MAX + 100);
            assert!(violation.path.len() <= PATH_BYTES_MAX);
        }
        if let Err(error) = decode_value::<Order>(value) {
            assert!(error.message.chars().count() <= MESSAGE_CHARS_MAX + 1);
            assert!(error.path.len() <= PATH_BYTES_MAX);
        }
    }
    let error = decode::<u8>(&serde_json::to_vec(&huge).unwrap()).unwrap_err();
    assert!(error.message.starts_with("invalid type: string"));
    assert!(error.message.contains("expected u8 at line 1"), "{error}");
    let key = decode_value::<Order>(&values[4]).unwrap_err();
    assert_eq!(key.path, "/counts", "the nearest ancestor that fits");
}

#[test]
fn clipping_keeps_both_ends_and_whole_characters() {
    assert_eq!(clip("short"), "short");
    let exact = "é".repeat(MESSAGE_CHARS_MAX);
    assert_eq!(clip(&exact), exact);
    let long = format!("a{exact}b");
    let clipped = clip(&long);
    assert!(clipped.starts_with("aé") && clipped.ends_with("éb") && clipped.contains('…'));
    assert_eq!(clipped.chars().count(), MESSAGE_CHARS_MAX + 1);
}
