//! How the process ends when it does not end well.

use std::fmt;

use crate::config::{Problem, Problems};

/// A reason to end, said in one line on stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A setting is missing or wrong: code 2.
    Setting(String),
    /// Anything else: code 1.
    Failed(String),
}

impl Exit {
    /// The process's exit code.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Exit::Setting(_) => 2,
            Exit::Failed(_) => 1,
        }
    }

    pub(crate) fn setting(text: impl fmt::Display) -> Exit {
        Exit::Setting(one_line(&text.to_string()))
    }

    pub(crate) fn failed(text: impl fmt::Display) -> Exit {
        Exit::Failed(text.to_string())
    }
}

/// Whatever a library or a server had to say. Pure.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Exit::Setting(text) | Exit::Failed(text)) = self;
        f.write_str(text)
    }
}

impl From<Problem> for Exit {
    fn from(problem: Problem) -> Self {
        Exit::setting(problem)
    }
}

impl From<Problems> for Exit {
    fn from(problems: Problems) -> Self {
        Exit::setting(problems)
    }
}
