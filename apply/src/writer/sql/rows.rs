//! The rows that a statement brings into the table, as an item of its FROM list. Pure.

use super::{Sql, SqlColumn, key_operator, own_key_cell};

/// Of a wider table rows are not given as parameters: the server keeps every array by itself.
const COLUMNS_MAX: usize = 200;

/// How a value stands in the array of its column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::writer) enum Element {
    /// As what it is. The type's elements are separated by this.
    Own(char),
    /// As its text: arrays in an array would be one of more dimensions, and `unnest` makes
    /// several columns of a composite.
    Text,
    /// Not at all: something would become of it that becomes of no staged value.
    Staged,
}

impl Element {
    pub(in crate::writer) fn delimiter(self) -> char {
        match self {
            Element::Own(delimiter) => delimiter,
            Element::Text | Element::Staged => ',',
        }
    }
}

/// Where the rows are. Either way their columns are `n`, `op`, `mask` and `c0`, `c1`, ….
#[derive(Clone, Debug)]
pub(super) enum Rows {
    /// In this staging table, quoted.
    Staged(String),
    /// Parameters of the statement, one array a column.
    Given { arrays: String, names: String },
}

impl Rows {
    /// A cell of a column that is not packed.
    pub(super) fn cell(&self, alias: &str, index: usize, column: &SqlColumn) -> String {
        match (self, column.element) {
            (Rows::Given { .. }, Element::Text) => {
                format!("({alias}.c{index})::{}", column.plain_type)
            }
            _ => format!("{alias}.c{index}"),
        }
    }

    /// The same to compare it with the table's. A parameter has the collation of its type, and two
    /// different ones cannot be compared.
    pub(super) fn key_cell(&self, alias: &str, index: usize, column: &SqlColumn) -> String {
        match (self, &column.collation) {
            (Rows::Given { .. }, Some(collation)) => {
                format!("{alias}.c{index} COLLATE {collation}")
            }
            _ => format!("{alias}.c{index}"),
        }
    }
}

impl Sql {
    /// The statements over rows that are given as parameters. None where that cannot be: keys are
    /// compared as what they are, and what is wide is staged.
    pub(in crate::writer) fn over_parameters(&self) -> Option<Sql> {
        let is_staged = |column: &SqlColumn| match column.element {
            Element::Own(_) => false,
            Element::Text => column.key,
            Element::Staged => true,
        };
        if self.columns.len() > COLUMNS_MAX || self.columns.iter().any(is_staged) {
            return None;
        }
        let mut types = vec!["bigint".to_owned(), "\"char\"".to_owned(), "int".to_owned()];
        let mut names = vec!["n".to_owned(), "op".to_owned(), "mask".to_owned()];
        for (index, column) in self.columns.iter().enumerate() {
            types.push(match column.element {
                // Without its modifier: a cast to that cuts without a word what an assignment refuses.
                Element::Own(_) => column.plain_type.clone(),
                Element::Text | Element::Staged => "text".to_owned(),
            });
            names.push(format!("c{index}"));
        }
        let arrays = (1..).zip(types);
        let arrays = arrays.map(|(number, of)| format!("${number}::{of}[]"));
        Some(Sql {
            table: self.table.clone(),
            staging: self.staging.clone(),
            rows: Rows::Given {
                arrays: arrays.collect::<Vec<_>>().join(", "),
                names: names.join(", "),
            },
            columns: self.columns.clone(),
            own: self.own.clone(),
            packed: self.packed.clone(),
        })
    }

    /// How the values of each column stand in their array.
    pub(in crate::writer) fn elements(&self) -> impl Iterator<Item = Element> {
        self.columns.iter().map(|column| column.element)
    }

    /// The key's column, if it is one: its place among all, and how its values stand in an array.
    pub(in crate::writer) fn only_key(&self) -> Option<(usize, Element)> {
        let mut key = self.key_cells();
        let (index, column) = key.next().filter(|_| key.next().is_none())?;
        Some((index, column.element))
    }

    /// Deletes the rows whose keys are in the array that is the parameter, with a key of one column. The array
    /// is a constant to the planner, so an index is read in its order, and a table that is read whole compares by
    /// hash.
    pub(in crate::writer) fn delete_keys(&self) -> Option<String> {
        let column = &self.columns[self.only_key()?.0];
        let of = &column.plain_type;
        let collate = column.collation.as_ref();
        let collate = collate.map_or_else(String::new, |collation| format!(" COLLATE {collation}"));
        let (cell, operator) = (own_key_cell("t", column), key_operator(column));
        Some(format!(
            "DELETE FROM {} AS t WHERE {cell} {operator} ANY (($1::{of}[]){collate})",
            self.table
        ))
    }

    pub(super) fn rows(&self, alias: &str) -> String {
        match &self.rows {
            Rows::Staged(table) => format!("{table} AS {alias}"),
            Rows::Given { arrays, names } => format!("unnest({arrays}) AS {alias} ({names})"),
        }
    }
}
