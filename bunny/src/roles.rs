//! The three roles, each from its start to its end.
//!
//! A role starts while the catalog or Kafka are away: it waits and says so. Only
//! a wrong setting ends it.

use std::future::Future;
use std::time::Duration;

use bunny_catalog::Catalog;
use secrecy::ExposeSecret as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cli::Task;
use crate::config::{self, Common, Layers, Problems};
use crate::exit::Exit;
use crate::telemetry;

/// Pauses while something that is needed is away.
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How long Kafka may take to answer once.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(5);

/// What the roles of a process share.
#[derive(Clone)]
struct Process {
    common: Common,
    catalog: Catalog,
    holder: String,
}

/// Runs the roles of `task` until `cancel` or until one of them fails, which
/// ends the others too.
pub(crate) async fn run(
    task: Task,
    layers: &Layers,
    cancel: CancellationToken,
) -> Result<(), Exit> {
    let with_api = matches!(task, Task::Api | Task::Up);
    let mut problems = Problems::default();
    let common = config::common(layers).map_err(|found| problems.append(found));
    let api = if with_api {
        config::api(layers)
            .map(Some)
            .map_err(|found| problems.append(found))
    } else {
        Ok(None)
    };
    let (Ok(common), Ok(api)) = (common, api) else {
        return Err(problems.into());
    };
    let catalog = open_catalog(&common)?;
    // Before anything is waited for: it would be refused later, by whoever needs it first.
    config::check_kafka(&common.kafka)?;
    let process = Process {
        catalog,
        holder: holder(),
        common,
    };

    // What a catalog without its schema answers is an error, and asked again.
    let sweeping = process.catalog.clone();
    let audit_days = process.common.audit_days;
    let mut roles: JoinSet<Result<(), Exit>> = JoinSet::new();
    // Metrics stop with the process, after the roles.
    let mut exporter: JoinSet<Result<(), Exit>> = JoinSet::new();
    if let Some(address) = process.common.metrics_listen {
        exporter.spawn(telemetry::metrics(address)?);
    }
    if matches!(task, Task::Capture | Task::Up) {
        roles.spawn(Box::pin(capture(process.clone(), cancel.clone())));
    }
    if matches!(task, Task::Apply | Task::Up) {
        roles.spawn(Box::pin(apply(process.clone(), cancel.clone())));
    }
    if let Some(api) = api {
        roles.spawn(Box::pin(serve(process, api, cancel.clone())));
    }

    let mut sweeping = std::pin::pin!(sweeping.sweep_forever(audit_days));
    let mut outcome = Ok(());
    loop {
        let joined = tokio::select! {
            joined = roles.join_next() => joined,
            Some(joined) = exporter.join_next() => Some(joined),
            never = &mut sweeping => match never {},
        };
        let Some(joined) = joined else {
            return outcome;
        };
        let ended =
            joined.unwrap_or_else(|error| Err(Exit::failed(format!("a role broke down: {error}"))));
        // The first failure is the cause; what follows it is its effect.
        if outcome.is_ok() {
            outcome = ended;
        }
        cancel.cancel();
    }
}

/// Makes or updates the catalog's schema, waiting for the database.
pub(crate) async fn migrate(layers: &Layers, cancel: CancellationToken) -> Result<(), Exit> {
    let location = config::catalog(layers)?;
    let given = config::encryption_key(layers)?;
    let check = given.is_some();
    // Migrations seal nothing, so that any key does.
    let key = given.unwrap_or_else(bunny_catalog::EncryptionKey::generate);
    let catalog = Catalog::open(&location, key).map_err(Exit::setting)?;
    if !prepared(&catalog, check, &cancel).await? {
        return Err(Exit::failed("stopped before the catalog was migrated"));
    }
    tracing::info!("the catalog's schema is up to date");
    Ok(())
}

async fn capture(process: Process, cancel: CancellationToken) -> Result<(), Exit> {
    if !ready_to_work(&process, &cancel).await? {
        return Ok(());
    }
    let options = bunny_capture::Options {
        catalog: process.catalog,
        kafka: process.common.kafka,
        topics: process.common.topics,
        schema_ids: process.common.schema_ids,
        holder: process.holder,
        lease_ttl: process.common.lease_ttl,
        memory_bytes: process.common.memory_bytes,
    };
    tracing::info!("capture runs");
    bunny_capture::Service::new(options)
        .run(cancel)
        .await
        .map_err(|error| Exit::failed(format!("capture: {error}")))
}

async fn apply(process: Process, cancel: CancellationToken) -> Result<(), Exit> {
    if !ready_to_work(&process, &cancel).await? {
        return Ok(());
    }
    let options = bunny_apply::Options {
        catalog: process.catalog,
        kafka: process.common.kafka,
        topics: process.common.topics,
        holder: process.holder,
        lease_ttl: process.common.lease_ttl,
        memory_bytes: process.common.memory_bytes,
    };
    tracing::info!("apply runs");
    bunny_apply::Service::new(options).run(cancel).await;
    Ok(())
}

/// The REST role. It does not wait for Kafka: `/ready` says that it is away.
async fn serve(process: Process, api: config::Api, cancel: CancellationToken) -> Result<(), Exit> {
    if !prepared(&process.catalog, true, &cancel).await? {
        return Ok(());
    }
    let jwt_secret = wait_for("the catalog", &cancel, || {
        let given = api.jwt_secret.clone();
        let catalog = &process.catalog;
        async move { sort_catalog(catalog.jwt_secret(given).await) }
    });
    let Some(jwt_secret) = jwt_secret.await? else {
        return Ok(());
    };
    let generated = wait_for("the catalog", &cancel, || async {
        let password = api.admin_password.as_ref();
        sort_catalog(
            process
                .catalog
                .ensure_admin(&api.admin_user, password)
                .await,
        )
    });
    let Some(generated) = generated.await? else {
        return Ok(());
    };
    if let Some(password) = generated {
        // Once, to the terminal and not to the log.
        println!(
            "bunny: first administrator \"{}\", password {} (shown only now)",
            api.admin_user,
            password.expose_secret()
        );
    }
    let catalog = process.catalog.clone();
    let gauges = async move {
        match process.common.metrics_listen {
            Some(_) => bunny_api::show_gauges(&catalog).await,
            // Nobody could read them.
            None => std::future::pending().await,
        }
    };
    let options = bunny_api::Options {
        catalog: process.catalog,
        kafka: process.common.kafka,
        topics: process.common.topics,
        listen: api.listen,
        jwt_secret,
    };
    let served = tokio::select! {
        served = bunny_api::Service::new(options).run(cancel) => served,
        never = gauges => match never {},
    };
    served.map_err(|error| match error {
        bunny_api::Error::WeakSecret { .. } | bunny_api::Error::Listen { .. } => {
            Exit::setting(error)
        }
        bunny_api::Error::Serve(_) => Exit::failed(error),
    })
}

fn open_catalog(common: &Common) -> Result<Catalog, Exit> {
    Catalog::open(&common.catalog, common.encryption_key.clone()).map_err(Exit::setting)
}

/// Unique to this run of this process; people find the host in it.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "host",
        host => host,
    };
    let run = Uuid::new_v4().simple().to_string();
    format!("{host}:{}:{}", std::process::id(), &run[..8])
}

/// Migrates the catalog and checks the key. `false`: cancelled meanwhile.
async fn prepared(
    catalog: &Catalog,
    check_key: bool,
    cancel: &CancellationToken,
) -> Result<bool, Exit> {
    let done = wait_for("the catalog", cancel, || async {
        sort_catalog(catalog.migrate().await)?;
        if check_key {
            sort_catalog(catalog.check_key().await)?;
        }
        Ok(())
    });
    Ok(done.await?.is_some())
}

/// Waits for the catalog's schema and for Kafka. `false`: cancelled meanwhile.
async fn ready_to_work(process: &Process, cancel: &CancellationToken) -> Result<bool, Exit> {
    let catalog = &process.catalog;
    let schema = wait_for("the catalog", cancel, || async {
        if !sort_catalog(catalog.is_migrated().await)? {
            return Err(Trouble::Away(
                "its schema is not there yet: \"bunny api\" or \"bunny migrate\" makes it".into(),
            ));
        }
        sort_catalog(catalog.check_key().await)
    });
    if schema.await?.is_none() {
        return Ok(false);
    }
    let kafka = wait_for("Kafka", cancel, || async {
        let answered = process.common.kafka.broker_reachable(KAFKA_TIMEOUT).await;
        answered.map_err(|error| {
            if error.is_transient() {
                Trouble::Away(error.to_string())
            } else {
                Trouble::Wrong(format!("Kafka cannot be used as configured: {error}"))
            }
        })
    });
    Ok(kafka.await?.is_some())
}

/// Why something cannot be had now.
pub(crate) enum Trouble {
    /// It may come.
    Away(String),
    /// It will not: a setting is wrong.
    Wrong(String),
    /// It will not, for another reason.
    Broken(String),
}

pub(crate) fn sort_catalog<T>(result: bunny_catalog::Result<T>) -> Result<T, Trouble> {
    result.map_err(|error| match error {
        bunny_catalog::Error::Invalid(why) => Trouble::Wrong(why),
        error if error.is_transient() => Trouble::Away(error.to_string()),
        error => Trouble::Broken(error.to_string()),
    })
}

/// Asks again and again, with growing pauses, until there is an answer. `None`:
/// cancelled meanwhile.
pub(crate) async fn wait_for<T, F, Fut>(
    what: &str,
    cancel: &CancellationToken,
    ask: F,
) -> Result<Option<T>, Exit>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, Trouble>>,
{
    let mut pause = WAIT_MIN;
    loop {
        let answer = tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            answer = ask() => answer,
        };
        match answer {
            Ok(value) => return Ok(Some(value)),
            Err(Trouble::Wrong(why)) => return Err(Exit::setting(why)),
            Err(Trouble::Broken(why)) => return Err(Exit::failed(why)),
            Err(Trouble::Away(why)) => tracing::warn!(error = %why, "waiting for {what}"),
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(WAIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn what_is_away_is_waited_for() {
        let asked = AtomicU32::new(0);
        let cancel = CancellationToken::new();
        let answer = wait_for("it", &cancel, || async {
            match asked.fetch_add(1, Ordering::Relaxed) {
                0..2 => Err(Trouble::Away("not yet".into())),
                n => Ok(n),
            }
        });
        assert_eq!(answer.await, Ok(Some(2)));
    }

    #[tokio::test]
    async fn a_wrong_setting_ends_the_wait_with_code_2() {
        let answer: Result<Option<()>, Exit> =
            wait_for("it", &CancellationToken::new(), || async {
                Err(Trouble::Wrong("no such user".into()))
            })
            .await;
        assert_eq!(answer.unwrap_err().code(), 2);
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_process_shall() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let answer: Result<Option<()>, Exit> = wait_for("it", &cancel, std::future::pending).await;
        assert_eq!(answer, Ok(None));
    }

    #[test]
    fn every_run_is_another_holder() {
        assert_ne!(holder(), holder());
    }
}
