//! Schema ids, kept in the compacted topic `<prefix>.schemas`.

use std::sync::Arc;

use crate::control::SchemaKind;
use crate::envelope::TableSchema;
use crate::kafka::KafkaConfig;
use crate::topics::Topics;
use crate::{Error, Result};

/// The registry. Clones share one cache and one allocator.
#[derive(Clone)]
pub struct Registry {
    _topic: Arc<str>,
}

impl Registry {
    /// Creates or checks the topic and reads it.
    pub async fn open(_kafka: KafkaConfig, topics: &Topics) -> Result<Registry> {
        Ok(Registry {
            _topic: topics.schemas().into(),
        })
    }

    /// Id of `schema_json` under `subject`, allocated when it has none.
    pub async fn register(&self, subject: &str, schema_json: &str) -> Result<u32> {
        let _ = (subject, schema_json);
        Err(Error::UnknownId(0))
    }

    /// Ids of a table version: envelope and key.
    pub async fn register_table(&self, schema: &TableSchema) -> Result<(u32, u32)> {
        let value_id = self
            .register(&schema.value_subject(), &schema.value_avro_json())
            .await?;
        let key_id = self
            .register(&schema.key_subject(), &schema.key_avro_json())
            .await?;
        Ok((value_id, key_id))
    }

    /// Id of a fixed record's schema.
    pub async fn register_control(&self, kind: SchemaKind) -> Result<u32> {
        let _ = kind;
        Err(Error::UnknownId(0))
    }

    /// Schema with this id.
    pub async fn schema(&self, id: u32) -> Result<Arc<str>> {
        Err(Error::UnknownId(id))
    }

    /// All subjects, sorted.
    pub async fn subjects(&self) -> Vec<String> {
        Vec::new()
    }

    /// Versions of a subject: version from 1, id, schema.
    pub async fn versions(&self, subject: &str) -> Vec<(u32, u32, Arc<str>)> {
        let _ = subject;
        Vec::new()
    }

    /// Reads what has been added to the topic.
    pub async fn refresh(&self) -> Result<()> {
        Ok(())
    }
}
