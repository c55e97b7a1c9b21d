//! A setting that is missing or wrong: one line on stderr that names it, and exit code 2.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::stage::Stage;

/// A process that has more to wait for than a connection is not about to end.
const LIMIT: Duration = Duration::from_secs(20);
/// Nothing listens there.
const AWAY: &str = "postgres://nobody@127.0.0.1:1/nothing";

const ROLES: [&str; 4] = ["capture", "apply", "api", "up"];
const WITH_CATALOG: [&str; 5] = ["capture", "apply", "api", "up", "migrate"];

/// Exit code and stderr.
async fn end_of(command: &mut Command) -> Result<(Option<i32>, String)> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("{shown} still runs after {LIMIT:?}: {said}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), said))
}

/// It ends with code 2, and the one line it says itself has `named` in it. Log lines may stand
/// before it once a server had to be asked, not before.
async fn is_refused(command: &mut Command, named: &str, is_asked_first: bool) -> Result<()> {
    let shown = format!("{command:?}");
    let (code, said) = end_of(command).await?;
    let own: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("bunny: "))
        .collect();
    ensure!(
        code == Some(2) && own.len() == 1 && own[0].contains(named),
        "{shown}: code {code:?}, not 2 with {named}: {said}"
    );
    ensure!(
        is_asked_first || said.lines().count() == 1,
        "{shown}: more than a line: {said}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_setting_is_one_line_and_code_2() -> Result<()> {
    let stage = Stage::new("settings").await?;
    stage.migrate()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let taken = listener.local_addr()?.to_string();
    let no_database = format!("{}_not", stage.catalog);
    let other_key = "//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA=";

    // Of what a process is told, before it asks anybody.
    let told: [(&[&str], &str, &str, &str); 13] = [
        (&WITH_CATALOG, "BUNNY_CATALOG_URL", "", "BUNNY_CATALOG_URL"),
        (
            &WITH_CATALOG,
            "BUNNY_CATALOG_URL",
            "mysql://host/database",
            "postgres://",
        ),
        (
            &WITH_CATALOG,
            "BUNNY_ENCRYPTION_KEY",
            "short",
            "BUNNY_ENCRYPTION_KEY",
        ),
        (
            &WITH_CATALOG,
            "BUNNY_CONFIG",
            "/not/there.toml",
            "/not/there.toml",
        ),
        (&WITH_CATALOG, "BUNNY_LOG_FORMAT", "xml", "BUNNY_LOG_FORMAT"),
        (&ROLES, "BUNNY_ENCRYPTION_KEY", "", "bunny keygen"),
        (&ROLES, "BUNNY_KAFKA_BROKERS", "", "BUNNY_KAFKA_BROKERS"),
        (&ROLES, "BUNNY_KAFKA_BROKERS", "kafka:port", "kafka:port"),
        (
            &ROLES,
            "BUNNY_KAFKA_CONFIG",
            "no.such.setting=1",
            "no.such.setting",
        ),
        (
            &ROLES,
            "BUNNY_KAFKA_CONFIG",
            "security.protocol=none",
            "security.protocol",
        ),
        (
            &ROLES,
            "BUNNY_METRICS_LISTEN",
            &taken,
            "BUNNY_METRICS_LISTEN",
        ),
        (
            &["api", "up"],
            "BUNNY_JWT_SECRET",
            "short",
            "BUNNY_JWT_SECRET",
        ),
        (&["api", "up"], "BUNNY_LISTEN", "nowhere", "BUNNY_LISTEN"),
    ];
    for (tasks, name, value, named) in told {
        for task in tasks {
            let mut settings = vec![(name, value)];
            if name != "BUNNY_CATALOG_URL" {
                settings.push(("BUNNY_CATALOG_URL", AWAY));
            }
            is_refused(&mut stage.command(&[task], &settings)?, named, false).await?;
        }
    }
    // What only a server, or the machine, can tell.
    let asked: [(&[&str], &str, &str, &str); 3] = [
        (
            &WITH_CATALOG,
            "BUNNY_CATALOG_URL",
            &no_database,
            &stage.name,
        ),
        (
            &WITH_CATALOG,
            "BUNNY_ENCRYPTION_KEY",
            other_key,
            "BUNNY_ENCRYPTION_KEY",
        ),
        (&["api", "up"], "BUNNY_LISTEN", &taken, "BUNNY_LISTEN"),
    ];
    for (tasks, name, value, named) in asked {
        for task in tasks {
            is_refused(&mut stage.command(&[task], &[(name, value)])?, named, true).await?;
        }
    }
    // Everything that is missing at once, still in one line.
    let missing = [
        "BUNNY_CATALOG_URL",
        "BUNNY_ENCRYPTION_KEY",
        "BUNNY_KAFKA_BROKERS",
    ];
    let unset = missing.map(|name| (name, ""));
    for name in missing {
        is_refused(&mut stage.command(&["up"], &unset)?, name, false).await?;
    }
    // What is no command line at all, in clap's own words.
    for arguments in [
        &[][..],
        &["nothing"],
        &["api", "--nothing"],
        &["api", "--listen"],
    ] {
        let (code, said) = end_of(&mut stage.command(arguments, &[])?).await?;
        ensure!(
            code == Some(2) && !said.is_empty(),
            "{arguments:?}: {code:?}, {said}"
        );
    }
    Ok(())
}

/// Arguments, variables, and what the refusal names.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

/// The refusal of a value says where it was found.
#[tokio::test(flavor = "multi_thread")]
async fn a_flag_wins_over_the_environment_over_the_file() -> Result<()> {
    const SETTING: &str = "BUNNY_LOG_FORMAT";
    let stage = Stage::new("precedence").await?;
    let directory = stage.directory();
    let file = |name: &str| -> Result<String> {
        let path = directory.join(name);
        std::fs::write(&path, format!("log_format = \"of {name}\"\n"))?;
        Ok(path.to_str().context("a path in UTF-8")?.to_owned())
    };
    file("bunny.toml")?;
    let (variable, flag) = (file("variable.toml")?, file("flag.toml")?);
    let with_variable = ("BUNNY_CONFIG", variable.as_str());
    let cases: [Case<'_>; 5] = [
        (&["api"], &[], "of bunny.toml"),
        (&["api"], &[with_variable], "of variable.toml"),
        (
            &["api", "--config", &flag],
            &[with_variable],
            "of flag.toml",
        ),
        (
            &["api", "--config", &flag],
            &[(SETTING, "variable")],
            "\"variable\"",
        ),
        (
            &["api", "--log-format", "flag"],
            &[(SETTING, "variable")],
            "\"flag\"",
        ),
    ];
    for (arguments, settings, named) in cases {
        is_refused(&mut stage.command(arguments, settings)?, named, false).await?;
    }
    // A file that is not named need not be there; one that is has to be readable.
    std::fs::remove_file(directory.join("bunny.toml"))?;
    let without = stage.command(&["api"], &[("BUNNY_CATALOG_URL", "")]);
    is_refused(&mut without?, "BUNNY_CATALOG_URL", false).await?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    for file in [directory, "not-there.toml"] {
        is_refused(
            &mut stage.command(&["api", "--config", file], &[])?,
            file,
            false,
        )
        .await?;
    }
    Ok(())
}
