//! What a new version of a source table asks of the destination table, and what the
//! mirror's `schema_changes` lets be done about it. Pure.
//!
//! Columns are recognised by their attnum, which survives a rename. Whatever the mode, the
//! data of every column that the destination has a place for goes on flowing into that
//! place; what would make rows differ silently refuses the table instead, with the cure.

use bunny_catalog::SchemaChanges;
use bunny_postgres::TableName;
use bunny_schemas::envelope::ColumnSchema;

use super::destination::PresentTable;
use super::shape::{Computed, Known, Shape};
use crate::event::TableVersion;

/// One thing to do to the destination table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alteration {
    /// The first that the destination accepts is the one.
    pub(crate) attempts: Vec<Attempt>,
    /// What follows when it accepts none.
    pub(crate) otherwise: Otherwise,
}

/// One way to do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) sql: String,
    /// What someone should know when it was this way.
    pub(crate) notice: Option<String>,
}

/// When no attempt succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// The table stops, for this reason.
    Refuse(String),
    /// It goes on, and this is said.
    Say(String),
}

/// What is to be done about a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In this order, before the version's first row.
    pub(crate) alterations: Vec<Alteration>,
    /// Constraints, at the end of the destination transaction: what the source's catalog
    /// says may be true a few rows after the version begins only.
    pub(crate) constraints: Vec<Alteration>,
    /// What is not done, a sentence each with what to do.
    pub(crate) notices: Vec<String>,
    /// The table afterwards.
    pub(crate) shape: Shape,
}

/// Why the table cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) mode: SchemaChanges,
    pub(crate) known: &'a Shape,
    /// Generated columns of the source's table, as the destination was last brought in line with
    /// them; None where that is not known.
    pub(crate) computed: Option<&'a [Computed]>,
    pub(crate) version: &'a TableVersion,
    pub(crate) destination: &'a TableName,
    pub(crate) present: &'a PresentTable,
}

/// Whether a version is the table as it is known, so that nothing need be looked at.
pub(crate) fn is_known(known: &Shape, version: &TableVersion) -> bool {
    let same = |column: &ColumnSchema| {
        known.position(column).is_some_and(|position| {
            let known = &known.columns[position];
            known.name == column.name
                && known.unsure == (column.attnum == 0)
                && known.type_name == column.type_name
                && (column.facts.is_none() || known.not_null == column.not_null)
        })
    };
    known.columns.len() == version.columns.len()
        && version.columns.iter().all(same)
        && primary_key(version).is_none_or(|key| known.primary_key.as_ref() == Some(&key))
}

/// The primary key of a version by attnum; None where it is not known.
pub(crate) fn primary_key(version: &TableVersion) -> Option<Vec<i16>> {
    let mut key = Vec::new();
    for column in &version.columns {
        let facts = column.facts.as_ref()?;
        key.extend(facts.primary_key.map(|position| (position, column.attnum)));
    }
    key.sort_unstable();
    Some(key.into_iter().map(|(_, attnum)| attnum).collect())
}

/// One statement to try.
pub(crate) fn alteration(sql: String, otherwise: Otherwise) -> Alteration {
    Alteration {
        attempts: vec![Attempt { sql, notice: None }],
        otherwise,
    }
}

pub(super) fn seen_again(former: &Known, column: &ColumnSchema) -> Known {
    Known {
        attnum: if column.attnum == 0 {
            former.attnum
        } else {
            column.attnum
        },
        not_null: if column.facts.is_some() {
            column.not_null
        } else {
            former.not_null
        },
        into: former.into.clone(),
        ..first_seen(column)
    }
}

/// A column as a version has it, without a place.
pub(crate) fn first_seen(column: &ColumnSchema) -> Known {
    Known {
        attnum: column.attnum,
        unsure: column.attnum == 0,
        name: column.name.clone(),
        type_name: column.type_name.clone(),
        not_null: column.not_null,
        into: None,
    }
}
