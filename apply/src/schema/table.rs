//! The SQL that creates a destination table from the source's definition.

use std::collections::BTreeSet;

use bunny_postgres::introspect::{
    ColumnTraits, ConstraintDefinition, ConstraintKind, SequenceDefinition, SequenceRole,
    TableObjects,
};
use bunny_postgres::{
    ColumnDefinition, IdentityKind, TableDefinition, TableName, quote_ident, quote_literal,
};

use super::step::{Step, comment_on, parameters};
use super::{after_load, expression, sequences};

/// Columns generated when read came with 18.
const VIRTUAL_SINCE: i32 = 180_000;

/// How a destination table is created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TablePlan {
    /// To be run in order, in one transaction; the schema exists by then.
    pub(crate) statements: Vec<String>,
    /// To be run behind them in the same transaction, each for itself: the table is of
    /// use without the ones that the destination refuses.
    pub(crate) optional: Vec<Step>,
    /// What the source's table has and this one won't, one sentence each, for the
    /// mirror's log.
    pub(crate) left_out: Vec<String>,
}

/// Where the table is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Names of relations in its schema.
    pub(crate) taken: BTreeSet<String>,
    /// The server's `server_version_num`.
    pub(crate) version_num: i32,
}

/// Plans the table `destination` like `definition` without the `excluded` columns.
///
/// Taken over: types, collations, not null, identity, generated columns, defaults, checks,
/// the primary key, sequences, storage and comments. A partitioned table becomes an
/// ordinary one. Whatever touches an excluded column is left out and named.
pub(crate) fn plan(
    definition: &TableDefinition,
    destination: &TableName,
    excluded: &[String],
    place: &Place,
) -> TablePlan {
    let nothing = TableObjects::default();
    let mut planner = Planner {
        objects: definition.objects.as_ref(),
        destination,
        excluded,
        place,
        plan: TablePlan::default(),
    };
    let mut lines = Vec::new();
    let mut columns_kept: Vec<&str> = Vec::new();
    for column in &definition.columns {
        if excluded.contains(&column.name) {
            continue;
        }
        if let Some(touched) = column
            .generated
            .as_deref()
            .and_then(|expression| first_mention(expression, excluded))
        {
            planner.plan.left_out.push(format!(
                "column {} of {destination}: it is generated from the excluded column {touched}",
                quote_ident(&column.name)
            ));
            continue;
        }
        columns_kept.push(&column.name);
        lines.push(planner.column(column));
    }
    lines.extend(planner.primary_key(definition, &columns_kept));
    planner.plan.statements.push(format!(
        "CREATE TABLE {} (\n    {}\n)",
        destination.quoted(),
        lines.join(",\n    ")
    ));
    let objects = definition.objects.as_ref().unwrap_or(&nothing);
    let is_kept = |name: &String| columns_kept.contains(&name.as_str());
    let defaults = std::mem::take(&mut planner.plan.optional);
    for sequence in objects.sequences.iter().filter(|one| is_kept(&one.column)) {
        planner.sequence(sequence);
    }
    planner.plan.optional.extend(defaults);
    for check in &objects.constraints {
        planner.check(check, &columns_kept);
    }
    for traits in objects.columns.iter().filter(|one| is_kept(&one.name)) {
        planner.traits(traits);
    }
    planner.whole_table(objects);
    planner.plan
}

/// Plans a column that the destination table lacks.
pub(crate) fn plan_column(
    column: &ColumnDefinition,
    destination: &TableName,
    excluded: &[String],
) -> TablePlan {
    let mut planner = Planner {
        objects: None,
        destination,
        excluded,
        place: &Place::default(),
        plan: TablePlan::default(),
    };
    let line = planner.column(column);
    planner.plan.statements.push(format!(
        "ALTER TABLE {} ADD COLUMN {line}",
        destination.quoted()
    ));
    planner.plan
}

struct Planner<'a> {
    objects: Option<&'a TableObjects>,
    destination: &'a TableName,
    excluded: &'a [String],
    place: &'a Place,
    plan: TablePlan,
}

impl Planner<'_> {
    fn column(&mut self, column: &ColumnDefinition) -> String {
        let mut line = format!("{} {}", quote_ident(&column.name), column.type_name);
        if let Some(collation) = &column.collation {
            line.push_str(" COLLATE ");
            line.push_str(collation);
        }
        if let Some(expression) = &column.generated {
            let kind = self.generation(column);
            line.push_str(&format!(" GENERATED ALWAYS AS ({expression}) {kind}"));
        } else if let Some(identity) = column.identity {
            line.push_str(&self.identity(column, identity));
        } else if let Some(default) = self.default(column) {
            line.push_str(&format!(" DEFAULT {default}"));
        }
        if column.not_null {
            line.push_str(" NOT NULL");
        }
        line
    }

    fn generation(&mut self, column: &ColumnDefinition) -> &'static str {
        let is_virtual = self
            .objects
            .and_then(|objects| objects.column(&column.name))
            .is_some_and(|traits| traits.is_virtual);
        if !is_virtual {
            return "STORED";
        }
        if self.place.version_num >= VIRTUAL_SINCE {
            return "VIRTUAL";
        }
        self.plan.left_out.push(format!(
            "column {} of {}: it is VIRTUAL at the source and STORED here, which is all this server knows",
            quote_ident(&column.name),
            self.destination
        ));
        "STORED"
    }

    fn identity(&self, column: &ColumnDefinition, identity: IdentityKind) -> String {
        let kind = match identity {
            IdentityKind::Always => "ALWAYS",
            IdentityKind::ByDefault => "BY DEFAULT",
        };
        let sequence = self
            .objects
            .and_then(|objects| {
                objects.sequences.iter().find(|sequence| {
                    sequence.role == SequenceRole::Identity && sequence.column == column.name
                })
            })
            .map(|sequence| {
                let name = sequences::destination_name(sequence, self.destination);
                let is_free = !self.place.taken.contains(&name.name);
                let options = sequences::identity_options(sequence, is_free.then_some(&name));
                format!(" ({options})")
            });
        format!(
            " GENERATED {kind} AS IDENTITY{}",
            sequence.unwrap_or_default()
        )
    }

    /// The default, if it can stand in the column's definition. One that needs objects of
    /// its own is put behind the table, and must not cost it.
    fn default(&mut self, column: &ColumnDefinition) -> Option<String> {
        let default = column.default.as_ref()?;
        let what = format!(
            "default {default} of column {} of {}",
            quote_ident(&column.name),
            self.destination
        );
        if let Some(touched) = first_mention(default, self.excluded) {
            self.left_out(&what, &format!("it uses the excluded column {touched}"));
            return None;
        }
        let Some(objects) = self.objects else {
            let reason = expression::not_portable(default, &column.type_name);
            if let Some(reason) = reason {
                self.left_out(&what, reason);
            }
            return reason.is_none().then(|| default.clone());
        };
        let drawn = objects
            .column(&column.name)
            .and_then(|traits| traits.default_sequence.as_ref());
        if let Some(name) = drawn {
            let found = objects.sequences.iter().find(|one| one.name == *name);
            match found.and_then(|sequence| self.sequence_name(sequence)) {
                Some(name) => {
                    let literal = quote_literal(&name.quoted());
                    self.default_step(column, what, &format!("nextval({literal}::regclass)"));
                }
                None => self.left_out(&what, "its sequence is not created"),
            }
            return None;
        }
        if expression::not_portable(default, &column.type_name).is_none() {
            return Some(default.clone());
        }
        let moves = objects.sequences.iter().any(|sequence| {
            sequence.column == column.name
                && self.sequence_name(sequence).as_ref() != Some(&sequence.name)
        });
        if moves {
            self.left_out(&what, "its sequence has another name here");
        } else {
            self.default_step(column, what, default);
        }
        None
    }

    fn default_step(&mut self, column: &ColumnDefinition, what: String, default: &str) {
        let sql = format!(
            "ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {default}",
            self.destination.quoted(),
            quote_ident(&column.name)
        );
        let step = Step::new("default", &column.name, what, vec![sql]);
        self.plan.optional.push(step);
    }

    /// The name under which a sequence is or will be there; none if that is somebody else's.
    fn sequence_name(&self, sequence: &SequenceDefinition) -> Option<TableName> {
        let name = sequences::destination_name(sequence, self.destination);
        let is_ours = sequence.role == SequenceRole::Used || !self.place.taken.contains(&name.name);
        is_ours.then_some(name)
    }

    fn sequence(&mut self, sequence: &SequenceDefinition) {
        let named = self.sequence_name(sequence);
        if sequence.role == SequenceRole::Identity {
            let what = format!("state of the identity of {}", self.destination);
            let found = format!(
                "pg_get_serial_sequence({}, {})",
                quote_literal(&self.destination.quoted()),
                quote_literal(&sequence.column)
            );
            let mut statements: Vec<String> = sequence
                .last_value
                .map(|value| format!("SELECT setval({found}, {value}, {})", sequence.is_called))
                .into_iter()
                .collect();
            if let (Some(name), Some(comment)) = (&named, &sequence.comment) {
                statements.push(comment_on("SEQUENCE", &name.quoted(), comment));
            }
            if !statements.is_empty() {
                let step = Step::new("sequence", &sequence.name.name, what, statements);
                self.plan.optional.push(step);
            }
            return;
        }
        let Some(name) = named else {
            let what = format!("sequence {} of {}", sequence.name, self.destination);
            self.left_out(&what, "something else has its name here");
            return;
        };
        let mut step = sequences::create(sequence, &name);
        if sequence.role == SequenceRole::Owned {
            step.statements
                .push(sequences::own(sequence, &name, self.destination));
            step.statements
                .extend(sequences::set(sequence, &name.quoted()));
        } else {
            step.statements
                .push(sequences::raise_sql(sequence, &name.quoted(), None));
        }
        self.plan.optional.push(step);
    }

    fn check(&mut self, check: &ConstraintDefinition, columns_kept: &[&str]) {
        // Rows from before need not hold one that is not valid: it comes after them.
        if check.kind != ConstraintKind::Check || !check.validated {
            return;
        }
        let what = format!("check {} of {}", quote_ident(&check.name), self.destination);
        match not_kept(&check.columns, columns_kept) {
            Some(missing) => {
                self.left_out(&what, &format!("its column {missing} is not replicated"));
            }
            None => {
                let statements = after_load::add_constraint(check, self.destination, true);
                let step = Step::new("check constraint", &check.name, what, statements);
                self.plan.optional.push(step);
            }
        }
    }

    fn traits(&mut self, traits: &ColumnTraits) {
        let table = self.destination.quoted();
        let column = quote_ident(&traits.name);
        let alter = format!("ALTER TABLE {table} ALTER COLUMN {column}");
        let mut add = |what: &str, sql: String| {
            let what = format!("{what} of column {column} of {}", self.destination);
            let step = Step::new("column", &traits.name, what, vec![sql]);
            self.plan.optional.push(step);
        };
        if let Some(storage) = &traits.storage {
            add("storage", format!("{alter} SET STORAGE {storage}"));
        }
        if let Some(method) = &traits.compression {
            add("compression", format!("{alter} SET COMPRESSION {method}"));
        }
        if let Some(comment) = &traits.comment {
            let object = format!("{table}.{column}");
            add("comment", comment_on("COLUMN", &object, comment));
        }
    }

    fn whole_table(&mut self, objects: &TableObjects) {
        let table = self.destination.quoted();
        let mut add = |what: &str, sql: String| {
            let what = format!("{what} of {}", self.destination);
            let step = Step::new("table", &self.destination.name, what, vec![sql]);
            self.plan.optional.push(step);
        };
        if !objects.options.is_empty() {
            let parameters = parameters(&objects.options);
            add(
                "storage parameters",
                format!("ALTER TABLE {table} SET ({parameters})"),
            );
        }
        if let Some(comment) = &objects.comment {
            add("comment", comment_on("TABLE", &table, comment));
        }
        // An index is chosen once it is there.
        let identity = match objects.replica_identity {
            Some('f') => Some("FULL"),
            Some('n') => Some("NOTHING"),
            _ => None,
        };
        if let Some(identity) = identity {
            add(
                "replica identity",
                format!("ALTER TABLE {table} REPLICA IDENTITY {identity}"),
            );
        }
    }

    fn primary_key(
        &mut self,
        definition: &TableDefinition,
        columns_kept: &[&str],
    ) -> Option<String> {
        if definition.primary_key.is_empty() {
            return None;
        }
        let destination = self.destination;
        let constraint = self.objects.and_then(|objects| {
            objects
                .constraints
                .iter()
                .find(|constraint| constraint.kind == ConstraintKind::PrimaryKey)
        });
        let columns = constraint.map_or(&definition.primary_key, |found| &found.columns);
        if let Some(missing) = not_kept(columns, columns_kept) {
            let what = format!("primary key of {destination}");
            self.left_out(&what, &format!("its column {missing} is not replicated"));
            return None;
        }
        let name = definition.primary_key_name.as_ref();
        let named = name
            .map(|name| format!("CONSTRAINT {} ", quote_ident(name)))
            .unwrap_or_default();
        if let (Some(name), Some(comment)) = (
            name,
            constraint.and_then(|constraint| constraint.comment.as_ref()),
        ) {
            let object = format!("{} ON {}", quote_ident(name), destination.quoted());
            let what = format!("comment on the primary key of {destination}");
            let sql = comment_on("CONSTRAINT", &object, comment);
            let step = Step::new("table", name, what, vec![sql]);
            self.plan.optional.push(step);
        }
        if let Some(constraint) = constraint {
            let (key, deferral) = without_deferral(&constraint.definition);
            let mut line = format!("{named}{key}");
            if !constraint.index_options.is_empty() {
                line.push_str(&format!(
                    " WITH ({})",
                    parameters(&constraint.index_options)
                ));
            }
            line.push_str(deferral);
            return Some(line);
        }
        let columns: Vec<String> = definition
            .primary_key
            .iter()
            .map(|column| quote_ident(column))
            .collect();
        let deferral = if definition.key_is_deferrable {
            DEFERRABLE
        } else {
            ""
        };
        Some(format!(
            "{named}PRIMARY KEY ({}){deferral}",
            columns.join(", ")
        ))
    }

    fn left_out(&mut self, what: &str, reason: &str) {
        self.plan.left_out.push(format!("{what}: {reason}"));
    }
}

const DEFERRABLE: &str = " DEFERRABLE";

/// A key's definition, and what stands last in it: parameters of the index go between.
fn without_deferral(definition: &str) -> (&str, &str) {
    let ends = [" DEFERRABLE INITIALLY DEFERRED", DEFERRABLE];
    let end = ends.iter().find(|end| definition.ends_with(**end));
    definition.split_at(definition.len() - end.map_or(0, |end| end.len()))
}

fn not_kept(columns: &[String], columns_kept: &[&str]) -> Option<String> {
    columns
        .iter()
        .find(|column| !columns_kept.contains(&column.as_str()))
        .map(|column| quote_ident(column))
}

/// The first excluded column that the expression mentions, quoted.
fn first_mention(expression: &str, excluded: &[String]) -> Option<String> {
    excluded
        .iter()
        .find(|column| expression::mentions_column(expression, column))
        .map(|column| quote_ident(column))
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
