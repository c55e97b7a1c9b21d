//! Cutting a table into chunks: values in, predicates out, no I/O.
//!
//! What must hold for any input: the chunks of a relation are disjoint and together cover
//! every row, NULL keys included. It follows from the shape alone: ranges share their
//! bounds, the first is open below and the last above. Estimates only decide how evenly
//! rows are spread.

use std::sync::Arc;

use bunny_postgres::{TableName, quote_ident, quote_literal};

/// More chunks than this are not made of one table, however few rows a chunk was asked to
/// have: a chunk costs a transaction here and another at the destination.
pub(super) const CHUNKS_MAX: u64 = 50_000;

/// How the key of a relation is compared, taken from the index that leads on it, so that
/// order, bounds and index agree for every type, operator class and collation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyAxis {
    pub(super) column: String,
    /// As format_type prints it, type modifier included.
    pub(super) type_name: String,
    pub(super) less: Operator,
    pub(super) at_least: Operator,
    /// The index's collation, for types that have one.
    pub(super) collation: Option<Qualified>,
}

/// A name with its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qualified {
    pub(super) schema: String,
    pub(super) name: String,
}

/// An operator with its schema; its name is punctuation and is never quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator {
    pub(super) schema: String,
    pub(super) symbol: String,
}

impl Operator {
    /// As SQL: `OPERATOR("pg_catalog".<)`.
    pub(super) fn sql(&self) -> String {
        format!("OPERATOR({}.{})", quote_ident(&self.schema), self.symbol)
    }
}

impl KeyAxis {
    /// `literal` as a value of the key's type under the index's collation.
    pub(super) fn value_sql(&self, literal: &str) -> String {
        let value = format!("{}::{}", quote_literal(literal), self.type_name);
        match self.collation_sql() {
            Some(collation) => format!("({value} {collation})"),
            None => format!("({value})"),
        }
    }

    /// `COLLATE "schema"."name"` for types that have a collation.
    pub(super) fn collation_sql(&self) -> Option<String> {
        self.collation.as_ref().map(|collation| {
            format!(
                "COLLATE {}.{}",
                quote_ident(&collation.schema),
                quote_ident(&collation.name)
            )
        })
    }
}

/// Which rows of a relation a chunk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Predicate {
    Whole,
    /// Rows on pages from `from` up to, not including, `to`; open-ended without `to`.
    Pages {
        from: u32,
        to: Option<u32>,
    },
    /// Rows whose key is at least `from` and less than `to`; a missing bound is open.
    Keys {
        axis: Arc<KeyAxis>,
        from: Option<String>,
        to: Option<String>,
    },
    KeyIsNull {
        axis: Arc<KeyAxis>,
    },
}

impl Predicate {
    /// The condition for WHERE; None when every row belongs to the chunk.
    pub(super) fn sql(&self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Pages { from, to: None } => Some(format!("ctid >= '({from},0)'::tid")),
            Self::Pages { from, to: Some(to) } => Some(format!(
                "ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid"
            )),
            Self::Keys { axis, from, to } => {
                let column = quote_ident(&axis.column);
                let lower = from.as_ref().map(|from| {
                    format!("{column} {} {}", axis.at_least.sql(), axis.value_sql(from))
                });
                let upper = to
                    .as_ref()
                    .map(|to| format!("{column} {} {}", axis.less.sql(), axis.value_sql(to)));
                match (lower, upper) {
                    (Some(lower), Some(upper)) => Some(format!("{lower} AND {upper}")),
                    (Some(one), None) | (None, Some(one)) => Some(one),
                    // A range open on both sides still leaves the NULLs to their own chunk.
                    (None, None) => Some(format!("{column} IS DISTINCT FROM NULL")),
                }
            }
            // Not IS NULL: that also holds for a row value whose fields are all NULL, which
            // is a value, has its place in the order, and would be copied twice.
            Self::KeyIsNull { axis } => Some(format!(
                "{} IS NOT DISTINCT FROM NULL",
                quote_ident(&axis.column)
            )),
        }
    }
}

/// One unit of copying: a part of one relation (the table, or a leaf of it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// From 0, without gaps, within the sync.
    pub(super) number: i32,
    pub(super) relation: Arc<Relation>,
    pub(super) predicate: Predicate,
}

/// Something that holds rows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: TableName,
}

/// `COPY … TO STDOUT` of the chunk's rows, text format, `columns` in the order given.
pub(super) fn copy_sql(chunk: &Chunk, columns: &[String]) -> String {
    let columns: Vec<String> = columns.iter().map(|name| quote_ident(name)).collect();
    let condition = chunk
        .predicate
        .sql()
        .map_or_else(String::new, |condition| format!(" WHERE {condition}"));
    format!(
        "COPY (SELECT {} FROM ONLY {}{condition}) TO STDOUT",
        columns.join(", "),
        chunk.relation.name.quoted(),
    )
}

/// Rows a chunk should have: what was asked for, or more when that made too many chunks.
pub(super) fn rows_per_chunk(asked: u64, rows_of_table: u64) -> u64 {
    asked.max(1).max(rows_of_table.div_ceil(CHUNKS_MAX))
}

/// How many chunks `rows` make.
pub(super) fn chunks_of(rows: u64, rows_per_chunk: u64) -> u64 {
    rows.div_ceil(rows_per_chunk.max(1)).max(1)
}

/// Cuts `pages` pages holding about `rows_per_page` rows each into ranges of about
/// `rows_per_chunk` rows. No pages, no chunks.
pub(super) fn page_ranges(pages: u32, rows_per_page: f64, rows_per_chunk: u64) -> Vec<Predicate> {
    if pages == 0 {
        return Vec::new();
    }
    // Dead space may make a sample find next to nothing; below one row a page the guess is
    // worth little and the ranges would only grow.
    let wanted = rows_per_chunk as f64 / rows_per_page.max(1.0);
    // A float outside of the range of u32 saturates.
    let step = (wanted.ceil() as u32).max(1);
    if step >= pages {
        return vec![Predicate::Whole];
    }

    let mut ranges = Vec::with_capacity((pages / step) as usize + 1);
    let mut from = 0;
    while from < pages {
        let next = from.saturating_add(step);
        let to = (next < pages).then_some(next);
        ranges.push(Predicate::Pages { from, to });
        from = next;
    }
    ranges
}

/// Ranges between `bounds`, which must strictly ascend in the axis's order (the caller has
/// the server check that), and a chunk for the NULLs.
///
/// The NULLs get one whether or not the column is declared NOT NULL: from 18 on such a
/// declaration may be unvalidated.
pub(super) fn key_ranges(axis: &Arc<KeyAxis>, bounds: Vec<String>) -> Vec<Predicate> {
    if bounds.is_empty() {
        return vec![Predicate::Whole];
    }
    let mut ranges = Vec::with_capacity(bounds.len() + 2);
    let mut from = None;
    for bound in bounds {
        ranges.push(Predicate::Keys {
            axis: axis.clone(),
            from: from.replace(bound.clone()),
            to: Some(bound),
        });
    }
    ranges.push(Predicate::Keys {
        axis: axis.clone(),
        from,
        to: None,
    });
    ranges.push(Predicate::KeyIsNull { axis: axis.clone() });
    ranges
}

/// Numbers the chunks of all relations of a table, relation by relation.
pub(super) fn number_chunks(relations: Vec<(Arc<Relation>, Vec<Predicate>)>) -> Vec<Chunk> {
    let predicates = relations.into_iter().flat_map(|(relation, predicates)| {
        predicates
            .into_iter()
            .map(move |predicate| (relation.clone(), predicate))
    });
    (0_i32..)
        .zip(predicates)
        .map(|(number, (relation, predicate))| Chunk {
            number,
            relation,
            predicate,
        })
        .collect()
}

/// Page ranges (from, to) that are read to learn how many rows a page holds: all pages of
/// a small relation, else some spread over it. Disjoint, ascending.
pub(super) fn probes(pages: u32) -> Vec<(u32, u32)> {
    const PROBES: u32 = 8;
    const PROBE_PAGES: u32 = 16;
    if pages <= PROBES * PROBE_PAGES {
        return vec![(0, pages)];
    }
    let stride = pages / PROBES;
    (0..PROBES)
        .map(|index| (index * stride, index * stride + PROBE_PAGES))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn axis(column: &str) -> Arc<KeyAxis> {
        let operator = |symbol: &str| Operator {
            schema: "pg_catalog".into(),
            symbol: symbol.into(),
        };
        Arc::new(KeyAxis {
            column: column.into(),
            type_name: "integer".into(),
            less: operator("<"),
            at_least: operator(">="),
            collation: None,
        })
    }

    fn chunk(predicate: Predicate) -> Chunk {
        Chunk {
            number: 0,
            relation: Arc::new(Relation {
                oid: 1,
                name: TableName {
                    schema: "Od\"d".into(),
                    name: "order".into(),
                },
            }),
            predicate,
        }
    }

    /// Does the row with this page and key belong to the predicate? The SQL's meaning.
    fn holds(predicate: &Predicate, page: u32, key: Option<i64>) -> bool {
        let number = |text: &String| text.parse::<i64>().expect("a number");
        match predicate {
            Predicate::Whole => true,
            Predicate::Pages { from, to } => page >= *from && to.is_none_or(|to| page < to),
            Predicate::Keys { from, to, .. } => key.is_some_and(|key| {
                from.as_ref().is_none_or(|from| key >= number(from))
                    && to.as_ref().is_none_or(|to| key < number(to))
            }),
            Predicate::KeyIsNull { .. } => key.is_none(),
        }
    }

    proptest! {
        #[test]
        fn every_page_is_in_exactly_one_range(
            pages in 1_u32..50_000,
            density in prop_oneof![Just(0.0), 0.001_f64..300.0],
            rows_per_chunk in 1_u64..1_000_000,
            page in 0_u32..200_000,
        ) {
            let ranges = page_ranges(pages, density, rows_per_chunk);
            // Also pages added after the size was taken: the last range is open.
            let owners = ranges.iter().filter(|range| holds(range, page, None)).count();
            prop_assert_eq!(owners, 1);
        }

        #[test]
        fn the_ends_of_page_ranges_are_covered(
            pages in prop_oneof![1_u32..100, (u32::MAX - 10)..=u32::MAX],
            rows_per_chunk in (u64::from(u32::MAX) / 20)..u64::MAX,
        ) {
            let ranges = page_ranges(pages, 1.0, rows_per_chunk);
            for page in [0, 1, pages / 2, pages - 1, u32::MAX - 1] {
                let owners = ranges.iter().filter(|range| holds(range, page, None)).count();
                prop_assert_eq!(owners, 1);
            }
        }

        #[test]
        fn every_key_is_in_exactly_one_range(
            bounds in proptest::collection::btree_set(-50_i64..50, 0..20),
            key in proptest::option::of(-60_i64..60),
        ) {
            let bounds = bounds.iter().map(i64::to_string).collect();
            let ranges = key_ranges(&axis("k"), bounds);
            let owners = ranges.iter().filter(|range| holds(range, 0, key)).count();
            prop_assert_eq!(owners, 1);
        }

        #[test]
        fn ranges_have_about_the_rows_asked_for(
            pages in 1_u32..100_000,
            density in 1.0_f64..300.0,
            rows_per_chunk in 300_u64..1_000_000,
        ) {
            let ranges = page_ranges(pages, density, rows_per_chunk);
            let rows = f64::from(pages) * density;
            let fewest = (rows / (rows_per_chunk as f64 + density)).floor() as usize;
            prop_assert!(ranges.len() >= fewest.max(1));
            prop_assert!(ranges.len() as f64 <= rows / rows_per_chunk as f64 + 1.0);
        }

        #[test]
        fn probes_are_disjoint_and_inside(pages in 0_u32..u32::MAX) {
            let mut end = 0;
            for (from, to) in probes(pages) {
                prop_assert!(from >= end && to <= pages && from <= to);
                end = to;
            }
        }

        #[test]
        fn chunks_stay_below_the_limit(asked in 0_u64..10_000, rows in 0_u64..u64::MAX / 2) {
            let rows_per_chunk = rows_per_chunk(asked, rows);
            prop_assert!(rows_per_chunk >= asked);
            prop_assert!(chunks_of(rows, rows_per_chunk) <= CHUNKS_MAX);
        }
    }

    #[test]
    fn an_empty_relation_has_no_chunk() {
        assert_eq!(page_ranges(0, 10.0, 100), []);
    }

    #[test]
    fn a_small_relation_is_one_chunk() {
        assert_eq!(page_ranges(3, 10.0, 250_000), [Predicate::Whole]);
        assert_eq!(key_ranges(&axis("k"), Vec::new()), [Predicate::Whole]);
    }

    #[test]
    fn renders_page_ranges() {
        let columns = ["a".to_owned(), "B \"b\"".to_owned()];
        let sql = copy_sql(
            &chunk(Predicate::Pages {
                from: 4,
                to: Some(8),
            }),
            &columns,
        );
        assert_eq!(
            sql,
            "COPY (SELECT \"a\", \"B \"\"b\"\"\" FROM ONLY \"Od\"\"d\".\"order\" \
             WHERE ctid >= '(4,0)'::tid AND ctid < '(8,0)'::tid) TO STDOUT"
        );
        let sql = copy_sql(
            &chunk(Predicate::Pages { from: 8, to: None }),
            &columns[..1],
        );
        assert_eq!(
            sql,
            "COPY (SELECT \"a\" FROM ONLY \"Od\"\"d\".\"order\" \
             WHERE ctid >= '(8,0)'::tid) TO STDOUT"
        );
        let sql = copy_sql(&chunk(Predicate::Whole), &columns[..1]);
        assert_eq!(
            sql,
            "COPY (SELECT \"a\" FROM ONLY \"Od\"\"d\".\"order\") TO STDOUT"
        );
    }

    #[test]
    fn renders_key_ranges_with_quoting_and_collation() {
        let axis = Arc::new(KeyAxis {
            type_name: "character varying(20)".into(),
            collation: Some(Qualified {
                schema: "pg_catalog".into(),
                name: "de_DE".into(),
            }),
            ..KeyAxis::clone(&axis("Na\"me"))
        });
        let ranges = key_ranges(&axis, vec!["O'Hara".into()]);
        let rendered: Vec<Option<String>> = ranges.iter().map(Predicate::sql).collect();
        let value = "('O''Hara'::character varying(20) COLLATE \"pg_catalog\".\"de_DE\")";
        assert_eq!(
            rendered,
            [
                Some(format!("\"Na\"\"me\" OPERATOR(\"pg_catalog\".<) {value}")),
                Some(format!("\"Na\"\"me\" OPERATOR(\"pg_catalog\".>=) {value}")),
                Some("\"Na\"\"me\" IS NOT DISTINCT FROM NULL".to_owned()),
            ]
        );
    }

    #[test]
    fn numbers_chunks_across_relations() {
        let relation = |oid| {
            Arc::new(Relation {
                oid,
                name: TableName {
                    schema: "public".into(),
                    name: format!("leaf{oid}"),
                },
            })
        };
        let chunks = number_chunks(vec![
            (relation(1), page_ranges(10, 1.0, 5)),
            (relation(2), page_ranges(0, 1.0, 5)),
            (relation(3), vec![Predicate::Whole]),
        ]);
        let found: Vec<(i32, u32)> = chunks.iter().map(|c| (c.number, c.relation.oid)).collect();
        assert_eq!(found, [(0, 1), (1, 1), (2, 3)]);
    }
}
