//! What a version says of a column beyond its type: enough to add the column to another
//! table later, without asking the source.

use serde::{Deserialize, Serialize};

/// Facts of one column from the source's catalog. Travels as the property `facts` of a row
/// field, so fields only get added, each with a default.
///
/// They are read when capture first sees the version, a moment or (after an outage) much
/// later than the change itself. Where the catalog had moved on so far that the column
/// could not be recognised, a version carries none and `attnum` is 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ColumnFacts {
    /// Default expression as SQL, of a column that is not generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// What rows hold in it that were there before the column was added.
    pub old_rows: OldRows,
    /// Place in the primary key, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_key: Option<i16>,
    /// That primary key is DEFERRABLE: rows may share it for a while, so none is found by it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub key_is_deferrable: bool,
    /// Collation, qualified and quoted, when it is not the type's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collation: Option<String>,
    /// The labels, when the type is an enum, a domain over one, or an array of one.
    #[serde(rename = "enum", skip_serializing_if = "Option::is_none")]
    pub labels: Option<EnumLabels>,
    /// The column is generated at the source, and sent only because the publication was told to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub generated: bool,
}

/// What `ALTER TABLE … ADD COLUMN` put into the rows that were there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldRows {
    /// Not to be known: the table was rewritten, each row perhaps with its own value.
    #[default]
    Unknown,
    /// NULL.
    Null,
    /// What [`ColumnFacts::default`] says, a constant.
    Default,
    /// This text (`pg_attribute.attmissingval`).
    Value(String),
}

/// An enum type and its labels in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnumLabels {
    /// Schema of the type.
    pub schema: String,
    /// Name of the type.
    pub name: String,
    /// Labels in order.
    pub labels: Vec<Label>,
}

/// One label of an enum.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Label {
    /// `pg_enum.oid`; survives a rename.
    pub oid: u32,
    /// As written.
    pub label: String,
}
