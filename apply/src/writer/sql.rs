//! The statements of one target, as text. Pure.
//!
//! They go out by the simple protocol, several in one message: that saves round trips,
//! and each is planned for the sizes of the moment (a cached plan without parameters
//! would keep the one it was first made for). They hold quoted identifiers and numbers
//! of ours, never a value from a row: rows arrive by COPY in the staging table, whose
//! columns are `n` (order, or copies), `op`, `mask` and `c0`, `c1`, … for the target's. A
//! table may have 1,600 columns, and so may the staging table: where the target's are too
//! many, the last of them are staged together as `rest`, an array of their texts.

mod rows;

pub(super) use rows::Element;
use rows::Rows;

/// Columns of the target that are staged as such; the rest is packed. Postgres allows 1,600
/// columns (`MaxHeapAttributeNumber`).
const STAGED_COLUMNS_MAX: usize = 1500;

/// One written column of a target.
#[derive(Clone, Debug)]
pub(super) struct SqlColumn {
    /// Quoted.
    pub(super) name: String,
    /// As `format_type` prints it, domains resolved.
    pub(super) type_name: String,
    /// The same without its modifier.
    pub(super) plain_type: String,
    /// The column itself is of a domain over that type.
    pub(super) is_domain: bool,
    /// Quoted and qualified, when it is not the type's own.
    pub(super) collation: Option<String>,
    /// GENERATED ALWAYS AS IDENTITY: an UPDATE may not set it.
    pub(super) always_identity: bool,
    /// Where `=` of the type is, quoted; None: it has none of its own (enums, arrays, …).
    pub(super) operator_schema: Option<String>,
    /// How an array of such values is given to a statement.
    pub(super) element: Element,
    pub(super) key: bool,
}

/// What a staged row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Insert,
    Upsert,
    Patch,
    Replace,
    /// Of a row that was there before the batch.
    Delete,
    /// Of a row that may or may not be there.
    DeleteAny,
    /// Of a row that makes room for another with its key, which is not staged.
    Clear,
    /// The old key of a `Rename` with the same `n`.
    OldKey,
    /// A row that gets another key.
    Rename,
}

impl Op {
    pub(super) fn letter(self) -> char {
        match self {
            Op::Insert => 'I',
            Op::Upsert => 'U',
            Op::Patch => 'P',
            Op::Replace => 'R',
            Op::Delete => 'D',
            Op::DeleteAny => 'X',
            Op::Clear => 'C',
            Op::OldKey => 'O',
            Op::Rename => 'K',
        }
    }
}

pub(super) struct Sql {
    table: String,
    staging: String,
    rows: Rows,
    columns: Vec<SqlColumn>,
    /// Columns that only the destination has, quoted.
    own: Vec<String>,
    /// By column: its place in `rest`, from 1; None: it is staged as such.
    packed: Vec<Option<usize>>,
}

impl Sql {
    /// `table`, `staging` and `own` quoted.
    pub(super) fn new(
        table: String,
        staging: String,
        columns: Vec<SqlColumn>,
        own: Vec<String>,
    ) -> Sql {
        let packed = pack(&columns);
        Sql {
            table,
            rows: Rows::Staged(staging.clone()),
            staging,
            columns,
            own,
            packed,
        }
    }

    /// By column: whether it is staged in `rest`.
    pub(super) fn is_packed(&self, index: usize) -> bool {
        self.packed[index].is_some()
    }

    /// Whether any column is.
    pub(super) fn packs(&self) -> bool {
        self.packed.iter().any(Option::is_some)
    }

    pub(super) fn create_staging(&self) -> String {
        let mut sql = format!(
            "CREATE TEMP TABLE {} (n bigint, op \"char\", mask int",
            self.staging
        );
        for (index, column) in self.columns.iter().enumerate() {
            if self.is_packed(index) {
                continue;
            }
            sql.push_str(&format!(", c{index} {}", column.type_name));
            if let Some(collation) = &column.collation {
                sql.push_str(&format!(" COLLATE {collation}"));
            }
        }
        if self.packs() {
            sql.push_str(", rest text[]");
        }
        sql.push_str(") ON COMMIT DELETE ROWS");
        sql
    }

    pub(super) fn drop_staging(&self) -> String {
        format!("DROP TABLE {}", self.staging)
    }

    /// Finds single rows of a large staging table quickly. Undone by [`Sql::drop_index`].
    pub(super) fn index_staging(&self, name: &str) -> String {
        format!(
            "CREATE INDEX {name} ON {0} (n); ANALYZE {0} (n)",
            self.staging
        )
    }

    pub(super) fn drop_index(name: &str) -> String {
        format!("DROP INDEX pg_temp.{name}")
    }

    pub(super) fn clear_staging(&self) -> String {
        format!("TRUNCATE {}", self.staging)
    }

    /// Quoted; each is staged as `c` and its place here, unless it is packed.
    pub(super) fn column_names(&self) -> Vec<String> {
        let names = self.columns.iter().map(|column| column.name.clone());
        names.collect()
    }

    /// Quoted.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Quoted.
    pub(super) fn staging(&self) -> &str {
        &self.staging
    }

    pub(super) fn delete(&self, only: Option<i64>) -> String {
        format!(
            "DELETE FROM {} AS t USING {} WHERE s.op IN ('D', 'X', 'C', 'R'){} AND {}",
            self.table,
            self.rows("s"),
            only_row(only),
            self.same_key("t", "s"),
        )
    }

    /// Of what is inserted or updated, the rows that are there.
    pub(super) fn update(&self, only: Option<i64>) -> String {
        let which = format!("s.op IN ('I', 'U'){}", only_row(only));
        self.update_met(&which, &[])
    }

    /// The same. Gives one row: inserts that met a row, and all rows met.
    pub(super) fn update_and_tell_inserts(&self) -> String {
        let which = "s.op IN ('I', 'U')";
        let rows = match self.assignments(&[]) {
            Some(assignments) => format!(
                "UPDATE {} AS t SET {assignments} FROM {} WHERE {which} AND {} RETURNING s.op",
                self.table,
                self.rows("s"),
                self.same_key("t", "s"),
            ),
            None => format!(
                "SELECT s.op FROM {} AS t JOIN {} ON {} WHERE {which}",
                self.table,
                self.rows("s"),
                self.same_key("t", "s"),
            ),
        };
        format!("WITH met AS ({rows}) SELECT count(*) FILTER (WHERE op = 'I'), count(*) FROM met")
    }

    /// `unchanged` is by written column.
    pub(super) fn patch(&self, mask: usize, unchanged: &[bool], only: Option<i64>) -> String {
        let which = format!("s.op = 'P' AND s.mask = {mask}{}", only_row(only));
        self.update_met(&which, unchanged)
    }

    /// Touches the rows met, or, if there is nothing to set, gives one row: their number.
    fn update_met(&self, which: &str, unchanged: &[bool]) -> String {
        let (table, rows) = (&self.table, self.rows("s"));
        let same_key = self.same_key("t", "s");
        match self.assignments(unchanged) {
            Some(assignments) => format!(
                "UPDATE {table} AS t SET {assignments} FROM {rows} WHERE {which} AND {same_key}"
            ),
            None => {
                format!("SELECT count(*) FROM {table} AS t JOIN {rows} ON {same_key} WHERE {which}")
            }
        }
    }

    pub(super) fn insert(&self, only: Option<i64>) -> String {
        format!(
            "INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT {cells} FROM {rows} \
             WHERE s.op IN ('I', 'U', 'R'){only} AND NOT EXISTS (SELECT FROM {table} AS t WHERE {same_key}) ORDER BY s.n",
            table = self.table,
            names = self.names(),
            cells = self.cells("s"),
            rows = self.rows("s"),
            only = only_row(only),
            same_key = self.same_key("t", "s"),
        )
    }

    /// The keys, as text, of patches whose row is missing; at most `limit`.
    pub(super) fn missing_patches(&self, limit: usize) -> String {
        let key: Vec<String> = self
            .key_cells()
            .map(|(index, _)| format!("s.c{index}::text"))
            .collect();
        format!(
            "SELECT concat_ws(', ', {}) FROM {} \
             WHERE s.op = 'P' AND NOT EXISTS (SELECT FROM {} AS t WHERE {}) ORDER BY s.n LIMIT {limit}",
            key.join(", "),
            self.rows("s"),
            self.table,
            self.same_key("t", "s"),
        )
    }

    /// Gives rows their GENERATED ALWAYS identity where an UPDATE could not set it: such a
    /// row is taken out and put in again. Staged one by one, a key may stand there more than
    /// once: the last row is what it is now, and one that changed its key has its identity.
    /// None for tables without such a column outside the key.
    pub(super) fn adopt_identities(&self) -> Option<String> {
        let is_ours = |column: &SqlColumn| column.always_identity && !column.key;
        let differs: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| is_ours(column))
            .map(|(index, column)| format!("t.{} <> {}", column.name, self.cell("s", index)))
            .collect();
        if differs.is_empty() {
            return None;
        }
        let cell = |index: usize, column: &SqlColumn| {
            if is_ours(column) {
                self.cell("s", index)
            } else {
                format!("old.o{index}")
            }
        };
        Some(format!(
            "WITH old AS (DELETE FROM {table} AS t USING {rows} \
                 WHERE s.op IN ('I', 'U', 'P') AND {same_key} AND ({differs}) \
                   AND NOT EXISTS (SELECT FROM {later} \
                       WHERE later.n > s.n AND later.op IN ('I', 'U', 'P', 'K') AND {same_staged}) \
                 RETURNING s.n AS n, {kept}) \
             INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE \
             SELECT {cells} FROM old JOIN {rows} ON s.n = old.n AND s.op IN ('I', 'U', 'P')",
            table = self.table,
            rows = self.rows("s"),
            later = self.rows("later"),
            same_key = self.same_key("t", "s"),
            same_staged = self.same_staged_key("later", "s"),
            differs = differs.join(" OR "),
            kept = self.kept("t"),
            names = self.all_names(),
            cells = self.all_cells(cell),
        ))
    }

    /// Two statements: clears the way for the row `n` that changes its key (a row under
    /// the new key is drift), then updates it where its old key is. The second counts.
    /// If not all of the row is known the way is cleared only when its old row is here:
    /// nothing could take the place of what is cleared.
    pub(super) fn rename(&self, n: i64, unchanged: &[bool]) -> (String, String) {
        let clear = format!(
            "DELETE FROM {table} AS t USING {staging} AS s, {staging} AS o \
             WHERE s.op = 'K' AND s.n = {n} AND o.op = 'O' AND o.n = {n} AND {is_new} AND NOT ({is_old}){old_is_here}",
            table = self.table,
            staging = self.staging,
            is_new = self.same_key("t", "s"),
            is_old = self.same_key("t", "o"),
            old_is_here = if unchanged.is_empty() {
                String::new()
            } else {
                format!(
                    " AND EXISTS (SELECT FROM {} AS old WHERE {})",
                    self.table,
                    self.same_key("old", "o")
                )
            },
        );
        if self.columns.iter().any(|column| column.always_identity) {
            return (clear, self.take_out_and_put_in(n, unchanged));
        }
        let assignments = self.assignments(unchanged).unwrap_or_default();
        let update = format!(
            "UPDATE {table} AS t SET {assignments} FROM {staging} AS s, {staging} AS o \
             WHERE s.op = 'K' AND s.n = {n} AND o.op = 'O' AND o.n = {n} AND {is_old}",
            table = self.table,
            staging = self.staging,
            is_old = self.same_key("t", "o"),
        );
        (clear, update)
    }

    /// The row `n` under its new key, where an UPDATE may not set one of the columns: what
    /// is not sent, and the destination's own, is taken along. Counts as the update does.
    fn take_out_and_put_in(&self, n: i64, unchanged: &[bool]) -> String {
        let cell = |index: usize, _: &SqlColumn| {
            if unchanged.get(index).copied().unwrap_or(false) {
                format!("old.o{index}")
            } else {
                self.cell("s", index)
            }
        };
        format!(
            "WITH old AS (DELETE FROM {table} AS t USING {staging} AS o \
                 WHERE o.op = 'O' AND o.n = {n} AND {is_old} RETURNING {kept}) \
             INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE \
             SELECT {cells} FROM old, {staging} AS s WHERE s.op = 'K' AND s.n = {n}",
            table = self.table,
            staging = self.staging,
            is_old = self.same_key("t", "o"),
            kept = self.kept("t"),
            names = self.all_names(),
            cells = self.all_cells(cell),
        )
    }

    /// All of a row of the table: the written columns as `o0`, …, its own as `w0`, ….
    fn kept(&self, alias: &str) -> String {
        let written = self.columns.iter().enumerate();
        let written = written.map(|(index, column)| format!("{alias}.{} AS o{index}", column.name));
        let own = self.own.iter().enumerate();
        let own = own.map(|(index, name)| format!("{alias}.{name} AS w{index}"));
        written.chain(own).collect::<Vec<_>>().join(", ")
    }

    fn all_names(&self) -> String {
        let written = self.columns.iter().map(|column| column.name.as_str());
        let names: Vec<&str> = written.chain(self.own.iter().map(String::as_str)).collect();
        names.join(", ")
    }

    /// In the order of [`Sql::all_names`], what is the destination's own from `old`.
    fn all_cells(&self, cell: impl Fn(usize, &SqlColumn) -> String) -> String {
        let written = self.columns.iter().enumerate();
        let written = written.map(|(index, column)| cell(index, column));
        let own = (0..self.own.len()).map(|index| format!("old.w{index}"));
        written.chain(own).collect::<Vec<_>>().join(", ")
    }

    /// Turns the rename `n`, whose old row is missing, into what is left to do: an insert
    /// if it is wholly known, else a patch.
    pub(super) fn rename_to(&self, n: i64, op: Op) -> String {
        format!(
            "UPDATE {} SET op = '{}' WHERE op = 'K' AND n = {n}",
            self.staging,
            op.letter()
        )
    }

    /// For tables without a key: takes away `n` copies of each row marked 'D', matched by
    /// the text of the whole row, byte for byte.
    pub(super) fn delete_copies(&self) -> String {
        format!(
            "WITH want AS MATERIALIZED (\
                 SELECT ROW({staged})::text COLLATE \"C\" AS k, sum(s.n) AS copies FROM {staging} AS s \
                 WHERE s.op = 'D' GROUP BY 1), \
             have AS (\
                 SELECT t.tableoid AS o, t.ctid AS c, w.copies, \
                        row_number() OVER (PARTITION BY w.k ORDER BY t.tableoid, t.ctid) AS nth \
                 FROM {table} AS t JOIN want AS w ON w.k = (ROW({held})::text COLLATE \"C\")) \
             DELETE FROM {table} AS t USING have \
             WHERE have.nth <= have.copies AND t.ctid = have.c AND t.tableoid = have.o",
            staged = self.cells("s"),
            staging = self.staging,
            table = self.table,
            held = self
                .columns
                .iter()
                .map(|column| format!("t.{}", column.name))
                .collect::<Vec<_>>()
                .join(", "),
        )
    }

    /// For tables without a key: adds `n` copies of each row marked 'I'.
    pub(super) fn insert_copies(&self) -> String {
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s, generate_series(1, s.n) \
             WHERE s.op = 'I'",
            self.table,
            self.names(),
            self.cells("s"),
            self.staging,
        )
    }

    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        names.join(", ")
    }

    fn cells(&self, alias: &str) -> String {
        let cells: Vec<String> = (0..self.columns.len())
            .map(|index| self.cell(alias, index))
            .collect();
        cells.join(", ")
    }

    /// A staged cell.
    fn cell(&self, alias: &str, index: usize) -> String {
        match self.packed[index] {
            None => self.rows.cell(alias, index, &self.columns[index]),
            Some(place) => format!(
                "({alias}.rest[{place}])::{}",
                self.columns[index].plain_type
            ),
        }
    }

    fn key_cells(&self) -> impl Iterator<Item = (usize, &SqlColumn)> {
        self.columns
            .iter()
            .enumerate()
            .filter(|(_, column)| column.key)
    }

    /// The table's row has the key of the staged one.
    fn same_key(&self, table: &str, staged: &str) -> String {
        self.key_equals(staged, |_, column| own_key_cell(table, column))
    }

    /// Both staged rows have the same key.
    fn same_staged_key(&self, one: &str, other: &str) -> String {
        self.key_equals(other, |index, _| format!("{one}.c{index}"))
    }

    fn key_equals(&self, staged: &str, cell: impl Fn(usize, &SqlColumn) -> String) -> String {
        let conditions: Vec<String> = self
            .key_cells()
            .map(|(index, column)| {
                format!(
                    "{} {} {}",
                    cell(index, column),
                    key_operator(column),
                    self.rows.key_cell(staged, index, column)
                )
            })
            .collect();
        conditions.join(" AND ")
    }

    /// The SET list; the key is set too, because equal keys may be written differently
    /// (1.0 and 1.00). None when nothing is left to set.
    fn assignments(&self, unchanged: &[bool]) -> Option<String> {
        let assignments: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(index, column)| {
                !column.always_identity && !unchanged.get(*index).copied().unwrap_or(false)
            })
            .map(|(index, column)| format!("{} = {}", column.name, self.cell("s", index)))
            .collect();
        (!assignments.is_empty()).then(|| assignments.join(", "))
    }
}

/// Packs the last columns if there are too many: never the key's, which are compared as they
/// are staged, and never `"char"`, to which text is cast by cutting it.
fn pack(columns: &[SqlColumn]) -> Vec<Option<usize>> {
    let surplus = columns.len().saturating_sub(STAGED_COLUMNS_MAX);
    let may_be = |index: &usize| {
        let column = &columns[*index];
        !column.key && column.plain_type != "\"char\""
    };
    let last = (0..columns.len()).rev().filter(may_be).take(surplus);
    let mut chosen: Vec<usize> = last.collect();
    chosen.sort_unstable();
    let mut packed = vec![None; columns.len()];
    for (place, index) in (1..).zip(chosen) {
        packed[index] = Some(place);
    }
    packed
}

/// A column of the key of the table that goes by this name.
fn own_key_cell(table: &str, column: &SqlColumn) -> String {
    match column.is_domain {
        // Postgres has no `=` for a domain over an enum. An index is used all the same.
        true => format!("{table}.{}::{}", column.name, column.plain_type),
        false => format!("{table}.{}", column.name),
    }
}

fn key_operator(column: &SqlColumn) -> String {
    let schema = column.operator_schema.as_deref().unwrap_or("pg_catalog");
    format!("OPERATOR({schema}.=)")
}

fn only_row(only: Option<i64>) -> String {
    only.map_or_else(String::new, |n| format!(" AND s.n = {n}"))
}

#[cfg(test)]
mod tests;
