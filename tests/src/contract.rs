//! The API's OpenAPI document as an oracle: every answer has a form that the document says, with
//! not a field more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};
use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

use crate::services::repository;

/// An answer that is looked at.
pub struct Answered<'a> {
    /// In lower case.
    pub method: &'a str,
    /// As it was asked for, with its query string.
    pub path: &'a str,
    pub status: u16,
    pub content_type: &'a str,
    pub body: &'a Value,
}

/// A document, and what was made of its schemas so far.
pub struct Contract {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Contract {
    /// The document in the repository, which the API's own tests compare with what is served.
    pub fn kept() -> Result<&'static Contract> {
        static KEPT: OnceLock<Contract> = OnceLock::new();
        if let Some(kept) = KEPT.get() {
            return Ok(kept);
        }
        let path = repository().join("docs/openapi.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let document = serde_json::from_str(&text)?;
        Ok(KEPT.get_or_init(|| Contract::new(document)))
    }

    pub fn new(mut document: Value) -> Contract {
        close(&mut document);
        Contract {
            document,
            validators: Mutex::default(),
        }
    }

    /// The templates of all paths that can be read with GET.
    pub fn readable_paths(&self) -> Vec<String> {
        let paths = self.document["paths"].as_object().into_iter().flatten();
        paths
            .filter(|(_, operations)| operations.get("get").is_some())
            .map(|(template, _)| template.clone())
            .collect()
    }

    /// Refuses an answer that the document does not say.
    pub fn check(&self, answered: &Answered<'_>) -> Result<()> {
        let Answered { method, path, .. } = answered;
        let place = self.place(answered)?;
        let schema = self.document.pointer(&place);
        let schema = schema.with_context(|| {
            let Answered {
                status,
                content_type,
                ..
            } = answered;
            format!("{method} {path}: {status} as {content_type:?} is not documented: {place}")
        })?;
        let validator = self.validator(&place, schema)?;
        let faults: Vec<String> = validator
            .iter_errors(answered.body)
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .collect();
        ensure!(
            faults.is_empty(),
            "{method} {path} answered {} otherwise than documented: {}\n{}",
            answered.status,
            faults.join("; "),
            answered.body
        );
        Ok(())
    }

    /// Where in the document the schema of an answer is.
    fn place(&self, answered: &Answered<'_>) -> Result<String> {
        let refused = "/components/schemas/Error".to_owned();
        let Some(template) = self.template(answered.path) else {
            return Ok(refused);
        };
        let Some(operation) = self.document["paths"][template].get(answered.method) else {
            return Ok(refused);
        };
        let status = answered.status.to_string();
        let status = match operation["responses"].get(&status) {
            Some(_) => status,
            None if answered.status >= 400 => "default".to_owned(),
            None => status,
        };
        let media_type = answered.content_type.split(';').next().unwrap_or_default();
        Ok(format!(
            "/paths/{}/{}/responses/{status}/content/{}/schema",
            escaped(template),
            answered.method,
            escaped(media_type)
        ))
    }

    /// The path of the document that fits best: the one with the fewest placeholders.
    fn template(&self, path: &str) -> Option<&str> {
        let path = path.split('?').next().unwrap_or(path);
        let templates = self.document["paths"].as_object()?.keys();
        templates
            .filter(|template| fits(template, path))
            .min_by_key(|template| template.matches('{').count())
            .map(String::as_str)
    }

    fn validator(&self, place: &str, schema: &Value) -> Result<Arc<Validator>> {
        let mut validators = self
            .validators
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(validator) = validators.get(place) {
            return Ok(Arc::clone(validator));
        }
        let mut root = schema.clone();
        root["components"] = self.document["components"].clone();
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .build(&root)
            .map_err(|error| anyhow::anyhow!("the schema at {place}: {error}"))?;
        let validator = Arc::new(validator);
        validators.insert(place.to_owned(), Arc::clone(&validator));
        Ok(validator)
    }
}

/// Lets no object have a field that its schema does not name. The document itself leaves answers
/// open, so that clients made from it bear the fields of later releases.
pub fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            if fields.get("properties").is_some_and(Value::is_object) {
                fields.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted.starts_with('{') || wanted == found => {}
            _ => return false,
        }
    }
}

/// One step of a JSON pointer (RFC 6901).
fn escaped(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, status: u16, body: &Value) -> Result<()> {
        Contract::kept().unwrap().check(&Answered {
            method: "get",
            path,
            status,
            content_type: "application/json; charset=utf-8",
            body,
        })
    }

    #[test]
    fn an_answer_is_as_documented_or_refused() {
        let ready = json!({"status": "ready", "catalog": "ok", "kafka": "ok"});
        check("/ready", 200, &ready).unwrap();
        for (field, value) in [
            ("undocumented", json!(1)),
            ("kafka", json!("gone")),
            ("kafka", json!(null)),
        ] {
            let mut other = ready.clone();
            other[field] = value;
            let error = check("/ready", 200, &other).unwrap_err().to_string();
            assert!(error.contains("otherwise than documented"), "{error}");
        }
        let error = check("/ready", 200, &json!({"status": "ready"})).unwrap_err();
        assert!(error.to_string().contains("catalog"), "{error}");
        let error = check("/ready", 201, &ready).unwrap_err();
        assert!(error.to_string().contains("is not documented"), "{error}");
    }

    #[test]
    fn fields_within_fields_are_looked_at() {
        let mut tables = json!([{
            "source_table": "public.users", "destination_table": "public.users",
            "partition_key": null, "exclude_columns": [], "mode": "all", "status": "LIVE",
            "rows_synced": 1, "rows_inserted": 1, "rows_updated": 0, "rows_deleted": 0,
            "snapshot": null, "last_synced_at": "2026-01-24T10:30:00Z", "error_message": null,
            "behind": {"lsn": "16/B374D848", "lag_bytes": 8, "lag_seconds": 1.5, "lag_events": 2},
            "replay": null, "replayable_from": {"lsn": "16/B374D848", "time": "2026-01-24T10:30:00Z"},
        }]);
        let path = "/v1/mirrors/m/tables?x=1";
        check(path, 200, &tables).unwrap();
        tables[0]["replayable_from"]["lsn"] = json!("yesterday");
        check(path, 200, &tables).unwrap_err();
        tables[0]["replayable_from"] = json!({"lsn": "0/1", "time": "noon"});
        check(path, 200, &tables).unwrap_err();
        tables[0]["replayable_from"] = json!(null);
        tables[0]["behind"]["lag_events"] = json!("many");
        check(path, 200, &tables).unwrap_err();
        tables[0]["behind"] = json!(null);
        check(path, 200, &tables).unwrap();
        tables[0]["status"] = json!("SLEEPING");
        check(path, 200, &tables).unwrap_err();
    }

    #[test]
    fn a_refusal_has_one_form_everywhere() {
        let refusal = json!({"error": "what is wrong"});
        for path in ["/v1/mirrors/m", "/v1/nowhere", "/ready"] {
            check(path, 418, &refusal).unwrap();
            check(path, 418, &json!({"message": "no"})).unwrap_err();
        }
    }
}
