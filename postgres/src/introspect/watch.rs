//! A light look at many tables at once: are they still what they were?
//!
//! Takes no lock on any table, so it never waits for one and nobody waits for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::Json;

use super::identity::{self, RawIdentity};
use super::labels::{EnumLook, enums};
use super::{ReplicaIdentity, TableKind, end_of_wal};
use crate::{Lsn, Result, ResultExt, Session, TableName};

/// What the server's catalog says of some tables and publications at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// The end of WAL afterwards: whatever made things as they are was logged before it.
    pub lsn: Lsn,
    /// The publications that exist, of those asked for.
    pub publications: Vec<PublicationState>,
    /// The tables that exist, of those asked for.
    pub tables: Vec<TableLook>,
    /// Tables that were asked for by oid and stand under another name.
    pub moved: Vec<(u32, TableName)>,
    /// All members of the publications.
    pub members: Vec<Member>,
    /// Of the tables whose columns were asked for: oid and columns, as they were before the
    /// rest was looked at.
    pub columns: Vec<(TableName, u32, Vec<ColumnLook>)>,
}

impl Look {
    /// The publication of that name.
    pub fn publication(&self, name: &str) -> Option<&PublicationState> {
        self.publications.iter().find(|found| found.name == name)
    }

    /// The table of that name.
    pub fn table(&self, name: &TableName) -> Option<&TableLook> {
        self.tables.iter().find(|table| table.name == *name)
    }

    /// The membership of a table in a publication.
    pub fn member(&self, publication: u32, table: u32) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| member.publication == publication && member.table == table)
    }
}

/// A number of `pg_attribute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnLook {
    /// From 1; never given to another column of the table.
    pub attnum: i16,
    /// Its name; without meaning when dropped.
    pub name: String,
    /// There is no such column any more.
    pub is_dropped: bool,
    /// Computed from others, stored or not.
    pub is_generated: bool,
}

/// One row of `pg_publication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationState {
    /// Its oid: a publication dropped and created again has another.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Inserts are published.
    pub inserts: bool,
    /// Updates are published.
    pub updates: bool,
    /// Deletes are published.
    pub deletes: bool,
    /// Truncates are published.
    pub truncates: bool,
    /// Changes of leaves are published as their root's.
    pub via_root: bool,
}

/// A table that a publication publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Oid of its row in `pg_publication_rel`: a table taken out and put back has another.
    /// 0 where the publication is of all tables, or of all of a schema.
    pub oid: u32,
    /// Oid of the publication.
    pub publication: u32,
    /// Oid of the table.
    pub table: u32,
    /// Its name.
    pub name: TableName,
}

/// One table, as far as its changes depend on it.
#[derive(Clone, Debug, PartialEq)]
pub struct TableLook {
    /// Its name.
    pub name: TableName,
    /// `pg_class.oid`.
    pub oid: u32,
    /// Ordinary or the root of a partition tree.
    pub kind: TableKind,
    /// The replica identity in force, see [`super::TableDefinition::identity_key`].
    pub replica_identity: ReplicaIdentity,
    /// Its columns.
    pub identity_key: Vec<String>,
    /// The tables that hold its rows: itself, or its leaves.
    pub held: Vec<HeldLook>,
    /// Leaves that are foreign tables: their rows are in no log.
    pub foreign_leaves: Vec<TableName>,
    /// By `attnum`, of columns that are there: type, modifier and collation, as numbers.
    pub types: BTreeMap<i16, String>,
    /// By type, the enums that its columns are made of.
    pub enums: BTreeMap<u32, EnumLook>,
    /// Transactions below this number (64 bits) had ended when it was looked at.
    pub horizon: i64,
}

impl TableLook {
    /// See [`super::TableDefinition::can_carry_updates`].
    pub fn can_carry_updates(&self) -> bool {
        self.replica_identity == ReplicaIdentity::Full || !self.identity_key.is_empty()
    }

    /// Rows updated and rows deleted, by the server's statistics (`pg_stat_user_tables`).
    pub fn changed_rows(&self) -> (i64, i64) {
        self.held.iter().fold((0, 0), |(updates, deletes), held| {
            (updates + held.updates, deletes + held.deletes)
        })
    }
}

/// A table that holds rows, and the marks that changes outside the stream leave on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldLook {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// `pg_class.relfilenode`: changes with every rewrite and truncate.
    pub filenode: u32,
    /// `xmin` of its `pg_class` row: of the transaction that gave it the file, mostly.
    pub filenode_by: String,
    /// `xmin` of the `pg_inherits` rows between it and its root; empty for a table that is no
    /// partition.
    pub attached: String,
    /// All `xmin` of its `pg_attribute` rows, hashed.
    pub columns: String,
    /// The columns whose older rows are filled from `attmissingval`, each with the oid of its
    /// default. A VACUUM FULL touches just these.
    pub missing: String,
    /// Its changes are in WAL (`pg_class.relpersistence`).
    pub is_logged: bool,
    /// It has rows, as far as the statistics know.
    pub has_rows: bool,
    /// Rows updated (`n_tup_upd`).
    pub updates: i64,
    /// Rows deleted (`n_tup_del`).
    pub deletes: i64,
}

/// Each wanted table with what holds its rows. `pg_partition_tree()` would lock every
/// leaf, so the tree is walked in `pg_inherits`.
const TABLES: &str = "
    WITH RECURSIVE root AS (
        SELECT n.nspname, c.relname, c.oid, c.relkind
        FROM unnest($1::text[], $2::text[]) w (schema, name)
        JOIN pg_namespace n ON n.nspname = w.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
        WHERE c.relkind IN ('r', 'p')
    ), tree AS (
        SELECT oid AS root, oid, relkind, ''::text AS attached FROM root
        UNION ALL
        SELECT tree.root, c.oid, c.relkind, concat_ws(' ', nullif(tree.attached, ''), i.xmin::text)
        FROM tree
        JOIN pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
        JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p', 'f')
        WHERE tree.relkind = 'p'
    ), identities AS (
        -- As in `definition`: the index that RelationGetIndexList() would choose.
        SELECT c.oid, jsonb_build_object(
            'kind', c.relreplident,
            'key', coalesce(jsonb_agg(a.attname ORDER BY k.position)
                            FILTER (WHERE a.attnum IS NOT NULL), '[]'),
            'key_generated', coalesce(bool_or(a.attgenerated <> ''), false),
            'full_refused', c.relreplident = 'f' AND current_setting('server_version_num')::int >= 180000
                AND EXISTS (SELECT FROM pg_attribute g WHERE g.attrelid = c.oid
                            AND g.attgenerated <> '' AND NOT g.attisdropped)) AS identity
        FROM tree
        JOIN pg_class c ON c.oid = tree.oid AND (tree.oid = tree.root OR tree.relkind = 'r')
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
    ), held AS (
        SELECT tree.root, jsonb_agg(jsonb_build_object(
            'look', jsonb_build_object(
                'oid', c.oid::int8,
                'name', jsonb_build_object('schema', n.nspname, 'name', c.relname),
                'filenode', c.relfilenode::int8,
                'filenode_by', c.xmin::text,
                'attached', tree.attached,
                'columns', coalesce(a.columns, ''),
                'missing', coalesce(a.missing, ''),
                'is_logged', c.relpersistence = 'p',
                'has_rows', c.reltuples > 0 OR c.relpages > 0
                            OR pg_stat_get_live_tuples(c.oid) > 0,
                'updates', pg_stat_get_tuples_updated(c.oid),
                'deletes', pg_stat_get_tuples_deleted(c.oid)),
            'identity', i.identity) ORDER BY c.oid) AS held
        FROM tree
        JOIN pg_class c ON c.oid = tree.oid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN identities i ON i.oid = tree.oid
        LEFT JOIN LATERAL (
            SELECT left(md5(string_agg(attnum || ':' || a.xmin, ',' ORDER BY attnum)), 16) AS columns,
                   string_agg(attnum || ':' || coalesce(d.oid, 0), ' ' ORDER BY attnum) FILTER (WHERE atthasmissing) AS missing
            FROM pg_attribute a
            LEFT JOIN pg_attrdef d ON a.atthasmissing AND d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE attrelid = c.oid AND attnum > 0) a ON true
        WHERE tree.relkind = 'r'
        GROUP BY tree.root
    ), foreign_leaves AS (
        SELECT tree.root, jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname)
                                    ORDER BY n.nspname, c.relname) AS foreign_leaves
        FROM tree
        JOIN pg_class c ON c.oid = tree.oid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE tree.relkind = 'f'
        GROUP BY tree.root
    )
    SELECT jsonb_build_object(
        'schema', root.nspname,
        'name', root.relname,
        'oid', root.oid::int8,
        'kind', CASE root.relkind WHEN 'p' THEN 'partitioned' ELSE 'ordinary' END,
        'identity', i.identity,
        'types', coalesce((
            SELECT jsonb_object_agg(attnum, concat_ws(':', atttypid, atttypmod, attcollation)) FROM pg_attribute
            WHERE attrelid = root.oid AND attnum > 0 AND NOT attisdropped), '{}'),
        'horizon', pg_snapshot_xmin(pg_current_snapshot())::text::int8,
        'held', coalesce(held.held, '[]'),
        'foreign_leaves', coalesce(f.foreign_leaves, '[]'))
    FROM root
    JOIN identities i ON i.oid = root.oid
    LEFT JOIN held ON held.root = root.oid
    LEFT JOIN foreign_leaves f ON f.root = root.oid";

const MOVED: &str = "
    SELECT c.oid, n.nspname, c.relname
    FROM unnest($1::text[], $2::text[], $3::oid[]) w (schema, name, oid)
    JOIN pg_class c ON c.oid = w.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (n.nspname, c.relname) <> (w.schema::name, w.name::name)";

const PUBLICATIONS: &str = "
    SELECT p.oid, p.pubname, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot
    FROM pg_publication p WHERE p.pubname = ANY ($1)";

const MEMBERS: &str = "
    SELECT r.oid, r.prpubid, r.prrelid, n.nspname, c.relname
    FROM pg_publication p
    JOIN pg_publication_rel r ON r.prpubid = p.oid
    JOIN pg_class c ON c.oid = r.prrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE p.pubname = ANY ($1)";

/// Members that are so because of their schema, or because all tables are. From 16 on the
/// view opens each table, and so waits for one that is locked exclusively.
const WIDE_MEMBERS: &str = "
    SELECT 0::oid, p.oid, c.oid, n.nspname, c.relname
    FROM pg_publication p
    JOIN pg_publication_tables t ON t.pubname = p.pubname
    JOIN pg_namespace n ON n.nspname = t.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
    WHERE p.pubname = ANY ($1)
      AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid)";

const COLUMNS: &str = "
    SELECT n.nspname, c.relname, c.oid, a.attnum, a.attname, a.attisdropped, a.attgenerated <> ''
    FROM unnest($1::text[], $2::text[]) w (schema, name)
    JOIN pg_namespace n ON n.nspname = w.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    ORDER BY c.oid, a.attnum";

#[derive(Deserialize)]
struct RawTable {
    schema: String,
    name: String,
    oid: u32,
    kind: TableKind,
    identity: RawIdentity,
    types: BTreeMap<i16, String>,
    horizon: i64,
    held: Vec<RawHeld>,
    foreign_leaves: Vec<TableName>,
}

#[derive(Deserialize)]
struct RawHeld {
    look: HeldLook,
    identity: RawIdentity,
}

impl RawTable {
    fn into_look(self) -> TableLook {
        let (held, identities): (Vec<_>, Vec<_>) = self
            .held
            .into_iter()
            .map(|held| (held.look, held.identity))
            .unzip();
        let leaves = match self.kind {
            TableKind::Ordinary => &[][..],
            TableKind::Partitioned => &identities,
        };
        let (replica_identity, identity_key) = identity::in_force(&self.identity, leaves);
        TableLook {
            name: TableName::new(self.schema, self.name),
            oid: self.oid,
            kind: self.kind,
            replica_identity,
            identity_key,
            held,
            foreign_leaves: self.foreign_leaves,
            types: self.types,
            enums: BTreeMap::new(),
            horizon: self.horizon,
        }
    }
}

/// Looks at `tables` (each with the oid it had, 0 if not known), at the columns of those
/// `with_columns`, and at `publications`, which are not ours alone if they are `given`.
pub async fn look(
    session: &Session,
    tables: &[(TableName, u32)],
    with_columns: &[TableName],
    publications: &[String],
    given: bool,
) -> Result<Look> {
    let schemas: Vec<&str> = tables
        .iter()
        .map(|(name, _)| name.schema.as_str())
        .collect();
    let names: Vec<&str> = tables.iter().map(|(name, _)| name.name.as_str()).collect();
    let oids: Vec<u32> = tables.iter().map(|(_, oid)| *oid).collect();
    let doing = "looking at the mirrored tables";
    let mut look = Look {
        columns: columns(session, with_columns).await?,
        ..Look::default()
    };
    for row in session
        .query(TABLES, &[&schemas, &names])
        .await
        .doing(doing)?
    {
        let Json(raw) = row.try_get::<_, Json<RawTable>>(0).doing(doing)?;
        look.tables.push(raw.into_look());
    }
    let found: Vec<u32> = look.tables.iter().map(|table| table.oid).collect();
    let mut enums = enums(session, &found).await?;
    for table in &mut look.tables {
        table.enums = enums.remove(&table.oid).unwrap_or_default();
    }
    for row in session
        .query(MOVED, &[&schemas, &names, &oids])
        .await
        .doing(doing)?
    {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        look.moved.push((row.get(0), name));
    }
    let doing = "looking at the publications";
    for row in session
        .query(PUBLICATIONS, &[&publications])
        .await
        .doing(doing)?
    {
        look.publications.push(PublicationState {
            oid: row.get(0),
            name: row.get(1),
            inserts: row.get(2),
            updates: row.get(3),
            deletes: row.get(4),
            truncates: row.get(5),
            via_root: row.get(6),
        });
    }
    let kinds = if given {
        &[MEMBERS, WIDE_MEMBERS][..]
    } else {
        &[MEMBERS]
    };
    for kind in kinds {
        for row in session.query(*kind, &[&publications]).await.doing(doing)? {
            look.members.push(Member {
                oid: row.get(0),
                publication: row.get(1),
                table: row.get(2),
                name: TableName::new(row.get::<_, String>(3), row.get::<_, String>(4)),
            });
        }
    }
    // Last: what was seen was logged before.
    look.lsn = end_of_wal(session).await?;
    Ok(look)
}

async fn columns(
    session: &Session,
    tables: &[TableName],
) -> Result<Vec<(TableName, u32, Vec<ColumnLook>)>> {
    let mut found: Vec<(TableName, u32, Vec<ColumnLook>)> = Vec::new();
    if tables.is_empty() {
        return Ok(found);
    }
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    for row in session
        .query(COLUMNS, &[&schemas, &names])
        .await
        .doing("looking at the columns of mirrored tables")?
    {
        let attribute = ColumnLook {
            attnum: row.get(3),
            name: row.get(4),
            is_dropped: row.get(5),
            is_generated: row.get(6),
        };
        let oid: u32 = row.get(2);
        match found.last_mut() {
            Some((_, last, attributes)) if *last == oid => attributes.push(attribute),
            _ => {
                let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
                found.push((name, oid, vec![attribute]));
            }
        }
    }
    Ok(found)
}
