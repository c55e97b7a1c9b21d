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
    let rows = source
        .query(
            "SELECT attname::text FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&qualified(&pair.source)],
        )
        .await
        .with_context(|| format!("reading the columns of {pair:?}"))?;
    Ok(rows
        .iter()
        .map(|row| row.get(0))
        .filter(|column| !pair.excluded.contains(column))
        .collect())
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
        let mut columns_of = Vec::with_capacity(some.len());
        for pair in some {
            columns_of.push(columns(source, pair).await?);
        }
        let ask = |table: fn(&TablePair) -> &(String, String)| {
            let questions = some.iter().zip(&columns_of).map(|(pair, columns)| {
                format!("({})", fingerprint_sql(&qualified(table(pair)), columns))
            });
            format!("SELECT {}", questions.collect::<Vec<_>>().join(", "))
        };
        let (here, there) = tokio::try_join!(
            source.texts(ask(|pair| &pair.source)),
            destination.texts(ask(|pair| &pair.destination)),
        )?;
        for (index, pair) in some.iter().enumerate() {
            if here[index] != there[index] {
                let columns = &columns_of[index];
                let text = format!(
                    "{} differs from {}: {} at the source, {} at the destination\n{}",
                    qualified(&pair.destination),
                    qualified(&pair.source),
                    here[index],
                    there[index],
                    difference(source, destination, pair, columns).await?
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
         FROM (SELECT md5(({})::text) AS h FROM {table}) AS hashed",
        row_expression(columns)
    )
}

fn row_expression(columns: &[String]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| quote(column)).collect();
    format!("ROW({})", quoted.join(", "))
}

/// Walks both sides in the same order and collects what only one has.
async fn difference(
    source: &Session,
    destination: &Session,
    pair: &TablePair,
    columns: &[String],
) -> anyhow::Result<String> {
    let mut here = sorted_rows(source, &qualified(&pair.source), columns).await?;
    let mut there = sorted_rows(destination, &qualified(&pair.destination), columns).await?;
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
