//! The three places a setting may come from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::file::{self, File};
use super::settings::{SETTINGS, Setting};

/// What is missing or wrong, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem(String);

impl Problem {
    pub(crate) fn new(text: impl Into<String>) -> Problem {
        Problem(crate::exit::one_line(&text.into()))
    }

    pub(crate) fn missing(setting: &Setting, more: &str) -> Problem {
        Problem::new(format!(
            "{} is not set (nor --{}, nor {} in bunny.toml){more}",
            setting.variable, setting.flag, setting.key
        ))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Several problems, still in one line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// The value, or nothing and one problem more.
    pub(crate) fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(problem) => {
                self.0.push(problem);
                None
            }
        }
    }

    pub(crate) fn append(&mut self, other: Problems) {
        self.0.extend(other.0);
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<&str> = self.0.iter().map(|problem| problem.0.as_str()).collect();
        f.write_str(&texts.join("; "))
    }
}

/// From the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    File,
    Environment,
    Flag,
}

/// A value as the user wrote it, and where.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) text: String,
    pub(crate) layer: Layer,
    /// `--listen`, `BUNNY_LISTEN`, or `listen in bunny.toml`.
    pub(crate) place: String,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may be a password.
        write!(f, "Found({})", self.place)
    }
}

impl Found {
    /// A problem with this value; the caller decides whether to show it.
    pub(crate) fn wrong(&self, why: String) -> Problem {
        Problem::new(format!("{} {why}", self.place))
    }

    /// The value of another type, or a problem that states `rule`.
    pub(crate) fn parse<T: FromStr>(&self, rule: &str) -> Result<T, Problem> {
        self.text
            .trim()
            .parse()
            .map_err(|_| self.wrong(format!("{rule}, not \"{}\"", self.text)))
    }
}

/// Flags, environment and file, each already read.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    flags: BTreeMap<&'static str, String>,
    environment: BTreeMap<&'static str, String>,
    file: File,
    file_name: String,
}

impl Layers {
    /// `flag` and `variable` give a setting's value in these layers. A variable
    /// that is set to nothing counts as not set: that is how compose files and
    /// shells leave one out.
    pub(crate) fn new(
        flag: impl Fn(&str) -> Option<String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Layers {
        let mut layers = Layers::default();
        for setting in SETTINGS {
            if let Some(text) = flag(setting.key) {
                layers.flags.insert(setting.key, text);
            }
            if let Some(text) = variable(setting.variable).filter(|text| !text.is_empty()) {
                layers.environment.insert(setting.key, text);
            }
        }
        layers
    }

    /// Reads the file, whose text is given by `read`.
    pub(crate) fn with_file(mut self, path: &Path, text: &str) -> Result<Layers, Problem> {
        self.file_name = path.display().to_string();
        self.file = file::parse(text, &self.file_name)?;
        Ok(self)
    }

    /// The strongest value there is.
    pub(crate) fn text(&self, setting: &'static Setting) -> Option<Found> {
        self.texts_lowest_first(setting).pop()
    }

    /// Every value there is, the strongest last.
    pub(crate) fn texts_lowest_first(&self, setting: &'static Setting) -> Vec<Found> {
        let places = [
            (
                Layer::File,
                self.file.values.get(setting.key),
                format!("{} in {}", setting.key, self.file_name),
            ),
            (
                Layer::Environment,
                self.environment.get(setting.key),
                setting.variable.to_owned(),
            ),
            (
                Layer::Flag,
                self.flags.get(setting.key),
                format!("--{}", setting.flag),
            ),
        ];
        places
            .into_iter()
            .filter_map(|(layer, text, place)| {
                Some(Found {
                    text: text?.clone(),
                    layer,
                    place,
                })
            })
            .collect()
    }

    /// The file's table `[kafka]`.
    pub(crate) fn file_kafka(&self) -> &BTreeMap<String, String> {
        &self.file.kafka
    }
}
