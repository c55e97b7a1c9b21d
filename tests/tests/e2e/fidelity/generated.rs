//! Values nobody thought of: generated, other ones at every run.

use bunny_tests::content::TablePair;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::value_tables::SCHEMA;

const ROWS: usize = 500;
const VALUES: usize = 19;
const COLUMNS: &str = "f8 double precision, f4 real, i8 bigint, num numeric, txt text, bin bytea, ts timestamptz, \
                       iv interval, txts text[], js json, da date, ti time, tz timetz, tn timestamp, jb jsonb, \
                       rng int8range, mrng datemultirange, en objects.\"Mood's\", pr objects.pair";
const LABELS: [&str; 5] = ["sad", "ok", "very, \"happy\"", "\\N", "{}"];

/// Rows of one seed, which is printed and may be given.
pub struct Generated(StdRng);

impl Generated {
    pub fn new() -> Generated {
        let given = std::env::var("BUNNY_FIDELITY_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or_else(rand::random);
        println!("values generated with BUNNY_FIDELITY_SEED={seed}");
        Generated(StdRng::seed_from_u64(seed))
    }

    /// With a key, and without one.
    pub fn pairs() -> Vec<TablePair> {
        ["generated", "generated_full"]
            .map(|table| TablePair::same(&format!("{SCHEMA}.{table}")))
            .to_vec()
    }

    /// Tables of generated rows, to be copied. Without a key every fifth row is there twice.
    pub fn create(&mut self) -> String {
        format!(
            "CREATE TABLE {SCHEMA}.generated (id int PRIMARY KEY, {COLUMNS});\n{}\
             CREATE TABLE {SCHEMA}.generated_full (id int, {COLUMNS}); ALTER TABLE {SCHEMA}.generated_full REPLICA IDENTITY FULL;
             INSERT INTO {SCHEMA}.generated_full SELECT * FROM {SCHEMA}.generated UNION ALL SELECT * FROM {SCHEMA}.generated WHERE id % 5 = 0;",
            self.insert(0)
        )
    }

    /// More of them for the stream: new rows, new values in the old ones, deletes.
    pub fn changes(&mut self) -> Vec<String> {
        let others = "f8 = w.f8, f4 = w.f4, i8 = w.i8, num = w.num, txt = w.txt, bin = w.bin, ts = w.ts, iv = w.iv, txts = w.txts, js = w.js, \
                      da = w.da, ti = w.ti, tz = w.tz, tn = w.tn, jb = w.jb, rng = w.rng, mrng = w.mrng, en = w.en, pr = w.pr";
        let one_of_equals = format!(
            "t.ctid IN (SELECT min(ctid) FROM {SCHEMA}.generated_full WHERE id < 10000 GROUP BY id)"
        );
        vec![
            self.insert(10_000),
            format!(
                "INSERT INTO {SCHEMA}.generated_full SELECT * FROM {SCHEMA}.generated WHERE id >= 10000 AND id % 3 = 0"
            ),
            format!(
                "UPDATE {SCHEMA}.generated AS t SET {others} FROM {SCHEMA}.generated AS w \
                 WHERE w.id = t.id + 10000 AND t.id % 2 = 0"
            ),
            format!(
                "UPDATE {SCHEMA}.generated_full AS t SET {others} FROM {SCHEMA}.generated AS w \
                 WHERE w.id = t.id + 10000 AND t.id % 2 = 0 AND {one_of_equals}"
            ),
            format!("DELETE FROM {SCHEMA}.generated WHERE id % 7 = 0"),
            format!(
                "DELETE FROM {SCHEMA}.generated_full AS t WHERE t.id % 5 = 0 AND t.id % 2 = 1 AND {one_of_equals}"
            ),
        ]
    }

    fn insert(&mut self, from: usize) -> String {
        let rows: Vec<String> = (from..from + ROWS)
            .map(|id| format!("({id}, {})", self.values().join(", ")))
            .collect();
        format!(
            "INSERT INTO {SCHEMA}.generated VALUES {};\n",
            rows.join(",\n")
        )
    }

    /// One in eight is NULL.
    fn values(&mut self) -> [String; VALUES] {
        let random = &mut self.0;
        let (double, single) = (
            f64::from_bits(random.random()),
            f32::from_bits(random.random()),
        );
        let bytes: String = (0..random.random_range(0..40))
            .map(|_| format!("{:02x}", random.random::<u8>()))
            .collect();
        let texts: Vec<String> = (0..3).map(|_| text(random)).collect();
        let values = [
            format!("'{double:e}'"),
            format!("'{single:e}'"),
            random.random::<i64>().to_string(),
            format!(
                "'{}e{}'",
                random.random::<i64>(),
                random.random_range(-300..300)
            ),
            text(random),
            format!("'\\x{bytes}'"),
            format!(
                "timestamptz '2000-01-01 00:00+00' + interval '1 microsecond' * {}",
                random.random_range(-200_000_000_000_000_000_i64..9_000_000_000_000_000_000)
            ),
            format!(
                "make_interval(months => {}, days => {}, secs => {})",
                random.random::<i16>(),
                random.random::<i32>(),
                random.random_range(-1e6..1e6)
            ),
            format!("ARRAY[{}]", texts.join(", ")),
            format!("to_json({})", text(random)),
            format!("date '2000-01-01' + {}", day(random)),
            format!(
                "time '00:00' + interval '1 microsecond' * {}",
                random.random_range(0..86_400_000_000_i64)
            ),
            format!(
                "'{:02}:{:02}:{:02}.{:06}{:+03}:{:02}:{:02}'",
                random.random_range(0..24),
                random.random_range(0..60),
                random.random_range(0..60),
                random.random_range(0..1_000_000),
                random.random_range(-15..16),
                random.random_range(0..60),
                random.random_range(0..60)
            ),
            format!(
                "timestamp '2000-01-01 00:00' + interval '1 microsecond' * {}",
                random.random_range(-200_000_000_000_000_000_i64..9_000_000_000_000_000_000)
            ),
            format!(
                "jsonb_build_object({}, {}::numeric / 7, {}, jsonb_build_array({}, NULL, {}))",
                text(random),
                random.random::<i64>(),
                text(random),
                text(random),
                random.random::<bool>()
            ),
            range("int8range", random.random::<i32>().into(), random),
            {
                let from = day(random);
                format!(
                    "datemultirange(daterange(date '2000-01-01' + {from}, date '2000-01-01' + {from} + {}, '{}'))",
                    random.random_range(0..1000),
                    BOUNDS[random.random_range(0..BOUNDS.len())]
                )
            },
            format!(
                "'{}'::objects.\"Mood's\"",
                LABELS[random.random_range(0..LABELS.len())]
            ),
            format!(
                "ROW({}, {})::objects.pair",
                random.random::<i32>(),
                text(random)
            ),
        ];
        values.map(|value| match random.random_range(0..8) {
            0 => "NULL".to_owned(),
            _ => value,
        })
    }
}

const BOUNDS: [&str; 4] = ["[)", "(]", "[]", "()"];

/// Counted from 2000 on, within what a date may be.
fn day(random: &mut impl Rng) -> i32 {
    random.random_range(-2_400_000..2_000_000_000)
}

/// Also an empty one, and one without an end.
fn range(type_name: &str, from: i64, random: &mut impl Rng) -> String {
    let bounds = BOUNDS[random.random_range(0..BOUNDS.len())];
    match random.random_range(0..4) {
        0 => format!("{type_name}({from}, NULL, '{bounds}')"),
        1 => format!("{type_name}({from}, {from}, '{bounds}')"),
        _ => format!(
            "{type_name}({from}, {}, '{bounds}')",
            from + random.random_range(0..1_000_000)
        ),
    }
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
