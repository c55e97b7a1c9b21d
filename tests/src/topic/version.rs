//! A table's version, as its schema or a copy's definition tells it, and the way from one to the next.

use std::collections::{HashMap, HashSet};

use anyhow::Context;
use serde_json::Value as Json;

use crate::database::Session;

/// One cell per column of a version; `None` is NULL.
pub(super) type Row = Vec<Option<String>>;

/// The columns under which rows were written, in order. Generated ones are not among them.
#[derive(Debug, Default)]
pub(super) struct Version {
    pub(super) columns: Vec<Column>,
}

#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// 0 where capture could not recognise the column.
    attnum: i64,
    pg_type: String,
    key: bool,
    key_is_deferrable: bool,
    /// `facts.old_rows` and `facts.default`.
    old_rows: Json,
    default: Option<String>,
    /// Label by oid, of an enum.
    labels: HashMap<u64, String>,
}

/// Where the cells of the new version come from.
enum Filling {
    /// A column of the former version; its text, where that is no longer the same.
    Former(usize, HashMap<String, Option<String>>),
    Constant(Option<String>),
}

/// What the new version cannot say of rows that were there.
pub(super) struct Unknown(pub(super) String);

impl Column {
    /// A field of `Row`.
    pub(super) fn of_schema(field: &Json) -> Column {
        let facts = &field["facts"];
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let labels = facts["enum"]["labels"].as_array().into_iter().flatten();
        Column {
            name: text(&field["column"]),
            attnum: field["attnum"].as_i64().unwrap_or_default(),
            pg_type: text(&field["pg_type"]),
            key: field["key"] == true,
            key_is_deferrable: facts["key_is_deferrable"] == true,
            old_rows: facts["old_rows"].clone(),
            default: facts["default"].as_str().map(str::to_owned),
            labels: labels
                .filter_map(|label| Some((label["oid"].as_u64()?, text(&label["label"]))))
                .collect(),
        }
    }

    /// Floats in Rust's shortest form, so that both spellings of one number are equal.
    pub(super) fn normal(&self, cell: Option<String>) -> anyhow::Result<Option<String>> {
        Ok(match (self.pg_type.as_str(), cell) {
            ("real", Some(text)) => Some(format!("{:?}", text.parse::<f32>()?)),
            ("double precision", Some(text)) => Some(format!("{:?}", text.parse::<f64>()?)),
            (_, cell) => cell,
        })
    }
}

impl Version {
    /// That of a copy's rows.
    pub(super) fn of_copy(columns: &[String], definition: &str) -> anyhow::Result<Version> {
        let definition: Json = serde_json::from_str(definition)?;
        let of = |name: &String| -> anyhow::Result<Column> {
            let mut all = definition["columns"].as_array().into_iter().flatten();
            let found = all
                .find(|column| column["name"] == name.as_str())
                .with_context(|| format!("the definition has no column {name}"))?;
            let mut key = definition["identity_key"].as_array().into_iter().flatten();
            Ok(Column {
                name: name.clone(),
                attnum: found["attnum"].as_i64().context("no attnum")?,
                pg_type: found["type_name"].as_str().unwrap_or_default().to_owned(),
                key: key.any(|column| column == name.as_str()),
                key_is_deferrable: definition["key_is_deferrable"] == true,
                old_rows: Json::Null,
                default: None,
                labels: HashMap::new(),
            })
        };
        Ok(Version {
            columns: columns.iter().map(of).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Indexes of the key's columns; empty where rows have none, or may share it for a while.
    pub(super) fn key(&self) -> Vec<usize> {
        let mut key = self.columns.iter().filter(|column| column.key);
        if key.any(|column| column.key_is_deferrable) {
            return Vec::new();
        }
        let columns = self.columns.iter().enumerate();
        columns
            .filter(|(_, column)| column.key)
            .map(|(index, _)| index)
            .collect()
    }

    /// The column that is this one, by number, or by name where the number is not known.
    pub(super) fn position(&self, name: &str, attnum: i64) -> Option<usize> {
        self.columns.iter().position(|column| {
            if column.attnum == 0 || attnum == 0 {
                column.name == name
            } else {
                column.attnum == attnum
            }
        })
    }

    /// Rows of the version `former` as they are under this one. What values become where a column's type is another, or
    /// hold that had no column yet, Postgres says.
    pub(super) async fn rows_of(
        &self,
        former: &Version,
        rows: Vec<Row>,
        source: &Session,
    ) -> anyhow::Result<Result<Vec<Row>, Unknown>> {
        if rows.is_empty() {
            return Ok(Ok(rows));
        }
        let mut fillings = Vec::new();
        for column in &self.columns {
            let filling = match former.position(&column.name, column.attnum) {
                Some(index) => {
                    let before = &former.columns[index];
                    let values: HashSet<&String> =
                        rows.iter().filter_map(|row| row[index].as_ref()).collect();
                    Filling::Former(index, column.spelled(before, values, source).await?)
                }
                None => match column.in_old_rows(source).await? {
                    Ok(constant) => Filling::Constant(constant),
                    Err(unknown) => return Ok(Err(unknown)),
                },
            };
            fillings.push(filling);
        }
        let renewed = rows.into_iter().map(|row| {
            let cells = fillings.iter().map(|filling| match filling {
                Filling::Constant(cell) => cell.clone(),
                Filling::Former(index, spelled) => row[*index]
                    .as_ref()
                    .and_then(|text| spelled.get(text).cloned().unwrap_or(Some(text.clone()))),
            });
            cells.collect()
        });
        Ok(Ok(renewed.collect()))
    }
}

impl Column {
    /// How those of `values` are written in this column that were written otherwise in the former.
    async fn spelled(
        &self,
        former: &Column,
        values: HashSet<&String>,
        source: &Session,
    ) -> anyhow::Result<HashMap<String, Option<String>>> {
        if former.pg_type == self.pg_type {
            let renamed = former.labels.iter().filter_map(|(oid, label)| {
                let now = self.labels.get(oid)?;
                (now != label).then(|| (label.clone(), Some(now.clone())))
            });
            return Ok(renamed.collect());
        }
        let values: Vec<&String> = values.into_iter().collect();
        let sql = format!(
            "SELECT t, format('%s', t::{}::{}) FROM unnest($1::text[]) t",
            former.pg_type, self.pg_type
        );
        let cast = source.query(&sql, &[&values]).await.with_context(|| {
            format!(
                "casting column {} from {} to {}",
                self.name, former.pg_type, self.pg_type
            )
        })?;
        cast.iter()
            .map(|row| Ok((row.get(0), self.normal(row.get(1))?)))
            .collect()
    }

    /// What rows hold that were there before this column was.
    async fn in_old_rows(
        &self,
        source: &Session,
    ) -> anyhow::Result<Result<Option<String>, Unknown>> {
        if let Some(text) = self.old_rows["value"].as_str() {
            return Ok(Ok(self.normal(Some(text.to_owned()))?));
        }
        Ok(match (self.old_rows.as_str(), &self.default) {
            (Some("null"), _) => Ok(None),
            (Some("default"), Some(default)) => {
                let sql = format!("SELECT format('%s', ({default})::{})", self.pg_type);
                Ok(self.normal(Some(source.text(&sql).await?))?)
            }
            _ => Err(Unknown(format!(
                "what older rows hold in the new column {} is not known: {}",
                self.name, self.old_rows
            ))),
        })
    }
}
