//! What is built on a table once its rows are there: indexes, unique and exclusion
//! constraints, checks that rows from before need not hold, the replica identity.
//!
//! Pure: from the source's definition and what the destination's table has, to SQL.

use std::collections::BTreeSet;

use bunny_postgres::introspect::{
    ConstraintDefinition, ConstraintKind, IndexDefinition, IndexKey, TableObjects,
};
use bunny_postgres::{TableName, quote_ident};

use super::step::{Step, comment_on, parameters};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The source's objects.
    pub(crate) objects: &'a TableObjects,
    pub(crate) destination: &'a TableName,
    /// False leaves out indexes and what is made of one (`replicate_indexes`).
    pub(crate) indexes: bool,
}

/// What the destination's table has now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Present {
    pub(crate) objects: TableObjects,
    /// Its columns.
    pub(crate) columns: BTreeSet<String>,
    /// Names of relations in its schema: an index needs one that is free.
    pub(crate) taken: BTreeSet<String>,
}

/// What is to be done, so that nothing is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// They need nothing of each other and may run side by side.
    pub(crate) indexes: Vec<Step>,
    /// To be run one after the other, behind the indexes: each locks the whole table.
    pub(crate) constraints: Vec<Step>,
    /// What this table will not have, or has otherwise, one sentence each.
    pub(crate) left_out: Vec<String>,
}

impl Plan {
    /// How many objects are missing.
    pub(crate) fn steps(&self) -> usize {
        self.indexes.len() + self.constraints.len()
    }
}

/// Plans what is missing. An object counts as there when the destination's table has one
/// of its name, whatever it is made of (then that is said), or one that is made alike under
/// another name. Nothing that is there is altered.
pub(crate) fn plan(wanted: Wanted<'_>, present: &Present) -> Plan {
    let mut plan = Plan::default();
    for index in wanted.objects.indexes.iter().filter(|_| wanted.indexes) {
        if let Some(step) = index_step(wanted, present, index, &mut plan.left_out) {
            plan.indexes.push(step);
        }
    }
    for constraint in &wanted.objects.constraints {
        if let Some(step) = constraint_step(wanted, present, constraint, &mut plan.left_out) {
            plan.constraints.push(step);
        }
    }
    if wanted.indexes {
        plan.constraints.extend(identity_step(wanted, present));
    }
    plan
}

fn index_step(
    wanted: Wanted<'_>,
    present: &Present,
    index: &IndexDefinition,
    left_out: &mut Vec<String>,
) -> Option<Step> {
    let what = format!(
        "index {} of {}",
        quote_ident(&index.name),
        wanted.destination
    );
    if !index.valid {
        left_out.push(format!("{what}: it is not valid at the source"));
        return None;
    }
    if let Some(missing) = missing_column(&index.columns, present) {
        left_out.push(format!("{what}: its column {missing} is not replicated"));
        return None;
    }
    let there = &present.objects.indexes;
    let named = there.iter().find(|other| other.name == index.name);
    let alike = |other: &IndexDefinition| is_alike(other, index);
    match named {
        Some(other) if !alike(other) => {
            left_out.push(format!(
                "{what}: the destination has one of that name that is made otherwise, or whose definition reads otherwise there; it is left as it is"
            ));
            return None;
        }
        Some(other) if other.valid => return None,
        Some(_) => {}
        None if there.iter().any(|other| other.valid && alike(other)) => return None,
        None => {}
    }
    let left_invalid = named.is_some();
    let mut statements = Vec::new();
    if left_invalid {
        left_out.push(format!(
            "{what}: the destination has it, but not valid; it is built anew"
        ));
        let name = TableName::new(wanted.destination.schema.as_str(), index.name.as_str());
        statements.push(format!("DROP INDEX {}", name.quoted()));
    }
    let is_free = left_invalid || !present.taken.contains(&index.name);
    if !is_free {
        left_out.push(format!(
            "the name of {what}: something else has it there, so the index gets another"
        ));
    }
    statements.push(create_index(index, wanted.destination, is_free));
    if let Some(comment) = index.comment.as_ref().filter(|_| is_free) {
        let name = TableName::new(wanted.destination.schema.as_str(), index.name.as_str());
        statements.push(comment_on("INDEX", &name.quoted(), comment));
    }
    Some(Step::new("index", &index.name, what, statements))
}

fn constraint_step(
    wanted: Wanted<'_>,
    present: &Present,
    constraint: &ConstraintDefinition,
    left_out: &mut Vec<String>,
) -> Option<Step> {
    let kind = match constraint.kind {
        ConstraintKind::Unique | ConstraintKind::Exclusion if !wanted.indexes => return None,
        ConstraintKind::Unique => "unique constraint",
        ConstraintKind::Exclusion => "exclusion constraint",
        // Loaded rows need not hold it; the others were created with the table.
        ConstraintKind::Check if !constraint.validated => "check constraint",
        ConstraintKind::Check | ConstraintKind::PrimaryKey => return None,
    };
    let what = format!(
        "{kind} {} of {}",
        quote_ident(&constraint.name),
        wanted.destination
    );
    if let Some(missing) = missing_column(&constraint.columns, present) {
        left_out.push(format!("{what}: its column {missing} is not replicated"));
        return None;
    }
    let alike = |other: &ConstraintDefinition| {
        other.kind == constraint.kind && other.definition == constraint.definition
    };
    let there = &present.objects.constraints;
    if there.iter().any(alike) {
        return None;
    }
    if there.iter().any(|other| other.name == constraint.name) {
        left_out.push(format!(
            "{what}: the destination has a constraint of that name that is made otherwise, or whose definition reads otherwise there; it is left as it is"
        ));
        return None;
    }
    let needs_index = constraint.kind != ConstraintKind::Check;
    let is_free = !(needs_index && present.taken.contains(&constraint.name));
    if !is_free {
        left_out.push(format!(
            "the name of {what}: something else has it there, so the constraint gets another"
        ));
    }
    let statements = add_constraint(constraint, wanted.destination, is_free);
    Some(Step::new(kind, &constraint.name, what, statements))
}

/// `ALTER TABLE … ADD CONSTRAINT …` with what belongs to it.
pub(crate) fn add_constraint(
    constraint: &ConstraintDefinition,
    table: &TableName,
    named: bool,
) -> Vec<String> {
    let table_sql = table.quoted();
    let name = quote_ident(&constraint.name);
    if !named {
        return vec![format!(
            "ALTER TABLE {table_sql} ADD {}",
            constraint.definition
        )];
    }
    let mut statements = vec![format!(
        "ALTER TABLE {table_sql} ADD CONSTRAINT {name} {}",
        constraint.definition
    )];
    if !constraint.index_options.is_empty() {
        let index = TableName::new(table.schema.as_str(), constraint.name.as_str());
        statements.push(format!(
            "ALTER INDEX {} SET ({})",
            index.quoted(),
            parameters(&constraint.index_options)
        ));
    }
    if let Some(comment) = &constraint.comment {
        let object = format!("{name} ON {table_sql}");
        statements.push(comment_on("CONSTRAINT", &object, comment));
    }
    statements
}

fn identity_step(wanted: Wanted<'_>, present: &Present) -> Option<Step> {
    let name = wanted.objects.replica_identity_index.as_ref()?;
    if present.objects.replica_identity_index.as_ref() == Some(name) {
        return None;
    }
    // Only an index that is there, or will be under its name, can be chosen.
    let comes = |columns: &[String]| missing_column(columns, present).is_none();
    let of_constraint = wanted
        .objects
        .constraints
        .iter()
        .find(|constraint| constraint.name == *name)
        .is_some_and(|constraint| comes(&constraint.columns));
    let of_its_own = wanted
        .objects
        .indexes
        .iter()
        .find(|index| index.name == *name)
        .is_some_and(|index| comes(&index.columns));
    (of_constraint || of_its_own).then(|| {
        Step::new(
            "replica identity",
            name,
            format!("replica identity of {}", wanted.destination),
            vec![format!(
                "ALTER TABLE {} REPLICA IDENTITY USING INDEX {}",
                wanted.destination.quoted(),
                quote_ident(name)
            )],
        )
    })
}

fn missing_column(columns: &[String], present: &Present) -> Option<String> {
    columns
        .iter()
        .find(|column| !present.columns.contains(*column))
        .map(|column| quote_ident(column))
}

/// Whether two indexes are made alike, whatever their names, valid or not.
pub(crate) fn is_alike(one: &IndexDefinition, other: &IndexDefinition) -> bool {
    let nameless = |index: &IndexDefinition| IndexDefinition {
        name: String::new(),
        comment: None,
        columns: Vec::new(),
        valid: true,
        ..index.clone()
    };
    nameless(one) == nameless(other)
}

/// `CREATE INDEX` from its parts. Without its name Postgres picks one.
pub(crate) fn create_index(index: &IndexDefinition, table: &TableName, named: bool) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let name = if named {
        format!("{} ", quote_ident(&index.name))
    } else {
        String::new()
    };
    let keys: Vec<String> = index.keys.iter().map(key).collect();
    let mut sql = format!(
        "CREATE {unique}INDEX {name}ON {} USING {} ({})",
        table.quoted(),
        quote_ident(&index.method),
        keys.join(", ")
    );
    if !index.include.is_empty() {
        let columns: Vec<String> = index.include.iter().map(|name| quote_ident(name)).collect();
        sql.push_str(&format!(" INCLUDE ({})", columns.join(", ")));
    }
    if index.nulls_not_distinct {
        sql.push_str(" NULLS NOT DISTINCT");
    }
    if !index.options.is_empty() {
        sql.push_str(&format!(" WITH ({})", parameters(&index.options)));
    }
    if let Some(predicate) = &index.predicate {
        sql.push_str(&format!(" WHERE {predicate}"));
    }
    sql
}

/// Everything is spelled out that has a default depending on something else, so that the
/// same index comes out whatever the destination's defaults are.
fn key(key: &IndexKey) -> String {
    let mut sql = match (&key.column, &key.expression) {
        (Some(column), _) => quote_ident(column),
        (None, Some(expression)) => expression.clone(),
        (None, None) => String::new(),
    };
    if let Some(collation) = &key.collation {
        sql.push_str(&format!(" COLLATE {collation}"));
    }
    sql.push_str(&format!(" {}", key.opclass));
    if !key.opclass_options.is_empty() {
        sql.push_str(&format!(" ({})", parameters(&key.opclass_options)));
    }
    match (key.descending, key.nulls_first) {
        (false, false) => {}
        (false, true) => sql.push_str(" NULLS FIRST"),
        (true, true) => sql.push_str(" DESC"),
        (true, false) => sql.push_str(" DESC NULLS LAST"),
    }
    sql
}

#[cfg(test)]
#[path = "after_load_tests.rs"]
mod tests;
