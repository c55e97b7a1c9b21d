//! A schema registry that is reached by TLS and lets in whoever shows a token: what a mirror says while
//! capture trusts too little or shows the wrong one, and that it goes on once that is put right.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::bunny::Role;
use bunny_tests::certificates::Authority;
use bunny_tests::clients;
use bunny_tests::content::TablePair;
use bunny_tests::registry::SchemaRegistry;
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);
const WRONG: &str = "not-the-token";

async fn says(mirror: &Mirror, status: &str, words: &[&str]) -> Result<()> {
    let said = |mirror: &Value| format!("{} {}", mirror["error_message"], mirror["messages"]);
    let done = |mirror: &Value, _: &Value| {
        mirror["status"] == status && words.iter().all(|word| said(mirror).contains(word))
    };
    let what = format!("{status} {words:?}");
    mirror.wait_until(&what, LIMIT, done).await?;
    let shown = said(&mirror.get().await?);
    assert!(!shown.contains(WRONG), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_trusted_or_lets_nobody_in_is_said_and_put_right() -> Result<()> {
    let stage = Stage::new("registry_access").await?;
    let authority = Authority::new("those who run the registry")?;
    let root = stage.directory().join("root.crt");
    std::fs::write(&root, authority.root())?;
    let root = root.display().to_string();
    let registry =
        SchemaRegistry::start_guarded(&stage.services, stage.directory(), &authority).await?;
    let (url, token) = registry.guarded_url()?;
    stage.migrate()?;
    let _others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run(
            "CREATE TABLE orders (id int PRIMARY KEY, note text);
              INSERT INTO orders SELECT g, 'copied' FROM generate_series(1, 50) g",
        )
        .await?;
    let tables = ["public.orders"];
    let pairs = TablePair::all(&tables);

    // Signed by someone whom the system does not know: a registry that is away, as far as one can see.
    let settings = |token| {
        [
            ("BUNNY_SCHEMA_REGISTRY_URL", url.as_str()),
            ("BUNNY_SCHEMA_REGISTRY_TOKEN", token),
        ]
    };
    let capture = stage.start_with(Role::Capture, &settings(token))?;
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({"schema_changes": "all"}))
        .await?;
    let words = ["certificate", "SSL_CERT_FILE", "the source keeps WAL"];
    says(&mirror, "SETUP", &words).await?;
    drop(capture);

    // Trusted, and not let in.
    let trusting = |token| {
        let [url, token] = settings(token);
        [url, token, ("SSL_CERT_FILE", root.as_str())]
    };
    let words = [
        "401",
        "BUNNY_SCHEMA_REGISTRY_USER",
        "_TOKEN",
        "start capture again",
        "keeps WAL",
    ];
    let capture = stage.start_with(Role::Capture, &trusting(WRONG))?;
    says(&mirror, "FAILED", &words).await?;
    drop(capture);

    // With the right one it goes on by itself.
    let capture = stage.start_with(Role::Capture, &trusting(token))?;
    mirror.wait_running().await?;
    source.run("UPDATE orders SET note = 'streamed'").await?;
    stage.assert_converges(&mirror, &pairs).await?;
    drop(capture);

    // A token that is good no more, when a version wants an id: nothing that comes meanwhile is lost.
    let capture = stage.start_with(Role::Capture, &trusting(WRONG))?;
    source
        .run("ALTER TABLE orders ADD COLUMN tier int; INSERT INTO orders VALUES (101, 'tiered', 2)")
        .await?;
    says(&mirror, "FAILED", &words).await?;
    source.run("DELETE FROM orders WHERE id < 10").await?;
    drop(capture);
    let _capture = stage.start_with(Role::Capture, &trusting(token))?;
    stage.assert_converges(&mirror, &pairs).await?;
    stage.assert_topics_hold(&mirror, &pairs).await?;

    // The ids are the registry's own.
    let topic = format!("{}.mirror.changes", stage.name);
    let records = clients::kcat_records(&stage.services.brokers, &topic)?;
    assert!(!records.is_empty());
    for (_, id) in records {
        let path = format!("/schemas/ids/{id}");
        let ours = api.get(&format!("/registry{path}")).await?.expect(200)?;
        let theirs = registry.get(&path).await?;
        assert_eq!(ours["schema"], theirs["schema"], "schema {id}");
    }
    Ok(())
}
