use std::path::Path;

use super::*;

type Pairs = &'static [(&'static str, &'static str)];

fn lookup(pairs: Pairs) -> impl Fn(&str) -> Option<String> {
    move |name| {
        pairs
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    }
}

fn layers(flags: Pairs, environment: Pairs, file: &str) -> Layers {
    Layers::new(lookup(flags), lookup(environment))
        .with_file(Path::new("bunny.toml"), file)
        .unwrap()
}

fn file_problem(text: &str) -> String {
    Layers::default()
        .with_file(Path::new("bunny.toml"), text)
        .unwrap_err()
        .to_string()
}

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = "listen = \"127.0.0.1:1\"";
    let environment: Pairs = &[("BUNNY_LISTEN", "127.0.0.1:2")];
    let flags: Pairs = &[("listen", "127.0.0.1:3")];
    let port = |layers: &Layers| api(layers).unwrap().listen.port();
    assert_eq!(port(&layers(&[], &[], "")), 8112);
    assert_eq!(port(&layers(&[], &[], file)), 1);
    assert_eq!(port(&layers(&[], environment, file)), 2);
    assert_eq!(port(&layers(flags, environment, file)), 3);
}

#[test]
fn a_schema_registry_is_asked_only_where_one_is_set() {
    use bunny_schemas::registry::Authority;
    const URL: &str = "BUNNY_SCHEMA_REGISTRY_URL";
    const USER: &str = "BUNNY_SCHEMA_REGISTRY_USER";
    const PASSWORD: &str = "BUNNY_SCHEMA_REGISTRY_PASSWORD";
    const TOKEN: &str = "BUNNY_SCHEMA_REGISTRY_TOKEN";
    const HTTP: (&str, &str) = (URL, "http://registry:8081/apis/ccompat/v7");
    let of = |environment: Pairs| schema_registry::schema_ids(&layers(&[], environment, ""));
    assert!(matches!(of(&[]), Ok(Authority::Topic)));
    assert!(matches!(
        of(&[(URL, "built-in")]),
        Ok(Authority::TopicAgain)
    ));
    let good: [Pairs; 3] = [
        &[HTTP],
        &[HTTP, (USER, "u"), (PASSWORD, "geheim")],
        &[HTTP, (TOKEN, "geheim")],
    ];
    for environment in good {
        let found = of(environment).unwrap();
        assert!(matches!(found, Authority::Server(_)), "{found:?}");
        assert!(!format!("{found:?}").contains("geheim"));
    }
    let wrong: [(Pairs, &str); 7] = [
        (&[(URL, "registry:8081")], URL),
        (&[(URL, "http://u:geheim@registry")], URL),
        (&[(TOKEN, "geheim")], TOKEN),
        (&[(URL, "built-in"), (TOKEN, "geheim")], TOKEN),
        (&[HTTP, (USER, "u")], USER),
        (&[HTTP, (PASSWORD, "geheim")], PASSWORD),
        (
            &[HTTP, (USER, "u"), (PASSWORD, "geheim"), (TOKEN, "geheim")],
            USER,
        ),
    ];
    for (environment, named) in wrong {
        let problem = of(environment).map(|_| ()).unwrap_err().to_string();
        assert!(problem.contains(named), "{problem}");
        assert!(!problem.contains("geheim"), "{problem}");
    }
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let layers = layers(&[], &[("BUNNY_LISTEN", "")], "listen = \"127.0.0.1:1\"");
    assert_eq!(api(&layers).unwrap().listen.port(), 1);
}

#[test]
fn all_that_is_missing_is_said_in_one_line() {
    let problem = common(&layers(&[], &[], "")).unwrap_err().to_string();
    for name in [
        "BUNNY_CATALOG_URL",
        "BUNNY_ENCRYPTION_KEY",
        "BUNNY_KAFKA_BROKERS",
    ] {
        assert!(problem.contains(name), "{problem}");
    }
    assert!(!problem.contains('\n'));
}

#[test]
fn a_wrong_value_is_named_where_it_was_written() {
    let in_file = api(&layers(&[], &[], "listen = 8112")).unwrap_err();
    assert!(
        in_file
            .to_string()
            .starts_with("listen in bunny.toml must be")
    );
    let in_environment = api(&layers(&[], &[("BUNNY_LISTEN", "nowhere")], "")).unwrap_err();
    assert!(
        in_environment
            .to_string()
            .starts_with("BUNNY_LISTEN must be")
    );
    let as_flag = api(&layers(&[("listen", "nowhere")], &[], "")).unwrap_err();
    assert!(as_flag.to_string().starts_with("--listen must be"));
}

#[test]
fn a_wrong_secret_is_not_shown() {
    let wrong: Pairs = &[
        ("BUNNY_ENCRYPTION_KEY", "hunter2"),
        ("BUNNY_CATALOG_URL", "mysql://u:hunter2@h/d"),
        ("BUNNY_KAFKA_BROKERS", "k:9092"),
        ("BUNNY_KAFKA_CONFIG", "sasl.password=ab,hunter2"),
    ];
    let problem = common(&layers(&[], wrong, "")).unwrap_err().to_string();
    assert!(problem.contains("BUNNY_KAFKA_CONFIG"), "{problem}");
    assert!(!problem.contains("hunter2"), "{problem}");
    let short = api(&layers(&[], &[("BUNNY_JWT_SECRET", "hunter2")], "")).unwrap_err();
    assert!(!short.to_string().contains("hunter2"));
    assert!(!file_problem("jwt_secret = hunter2").contains("hunter2"));
}

#[test]
fn an_unknown_key_of_the_file_is_refused_by_name() {
    assert!(file_problem("lisen = \"x\"").contains("\"lisen\""));
    assert!(file_problem("listen = [1]").contains("listen"));
    assert!(file_problem("a = \"b\"\nx =").contains("line 2"));
}

#[test]
fn kafka_settings_come_from_all_layers_key_by_key() {
    let file = r#"
        catalog_url = "postgres://c/d"
        kafka_brokers = "k:9092"
        encryption_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
        [kafka]
        security.protocol = "SASL_SSL"
        "sasl.username" = "file"
        linger.ms = 5
    "#;
    let environment: Pairs = &[(
        "BUNNY_KAFKA_CONFIG",
        "sasl.username=env, sasl.password = p=q ,",
    )];
    let flags: Pairs = &[("kafka_config", r#"{"linger.ms": 7, "ssl.ca.pem": "a,b"}"#)];
    let kafka = common(&layers(flags, environment, file)).unwrap().kafka;
    let expected = [
        ("linger.ms", "7"),
        ("sasl.password", "p=q"),
        ("sasl.username", "env"),
        ("security.protocol", "SASL_SSL"),
        ("ssl.ca.pem", "a,b"),
    ];
    let found: Vec<(&str, &str)> = kafka
        .overrides()
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(kafka.brokers(), "k:9092");
}

#[test]
fn the_catalog_is_a_url_or_its_parts_by_strength() {
    let is_url = |layers: &Layers| matches!(catalog(layers), Ok(Location::Url(_)));
    let parts: Pairs = &[("BUNNY_CATALOG_HOST", "h"), ("BUNNY_CATALOG_PORT", "6000")];
    match catalog(&layers(&[], parts, "catalog_url = \"postgres://c/d\"")).unwrap() {
        Location::Parts {
            host,
            port,
            user,
            database,
            ..
        } => {
            assert_eq!((host.as_str(), port), ("h", 6000));
            assert_eq!((user.as_str(), database.as_str()), ("bunny", "bunny"));
        }
        Location::Url(_) => panic!("the environment is stronger than the file"),
    }
    let url: Pairs = &[("BUNNY_CATALOG_URL", "postgres://c/d")];
    assert!(is_url(&layers(&[], url, "catalog_host = \"h\"")));
    let both: Pairs = &[
        ("BUNNY_CATALOG_URL", "postgres://c/d"),
        ("BUNNY_CATALOG_HOST", "h"),
    ];
    let problem = catalog(&layers(&[], both, "")).unwrap_err().to_string();
    assert!(problem.contains("leave one out"), "{problem}");
}

#[test]
fn numbers_and_prefixes_are_checked() {
    for (variable, value) in [
        ("BUNNY_LEASE_TTL_SECONDS", "0"),
        ("BUNNY_LEASE_TTL_SECONDS", "ten"),
        ("BUNNY_MEMORY_BUDGET", "31"),
        ("BUNNY_MEMORY_BUDGET", "128MB"),
        ("BUNNY_AUDIT_DAYS", "0"),
        ("BUNNY_TOPIC_PREFIX", "a b"),
        ("BUNNY_METRICS_LISTEN", "9100"),
    ] {
        let layers = Layers::new(
            |_| None,
            |name| match name {
                "BUNNY_CATALOG_URL" => Some("postgres://c/d".into()),
                "BUNNY_KAFKA_BROKERS" => Some("k:9092".into()),
                "BUNNY_ENCRYPTION_KEY" => Some(KEY.into()),
                name if name == variable => Some(value.into()),
                _ => None,
            },
        );
        let problem = common(&layers).unwrap_err().to_string();
        assert!(problem.starts_with(variable), "{problem}");
    }
}

#[test]
fn flags_variables_and_keys_are_the_same_name() {
    for setting in SETTINGS {
        assert_eq!(setting.flag.replace('-', "_"), setting.key);
        assert_eq!(
            setting.variable,
            format!("BUNNY_{}", setting.key.to_uppercase())
        );
    }
}

#[test]
fn log_settings() {
    let json: Pairs = &[("BUNNY_LOG_FORMAT", "json"), ("BUNNY_LOG", "debug")];
    let found = logging(&layers(&[], json, "")).unwrap();
    assert_eq!(
        (found.format, found.filter.as_str()),
        (LogFormat::Json, "debug")
    );
    let wrong: Pairs = &[("BUNNY_LOG_FORMAT", "xml")];
    let problem = logging(&layers(&[], wrong, "")).unwrap_err().to_string();
    assert!(problem.contains("text or json"), "{problem}");
}

#[test]
fn the_example_file_holds_every_setting_and_is_valid() {
    let example = include_str!("../../bunny.example.toml");
    let uncommented: String = example
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|line| line.contains(" = "))
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    // Copied as it is, it must not work with a key that everybody knows.
    assert!(common(&layers(&[], &[], &uncommented)).is_err());
    let with_key = uncommented.replace("key = \"...\"", &format!("key = \"{KEY}\""));
    let layers = layers(&[], &[], &with_key);
    for setting in SETTINGS {
        // The file has a table for these, parts instead of a URL, and a password instead of a token.
        if ["kafka_config", "catalog_url", "schema_registry_token"].contains(&setting.key) {
            continue;
        }
        assert!(layers.text(setting).is_some(), "{}", setting.key);
    }
    common(&layers).unwrap();
    api(&layers).unwrap();
    logging(&layers).unwrap();
    assert_eq!(common(&layers).unwrap().kafka.overrides().len(), 4);
}

#[test]
fn brokers_are_hosts_with_ports() {
    for good in [
        "kafka",
        "kafka:9092",
        "SASL_SSL://kafka:9092",
        "[::1]:9092",
        "a:1, b:2",
    ] {
        assert!(good.split(',').all(is_broker), "{good}");
    }
    for bad in [
        "",
        "kafka:",
        ":9092",
        "kafka:0",
        "kafka:99999",
        "kafka:port",
        "a:1,",
        "SSL://",
    ] {
        assert!(!bad.split(',').all(is_broker), "{bad}");
    }
}
