//! The content oracle: source and destination hold the same rows, duplicates counted.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use tokio_postgres::RowStream;

use crate::database::{Session, quote};

/// How many differing rows a failure shows.
const SHOWN_ROWS: usize = 10;

/// A source table, the destination table it is mapped to, and the columns to compare.
#[derive(Debug, Clone)]
pub struct TablePair {
    /// Schema and name, unquoted.
    pub source: (String, String),
    pub destination: (String, String),
    /// Columns left out.
    pub excluded: Vec<String>,
}

impl TablePair {
    /// `"schema.table"` on both sides, all columns.
    pub fn same(name: &str) -> TablePair {
        TablePair::renamed(name, name)
    }

    /// `"schema.table"` each.
    pub fn renamed(source: &str, destination: &str) -> TablePair {
        let split = |name: &str| {
            let (schema, table) = name.split_once('.').unwrap_or(("public", name));
            (schema.to_owned(), table.to_owned())
        };
        TablePair {
            source: split(source),
            destination: split(destination),
            excluded: Vec::new(),
        }
    }

    /// Leaves columns out of the comparison.
    pub fn without(mut self, columns: &[&str]) -> TablePair {
        self.excluded = columns.iter().map(|&column| column.to_owned()).collect();
        self
    }

    /// Several tables under the same names.
    pub fn all(names: &[&str]) -> Vec<TablePair> {
        names.iter().map(|name| TablePair::same(name)).collect()
    }
}

/// `"schema"."table"`.
pub fn qualified((schema, table): &(String, String)) -> String {
    format!("{}.{}", quote(schema), quote(table))
}

/// The columns of a source table that are compared, in their order, true names.
pub async fn columns(source: &Session, pair: &TablePair) -> anyhow::Result<Vec<String>> {
    Ok(columns_of(source, std::slice::from_ref(pair))
        .await?
        .pop()
        .unwrap_or_default())
}

/// As [`columns`], for several.
async fn columns_of(source: &Session, pairs: &[TablePair]) -> anyhow::Result<Vec<Vec<String>>> {
    let tables: Vec<String> = pairs.iter().map(|pair| qualified(&pair.source)).collect();
    let rows = source
        .query(
            "SELECT ARRAY(SELECT attname::text FROM pg_attribute
                          WHERE attrelid = t::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
             FROM unnest($1::text[]) WITH ORDINALITY AS listed(t, n) ORDER BY n",
            &[&tables],
        )
        .await
        .with_context(|| format!("reading the columns of {tables:?}"))?;
    let columns = rows.iter().zip(pairs).map(|(row, pair)| {
        let mut columns: Vec<String> = row.get(0);
        columns.retain(|column| !pair.excluded.contains(column));
        columns
    });
    Ok(columns.collect())
}

/// What to select from: the table, without the tables that inherit from it.
pub async fn own_rows(session: &Session, tables: &[String]) -> anyhow::Result<Vec<String>> {
    let rows = session
        .query(
            "SELECT CASE WHEN c.relkind = 'r' THEN 'ONLY ' ELSE '' END || t
             FROM unnest($1::text[]) WITH ORDINALITY AS listed(t, n) JOIN pg_class c ON c.oid = t::regclass
             ORDER BY n",
            &[&tables],
        )
        .await
        .with_context(|| format!("looking for {tables:?}"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Pairs whose fingerprints one statement asks for.
const PAIRS_PER_STATEMENT: usize = 40;

/// Compares full contents of every pair; the error shows the first differing rows.
pub async fn assert_same(
    source: &Session,
    destination: &Session,
    pairs: &[TablePair],
) -> anyhow::Result<()> {
    let differing = differing(source, destination, pairs).await?;
    if differing.is_empty() {
        return Ok(());
    }
    bail!("{}", differing.into_values().collect::<Vec<_>>().join("\n"))
}

/// What differs, by the index of the pair.
pub async fn differing(
    source: &Session,
    destination: &Session,
    pairs: &[TablePair],
) -> anyhow::Result<BTreeMap<usize, String>> {
    let mut differing = BTreeMap::new();
    for (block, some) in pairs.chunks(PAIRS_PER_STATEMENT).enumerate() {
        let columns_of = columns_of(source, some).await?;
        let names = |table: fn(&TablePair) -> &(String, String)| -> Vec<String> {
            some.iter().map(|pair| qualified(table(pair))).collect()
        };
        let ours = own_rows(source, &names(|pair| &pair.source)).await?;
        let theirs = own_rows(destination, &names(|pair| &pair.destination)).await?;
        let ask = |tables: &[String]| {
            let questions = tables
                .iter()
                .zip(&columns_of)
                .map(|(table, columns)| format!("({})", fingerprint_sql(table, columns)));
            format!("SELECT {}", questions.collect::<Vec<_>>().join(", "))
        };
        let (here, there) =
            tokio::try_join!(source.texts(ask(&ours)), destination.texts(ask(&theirs)))?;
        for (index, pair) in some.iter().enumerate() {
            if here[index] != there[index] {
                let columns = &columns_of[index];
                let text = format!(
                    "{} differs from {}: {} at the source, {} at the destination\n{}",
                    qualified(&pair.destination),
                    qualified(&pair.source),
                    here[index],
                    there[index],
                    difference(
                        (source, &ours[index]),
                        (destination, &theirs[index]),
                        columns
                    )
                    .await?
                );
                differing.insert(block * PAIRS_PER_STATEMENT + index, text);
            }
        }
    }
    Ok(differing)
}

/// Rows and an order-independent 128-bit sum of the rows' hashes, as text. Every row
/// counts as often as it stands there.
pub async fn fingerprint(
    session: &Session,
    table: &str,
    columns: &[String],
) -> anyhow::Result<String> {
    session.text(&fingerprint_sql(table, columns)).await
}

fn fingerprint_sql(table: &str, columns: &[String]) -> String {
    format!(
        "SELECT count(*)::text || ' rows, sum '
            || coalesce(sum(('x' || substr(h, 1, 16))::bit(64)::bigint::numeric), 0)::text || ':'
            || coalesce(sum(('x' || substr(h, 17))::bit(64)::bigint::numeric), 0)::text
         FROM (SELECT md5(convert_to(({})::text, 'UTF8')) AS h FROM {table}) AS hashed",
        row_expression(columns)
    )
}

fn row_expression(columns: &[String]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| quote(column)).collect();
    format!("ROW({})", quoted.join(", "))
}

/// Walks both sides in the same order and collects what only one has.
async fn difference(
    (source, ours): (&Session, &str),
    (destination, theirs): (&Session, &str),
    columns: &[String],
) -> anyhow::Result<String> {
    let mut here = sorted_rows(source, ours, columns).await?;
    let mut there = sorted_rows(destination, theirs, columns).await?;
    let mut lines = Vec::new();
    let (mut left, mut right) = (next(&mut here).await?, next(&mut there).await?);
    while lines.len() < SHOWN_ROWS {
        match (&left, &right) {
            (None, None) => break,
            (Some(a), Some(b)) if a == b => {
                left = next(&mut here).await?;
                right = next(&mut there).await?;
            }
            (Some(a), b) if b.as_ref().is_none_or(|b| a.as_bytes() < b.as_bytes()) => {
                lines.push(format!("  only at the source:      {a}"));
                left = next(&mut here).await?;
            }
            (_, b) => {
                lines.push(format!(
                    "  only at the destination: {}",
                    b.as_deref().unwrap_or_default()
                ));
                right = next(&mut there).await?;
            }
        }
    }
    Ok(lines.join("\n"))
}

type Rows = std::pin::Pin<Box<RowStream>>;

async fn sorted_rows(session: &Session, table: &str, columns: &[String]) -> anyhow::Result<Rows> {
    let sql = format!(
        "SELECT ({})::text COLLATE \"C\" AS line FROM {table} ORDER BY 1",
        row_expression(columns)
    );
    let no_parameters: [&str; 0] = [];
    Ok(Box::pin(session.query_raw(&sql, no_parameters).await?))
}

async fn next(rows: &mut Rows) -> anyhow::Result<Option<String>> {
    Ok(rows.try_next().await?.map(|row| row.get(0)))
}
