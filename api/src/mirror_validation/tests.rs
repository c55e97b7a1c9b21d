//! Every refusal: one spoiled fact, one named check, a cause and a cure.

use bunny_catalog::OnExistingRows;
use bunny_postgres::introspect::{Extension, TypeDefinition, TypeShape};
use bunny_postgres::{ReplicaIdentity, TableName, TableObjects};

use super::facts::{ExtensionState, Facts, FoundTable, Publication, Slot};
use super::testing::{self, column, place};
use super::{Edge, Findings, check, check_request};
use crate::mirrors::request::CreateRequest;

fn checks_of(findings: &Findings) -> Vec<&'static str> {
    findings.problems.iter().map(|found| found.check).collect()
}

/// Spoils healthy facts of a mirror of `public.t` and gives what the checks find.
fn spoiled(spoil: impl FnOnce(&mut CreateRequest, &mut Facts)) -> Findings {
    let mut request = testing::request(&["public.t"]);
    let mut facts = testing::facts(&request);
    spoil(&mut request, &mut facts);
    check(&request, &facts, &[])
}

fn source_table(facts: &mut Facts) -> &mut FoundTable {
    facts.source.tables[0].found.as_mut().unwrap()
}

fn destination_table(facts: &mut Facts) -> &mut FoundTable {
    facts.destination.tables[0].found.as_mut().unwrap()
}

#[test]
fn a_healthy_pair_is_accepted() {
    let findings = spoiled(|_, _| {});
    assert_eq!(findings, Findings::default());
    assert_eq!(findings.refusal(), None);
}

fn source_objects(facts: &mut Facts) -> &mut TableObjects {
    let definition = source_table(facts).definition.as_mut().unwrap();
    definition.objects.get_or_insert_default()
}

/// The source's table uses an extension, and is to be created.
fn missing_extension(facts: &mut Facts, state: ExtensionState) {
    facts.destination.tables[0].found = None;
    facts.destination.extensions.insert("citext".into(), state);
    source_objects(facts).extensions.push(Extension {
        name: "citext".into(),
        schema: "public".into(),
    });
}

type Spoil = fn(&mut CreateRequest, &mut Facts);

#[test]
fn each_fault_is_found_by_its_check() {
    let cases: Vec<(&str, &str, Spoil)> = vec![
        ("source_version", "14 or newer", |_, f| {
            f.source.server.info.version_num = 130_000
        }),
        ("source_in_recovery", "primary", |_, f| {
            f.source.server.info.in_recovery = true
        }),
        ("wal_level", "wal_level = replica", |_, f| {
            f.source.server.info.wal_level = "replica".into()
        }),
        ("synchronous_standby_names", "instead of *", |_, f| {
            f.source.server.info.synchronous_standby_names = "ANY 1 (*)".into()
        }),
        ("source_encoding", "SQL_ASCII", |_, f| {
            f.source.server.info.server_encoding = "SQL_ASCII".into()
        }),
        ("replication_privilege", "REPLICATION", |_, f| {
            f.source.server.info.can_replicate = false
        }),
        ("source_create", "GRANT CREATE", |_, f| {
            f.source.server.can_create_in_database = false
        }),
        ("replication_slots", "max_replication_slots", |_, f| {
            f.source.server.info.slots_free = 1
        }),
        ("wal_senders", "max_wal_senders", |_, f| {
            f.source.server.info.senders_free = 1
        }),
        ("source_table", "does not exist", |_, f| {
            f.source.tables[0].found = None
        }),
        ("source_kind", "a view", |_, f| {
            source_table(f).relkind = 'v'
        }),
        ("source_kind", "a foreign table", |_, f| {
            source_table(f).relkind = 'f'
        }),
        ("source_kind", "DETACH PARTITION", |_, f| {
            source_table(f).foreign_leaves = vec![TableName::parse("public.far").unwrap()]
        }),
        ("source_kind", "system table", |_, f| {
            source_table(f).system = true
        }),
        ("source_extension", "leave it out", |_, f| {
            source_table(f).extension = Some("postgis".into())
        }),
        ("source_persistence", "SET LOGGED", |_, f| {
            source_table(f).persistence = 'u'
        }),
        ("source_persistence", "temporary", |_, f| {
            source_table(f).persistence = 't'
        }),
        ("source_select", "GRANT SELECT", |_, f| {
            source_table(f).may_select = false
        }),
        ("source_owner", "does not own", |_, f| {
            source_table(f).owned = false
        }),
        ("row_security", "BYPASSRLS", |_, f| {
            source_table(f).row_security = true
        }),
        ("partition_key", "\"nope\"", |r, _| {
            r.tables[0].partition_key = Some("nope".into())
        }),
        ("exclude_columns", "\"nope\"", |r, _| {
            r.tables[0].exclude_columns = vec!["nope".into()]
        }),
        ("excluded_key", "\"id\"", |r, f| {
            r.tables[0].exclude_columns = vec!["id".into()];
            f.destination.tables[0].found = None;
        }),
        ("column_name", "longer than 63 bytes", |_, f| {
            source_table(f).definition.as_mut().unwrap().columns[1].name = "é".repeat(32);
            f.destination.tables[0].found = None;
        }),
        ("destination_not_null", "DROP NOT NULL", |_, f| {
            let definition = destination_table(f).definition.as_mut().unwrap();
            definition.columns[1].not_null = true;
        }),
        (
            "destination_collation",
            "one row would be taken for another",
            |_, f| {
                destination_table(f).nondeterministic_columns = vec!["id".into()];
            },
        ),
        ("destination_version", "14 or newer", |_, f| {
            f.destination.server.info.version_num = 130_000
        }),
        ("destination_in_recovery", "primary", |_, f| {
            f.destination.server.info.in_recovery = true
        }),
        ("destination_create", "_bunny", |_, f| {
            f.destination.may_keep_books = false
        }),
        ("destination_kind", "a view", |_, f| {
            destination_table(f).relkind = 'v'
        }),
        ("destination_persistence", "SET LOGGED", |_, f| {
            destination_table(f).persistence = 'u'
        }),
        ("destination_privileges", "INSERT", |_, f| {
            destination_table(f).missing_privileges = vec!["INSERT".into()]
        }),
        ("row_security", "BYPASSRLS", |_, f| {
            destination_table(f).row_security = true
        }),
        (
            "existing_rows",
            "\"on_existing_rows\": \"truncate\"",
            |_, f| destination_table(f).has_rows = true,
        ),
        ("destination_columns", "\"note\"", |_, f| {
            destination_table(f)
                .definition
                .as_mut()
                .unwrap()
                .columns
                .pop();
        }),
        ("destination_columns", "generated", |_, f| {
            destination_table(f).definition.as_mut().unwrap().columns[1].generated =
                Some("1".into());
        }),
        ("destination_table", "create_destination_tables", |r, f| {
            r.config.create_destination_tables = false;
            f.destination.tables[0].found = None;
        }),
        ("destination_create", "may not create", |_, f| {
            f.destination.tables[0].found = None;
            f.destination.tables[0].may_create = false;
        }),
        ("destination_types", "no type text", |_, f| {
            f.destination.tables[0].found = None;
            f.destination.missing_types.insert("text".into());
        }),
        (
            "destination_columns",
            "does not take every value",
            |_, f| {
                destination_table(f).definition.as_mut().unwrap().columns[0].type_name =
                    "integer".into();
            },
        ),
        ("destination_extension", "install its package", |_, f| {
            missing_extension(f, ExtensionState::Unavailable)
        }),
        ("destination_extension", "as a superuser", |_, f| {
            missing_extension(f, ExtensionState::NotAllowed)
        }),
        ("destination_create", "may not create type", |_, f| {
            f.destination.tables[0].found = None;
            let name = TableName::new("shop", "mood");
            f.destination.closed_types.insert(name.clone());
            source_objects(f).types.push(TypeDefinition {
                name,
                shape: TypeShape::Enum {
                    labels: Vec::new(),
                    oids: Vec::new(),
                },
                comment: None,
            });
        }),
        ("destination_types", "needs its function", |_, f| {
            f.destination.tables[0].found = None;
            f.destination.missing_types.insert("public.span".into());
            let objects = source_objects(f);
            objects.types.push(TypeDefinition {
                name: TableName::new("public", "span"),
                shape: TypeShape::Range {
                    subtype: "integer".into(),
                    opclass: "pg_catalog.int4_ops".into(),
                    collation: None,
                    subtype_diff: None,
                    canonical: Some("public.canon".into()),
                    multirange: None,
                },
                comment: None,
            });
        }),
        ("replica_role", "session_replication_role", |_, f| {
            f.destination.may_be_replica = false;
            destination_table(f).fires = true;
        }),
        ("loop", "to itself", |_, f| {
            f.destination.server.place = f.source.server.place.clone();
            // Its rows are the very ones to be copied: nobody is told how to delete them.
            destination_table(f).has_rows = true;
        }),
    ];
    for (name, hint, spoil) in cases {
        let findings = spoiled(spoil);
        assert_eq!(checks_of(&findings), [name], "{findings:?}");
        let refusal = findings.refusal().unwrap();
        assert!(
            refusal.message.contains(hint),
            "{hint:?} missing in {refusal:?}"
        );
        assert_eq!(refusal.status.as_u16(), 422, "{name}");
    }
}

#[test]
fn faults_are_reported_together() {
    let findings = spoiled(|_, facts| {
        facts.source.server.info.wal_level = "minimal".into();
        source_table(facts).persistence = 'u';
        destination_table(facts).has_rows = true;
    });
    let expected = ["wal_level", "source_persistence", "existing_rows"];
    assert_eq!(checks_of(&findings), expected);
}

#[test]
fn an_excluded_column_must_be_left_out_at_the_destination_too() {
    let exclude = |not_null: bool, default: Option<&str>| {
        spoiled(|request, facts| {
            request.tables[0].exclude_columns = vec!["note".into()];
            let definition = destination_table(facts).definition.as_mut().unwrap();
            definition.columns[1].not_null = not_null;
            definition.columns[1].default = default.map(str::to_owned);
        })
    };
    assert_eq!(checks_of(&exclude(true, None)), ["destination_not_null"]);
    assert!(exclude(true, Some("''")).problems.is_empty());
    assert!(exclude(false, None).problems.is_empty());
}

#[test]
fn a_null_that_a_key_forbids_is_only_warned_of() {
    let nullable_key = |adopt: bool, is_ours: bool, in_key: bool| {
        spoiled(|request, facts| {
            request.adopt = adopt;
            let found = destination_table(facts);
            found.is_ours = is_ours;
            if is_ours || adopt {
                found.nondeterministic_columns = vec!["id".into()];
            }
            let definition = destination_table(facts).definition.as_mut().unwrap();
            definition.columns[1].not_null = true;
            if in_key {
                definition.primary_key.push("note".into());
            }
        })
    };
    for (adopt, is_ours, in_key) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        let findings = nullable_key(adopt, is_ours, in_key);
        assert!(findings.problems.is_empty(), "{findings:?}");
        assert!(
            findings
                .warnings
                .iter()
                .any(|said| said.contains("\"note\""))
        );
    }
}

#[test]
fn a_destination_column_of_its_own_must_not_stop_inserts() {
    let findings = spoiled(|_, facts| {
        let mut own = column("own", "text");
        own.not_null = true;
        let definition = destination_table(facts).definition.as_mut().unwrap();
        definition.columns.push(own);
    });
    assert_eq!(checks_of(&findings), ["destination_not_null"]);
}

#[test]
fn a_destination_table_without_a_key_is_slow_and_said_so() {
    let findings = spoiled(|_, facts| {
        let definition = destination_table(facts).definition.as_mut().unwrap();
        definition.primary_key.clear();
        definition.identity_key.clear();
    });
    assert_eq!(findings.problems, []);
    assert!(findings.warnings[0].contains("add a key over id"));
}

#[test]
fn a_type_that_comes_with_its_table_may_be_missing() {
    let own = spoiled(|_, facts| {
        facts.destination.tables[0].found = None;
        facts
            .destination
            .missing_types
            .insert("\"Ty pes\".mood[]".into());
        source_table(facts).definition.as_mut().unwrap().columns[1] =
            column("note", "\"Ty pes\".mood[]");
        source_objects(facts).types.push(TypeDefinition {
            name: TableName::new("Ty pes", "mood"),
            shape: TypeShape::Enum {
                labels: Vec::new(),
                oids: Vec::new(),
            },
            comment: None,
        });
    });
    assert_eq!(own.problems, []);
    let of_an_extension = spoiled(|_, facts| {
        missing_extension(facts, ExtensionState::Creatable);
        facts
            .destination
            .missing_types
            .insert("public.citext".into());
        let mut tag = column("note", "public.citext");
        tag.type_schema = "public".into();
        source_table(facts).definition.as_mut().unwrap().columns[1] = tag;
    });
    assert_eq!(of_an_extension.problems, []);
}

#[test]
fn a_wider_column_is_used_and_said() {
    let findings = spoiled(|_, facts| {
        destination_table(facts)
            .definition
            .as_mut()
            .unwrap()
            .columns[0]
            .type_name = "numeric".into();
    });
    assert_eq!(findings.problems, []);
    assert!(
        findings.warnings[0].contains("used as it is"),
        "{findings:?}"
    );
}

#[test]
fn a_type_that_only_an_excluded_column_needs_may_be_missing() {
    let findings = spoiled(|request, facts| {
        request.tables[0].exclude_columns = vec!["note".into()];
        facts.destination.tables[0].found = None;
        facts.destination.missing_types.insert("text".into());
    });
    assert_eq!(findings.problems, []);
}

#[test]
fn rows_at_the_destination_are_fine_when_allowed_or_not_copied() {
    let allowed = spoiled(|request, facts| {
        request.config.on_existing_rows = OnExistingRows::Truncate;
        destination_table(facts).has_rows = true;
    });
    assert_eq!(allowed.problems, []);
    let only_changes = spoiled(|request, facts| {
        request.config.do_initial_snapshot = false;
        destination_table(facts).has_rows = true;
        // No temporary slot and walsender are needed then.
        facts.source.server.info.slots_free = 1;
        facts.source.server.info.senders_free = 1;
    });
    assert_eq!(only_changes.problems, []);
}

#[test]
fn a_table_without_identity_is_insert_only_unless_refused() {
    let without_identity = |facts: &mut Facts| {
        let definition = source_table(facts).definition.as_mut().unwrap();
        definition.identity_key.clear();
        definition.primary_key.clear();
        definition.replica_identity = ReplicaIdentity::Nothing;
    };
    let accepted = spoiled(|_, facts| without_identity(facts));
    assert_eq!(accepted.problems, []);
    assert!(accepted.warnings[0].contains("insert-only"));
    let refused = spoiled(|request, facts| {
        without_identity(facts);
        request.tables[0].identity = Some("refuse".into());
    });
    assert_eq!(checks_of(&refused), ["identity"]);
}

#[test]
fn without_the_replica_role_plain_tables_are_accepted_with_a_warning() {
    let findings = spoiled(|_, facts| facts.destination.may_be_replica = false);
    assert_eq!(findings.problems, []);
    assert!(findings.warnings[0].contains("session_replication_role"));
}

#[test]
fn a_partition_and_its_root_do_not_go_together() {
    let request = testing::request(&["public.root", "public.leaf"]);
    let mut facts = testing::facts(&request);
    let leaf = facts.source.tables[1].found.as_mut().unwrap();
    leaf.ancestors = vec![TableName::new("public", "root")];
    let findings = check(&request, &facts, &[]);
    assert_eq!(checks_of(&findings), ["partition_with_root"]);
    assert!(findings.problems[0].message.contains("public.leaf"));
}

#[test]
fn tables_are_mapped_once_on_either_side() {
    let twice = testing::request(&["public.t", "public.t"]);
    assert_eq!(checks_of(&check_request(&twice)), ["table_twice"]);
    let mut into_one = testing::request(&["public.t", "public.u"]);
    into_one.tables[1].destination = TableName::new("public", "t");
    assert_eq!(
        checks_of(&check_request(&into_one)),
        ["two_sources_into_one"]
    );
}

fn edge(mirror: &str, from: &str, source: &str, to: &str, destination: &str) -> Edge {
    Edge {
        mirror: mirror.to_owned(),
        source: (place(from), TableName::parse(source).unwrap()),
        destination: (place(to), TableName::parse(destination).unwrap()),
    }
}

fn with_others(others: &[Edge]) -> Findings {
    let request = testing::request(&["public.t"]);
    check(&request, &testing::facts(&request), others)
}

#[test]
fn two_mirrors_do_not_write_one_table() {
    let other = edge("old", "3", "public.x", "2", "public.t");
    let findings = with_others(&[other]);
    assert_eq!(checks_of(&findings), ["two_mirrors_into_one"]);
    assert_eq!(findings.refusal().unwrap().status.as_u16(), 409);
    let elsewhere = edge("old", "3", "public.x", "4", "public.t");
    assert_eq!(with_others(&[elsewhere]).problems, []);
}

#[test]
fn a_loop_is_found_over_any_number_of_mirrors() {
    let direct = edge("back", "2", "public.t", "1", "public.t");
    let findings = with_others(&[direct]);
    assert_eq!(checks_of(&findings), ["loop"]);
    assert!(findings.problems[0].message.contains("mirror 'back'"));
    assert_eq!(findings.refusal().unwrap().status.as_u16(), 409);

    let far = [
        edge("one", "2", "public.t", "3", "public.u"),
        edge("two", "3", "public.u", "1", "public.t"),
    ];
    let findings = with_others(&far);
    assert!(
        findings.problems[0]
            .message
            .contains("mirrors 'one', 'two'")
    );

    let chain = [
        edge("one", "2", "public.t", "3", "public.u"),
        edge("two", "3", "public.other", "1", "public.t"),
    ];
    assert_eq!(with_others(&chain).problems, []);
}

/// A publication the user brings that holds the table of these tests whole.
fn fitting_publication() -> Publication {
    Publication {
        name: "mine".into(),
        inserts: true,
        updates: true,
        deletes: true,
        truncates: true,
        via_root: false,
        tables: vec![TableName::new("public", "t")],
        filtered: Vec::new(),
    }
}

#[test]
fn a_given_slot_must_fit_be_free_and_come_with_its_publication() {
    let slot = |plugin: &str, active: bool, publication: Option<Publication>| {
        spoiled(|request, facts| {
            request.publication_name = publication.as_ref().map(|given| given.name.clone());
            facts.source.publication = publication;
            facts.source.slot = Some(Slot {
                name: "mine".into(),
                plugin: Some(plugin.into()),
                database: "shop".into(),
                active,
            });
        })
    };
    let whole = || Some(fitting_publication());
    assert_eq!(slot("pgoutput", false, whole()).problems, []);
    assert_eq!(checks_of(&slot("wal2json", false, whole())), ["given_slot"]);
    assert_eq!(checks_of(&slot("pgoutput", true, whole())), ["given_slot"]);
    assert_eq!(checks_of(&slot("pgoutput", false, None)), ["given_slot"]);
}

#[test]
fn a_given_publication_must_hold_every_table_whole() {
    let publication = fitting_publication;
    let given = |publication: Publication| {
        spoiled(|request, facts| {
            request.publication_name = Some("mine".into());
            // An owner made the publication, so neither is needed of our user.
            facts.source.server.can_create_in_database = false;
            source_table(facts).owned = false;
            facts.source.publication = Some(publication);
        })
    };
    assert_eq!(given(publication()).problems, []);
    let mut narrow = publication();
    narrow.deletes = false;
    assert!(
        given(narrow).problems[0]
            .message
            .contains("does not publish delete")
    );
    let mut empty = publication();
    empty.tables.clear();
    assert!(
        given(empty).problems[0]
            .message
            .contains("does not hold public.t")
    );
    let mut filtered = publication();
    filtered.filtered = filtered.tables.clone();
    assert!(given(filtered).problems[0].message.contains("row filter"));
}
