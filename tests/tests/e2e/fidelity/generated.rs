//! Values nobody thought of: generated, other ones at every run.

use bunny_tests::content::TablePair;
use rand::Rng;

use super::value_tables::SCHEMA;

const ROWS: usize = 500;

pub fn pair() -> TablePair {
    TablePair::same(&format!("{SCHEMA}.generated"))
}

/// A table of generated rows, to be copied.
pub fn create() -> String {
    format!(
        "CREATE TABLE {SCHEMA}.generated (id int PRIMARY KEY, f8 double precision, f4 real, i8 bigint, num numeric, \
             txt text, bin bytea, ts timestamptz, iv interval, txts text[], js json);\n{}",
        insert(0)
    )
}

/// More of them for the stream: new rows, and new values in the old ones.
pub fn changes() -> Vec<String> {
    let others = "f8 = w.f8, f4 = w.f4, i8 = w.i8, num = w.num, txt = w.txt, bin = w.bin, ts = w.ts, iv = w.iv, txts = w.txts, js = w.js";
    vec![
        insert(10_000),
        format!(
            "UPDATE {SCHEMA}.generated AS t SET {others} FROM {SCHEMA}.generated AS w \
             WHERE w.id = t.id + 10000 AND t.id % 2 = 0"
        ),
    ]
}

fn insert(from: usize) -> String {
    let mut random = rand::rng();
    let rows: Vec<String> = (from..from + ROWS)
        .map(|id| {
            let (double, single) = (
                f64::from_bits(random.random()),
                f32::from_bits(random.random()),
            );
            let (texts, bytes): (Vec<String>, String) = (
                (0..3).map(|_| text(&mut random)).collect(),
                (0..random.random_range(0..40))
                    .map(|_| format!("{:02x}", random.random::<u8>()))
                    .collect(),
            );
            format!(
                "({id}, '{double:e}', '{single:e}', {}, '{}e{}', {}, '\\x{bytes}', \
                 timestamptz '2000-01-01 00:00+00' + interval '1 microsecond' * {}, \
                 make_interval(months => {}, days => {}, secs => {}), ARRAY[{}], to_json({}))",
                random.random::<i64>(),
                random.random::<i64>(),
                random.random_range(-300..300),
                texts[0],
                random.random_range(-200_000_000_000_000_000_i64..9_000_000_000_000_000_000),
                random.random::<i16>(),
                random.random::<i32>(),
                random.random_range(-1e6..1e6),
                texts.join(", "),
                texts[1],
            )
        })
        .collect();
    format!(
        "INSERT INTO {SCHEMA}.generated VALUES {};\n",
        rows.join(",\n")
    )
}

/// A literal: any characters but NUL, which Postgres does not store.
fn text(random: &mut impl Rng) -> String {
    let awkward = ['\\', '\'', '"', '\t', '\n', '\r', 'N', ',', '{', '}', ' '];
    let chars: String = (0..random.random_range(0..12))
        .map(|_| match random.random_range(0..3) {
            0 => awkward[random.random_range(0..awkward.len())],
            1 => char::from(random.random_range(1..128_u8)),
            _ => random.random_range('\u{80}'..char::MAX),
        })
        .collect();
    format!("'{}'::text", chars.replace('\'', "''"))
}
