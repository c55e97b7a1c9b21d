//! Configuration: a flag wins over the environment, which wins over the file.
//!
//! Every setting stands once, in [`settings::SETTINGS`]; its flag, variable and
//! file key follow from there. What is missing or wrong is said in one line
//! that names the setting where the user wrote it.

mod file;
mod layers;
mod schema_registry;
mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bunny_catalog::{EncryptionKey, Location};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Authority;
use bunny_schemas::topics::Topics;
use secrecy::SecretString;

pub(crate) use layers::{Layers, Problem, Problems};
pub(crate) use settings::{Group, SETTINGS, Setting};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the log goes and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logging {
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub(crate) filter: String,
    /// How lines look.
    pub(crate) format: LogFormat,
}

/// What the REST role needs besides [`Common`].
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// Signs tokens, if not left to be generated.
    pub(crate) jwt_secret: Option<SecretString>,
    /// Name of the first administrator.
    pub(crate) admin_user: String,
    /// Password of the first administrator, if not left to be generated.
    pub(crate) admin_password: Option<SecretString>,
}

/// What every role needs.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// Where the catalog is.
    pub(crate) catalog: Location,
    /// Seals secrets in the catalog.
    pub(crate) encryption_key: EncryptionKey,
    /// How Kafka is reached.
    pub(crate) kafka: KafkaConfig,
    /// Topic names.
    pub(crate) topics: Topics,
    /// Who chooses schema ids.
    pub(crate) schema_ids: Authority,
    /// How long a lease outlives its worker.
    pub(crate) lease_ttl: Duration,
    /// What the rows on their way through a role may take, in bytes.
    pub(crate) memory_bytes: usize,
    /// How long the catalog keeps who did what.
    pub(crate) audit_days: u32,
    /// Where Prometheus may ask, if anywhere.
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// The shortest secret that may sign tokens, in bytes.
const JWT_SECRET_BYTES_MIN: usize = 16;

/// What is logged unless asked otherwise: librdkafka reports each reconnect, and
/// sqlx each slow statement.
const LOG_DEFAULT: &str = "info,rdkafka=warn,librdkafka=warn,sqlx=warn";

/// What is logged by a command whose output a person reads: it says itself what matters.
pub(crate) const LOG_QUIET: &str = "error,rdkafka=off,librdkafka=off";

/// How and what to log.
pub(crate) fn logging(layers: &Layers) -> Result<Logging, Problem> {
    logging_or(layers, LOG_DEFAULT)
}

/// The same, with another filter unless one is set.
pub(crate) fn logging_or(layers: &Layers, filter: &str) -> Result<Logging, Problem> {
    let filter = layers
        .text(&settings::LOG)
        .map_or_else(|| filter.to_owned(), |found| found.text);
    let format = match layers.text(&settings::LOG_FORMAT) {
        None => LogFormat::Text,
        Some(found) => match found.text.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => return Err(found.wrong(format!("must be text or json, not \"{other}\""))),
        },
    };
    Ok(Logging { filter, format })
}

/// Where the catalog is.
pub(crate) fn catalog(layers: &Layers) -> Result<Location, Problem> {
    let url = layers.text(&settings::CATALOG_URL);
    let host = layers.text(&settings::CATALOG_HOST);
    match (url, host) {
        (Some(url), Some(host)) if url.layer == host.layer => Err(Problem::new(format!(
            "{} and {} both say where the catalog is: leave one out",
            url.place, host.place
        ))),
        (Some(url), Some(host)) if host.layer > url.layer => catalog_parts(layers, host.text),
        (Some(url), _) => {
            if !["postgres://", "postgresql://"]
                .iter()
                .any(|scheme| url.text.starts_with(scheme))
            {
                return Err(url.wrong("must begin with postgres://".into()));
            }
            Ok(Location::Url(SecretString::from(url.text)))
        }
        (None, Some(host)) => catalog_parts(layers, host.text),
        (None, None) => Err(Problem::missing(
            &settings::CATALOG_URL,
            ", or BUNNY_CATALOG_HOST with PORT, USER, PASSWORD and DATABASE",
        )),
    }
}

fn catalog_parts(layers: &Layers, host: String) -> Result<Location, Problem> {
    let text_or = |setting, default: &str| {
        layers
            .text(setting)
            .map_or_else(|| default.to_owned(), |found| found.text)
    };
    let port = match layers.text(&settings::CATALOG_PORT) {
        None => 5432,
        Some(found) => found.parse("must be a port number")?,
    };
    Ok(Location::Parts {
        host,
        port,
        user: text_or(&settings::CATALOG_USER, "bunny"),
        password: layers
            .text(&settings::CATALOG_PASSWORD)
            .map(|found| SecretString::from(found.text)),
        database: text_or(&settings::CATALOG_DATABASE, "bunny"),
    })
}

/// The key that seals secrets, if one is set.
pub(crate) fn encryption_key(layers: &Layers) -> Result<Option<EncryptionKey>, Problem> {
    key_of(layers, &settings::ENCRYPTION_KEY)
}

/// The key that takes the place of the present one.
pub(crate) fn new_encryption_key(layers: &Layers) -> Result<EncryptionKey, Problem> {
    needed_key(layers, &settings::NEW_ENCRYPTION_KEY)
}

/// Both keys of a rotation: the present one and the one that takes its place.
pub(crate) fn rotation(layers: &Layers) -> Result<(EncryptionKey, EncryptionKey), Problems> {
    let mut problems = Problems::default();
    let present = problems.take(needed_key(layers, &settings::ENCRYPTION_KEY));
    let new = problems.take(new_encryption_key(layers));
    match (present, new) {
        (Some(present), Some(new)) => Ok((present, new)),
        _ => Err(problems),
    }
}

fn needed_key(layers: &Layers, setting: &'static Setting) -> Result<EncryptionKey, Problem> {
    let key = key_of(layers, setting)?;
    key.ok_or_else(|| Problem::missing(setting, ": \"bunny keygen\" makes one"))
}

fn key_of(layers: &Layers, setting: &'static Setting) -> Result<Option<EncryptionKey>, Problem> {
    let Some(found) = layers.text(setting) else {
        return Ok(None);
    };
    match EncryptionKey::from_base64(&found.text) {
        Ok(key) => Ok(Some(key)),
        Err(_) => {
            Err(found.wrong("must be 32 bytes in base64, as \"bunny keygen\" prints it".into()))
        }
    }
}

/// What every role needs; all that is missing or wrong at once.
pub(crate) fn common(layers: &Layers) -> Result<Common, Problems> {
    let mut problems = Problems::default();
    let catalog = problems.take(catalog(layers));
    let encryption_key = problems.take(encryption_key(layers).and_then(|key| {
        key.ok_or_else(|| {
            Problem::missing(
                &settings::ENCRYPTION_KEY,
                ": \"bunny keygen\" makes one, the same one is needed until \"bunny rotate-key\"",
            )
        })
    }));
    let kafka = problems.take(kafka(layers));
    let topics = problems.take(topics(layers));
    let schema_ids = problems.take(schema_registry::schema_ids(layers));
    let lease_ttl = problems.take(lease_ttl(layers));
    let memory_bytes = problems.take(memory_bytes(layers));
    let audit_days = problems.take(audit_days(layers));
    let metrics_listen = problems.take(address(layers, &settings::METRICS_LISTEN));
    match (
        catalog,
        encryption_key,
        kafka,
        topics,
        schema_ids,
        lease_ttl,
        memory_bytes,
        audit_days,
        metrics_listen,
    ) {
        (
            Some(catalog),
            Some(encryption_key),
            Some(kafka),
            Some(topics),
            Some(schema_ids),
            Some(lease_ttl),
            Some(memory_bytes),
            Some(audit_days),
            Some(metrics_listen),
        ) => Ok(Common {
            catalog,
            encryption_key,
            kafka,
            topics,
            schema_ids,
            lease_ttl,
            memory_bytes,
            audit_days,
            metrics_listen,
        }),
        _ => Err(problems),
    }
}

/// What the REST role needs besides.
pub(crate) fn api(layers: &Layers) -> Result<Api, Problems> {
    let mut problems = Problems::default();
    let listen = problems.take(address(layers, &settings::LISTEN));
    let jwt_secret = problems.take(jwt_secret(layers));
    let admin_user = layers
        .text(&settings::ADMIN_USER)
        .map_or_else(|| "admin".to_owned(), |found| found.text);
    let admin_password = layers
        .text(&settings::ADMIN_PASSWORD)
        .map(|found| SecretString::from(found.text));
    match (listen, jwt_secret) {
        (Some(listen), Some(jwt_secret)) => Ok(Api {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 8112))),
            jwt_secret,
            admin_user,
            admin_password,
        }),
        _ => Err(problems),
    }
}

/// What reading the topics needs, without the catalog.
pub(crate) fn topics_only(layers: &Layers) -> Result<(KafkaConfig, Topics), Problems> {
    let mut problems = Problems::default();
    let kafka = problems.take(kafka(layers));
    let topics = problems.take(topics(layers));
    match (kafka, topics) {
        (Some(kafka), Some(topics)) => Ok((kafka, topics)),
        _ => Err(problems),
    }
}

/// What librdkafka makes of the settings; clients are made for it, and no broker is asked.
pub(crate) fn check_kafka(kafka: &KafkaConfig) -> Result<(), Problem> {
    kafka
        .check()
        .map_err(|error| Problem::new(format!("Kafka cannot be used as configured: {error}")))
}

fn kafka(layers: &Layers) -> Result<KafkaConfig, Problem> {
    let brokers = layers
        .text(&settings::KAFKA_BROKERS)
        .ok_or_else(|| Problem::missing(&settings::KAFKA_BROKERS, " (host:port,...)"))?;
    let list = brokers.text.trim().trim_end_matches(',');
    if !list.split(',').all(is_broker) {
        return Err(brokers.wrong(format!("must be host:port,..., not \"{}\"", brokers.text)));
    }
    let mut overrides: BTreeMap<String, String> = layers.file_kafka().clone();
    for found in layers.texts_lowest_first(&settings::KAFKA_CONFIG) {
        overrides.extend(kafka_pairs(&found.text).map_err(|why| found.wrong(why))?);
    }
    if overrides.contains_key("bootstrap.servers") {
        return Err(Problem::new(
            "the brokers belong in BUNNY_KAFKA_BROKERS, not in a librdkafka setting bootstrap.servers",
        ));
    }
    Ok(KafkaConfig::with_overrides(brokers.text, overrides))
}

/// `host`, `host:port` or `[address]:port`, after a protocol or not: of anything else librdkafka
/// makes a broker that never answers. Pure.
fn is_broker(text: &str) -> bool {
    let text = text.trim();
    let place = text.split_once("://").map_or(text, |(_, place)| place);
    match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
        _ => !place.is_empty(),
    }
}

/// `key=value,key=value` (a value has no comma), or a JSON object.
fn kafka_pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text.trim_start().starts_with('{') {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| format!("is not a JSON object of settings: {error}"))?;
        return object
            .into_iter()
            .map(|(key, value)| match value {
                serde_json::Value::String(text) => Ok((key, text)),
                serde_json::Value::Number(number) => Ok((key, number.to_string())),
                serde_json::Value::Bool(flag) => Ok((key, flag.to_string())),
                _ => Err(format!("has no plain value for {key}")),
            })
            .collect();
    }
    let mut pairs = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        // Not shown: it may be a piece of a password that holds a comma.
        let Some((key, value)) = pair.split_once('=') else {
            return Err(
                "must be key=value,key=value or a JSON object (which can hold commas)".into(),
            );
        };
        pairs.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    Ok(pairs)
}

fn topics(layers: &Layers) -> Result<Topics, Problem> {
    let Some(found) = layers.text(&settings::TOPIC_PREFIX) else {
        return Ok(Topics::new("bunny"));
    };
    let prefix = &found.text;
    // Kafka's own rule for topic names; short, so that names stay readable.
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    if prefix.len() > 40 || prefix.starts_with('.') || !prefix.chars().all(allowed) {
        return Err(found.wrong(format!(
            "must be 1 to 40 letters, digits, \".\", \"_\" and \"-\", not \"{prefix}\""
        )));
    }
    Ok(Topics::new(prefix.clone()))
}

fn lease_ttl(layers: &Layers) -> Result<Duration, Problem> {
    let Some(found) = layers.text(&settings::LEASE_TTL_SECONDS) else {
        return Ok(Duration::from_secs(10));
    };
    let rule = "must be a number of seconds from 1 to 300";
    let seconds: u64 = found.parse(rule)?;
    if !(1..=300).contains(&seconds) {
        return Err(found.wrong(format!("{rule}, not {seconds}")));
    }
    Ok(Duration::from_secs(seconds))
}

fn memory_bytes(layers: &Layers) -> Result<usize, Problem> {
    const MIB: usize = 1 << 20;
    let Some(found) = layers.text(&settings::MEMORY_BUDGET) else {
        return Ok(128 * MIB);
    };
    let rule = "must be a number of MiB from 32 to 65536";
    let mebibytes: usize = found.parse(rule)?;
    if !(32..=65_536).contains(&mebibytes) {
        return Err(found.wrong(format!("{rule}, not {mebibytes}")));
    }
    Ok(mebibytes * MIB)
}

fn audit_days(layers: &Layers) -> Result<u32, Problem> {
    let Some(found) = layers.text(&settings::AUDIT_DAYS) else {
        return Ok(bunny_catalog::AUDIT_DAYS);
    };
    let rule = "must be a number of days from 1 to 36500";
    let days: u32 = found.parse(rule)?;
    if !(1..=36_500).contains(&days) {
        return Err(found.wrong(format!("{rule}, not {days}")));
    }
    Ok(days)
}

fn jwt_secret(layers: &Layers) -> Result<Option<SecretString>, Problem> {
    match layers.text(&settings::JWT_SECRET) {
        Some(found) if found.text.len() < JWT_SECRET_BYTES_MIN => Err(found.wrong(format!(
            "must have at least {JWT_SECRET_BYTES_MIN} bytes; left out, a secret is generated"
        ))),
        found => Ok(found.map(|found| SecretString::from(found.text))),
    }
}

fn address(layers: &Layers, setting: &'static Setting) -> Result<Option<SocketAddr>, Problem> {
    match layers.text(setting) {
        None => Ok(None),
        Some(found) => found
            .parse("must be address:port, as 0.0.0.0:8112")
            .map(Some),
    }
}

#[cfg(test)]
mod tests;
