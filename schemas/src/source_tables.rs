//! Definitions of source tables at one position of the stream, as capture hands them to apply
//! for a schema sync. Plain data that travels as JSON, so fields only get added.

use bunny_postgres::{TableDefinition, TableName};
use serde::{Deserialize, Serialize};

use crate::envelope::{ColumnFacts, ColumnSchema};

/// What was found of a mirror's source tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTables {
    /// Those that could be read.
    pub tables: Vec<SourceTable>,
    /// The others, each with the reason.
    pub unreadable: Vec<(TableName, String)>,
}

/// One table at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTable {
    /// Its definition with its objects; sizes and states of sequences are left out.
    pub definition: TableDefinition,
    /// The columns that the stream carries (not the excluded and not the generated ones), by
    /// name, with what a version of the table would say of them.
    pub published: Vec<(String, ColumnFacts)>,
}

impl SourceTable {
    /// The table's name at the source.
    pub fn name(&self) -> &TableName {
        &self.definition.name
    }

    /// The table as a version of the stream describes it, in attnum order.
    pub fn columns(&self) -> Vec<ColumnSchema> {
        let is_key = |name: &String| self.definition.identity_key.contains(name);
        self.definition
            .columns
            .iter()
            .filter_map(|column| {
                let mut published = self.published.iter();
                let (_, facts) = published.find(|(name, _)| *name == column.name)?;
                Some(ColumnSchema {
                    name: column.name.clone(),
                    attnum: column.attnum,
                    type_oid: column.type_oid,
                    type_name: column.type_name.clone(),
                    typmod: column.typmod,
                    not_null: column.not_null,
                    key: is_key(&column.name),
                    facts: Some(facts.clone()),
                })
            })
            .collect()
    }

    /// Names of the columns that do not leave the source.
    pub fn excluded(&self) -> Vec<String> {
        let is_published = |name: &String| self.published.iter().any(|(one, _)| one == name);
        self.definition
            .columns
            .iter()
            .filter(|column| column.generated.is_none() && !is_published(&column.name))
            .map(|column| column.name.clone())
            .collect()
    }
}
