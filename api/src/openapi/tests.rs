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
        json!(["name", "source_peer", "destination_peer", "table_mappings"])
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

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    for elsewhere in ["http://", "https://", "//cdn", "src=", "@import"] {
        assert!(!PAGE.contains(elsewhere), "{elsewhere}");
    }
}
