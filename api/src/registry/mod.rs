//! The built-in schema registry, read only: the part of the Confluent Schema Registry API that
//! deserialisers use, with its error format and content type.
//! <https://docs.confluent.io/platform/current/schema-registry/develop/api.html>

pub(crate) mod schemas;

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::request::Path;
use crate::state::Api;
use schemas::{RegistryAnswer, RegistryError, Version};

type Result<T> = std::result::Result<RegistryAnswer<T>, RegistryError>;

/// A schema.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RegisteredSchema")]
pub(crate) struct ById {
    /// Avro, as JSON text.
    schema: Arc<str>,
}

/// A version of a subject.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SubjectVersion")]
pub(crate) struct Registered {
    subject: String,
    /// From 1.
    version: u32,
    /// Of the schema.
    id: u32,
    /// Avro, as JSON text.
    schema: Arc<str>,
}

/// `GET /registry/schemas/ids/{id}`.
pub(crate) async fn schema_by_id(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<ById> {
    let unknown = || RegistryError::new(40403, format!("Schema {id} not found"));
    let id: u32 = id.parse().map_err(|_| unknown())?;
    let schema = api.schemas.schema(id).await?;
    Ok(RegistryAnswer(ById { schema }))
}

/// `GET /registry/subjects`.
pub(crate) async fn subjects(State(api): State<Arc<Api>>) -> Result<Vec<String>> {
    Ok(RegistryAnswer(api.schemas.subjects().await?))
}

/// `GET /registry/subjects/{subject}/versions`.
pub(crate) async fn versions(
    State(api): State<Arc<Api>>,
    Path(subject): Path<String>,
) -> Result<Vec<u32>> {
    let versions = api.schemas.versions(&subject).await?;
    let numbers = versions.iter().map(|(version, _, _)| *version);
    Ok(RegistryAnswer(numbers.collect()))
}

/// `GET /registry/subjects/{subject}/versions/{version}`, the version a number or `latest`.
pub(crate) async fn version(
    State(api): State<Arc<Api>>,
    Path((subject, wanted)): Path<(String, String)>,
) -> Result<Registered> {
    let versions = api.schemas.versions(&subject).await?;
    let (version, id, schema) = pick(&versions, &wanted)?;
    let registered = Registered {
        version: *version,
        id: *id,
        schema: Arc::clone(schema),
        subject,
    };
    Ok(RegistryAnswer(registered))
}

fn pick<'a>(
    versions: &'a [Version],
    wanted: &str,
) -> std::result::Result<&'a Version, RegistryError> {
    if wanted == "latest" || wanted == "-1" {
        return versions
            .iter()
            .max_by_key(|(version, _, _)| *version)
            .ok_or_else(|| RegistryError::new(40402, "Version latest not found."));
    }
    let number: u32 = wanted.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
        RegistryError::new(
            42202,
            format!("The specified version '{wanted}' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\""),
        )
    })?;
    versions
        .iter()
        .find(|(version, _, _)| *version == number)
        .ok_or_else(|| RegistryError::new(40402, format!("Version {number} not found.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_picked_as_confluent_does() {
        let versions: Vec<Version> = vec![(1, 7, "a".into()), (2, 9, "b".into())];
        assert_eq!(pick(&versions, "latest").unwrap().1, 9);
        assert_eq!(pick(&versions, "1").unwrap().1, 7);
        assert_eq!(pick(&versions, "3").unwrap_err().code, 40402);
        for bad in ["0", "x", "-2", ""] {
            assert_eq!(pick(&versions, bad).unwrap_err().code, 42202, "{bad}");
        }
    }
}
