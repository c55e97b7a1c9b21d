//! TLS to both servers: which certificates each `ssl_mode` accepts, and that all sessions
//! of a mirror, the walsender's included, are encrypted.

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::certificates::{self, Authority, ServerCertificate};
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, Url};
use bunny_tests::load::{self, Load};
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::{Value, json};

/// What a peer asks for, and whether it then accepts each certificate of [`Offered`].
struct Asked {
    name: &'static str,
    ssl_mode: &'static str,
    with_root: bool,
    good: bool,
    of_another_host: bool,
    expired: bool,
    of_a_stranger: bool,
}

const fn asked(
    name: &'static str,
    ssl_mode: &'static str,
    with_root: bool,
    accepts: [bool; 4],
) -> Asked {
    let [good, of_another_host, expired, of_a_stranger] = accepts;
    Asked {
        name,
        ssl_mode,
        with_root,
        good,
        of_another_host,
        expired,
        of_a_stranger,
    }
}

const ASKED: [Asked; 7] = [
    asked("disable", "disable", false, [true, true, true, true]),
    asked("prefer", "prefer", false, [true, true, true, true]),
    asked("require", "require", false, [true, true, true, true]),
    // As libpq does: a root given with `require` is used.
    asked("require-root", "require", true, [true, true, false, false]),
    asked("ca", "verify-ca", true, [true, true, false, false]),
    asked("full", "verify-full", true, [true, false, false, false]),
    asked("full-system-roots", "verify-full", false, [false; 4]),
];

fn peer(name: &str, url: &Url, ssl_mode: &str, root: Option<&str>) -> Value {
    json!({
        "name": name, "host": url.host, "port": url.port, "user": url.user, "password": url.password,
        "database": url.database, "ssl_mode": ssl_mode, "ssl_root_cert": root,
    })
}

/// The peers of [`ASKED`] that do not behave as it says while `offered` is installed.
async fn surprises(
    api: &Api,
    offered: &str,
    accepts: impl Fn(&Asked) -> bool,
) -> Result<Vec<String>> {
    let mut surprises = Vec::new();
    for asked in &ASKED {
        let path = format!("/v1/peers/{}/test", asked.name);
        let answer = api.post(&path, json!({})).await?.expect(200)?;
        let wanted = accepts(asked);
        let says_why = answer["error"]
            .as_str()
            .is_some_and(|error| error.contains("certificate"));
        if answer["success"] != wanted || (!wanted && !says_why) {
            surprises.push(format!("{} offered {offered}: {answer}", asked.name));
        }
    }
    Ok(surprises)
}

/// Bunny's sessions on a server, and which of them are encrypted.
async fn sessions(server: &Session, database: &str) -> Result<(i64, i64)> {
    let count = |condition: &str| {
        format!(
            "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
             WHERE application_name LIKE 'bunny %' AND datname = '{database}' AND {condition}"
        )
    };
    Ok((
        server.number(&count("true")).await?,
        server.number(&count("ssl")).await?,
    ))
}

/// As when a certificate runs out: new sessions meet it, and there are only new sessions.
async fn replace_certificate(
    server: &Session,
    database: &str,
    certificate: &ServerCertificate,
    name: &str,
) -> Result<()> {
    certificate.install(server, name).await?;
    server
        .run(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'bunny %' AND datname = '{database}'"
        ))
        .await
}

async fn verified_and_encrypted(
    stage: &Stage,
    source: &Session,
    destination: &Session,
) -> Result<()> {
    let authority = Authority::new("Bunny test authority")?;
    let good = authority.signs(&stage.source.host)?;
    let of_another_host = authority.signs("elsewhere.example")?;
    let expired = authority.signed_long_ago(&stage.source.host)?;
    let of_a_stranger = Authority::new("Somebody else")?.signs(&stage.source.host)?;
    let root = authority.root();

    let _processes = stage.start_all()?;
    let api = stage.api().await?;
    for asked in &ASKED {
        let root = asked.with_root.then_some(root.as_str());
        let body = peer(asked.name, &stage.source, asked.ssl_mode, root);
        api.post("/v1/peers", body).await?.expect(201)?;
    }
    // Without TLS at the server only who does not insist on it gets in.
    for asked in &ASKED {
        let path = format!("/v1/peers/{}/test", asked.name);
        let answer = api.post(&path, json!({})).await?.expect(200)?;
        let insists = !["disable", "prefer"].contains(&asked.ssl_mode);
        assert_eq!(answer["success"], !insists, "{}: {answer}", asked.name);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(
            !insists || error.contains("TLS"),
            "{}: {answer}",
            asked.name
        );
    }
    let mut wrong = Vec::new();
    of_another_host.install(source, "of_another_host").await?;
    wrong.extend(surprises(&api, "of another host", |asked| asked.of_another_host).await?);
    expired.install(source, "expired").await?;
    wrong.extend(surprises(&api, "expired", |asked| asked.expired).await?);
    of_a_stranger.install(source, "of_a_stranger").await?;
    wrong.extend(surprises(&api, "of a stranger", |asked| asked.of_a_stranger).await?);
    good.install(source, "good").await?;
    wrong.extend(surprises(&api, "good", |asked| asked.good).await?);
    assert!(wrong.is_empty(), "{wrong:#?}");

    // A mirror over verified connections, on both sides.
    good.install(destination, "good").await?;
    for (name, url) in [
        ("source", &stage.source),
        ("destination", &stage.destination),
    ] {
        let body = peer(name, url, "verify-full", Some(&root));
        api.post("/v1/peers", body).await?.expect(201)?;
    }
    load::create_tables(&stage.source.connect().await?, 2_000).await?;
    let load = Load::start(&stage.source, 2, 20);
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;
    load.advance(20).await;
    for (server, what) in [(source, "source"), (destination, "destination")] {
        let (all, encrypted) = sessions(server, &stage.name).await?;
        assert!(all > 0, "no session of ours at the {what}");
        assert_eq!(all, encrypted, "sessions at the {what}");
    }

    // It runs out: the mirror says so, and goes on once there is a new one.
    replace_certificate(source, &stage.name, &expired, "expired").await?;
    mirror
        .wait_until("held up by the certificate", CONVERGE, |mirror, _| {
            mirror["error_message"]
                .as_str()
                .is_some_and(|message| message.contains("certificate"))
        })
        .await?;
    good.install(source, "good").await?;
    load.advance(20).await;
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    let pairs: Vec<TablePair> = load::pairs();
    stage.assert_topics_hold(&mirror, &pairs).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_as_asked_and_every_session_is_encrypted() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "tls").await?;
    let source = services.source.connect().await?;
    let destination = services.destination.connect().await?;
    let ended = verified_and_encrypted(&stage, &source, &destination).await;
    // The next test finds the servers as they were.
    for server in [&source, &destination] {
        certificates::uninstall(server)
            .await
            .context("taking TLS away again")?;
    }
    ended.with_context(|| stage.logs_tail())
}
