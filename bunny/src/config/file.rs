//! `bunny.toml`: the settings by their keys, and a table `[kafka]` of librdkafka
//! settings. An unknown key is refused by name.

use std::collections::BTreeMap;

use toml::Value;

use super::layers::Problem;
use super::settings::SETTINGS;

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct File {
    /// By setting key.
    pub(crate) values: BTreeMap<String, String>,
    /// librdkafka settings.
    pub(crate) kafka: BTreeMap<String, String>,
}

/// Parses a file; `name` is for messages.
pub(crate) fn parse(text: &str, name: &str) -> Result<File, Problem> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| not_toml(text, name, &error))?;
    let mut file = File::default();
    for (key, value) in table {
        if key == "kafka" {
            let Value::Table(settings) = value else {
                return Err(Problem::new(format!("kafka in {name} must be a table")));
            };
            flatten("", settings, &mut file.kafka, name)?;
            continue;
        }
        if !SETTINGS.iter().any(|setting| setting.key == key) {
            return Err(Problem::new(format!("{name} has an unknown key \"{key}\"")));
        }
        let Some(text) = plain(&value) else {
            return Err(Problem::new(format!(
                "{key} in {name} must be a plain value, not a {}",
                value.type_str()
            )));
        };
        file.values.insert(key, text);
    }
    Ok(file)
}

/// The parser's own message quotes the line, which may hold a password.
fn not_toml(text: &str, name: &str, error: &toml::de::Error) -> Problem {
    let start = error.span().map_or(0, |span| span.start);
    let line = text
        .bytes()
        .take(start)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1;
    Problem::new(format!(
        "{name} is not valid TOML: line {line}: {}",
        error.message()
    ))
}

/// `security.protocol = "SSL"` without quotes is a table in a table to TOML, and
/// one librdkafka setting to everybody else.
fn flatten(
    prefix: &str,
    table: toml::Table,
    settings: &mut BTreeMap<String, String>,
    name: &str,
) -> Result<(), Problem> {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => flatten(&format!("{key}."), inner, settings, name)?,
            value => {
                let Some(text) = plain(&value) else {
                    return Err(Problem::new(format!(
                        "{key} in the table [kafka] of {name} must be a plain value"
                    )));
                };
                settings.insert(key, text);
            }
        }
    }
    Ok(())
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}
