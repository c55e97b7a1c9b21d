//! The parts that need a server, against the one that `SOURCE_URL` names (a
//! superuser); each test makes a database of its own there and drops it.
//!
//! ```text
//! SOURCE_URL=… cargo test -p bunny-catalog --test server -- --ignored
//! ```

#![allow(clippy::unwrap_used, reason = "a failed step ends its test")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bunny_catalog::{
    ApplyReport, CaptureReport, Catalog, CommandState, EncryptionKey, Error, Finished, Health,
    Location, LogLevel, LogQuery, Mirror, MirrorConfig, MirrorContext, NewMirror, NewMirrorTable,
    NewPeer, Outcome, Role, Status, SuperviseOptions, Swept, TaskFailure, UserRole, derive,
    supervise,
};
use bunny_postgres::{SslMode, TableName};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod cancelled;
mod commands;
mod fan_out;
mod keys;
mod retries;
mod supervision;
mod sweep;
mod wishes;

static DATABASES: AtomicU32 = AtomicU32::new(0);
const TTL: Duration = Duration::from_secs(2);

fn server_url() -> String {
    std::env::var("SOURCE_URL").expect("SOURCE_URL names the server to test with")
}

async fn admin(sql: String) {
    let mut connection = PgConnection::connect(&server_url()).await.unwrap();
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// A database of one test, dropped at its end.
struct Database {
    name: String,
    key: EncryptionKey,
}

impl Database {
    async fn new() -> Database {
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("bunny_catalog_test_{}_{number}", std::process::id());
        admin(format!("CREATE DATABASE {name}")).await;
        Database {
            name,
            key: EncryptionKey::generate(),
        }
    }

    fn url(&self) -> String {
        let url = server_url();
        let (server, _) = url.rsplit_once('/').unwrap();
        format!("{server}/{}", self.name)
    }

    fn open_with(&self, key: EncryptionKey) -> Catalog {
        let location = Location::Url(SecretString::from(self.url()));
        Catalog::open(&location, key).unwrap()
    }

    /// A session beside the catalog's.
    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    fn open(&self) -> Catalog {
        self.open_with(self.key.clone())
    }

    async fn migrated(&self) -> Catalog {
        let catalog = self.open();
        catalog.migrate().await.unwrap();
        for name in ["source", "destination"] {
            catalog.create_peer(&peer(name), "admin").await.unwrap();
        }
        catalog
    }

    async fn cut_off(&self) {
        let name = &self.name;
        admin(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        admin(format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .await;
    }

    async fn back(&self) {
        admin(format!(
            "ALTER DATABASE {} ALLOW_CONNECTIONS true",
            self.name
        ))
        .await;
    }

    async fn drop(self) {
        admin(format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

fn peer(name: &str) -> NewPeer {
    NewPeer {
        name: name.into(),
        host: "db.example".into(),
        port: 5432,
        user: "bunny".into(),
        password: SecretString::from("hunter2"),
        database: "app".into(),
        ssl_mode: SslMode::VerifyFull,
        ssl_root_cert: Some("PEM".into()),
        identity: None,
    }
}

fn mirror(name: &str, destination_table: &str) -> NewMirror {
    NewMirror {
        name: name.into(),
        source_peer: "source".into(),
        destination_peer: "destination".into(),
        config: MirrorConfig::default(),
        tables: vec![NewMirrorTable {
            source: TableName::new("Sales", "a.b"),
            destination: TableName::new("public", destination_table),
            partition_key: Some("id".into()),
            exclude_columns: vec!["note".into()],
            identity: None,
        }],
        prefix: "bunny".into(),
        replication_slot_name: None,
        slot_given: false,
        publication_name: None,
        publication_given: false,
        attach: None,
        adopts: None,
        requested_by: "admin".into(),
    }
}

async fn eventually<F, Fut>(what: &str, check: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + Duration::from_secs(15);
    while !check().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn several_processes_migrate_at_once() {
    let database = Database::new().await;
    let catalogs: Vec<Catalog> = (0..5).map(|_| database.open()).collect();
    assert!(!catalogs[0].is_migrated().await.unwrap());
    let runs: Vec<JoinHandle<_>> = catalogs
        .into_iter()
        .map(|catalog| tokio::spawn(async move { catalog.migrate().await }))
        .collect();
    for run in runs {
        run.await.unwrap().unwrap();
    }
    let catalog = database.open();
    assert!(catalog.is_migrated().await.unwrap());
    catalog.check_key().await.unwrap();
    let stranger = database.open_with(EncryptionKey::generate());
    let refused = stranger.check_key().await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    let one = catalog.jwt_secret(None).await.unwrap();
    let two = database.open().jwt_secret(None).await.unwrap();
    assert_eq!(one.expose_secret(), two.expose_secret());
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_missing_database_is_a_wrong_setting() {
    let database = Database::new().await;
    let catalog = database.open();
    database.drop().await;
    let error = catalog.ping().await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[tokio::test]
#[ignore = "needs a server"]
async fn peers_are_sealed_and_kept_while_in_use() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let again = catalog
        .create_peer(&peer("source"), "admin")
        .await
        .unwrap_err();
    assert!(matches!(again, Error::Conflict { .. }), "{again}");
    let read = catalog.get_peer("source").await.unwrap();
    assert_eq!(read.password.unwrap().expose_secret(), "hunter2");
    assert_eq!(read.ssl_mode, SslMode::VerifyFull);
    catalog.create_mirror(&mirror("m", "t")).await.unwrap();
    let used = catalog.delete_peer("source", "admin").await.unwrap_err();
    assert!(used.to_string().contains("mirror \"m\""), "{used}");
    catalog.create_peer(&peer("third"), "admin").await.unwrap();
    catalog.delete_peer("third", "admin").await.unwrap();
    let gone = catalog.delete_peer("third", "admin").await.unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn mirrors_are_created_whole_and_commands_outlive_them() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let first = catalog.create_mirror(&mirror("a-b", "one")).await.unwrap();
    assert_eq!(
        (first.slug.as_str(), first.slot_name.as_str()),
        ("a_b", "bunny_a_b")
    );
    assert_eq!(first.tables[0].source, TableName::new("Sales", "a.b"));
    assert_eq!(first.tables[0].exclude_columns, ["note"]);
    assert!(first.tables[0].request_id.is_some());
    let second = catalog.create_mirror(&mirror("A_b", "two")).await.unwrap();
    assert_ne!(first.slug, second.slug);
    for (request, part) in [
        (mirror("a-b", "three"), "exists already"),
        (mirror("c", "one"), "mirror \"a-b\""),
    ] {
        let error = catalog.create_mirror(&request).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut unknown = mirror("d", "four");
    unknown.source_peer = "nobody".into();
    let error = catalog.create_mirror(&unknown).await.unwrap_err();
    assert!(
        matches!(error, Error::NotFound { what: "peer", .. }),
        "{error}"
    );
    assert_eq!(catalog.tables_in_use().await.unwrap().len(), 2);

    let wrong = catalog
        .set_generation_ready(first.id, second.generation)
        .await;
    assert!(wrong.is_err());
    catalog
        .set_generation_ready(first.id, first.generation)
        .await
        .unwrap();
    let ready = catalog.get_mirror("a-b").await.unwrap();
    assert!(ready.generation_ready);
    assert_eq!(ready.version, first.version);
    assert_eq!(
        catalog.open_command(first.id, "create").await.unwrap(),
        None
    );

    let command = catalog
        .request_delete("a-b", true, false, "admin")
        .await
        .unwrap();
    let same = catalog
        .request_delete("a-b", true, false, "admin")
        .await
        .unwrap();
    assert_eq!(command, same);
    let busy = catalog
        .create_mirror(&mirror("a-b", "three"))
        .await
        .unwrap_err();
    assert!(busy.to_string().contains("still being deleted"), "{busy}");
    assert!(!catalog.side_removed(first.id, Role::Apply).await.unwrap());
    assert!(
        catalog
            .is_side_removed(first.id, Role::Apply)
            .await
            .unwrap()
    );
    assert!(
        !catalog
            .is_side_removed(first.id, Role::Capture)
            .await
            .unwrap()
    );
    assert!(catalog.side_removed(first.id, Role::Capture).await.unwrap());
    assert!(catalog.side_removed(first.id, Role::Capture).await.unwrap());
    let gone = catalog.get_mirror("a-b").await.unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    let commands = catalog.list_commands("a-b").await.unwrap();
    let kinds: Vec<(&str, CommandState)> = commands
        .iter()
        .map(|command| (command.kind.as_str(), command.state))
        .collect();
    assert_eq!(
        kinds,
        [
            ("delete", CommandState::Done),
            ("create", CommandState::Done)
        ]
    );
    catalog.create_mirror(&mirror("a-b", "one")).await.unwrap();
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn users_log_in_with_their_password_only() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let generated = catalog.ensure_admin("admin", None).await.unwrap().unwrap();
    assert!(catalog.ensure_admin("admin", None).await.unwrap().is_none());
    let changed = SecretString::from("another");
    let kept = catalog.ensure_admin("root", Some(&changed)).await.unwrap();
    assert!(kept.is_none());
    let user = catalog
        .verify_user("admin", &generated)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(user.role.as_str(), "admin");
    let renewed = catalog.change_password("admin", &changed).await.unwrap();
    assert_ne!(renewed.token_version, user.token_version);
    catalog.change_password("admin", &generated).await.unwrap();
    assert!(
        catalog
            .verify_user("admin", &changed)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        catalog
            .verify_user("root", &changed)
            .await
            .unwrap()
            .is_none()
    );
    database.drop().await;
}

#[tokio::test]
#[ignore = "needs a server"]
async fn the_log_is_searched_and_bounded() {
    let database = Database::new().await;
    let catalog = database.migrated().await;
    let id = catalog.create_mirror(&mirror("m", "t")).await.unwrap().id;
    for number in 0..10_100 {
        let level = if number % 2 == 0 {
            LogLevel::Info
        } else {
            LogLevel::Warn
        };
        let message = format!("Entry {number}");
        catalog.log(id, level, &message, json!({})).await.unwrap();
    }
    let swept = catalog.sweep(1).await.unwrap();
    assert!(swept.logs > 0 && swept.commands == 0, "{swept:?}");
    let query = LogQuery {
        limit: 2,
        offset: 1,
        ..LogQuery::default()
    };
    let (entries, total) = catalog.list_logs(id, &query).await.unwrap();
    assert_eq!(total, 10_000);
    assert_eq!(entries[0].message, "Entry 10098");
    let found = LogQuery {
        limit: 5,
        search: Some("ENTRY 10099".into()),
        level: Some(LogLevel::Warn),
        ..LogQuery::default()
    };
    assert_eq!(catalog.list_logs(id, &found).await.unwrap().1, 1);
    let details = json!({"tables": [{"table": "public.Orders"}], "first_lsn": "0/1A2B3C4"});
    let (level, message) = (LogLevel::Warn, "a batch was undone");
    catalog.log(id, level, message, details).await.unwrap();
    for text in ["public.orders", "0/1a2b3C4"] {
        let found = LogQuery {
            limit: 5,
            search: Some(text.into()),
            ..LogQuery::default()
        };
        let (entries, total) = catalog.list_logs(id, &found).await.unwrap();
        assert_eq!((total, entries[0].message.as_str()), (1, message), "{text}");
    }
    database.drop().await;
}
