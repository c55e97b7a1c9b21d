//! The destination table of one version of a source table: which columns are written,
//! by what a row is found, and the SQL that does it.

use std::io::Write as _;

use bunny_postgres::copy_binary::{self, Encoding, NotKnown};
use bunny_postgres::{TableName, quote_ident};
use tokio_postgres::Client;

use super::array_literal;
use super::drift::Met;
use super::set::Ahead;
use super::sql::{Element, Op, Sql, SqlColumn};
use crate::ambiguous_text::AmbiguousText;
use crate::copy_in::{CopyRow, Inlet, Into, Went};
use crate::error::{Error, Result};
use crate::event::{Row, TableVersion};
use crate::net_effect::keyed::KeyChange;
use crate::schema_change::Fit;

/// Domains are resolved to what they stand for: a staged row may hold NULL where the
/// domain forbids it (cells that mean nothing). A collation is named where it is not the
/// type's own, because two different ones cannot be compared. `=` of a type that an
/// extension brought is not in pg_catalog, which is all the search path holds.
const COLUMNS_SQL: &str = "
WITH RECURSIVE base(attnum, typid, typmod) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
  UNION ALL
    SELECT b.attnum, t.typbasetype, t.typtypmod FROM base b JOIN pg_type t ON t.oid = b.typid
    WHERE t.typtype = 'd'
)
SELECT a.attname::text, a.attgenerated <> '' AS generated, a.attidentity = 'a' AS always_identity,
       format_type(b.typid, b.typmod) AS type_name, format_type(b.typid, -1) AS plain_type,
       a.atttypid <> b.typid AS is_domain,
       CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation THEN
           (SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname)
            FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation)
       END AS collation,
       (SELECT quote_ident(n.nspname) FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
        WHERE o.oprname = '=' AND o.oprleft = b.typid AND o.oprright = b.typid LIMIT 1) AS operator_schema,
       b.typid AS type_oid, b.typmod,
       CASE WHEN t.typtype <> 'c' AND t.typcategory <> 'A' THEN t.typdelim::text END AS delimiter,
       EXISTS (SELECT FROM pg_cast WHERE castsource = 'text'::regtype AND casttarget = b.typid) AS is_cast
FROM pg_attribute a
JOIN base b ON b.attnum = a.attnum
JOIN pg_type t ON t.oid = b.typid AND t.typtype <> 'd'
WHERE a.attrelid = to_regclass($1)
ORDER BY a.attnum";

/// Whether there is a unique index on some of the columns, on every row and checked at once, and whether the
/// table is one that is not partitioned.
const INDEXED_SQL: &str = "
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind = 'r') AS plain, EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (
          SELECT FROM generate_series(0, i.indnkeyatts - 1) AS place
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[place]
          WHERE a.attname::text <> ALL ($2::text[]))) AS indexed";

/// Where the rows of one table version go.
pub(super) struct Target {
    pub(super) source: TableName,
    pub(super) destination: TableName,
    /// Indexes, among the event's columns, of those that are written.
    pub(super) written: Vec<usize>,
    /// All of the event's columns are written: a row's text can be copied whole.
    pub(super) writes_all: bool,
    /// Indexes, among the event's columns, of the key; empty when rows have none.
    pub(super) key: Vec<usize>,
    pub(super) key_change: KeyChange,
    /// By index among the event's columns.
    pub(super) ambiguous: AmbiguousText,
    pub(super) sql: Sql,
    /// For few rows, where they can be parameters.
    pub(super) few_sql: Option<Sql>,
    /// COPY into the staging table; it exists in this session once this is set.
    pub(super) stage_copy: Option<Inlet>,
    /// It was created since the savepoint that a refused part is undone to.
    pub(super) staging_is_new: bool,
    pub(super) direct_copy: Option<Inlet>,
    /// Set after a row had no binary form: each such costs a COPY more.
    pub(super) avoid_binary: bool,
    /// An index keeps the table from holding a key twice.
    pub(super) refuses_doubles: bool,
    /// An index of the table itself finds keys that are given as an array. Of a partitioned one each partition's
    /// would be asked for all of them.
    finds_by_array: bool,
    /// Set after a COPY straight into the table met a row that was there.
    pub(super) avoid_direct_copy: bool,
    /// The staging table holds rows of this transaction.
    pub(super) staged: bool,
    /// What the staging table holds of the part to be written next.
    pub(super) ahead: Option<Ahead>,
    pub(super) met: Met,
}

impl Target {
    /// Looks the destination table up. `fit` says where the columns go. `primary_key` is the
    /// source table's when it was synced, used when the events carry no key of their own
    /// (whole old rows, or inserts only) and don't say which the primary key is.
    pub(super) async fn find(
        client: &Client,
        version: &TableVersion,
        destination: &TableName,
        fit: &Fit,
        primary_key: &[String],
    ) -> Result<Target, Error> {
        let rows = client
            .query(COLUMNS_SQL, &[&destination.quoted()])
            .await
            .map_err(Error::sql(format!(
                "looking at destination table {destination}"
            )))?;
        let refused = |reason: String| Error::Table {
            table: version.source.clone(),
            reason,
            restart_offset: None,
        };
        if rows.is_empty() {
            return Err(refused(format!(
                "destination table {destination} does not exist"
            )));
        }
        let mut written = Vec::new();
        let mut columns = Vec::new();
        let mut missing = Vec::new();
        for (index, into) in fit.into.iter().enumerate() {
            let Some(into) = into else {
                continue;
            };
            let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == into) else {
                missing.push(quote_ident(into));
                continue;
            };
            if row.get::<_, bool>("generated") {
                continue;
            }
            written.push(index);
            columns.push(SqlColumn {
                name: quote_ident(into),
                type_name: row.get("type_name"),
                plain_type: row.get("plain_type"),
                is_domain: row.get("is_domain"),
                collation: row.get("collation"),
                always_identity: row.get("always_identity"),
                operator_schema: row.get("operator_schema"),
                element: element(row),
                key: false,
            });
        }
        if !missing.is_empty() {
            return Err(refused(format!(
                "destination table {destination} lacks the columns {}; add them there, then sync the table again",
                missing.join(", ")
            )));
        }
        let key = key_columns(version, fit, primary_key);
        for (column, index) in columns.iter_mut().zip(&written) {
            column.key = key.contains(index);
            let of_source = &version.columns[*index];
            let types = (of_source.type_oid, of_source.typmod);
            if column.key && modifies(&rows, column, types) {
                column.element = Element::Staged;
            }
        }
        if columns.iter().filter(|column| column.key).count() != key.len() {
            return Err(refused(format!(
                "a key column is missing or generated in destination table {destination}, so its rows cannot be found by it"
            )));
        }
        let key_names: Vec<&str> = key
            .iter()
            .filter_map(|&index| fit.into[index].as_deref())
            .collect();
        let own: Vec<String> = rows
            .iter()
            .filter(|row| {
                let name: &str = row.get(0);
                !row.get::<_, bool>("generated")
                    && fit.into.iter().flatten().all(|into| into != name)
            })
            .map(|row| quote_ident(row.get(0)))
            .collect();
        let into = fit.into.iter().map(|into| into.as_deref());
        let ambiguous = AmbiguousText::find(client, destination, into).await?;
        let staging = format!("pg_temp.\"bunny_stage_{}\"", version.schema_id);
        let key_change = match own.is_empty() {
            true => KeyChange::Split,
            false => KeyChange::Rename,
        };
        let sql = Sql::new(destination.quoted(), staging, columns, own);
        let (refuses_doubles, is_plain) = indexed(client, destination, &key_names).await?;
        Ok(Target {
            source: version.source.clone(),
            destination: destination.clone(),
            writes_all: written.len() == version.columns.len(),
            written,
            key,
            key_change,
            ambiguous,
            few_sql: sql.over_parameters(),
            sql,
            stage_copy: None,
            staging_is_new: false,
            direct_copy: None,
            avoid_binary: false,
            refuses_doubles,
            finds_by_array: refuses_doubles && is_plain,
            avoid_direct_copy: false,
            staged: false,
            ahead: None,
            met: Met::default(),
        })
    }

    /// Whether rows that go may be named by an array of their keys.
    pub(super) fn takes_keys(&self) -> bool {
        self.finds_by_array && self.few_sql.is_some() && self.sql.only_key().is_some()
    }

    /// Creates the staging table if this session has none yet.
    pub(super) async fn ensure_staging(&mut self, client: &Client) -> Result<()> {
        if self.stage_copy.is_some() {
            return Ok(());
        }
        let doing = || format!("creating the staging table of {}", self.destination);
        client
            .batch_execute(&self.sql.create_staging())
            .await
            .map_err(Error::sql(doing()))?;
        self.stage_copy = Some(self.staging_inlet(client, &doing()).await?);
        self.staging_is_new = true;
        Ok(())
    }

    async fn staging_inlet(&self, client: &Client, doing: &str) -> Result<Inlet, Error> {
        let into = Into {
            table: self.sql.staging(),
            columns: None,
            own_columns: STAGING_COLUMNS,
            staged: self.sql.column_names(),
        };
        match self.avoid_binary || self.sql.packs() {
            true => Inlet::text(client, &into, doing).await,
            false => Inlet::prepare(client, &into, doing).await,
        }
    }

    /// The way straight into the table. COPY writes identity columns as they come, GENERATED ALWAYS
    /// too.
    pub(super) async fn direct_copy(&mut self, client: &Client) -> Result<Inlet, Error> {
        if let Some(inlet) = &self.direct_copy {
            return Ok(inlet.clone());
        }
        let doing = format!("copying rows into {}", self.destination);
        let columns = self.sql.names();
        let into = Into {
            table: self.sql.table(),
            columns: Some(&columns),
            own_columns: 0,
            staged: Vec::new(),
        };
        let inlet = match self.avoid_binary || columns.is_empty() {
            true => Inlet::text(client, &into, &doing).await?,
            false => Inlet::prepare(client, &into, &doing).await?,
        };
        Ok(self.direct_copy.insert(inlet).clone())
    }

    /// A table of which one row had no binary form is likely to have more of them: from now on all go
    /// as text.
    pub(super) async fn learn(&mut self, client: &Client, went: Went) -> Result<(), Error> {
        if went == Went::AsPrepared || self.avoid_binary {
            return Ok(());
        }
        self.avoid_binary = true;
        self.direct_copy = None;
        if self.stage_copy.is_some() {
            let doing = format!("staging rows of {}", self.destination);
            self.stage_copy = Some(self.staging_inlet(client, &doing).await?);
        }
        Ok(())
    }

    /// Appends the cells of a row as the staging table takes them, without the line end.
    fn stage_cells(&self, out: &mut Vec<u8>, row: &Row) {
        if !self.sql.packs() {
            self.write_cells(out, row);
            return;
        }
        let mut packed = Vec::new();
        for (position, &index) in self.written.iter().enumerate() {
            if self.sql.is_packed(position) {
                packed.push(row.cell(index));
            } else {
                out.extend_from_slice(row.cell(index));
                out.push(b'\t');
            }
        }
        array_literal::write_array(out, &packed);
    }

    fn binary_cells(
        &self,
        out: &mut Vec<u8>,
        row: &Row,
        encodings: &[Encoding],
    ) -> Result<(), NotKnown> {
        for (&index, encoding) in self.written.iter().zip(encodings) {
            copy_binary::cell(out, *encoding, row.cell(index))?;
        }
        Ok(())
    }

    /// Appends the written cells of a row as COPY text, without the line end.
    fn write_cells(&self, out: &mut Vec<u8>, row: &Row) {
        if self.writes_all {
            out.extend_from_slice(row.text());
            return;
        }
        for (position, &index) in self.written.iter().enumerate() {
            if position > 0 {
                out.push(b'\t');
            }
            out.extend_from_slice(row.cell(index));
        }
    }
}

/// A row for the table itself.
pub(super) struct TableRow<'a> {
    pub(super) target: &'a Target,
    pub(super) row: &'a Row,
}

impl CopyRow for TableRow<'_> {
    fn text(&self, out: &mut Vec<u8>) {
        self.target.write_cells(out, self.row);
    }

    fn binary(&self, out: &mut Vec<u8>, encodings: &[Encoding]) -> Result<(), NotKnown> {
        copy_binary::row(out, encodings.len())?;
        self.target.binary_cells(out, self.row, encodings)
    }
}

/// A row for the staging table.
pub(super) struct StagingRow<'a> {
    pub(super) target: &'a Target,
    pub(super) n: i64,
    pub(super) op: Op,
    pub(super) mask: usize,
    pub(super) row: &'a Row,
}

/// Columns of a staging table before those of the target.
const STAGING_COLUMNS: usize = 3;

impl CopyRow for StagingRow<'_> {
    fn text(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = write!(out, "{}\t{}\t{}\t", self.n, self.op.letter(), self.mask);
        self.target.stage_cells(out, self.row);
    }

    fn binary(&self, out: &mut Vec<u8>, encodings: &[Encoding]) -> Result<(), NotKnown> {
        let mask = i32::try_from(self.mask).map_err(|_| NotKnown)?;
        copy_binary::row(out, STAGING_COLUMNS + encodings.len())?;
        copy_binary::value(out, &self.n.to_be_bytes());
        copy_binary::value(out, &[self.op.letter() as u8]);
        copy_binary::value(out, &mask.to_be_bytes());
        self.target.binary_cells(out, self.row, encodings)
    }
}

/// What [`INDEXED_SQL`] says: of the index, and of the table.
async fn indexed(
    client: &Client,
    destination: &TableName,
    key: &[&str],
) -> Result<(bool, bool), Error> {
    let row = client
        .query_one(INDEXED_SQL, &[&destination.quoted(), &key])
        .await
        .map_err(Error::sql(format!(
            "looking at the indexes of destination table {destination}"
        )))?;
    Ok((row.get("indexed"), row.get("plain")))
}

/// How the values of a column of [`COLUMNS_SQL`] may be given as parameters.
fn element(row: &tokio_postgres::Row) -> Element {
    match row.get::<_, Option<&str>>("delimiter") {
        Some(delimiter) => Element::Own(delimiter.chars().next().unwrap_or(',')),
        // Somebody's function would make the value, and not the type's input.
        None if row.get("is_cast") => Element::Staged,
        None => Element::Text,
    }
}

/// Whether the column's modifier could round or cut a key of a source column with this type and
/// modifier: staged it is, as the table's own are.
fn modifies(rows: &[tokio_postgres::Row], column: &SqlColumn, source: (u32, i32)) -> bool {
    let mut rows = rows.iter();
    let own = rows.find(|row| quote_ident(row.get(0)) == column.name);
    own.is_none_or(|row| {
        let (type_oid, typmod): (u32, i32) = (row.get("type_oid"), row.get("typmod"));
        typmod != -1 && (type_oid, typmod) != source
    })
}

/// The event's own key, or else the source's primary key where the events carry it. None by a
/// deferrable one: rows may share it for as long as a statement or transaction lasts, so that what
/// an update leaves behind under it may be another row's by then.
fn key_columns(version: &TableVersion, fit: &Fit, primary_key: &[String]) -> Vec<usize> {
    let own: Vec<usize> = (0..version.columns.len())
        .filter(|&index| version.columns[index].key)
        .collect();
    if !own.is_empty() {
        return own;
    }
    let mut facts = version.columns.iter().flat_map(|column| &column.facts);
    if facts.any(|facts| facts.key_is_deferrable) {
        return Vec::new();
    }
    if let Some(key) = &fit.primary_key {
        let mut key = key.clone();
        key.sort_unstable();
        return key;
    }
    let by_name = |name: &String| {
        version
            .columns
            .iter()
            .position(|column| column.name == *name)
    };
    let mut key: Vec<usize> = primary_key.iter().filter_map(by_name).collect();
    if key.len() < primary_key.len() {
        return Vec::new();
    }
    key.sort_unstable();
    key
}

#[cfg(test)]
mod tests {
    use bunny_schemas::envelope::{ColumnFacts, ColumnSchema};

    use super::*;

    fn version(columns: &[(&str, bool)]) -> TableVersion {
        let columns = columns
            .iter()
            .enumerate()
            .map(|(index, (name, key))| ColumnSchema {
                name: (*name).to_owned(),
                attnum: index as i16 + 1,
                type_oid: 25,
                type_name: "text".to_owned(),
                typmod: -1,
                not_null: false,
                key: *key,
                facts: None,
            });
        TableVersion {
            schema_id: 1,
            source: TableName {
                schema: "public".into(),
                name: "t".into(),
            },
            columns: columns.collect(),
        }
    }

    fn fit(primary_key: Option<Vec<usize>>) -> Fit {
        Fit {
            into: Vec::new(),
            primary_key,
        }
    }

    #[test]
    fn the_events_key_wins_over_the_primary_key() {
        let version = version(&[("id", false), ("code", true)]);
        assert_eq!(key_columns(&version, &fit(None), &["id".into()]), [1]);
    }

    #[test]
    fn a_primary_key_serves_events_without_one() {
        let version = version(&[("a", false), ("b", false), ("c", false)]);
        assert_eq!(
            key_columns(&version, &fit(None), &["c".into(), "a".into()]),
            [0, 2]
        );
        assert_eq!(
            key_columns(&version, &fit(Some(vec![1])), &["c".into()]),
            [1]
        );
        assert!(
            key_columns(&version, &fit(Some(Vec::new())), &["c".into()]).is_empty(),
            "it has none by now"
        );
    }

    #[test]
    fn a_deferrable_key_is_none() {
        let mut version = version(&[("id", false), ("v", false)]);
        version.columns[0].facts = Some(ColumnFacts {
            primary_key: Some(1),
            key_is_deferrable: true,
            ..ColumnFacts::default()
        });
        assert!(key_columns(&version, &fit(Some(vec![0])), &["id".into()]).is_empty());
    }

    #[test]
    fn half_a_key_is_none() {
        let version = version(&[("a", false)]);
        assert!(key_columns(&version, &fit(None), &["a".into(), "excluded".into()]).is_empty());
    }
}
