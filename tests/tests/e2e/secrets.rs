//! Secrets stay where they were put: planted ones are looked for in everything that is said, and
//! the key that seals them can be changed.

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::stage::{CONVERGE, Stage};
use reqwest::Method;
use serde_json::{Value, json};

const PLANTED: &str = "plant3d-s3cret";
/// Any other 32 bytes.
const NEW_KEY: &str = "HxobGBkWFxQVEhMQEQ4PDA0KCwgJBgcEBQIDAAECAwQ=";

#[tokio::test(flavor = "multi_thread")]
async fn no_planted_secret_is_ever_said() -> Result<()> {
    let stage = Stage::new("secrets").await?;
    // The catalog is reached with the planted password, too.
    let keeper = format!("{}_keeper", stage.name);
    let catalog = stage.catalog.connect().await?;
    catalog
        .run(&format!(
            "CREATE ROLE \"{keeper}\" SUPERUSER LOGIN PASSWORD '{PLANTED}'"
        ))
        .await?;
    let catalog_url = format!(
        "postgres://{keeper}:{PLANTED}@{}:{}/{}",
        stage.catalog.host, stage.catalog.port, stage.catalog.database
    );
    // Everything that is ever logged, at the finest level.
    let verbose = [
        ("BUNNY_LOG", "trace"),
        ("BUNNY_CATALOG_URL", &catalog_url),
        ("BUNNY_JWT_SECRET", "plant3d-s3cret-that-signs"),
        ("BUNNY_NEW_ENCRYPTION_KEY", NEW_KEY),
        (
            "BUNNY_KAFKA_CONFIG",
            "sasl.username=bunny,sasl.password=plant3d-s3cret",
        ),
    ];
    stage.migrate()?;
    const ROLES: [Role; 3] = [Role::Capture, Role::Apply, Role::Api];
    let mut processes = Vec::new();
    for role in ROLES {
        processes.push(stage.start_with(role, &verbose)?);
    }
    let api = stage.api().await?;
    let mut said = Vec::new();
    let mut say = async |method: Method, path: &str, body: Option<Value>| -> Result<u16> {
        let answer = api.request(method.clone(), path, body).await?;
        said.push(format!("{method} {path}: {}", answer.body));
        Ok(answer.status)
    };

    // A user of the source whose password is the planted one, and what goes wrong with it.
    let source = stage.source.connect().await?;
    let user = format!("{}_secret", stage.name);
    source.run(&format!("CREATE ROLE \"{user}\" SUPERUSER LOGIN REPLICATION PASSWORD '{PLANTED}'; CREATE TABLE t (id int PRIMARY KEY)")).await?;
    let peer = |name: &str, port: u16| {
        json!({"name": name, "host": stage.source.host, "port": port, "user": user, "password": PLANTED,
               "database": stage.source.database, "ssl_mode": "disable"})
    };
    let destination = json!({"name": "destination", "host": stage.destination.host, "port": stage.destination.port,
        "user": stage.destination.user, "password": stage.destination.password, "database": stage.destination.database, "ssl_mode": "disable"});
    for (name, body, status) in [
        ("good", peer("good", stage.source.port), 201),
        ("dead", peer("dead", 1), 201),
        ("twice", peer("good", stage.source.port), 409),
        (
            "bad",
            json!({"name": "bad", "password": [PLANTED], "ssl_mode": "on"}),
            400,
        ),
        ("destination", destination, 201),
    ] {
        ensure!(
            say(Method::POST, "/v1/peers", Some(body)).await? == status,
            "{name}"
        );
    }
    for path in ["/v1/peers/good/test", "/v1/peers/dead/test"] {
        say(Method::POST, path, None).await?;
    }
    let mirror = |source: &str| {
        json!({"name": "mirror", "source_peer": source, "destination_peer": "destination",
               "table_mappings": [{"source_table": "public.t", "destination_table": "public.t"}]})
    };
    ensure!(say(Method::POST, "/v1/mirrors", Some(mirror("dead"))).await? == 422);
    ensure!(say(Method::POST, "/v1/mirrors", Some(mirror("good"))).await? == 201);
    let deadline = std::time::Instant::now() + CONVERGE;
    while api.get("/v1/mirrors/mirror").await?.body["status"] != "RUNNING" {
        ensure!(
            std::time::Instant::now() < deadline,
            "{:?}",
            api.get("/v1/mirrors/mirror").await
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    say(Method::PUT, "/v1/peers/good", Some(peer("good", 1))).await?;
    say(
        Method::PUT,
        "/v1/peers/dead",
        Some(json!({"host": "h", "password": PLANTED})),
    )
    .await?;
    say(
        Method::POST,
        "/v1/users",
        Some(json!({"username": "ann", "password": PLANTED, "role": "viewer"})),
    )
    .await?;
    say(
        Method::POST,
        "/v1/users",
        Some(json!({"username": "ann", "password": PLANTED, "role": "boss"})),
    )
    .await?;
    let wrong = json!({"current_password": PLANTED, "new_password": "another password"});
    ensure!(say(Method::POST, "/v1/auth/change-password", Some(wrong)).await? == 403);
    say(
        Method::POST,
        "/v1/auth/login",
        Some(json!({"username": "nobody", "password": PLANTED})),
    )
    .await?;
    // The token it answers is a secret of its bearer, not a planted one.
    Api::new(api.base())?.login("ann", PLANTED).await?;
    for path in [
        "/v1/peers",
        "/v1/peers/good",
        "/v1/users",
        "/v1/audit",
        "/v1/mirrors",
        "/v1/mirrors/mirror",
        "/v1/mirrors/mirror/logs",
        "/v1/mirrors/mirror/metrics",
        "/v1/mirrors/mirror/commands",
        "/v1/mirrors/mirror/available-tables",
        "/openapi.json",
        "/docs",
    ] {
        say(Method::GET, path, None).await?;
    }
    // The source turns the password down: the workers say so, over and over.
    source.run(&format!("ALTER ROLE \"{user}\" PASSWORD 'changed'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'")).await?;
    while api.get("/v1/mirrors/mirror").await?.body["failures"]["capture"].is_null() {
        ensure!(std::time::Instant::now() < deadline, "no failure shows");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    say(Method::GET, "/v1/mirrors/mirror", None).await?;
    say(Method::GET, "/v1/mirrors/mirror/logs?limit=500", None).await?;

    for answer in &said {
        ensure!(
            !answer.to_lowercase().contains(PLANTED),
            "a secret is in {answer}"
        );
    }
    let mut logs = Vec::new();
    for role in ROLES {
        let log = stage.log_of(role)?;
        ensure!(
            log.contains("TRACE"),
            "the log of {role:?} is not as fine as it was asked to be"
        );
        logs.push(log);
    }
    // What prints goes by other ways.
    logs.push(format!(
        "{:#}",
        stage.run(&["rotate-key", "--lost"], &verbose).unwrap_err()
    ));
    logs.push(stage.run(&["rotate-key"], &verbose)?);
    for secret in [PLANTED, stage.encryption_key(), NEW_KEY, stage.password()] {
        let mut lines = logs.iter().flat_map(|log| log.lines());
        let line = lines.find(|line| line.contains(secret));
        ensure!(
            line.is_none(),
            "a secret is in a log: {}",
            line.unwrap_or_default()
        );
    }
    // At rest it is sealed.
    let dump = stage
        .catalog_text("SELECT string_agg(p::text, ' ') FROM bunny.peers p")
        .await?;
    ensure!(!dump.contains(PLANTED) && dump.contains("good"), "{dump}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_changed_under_running_mirrors() -> Result<()> {
    let stage = Stage::new("rotate").await?;
    stage.migrate()?;
    let mut bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
        .await?;
    let mirror = stage
        .create_mirror(&api, "mirror", &["public.t"], json!({}))
        .await?;
    mirror.wait_running().await?;

    ensure!(
        stage.run(&["rotate-key"], &[]).is_err(),
        "without a new key"
    );
    for attempt in ["first", "again"] {
        let told = stage
            .run(&["rotate-key"], &[("BUNNY_NEW_ENCRYPTION_KEY", NEW_KEY)])
            .context(attempt)?;
        ensure!(
            told.contains("secrets are sealed with the new key"),
            "{told}"
        );
        ensure!(told.contains("already") == (attempt == "again"), "{told}");
    }
    // The mirror goes on; what would be sealed with the old key is refused.
    source
        .run("INSERT INTO t SELECT generate_series(101, 200)")
        .await?;
    let pair = [TablePair::same("public.t")];
    let destination = stage.destination.connect().await?;
    let deadline = std::time::Instant::now() + CONVERGE;
    while destination.number("SELECT count(*) FROM t").await? < 200 {
        ensure!(
            std::time::Instant::now() < deadline,
            "the mirror stopped with the old key"
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let late = json!({"name": "late", "host": "h", "user": "u", "password": "p", "database": "d"});
    let refused = api.post("/v1/peers", late.clone()).await?.expect(409)?;
    ensure!(
        refused.to_string().contains("BUNNY_ENCRYPTION_KEY"),
        "{refused}"
    );
    bunny.kill9();
    drop(bunny);

    ensure!(
        stage.run(&["migrate"], &[]).is_err(),
        "the old key is still taken"
    );
    let _bunny = stage.start_with(Role::Up, &[("BUNNY_ENCRYPTION_KEY", NEW_KEY)])?;
    let renewed = stage.api().await?;
    // Tokens outlive the change: the secret that signs them was only sealed anew.
    api.get("/v1/peers").await?.expect(200)?;
    renewed.post("/v1/peers", late).await?.expect(201)?;
    stage.assert_converges(&mirror, &pair).await?;
    stage.assert_topics_hold(&mirror, &pair).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_outlive_the_loss_of_the_key() -> Result<()> {
    let stage = Stage::new("lost_key").await?;
    stage.migrate()?;
    let mut bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100);
              CREATE TABLE u (id int PRIMARY KEY)",
        )
        .await?;
    let tables = ["public.t"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    let other = stage
        .create_mirror(&api, "other", &["public.u"], json!({}))
        .await?;
    mirror.wait_running().await?;
    other.wait_running().await?;
    bunny.kill9();
    drop(bunny);

    // With another key nothing starts, and the way out is named. It has to be asked for.
    let new = [("BUNNY_ENCRYPTION_KEY", NEW_KEY)];
    let refused = stage.run(&["migrate"], &new).unwrap_err().to_string();
    ensure!(refused.contains("rotate-key --lost"), "{refused}");
    let set = [("BUNNY_NEW_ENCRYPTION_KEY", NEW_KEY)];
    let kept = stage.run(&["rotate-key", "--lost"], &set).unwrap_err();
    ensure!(kept.to_string().contains("without --lost"), "{kept}");
    let both = [new[0], set[0]];
    let told = stage.run(&["rotate-key", "--lost"], &both)?;
    ensure!(told.contains("destination, source"), "{told}");

    let _bunny = stage.start_with(Role::Up, &new)?;
    let api = stage.api().await?;
    let mirror = stage.mirror(&api, "mirror");
    mirror
        .wait_until("FAILED for want of passwords", CONVERGE, |mirror, _| {
            let said = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "FAILED" && said.contains("PUT /v1/peers/")
        })
        .await?;
    let tested = api
        .post("/v1/peers/source/test", json!({}))
        .await?
        .expect(200)?;
    ensure!(
        tested.to_string().contains("PUT /v1/peers/source"),
        "{tested}"
    );
    // Who has no password for them any more can still be rid of a mirror.
    let path = "/v1/mirrors/other?force=true";
    api.delete(path).await?.expect(202)?;
    let deadline = std::time::Instant::now() + CONVERGE;
    while api.get("/v1/mirrors/other").await?.status != 404 {
        ensure!(
            std::time::Instant::now() < deadline,
            "{:?}",
            other.get().await
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    source
        .run("INSERT INTO t SELECT generate_series(101, 200)")
        .await?;
    for (name, url) in [
        ("source", &stage.source),
        ("destination", &stage.destination),
    ] {
        let peer = json!({"host": url.host, "port": url.port, "user": url.user, "password": url.password,
            "database": url.database, "ssl_mode": "disable"});
        let path = format!("/v1/peers/{name}");
        api.put(&path, peer).await?.expect(200)?;
    }
    mirror.wait_running().await?;
    let pair = [TablePair::same("public.t")];
    stage.assert_converges(&mirror, &pair).await?;
    stage.assert_topics_hold(&mirror, &pair).await?;
    Ok(())
}
