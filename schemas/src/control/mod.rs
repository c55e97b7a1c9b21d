//! The fixed records beside the change events, one `.avsc` file each.
//!
//! | topic | record |
//! |---|---|
//! | changes | [`GenerationStarted`], [`TableGap`] |
//! | snapshot | [`TableSyncStarted`], [`SnapshotChunk`], [`TableSyncFinished`] |
//! | position | [`PositionRecord`], [`SyncRecord`], [`TableRecord`], [`WishRecord`] |
//!
//! `encode` frames the record with the id its schema has in the registry; `decode`
//! takes the datum after the frame.

mod changes;
mod position;
mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use apache_avro::Schema;
use serde_json::Value as Json;

pub use changes::{GenerationStarted, TableGap};
pub use position::{PositionRecord, SyncRecord, SyncState, TableRecord, WishRecord};
pub use snapshot::{SnapshotChunk, TableSyncFinished, TableSyncStarted};

use crate::{Error, Result};

/// What a schema describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchemaKind {
    /// A table's change event, see [`crate::envelope::Decoder`].
    Envelope,
    /// A table's record key.
    Key,
    /// [`GenerationStarted`].
    GenerationStarted,
    /// [`TableGap`].
    TableGap,
    /// [`TableSyncStarted`].
    TableSyncStarted,
    /// [`SnapshotChunk`].
    SnapshotChunk,
    /// [`TableSyncFinished`].
    TableSyncFinished,
    /// [`PositionRecord`].
    Position,
    /// [`SyncRecord`].
    Sync,
    /// [`TableRecord`].
    Table,
    /// [`WishRecord`].
    Wish,
}

/// Kind, record name and schema text of each fixed record.
const CONTROL: [(SchemaKind, &str, &str); 9] = [
    (
        SchemaKind::GenerationStarted,
        "bunny.event.GenerationStarted",
        include_str!("../../avro/GenerationStarted.avsc"),
    ),
    (
        SchemaKind::TableGap,
        "bunny.event.TableGap",
        include_str!("../../avro/TableGap.avsc"),
    ),
    (
        SchemaKind::TableSyncStarted,
        "bunny.event.TableSyncStarted",
        include_str!("../../avro/TableSyncStarted.avsc"),
    ),
    (
        SchemaKind::SnapshotChunk,
        "bunny.event.SnapshotChunk",
        include_str!("../../avro/SnapshotChunk.avsc"),
    ),
    (
        SchemaKind::TableSyncFinished,
        "bunny.event.TableSyncFinished",
        include_str!("../../avro/TableSyncFinished.avsc"),
    ),
    (
        SchemaKind::Position,
        "bunny.event.Position",
        include_str!("../../avro/Position.avsc"),
    ),
    (
        SchemaKind::Sync,
        "bunny.event.Sync",
        include_str!("../../avro/Sync.avsc"),
    ),
    (
        SchemaKind::Table,
        "bunny.event.Table",
        include_str!("../../avro/Table.avsc"),
    ),
    (
        SchemaKind::Wish,
        "bunny.event.Wish",
        include_str!("../../avro/Wish.avsc"),
    ),
];

impl SchemaKind {
    /// The fixed records.
    pub const CONTROL: [SchemaKind; 9] = [
        SchemaKind::GenerationStarted,
        SchemaKind::TableGap,
        SchemaKind::TableSyncStarted,
        SchemaKind::SnapshotChunk,
        SchemaKind::TableSyncFinished,
        SchemaKind::Position,
        SchemaKind::Sync,
        SchemaKind::Table,
        SchemaKind::Wish,
    ];

    /// Full record name of a fixed record, which is also its subject.
    pub fn subject(self) -> Option<&'static str> {
        self.control().map(|(subject, _)| subject)
    }

    /// Schema of a fixed record as it is registered: the `.avsc` file without
    /// white space.
    pub fn avro_json(self) -> Option<String> {
        let (_, text) = self.control()?;
        let json: Json = serde_json::from_str(text).ok()?;
        Some(json.to_string())
    }

    fn control(self) -> Option<(&'static str, &'static str)> {
        CONTROL
            .iter()
            .find(|(kind, ..)| *kind == self)
            .map(|(_, subject, text)| (*subject, *text))
    }

    /// Tells what a schema from the registry describes. A fixed record of another
    /// layout than this program's is an error: its bytes would be misread.
    pub fn of(schema_json: &str) -> Result<SchemaKind> {
        let json: Json =
            serde_json::from_str(schema_json).map_err(|error| Error::Schema(error.to_string()))?;
        let text = |key| json.get(key).and_then(Json::as_str).unwrap_or_default();
        let full_name = match (text("name"), text("namespace")) {
            (name, "") => name.to_owned(),
            (name, _) if name.contains('.') => name.to_owned(),
            (name, namespace) => format!("{namespace}.{name}"),
        };
        let known = CONTROL.iter().position(|(_, name, _)| *name == full_name);
        if let Some(index) = known {
            let given = canonical_form(schema_json)?;
            return if own_canonical_forms().get(index) == Some(&given) {
                Ok(CONTROL[index].0)
            } else {
                Err(Error::Schema(format!(
                    "{full_name} has another layout than this version's"
                )))
            };
        }
        match full_name.rsplit_once('.') {
            Some((_, "Envelope")) => Ok(SchemaKind::Envelope),
            Some((_, "Key")) => Ok(SchemaKind::Key),
            _ => Err(Error::Schema(format!("record {full_name:?}"))),
        }
    }
}

/// Avro's parsing canonical form: what decides the bytes, without the rest.
pub(crate) fn canonical_form(schema_json: &str) -> Result<String> {
    Schema::parse_str(schema_json)
        .map(|schema| schema.canonical_form())
        .map_err(|error| Error::Schema(error.to_string()))
}

fn own_canonical_forms() -> &'static [String] {
    static FORMS: OnceLock<Vec<String>> = OnceLock::new();
    FORMS.get_or_init(|| {
        CONTROL
            .iter()
            .map(|(_, _, text)| canonical_form(text).unwrap_or_default())
            .collect()
    })
}
