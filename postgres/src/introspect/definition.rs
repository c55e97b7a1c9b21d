//! One table in full.

use serde::{Deserialize, Serialize};

use tokio_postgres::Client;
use tokio_postgres::types::Json;

use super::TableObjects;
use super::identity::{self, RawIdentity};
use crate::{Result, ResultExt, TableName};

/// A table as its server defines it. Travels as JSON, so fields only get added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDefinition {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// Ordinary or the root of a partition tree.
    pub kind: TableKind,
    /// `p` permanent, `u` unlogged, `t` temporary (`pg_class.relpersistence`); of a
    /// partition tree, that of a leaf that is not permanent, if there is one.
    pub persistence: char,
    /// Live columns in attnum order, generated ones included.
    pub columns: Vec<ColumnDefinition>,
    /// Columns of the primary key in key order; empty when there is none.
    pub primary_key: Vec<String>,
    /// The name of the primary key constraint.
    pub primary_key_name: Option<String>,
    /// It is DEFERRABLE: two rows may have the same for a while, so no row is found by it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub key_is_deferrable: bool,
    /// The replica identity in force; see [`TableDefinition::identity_key`].
    pub replica_identity: ReplicaIdentity,
    /// Columns of the effective identity, in key order; empty for FULL and where
    /// there is none.
    ///
    /// Under DEFAULT they are the primary key, under INDEX that index; a key that is
    /// deferrable or not valid identifies nothing to Postgres. For a partition tree
    /// the leaves write the changes, so they are judged too: if a leaf cannot carry
    /// what the root promises, the tree's identity in force is
    /// [`ReplicaIdentity::Nothing`].
    pub identity_key: Vec<String>,
    /// Rows, estimated; leaves included.
    pub row_estimate: i64,
    /// Bytes of the table and its TOAST, without indexes; leaves included.
    pub size_bytes: i64,
    /// Pages of the main fork by true relation size; leaves included.
    pub pages: i64,
    /// The leaves of a partition tree, by oid; empty for an ordinary table.
    pub leaves: Vec<Leaf>,
    /// What belongs to it beside columns and rows, where that was asked for too
    /// ([`super::table_objects`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<TableObjects>,
}

impl TableDefinition {
    /// Whether updates and deletes of this table can be replicated: its identity has
    /// a key or is FULL. Publishing them for any other table would make the source
    /// refuse its own writes.
    pub fn can_carry_updates(&self) -> bool {
        self.is_full() || !self.identity_key.is_empty()
    }

    /// Whether the whole old row identifies a row.
    pub fn is_full(&self) -> bool {
        self.replica_identity == ReplicaIdentity::Full
    }

    /// The columns by which a row is found; empty when nothing tells rows apart.
    pub fn row_key(&self) -> &[String] {
        if self.primary_key.is_empty() || self.key_is_deferrable {
            &self.identity_key
        } else {
            &self.primary_key
        }
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&ColumnDefinition> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// Whether rows live in the table or in its leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// Rows live in the table.
    Ordinary,
    /// The root of a partition tree; rows live in its leaves.
    Partitioned,
}

/// What Postgres logs of the old row (`ALTER TABLE … REPLICA IDENTITY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// A chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// `default`, `nothing`, `full` or `index`.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplicaIdentity::Default => "default",
            ReplicaIdentity::Nothing => "nothing",
            ReplicaIdentity::Full => "full",
            ReplicaIdentity::Index => "index",
        }
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDefinition {
    /// Name.
    pub name: String,
    /// Number, stable across renames.
    pub attnum: i16,
    /// Type oid at this server.
    pub type_oid: u32,
    /// The type with its modifier, as SQL; qualified and quoted unless built in.
    pub type_name: String,
    /// Type modifier, −1 for none.
    pub typmod: i32,
    /// The type's schema.
    pub type_schema: String,
    /// NULL is refused.
    pub not_null: bool,
    /// Default expression as SQL; not for generated columns.
    pub default: Option<String>,
    /// It is an identity column.
    pub identity: Option<IdentityKind>,
    /// Generation expression as SQL. Such a column is not in the stream.
    pub generated: Option<String>,
    /// Collation, qualified and quoted, when it is not the type's own.
    pub collation: Option<String>,
}

/// `GENERATED … AS IDENTITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityKind {
    /// `ALWAYS`: an explicit value needs OVERRIDING SYSTEM VALUE.
    Always,
    /// `BY DEFAULT`.
    ByDefault,
}

/// A leaf of a partition tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
}

/// Everything about one table as one JSON document, so that it all comes from one
/// snapshot. `held` are the tables that hold its rows: itself, or its leaves.
const DEFINITION: &str = "
    WITH root AS (
        SELECT c.oid, c.relkind, c.relpersistence
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
    ), held AS (
        SELECT c.oid, n.nspname, c.relname, c.relpersistence,
               CASE WHEN c.reltuples >= 0 THEN c.reltuples::int8
                    ELSE pg_stat_get_live_tuples(c.oid) END AS row_estimate
        FROM (SELECT oid FROM root WHERE relkind = 'r'
              UNION ALL
              SELECT t.relid FROM root, pg_partition_tree(root.oid) t
              WHERE root.relkind = 'p' AND t.isleaf) member
        JOIN pg_class c ON c.oid = member.oid AND c.relkind = 'r'
        JOIN pg_namespace n ON n.oid = c.relnamespace
    ), identities AS (
        -- The index that RelationGetIndexList() would choose, and its key columns.
        SELECT c.oid, jsonb_build_object(
            'kind', c.relreplident,
            'key', coalesce(jsonb_agg(a.attname ORDER BY k.position)
                            FILTER (WHERE a.attnum IS NOT NULL), '[]'),
            'key_generated', coalesce(bool_or(a.attgenerated <> ''), false),
            'full_refused', c.relreplident = 'f' AND current_setting('server_version_num')::int >= 180000
                AND EXISTS (SELECT FROM pg_attribute g WHERE g.attrelid = c.oid
                            AND g.attgenerated <> '' AND NOT g.attisdropped)) AS identity
        FROM (SELECT oid FROM root UNION SELECT oid FROM held) one
        JOIN pg_class c ON c.oid = one.oid
        LEFT JOIN pg_index i ON i.indrelid = c.oid
            AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
            AND CASE c.relreplident
                WHEN 'd' THEN i.indisprimary AND (i.indisvalid OR c.relkind = 'p')
                WHEN 'i' THEN i.indisreplident AND i.indisvalid
                ELSE false END
        LEFT JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(attnum, position)
            ON k.position <= i.indnkeyatts
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        GROUP BY c.oid, c.relreplident
    )
    SELECT jsonb_build_object(
        'oid', root.oid::int8,
        'kind', CASE root.relkind WHEN 'p' THEN 'partitioned' ELSE 'ordinary' END,
        'persistence', coalesce(
            (SELECT min(relpersistence::text) FROM held WHERE relpersistence <> 'p'),
            root.relpersistence::text),
        'columns', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                'name', a.attname,
                'attnum', a.attnum,
                'type_oid', a.atttypid::int8,
                'type_name', format_type(a.atttypid, a.atttypmod),
                'typmod', a.atttypmod,
                'type_schema', tn.nspname,
                'not_null', a.attnotnull AND NOT EXISTS (
                    -- Not valid (18): rows from before may hold NULL.
                    SELECT FROM pg_constraint k
                    WHERE k.conrelid = a.attrelid AND k.contype = 'n'
                      AND k.conkey = ARRAY[a.attnum] AND NOT k.convalidated),
                'default', CASE a.attgenerated WHEN '' THEN pg_get_expr(d.adbin, d.adrelid) END,
                'identity', CASE a.attidentity WHEN 'a' THEN 'always'
                                               WHEN 'd' THEN 'by_default' END,
                'generated', CASE WHEN a.attgenerated <> ''
                                  THEN pg_get_expr(d.adbin, d.adrelid) END,
                'collation', CASE WHEN a.attcollation <> t.typcollation
                                  THEN (SELECT quote_ident(ln.nspname) || '.' || quote_ident(l.collname)
                                        FROM pg_collation l
                                        JOIN pg_namespace ln ON ln.oid = l.collnamespace
                                        WHERE l.oid = a.attcollation) END
                ) ORDER BY a.attnum)
            FROM pg_attribute a
            JOIN pg_type t ON t.oid = a.atttypid
            JOIN pg_namespace tn ON tn.oid = t.typnamespace
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = root.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
        'primary_key', coalesce((
            SELECT jsonb_agg(a.attname ORDER BY k.position)
            FROM pg_index i
            CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(attnum, position)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indrelid = root.oid AND i.indisprimary AND k.position <= i.indnkeyatts), '[]'),
        'primary_key_name', (
            SELECT conname FROM pg_constraint WHERE conrelid = root.oid AND contype = 'p'),
        'key_is_deferrable', EXISTS (
            SELECT FROM pg_constraint WHERE conrelid = root.oid AND contype = 'p' AND condeferrable),
        'identity', (SELECT identity FROM identities WHERE oid = root.oid),
        'row_estimate', coalesce((SELECT sum(row_estimate)::int8 FROM held), 0),
        'size_bytes', coalesce((SELECT sum(pg_table_size(oid))::int8 FROM held), 0),
        'pages', coalesce((SELECT sum(pg_relation_size(oid)
                                      / current_setting('block_size')::int8)::int8 FROM held), 0),
        'leaves', CASE root.relkind WHEN 'p' THEN coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                'oid', held.oid::int8, 'schema', held.nspname, 'name', held.relname,
                'identity', i.identity) ORDER BY held.oid)
            FROM held JOIN identities i ON i.oid = held.oid), '[]') ELSE '[]' END)
    FROM root";

/// What [`DEFINITION`] returns.
#[derive(Deserialize)]
struct RawDefinition {
    oid: u32,
    kind: TableKind,
    persistence: char,
    columns: Vec<ColumnDefinition>,
    primary_key: Vec<String>,
    primary_key_name: Option<String>,
    key_is_deferrable: bool,
    identity: RawIdentity,
    row_estimate: i64,
    size_bytes: i64,
    pages: i64,
    leaves: Vec<RawLeaf>,
}

#[derive(Deserialize)]
struct RawLeaf {
    oid: u32,
    schema: String,
    name: String,
    identity: RawIdentity,
}

impl RawDefinition {
    fn into_definition(self, name: &TableName) -> TableDefinition {
        let mut leaves = Vec::with_capacity(self.leaves.len());
        let mut leaf_identities = Vec::with_capacity(self.leaves.len());
        for leaf in self.leaves {
            leaf_identities.push(leaf.identity);
            leaves.push(Leaf {
                oid: leaf.oid,
                name: TableName::new(leaf.schema, leaf.name),
            });
        }
        let (replica_identity, identity_key) = identity::in_force(&self.identity, &leaf_identities);
        TableDefinition {
            oid: self.oid,
            name: name.clone(),
            kind: self.kind,
            persistence: self.persistence,
            columns: self.columns,
            primary_key: self.primary_key,
            primary_key_name: self.primary_key_name,
            key_is_deferrable: self.key_is_deferrable,
            replica_identity,
            identity_key,
            row_estimate: self.row_estimate,
            size_bytes: self.size_bytes,
            pages: self.pages,
            leaves,
            objects: None,
        }
    }
}

/// Reads a table's definition; `None` when there is no ordinary table and no
/// partition root of that name (a view or a foreign table is neither).
///
/// It waits while somebody holds the table in ACCESS EXCLUSIVE, since true sizes need
/// a lock; set `lock_timeout` where that matters. Leaves that are foreign tables are
/// left out: nothing of them is in the log.
pub async fn table_definition(
    client: &Client,
    table: &TableName,
) -> Result<Option<TableDefinition>> {
    let doing = || format!("reading the definition of {}", table.quoted());
    let row = client
        .query_opt(DEFINITION, &[&table.schema, &table.name])
        .await
        .doing(doing())?;
    let Some(row) = row else {
        return Ok(None);
    };
    let Json(raw) = row.try_get::<_, Json<RawDefinition>>(0).doing(doing())?;
    Ok(Some(raw.into_definition(table)))
}
