use bunny_postgres::{ReplicaIdentity, TableKind};

use super::*;
use crate::schema_change::destination::Present;

fn name(name: &str) -> TableName {
    TableName::new("public", name)
}

fn column(attnum: i16, name: &str) -> ColumnDefinition {
    ColumnDefinition {
        name: name.into(),
        attnum,
        type_oid: 23,
        type_name: "integer".into(),
        typmod: -1,
        type_schema: "pg_catalog".into(),
        not_null: false,
        default: None,
        identity: None,
        generated: None,
        collation: None,
    }
}

fn table(columns: Vec<ColumnDefinition>, objects: TableObjects) -> TableDefinition {
    TableDefinition {
        oid: 1,
        name: name("t"),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns,
        primary_key: Vec::new(),
        primary_key_name: None,
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: Vec::new(),
        row_estimate: 0,
        size_bytes: 0,
        pages: 0,
        leaves: Vec::new(),
        objects: Some(objects),
    }
}

fn check(name: &str, definition: &str) -> ConstraintDefinition {
    ConstraintDefinition {
        name: name.into(),
        kind: ConstraintKind::Check,
        definition: definition.into(),
        columns: Vec::new(),
        validated: true,
        deferrable: false,
        index_options: Vec::new(),
        comment: None,
    }
}

fn with_checks(checks: &[ConstraintDefinition]) -> TableDefinition {
    let objects = TableObjects {
        constraints: checks.to_vec(),
        ..TableObjects::default()
    };
    table(vec![column(1, "a")], objects)
}

fn index(name: &str, unique: bool) -> IndexDefinition {
    IndexDefinition {
        name: name.into(),
        method: "btree".into(),
        unique,
        nulls_not_distinct: false,
        keys: Vec::new(),
        include: Vec::new(),
        options: Vec::new(),
        predicate: Some(name.into()),
        columns: Vec::new(),
        valid: true,
        comment: None,
    }
}

fn with_indexes(indexes: &[IndexDefinition]) -> TableDefinition {
    let objects = TableObjects {
        indexes: indexes.to_vec(),
        ..TableObjects::default()
    };
    table(vec![column(1, "a")], objects)
}

fn sql(difference: &Difference) -> Vec<String> {
    let attempts = difference.alterations.iter().flat_map(|one| &one.attempts);
    attempts.map(|attempt| attempt.sql.clone()).collect()
}

fn between<'a>(
    mode: SchemaChanges,
    destination: &'a TableName,
    [former, source, here]: [&'a TableDefinition; 3],
) -> Between<'a> {
    Between {
        mode,
        destination,
        former: Some(former),
        source,
        here,
    }
}

fn objects_of(mode: SchemaChanges, three: [&TableDefinition; 3]) -> Difference {
    let copy = name("copy");
    objects(between(mode, &copy, three), true)
}

#[test]
fn only_constraints_of_the_source_are_dropped() {
    let was = check("c", "CHECK (a > 0)");
    let own = check("own", "CHECK (a < 9)");
    let found = objects_of(
        SchemaChanges::Additive,
        [
            &with_checks(std::slice::from_ref(&was)),
            &with_checks(&[]),
            &with_checks(&[was, own]),
        ],
    );
    assert_eq!(
        sql(&found),
        [r#"ALTER TABLE "public"."copy" DROP CONSTRAINT "c""#]
    );
    assert!(found.left[0].contains("\"own\" is not the source's"));
}

#[test]
fn a_check_that_was_made_otherwise_is_replaced_and_one_of_someones_own_is_not() {
    let (was, now) = (check("c", "CHECK (a > 0)"), check("c", "CHECK (a > 1)"));
    let one = |check: &ConstraintDefinition| with_checks(std::slice::from_ref(check));
    let found = objects_of(
        SchemaChanges::Additive,
        [&one(&was), &one(&now), &one(&was)],
    );
    assert_eq!(
        sql(&found),
        [
            r#"ALTER TABLE "public"."copy" DROP CONSTRAINT "c""#,
            r#"ALTER TABLE "public"."copy" ADD CONSTRAINT "c" CHECK (a > 1)"#
        ]
    );
    let own = check("c", "CHECK (a > 5)");
    let found = objects_of(
        SchemaChanges::Additive,
        [&one(&was), &one(&now), &one(&own)],
    );
    assert!(sql(&found).is_empty());
    // Renamed at the source: the one that is here does the same.
    let renamed = check("d", "CHECK (a > 0)");
    let found = objects_of(
        SchemaChanges::Additive,
        [&one(&was), &one(&renamed), &one(&was)],
    );
    assert!(sql(&found).is_empty() && found.left.is_empty());
}

#[test]
fn indexes_go_when_rows_need_it_or_everything_may() {
    let (unique, plain) = (index("u", true), index("i", false));
    let was = with_indexes(&[unique, plain.clone()]);
    let none = with_indexes(&[]);
    let additive = objects_of(SchemaChanges::Additive, [&was, &none, &was]);
    assert_eq!(sql(&additive), [r#"DROP INDEX "public"."u""#]);
    assert!(additive.left[0].contains("\"i\""));
    let all = objects_of(SchemaChanges::All, [&was, &none, &was]);
    assert_eq!(sql(&all).len(), 2);
    // Left once, it is the source's still when all is to be followed.
    let copy = name("copy");
    let stayed = with_indexes(std::slice::from_ref(&plain));
    let three = [&was, &none, &stayed];
    let remembered = remembered(between(SchemaChanges::Additive, &copy, three));
    let later = objects_of(SchemaChanges::All, [&remembered, &none, &stayed]);
    assert_eq!(sql(&later), [r#"DROP INDEX "public"."i""#]);
    let own = objects_of(SchemaChanges::All, [&none, &none, &stayed]);
    assert_eq!(own, Difference::default());
}

#[test]
fn defaults_follow_the_source_and_someones_own_stay() {
    let with = |default: Option<&str>| {
        let column = ColumnDefinition {
            default: default.map(str::to_owned),
            ..column(1, "a")
        };
        table(vec![column], TableObjects::default())
    };
    let shape = Shape {
        columns: vec![Known {
            attnum: 1,
            unsure: false,
            name: "a".into(),
            type_name: "integer".into(),
            not_null: false,
            into: Some("a".into()),
        }],
        ..Shape::default()
    };
    let copy = name("copy");
    let found = |former, source, here| {
        let (former, source, here) = (with(former), with(source), with(here));
        let three = [&former, &source, &here];
        let found = column_facts(between(SchemaChanges::Additive, &copy, three), &shape);
        let text = sql(&found).join("; ");
        let start = r#"ALTER TABLE "public"."copy" ALTER COLUMN "a" "#;
        text.strip_prefix(start).unwrap_or_default().to_owned()
    };
    assert_eq!(found(Some("1"), Some("2"), Some("1")), "SET DEFAULT 2");
    assert_eq!(found(None, Some("2"), None), "SET DEFAULT 2");
    assert_eq!(found(Some("2"), Some("2"), None), "SET DEFAULT 2");
    assert_eq!(found(Some("1"), None, Some("1")), "DROP DEFAULT");
    assert_eq!(found(None, None, Some("7")), "", "someone's own");
    assert_eq!(found(Some("1"), Some("1"), Some("7")), "", "someone's own");
    assert_eq!(found(Some("1"), Some("1"), Some("1")), "");
}

#[test]
fn a_shape_is_told_by_what_stands_here() {
    let version = |attnum, name: &str| ColumnSchema {
        name: name.into(),
        attnum,
        type_oid: 23,
        type_name: "integer".into(),
        typmod: -1,
        not_null: false,
        key: false,
        facts: None,
    };
    let known = |attnum, name: &str, into: Option<&str>| Known {
        attnum,
        unsure: false,
        name: name.into(),
        type_name: "bigint".into(),
        not_null: false,
        into: into.map(str::to_owned),
    };
    let shape = Shape {
        columns: vec![known(1, "renamed", Some("a")), known(2, "b", None)],
        ..Shape::default()
    };
    let mut present = PresentTable {
        columns: vec![Present {
            name: "a".into(),
            type_name: "integer".into(),
            not_null: true,
            fills_itself: false,
            is_generated: false,
        }],
        primary_key: None,
        has_rows: true,
    };
    let source = table(
        vec![column(1, "renamed"), column(2, "b")],
        TableObjects::default(),
    );
    let here = table(vec![column(1, "a")], TableObjects::default());
    let versions = [version(1, "renamed"), version(2, "b")];
    let (told, lacking) = as_present(Some(&shape), &versions, &present, &here, &source);
    assert_eq!(told.columns[0].name, "a", "as it is called here");
    assert_eq!(told.columns[0].type_name, "integer");
    assert!(told.columns[0].not_null);
    assert_eq!(lacking.len(), 1);
    let copy = name("copy");
    let three = [&source, &source, &here];
    let between = between(SchemaChanges::Additive, &copy, three);
    let found = columns(between, &told, &lacking, &[]);
    assert_eq!(
        sql(&found),
        [r#"ALTER TABLE "public"."copy" ADD COLUMN "b" integer"#]
    );
    assert!(found.left[0].contains("synced again"), "{:?}", found.left);
    // Without rows nothing was missed: the column is as good as new.
    present.has_rows = false;
    let (told, lacking) = as_present(Some(&shape), &versions, &present, &here, &source);
    assert_eq!((told.columns.len(), lacking.len()), (1, 0));
}

#[test]
fn what_is_left_over_is_dropped_only_where_all_is_followed() {
    let source = table(vec![column(1, "a")], TableObjects::default());
    let here = table(
        vec![column(1, "a"), column(2, "old")],
        TableObjects::default(),
    );
    let shape = Shape {
        abandoned: vec!["old".into(), "gone".into()],
        ..Shape::default()
    };
    let copy = name("copy");
    let three = [&source, &source, &here];
    let additive = between(SchemaChanges::Additive, &copy, three);
    let found = columns(additive, &shape, &[], &[]);
    assert!(sql(&found).is_empty() && found.left.len() == 1);
    let all = between(SchemaChanges::All, &copy, three);
    assert_eq!(
        sql(&columns(all, &shape, &[], &[])),
        [r#"ALTER TABLE "public"."copy" DROP COLUMN "old""#]
    );
}
