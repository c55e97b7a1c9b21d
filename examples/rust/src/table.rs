//! A table in memory and in a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use apache_avro::types::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::log::{Column, Record, field, flag, list, lsn, number, present, text};

/// Types that travel typed, by `pg_type.oid`; all others are text.
const BOOL: i64 = 16;
const INTEGERS: [i64; 3] = [20, 21, 23];
const FLOAT4: i64 = 700;
const FLOAT8: i64 = 701;

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// The table, if there is a copy that changes can be applied to.
    pub(crate) table: Option<Table>,
    /// A copy of another generation is of no use.
    generation: Option<String>,
    /// A copy must be later than this LSN.
    after: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Table {
    generation: String,
    /// The copy holds what was committed before; changes count from here on.
    lsn: u64,
    next_offset: i64,
    /// Number (which survives a rename), name and type of each column.
    columns: Vec<(i64, String, i64)>,
    key: Vec<String>,
    /// By the key's values, or all values without a key; equal rows are counted by being there.
    rows: BTreeMap<String, Vec<Vec<Json>>>,
}

impl State {
    pub(crate) fn read(path: &Path) -> Result<State> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("the state file is damaged"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the file as a whole: whoever reads it finds all of the old or all of the new.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        Ok(())
    }

    pub(crate) fn next_offset(&self) -> i64 {
        self.table.as_ref().map_or(0, |table| table.next_offset)
    }

    pub(crate) fn advance(&mut self, next_offset: i64) {
        if let Some(table) = &mut self.table {
            table.next_offset = next_offset;
        }
    }

    /// Whether a copy may be loaded.
    pub(crate) fn accepts(&self, generation: &str, lsn: u64) -> bool {
        let right = self
            .generation
            .as_deref()
            .is_none_or(|own| own == generation);
        right && self.after.is_none_or(|after| lsn > after)
    }

    /// With the newest copy there is, whatever history that is of.
    pub(crate) fn begin_anew(&mut self) {
        (self.table, self.generation, self.after) = (None, None, None);
    }

    /// True if the table is of another history and gone with it.
    pub(crate) fn begin_generation(&mut self, generation: &str) -> bool {
        if self
            .table
            .as_ref()
            .is_some_and(|table| table.generation == generation)
        {
            return false;
        }
        self.wait(generation, None);
        true
    }

    fn wait(&mut self, generation: &str, after: Option<u64>) {
        self.table = None;
        self.generation = Some(generation.to_owned());
        self.after = after;
    }

    /// Applies an event. `Some`: the table needs a newer copy, and why.
    pub(crate) fn apply(&mut self, name: &str, record: &Record) -> Result<Option<String>> {
        let source = field(&record.value, "source")?;
        let (generation, commit_lsn) = (text(source, "generation")?, lsn(source, "commit_lsn")?);
        let Some(table) = &mut self.table else {
            return Ok(None);
        };
        if table.generation != generation || commit_lsn < table.lsn {
            return Ok(None);
        }
        let is_ours = |named: &Value| -> Result<bool> {
            let (schema, table) = (text(named, "schema")?, text(named, "table")?);
            Ok(name == format!("{schema}.{table}"))
        };
        if record.kind == "TableGap" {
            if is_ours(source)? {
                self.wait(&generation, Some(commit_lsn));
                return Ok(Some(text(&record.value, "reason")?));
            }
            return Ok(None);
        }
        if let Some(truncate) = present(field(&record.value, "truncate")?) {
            for named in list(truncate, "tables")? {
                if is_ours(named)? {
                    table.rows.clear();
                }
            }
            return Ok(None);
        }
        if !is_ours(source)? {
            return Ok(None);
        }
        if let Err(reason) = table.follow_schema(&record.columns) {
            // Any newer copy has the column as it is now.
            let after = table.lsn;
            self.wait(&generation, Some(after));
            return Ok(Some(reason));
        }
        table.change(record)?;
        Ok(None)
    }
}

impl Table {
    /// The table that a `TableSyncStarted` announces, without rows.
    pub(crate) fn of_copy(
        started: &Value,
        generation: String,
        lsn: u64,
        next_offset: i64,
    ) -> Result<Table> {
        let definition: Json = serde_json::from_str(&text(started, "definition")?)?;
        let described = definition["columns"].as_array().context("no columns")?;
        let mut columns = Vec::new();
        for name in list(started, "columns")? {
            let Value::String(name) = name else { continue };
            let column = described.iter().find(|column| column["name"] == **name);
            let column = column.with_context(|| format!("{name} is not described"))?;
            let number = |what: &str| column[what].as_i64().context("no number");
            columns.push((number("attnum")?, name.clone(), number("type_oid")?));
        }
        let key = definition["identity_key"].as_array().context("no key")?;
        let key = key
            .iter()
            .filter_map(|name| Some(name.as_str()?.to_owned()));
        Ok(Table {
            generation,
            lsn,
            next_offset,
            key: key.collect(),
            columns,
            rows: BTreeMap::new(),
        })
    }

    fn place(&self, row: &[Json]) -> String {
        let cells: Vec<&Json> = self
            .columns
            .iter()
            .zip(row)
            .filter(|((_, name, _), _)| self.key.is_empty() || self.key.contains(name))
            .map(|(_, cell)| cell)
            .collect();
        json!(cells).to_string()
    }

    fn insert(&mut self, row: Vec<Json>) {
        self.rows.entry(self.place(&row)).or_default().push(row);
    }

    /// Takes out the row that `old` names: by its key, or one that equals it.
    fn take(&mut self, old: &[Json]) -> Result<Vec<Json>> {
        let place = self.place(old);
        let rows = self
            .rows
            .get_mut(&place)
            .with_context(|| format!("no row {place}: state and log do not belong together"))?;
        let row = rows.pop().context("an empty place")?;
        if rows.is_empty() {
            self.rows.remove(&place);
        }
        Ok(row)
    }

    fn change(&mut self, record: &Record) -> Result<()> {
        let value = &record.value;
        let row = |name: &str| -> Result<Option<Vec<Json>>> {
            let Some(row) = present(field(value, name)?) else {
                return Ok(None);
            };
            let cells = record.columns.iter();
            let cells = cells.map(|column| cell(field(row, &column.field)?));
            Ok(Some(cells.collect::<Result<_>>()?))
        };
        let (before, after) = (row("before")?, row("after")?);
        let unchanged: Vec<&Value> = list(value, "unchanged")?.iter().collect();
        match (text(value, "op")?.as_str(), before, after) {
            ("c", _, Some(after)) => self.insert(after),
            ("d", Some(before), _) => {
                self.take(&before)?;
            }
            ("u", before, Some(mut after)) => {
                let old = self.take(before.as_ref().unwrap_or(&after))?;
                for (index, (_, name, _)) in self.columns.iter().enumerate() {
                    // Not sent, so it keeps its value.
                    if unchanged.contains(&&Value::String(name.clone())) {
                        after[index] = old[index].clone();
                    }
                }
                self.insert(after);
            }
            (op, ..) => anyhow::bail!("an event {op} without its rows"),
        }
        Ok(())
    }

    /// Brings columns and rows to the version of the next event, or says why it cannot.
    fn follow_schema(&mut self, new: &[Column]) -> Result<(), String> {
        let wanted = new
            .iter()
            .map(|column| (column.attnum, column.name.clone(), column.type_oid));
        let wanted: Vec<(i64, String, i64)> = wanted.collect();
        if wanted == self.columns {
            return Ok(());
        }
        let known: HashMap<i64, (usize, i64)> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, (attnum, _, oid))| (*attnum, (index, *oid)))
            .collect();
        // Per new column: where its value comes from.
        let mut sources: Vec<Result<usize, Json>> = Vec::new();
        for column in new {
            let name = &column.name;
            sources.push(match known.get(&column.attnum) {
                _ if column.attnum == 0 => return Err(format!("{name} was not recognised")),
                Some((_, oid)) if *oid != column.type_oid => {
                    return Err(format!("the type of {name} changed"));
                }
                Some((index, _)) => Ok(*index),
                None => match (&column.old_rows, column.old_rows["value"].as_str()) {
                    (Json::String(held), _) if held == "null" => Err(Json::Null),
                    (_, Some(text)) => Err(of_text(column.type_oid, text)
                        .map_err(|_| format!("{name} holds {text:?}"))?),
                    _ => return Err(format!("what rows hold in {name} is not in the log")),
                },
            });
        }
        let rows = std::mem::take(&mut self.rows);
        self.columns = wanted;
        self.key = new
            .iter()
            .filter(|column| column.key)
            .map(|column| column.name.clone())
            .collect();
        for row in rows.into_values().flatten() {
            let cells = sources.iter().map(|source| match source {
                Ok(index) => row[*index].clone(),
                Err(value) => value.clone(),
            });
            self.insert(cells.collect());
        }
        Ok(())
    }
}

/// The parts of a copy that have been read.
#[derive(Default)]
pub(crate) struct Copy {
    /// By chunk and part: rows.
    parts: BTreeMap<(i64, i64), i64>,
    /// By chunk: its last part and its rows.
    ends: BTreeMap<i64, (i64, i64)>,
}

impl Copy {
    pub(crate) fn take(&mut self, table: &mut Table, part: &Value) -> Result<()> {
        let of = |name: &str| number(field(part, name)?);
        let (chunk, index) = (of("chunk")?, of("part")?);
        if self.parts.contains_key(&(chunk, index)) {
            return Ok(());
        }
        let Value::Bytes(data) = field(part, "data")? else {
            anyhow::bail!("data is no bytes");
        };
        let mut rows = 0;
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            let cells = line[..line.len() - 1].split(|byte| *byte == b'\t');
            let row = cells
                .zip(&table.columns)
                .map(|(cell, (_, _, oid))| match copy_text(cell)? {
                    None => Ok(Json::Null),
                    Some(text) => of_text(*oid, &text),
                });
            let row = row.collect::<Result<Vec<Json>>>()?;
            table.insert(row);
            rows += 1;
        }
        self.parts.insert((chunk, index), rows);
        if flag(field(part, "last")?)? {
            self.ends.insert(chunk, (index, of("chunk_rows")?));
        }
        Ok(())
    }

    /// All chunks are there, each whole.
    pub(crate) fn check(&self, chunks: i64, rows: i64) -> Result<()> {
        let sound = self.ends.iter().all(|(chunk, (last, chunk_rows))| {
            let parts = || self.parts.range((*chunk, 0)..=(*chunk, i64::MAX));
            parts().map(|((_, index), _)| *index).eq(0..=*last)
                && parts().map(|(_, rows)| rows).sum::<i64>() == *chunk_rows
        });
        let whole = self.ends.len() as i64 == chunks && self.parts.values().sum::<i64>() == rows;
        ensure!(sound && whole, "the copy is not complete in the topic");
        Ok(())
    }
}

/// A cell of COPY text; `None` for NULL.
fn copy_text(cell: &[u8]) -> Result<Option<String>> {
    if cell == b"\\N" {
        return Ok(None);
    }
    let mut text = Vec::with_capacity(cell.len());
    let mut bytes = cell.iter().copied();
    while let Some(byte) = bytes.next() {
        text.push(match (byte, byte == b'\\') {
            (byte, false) => byte,
            _ => match bytes.next().context("a lone backslash")? {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 11,
                other => other,
            },
        });
    }
    Ok(Some(String::from_utf8(text)?))
}

/// Text of Postgres in the form in which events give the value.
fn of_text(oid: i64, text: &str) -> Result<Json> {
    Ok(match oid {
        BOOL => json!(text == "t"),
        FLOAT4 => float(f64::from(text.parse::<f32>()?)),
        FLOAT8 => float(text.parse()?),
        oid if INTEGERS.contains(&oid) => json!(text.parse::<i64>()?),
        // A bytea is the text that the event's bytes are made into.
        _ => json!(text),
    })
}

/// JSON has neither NaN nor infinities.
fn float(value: f64) -> Json {
    if value.is_nan() {
        json!("NaN")
    } else if value.is_infinite() {
        json!(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        json!(value)
    }
}

/// A value of an event.
fn cell(value: &Value) -> Result<Json> {
    Ok(match present(value) {
        None => Json::Null,
        Some(Value::Boolean(value)) => json!(value),
        Some(Value::Float(value)) => float(f64::from(*value)),
        Some(Value::Double(value)) => float(*value),
        Some(Value::String(text)) => json!(text),
        Some(Value::Bytes(bytes)) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!(format!("\\x{digits}"))
        }
        Some(other) => json!(number(other)?),
    })
}
