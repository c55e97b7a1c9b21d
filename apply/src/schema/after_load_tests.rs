#![allow(clippy::unwrap_used)]
use super::*;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn column_key(name: &str) -> IndexKey {
    IndexKey {
        column: Some(name.into()),
        expression: None,
        opclass: "pg_catalog.text_ops".into(),
        opclass_options: Vec::new(),
        collation: None,
        descending: false,
        nulls_first: false,
    }
}

fn index(name: &str, columns: &[&str]) -> IndexDefinition {
    IndexDefinition {
        name: name.into(),
        method: "btree".into(),
        unique: false,
        nulls_not_distinct: false,
        keys: columns.iter().map(|name| column_key(name)).collect(),
        include: Vec::new(),
        options: Vec::new(),
        predicate: None,
        columns: names(columns),
        valid: true,
        comment: None,
    }
}

fn constraint(kind: ConstraintKind, name: &str, definition: &str) -> ConstraintDefinition {
    ConstraintDefinition {
        name: name.into(),
        kind,
        definition: definition.into(),
        columns: names(&["a"]),
        validated: true,
        deferrable: false,
        index_options: Vec::new(),
        comment: None,
    }
}

fn destination() -> TableName {
    TableName::new("Dest", "ta\"ble")
}

fn present(columns: &[&str]) -> Present {
    Present {
        columns: names(columns).into_iter().collect(),
        ..Present::default()
    }
}

fn planned(objects: &TableObjects, present: &Present) -> Plan {
    let wanted = Wanted {
        objects,
        destination: &destination(),
        indexes: true,
    };
    plan(wanted, present)
}

#[test]
fn every_part_of_an_index_is_spelled_out() {
    let mut index = index("odd \"name", &["a"]);
    index.unique = true;
    index.nulls_not_distinct = true;
    index.keys[0].collation = Some("pg_catalog.\"C\"".into());
    index.keys[0].opclass = "public.gist_trgm_ops".into();
    index.keys[0].opclass_options = names(&["siglen=64"]);
    let expression = |text: &str, descending, nulls_first| IndexKey {
        column: None,
        expression: Some(text.into()),
        descending,
        nulls_first,
        ..column_key("")
    };
    index.keys.push(expression("lower(b)", true, true));
    index
        .keys
        .push(expression("((b || 'x'::text))", true, false));
    index.keys.push(expression("upper(b)", false, true));
    index.include = names(&["c d"]);
    index.options = names(&["fillfactor=70", "fastupdate=off"]);
    index.predicate = Some("(a IS NOT NULL)".into());
    assert_eq!(
        create_index(&index, &destination(), true),
        concat!(
            "CREATE UNIQUE INDEX \"odd \"\"name\" ON \"Dest\".\"ta\"\"ble\" USING \"btree\" ",
            "(\"a\" COLLATE pg_catalog.\"C\" public.gist_trgm_ops (\"siglen\" = '64'), ",
            "lower(b) pg_catalog.text_ops DESC, ",
            "((b || 'x'::text)) pg_catalog.text_ops DESC NULLS LAST, ",
            "upper(b) pg_catalog.text_ops NULLS FIRST) ",
            "INCLUDE (\"c d\") NULLS NOT DISTINCT ",
            "WITH (\"fillfactor\" = '70', \"fastupdate\" = 'off') WHERE (a IS NOT NULL)"
        )
    );
}

#[test]
fn what_is_there_is_not_made_again() {
    let objects = TableObjects {
        indexes: vec![index("by_a", &["a"]), index("by_b", &["b"])],
        constraints: vec![constraint(ConstraintKind::Unique, "u", "UNIQUE (a)")],
        ..TableObjects::default()
    };
    let mut there = present(&["a", "b"]);
    assert_eq!(planned(&objects, &there).steps(), 3);
    // Alike, whatever its name.
    there.objects.indexes = vec![index("by_a", &["a"]), index("other", &["b"])];
    there.objects.constraints = vec![constraint(ConstraintKind::Unique, "v", "UNIQUE (a)")];
    assert_eq!(planned(&objects, &there), Plan::default());
}

#[test]
fn what_has_the_name_and_is_made_otherwise_stays_and_is_said() {
    let objects = TableObjects {
        indexes: vec![index("by_a", &["a"])],
        constraints: vec![constraint(ConstraintKind::Unique, "u", "UNIQUE (a)")],
        ..TableObjects::default()
    };
    let mut there = present(&["a", "b"]);
    // Not valid either, and still not ours to drop.
    there.objects.indexes = vec![IndexDefinition {
        valid: false,
        ..index("by_a", &["b"])
    }];
    there.objects.constraints = vec![constraint(ConstraintKind::Unique, "u", "UNIQUE (b)")];
    let plan = planned(&objects, &there);
    assert_eq!(plan.steps(), 0);
    assert_eq!(plan.left_out.len(), 2);
    assert!(plan.left_out[0].contains("index \"by_a\" of"));
    assert!(plan.left_out[1].contains("left as it is"));
}

#[test]
fn without_indexes_only_checks_are_left() {
    let mut old = constraint(ConstraintKind::Check, "old", "CHECK ((a > 0)) NOT VALID");
    old.validated = false;
    let objects = TableObjects {
        indexes: vec![index("by_a", &["a"])],
        constraints: vec![
            constraint(ConstraintKind::Unique, "u", "UNIQUE (a)"),
            constraint(ConstraintKind::Exclusion, "e", "EXCLUDE …"),
            old,
        ],
        replica_identity_index: Some("by_a".into()),
        ..TableObjects::default()
    };
    let wanted = Wanted {
        objects: &objects,
        destination: &destination(),
        indexes: false,
    };
    let plan = plan(wanted, &present(&["a"]));
    assert_eq!(plan.steps(), 1);
    assert_eq!(plan.constraints[0].kind, "check constraint");
}

#[test]
fn an_index_left_invalid_is_replaced() {
    let objects = TableObjects {
        indexes: vec![index("by_a", &["a"])],
        ..TableObjects::default()
    };
    let mut there = present(&["a"]);
    there.taken.insert("by_a".into());
    there.objects.indexes = vec![IndexDefinition {
        valid: false,
        ..index("by_a", &["a"])
    }];
    let statements = &planned(&objects, &there).indexes[0].statements;
    assert_eq!(statements[0], "DROP INDEX \"Dest\".\"by_a\"");
    assert!(statements[1].starts_with("CREATE INDEX \"by_a\" ON "));
}

#[test]
fn a_name_that_is_taken_is_given_up_and_said() {
    let mut commented = index("by_a", &["a"]);
    commented.comment = Some("hello".into());
    let objects = TableObjects {
        indexes: vec![commented],
        constraints: vec![constraint(ConstraintKind::Unique, "u", "UNIQUE (a)")],
        ..TableObjects::default()
    };
    let mut there = present(&["a"]);
    there.taken = ["by_a".to_owned(), "u".to_owned()].into();
    let plan = planned(&objects, &there);
    assert_eq!(plan.indexes[0].statements.len(), 1);
    assert!(plan.indexes[0].sql().starts_with("CREATE INDEX ON "));
    assert_eq!(
        plan.constraints[0].sql(),
        "ALTER TABLE \"Dest\".\"ta\"\"ble\" ADD UNIQUE (a)"
    );
    assert_eq!(plan.left_out.len(), 2);
}

#[test]
fn what_touches_a_column_that_is_not_there_is_left_out_and_named() {
    let mut partial = index("partial", &["a"]);
    partial.columns = names(&["a", "Secret"]);
    let mut unusable = index("unusable", &["a"]);
    unusable.valid = false;
    let mut exclusion = constraint(ConstraintKind::Exclusion, "ex", "EXCLUDE …");
    exclusion.columns = names(&["Secret"]);
    let objects = TableObjects {
        indexes: vec![partial, unusable],
        constraints: vec![exclusion],
        ..TableObjects::default()
    };
    let plan = planned(&objects, &present(&["a"]));
    assert_eq!(plan.steps(), 0);
    assert_eq!(plan.left_out.len(), 3);
    assert!(plan.left_out[0].contains("\"partial\"") && plan.left_out[0].contains("\"Secret\""));
    assert!(plan.left_out[1].contains("not valid"));
    assert!(plan.left_out[2].contains("exclusion constraint \"ex\""));
}

#[test]
fn constraints_come_with_storage_and_comment() {
    let mut unique = constraint(ConstraintKind::Unique, "u", "UNIQUE (a) DEFERRABLE");
    unique.index_options = names(&["fillfactor=80"]);
    unique.comment = Some("it's".into());
    let mut old = constraint(ConstraintKind::Check, "old", "CHECK ((a > 0)) NOT VALID");
    old.validated = false;
    let objects = TableObjects {
        constraints: vec![
            unique,
            old,
            // These come with the table.
            constraint(ConstraintKind::Check, "c", "CHECK ((a > 0))"),
            constraint(ConstraintKind::PrimaryKey, "p", "PRIMARY KEY (a)"),
        ],
        ..TableObjects::default()
    };
    let plan = planned(&objects, &present(&["a"]));
    let table = "\"Dest\".\"ta\"\"ble\"";
    assert_eq!(
        plan.constraints[0].statements,
        [
            format!("ALTER TABLE {table} ADD CONSTRAINT \"u\" UNIQUE (a) DEFERRABLE"),
            "ALTER INDEX \"Dest\".\"u\" SET (\"fillfactor\" = '80')".to_owned(),
            format!("COMMENT ON CONSTRAINT \"u\" ON {table} IS 'it''s'"),
        ]
    );
    assert_eq!(
        plan.constraints[1].sql(),
        format!("ALTER TABLE {table} ADD CONSTRAINT \"old\" CHECK ((a > 0)) NOT VALID")
    );
    assert_eq!(plan.constraints.len(), 2);
}

#[test]
fn the_identity_index_is_chosen_if_it_comes() {
    let mut objects = TableObjects {
        indexes: vec![index("by_a", &["a"])],
        replica_identity_index: Some("by_a".into()),
        ..TableObjects::default()
    };
    let plan = planned(&objects, &present(&["a"]));
    assert_eq!(
        plan.constraints[0].sql(),
        "ALTER TABLE \"Dest\".\"ta\"\"ble\" REPLICA IDENTITY USING INDEX \"by_a\""
    );
    let chosen = Present {
        objects: objects.clone(),
        ..present(&["a"])
    };
    assert_eq!(planned(&objects, &chosen), Plan::default());
    objects.indexes[0].columns = names(&["gone"]);
    assert!(planned(&objects, &present(&["a"])).constraints.is_empty());
}
