#![allow(clippy::unwrap_used)]
use bunny_postgres::{ReplicaIdentity, TableKind};

use super::*;

fn column(name: &str, type_name: &str) -> ColumnDefinition {
    ColumnDefinition {
        name: name.into(),
        attnum: 1,
        type_oid: 0,
        type_name: type_name.into(),
        typmod: -1,
        type_schema: "pg_catalog".into(),
        not_null: false,
        default: None,
        identity: None,
        generated: None,
        collation: None,
    }
}

fn definition(columns: Vec<ColumnDefinition>, primary_key: &[&str]) -> TableDefinition {
    TableDefinition {
        oid: 1,
        name: TableName::new("public", "t"),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns,
        primary_key: primary_key.iter().map(|name| (*name).to_owned()).collect(),
        primary_key_name: None,
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: Vec::new(),
        row_estimate: 0,
        size_bytes: 0,
        pages: 0,
        leaves: Vec::new(),
        objects: None,
    }
}

fn destination() -> TableName {
    TableName::new("Odd \"schema\"", "select.from")
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_whole_table() {
    let mut id = column("id", "bigint");
    id.not_null = true;
    id.identity = Some(IdentityKind::Always);
    let mut name = column("na\"me", "character varying(20)");
    name.collation = Some("pg_catalog.\"C\"".into());
    name.default = Some("'it''s'::character varying".into());
    let mut total = column("total", "numeric(10,2)");
    total.generated = Some("(price * (2)::numeric)".into());
    let mut definition = definition(
        vec![id, name, column("price", "numeric(10,2)"), total],
        &["id", "na\"me"],
    );
    definition.primary_key_name = Some("t pkey".into());
    let plan = plan(&definition, &destination(), &[], &Place::default());
    assert_eq!(plan.left_out, Vec::<String>::new());
    assert_eq!(
        plan.statements,
        [concat!(
            "CREATE TABLE \"Odd \"\"schema\"\"\".\"select.from\" (\n",
            "    \"id\" bigint GENERATED ALWAYS AS IDENTITY NOT NULL,\n",
            "    \"na\"\"me\" character varying(20) COLLATE pg_catalog.\"C\" DEFAULT 'it''s'::character varying,\n",
            "    \"price\" numeric(10,2),\n",
            "    \"total\" numeric(10,2) GENERATED ALWAYS AS ((price * (2)::numeric)) STORED,\n",
            "    CONSTRAINT \"t pkey\" PRIMARY KEY (\"id\", \"na\"\"me\")\n",
            ")"
        )]
    );
}

#[test]
fn a_sequence_default_is_left_out_and_named() {
    let mut id = column("id", "integer");
    id.not_null = true;
    id.default = Some("nextval('public.t_id_seq'::regclass)".into());
    let plan = plan(
        &definition(vec![id], &["id"]),
        &TableName::new("public", "t"),
        &[],
        &Place::default(),
    );
    assert_eq!(
        plan.statements,
        [
            "CREATE TABLE \"public\".\"t\" (\n    \"id\" integer NOT NULL,\n    PRIMARY KEY (\"id\")\n)"
        ]
    );
    assert_eq!(plan.left_out.len(), 1);
    assert!(plan.left_out[0].contains("nextval"), "{:?}", plan.left_out);
}

#[test]
fn what_touches_an_excluded_column_is_left_out_and_named() {
    let mut shown = column("shown", "text");
    shown.generated = Some("lower(\"Secret\")".into());
    let mut other = column("other", "text");
    other.default = Some("(\"Secret\" || 'x'::text)".into());
    let definition = definition(
        vec![
            column("id", "integer"),
            column("Secret", "text"),
            shown,
            other,
        ],
        &["id", "Secret"],
    );
    let plan = plan(
        &definition,
        &TableName::new("public", "t"),
        &names(&["Secret"]),
        &Place::default(),
    );
    assert_eq!(
        plan.statements,
        ["CREATE TABLE \"public\".\"t\" (\n    \"id\" integer,\n    \"other\" text\n)"]
    );
    assert_eq!(plan.left_out.len(), 3);
    for (note, word) in plan
        .left_out
        .iter()
        .zip(["generated", "default", "primary key"])
    {
        assert!(note.contains(word) && note.contains("\"Secret\""), "{note}");
    }
}

#[test]
fn a_table_without_columns_is_still_a_table() {
    let plan = plan(
        &definition(Vec::new(), &[]),
        &TableName::new("public", "t"),
        &[],
        &Place::default(),
    );
    assert_eq!(
        plan.statements,
        ["CREATE TABLE \"public\".\"t\" (\n    \n)"]
    );
}

#[test]
fn a_column_can_be_added_alone() {
    let mut flag = column("flag", "boolean");
    flag.not_null = true;
    flag.default = Some("false".into());
    let plan = plan_column(&flag, &destination(), &[]);
    assert_eq!(
        plan.statements,
        [
            "ALTER TABLE \"Odd \"\"schema\"\"\".\"select.from\" ADD COLUMN \"flag\" boolean DEFAULT false NOT NULL"
        ]
    );
}

#[test]
fn sequences_and_defaults_stand_behind_the_table() {
    let mut id = column("id", "integer");
    id.not_null = true;
    id.default = Some("nextval('shop.t_id_seq'::regclass)".into());
    let mut number = column("number", "bigint");
    number.identity = Some(IdentityKind::ByDefault);
    let mut own = column("own", "text");
    own.default = Some("shop.f()".into());
    let mut definition = definition(vec![id, number, own], &["id"]);
    let sequence = |role, column: &str, name: &str| SequenceDefinition {
        name: TableName::new("shop", name),
        column: column.into(),
        ..sequences::tests::sequence(role)
    };
    definition.objects = Some(TableObjects {
        sequences: vec![
            sequence(SequenceRole::Owned, "id", "t_id_seq"),
            sequence(SequenceRole::Identity, "number", "t_number_seq"),
        ],
        columns: vec![ColumnTraits {
            name: "id".into(),
            default_sequence: Some(TableName::new("shop", "t_id_seq")),
            ..ColumnTraits::default()
        }],
        ..TableObjects::default()
    });
    let to = TableName::new("Dest", "t");
    let place = Place {
        taken: ["t_number_seq".to_owned()].into(),
        version_num: 150_000,
    };
    let planned = plan(&definition, &to, &[], &place);
    assert!(
        planned.statements[0]
            .contains("\"number\" bigint GENERATED BY DEFAULT AS IDENTITY (START WITH 5"),
        "{:?}",
        planned.statements
    );
    let optional: Vec<String> = planned.optional.iter().map(Step::sql).collect();
    assert!(
        optional[0].starts_with("CREATE SEQUENCE IF NOT EXISTS \"Dest\".\"t_id_seq\" AS integer")
    );
    assert!(optional[0].contains("OWNED BY \"Dest\".\"t\".\"id\"; SELECT setval("));
    assert_eq!(
        optional[1..],
        [
            "SELECT setval(pg_get_serial_sequence('\"Dest\".\"t\"', 'number'), 25, true)",
            "ALTER TABLE \"Dest\".\"t\" ALTER COLUMN \"id\" SET DEFAULT nextval('\"Dest\".\"t_id_seq\"'::regclass)",
            "ALTER TABLE \"Dest\".\"t\" ALTER COLUMN \"own\" SET DEFAULT shop.f()",
        ]
    );
    let taken = Place {
        taken: ["t_id_seq".to_owned()].into(),
        ..Place::default()
    };
    let planned = plan(&definition, &to, &[], &taken);
    assert_eq!(planned.left_out.len(), 2, "{:?}", planned.left_out);
}

#[test]
fn a_deferrable_key_is_created_as_it_is() {
    let mut definition = definition(vec![column("a", "text")], &["a"]);
    definition.primary_key_name = Some("key".into());
    definition.key_is_deferrable = true;
    let to = TableName::new("d", "t");
    let line = |definition: &TableDefinition| {
        plan(definition, &to, &[], &Place::default()).statements[0].clone()
    };
    assert_eq!(
        line(&definition),
        "CREATE TABLE \"d\".\"t\" (\n    \"a\" text,\n    CONSTRAINT \"key\" PRIMARY KEY (\"a\") DEFERRABLE\n)"
    );
    definition.objects = Some(TableObjects {
        constraints: vec![ConstraintDefinition {
            name: "key".into(),
            kind: ConstraintKind::PrimaryKey,
            definition: "PRIMARY KEY (a) DEFERRABLE INITIALLY DEFERRED".into(),
            columns: names(&["a"]),
            validated: true,
            deferrable: true,
            index_options: names(&["fillfactor=80"]),
            comment: None,
        }],
        ..TableObjects::default()
    });
    assert_eq!(
        line(&definition),
        "CREATE TABLE \"d\".\"t\" (\n    \"a\" text,\n    CONSTRAINT \"key\" PRIMARY KEY (a) WITH (\"fillfactor\" = '80') DEFERRABLE INITIALLY DEFERRED\n)"
    );
}

#[test]
fn checks_comments_and_storage() {
    let mut definition = definition(vec![column("a", "text"), column("secret", "text")], &["a"]);
    definition.primary_key_name = Some("key".into());
    let constraint = |kind, name: &str, definition: &str, columns: &[&str]| ConstraintDefinition {
        name: name.into(),
        kind,
        definition: definition.into(),
        columns: names(columns),
        validated: true,
        deferrable: false,
        index_options: names(&["fillfactor=80"]),
        comment: Some("c".into()),
    };
    let check = |name: &str, columns: &[&str]| ConstraintDefinition {
        index_options: Vec::new(),
        comment: None,
        ..constraint(ConstraintKind::Check, name, "CHECK ((a > 0))", columns)
    };
    let mut old = check("old", &["a"]);
    old.validated = false;
    definition.objects = Some(TableObjects {
        constraints: vec![
            constraint(ConstraintKind::PrimaryKey, "key", "PRIMARY KEY (a)", &["a"]),
            check("kept", &["a"]),
            check("hidden", &["secret"]),
            old,
        ],
        columns: vec![ColumnTraits {
            name: "a".into(),
            storage: Some("EXTERNAL".into()),
            compression: Some("lz4".into()),
            comment: Some("it's".into()),
            ..ColumnTraits::default()
        }],
        comment: Some("table".into()),
        options: names(&["fillfactor=60"]),
        replica_identity: Some('f'),
        ..TableObjects::default()
    });
    let to = TableName::new("d", "t");
    let planned = plan(&definition, &to, &names(&["secret"]), &Place::default());
    assert_eq!(
        planned.statements,
        [
            "CREATE TABLE \"d\".\"t\" (\n    \"a\" text,\n    CONSTRAINT \"key\" PRIMARY KEY (a) WITH (\"fillfactor\" = '80')\n)"
        ]
    );
    let optional: Vec<String> = planned.optional.iter().map(Step::sql).collect();
    assert_eq!(
        optional,
        [
            "COMMENT ON CONSTRAINT \"key\" ON \"d\".\"t\" IS 'c'",
            "ALTER TABLE \"d\".\"t\" ADD CONSTRAINT \"kept\" CHECK ((a > 0))",
            "ALTER TABLE \"d\".\"t\" ALTER COLUMN \"a\" SET STORAGE EXTERNAL",
            "ALTER TABLE \"d\".\"t\" ALTER COLUMN \"a\" SET COMPRESSION lz4",
            "COMMENT ON COLUMN \"d\".\"t\".\"a\" IS 'it''s'",
            "ALTER TABLE \"d\".\"t\" SET (\"fillfactor\" = '60')",
            "COMMENT ON TABLE \"d\".\"t\" IS 'table'",
            "ALTER TABLE \"d\".\"t\" REPLICA IDENTITY FULL",
        ]
    );
    assert_eq!(planned.left_out.len(), 1, "{:?}", planned.left_out);
    assert!(planned.left_out[0].contains("check \"hidden\""));
}
