//! Any table and any change of it.

use proptest::prelude::*;

use crate::envelope::*;

/// Postgres types with a wire type of their own, and two that travel as text.
const TYPES: [(u32, &str); 10] = [
    (16, "boolean"),
    (17, "bytea"),
    (20, "bigint"),
    (21, "smallint"),
    (23, "integer"),
    (700, "real"),
    (701, "double precision"),
    (25, "text"),
    (1700, "numeric(10,2)"),
    (98765, "app.\"Mood\""),
];

/// A value with its text owned.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
}

impl Cell {
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text(text) => Value::Text(text),
        }
    }
}

fn double_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u64>().prop_map(|bits| {
            let mut out = Vec::new();
            numbers::print_double(&mut out, f64::from_bits(bits));
            String::from_utf8(out).unwrap()
        }),
        prop::sample::select(vec![
            "1e+20",
            "NaN",
            "Infinity",
            "-Infinity",
            "-0",
            "0",
            "5e-324"
        ])
        .prop_map(str::to_owned),
    ]
}

fn float_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u32>().prop_map(|bits| {
            let mut out = Vec::new();
            numbers::print_float(&mut out, f32::from_bits(bits));
            String::from_utf8(out).unwrap()
        }),
        prop::sample::select(vec![
            "1e+20",
            "NaN",
            "Infinity",
            "-Infinity",
            "-0",
            "0",
            "1e-45"
        ])
        .prop_map(str::to_owned),
    ]
}

fn text_of(type_oid: u32) -> BoxedStrategy<Vec<u8>> {
    let text = match type_oid {
        16 => prop::sample::select(vec!["t", "f"])
            .prop_map(str::to_owned)
            .boxed(),
        17 => prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| {
                let mut out = Vec::new();
                numbers::print_bytea(&mut out, &bytes);
                String::from_utf8(out).unwrap()
            })
            .boxed(),
        20 => any::<i64>().prop_map(|value| value.to_string()).boxed(),
        21 => any::<i16>().prop_map(|value| value.to_string()).boxed(),
        23 => any::<i32>().prop_map(|value| value.to_string()).boxed(),
        700 => float_text().boxed(),
        701 => double_text().boxed(),
        _ => ".{0,20}".boxed(),
    };
    text.prop_map(String::into_bytes).boxed()
}

fn cell_of(type_oid: u32, unchanged: bool) -> BoxedStrategy<Cell> {
    let text = text_of(type_oid).prop_map(Cell::Text);
    if unchanged {
        prop_oneof![1 => Just(Cell::Null), 1 => Just(Cell::Unchanged), 4 => text].boxed()
    } else {
        prop_oneof![1 => Just(Cell::Null), 4 => text].boxed()
    }
}

pub(super) fn table() -> impl Strategy<Value = TableSchema> {
    let column = (
        "(.{1,8}|[_xA-F0-9]{1,6})",
        0..TYPES.len(),
        any::<bool>(),
        any::<bool>(),
        any::<i32>(),
    );
    let columns = prop::collection::vec(column, 0..12);
    ("[a-z][a-z_0-9-]{0,8}", ".{1,8}", ".{1,8}", columns).prop_map(
        |(mirror, schema, table, columns)| TableSchema {
            mirror,
            schema,
            table,
            columns: columns
                .into_iter()
                .enumerate()
                .map(|(index, (name, of, not_null, key, typmod))| ColumnSchema {
                    // Names of a table's columns differ.
                    name: format!("{name}{index}"),
                    attnum: index as i16 + 1,
                    type_oid: TYPES[of].0,
                    type_name: TYPES[of].1.to_owned(),
                    typmod,
                    not_null,
                    key,
                    facts: facts(index),
                })
                .collect(),
        },
    )
}

/// Some columns were recognised at the source, in one way or another.
fn facts(index: usize) -> Option<ColumnFacts> {
    let old_rows = match index % 4 {
        0 => return None,
        1 => OldRows::Null,
        2 => OldRows::Value("it's \"old\"".to_owned()),
        _ => OldRows::Default,
    };
    Some(ColumnFacts {
        default: index.is_multiple_of(3).then(|| "'x'::text".to_owned()),
        old_rows,
        primary_key: (index == 1).then_some(1),
        key_is_deferrable: index == 1,
        collation: None,
        labels: (index == 2).then(|| EnumLabels {
            schema: "public".to_owned(),
            name: "mood".to_owned(),
            labels: vec![Label {
                oid: u32::MAX,
                label: "so so".to_owned(),
            }],
        }),
        generated: index == 3,
    })
}

pub(super) fn values(cells: &[Cell]) -> Vec<Value<'_>> {
    cells.iter().map(Cell::value).collect()
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) table: TableSchema,
    pub(super) op: Op,
    pub(super) before: Option<(BeforeKind, Vec<Cell>)>,
    pub(super) after: Option<Vec<Cell>>,
    pub(super) numbers: (u128, u32, u64, u64, i64, u64),
    pub(super) last: bool,
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    table()
        .prop_flat_map(|table| {
            let cells = |unchanged| {
                table
                    .columns
                    .iter()
                    .map(|column| cell_of(column.type_oid, unchanged))
                    .collect::<Vec<_>>()
            };
            let kinds = prop::sample::select(vec![BeforeKind::Key, BeforeKind::Row]);
            let ops = prop::sample::select(vec![Op::Create, Op::Update, Op::Delete]);
            let (before, after) = (cells(false), cells(true));
            (
                Just(table),
                ops,
                kinds,
                before,
                after,
                any::<bool>(),
                any::<bool>(),
                any::<(u128, u32, u64, u64, i64, u64)>(),
            )
        })
        .prop_map(
            |(table, op, kind, before, after, with_before, last, numbers)| Event {
                table,
                op,
                before: (op == Op::Delete || op == Op::Update && with_before)
                    .then_some((kind, before)),
                after: (op != Op::Delete).then_some(after),
                numbers,
                last,
            },
        )
}

impl Event {
    pub(super) fn source(&self) -> Source<'_> {
        let (generation, xid, lsn, commit_lsn, commit_ts_us, seq) = self.numbers;
        Source {
            generation: Uuid::from_u128(generation),
            mirror: &self.table.mirror,
            schema: &self.table.schema,
            table: &self.table.table,
            xid,
            lsn: Lsn(lsn),
            commit_lsn: Lsn(commit_lsn),
            commit_ts_us,
            seq,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let before = self
            .before
            .as_ref()
            .map(|(kind, cells)| (*kind, values(cells)));
        let after = self.after.as_ref().map(|cells| values(cells));
        let mut out = vec![0xEE];
        Encoder::new(&self.table, 0x0A0B_0C0D, 7)
            .change(
                &mut out,
                self.op,
                before.as_ref().map(|(kind, row)| (*kind, row.as_slice())),
                after.as_deref(),
                &self.source(),
            )
            .unwrap();
        assert_eq!(out.remove(0), 0xEE, "the encoder appends");
        if self.last {
            set_last(&mut out);
        }
        out
    }
}
