//! What belongs to a table beside its columns and rows: the objects it stands on (types,
//! extensions, sequences) and those that stand on it (indexes, constraints, comments).
//!
//! Expressions and definitions are the server's own (`pg_get_indexdef`,
//! `pg_get_constraintdef`, `pg_get_expr`), qualified, and hold no name of the table
//! itself, so that whoever reads them may give the table another name. Everything is
//! plain data that travels as JSON: fields only get added.

mod questions;

pub use questions::table_objects;

use serde::{Deserialize, Serialize};

use crate::TableName;

/// The objects of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableObjects {
    /// Extensions that own anything the table, its indexes or its types use.
    pub extensions: Vec<Extension>,
    /// Collations that the table, its indexes or its types use: not built in, not an extension's.
    pub collations: Vec<CollationDefinition>,
    /// Types the table uses that can be created: not built in, not an extension's. Each
    /// stands behind those it needs.
    pub types: Vec<TypeDefinition>,
    /// Sequences of identity columns, owned by columns, or used by defaults.
    pub sequences: Vec<SequenceDefinition>,
    /// Further facts about columns, in attnum order.
    pub columns: Vec<ColumnTraits>,
    /// Primary key, unique, exclusion and check constraints, by name.
    pub constraints: Vec<ConstraintDefinition>,
    /// Indexes that belong to no constraint, by name.
    pub indexes: Vec<IndexDefinition>,
    /// Foreign keys of this table, by name.
    pub foreign_keys: Vec<ForeignKeyDefinition>,
    /// The table's comment.
    pub comment: Option<String>,
    /// Storage parameters, as `name=value`.
    pub options: Vec<String>,
    /// `pg_class.relreplident`: `d`, `n`, `f` or `i`.
    pub replica_identity: Option<char>,
    /// The index of REPLICA IDENTITY USING INDEX.
    pub replica_identity_index: Option<String>,
    /// What is never copied, one phrase each: `trigger t`, `policy p`, `grants to r`.
    pub not_copied: Vec<String>,
}

impl TableObjects {
    /// The traits of a column.
    pub fn column(&self, name: &str) -> Option<&ColumnTraits> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// An extension and the schema its objects lie in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its schema.
    pub schema: String,
}

/// A collation that a statement can create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollationDefinition {
    /// Its name.
    pub name: TableName,
    /// `icu`, `libc` or `builtin`.
    pub provider: String,
    /// Of all providers but libc.
    pub locale: Option<String>,
    /// Of libc.
    pub lc_collate: Option<String>,
    /// Of libc.
    pub lc_ctype: Option<String>,
    /// Texts of other bytes are never equal.
    pub deterministic: bool,
    /// Tailoring rules (ICU, 16 and later).
    pub rules: Option<String>,
    /// Its comment.
    pub comment: Option<String>,
}

/// A type that a statement can create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeDefinition {
    /// Its name.
    pub name: TableName,
    /// What it is.
    #[serde(flatten)]
    pub shape: TypeShape,
    /// Its comment.
    #[serde(default)]
    pub comment: Option<String>,
}

/// What a type is made of. Type names are SQL, qualified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "snake_case")]
pub enum TypeShape {
    /// An enum with its labels in order.
    Enum {
        /// In sort order.
        labels: Vec<String>,
        /// Of each label its `pg_enum.oid`, which survives a rename. Empty in definitions that
        /// were stored before these were read.
        #[serde(default)]
        oids: Vec<u32>,
    },
    /// A domain over another type.
    Domain {
        /// With its modifier.
        base_type: String,
        /// Qualified and quoted, when it is not the base type's own.
        collation: Option<String>,
        /// NULL is refused.
        not_null: bool,
        /// As SQL.
        default: Option<String>,
        /// By name.
        checks: Vec<DomainCheck>,
    },
    /// A row type of its own.
    Composite {
        /// In their order.
        attributes: Vec<Attribute>,
    },
    /// A range type, its multirange type with it.
    Range {
        /// What it is a range of.
        subtype: String,
        /// Operator class, qualified and quoted.
        opclass: String,
        /// Qualified and quoted, when it is not the subtype's own.
        collation: Option<String>,
        /// Function, qualified and quoted.
        subtype_diff: Option<String>,
        /// Function, qualified and quoted. Such a type cannot be created by one statement.
        canonical: Option<String>,
        /// The multirange type's name, in the same schema.
        multirange: Option<String>,
    },
}

/// A check of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainCheck {
    /// Its name.
    pub name: String,
    /// `CHECK (…)`.
    pub definition: String,
}

/// A column of a composite type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// With its modifier.
    pub type_name: String,
    /// Qualified and quoted, when it is not the type's own.
    pub collation: Option<String>,
}

/// How a sequence belongs to its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceRole {
    /// Made by an identity column.
    Identity,
    /// OWNED BY a column.
    Owned,
    /// A default draws from it; somebody else owns it, or nobody.
    Used,
}

/// A sequence and where it stood when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceDefinition {
    /// Its name.
    pub name: TableName,
    /// How it belongs to the table.
    pub role: SequenceRole,
    /// The column that has, owns or uses it.
    pub column: String,
    /// `smallint`, `integer` or `bigint`.
    pub data_type: String,
    /// START WITH.
    pub start: i64,
    /// INCREMENT BY.
    pub increment: i64,
    /// MINVALUE.
    pub min: i64,
    /// MAXVALUE.
    pub max: i64,
    /// CACHE.
    pub cache: i64,
    /// CYCLE.
    pub cycle: bool,
    /// `last_value`; none if it may not be read.
    #[serde(default)]
    pub last_value: Option<i64>,
    /// Whether `last_value` has been given out.
    #[serde(default)]
    pub is_called: bool,
    /// Its comment.
    #[serde(default)]
    pub comment: Option<String>,
}

/// What a column is beyond its [`super::ColumnDefinition`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ColumnTraits {
    /// Name.
    pub name: String,
    /// `PLAIN`, `EXTERNAL`, `MAIN` or `EXTENDED`, when it is not the type's own.
    pub storage: Option<String>,
    /// `pglz` or `lz4`, when it was chosen.
    pub compression: Option<String>,
    /// Comment.
    pub comment: Option<String>,
    /// Generated when read (Postgres 18).
    pub is_virtual: bool,
    /// The sequence of a default that is `nextval` of it and nothing else.
    pub default_sequence: Option<TableName>,
}

/// The kinds of constraints that concern one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintKind {
    /// PRIMARY KEY.
    PrimaryKey,
    /// UNIQUE.
    Unique,
    /// EXCLUDE.
    Exclusion,
    /// CHECK.
    Check,
}

/// A constraint of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintDefinition {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: ConstraintKind,
    /// `pg_get_constraintdef`: what follows its name.
    pub definition: String,
    /// Every column it touches.
    pub columns: Vec<String>,
    /// Existing rows were checked.
    pub validated: bool,
    /// It may be deferred.
    pub deferrable: bool,
    /// Storage parameters of its index that `definition` does not tell, as `name=value`.
    pub index_options: Vec<String>,
    /// Its comment.
    pub comment: Option<String>,
}

/// An index in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDefinition {
    /// Its name.
    pub name: String,
    /// Access method.
    pub method: String,
    /// UNIQUE.
    pub unique: bool,
    /// NULLS NOT DISTINCT.
    pub nulls_not_distinct: bool,
    /// What it is ordered by.
    pub keys: Vec<IndexKey>,
    /// INCLUDE.
    pub include: Vec<String>,
    /// Storage parameters, as `name=value`.
    pub options: Vec<String>,
    /// WHERE, as SQL.
    pub predicate: Option<String>,
    /// Every column it touches.
    pub columns: Vec<String>,
    /// Usable; false for what an interrupted CREATE INDEX CONCURRENTLY left.
    pub valid: bool,
    /// Its comment.
    pub comment: Option<String>,
}

/// One key of an index: a column or an expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexKey {
    /// The column, if it is one.
    pub column: Option<String>,
    /// The expression, parenthesised where needed.
    pub expression: Option<String>,
    /// Operator class, qualified and quoted.
    pub opclass: String,
    /// Its parameters, as `name=value`.
    pub opclass_options: Vec<String>,
    /// Qualified and quoted, when it is not the column's own.
    pub collation: Option<String>,
    /// DESC.
    pub descending: bool,
    /// NULLS FIRST.
    pub nulls_first: bool,
}

/// A foreign key in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKeyDefinition {
    /// Its name.
    pub name: String,
    /// The referencing columns.
    pub columns: Vec<String>,
    /// The table it points to.
    pub references: TableName,
    /// The columns there, in the order of `columns`.
    pub referenced_columns: Vec<String>,
    /// `pg_constraint.confmatchtype`: `s`, `f` or `p`.
    pub match_type: char,
    /// `confupdtype`: `a`, `r`, `c`, `n` or `d`.
    pub on_update: char,
    /// `confdeltype`, as `on_update`.
    pub on_delete: char,
    /// The columns that ON DELETE SET NULL or SET DEFAULT sets; empty for all.
    pub delete_columns: Vec<String>,
    /// DEFERRABLE.
    pub deferrable: bool,
    /// INITIALLY DEFERRED.
    pub deferred: bool,
    /// Existing rows were checked.
    pub validated: bool,
    /// False for NOT ENFORCED (Postgres 18).
    pub enforced: bool,
    /// The last column is a PERIOD (Postgres 18).
    pub period: bool,
    /// Its comment.
    pub comment: Option<String>,
}
