//! From what readers ask for to JSON schemas.

use serde_json::{Map, Value, json};

use super::operations::{Body, QueryReader};
use crate::request::{Asked, AskedKind, Fields, Query};

/// The schema of the body that `read` reads.
pub(super) fn of_body(read: Body) -> Value {
    let (fields, recording) = Fields::recorder();
    read(fields);
    object(&recording.taken())
}

/// The parameters that `read` reads from a query string.
pub(super) fn of_query(read: QueryReader) -> Vec<Value> {
    let (query, recording) = Query::recorder();
    read(query);
    recording
        .taken()
        .iter()
        .map(|asked| {
            json!({ "name": asked.name, "in": "query", "required": false, "schema": one(&asked.kind) })
        })
        .collect()
}

fn object(asked: &[Asked]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut alternatives = Vec::new();
    for field in asked {
        let mut schema = one(&field.kind);
        if field.required {
            required.push(field.name);
        } else {
            // Null counts as left out.
            schema = nullable(schema);
        }
        if let Some(other) = field.unless {
            alternatives.push(json!({
                "anyOf": [{ "required": [field.name] }, { "required": [other] }],
            }));
        }
        properties.insert(field.name.to_owned(), schema);
    }
    let mut object = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    if !alternatives.is_empty() {
        object["allOf"] = json!(alternatives);
    }
    object
}

fn one(kind: &AskedKind) -> Value {
    match kind {
        AskedKind::Text => json!({ "type": "string" }),
        AskedKind::Secret => json!({ "type": "string", "format": "password", "writeOnly": true }),
        AskedKind::Boolean => json!({ "type": "boolean" }),
        AskedKind::Integer { least, most } => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        AskedKind::Choice(words) => json!({ "type": "string", "enum": words }),
        AskedKind::Texts => {
            json!({ "type": "array", "items": { "type": "string", "minLength": 1 } })
        }
        AskedKind::Object(nested) => object(&nested.taken()),
        AskedKind::Objects(nested) => {
            json!({ "type": "array", "items": object(&nested.taken()) })
        }
    }
}

fn nullable(mut schema: Value) -> Value {
    schema["type"] = json!([schema["type"], "null"]);
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.push(Value::Null);
    }
    schema
}
