//! Foreign keys between mirrored tables. Pure: from the sources' definitions and what the
//! destination has, to SQL.

use std::collections::{BTreeMap, BTreeSet};

use bunny_postgres::introspect::ForeignKeyDefinition;
use bunny_postgres::{TableName, quote_ident};

use super::build::FOREIGN_KEY;
use super::step::{Step, comment_on};

/// Where a source table went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapped<'a> {
    pub(crate) destination: &'a TableName,
    /// It holds what its source held at some moment.
    pub(crate) is_live: bool,
}

/// One foreign key to be made: the first step adds it, the second checks the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addition {
    /// Without checking rows: a moment's lock on both tables.
    pub(crate) add: Option<Step>,
    /// Checks the rows; readers and writers go on.
    pub(crate) validate: Option<Step>,
}

/// What becomes of one table's foreign keys now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) additions: Vec<Addition>,
    /// Foreign keys that wait for a table that is not LIVE.
    pub(crate) waiting: usize,
    /// What this table will not have, one sentence each.
    pub(crate) left_out: Vec<String>,
}

/// Plans the foreign keys of `source`. `present` are those its destination table has,
/// which stay as they are; `columns` are that table's; `mirrored` are all tables of the
/// mirror by their source name.
pub(crate) fn plan(
    source: &TableName,
    wanted: &[ForeignKeyDefinition],
    present: &[ForeignKeyDefinition],
    columns: &BTreeSet<String>,
    mirrored: &BTreeMap<&TableName, Mapped<'_>>,
) -> Plan {
    let mut plan = Plan::default();
    let Some(own) = mirrored.get(source) else {
        return plan;
    };
    for key in wanted {
        let what = format!(
            "foreign key {} of {}",
            quote_ident(&key.name),
            own.destination
        );
        let Some(other) = mirrored.get(&key.references) else {
            plan.left_out.push(format!(
                "{what}: the table it references, {}, is not mirrored",
                key.references
            ));
            continue;
        };
        if let Some(missing) = key.columns.iter().find(|name| !columns.contains(*name)) {
            plan.left_out.push(format!(
                "{what}: its column {} is not replicated",
                quote_ident(missing)
            ));
            continue;
        }
        let alike = |there: &&ForeignKeyDefinition| is_alike(key, there, other.destination);
        let named = present.iter().find(|there| there.name == key.name);
        if named.is_some_and(|there| !alike(&there)) {
            plan.left_out.push(format!(
                "{what}: the destination has one of that name that is made otherwise; it is left as it is"
            ));
            continue;
        }
        let found = named.or_else(|| present.iter().find(alike));
        let needs_check = key.validated && key.enforced;
        if found.is_some_and(|there| there.validated || !needs_check) {
            continue;
        }
        if !(own.is_live && other.is_live) {
            plan.waiting += 1;
            continue;
        }
        let step = |statements| Step::new(FOREIGN_KEY, &key.name, what.clone(), statements);
        let name = found.map_or(&key.name, |there| &there.name);
        plan.additions.push(Addition {
            add: found
                .is_none()
                .then(|| step(add(key, own.destination, other.destination))),
            validate: needs_check.then(|| step(vec![validate(name, own.destination)])),
        });
    }
    plan
}

/// Whether the destination's `there` demands what `key` does at the source.
fn is_alike(
    key: &ForeignKeyDefinition,
    there: &ForeignKeyDefinition,
    referenced: &TableName,
) -> bool {
    let moved = ForeignKeyDefinition {
        references: referenced.clone(),
        ..key.clone()
    };
    let neutral = ForeignKeyDefinition {
        name: key.name.clone(),
        validated: key.validated,
        comment: key.comment.clone(),
        ..there.clone()
    };
    moved == neutral
}

fn add(key: &ForeignKeyDefinition, own: &TableName, other: &TableName) -> Vec<String> {
    let mut sql = format!(
        "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({})",
        own.quoted(),
        quote_ident(&key.name),
        column_list(&key.columns, key.period),
        other.quoted(),
        column_list(&key.referenced_columns, key.period)
    );
    match key.match_type {
        'f' => sql.push_str(" MATCH FULL"),
        'p' => sql.push_str(" MATCH PARTIAL"),
        _ => {}
    }
    if let Some(action) = action(key.on_update) {
        sql.push_str(&format!(" ON UPDATE {action}"));
    }
    if let Some(action) = action(key.on_delete) {
        sql.push_str(&format!(" ON DELETE {action}"));
        if !key.delete_columns.is_empty() {
            sql.push_str(&format!(" ({})", column_list(&key.delete_columns, false)));
        }
    }
    if key.deferrable {
        sql.push_str(" DEFERRABLE");
    }
    if key.deferred {
        sql.push_str(" INITIALLY DEFERRED");
    }
    sql.push_str(if key.enforced {
        " NOT VALID"
    } else {
        " NOT ENFORCED"
    });
    let mut statements = vec![sql];
    if let Some(comment) = &key.comment {
        let object = format!("{} ON {}", quote_ident(&key.name), own.quoted());
        statements.push(comment_on("CONSTRAINT", &object, comment));
    }
    statements
}

fn validate(name: &str, own: &TableName) -> String {
    format!(
        "ALTER TABLE {} VALIDATE CONSTRAINT {}",
        own.quoted(),
        quote_ident(name)
    )
}

fn column_list(columns: &[String], period: bool) -> String {
    let last = columns.len().saturating_sub(1);
    let one = |(index, name): (usize, &String)| {
        let word = if period && index == last {
            "PERIOD "
        } else {
            ""
        };
        format!("{word}{}", quote_ident(name))
    };
    let all: Vec<String> = columns.iter().enumerate().map(one).collect();
    all.join(", ")
}

/// `pg_constraint.confupdtype` and `confdeltype`; NO ACTION is what there is without.
fn action(code: char) -> Option<&'static str> {
    match code {
        'r' => Some("RESTRICT"),
        'c' => Some("CASCADE"),
        'n' => Some("SET NULL"),
        'd' => Some("SET DEFAULT"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    fn key(name: &str, references: &str) -> ForeignKeyDefinition {
        ForeignKeyDefinition {
            name: name.into(),
            columns: vec!["a b".into(), "c".into()],
            references: table(references),
            referenced_columns: vec!["x".into(), "y".into()],
            match_type: 's',
            on_update: 'a',
            on_delete: 'a',
            delete_columns: Vec::new(),
            deferrable: false,
            deferred: false,
            validated: true,
            enforced: true,
            period: false,
            comment: None,
        }
    }

    fn planned(
        keys: &[ForeignKeyDefinition],
        present: &[ForeignKeyDefinition],
        tables: &[(&str, bool)],
    ) -> Plan {
        let names: Vec<(TableName, TableName, bool)> = tables
            .iter()
            .map(|(name, is_live)| (table(name), TableName::new("to", *name), *is_live))
            .collect();
        let mirrored = names
            .iter()
            .map(|(source, destination, is_live)| {
                let mapped = Mapped {
                    destination,
                    is_live: *is_live,
                };
                (source, mapped)
            })
            .collect();
        let columns = ["a b".to_owned(), "c".to_owned()].into();
        plan(&table("child"), keys, present, &columns, &mirrored)
    }

    /// A key as the destination has it.
    fn there(key: &ForeignKeyDefinition, validated: bool) -> ForeignKeyDefinition {
        ForeignKeyDefinition {
            references: TableName::new("to", key.references.name.as_str()),
            validated,
            ..key.clone()
        }
    }

    #[test]
    fn added_under_the_mapped_names_then_validated() {
        let mut key = key("f\"k", "parent");
        key.match_type = 'f';
        key.on_update = 'c';
        key.on_delete = 'n';
        key.delete_columns = vec!["c".into()];
        key.deferrable = true;
        key.deferred = true;
        key.comment = Some("why".into());
        let plan = planned(&[key], &[], &[("child", true), ("parent", true)]);
        let addition = &plan.additions[0];
        assert_eq!(
            addition.add.as_ref().map(Step::sql).as_deref(),
            Some(concat!(
                "ALTER TABLE \"to\".\"child\" ADD CONSTRAINT \"f\"\"k\" FOREIGN KEY (\"a b\", \"c\") ",
                "REFERENCES \"to\".\"parent\" (\"x\", \"y\") MATCH FULL ON UPDATE CASCADE ",
                "ON DELETE SET NULL (\"c\") DEFERRABLE INITIALLY DEFERRED NOT VALID; ",
                "COMMENT ON CONSTRAINT \"f\"\"k\" ON \"to\".\"child\" IS 'why'"
            ))
        );
        assert_eq!(
            addition.validate.as_ref().map(Step::sql).as_deref(),
            Some("ALTER TABLE \"to\".\"child\" VALIDATE CONSTRAINT \"f\"\"k\"")
        );
    }

    #[test]
    fn every_table_of_a_key_must_be_live() {
        let keys = [key("self", "child"), key("out", "parent")];
        let plan = planned(&keys, &[], &[("child", true), ("parent", false)]);
        assert_eq!((plan.additions.len(), plan.waiting), (1, 1));
        let plan = planned(&keys, &[], &[("child", false), ("parent", true)]);
        assert_eq!((plan.additions.len(), plan.waiting), (0, 2));
    }

    #[test]
    fn what_was_interrupted_is_taken_up() {
        let keys = [key("added", "child"), key("done", "child")];
        let present = [there(&keys[0], false), there(&keys[1], true)];
        let plan = planned(&keys, &present, &[("child", true)]);
        assert_eq!(plan.additions.len(), 1);
        assert_eq!(plan.additions[0].add, None);
        assert!(plan.additions[0].validate.is_some());
        assert_eq!(plan.left_out, [""; 0]);
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let keys = [key("one", "child")];
        let renamed = ForeignKeyDefinition {
            name: "mine".into(),
            ..there(&keys[0], true)
        };
        let plan = planned(&keys, std::slice::from_ref(&renamed), &[("child", true)]);
        assert_eq!(plan, Plan::default());
        // Of the same name, but it acts otherwise.
        let other = ForeignKeyDefinition {
            on_delete: 'c',
            ..there(&keys[0], true)
        };
        let plan = planned(&keys, &[other], &[("child", true)]);
        assert_eq!(plan.additions, []);
        assert!(plan.left_out[0].contains("made otherwise"));
        // Alike, but never checked: under the name it has.
        let unchecked = ForeignKeyDefinition {
            validated: false,
            ..renamed
        };
        let plan = planned(&keys, &[unchecked], &[("child", true)]);
        let validate = plan.additions[0].validate.as_ref().map(Step::sql);
        assert!(
            validate
                .unwrap_or_default()
                .ends_with("VALIDATE CONSTRAINT \"mine\"")
        );
    }

    #[test]
    fn what_the_source_does_not_check_is_not_checked() {
        let mut old = key("old", "child");
        old.validated = false;
        let mut idle = key("idle", "child");
        idle.enforced = false;
        idle.period = true;
        let plan = planned(&[old.clone(), idle], &[], &[("child", true)]);
        assert!(plan.additions.iter().all(|one| one.validate.is_none()));
        let idle = plan.additions[1].add.as_ref().map(Step::sql);
        let idle = idle.unwrap_or_default();
        assert!(idle.contains("(\"a b\", PERIOD \"c\")"), "{idle}");
        assert!(idle.ends_with("NOT ENFORCED"), "{idle}");
        let present = [there(&old, false)];
        let plan = planned(&[old], &present, &[("child", true)]);
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn keys_that_lead_outside_are_left_out_and_named() {
        let mut excluded = key("excluded", "child");
        excluded.columns[0] = "secret".into();
        let plan = planned(
            &[key("out", "elsewhere"), excluded],
            &[],
            &[("child", true)],
        );
        assert_eq!((plan.additions.len(), plan.waiting), (0, 0));
        assert!(plan.left_out[0].contains("public.elsewhere, is not mirrored"));
        assert!(plan.left_out[1].contains("\"secret\""));
    }
}
