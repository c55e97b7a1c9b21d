//! Bounds for cutting a relation by the values of an indexed column.
//!
//! Any type, operator class and collation: the order is the index's own, the values travel
//! as the text their type prints, and the server itself confirms that the bounds, read
//! back from that text, ascend strictly. Without that proof nothing is cut by key.

use std::sync::Arc;

use bunny_postgres::{Result, ResultExt, Session, quote_ident};

use super::plan::{KeyAxis, Operator, Qualified, Relation};
use super::survey::text_rows;

/// How many pages of a sample there should be for each chunk, so that chunks come out about
/// equal even where neighbouring rows have neighbouring keys.
const SAMPLE_PAGES_PER_CHUNK: u64 = 16;
const SAMPLE_PAGES_MIN: u64 = 256;
const SAMPLE_PAGES_MAX: u64 = 8_192;

/// The outcome of looking for bounds.
pub(super) enum Bounds {
    /// Strictly ascending in the axis's order; may be none, may be fewer than asked for.
    Found {
        axis: Arc<KeyAxis>,
        bounds: Vec<String>,
    },
    /// The reason, for the mirror's log.
    Unusable(String),
}

/// Looks for bounds that cut `relation` into about `chunks` parts by `column`.
pub(super) async fn bounds(
    session: &Session,
    relation: &Relation,
    column: &str,
    pages: u32,
    chunks: u64,
) -> Result<Bounds> {
    let Some(axis) = axis(session, relation, column).await? else {
        return Ok(Bounds::Unusable(format!(
            "no valid, complete btree index leads on {}",
            quote_ident(column)
        )));
    };
    let sampled = sample(session, relation, &axis, pages, chunks).await?;
    match ascending(session, &axis, sampled).await? {
        Some(bounds) => Ok(Bounds::Found {
            axis: Arc::new(axis),
            bounds,
        }),
        None => Ok(Bounds::Unusable(format!(
            "values of {} do not keep their order as text",
            quote_ident(column)
        ))),
    }
}

/// How the first usable index that leads on `column` orders it.
async fn axis(session: &Session, relation: &Relation, column: &str) -> Result<Option<KeyAxis>> {
    let row = session
        .query_opt(
            "SELECT pg_catalog.format_type(a.atttypid, a.atttypmod), \
                    lns.nspname::text, lop.oprname::text, \
                    gns.nspname::text, gop.oprname::text, \
                    cns.nspname::text, co.collname::text \
             FROM pg_catalog.pg_index i \
             JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid \
             JOIN pg_catalog.pg_am am ON am.oid = ic.relam AND am.amname = 'btree' \
             JOIN pg_catalog.pg_attribute a \
               ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
             JOIN pg_catalog.pg_opclass oc ON oc.oid = i.indclass[0] \
             JOIN pg_catalog.pg_amop l ON l.amopfamily = oc.opcfamily \
               AND l.amoplefttype = oc.opcintype AND l.amoprighttype = oc.opcintype \
               AND l.amopstrategy = 1 \
             JOIN pg_catalog.pg_operator lop ON lop.oid = l.amopopr \
             JOIN pg_catalog.pg_namespace lns ON lns.oid = lop.oprnamespace \
             JOIN pg_catalog.pg_amop g ON g.amopfamily = oc.opcfamily \
               AND g.amoplefttype = oc.opcintype AND g.amoprighttype = oc.opcintype \
               AND g.amopstrategy = 4 \
             JOIN pg_catalog.pg_operator gop ON gop.oid = g.amopopr \
             JOIN pg_catalog.pg_namespace gns ON gns.oid = gop.oprnamespace \
             LEFT JOIN pg_catalog.pg_collation co ON co.oid = i.indcollation[0] \
             LEFT JOIN pg_catalog.pg_namespace cns ON cns.oid = co.collnamespace \
             WHERE i.indrelid = $1 AND a.attname = $2::text \
               AND i.indisvalid AND i.indisready AND i.indislive AND i.indpred IS NULL \
             ORDER BY oc.opcdefault DESC, i.indnatts, i.indexrelid \
             LIMIT 1",
            &[&relation.oid, &column],
        )
        .await
        .doing(format!(
            "looking for an index of {} on {}",
            relation.name,
            quote_ident(column)
        ))?;
    Ok(row.map(|row| {
        let collation_schema: Option<String> = row.get(5);
        let collation_name: Option<String> = row.get(6);
        KeyAxis {
            column: column.to_owned(),
            type_name: row.get(0),
            less: Operator {
                schema: row.get(1),
                symbol: row.get(2),
            },
            at_least: Operator {
                schema: row.get(3),
                symbol: row.get(4),
            },
            collation: collation_schema
                .zip(collation_name)
                .map(|(schema, name)| Qualified { schema, name }),
        }
    }))
}

/// Values that cut a sample of the relation into `chunks` equal parts, in ascending order,
/// equal ones possibly repeated.
async fn sample(
    session: &Session,
    relation: &Relation,
    axis: &KeyAxis,
    pages: u32,
    chunks: u64,
) -> Result<Vec<String>> {
    let percent = sample_percent(pages, chunks);
    let column = quote_ident(&axis.column);
    let collation = axis.collation_sql().unwrap_or_default();
    let less = axis.less.sql();
    let sql = format!(
        "SELECT k FROM ( \
            SELECT k, \
                   row_number() OVER (ORDER BY k {collation} USING {less}) - 1 AS i, \
                   count(*) OVER () AS n \
            FROM (SELECT {column} AS k FROM ONLY {table} \
                  TABLESAMPLE SYSTEM ({percent}) REPEATABLE (0)) AS sampled \
            WHERE k IS DISTINCT FROM NULL) AS numbered \
         WHERE i > 0 AND i * {chunks} / n > (i - 1) * {chunks} / n \
         ORDER BY i",
        table = relation.name.quoted(),
    );
    let messages = session
        .simple_query(&sql)
        .await
        .doing(format!("sampling {column} of {}", relation.name))?;
    Ok(text_rows(messages)
        .filter_map(|row| row.get(0).map(str::to_owned))
        .collect())
}

/// The share of pages to sample, in percent, as SQL.
fn sample_percent(pages: u32, chunks: u64) -> String {
    let wanted = chunks
        .saturating_mul(SAMPLE_PAGES_PER_CHUNK)
        .clamp(SAMPLE_PAGES_MIN, SAMPLE_PAGES_MAX);
    let percent = 100.0 * wanted as f64 / f64::from(pages.max(1));
    format!("{:.6}", percent.clamp(0.000_001, 100.0))
}

/// Has the server compare neighbours, each read back from its text. Equal neighbours become
/// one bound; None when a value is less than the one before it.
async fn ascending(
    session: &Session,
    axis: &KeyAxis,
    mut values: Vec<String>,
) -> Result<Option<Vec<String>>> {
    values.dedup();
    if values.len() < 2 {
        return Ok(Some(values));
    }
    let listed: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(index, value)| format!("({index},{})", axis.value_sql(value)))
        .collect();
    let collation = axis.collation_sql().unwrap_or_default();
    let less = axis.less.sql();
    let sql = format!(
        "SELECT former {collation} {less} k, k {collation} {less} former FROM ( \
            SELECT i, k, lag(k) OVER (ORDER BY i) AS former \
            FROM (VALUES {}) AS listed (i, k)) AS pairs \
         WHERE i > 0 ORDER BY i",
        listed.join(",")
    );
    let messages = session
        .simple_query(&sql)
        .await
        .doing("comparing the bounds of chunks")?;

    let pairs: Vec<(bool, bool)> = text_rows(messages)
        .map(|row| (row.get(0) == Some("t"), row.get(1) == Some("t")))
        .collect();
    Ok(strictly_ascending(values, &pairs))
}

/// `pairs[i]`: is value i less than value i + 1, and is it greater?
fn strictly_ascending(values: Vec<String>, pairs: &[(bool, bool)]) -> Option<Vec<String>> {
    if pairs.len() + 1 != values.len() {
        return None;
    }
    let mut values = values.into_iter();
    let mut bounds: Vec<String> = values.next().into_iter().collect();
    for (value, (rises, falls)) in values.zip(pairs) {
        match (rises, falls) {
            (true, false) => bounds.push(value),
            (false, false) => {}
            (_, true) => return None,
        }
    }
    Some(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn equal_bounds_become_one() {
        let found = strictly_ascending(
            texts(&["1.0", "1.00", "2"]),
            &[(false, false), (true, false)],
        );
        assert_eq!(found, Some(texts(&["1.0", "2"])));
    }

    #[test]
    fn a_falling_bound_is_refused() {
        let values = texts(&["a", "b", "B"]);
        assert_eq!(
            strictly_ascending(values.clone(), &[(true, false), (false, true)]),
            None
        );
        // An answer that doesn't fit the question proves nothing.
        assert_eq!(strictly_ascending(values, &[(true, false)]), None);
    }

    #[test]
    fn samples_stay_within_a_whole_table() {
        assert_eq!(sample_percent(10, 4), "100.000000");
        assert_eq!(sample_percent(25_600, 4), "1.000000");
        assert_eq!(sample_percent(u32::MAX, 1_000_000), "0.000191");
    }
}
