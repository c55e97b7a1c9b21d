//! From what handlers return to the answers in the document.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::answer::JSON;
use crate::auth::Access;
use crate::refusal;
use crate::registry::schemas;
use crate::router::Route;

/// Makes the schemas of one document and keeps those with a name for its components.
pub(super) struct Answers {
    generator: SchemaGenerator,
}

impl Answers {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .for_serialize()
            .with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            });
        Self {
            generator: settings.into_generator(),
        }
    }

    /// The answers of success, by status.
    pub(super) fn of(&mut self, route: &Route) -> Map<String, Value> {
        let mut answers = Map::new();
        for form in (route.forms)() {
            let schema = readable((form.schema)(&mut self.generator));
            let answer = json!({
                "description": meaning(form.status),
                "content": { form.content_type: { "schema": schema } },
            });
            answers.insert(form.status.to_string(), answer);
        }
        answers
    }

    /// An answer that refuses.
    pub(super) fn refusal(&mut self, access: Access, what: &str) -> Value {
        let mut content = json!({ JSON: { "schema": self.schema::<refusal::Refused>() } });
        // Who may not ask at all is told as everywhere, everything else as registries do.
        if access == Access::Registry {
            let schema = self.schema::<schemas::Refused>();
            content[schemas::CONTENT_TYPE] = json!({ "schema": schema });
        }
        json!({ "description": what, "content": content })
    }

    fn schema<T: JsonSchema>(&mut self) -> Value {
        readable(self.generator.subschema_for::<T>())
    }

    /// The schemas that the answers refer to, by name.
    pub(super) fn components(mut self) -> Map<String, Value> {
        let mut components: Vec<(String, Value)> = self
            .generator
            .take_definitions(true)
            .into_iter()
            .filter_map(|(name, schema)| Some((name, readable(schema.try_into().ok()?))))
            .collect();
        components.sort_by(|(one, _), (other, _)| one.cmp(other));
        components.into_iter().collect()
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        201 => "It is made.",
        202 => "It is asked for; the command shows how it goes.",
        503 => "Something that is needed is away.",
        _ => "Done.",
    }
}

/// As programs that read documents expect it: words with a description each become one `enum`,
/// and what documents the code loses its links and line breaks.
fn readable(mut schema: Schema) -> Value {
    Readable.transform(&mut schema);
    schema.to_value()
}

struct Readable;

impl Transform for Readable {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some((words, meanings)) = schema.get("oneOf").and_then(choice) {
            schema.remove("oneOf");
            schema.insert("type".into(), json!("string"));
            schema.insert("enum".into(), json!(words));
            let said = schema.get("description").and_then(Value::as_str);
            let said = plain(said.unwrap_or_default());
            let described = format!("{said}\n\n{}", meanings.join("\n"));
            schema.insert("description".into(), json!(described.trim()));
        } else if let Some(said) = schema.get("description").and_then(Value::as_str) {
            let said = plain(said);
            schema.insert("description".into(), json!(said));
        }
        transform_subschemas(self, schema);
    }
}

fn plain(said: &str) -> String {
    said.replace('\n', " ")
        .replace("[`", "`")
        .replace("`]", "`")
}

/// The words of an enum without fields, and what each means.
fn choice(variants: &Value) -> Option<(Vec<Value>, Vec<String>)> {
    let mut words = Vec::new();
    let mut meanings = Vec::new();
    for variant in variants.as_array()? {
        // Variants without a description of their own stand together.
        match (variant["const"].as_str(), variant["enum"].as_array()) {
            (Some(word), _) => {
                let meaning = variant["description"].as_str().unwrap_or_default();
                meanings.push(format!("* `{word}`: {}", plain(meaning)));
                words.push(json!(word));
            }
            (None, Some(several)) => words.extend(several.iter().cloned()),
            (None, None) => return None,
        }
    }
    Some((words, meanings))
}
