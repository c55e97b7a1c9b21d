//! Commands that get in each other's way, and what they leave behind.

use bunny_catalog::{
    Desired, MirrorChange, NewReplay, PauseScope, RESYNC, Replay, ResyncStrategy, RetainedSync,
    SYNC_SCHEMA, SourceDefinitions, Until, UntrackedChange,
};
use bunny_postgres::Lsn;
use uuid::Uuid;

use super::*;

fn definitions(generation: Uuid) -> SourceDefinitions {
    SourceDefinitions {
        generation,
        lsn: Lsn(2),
        published: (Lsn(1), 7),
        tables: json!([]),
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_schema_sync_keeps_copies_waiting_and_leaves_nothing() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let made = catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let wanted = definitions(made.generation);

    let command = catalog
        .request_sync_schema("m", None, "admin")
        .await
        .unwrap();
    let replay = NewReplay {
        named: None,
        tables: Vec::new(),
        strategy: ResyncStrategy::Truncate,
        until: None,
    };
    let truncate = ResyncStrategy::Truncate;
    for refused in [
        catalog.request_resync("m", None, truncate, "admin").await,
        catalog.request_replay("m", &replay, "admin").await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
        assert!(error.to_string().contains(SYNC_SCHEMA), "{error}");
    }

    assert!(
        catalog
            .hand_over_definitions(command, &wanted)
            .await
            .unwrap()
    );
    let kept = catalog.source_definitions(command).await.unwrap();
    assert_eq!(kept.as_ref(), Some(&wanted));
    catalog
        .fail_command(command, "the test says so")
        .await
        .unwrap();

    let next = catalog
        .request_sync_schema("m", None, "admin")
        .await
        .unwrap();
    assert!(catalog.hand_over_definitions(next, &wanted).await.unwrap());
    assert_eq!(catalog.source_definitions(command).await.unwrap(), None);
    assert!(catalog.source_definitions(next).await.unwrap().is_some());
    catalog
        .finish_sync_schema(next, "done", &json!({}))
        .await
        .unwrap();
    assert_eq!(catalog.source_definitions(next).await.unwrap(), None);

    let resync = catalog
        .request_resync("m", None, truncate, "admin")
        .await
        .unwrap();
    assert_eq!(catalog.get_command(resync).await.unwrap().kind, RESYNC);
    let refused = catalog.request_sync_schema("m", None, "admin").await;
    assert!(
        matches!(refused, Err(Error::Conflict { .. })),
        "{refused:?}"
    );
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn what_is_asked_of_a_mirror_stands_in_its_log_once() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let made = catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let first = catalog.request_pause("m", PauseScope::Apply, "ann").await;
    let again = catalog.request_pause("m", PauseScope::Apply, "ann").await;
    assert_eq!(first.unwrap(), again.unwrap());
    catalog.request_resume("m", "ann").await.unwrap();
    let change = MirrorChange {
        max_batch_size: Some(7),
        ..MirrorChange::default()
    };
    catalog.request_update("m", &change, "bob").await.unwrap();
    let query = LogQuery {
        limit: 9,
        ..LogQuery::default()
    };
    let (mut log, _) = catalog.list_logs(made.id, &query).await.unwrap();
    log.reverse();
    let messages: Vec<&str> = log.iter().map(|line| line.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "pause was asked for by ann",
            "resume was asked for by ann",
            "update was asked for by bob"
        ]
    );
    assert_eq!(log[0].details["args"], json!({"scope": "apply"}));
    assert_eq!(log[2].details["args"]["options"]["max_batch_size"], 7);
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_change_outside_the_stream_asks_once_and_waits_for_others() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let made = catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let table = made.tables[0].clone();
    let change = UntrackedChange {
        table: table.source.clone(),
        request_id: table.request_id,
        strategy: ResyncStrategy::Truncate,
        reason: "rows were rewritten".into(),
    };
    let ask = async || {
        let changes = std::slice::from_ref(&change);
        let asked = catalog
            .resync_untracked("m", made.generation, changes)
            .await;
        asked.unwrap()
    };
    let request = async || catalog.get_mirror("m").await.unwrap().tables[0].request_id;

    let sync_schema = catalog.request_sync_schema("m", None, "admin").await;
    assert_eq!(ask().await, [], "the schema is being synced");
    assert_eq!(request().await, table.request_id);
    let why = "the test says so";
    catalog
        .fail_command(sync_schema.unwrap(), why)
        .await
        .unwrap();

    let version = catalog.get_mirror("m").await.unwrap().version;
    assert_eq!(ask().await, std::slice::from_ref(&table.source));
    let asked = catalog.get_mirror("m").await.unwrap();
    assert_ne!(asked.tables[0].request_id, table.request_id);
    assert_eq!(asked.version, version + 1);
    let commands = catalog.open_commands(made.id).await.unwrap();
    let resyncs = commands.iter().filter(|command| command.kind == RESYNC);
    assert_eq!(resyncs.count(), 1);
    let (log, _) = catalog
        .list_logs(
            made.id,
            &LogQuery {
                limit: 9,
                ..LogQuery::default()
            },
        )
        .await
        .unwrap();
    assert!(log.iter().any(|line| line.message.contains("rewritten")));

    // Noticed again by one that died in between: what is wanted now is newer.
    assert_eq!(ask().await, [table.source]);
    assert_eq!(request().await, asked.tables[0].request_id);
    database.drop().await;
}

/// A table that was never to be copied has no copy to be loaded again, whatever other tables
/// without one were asked for since.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_table_without_a_copy_of_its_own_follows_the_log_from_a_moment_on() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let mut wanted = mirror("m", "t");
    wanted.config.do_initial_snapshot = false;
    catalog.create_mirror(&wanted).await.unwrap();
    let copy = RetainedSync {
        sync: Uuid::new_v4(),
        attempt: 1,
        lsn: Lsn(1),
        changes_offset: 0,
        rows: 1,
        bytes: 1,
    };
    let table = TableName::new("Sales", "a.b");
    let replay = NewReplay {
        named: None,
        tables: vec![(table, None, copy)],
        strategy: ResyncStrategy::Truncate,
        until: Some(Until::Lsn(Lsn(2))),
    };
    catalog.request_replay("m", &replay, "admin").await.unwrap();
    catalog
        .request_pause("m", PauseScope::Apply, "admin")
        .await
        .unwrap();
    let mut session = database.connect().await;
    session
        .execute(
            "UPDATE bunny.commands SET state = 'done' WHERE kind = 'replay';
             INSERT INTO bunny.commands (id, mirror_name, kind, args, requested_by)
             VALUES (gen_random_uuid(), 'another', 'tables', '{\"awaited\": [{\"table\": \"u\", \"request_id\": null}]}', 'admin')",
        )
        .await
        .unwrap();
    catalog.request_resume("m", "admin").await.unwrap();
    let left: Option<String> = sqlx::query_scalar(
        "SELECT replay ->> 'sync' FROM bunny.mirror_tables WHERE replay ->> 'until' IS NULL",
    )
    .fetch_one(&mut session)
    .await
    .unwrap();
    assert_eq!(left, Some(replay.tables[0].2.sync.to_string()));
    database.drop().await;
}

/// A replay that comes too late, asked for while the tables stood at a moment: they go on from there as if
/// it had not been asked for.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_refused_replay_gives_way_to_the_one_before() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let of_table = async || {
        let mirror = catalog.get_mirror("m").await.unwrap();
        (mirror.tables[0].clone(), mirror)
    };
    let ask = async |until: Option<Until>| {
        let (table, _) = of_table().await;
        let copy = RetainedSync {
            sync: table.request_id.unwrap(),
            attempt: 1,
            lsn: Lsn(1),
            changes_offset: 0,
            rows: 1,
            bytes: 1,
        };
        let replay = NewReplay {
            named: None,
            tables: vec![(table.source.clone(), table.wanted_request(), copy)],
            strategy: ResyncStrategy::Truncate,
            until,
        };
        catalog.request_replay("m", &replay, "admin").await.unwrap();
        of_table().await.0.replay.unwrap()
    };
    let refuse = async |replay: &Replay| {
        let (id, (_, mirror)) = (replay.request_id, of_table().await);
        let refused = [(id, "too late".to_owned())];
        catalog
            .refuse_replays(&mirror, &refused, &[id])
            .await
            .unwrap();
    };

    let moment = ask(Some(Until::Lsn(Lsn(2)))).await;
    let mirror_id = of_table().await.1.id;
    let there = [moment.request_id];
    catalog.end_replay_until(mirror_id, &there).await.unwrap();
    // One up to another moment: the mirror is paused where it was.
    let other = ask(Some(Until::Lsn(Lsn(3)))).await;
    assert_eq!(other.former.as_deref(), Some(&moment));
    assert_eq!(of_table().await.1.desired, Desired::Running);
    refuse(&other).await;
    let (table, mirror) = of_table().await;
    assert_eq!(mirror.desired, Desired::Paused);
    assert_eq!(table.replay, Some(moment.clone()));

    let late = ask(None).await;
    catalog.request_resume("m", "admin").await.unwrap();
    let before = of_table().await.1;
    refuse(&late).await;
    refuse(&late).await;
    let (table, mirror) = of_table().await;
    let goes_on = Replay {
        until: None,
        ..moment
    };
    assert_eq!(table.replay, Some(goes_on));
    assert_eq!(mirror.desired, Desired::Running);
    assert_ne!(
        mirror.version_of(Role::Apply),
        before.version_of(Role::Apply)
    );
    let commands = catalog.list_commands("m").await.unwrap();
    let failed = commands
        .iter()
        .filter(|command| command.error.as_deref() == Some("too late"));
    assert_eq!(failed.count(), 2);
    database.drop().await;
}
