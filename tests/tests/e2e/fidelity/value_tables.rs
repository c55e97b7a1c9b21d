//! The tables that take a type's values through every way a value can take.
//!
//! Each case has up to three mirrored tables in schema `fidelity`, all filled from one that
//! is not mirrored (`<case>_values`: the values in order, NULL last):
//! - `<case>`: values `v` and arrays `a` of them beside a key: snapshot, insert, update from
//!   each value to the next, update of another column, delete;
//! - `<case>_key`: the value is the primary key: the key is handed from value to value,
//!   spelled otherwise where values are equal, deleted;
//! - `<case>_full`: no key, every row twice: one of two equal rows is updated or deleted.

use bunny_tests::content::TablePair;

use super::values::ValueCase;

pub const SCHEMA: &str = "fidelity";

/// Kinds of arrays that are made of a value and the one after it; the last is NULL.
const SHAPES: usize = 5;

/// Rows that are there before the snapshot: from which id on, and with which shape the first
/// value's array begins. Two values, of which one is NULL, get all shapes.
const COPIED: [(u32, usize); 3] = [(0, 0), (TURNED, 4), (3000, 2)];
/// Rows of the stream, which with the update of the [`TURNED`] ones get all shapes, too.
const STREAMED: (u32, usize) = (1000, 0);
const TURNED: u32 = 2000;
const TURNED_TO: usize = 2;

/// Longer values do not fit a btree page.
const KEY_BYTES_MAX: u32 = 2000;

pub struct ValueTables {
    pub case: &'static ValueCase,
    name: String,
}

impl ValueTables {
    pub fn new(case: &'static ValueCase) -> ValueTables {
        let slug: String = case
            .type_name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            })
            .collect();
        // "char" and char(1) would else meet.
        let quoted = if case.type_name.starts_with('"') {
            "q"
        } else {
            ""
        };
        ValueTables {
            case,
            name: format!("t_{quoted}{slug}"),
        }
    }

    /// `fidelity.<table>`, source and destination alike.
    pub fn tables(&self) -> Vec<String> {
        let mut tables = vec![self.table(""), self.table("_full")];
        if self.case.key {
            tables.push(self.table("_key"));
        }
        tables
    }

    pub fn pairs(&self) -> Vec<TablePair> {
        self.tables()
            .iter()
            .map(|table| TablePair::same(table))
            .collect()
    }

    /// The table whose column `v` has the type.
    pub fn table(&self, suffix: &str) -> String {
        format!("{SCHEMA}.{}{suffix}", self.name)
    }

    /// Creates and fills everything before the snapshot.
    pub fn create(&self) -> String {
        let ValueCase {
            type_name,
            values,
            arrays,
            key,
            ..
        } = self.case;
        let (table, full, keyed, all) = (
            self.table(""),
            self.table("_full"),
            self.table("_key"),
            self.table("_values"),
        );
        let mut sql = format!("CREATE TABLE {all} (i int PRIMARY KEY, v {type_name});\n");
        for (i, value) in values.iter().enumerate() {
            sql.push_str(&format!(
                "INSERT INTO {all} VALUES ({i}, {});\n",
                self.case.expression(value)
            ));
        }
        sql.push_str(&format!(
            "INSERT INTO {all} VALUES ({}, NULL);\n",
            values.len()
        ));
        let array = if *arrays {
            format!(", a {type_name}[]")
        } else {
            String::new()
        };
        sql.push_str(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v {type_name}{array}, n int);\n"
        ));
        for (offset, turn) in COPIED {
            sql.push_str(&self.insert(offset, turn));
        }
        sql.push_str(&format!(
            "CREATE TABLE {full} (v {type_name}); ALTER TABLE {full} REPLICA IDENTITY FULL;
             INSERT INTO {full} SELECT v FROM {all}, generate_series(1, 2);\n"
        ));
        if *key {
            sql.push_str(&format!(
                "CREATE TABLE {keyed} (v {type_name} PRIMARY KEY, n int);
                 INSERT INTO {keyed} SELECT v, i FROM {first} AS x WHERE i % 2 = 0;\n",
                first = self.first_of_equals(),
            ));
        }
        sql
    }

    /// Statements to be run one after the other while the mirror streams.
    pub fn changes(&self) -> Vec<String> {
        let (table, full, keyed, all) = (
            self.table(""),
            self.table("_full"),
            self.table("_key"),
            self.table("_values"),
        );
        let array = if self.case.arrays {
            format!(", a = {}", self.array(TURNED_TO))
        } else {
            String::new()
        };
        let mut changes = vec![
            self.insert(STREAMED.0, STREAMED.1),
            // From each value to the next, from the last (NULL) to the first.
            format!(
                "UPDATE {table} AS t SET v = w.v{array} FROM {all} AS x, {next} AS w \
                 WHERE t.id = x.i + {TURNED} AND {follows}",
                next = all,
                follows = self.follows("x", "w"),
            ),
            format!("UPDATE {table} SET n = -1 WHERE id < 1000"),
            format!("DELETE FROM {table} WHERE id >= 3000"),
            format!(
                "DELETE FROM {full} WHERE ctid IN (SELECT min(f.ctid) FROM {full} AS f JOIN {all} AS x \
                 ON f.v::text IS NOT DISTINCT FROM x.v::text WHERE x.i % 3 = 0 GROUP BY x.i)"
            ),
            format!(
                "UPDATE {full} AS t SET v = w.v FROM (SELECT x.i, min(f.ctid) AS c FROM {full} AS f JOIN {all} AS x \
                 ON f.v::text IS NOT DISTINCT FROM x.v::text WHERE x.i % 3 <> 0 GROUP BY x.i) AS one, {all} AS x, {all} AS w \
                 WHERE t.ctid = one.c AND x.i = one.i AND {}",
                self.follows("x", "w"),
            ),
            format!("INSERT INTO {full} SELECT v FROM {all}"),
        ];
        if self.case.key {
            let first = self.first_of_equals();
            let (is_free, is_held) = (self.equal("v", "free.v"), self.equal("v", "held.v"));
            let chain = format!(
                "DO $$ DECLARE free record; held record; BEGIN
                     SELECT v, i INTO free FROM {first} AS x ORDER BY i LIMIT 1;
                     DELETE FROM {keyed} WHERE {is_free};
                     FOR held IN SELECT v, i FROM {first} AS x ORDER BY i OFFSET 1 LOOP
                         UPDATE {keyed} SET v = free.v WHERE {is_held};
                         free := held;
                     END LOOP;
                 END $$"
            );
            changes.extend([
                format!("INSERT INTO {keyed} SELECT v, i FROM {first} AS x WHERE i % 2 = 1"),
                format!("UPDATE {keyed} SET n = n + 100"),
                chain,
                format!("UPDATE {keyed} AS t SET v = w.v FROM (SELECT DISTINCT ON (v) v FROM {all} WHERE v IS NOT NULL AND pg_column_size(v) < {KEY_BYTES_MAX} ORDER BY v, i DESC) AS w WHERE {} AND t.v::text <> w.v::text", self.equal("t.v", "w.v")),
                format!("DELETE FROM {keyed} AS t USING {all} AS x WHERE {} AND x.i % 3 = 1", self.equal("t.v", "x.v")),
                format!("INSERT INTO {keyed} SELECT v, i FROM {first} AS x ON CONFLICT DO NOTHING"),
            ]);
        }
        changes
    }

    fn insert(&self, offset: u32, turn: usize) -> String {
        let all = self.table("_values");
        let array = if self.case.arrays {
            format!(", {}", self.array(turn))
        } else {
            String::new()
        };
        format!(
            "INSERT INTO {} SELECT x.i + {offset}, x.v{array}, 0 FROM {all} AS x JOIN {all} AS w ON {};\n",
            self.table(""),
            self.follows("x", "w"),
        )
    }

    /// Made of the value `x.v` and the next one, in a shape of its turn.
    fn array(&self, turn: usize) -> String {
        let array = format!("{}[]", self.case.type_name);
        format!(
            "CASE (x.i + {turn}) % {SHAPES} WHEN 0 THEN ARRAY[x.v, NULL, w.v]::{array} WHEN 1 THEN '{{}}'::{array} \
             WHEN 2 THEN ARRAY[[x.v, w.v], [w.v, NULL]]::{array} WHEN 3 THEN ('[-1:0]=' || ARRAY[x.v, w.v]::{array}::text)::{array} \
             ELSE NULL END"
        )
    }

    fn equal(&self, this: &str, that: &str) -> String {
        match self.case.compared_as {
            "" => format!("{this} = {that}"),
            base => format!("{this}::{base} = {that}::{base}"),
        }
    }

    /// `next` is the value after `this`, the first after the last.
    fn follows(&self, this: &str, next: &str) -> String {
        format!("{next}.i = ({this}.i + 1) % {}", self.case.values.len() + 1)
    }

    /// The values that can be keys, one of each set of equal ones.
    fn first_of_equals(&self) -> String {
        format!(
            "(SELECT DISTINCT ON (v) v, i FROM {} WHERE v IS NOT NULL AND pg_column_size(v) < {KEY_BYTES_MAX} ORDER BY v, i)",
            self.table("_values")
        )
    }
}

mod tests {
    use super::super::values;
    use super::super::values::packages::PACKAGES;
    use super::*;

    fn cases() -> impl Iterator<Item = &'static ValueCase> {
        let of_groups = values::GROUPS.iter().flat_map(|group| group.cases);
        of_groups.chain(PACKAGES.iter().flat_map(|package| package.cases))
    }

    /// Of the values and the NULL after them.
    fn shapes(case: &ValueCase, turn: usize) -> impl Iterator<Item = usize> {
        (0..=case.values.len()).map(move |i| (i + turn) % SHAPES)
    }

    #[test]
    fn every_type_gets_arrays_of_every_shape_by_copy_and_by_stream() {
        for case in cases().filter(|case| case.arrays) {
            let copied = COPIED.iter().flat_map(|(_, turn)| shapes(case, *turn));
            let streamed = shapes(case, STREAMED.1).chain(shapes(case, TURNED_TO));
            let all = |shapes: Vec<usize>| (0..SHAPES - 1).all(|shape| shapes.contains(&shape));
            assert!(all(copied.collect()), "{}, copied", case.type_name);
            assert!(all(streamed.collect()), "{}, streamed", case.type_name);
        }
    }

    #[test]
    fn every_key_changes_from_one_value_to_another() {
        for case in cases() {
            assert!(case.values.len() > 1, "{}", case.type_name);
        }
    }
}
