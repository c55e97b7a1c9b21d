//! What a table lacks, or has too much, beyond what a version of the stream tells. Pure.
//!
//! What belongs to the source is told from what someone added here by the definition that the
//! table was last brought in line with: an object that was in it, is not any more, and stands
//! here as it was, is the source's to drop. Nothing else is ever dropped.

use bunny_catalog::SchemaChanges;
use bunny_postgres::introspect::{
    self, ConstraintDefinition, ConstraintKind, Fit, IndexDefinition, TableObjects,
};
use bunny_postgres::{ColumnDefinition, TableDefinition, TableName, quote_ident};
use bunny_schemas::envelope::ColumnSchema;

use crate::schema::after_load::{add_constraint, is_alike};
use crate::schema::{expression, table};
use crate::schema_change::destination::PresentTable;
use crate::schema_change::plan::{Alteration, Attempt, Otherwise, alteration, first_seen};
use crate::schema_change::shape::{Known, Shape};

/// What is to be run, in order, and what is not done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) alterations: Vec<Alteration>,
    pub(super) left: Vec<String>,
}

impl Difference {
    fn attempt(&mut self, sql: String, otherwise: String) {
        self.alterations
            .push(alteration(sql, Otherwise::Say(otherwise)));
    }
}

/// A destination table and the two definitions it stands between.
#[derive(Clone, Copy)]
pub(super) struct Between<'a> {
    pub(super) mode: SchemaChanges,
    pub(super) destination: &'a TableName,
    /// The source's table as it was when this one was last brought in line.
    pub(super) former: Option<&'a TableDefinition>,
    /// As it is.
    pub(super) source: &'a TableDefinition,
    pub(super) here: &'a TableDefinition,
}

/// A table's shape told by what stands here, so that a plan compares the source with the
/// destination and not with what was once decided. The second are columns whose values had
/// no place here although there were rows.
pub(super) fn as_present(
    shape: Option<&Shape>,
    version: &[ColumnSchema],
    present: &PresentTable,
    here: &TableDefinition,
    source: &TableDefinition,
) -> (Shape, Vec<Known>) {
    let by_name = || Shape {
        columns: version
            .iter()
            .filter(|column| present.column(&column.name).is_some())
            .map(|column| Known {
                into: Some(column.name.clone()),
                ..first_seen(column)
            })
            .collect(),
        ..Shape::default()
    };
    let mut told = shape.cloned().unwrap_or_else(by_name);
    let mut lacking = Vec::new();
    let known = std::mem::take(&mut told.columns);
    for mut column in known {
        let place = column.into.as_ref().and_then(|into| present.column(into));
        match place {
            Some(place) => {
                if column.attnum != 0 {
                    column.name.clone_from(&place.name);
                }
                column.type_name = known_type(&column, &place.name, &place.type_name, here, source);
                column.not_null = place.not_null;
                told.columns.push(column);
            }
            // Someone has renamed it here already.
            None if column.into.is_some() && is_named(version, &column, present) => {
                told.columns.push(column);
            }
            None if present.has_rows => {
                column.into = None;
                lacking.push(column.clone());
                told.columns.push(column);
            }
            None => {}
        }
    }
    (told, lacking)
}

fn is_named(version: &[ColumnSchema], known: &Known, present: &PresentTable) -> bool {
    let now = version.iter().find(|column| column.attnum == known.attnum);
    now.is_some_and(|now| present.column(&now.name).is_some())
}

/// The type that stands here, or the source's where this one takes all its values: a type
/// that someone chose to be wider is no difference.
fn known_type(
    known: &Known,
    place: &str,
    present: &str,
    here: &TableDefinition,
    source: &TableDefinition,
) -> String {
    let mut columns = source.columns.iter();
    let wanted = columns.find(|column| column.attnum == known.attnum);
    match (wanted, here.column(place)) {
        (Some(wanted), Some(there)) if introspect::fit(wanted, there) == Fit::Wider => {
            wanted.type_name.clone()
        }
        _ => present.to_owned(),
    }
}

/// Columns beyond the plan: those that lacked a place, that are left over, or generated.
pub(super) fn columns(
    between: Between<'_>,
    shape: &Shape,
    lacking: &[Known],
    excluded: &[String],
) -> Difference {
    let mut difference = Difference::default();
    let Between {
        mode,
        destination,
        source,
        here,
        ..
    } = between;
    let table = destination.quoted();
    for known in lacking {
        let mut columns = source.columns.iter();
        let Some(column) = columns.find(|column| column.attnum == known.attnum) else {
            continue;
        };
        let name = quote_ident(&column.name);
        if here.column(&column.name).is_none() {
            let collate = column.collation.as_ref();
            let collate = collate
                .map(|name| format!(" COLLATE {name}"))
                .unwrap_or_default();
            difference.attempt(
                format!(
                    "ALTER TABLE {table} ADD COLUMN {name} {}{collate}",
                    column.type_name
                ),
                format!("column {name} could not be added"),
            );
        }
        difference.left.push(format!(
            "the values of column {name}: rows were applied while {destination} lacked it, and what they held is missing. It \
             stays empty until the table is synced again (POST …/resync/{})",
            source.name
        ));
    }
    let is_in_use = |name: &String| {
        let mut columns = shape.columns.iter();
        columns.any(|known| known.into.as_ref() == Some(name))
    };
    let is_left_over = |name: &&String| here.column(name).is_some() && !is_in_use(name);
    for name in shape.abandoned.iter().filter(is_left_over) {
        let quoted = quote_ident(name);
        drop_column(&mut difference, mode, &table, &quoted);
    }
    generated(between, excluded, &mut difference);
    difference
}

fn drop_column(difference: &mut Difference, mode: SchemaChanges, table: &str, column: &str) {
    if mode == SchemaChanges::All {
        difference.attempt(
            format!("ALTER TABLE {table} DROP COLUMN {column}"),
            format!("column {column} is gone at the source and could not be dropped"),
        );
    } else {
        difference.left.push(format!(
            "column {column} is gone at the source; it is dropped only with \"schema_changes\": \"all\""
        ));
    }
}

fn generated(between: Between<'_>, excluded: &[String], difference: &mut Difference) {
    let Between {
        mode,
        destination,
        former,
        source,
        here,
    } = between;
    let is_missing = |column: &&ColumnDefinition| here.column(&column.name).is_none();
    let generated = source
        .columns
        .iter()
        .filter(|column| column.generated.is_some());
    for column in generated.filter(is_missing) {
        let name = quote_ident(&column.name);
        let expression = column.generated.as_deref().unwrap_or_default();
        let mut excluded_ones = excluded.iter();
        if let Some(touched) =
            excluded_ones.find(|column| expression::mentions_column(expression, column))
        {
            difference.left.push(format!(
                "column {name} is generated from the excluded column {}",
                quote_ident(touched)
            ));
            continue;
        }
        let plan = table::plan_column(column, destination, excluded);
        difference.left.extend(plan.left_out);
        for statement in plan.statements {
            let otherwise = format!("generated column {name} could not be added");
            difference.attempt(statement, otherwise);
        }
    }
    let former = former.map_or(&[][..], |former| &former.columns);
    let is_gone = |column: &&ColumnDefinition| {
        let mut columns = source.columns.iter();
        column.generated.is_some() && !columns.any(|now| now.attnum == column.attnum)
    };
    for column in former.iter().filter(is_gone) {
        if here
            .column(&column.name)
            .is_some_and(|there| there.generated.is_some())
        {
            let table = destination.quoted();
            drop_column(difference, mode, &table, &quote_ident(&column.name));
        }
    }
}

/// NOT NULL and defaults of columns that have a place.
pub(super) fn column_facts(between: Between<'_>, shape: &Shape) -> Difference {
    let mut difference = Difference::default();
    let Between {
        destination,
        former,
        source,
        here,
        ..
    } = between;
    let place_of = |column: &ColumnDefinition| {
        let mut columns = shape.columns.iter();
        let known = columns.find(|known| known.attnum == column.attnum)?;
        here.column(known.into.as_ref()?)
    };
    for column in &source.columns {
        let Some(place) = place_of(column) else {
            continue;
        };
        let name = quote_ident(&place.name);
        let alter = format!("ALTER TABLE {} ALTER COLUMN {name}", destination.quoted());
        if column.not_null && !place.not_null {
            difference.attempt(
                format!("{alter} SET NOT NULL"),
                format!("column {name} could not be made NOT NULL"),
            );
        }
        if column.identity != place.identity {
            let words = |one: &ColumnDefinition| match one.identity {
                Some(_) => "an identity column",
                None => "none",
            };
            difference.left.push(format!(
                "column {name} is {} here and {} at the source",
                words(place),
                words(column)
            ));
            continue;
        }
        let was = former
            .and_then(|former| {
                former
                    .columns
                    .iter()
                    .find(|one| one.attnum == column.attnum)
            })
            .map(|was| was.default.as_deref());
        default(&mut difference, column, place, was, &alter);
    }
    difference
}

/// `was`: the source's former default, where a former definition is known.
fn default(
    difference: &mut Difference,
    column: &ColumnDefinition,
    place: &ColumnDefinition,
    was: Option<Option<&str>>,
    alter: &str,
) {
    let name = quote_ident(&place.name);
    match (column.default.as_deref(), place.default.as_deref()) {
        (wanted, there) if wanted == there => {}
        // Only a default that was the source's is dropped; another is someone's own.
        (None, Some(_)) if was.flatten().is_some() => difference.attempt(
            format!("{alter} DROP DEFAULT"),
            format!("the default of column {name} could not be dropped"),
        ),
        (None, _) => {}
        (Some(wanted), there) => {
            if there.is_some() && was == Some(Some(wanted)) {
                return;
            }
            match expression::not_portable(wanted, &column.type_name) {
                Some(_) if there.is_some() && was == Some(there) => {}
                Some(reason) => difference
                    .left
                    .push(format!("default {wanted} of column {name}: {reason}")),
                None => difference.attempt(
                    format!("{alter} SET DEFAULT {wanted}"),
                    format!("the default of column {name} could not be set to {wanted}"),
                ),
            }
        }
    }
}

/// Objects that the source has dropped or made otherwise, and checks that it has added.
pub(super) fn objects(between: Between<'_>, with_indexes: bool) -> Difference {
    let nothing = TableObjects::default();
    let objects_of = |of: Option<&'_ TableDefinition>| of.and_then(|of| of.objects.clone());
    let former = objects_of(between.former).unwrap_or_default();
    let source = between.source.objects.as_ref().unwrap_or(&nothing);
    let here = between.here.objects.as_ref().unwrap_or(&nothing);
    let mut difference = Difference::default();
    let table = between.destination.quoted();
    for was in &former.foreign_keys {
        let is_wanted = source.foreign_keys.iter().any(|now| now.name == was.name);
        let is_here = here
            .foreign_keys
            .iter()
            .any(|here| here.name == was.name && here.columns == was.columns);
        if !is_wanted && is_here {
            drop_constraint(&mut difference, &table, &was.name, "foreign key");
        }
    }
    for constraint in &here.constraints {
        dropped_constraint(&mut difference, &table, constraint, &former, source);
    }
    for index in here.indexes.iter().filter(|_| with_indexes) {
        dropped_index(&mut difference, between, index, &former, source);
    }
    for check in &source.constraints {
        let is_here = |one: &ConstraintDefinition| {
            one.kind == ConstraintKind::Check
                && (one.definition == check.definition || one.name == check.name)
        };
        let stays = |one: &ConstraintDefinition| is_here(one) && !is_replaced(one, &former, source);
        if check.kind != ConstraintKind::Check
            || !check.validated
            || here.constraints.iter().any(stays)
        {
            continue;
        }
        let name = quote_ident(&check.name);
        let statements = add_constraint(check, between.destination, true);
        let otherwise = format!("check {name} could not be added");
        for statement in statements {
            difference.attempt(statement, otherwise.clone());
        }
    }
    difference
}

/// Whether a constraint here is as the source once had it under that name, and the source has
/// it no more like this.
fn is_replaced(here: &ConstraintDefinition, former: &TableObjects, source: &TableObjects) -> bool {
    let same =
        |one: &ConstraintDefinition| one.name == here.name && one.definition == here.definition;
    let alike =
        |one: &ConstraintDefinition| one.kind == here.kind && one.definition == here.definition;
    former.constraints.iter().any(same) && !source.constraints.iter().any(alike)
}

fn dropped_constraint(
    difference: &mut Difference,
    table: &str,
    here: &ConstraintDefinition,
    former: &TableObjects,
    source: &TableObjects,
) {
    // The primary key is the plan's.
    if here.kind == ConstraintKind::PrimaryKey {
        return;
    }
    let name = quote_ident(&here.name);
    if is_replaced(here, former, source) {
        drop_constraint(difference, table, &here.name, "constraint");
        return;
    }
    let alike = |one: &ConstraintDefinition| {
        one.kind == here.kind && (one.definition == here.definition || one.name == here.name)
    };
    if !source.constraints.iter().any(alike) {
        difference.left.push(format!(
            "constraint {name} is not the source's, and none that this mirror made: it stays, and a row that it refuses makes \
             the table ERRORED"
        ));
    }
}

fn drop_constraint(difference: &mut Difference, table: &str, name: &str, what: &str) {
    let name = quote_ident(name);
    difference.attempt(
        format!("ALTER TABLE {table} DROP CONSTRAINT {name}"),
        format!("{what} {name} is gone at the source and could not be dropped"),
    );
}

fn dropped_index(
    difference: &mut Difference,
    between: Between<'_>,
    here: &IndexDefinition,
    former: &TableObjects,
    source: &TableObjects,
) {
    if source.indexes.iter().any(|now| is_alike(now, here)) {
        return;
    }
    let was_ours = |was: &IndexDefinition| was.name == here.name && is_alike(was, here);
    let name = TableName::new(between.destination.schema.as_str(), here.name.as_str()).quoted();
    let is_remade = source.indexes.iter().any(|now| now.name == here.name);
    if !former.indexes.iter().any(was_ours) {
        if here.unique && !is_remade {
            difference.left.push(format!(
                "unique index {name} is not the source's, and none that this mirror made: it stays, and a row that it refuses \
                 makes the table ERRORED"
            ));
        }
        return;
    }
    if here.unique || is_remade || between.mode == SchemaChanges::All {
        difference.attempt(
            format!("DROP INDEX {name}"),
            format!("index {name} is gone at the source and could not be dropped"),
        );
    } else {
        difference.left.push(format!(
            "index {name} is gone at the source; it is dropped only with \"schema_changes\": \"all\""
        ));
    }
}

/// The definition to remember: the source's, with what was the source's and still stands
/// here, so that it is known as such when it may be dropped later.
pub(super) fn remembered(between: Between<'_>) -> TableDefinition {
    let mut remembered = between.source.clone();
    let former = between.former.and_then(|former| former.objects.as_ref());
    let here = between.here.objects.as_ref();
    let (Some(former), Some(here)) = (former, here) else {
        return remembered;
    };
    let objects = remembered.objects.get_or_insert_default();
    for was in &former.indexes {
        let is_known = objects.indexes.iter().any(|now| now.name == was.name);
        let stands = |one: &IndexDefinition| one.name == was.name && is_alike(one, was);
        if !is_known && here.indexes.iter().any(stands) {
            objects.indexes.push(was.clone());
        }
    }
    for was in &former.constraints {
        let is_known = objects.constraints.iter().any(|now| now.name == was.name);
        let stands =
            |one: &ConstraintDefinition| one.name == was.name && one.definition == was.definition;
        if !is_known && here.constraints.iter().any(stands) {
            objects.constraints.push(was.clone());
        }
    }
    remembered
}

/// Generated columns that are gone at the source and still stand here.
pub(super) fn left_over(between: Between<'_>) -> Vec<String> {
    let former = between.former.map_or(&[][..], |former| &former.columns);
    let is_left = |column: &&ColumnDefinition| {
        let mut columns = between.source.columns.iter();
        let there = between.here.column(&column.name);
        column.generated.is_some()
            && there.is_some_and(|there| there.generated.is_some())
            && !columns.any(|now| now.attnum == column.attnum || now.name == column.name)
    };
    let left = former.iter().filter(is_left);
    left.map(|column| column.name.clone()).collect()
}

/// Whether an attempt would be made twice: a plan and this may want the same.
pub(super) fn without_repeats(alterations: Vec<Alteration>) -> Vec<Alteration> {
    let mut kept: Vec<Alteration> = Vec::new();
    let sql = |one: &Alteration| one.attempts.first().map(|Attempt { sql, .. }| sql.clone());
    for one in alterations {
        if !kept.iter().any(|other| sql(other) == sql(&one)) {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
#[path = "difference_tests.rs"]
mod tests;
