//! Every setting, once.

/// A setting: `catalog_url` in the file, `BUNNY_CATALOG_URL` in the
/// environment, `--catalog-url` as a flag.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The key in the file, from which the other two follow.
    pub(crate) key: &'static str,
    /// Its variable.
    pub(crate) variable: &'static str,
    /// Its flag, without the dashes.
    pub(crate) flag: &'static str,
    /// What a value looks like.
    pub(crate) value: &'static str,
    /// What it is for.
    pub(crate) help: &'static str,
    /// With which others it is shown, and to whom.
    pub(crate) group: Group,
}

/// Settings that are needed for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Reaching the catalog, and reading what is sealed in it.
    Catalog,
    /// Changing the key.
    NewKey,
    /// Reaching Kafka, and names there.
    Kafka,
    /// The schema registry outside.
    SchemaRegistry,
    /// The REST API.
    Api,
    /// Mirrors as they are worked on.
    Work,
    /// What Prometheus asks for.
    Metrics,
    /// The process's log.
    Log,
}

impl Group {
    /// What `--help` writes over them.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Group::Catalog | Group::NewKey => "Catalog",
            Group::Kafka => "Kafka",
            Group::SchemaRegistry => "Schema registry",
            Group::Api => "REST API",
            Group::Work => "Work",
            Group::Metrics | Group::Log => "Log and metrics",
        }
    }
}

macro_rules! settings {
    ($($name:ident: $group:ident, $key:literal, $variable:literal, $flag:literal, $value:literal, $help:literal;)*) => {
        $(
            pub(crate) static $name: Setting = Setting {
                key: $key,
                variable: $variable,
                flag: $flag,
                value: $value,
                help: $help,
                group: Group::$group,
            };
        )*
        /// All of them, in the order in which `--help` shows them.
        pub(crate) static SETTINGS: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    CATALOG_URL: Catalog, "catalog_url", "BUNNY_CATALOG_URL", "catalog-url", "URL", "The catalog database, postgres://user:password@host:port/database";
    CATALOG_HOST: Catalog, "catalog_host", "BUNNY_CATALOG_HOST", "catalog-host", "HOST", "Its host, instead of a URL";
    CATALOG_PORT: Catalog, "catalog_port", "BUNNY_CATALOG_PORT", "catalog-port", "PORT", "Its port [default: 5432]";
    CATALOG_USER: Catalog, "catalog_user", "BUNNY_CATALOG_USER", "catalog-user", "USER", "Its user [default: bunny]";
    CATALOG_PASSWORD: Catalog, "catalog_password", "BUNNY_CATALOG_PASSWORD", "catalog-password", "PASSWORD", "Its password";
    CATALOG_DATABASE: Catalog, "catalog_database", "BUNNY_CATALOG_DATABASE", "catalog-database", "DATABASE", "Its database [default: bunny]";
    ENCRYPTION_KEY: Catalog, "encryption_key", "BUNNY_ENCRYPTION_KEY", "encryption-key", "KEY", "Seals secrets in the catalog; made by \"bunny keygen\"";
    NEW_ENCRYPTION_KEY: NewKey, "new_encryption_key", "BUNNY_NEW_ENCRYPTION_KEY", "new-encryption-key", "KEY", "For \"bunny rotate-key\": the key that takes its place";
    AUDIT_DAYS: Catalog, "audit_days", "BUNNY_AUDIT_DAYS", "audit-days", "DAYS", "So long the catalog keeps who did what [default: 400]";
    KAFKA_BROKERS: Kafka, "kafka_brokers", "BUNNY_KAFKA_BROKERS", "kafka-brokers", "HOST:PORT,...", "Kafka's brokers";
    KAFKA_CONFIG: Kafka, "kafka_config", "BUNNY_KAFKA_CONFIG", "kafka-config", "KEY=VALUE,...", "librdkafka settings, also as a JSON object; in the file a table [kafka]";
    TOPIC_PREFIX: Kafka, "topic_prefix", "BUNNY_TOPIC_PREFIX", "topic-prefix", "PREFIX", "Begins the names of topics, slots and publications [default: bunny]";
    SCHEMA_REGISTRY_URL: SchemaRegistry, "schema_registry_url", "BUNNY_SCHEMA_REGISTRY_URL", "schema-registry-url", "URL", "A Confluent-compatible schema registry that gives schema ids, or \"built-in\" after one that is gone [default: Bunny gives them itself]";
    SCHEMA_REGISTRY_USER: SchemaRegistry, "schema_registry_user", "BUNNY_SCHEMA_REGISTRY_USER", "schema-registry-user", "USER", "Its user";
    SCHEMA_REGISTRY_PASSWORD: SchemaRegistry, "schema_registry_password", "BUNNY_SCHEMA_REGISTRY_PASSWORD", "schema-registry-password", "PASSWORD", "Its password";
    SCHEMA_REGISTRY_TOKEN: SchemaRegistry, "schema_registry_token", "BUNNY_SCHEMA_REGISTRY_TOKEN", "schema-registry-token", "TOKEN", "Its bearer token, instead of user and password";
    LISTEN: Api, "listen", "BUNNY_LISTEN", "listen", "ADDRESS:PORT", "Where the REST API listens [default: 0.0.0.0:8112]";
    METRICS_LISTEN: Metrics, "metrics_listen", "BUNNY_METRICS_LISTEN", "metrics-listen", "ADDRESS:PORT", "Where Prometheus metrics are served [default: nowhere]";
    JWT_SECRET: Api, "jwt_secret", "BUNNY_JWT_SECRET", "jwt-secret", "SECRET", "Signs tokens [default: generated into the catalog]";
    ADMIN_USER: Api, "admin_user", "BUNNY_ADMIN_USER", "admin-user", "NAME", "The first administrator [default: admin]";
    ADMIN_PASSWORD: Api, "admin_password", "BUNNY_ADMIN_PASSWORD", "admin-password", "PASSWORD", "The first administrator's password [default: generated and printed once]";
    LEASE_TTL_SECONDS: Work, "lease_ttl_seconds", "BUNNY_LEASE_TTL_SECONDS", "lease-ttl-seconds", "SECONDS", "After so long without a sign of life a worker's mirrors go to others [default: 10]";
    MEMORY_BUDGET: Work, "memory_budget", "BUNNY_MEMORY_BUDGET", "memory-budget", "MIB", "What the rows on their way through a role may take, about, in MiB [default: 128]";
    LOG: Log, "log", "BUNNY_LOG", "log", "FILTER", "What is logged, as \"info\" or \"info,bunny_capture=debug\"";
    LOG_FORMAT: Log, "log_format", "BUNNY_LOG_FORMAT", "log-format", "FORMAT", "How log lines look: text or json [default: text]";
}
