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
    let plan = plan(&definition, &destination(), &[]);
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
