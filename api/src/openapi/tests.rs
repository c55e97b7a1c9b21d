use std::collections::BTreeSet;
use std::path::Path;

use super::*;

/// The document as it is kept in the repository. Run the tests with UPDATE_OPENAPI=1 to write it
/// anew, and look at what has changed.
#[test]
fn the_document_is_the_one_that_was_looked_at() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let now = format!("{:#}\n", document(&routes()));
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == now,
        "docs/openapi.json is not what the handlers are now; run `UPDATE_OPENAPI=1 cargo test -p bunny-api openapi` and look at the difference"
    );
}

#[test]
fn every_route_is_described_once() {
    let mut ids = BTreeSet::new();
    for route in routes() {
        let method = route.method.as_str();
        let said = operation(method, route.path);
        assert!(
            !said.summary.is_empty(),
            "{method} {} has no summary",
            route.path
        );
        assert!(
            ids.insert(operation_id(method, route.path)),
            "{}",
            route.path
        );
    }
}

#[test]
fn bodies_are_what_their_readers_ask_for() {
    let document = document(&routes());
    let schema = |path: &str, method: &str| {
        document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
            .clone()
    };
    let create = schema("/v1/mirrors", "post");
    assert_eq!(
        create["required"],
        json!(["name", "destination_peer", "table_mappings"])
    );
    assert_eq!(
        create["allOf"],
        json!([{"anyOf": [{"required": ["source_peer"]}, {"required": ["source_mirror"]}]}])
    );
    let options: BTreeSet<String> = bunny_catalog::MirrorConfig::field_names()
        .into_iter()
        .collect();
    let documented: BTreeSet<String> = create["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert!(options.is_subset(&documented), "{documented:?}");
    let mapping = &create["properties"]["table_mappings"]["items"];
    assert_eq!(
        mapping["required"],
        json!(["source_table", "destination_table"])
    );
    assert_eq!(
        create["properties"]["apply_mode"]["enum"],
        json!(["eager", "interval", null])
    );
    let login = schema("/v1/auth/login", "post");
    assert_eq!(login["properties"]["password"]["format"], "password");
    assert_eq!(login["required"], json!(["username", "password"]));
    let logs = &document["paths"]["/v1/mirrors/{name}/logs"]["get"]["parameters"];
    let names: Vec<&str> = logs
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["name", "limit", "offset", "search", "level"]);
}

/// Objects without fields that are known: whatever the kind of command or entry needs.
const FREE: [&str; 2] = ["args", "details"];

fn assert_described(schema: &Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            let is_object = fields.get("type").is_some_and(|kind| kind == "object");
            let has_fields = fields.get("properties").is_some();
            let is_free = FREE.iter().any(|name| place.ends_with(name));
            assert!(!is_object || has_fields || is_free, "{place} says nothing");
            let choices = fields.get("oneOf").and_then(Value::as_array);
            let mut choices = choices.into_iter().flatten();
            assert!(
                !choices.any(|choice| choice.get("const").is_some()),
                "{place} is no enum"
            );
            for (name, field) in fields {
                assert_described(field, &format!("{place}/{name}"));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| assert_described(item, place)),
        _ => {}
    }
}

#[test]
fn every_answer_is_described() {
    let document = document(&routes());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        assert_described(schema, name);
        // Two types of one name: the second is numbered.
        assert!(
            !name.ends_with(|last: char| last.is_ascii_digit()),
            "{name}"
        );
    }
    for route in routes() {
        let method = route.method.as_str().to_lowercase();
        let answers = &document["paths"][route.path][&method]["responses"];
        let known = route.path == "/openapi.json";
        for (status, answer) in answers.as_object().unwrap() {
            for (_, content) in answer["content"].as_object().unwrap() {
                let place = format!("{method} {} {status}", route.path);
                assert!(content.get("schema").is_some(), "{place}");
                if !known {
                    assert_described(&content["schema"], &place);
                }
            }
        }
    }
}

#[test]
fn answers_are_what_their_handlers_return() {
    let document = document(&routes());
    let schemas = &document["components"]["schemas"];
    let mirror = &schemas["Mirror"];
    let required = mirror["required"].as_array().unwrap();
    for field in ["source_mirror", "attached_mirrors", "last_lsn", "tables"] {
        assert!(required.contains(&json!(field)), "{field}");
    }
    assert_eq!(
        mirror["properties"]["name"]["examples"],
        json!(["prod_to_staging"])
    );
    assert_eq!(
        mirror["properties"]["error_message"]["type"],
        json!(["string", "null"])
    );
    assert_eq!(
        mirror["properties"]["tables"]["items"]["$ref"],
        "#/components/schemas/MirrorTable"
    );
    let status = &schemas["Status"];
    assert_eq!(
        (&status["type"], &status["enum"][0]),
        (&json!("string"), &json!("SETUP"))
    );
    let table = &schemas["MirrorTable"]["properties"];
    assert_eq!(table["status"]["enum"], json!(bunny_catalog::TABLE_STATES));
    let options = schemas["MirrorConfig"]["properties"].as_object().unwrap();
    for option in bunny_catalog::MirrorConfig::field_names() {
        assert!(options.contains_key(&option), "{option}");
    }
    let answers = |path: &str, method: &str| -> Vec<String> {
        let answers = document["paths"][path][method]["responses"].as_object();
        answers.unwrap().keys().cloned().collect()
    };
    assert!(answers("/ready", "get").starts_with(&["200".into(), "503".into()]));
    assert!(answers("/v1/mirrors", "post").starts_with(&["201".into(), "200".into()]));
    assert!(answers("/v1/mirrors/{name}/pause", "post").starts_with(&["202".into()]));
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    for elsewhere in ["http://", "https://", "//cdn", "src=", "@import"] {
        assert!(!PAGE.contains(elsewhere), "{elsewhere}");
    }
}
