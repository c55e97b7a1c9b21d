use super::*;

fn column(name: &str, key: bool) -> SqlColumn {
    SqlColumn {
        name: format!("\"{name}\""),
        type_name: "text".into(),
        plain_type: "text".into(),
        is_domain: false,
        collation: None,
        always_identity: false,
        operator_schema: Some("pg_catalog".into()),
        element: Element::Own(','),
        key,
    }
}

fn sql(columns: Vec<SqlColumn>) -> Sql {
    Sql::new(
        "\"public\".\"t\"".into(),
        "pg_temp.\"bunny_stage_1\"".into(),
        columns,
        vec!["\"own\"".into()],
    )
}

#[test]
fn a_patch_sets_only_what_it_knows() {
    let sql = sql(vec![
        column("id", true),
        column("a", false),
        column("big", false),
    ]);
    let patch = sql.patch(3, &[false, false, true], None);
    assert!(
        patch.contains("SET \"id\" = s.c0, \"a\" = s.c1 FROM"),
        "{patch}"
    );
    assert!(patch.contains("s.mask = 3"), "{patch}");
    assert!(sql.update(None).contains("\"big\" = s.c2"));
}

#[test]
fn an_always_identity_is_not_set_by_an_update() {
    let identity = SqlColumn {
        always_identity: true,
        ..column("id", true)
    };
    let only_key = sql(vec![identity.clone()]);
    assert!(
        !only_key.update(None).contains("SET"),
        "nothing is left to set"
    );
    assert!(only_key.insert(None).contains("OVERRIDING SYSTEM VALUE"));
    assert!(
        only_key.adopt_identities().is_none(),
        "a key that matches is right"
    );
    let (_, rename) = sql(vec![identity.clone(), column("big", false)]).rename(1, &[false, true]);
    assert!(
        rename.contains("(\"id\", \"big\", \"own\") OVERRIDING SYSTEM VALUE SELECT s.c0, old.o1, old.w0 FROM old"),
        "a key that no UPDATE may set moves by delete and insert: {rename}"
    );

    let beside = sql(vec![
        column("id", true),
        SqlColumn {
            key: false,
            ..identity
        },
    ]);
    let adopt = beside.adopt_identities().unwrap();
    assert!(
        adopt.contains("SELECT old.o0, s.c1, old.w0 FROM old"),
        "{adopt}"
    );
}

#[test]
fn a_key_of_an_extension_type_uses_its_own_equality() {
    let citext = SqlColumn {
        operator_schema: Some("\"ext\"".into()),
        ..column("mail", true)
    };
    assert!(
        sql(vec![citext])
            .delete(None)
            .contains("t.\"mail\" OPERATOR(\"ext\".=) s.c0")
    );
}

#[test]
fn a_key_of_a_domain_is_compared_as_what_it_stands_for() {
    let calm = SqlColumn {
        plain_type: "mood".into(),
        is_domain: true,
        ..column("m", true)
    };
    assert!(
        sql(vec![calm])
            .delete(None)
            .contains("t.\"m\"::mood OPERATOR(pg_catalog.=) s.c0")
    );
}

#[test]
fn a_rename_of_half_a_row_clears_nothing_it_cannot_replace() {
    let sql = sql(vec![column("id", true), column("big", false)]);
    let (clear, _) = sql.rename(1, &[false, true]);
    assert!(
        clear.contains("EXISTS (SELECT FROM \"public\".\"t\" AS old"),
        "{clear}"
    );
    let (clear, _) = sql.rename(1, &[]);
    assert!(!clear.contains("EXISTS"), "{clear}");
    assert!(sql.rename_to(1, Op::Patch).contains("op = 'P'"));
}

#[test]
fn the_columns_that_are_too_many_are_packed() {
    let mut columns: Vec<SqlColumn> = (0..STAGED_COLUMNS_MAX + 2)
        .map(|n| column(&format!("a{n}"), n > STAGED_COLUMNS_MAX))
        .collect();
    columns[STAGED_COLUMNS_MAX - 1].plain_type = "\"char\"".into();
    columns[STAGED_COLUMNS_MAX].plain_type = "numeric".into();
    let sql = sql(columns);
    let packed: Vec<usize> = (0..STAGED_COLUMNS_MAX + 2)
        .filter(|&index| sql.is_packed(index))
        .collect();
    assert_eq!(packed, [STAGED_COLUMNS_MAX - 2, STAGED_COLUMNS_MAX]);
    assert!(sql.create_staging().contains(", rest text[])"));
    let insert = sql.insert(None);
    assert!(
        insert.contains("s.c1499, (s.rest[2])::numeric, s.c1501 FROM"),
        "{insert}"
    );
}

#[test]
fn one_row_can_be_picked() {
    let sql = sql(vec![column("id", true), column("a", false)]);
    for statement in [
        sql.delete(Some(7)),
        sql.update(Some(7)),
        sql.insert(Some(7)),
    ] {
        assert!(statement.contains("s.n = 7"), "{statement}");
    }
}

#[test]
fn rows_that_are_parameters_are_what_their_columns_are() {
    let of = |type_name: &str, element, column: SqlColumn| SqlColumn {
        type_name: format!("{type_name}(9)"),
        plain_type: type_name.into(),
        element,
        ..column
    };
    let collated = SqlColumn {
        collation: Some("\"public\".\"ci\"".into()),
        ..column("id", true)
    };
    let sql = sql(vec![
        collated,
        of(
            "character varying",
            Element::Own(','),
            column("short", false),
        ),
        of("integer[]", Element::Text, column("many", false)),
    ]);
    let sql = sql.over_parameters().expect("all of it can be given");
    let insert = sql.insert(None);
    // A modifier in the cast would cut what an assignment refuses.
    let given = "unnest($1::bigint[], $2::\"char\"[], $3::int[], $4::text[], \
                 $5::character varying[], $6::text[]) AS s (n, op, mask, c0, c1, c2)";
    assert!(insert.contains(given), "{insert}");
    assert!(
        insert.contains("SELECT s.c0, s.c1, (s.c2)::integer[] FROM"),
        "arrays come as their text: {insert}"
    );
    let same_key = "t.\"id\" OPERATOR(pg_catalog.=) s.c0 COLLATE \"public\".\"ci\"";
    assert!(sql.delete(None).contains(same_key), "{}", sql.delete(None));
}

#[test]
fn keys_that_have_no_array_and_wide_rows_are_staged() {
    let mut key = column("id", true);
    key.element = Element::Text;
    assert!(sql(vec![key.clone()]).over_parameters().is_none());
    key.key = false;
    assert!(
        sql(vec![column("id", true), key.clone()])
            .over_parameters()
            .is_some()
    );
    key.element = Element::Staged;
    assert!(
        sql(vec![column("id", true), key])
            .over_parameters()
            .is_none()
    );
    let columns = (0..201).map(|index| column(&format!("c{index}"), index == 0));
    assert!(sql(columns.collect()).over_parameters().is_none());
}

#[test]
fn keys_that_are_given_are_compared_as_what_they_are() {
    let named = SqlColumn {
        collation: Some("\"C\"".into()),
        ..column("name", true)
    };
    let mood = SqlColumn {
        plain_type: "\"s\".\"mood\"".into(),
        is_domain: true,
        ..column("mood", true)
    };
    let one = sql(vec![column("v", false), named.clone()]);
    assert_eq!(one.only_key(), Some((1, Element::Own(','))));
    assert_eq!(
        one.delete_keys().as_deref(),
        Some(
            "DELETE FROM \"public\".\"t\" AS t WHERE t.\"name\" OPERATOR(pg_catalog.=) \
             ANY (($1::text[]) COLLATE \"C\")"
        )
    );
    assert_eq!(
        sql(vec![mood.clone()]).delete_keys().as_deref(),
        Some(
            "DELETE FROM \"public\".\"t\" AS t WHERE t.\"mood\"::\"s\".\"mood\" OPERATOR(pg_catalog.=) \
             ANY (($1::\"s\".\"mood\"[]))"
        )
    );
    assert_eq!(sql(vec![named, mood]).delete_keys(), None);
}
