//! The oracle of table topics: reads them as any consumer of Debezium's records could, and checks
//! - that the schema beside each payload describes it,
//! - that no change is there twice: `source.sequence` strictly increases,
//! - that deletes are followed by their tombstones, and changes of keys by their creates,
//! - that what the records add up to is the source's present content, of tables that were empty
//!   when their mirror was made.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use rdkafka::message::{Headers, Message};
use serde_json::Value;

use super::records::consume_messages;
use crate::content::{self, TablePair};
use crate::database::{Session, quote};

const UNAVAILABLE: [&str; 2] = [
    "__debezium_unavailable_value",
    "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
];
const NEW_KEY: &str = "__debezium.newkey";
const OLD_KEY: &str = "__debezium.oldkey";
const ROWS_PER_INSERT: usize = 200;

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub creates: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
    /// Changes of keys; each is a delete and a create too.
    pub moves: u64,
    /// Values that were not sent.
    pub unavailable: u64,
}

/// A record, its JSON parsed.
struct Record {
    key: Option<Value>,
    value: Option<Value>,
    headers: BTreeMap<String, Value>,
}

/// A row: per column that is not NULL, an SQL expression of its value.
type Row = BTreeMap<String, String>;

/// Compares what the topics of the source tables of `pairs`, of plain names, add up to with the
/// source, by way of copies in the schema `checked` of `scratch`, a database with their
/// destinations.
pub async fn assert_tables(
    brokers: &str,
    table_prefix: &str,
    source: &Session,
    scratch: &Session,
    pairs: &[TablePair],
) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    scratch
        .run("DROP SCHEMA IF EXISTS checked CASCADE; CREATE SCHEMA checked")
        .await?;
    for pair in pairs {
        let (schema, table) = &pair.source;
        let topic = format!("{table_prefix}.{schema}.{table}");
        let brokers = brokers.to_owned();
        let records = tokio::task::spawn_blocking(move || read(&brokers, &topic)).await??;
        let mut contents = Contents::default();
        for (number, record) in records.iter().enumerate() {
            let applied = contents.apply(record, &mut summary);
            applied.with_context(|| format!("{table}, record {number}: {:?}", record.value))?;
        }
        contents.at_end()?;
        let copy = TablePair {
            destination: ("checked".to_owned(), table.clone()),
            ..pair.clone()
        };
        let like = content::qualified(&pair.destination);
        fill(
            scratch,
            &like,
            &content::qualified(&copy.destination),
            contents.rows(),
        )
        .await?;
        content::assert_same(source, scratch, &[copy]).await?;
    }
    Ok(summary)
}

/// Fails if any record of the topic holds these bytes.
pub async fn assert_without(brokers: &str, topic: &str, needle: &str) -> anyhow::Result<()> {
    let (brokers, topic, needle) = (brokers.to_owned(), topic.to_owned(), needle.to_owned());
    tokio::task::spawn_blocking(move || super::records::assert_without(&brokers, &topic, &needle))
        .await?
}

fn read(brokers: &str, topic: &str) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    consume_messages(brokers, topic, |message| {
        let json = |bytes: Option<&[u8]>| bytes.map(parse).transpose();
        let mut headers = BTreeMap::new();
        for header in message.headers().into_iter().flat_map(|all| all.iter()) {
            let value = json(header.value)?.context("a header without a value")?;
            headers.insert(header.key.to_owned(), value);
        }
        records.push(Record {
            key: json(message.key())?,
            value: json(message.payload())?,
            headers,
        });
        Ok(())
    })?;
    Ok(records)
}

/// Parses JSON, with every number that is not whole as its text: the parser's own floats are not
/// always the nearest ones.
fn parse(bytes: &[u8]) -> anyhow::Result<Value> {
    let text = std::str::from_utf8(bytes)?;
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        quoted.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = match rest.strip_prefix('"') {
            Some(inside) => string_length(inside) + 1,
            None => rest
                .find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c))
                .unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        if !token.starts_with('"') && token.contains(['.', 'e', 'E']) {
            quoted.push_str(&format!("\"{token}\""));
        } else {
            quoted.push_str(token);
        }
    }
    quoted.push_str(rest);
    Ok(serde_json::from_str(&quoted)?)
}

/// Bytes up to the end of a string, its closing quote included.
fn string_length(inside: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    inside.len()
}

/// A table as its records tell it.
#[derive(Default)]
struct Contents {
    keyed: BTreeMap<String, Row>,
    keyless: Vec<Row>,
    position: Option<(u64, u64)>,
    /// The key whose tombstone has to come next.
    buried: Option<String>,
    /// Old key, new key and row of a change of key whose create has to come.
    moving: Option<(String, String, Row)>,
}

impl Contents {
    fn apply(&mut self, record: &Record, summary: &mut Summary) -> anyhow::Result<()> {
        let key = record.key.as_ref().map(payload_of).transpose()?;
        let Some(value) = &record.value else {
            ensure!(
                key.is_some() && key == self.buried,
                "a tombstone of {key:?} after a delete of {:?}",
                self.buried
            );
            self.buried = None;
            return Ok(());
        };
        ensure!(self.buried.is_none(), "{:?} has no tombstone", self.buried);
        let (schema, payload) = (&value["schema"], &value["payload"]);
        let name = schema["name"].as_str().unwrap_or_default();
        ensure!(name.ends_with(".Envelope"), "a record of {name:?}");
        check_shape(schema, payload)?;
        self.check_position(payload, record)?;
        let fields = fields_of_row(schema)?;
        let row = |name: &str| row_of(&fields, &payload[name]);
        match payload["op"].as_str().unwrap_or_default() {
            "c" => {
                summary.creates += 1;
                let mut created = row("after")?;
                if let Some(old) = record.headers.get(OLD_KEY) {
                    let (old_key, new_key, old_row) =
                        self.moving.take().context("no delete before it")?;
                    let named = old.to_string();
                    ensure!(
                        named == old_key && key.as_ref() == Some(&new_key),
                        "the create of another change of key than {old_key} to {new_key}"
                    );
                    summary.moves += 1;
                    summary.unavailable += fill_in(&mut created, &old_row);
                }
                self.create(key, created)
            }
            "u" => {
                summary.updates += 1;
                let mut updated = row("after")?;
                let old = self.remove(key.as_deref(), || row("before"))?;
                summary.unavailable += fill_in(&mut updated, &old);
                self.create(key, updated)
            }
            "d" => {
                summary.deletes += 1;
                let old = self.remove(key.as_deref(), || row("before"))?;
                if let (Some(new), Some(key)) = (record.headers.get(NEW_KEY), &key) {
                    self.moving = Some((key.clone(), new.to_string(), old));
                }
                self.buried = key;
                Ok(())
            }
            "t" => {
                summary.truncates += 1;
                ensure!(key.is_none(), "a truncate with a key");
                self.keyed.clear();
                self.keyless.clear();
                Ok(())
            }
            other => bail!("op {other:?}"),
        }
    }

    /// Only the two halves of a change of key share their place.
    fn check_position(&mut self, payload: &Value, record: &Record) -> anyhow::Result<()> {
        let sequence = payload["source"]["sequence"].as_str().unwrap_or_default();
        let parts: Vec<String> = serde_json::from_str(sequence).context("source.sequence")?;
        let [commit_lsn, seq] = &parts[..] else {
            bail!("source.sequence is {sequence}");
        };
        let position = (commit_lsn.parse()?, seq.parse()?);
        let is_second_half = record.headers.contains_key(OLD_KEY);
        let is_in_order = match is_second_half {
            true => self.position == Some(position),
            false => self.position.is_none_or(|before| before < position),
        };
        ensure!(is_in_order, "{position:?} after {:?}", self.position);
        ensure!(
            is_second_half == self.moving.is_some(),
            "no create follows the delete of a change of key"
        );
        self.position = Some(position);
        Ok(())
    }

    fn create(&mut self, key: Option<String>, row: Row) -> anyhow::Result<()> {
        match key {
            None => self.keyless.push(row),
            Some(key) => {
                let before = self.keyed.insert(key, row);
                ensure!(before.is_none(), "a row of this key is there already");
            }
        }
        Ok(())
    }

    fn remove(
        &mut self,
        key: Option<&str>,
        before: impl Fn() -> anyhow::Result<Row>,
    ) -> anyhow::Result<Row> {
        if let Some(key) = key {
            return self.keyed.remove(key).context("no row of this key");
        }
        let before = before()?;
        let found = self.keyless.iter().position(|row| *row == before);
        let found = found.with_context(|| format!("no row {before:?}"))?;
        Ok(self.keyless.swap_remove(found))
    }

    fn at_end(&self) -> anyhow::Result<()> {
        ensure!(
            self.buried.is_none() && self.moving.is_none(),
            "the topic ends within a change"
        );
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.keyed.values().chain(&self.keyless)
    }
}

/// The payload of a key, in one spelling.
fn payload_of(key: &Value) -> anyhow::Result<String> {
    check_shape(&key["schema"], &key["payload"])?;
    Ok(key["payload"].to_string())
}

/// Checks that a payload has the fields of its schema and no others, and values of their types.
fn check_shape(schema: &Value, payload: &Value) -> anyhow::Result<()> {
    if payload.is_null() {
        let is_optional = schema["optional"] == true || schema.get("default").is_some();
        ensure!(is_optional, "null where {schema} says it is not");
        return Ok(());
    }
    let fits = match schema["type"].as_str().unwrap_or_default() {
        "struct" => {
            let fields = schema["fields"].as_array().context("no fields")?;
            let object = payload.as_object().context("no object")?;
            ensure!(object.len() == fields.len(), "{payload} is not {schema}");
            for field in fields {
                let name = field["field"].as_str().context("no name")?;
                let value = object.get(name).with_context(|| format!("no {name}"))?;
                check_shape(field, value)?;
            }
            true
        }
        "boolean" => payload.is_boolean(),
        "int16" | "int32" | "int64" => payload.is_i64(),
        "float" | "double" => payload.is_number() || payload.is_string(),
        "bytes" | "string" => payload.is_string(),
        _ => false,
    };
    ensure!(fits, "{payload} is not {schema}");
    Ok(())
}

/// The schemas of a row's columns, by name.
fn fields_of_row(schema: &Value) -> anyhow::Result<BTreeMap<String, Value>> {
    let fields = schema["fields"].as_array().context("no fields")?;
    let after = fields.iter().find(|field| field["field"] == "after");
    let columns = after.and_then(|after| after["fields"].as_array());
    let columns = columns.context("no columns")?.iter();
    let named = columns.map(|column| Some((column["field"].as_str()?.to_owned(), column.clone())));
    named
        .collect::<Option<_>>()
        .context("a column without a name")
}

fn row_of(fields: &BTreeMap<String, Value>, row: &Value) -> anyhow::Result<Row> {
    let object = row.as_object().context("no row")?;
    let mut columns = Row::new();
    for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let field = fields.get(name).context("a column of no schema")?;
        columns.insert(name.clone(), expression(field, value)?);
    }
    Ok(columns)
}

/// SQL that gives the value.
fn expression(field: &Value, value: &Value) -> anyhow::Result<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let literal = format!("'{}'", text.replace('\'', "''"));
    let meaning = field["name"].as_str().unwrap_or_default();
    Ok(match meaning.strip_prefix("io.debezium.time.") {
        Some("Date") => format!("date '1970-01-01' + {literal}::int"),
        Some("MicroTime") => format!("time '00:00' + {literal}::bigint * interval '1 microsecond'"),
        Some("MicroTimestamp") => {
            format!("timestamp '1970-01-01' + {literal}::bigint * interval '1 microsecond'")
        }
        Some("ZonedTimestamp") if text.starts_with("-") && text != "-infinity" => {
            // ISO 8601 has a year 0, and Postgres 1 BC in its place.
            let (year, rest) = text[1..].split_once('-').context("no year")?;
            let year: i32 = year.parse()?;
            format!("'{:04}-{rest} BC'", year + 1)
        }
        Some("ZonedTimestamp") | None => match field["type"].as_str() {
            Some("bytes") if !UNAVAILABLE.contains(&&*text) => {
                format!("decode({literal}, 'base64')")
            }
            _ => literal,
        },
        Some(other) => bail!("{other} is not expected"),
    })
}

/// Puts in what was not sent from the row before; how many values those were.
fn fill_in(row: &mut Row, before: &Row) -> u64 {
    let unavailable = UNAVAILABLE.map(|text| format!("'{text}'"));
    let mut filled = 0;
    for (name, value) in row.iter_mut() {
        if unavailable.contains(value)
            && let Some(known) = before.get(name)
        {
            value.clone_from(known);
            filled += 1;
        }
    }
    filled
}

async fn fill(
    scratch: &Session,
    like: &str,
    table: &str,
    rows: impl Iterator<Item = &Row>,
) -> anyhow::Result<()> {
    scratch
        .run(&format!("CREATE TABLE {table} (LIKE {like})"))
        .await?;
    let rows: Vec<&Row> = rows.collect();
    for some in rows.chunks(ROWS_PER_INSERT) {
        let inserts = some.iter().map(|row| {
            let names: Vec<String> = row.keys().map(|name| quote(name)).collect();
            let values: Vec<&str> = row.values().map(String::as_str).collect();
            format!(
                "INSERT INTO {table} ({}) VALUES ({});",
                names.join(", "),
                values.join(", ")
            )
        });
        scratch.run(&inserts.collect::<String>()).await?;
    }
    Ok(())
}
