//! What is set at the destinations, for those who write to them.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

/// Settings that are not left at their defaults.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Settings {
    /// synchronous_commit at the destinations, of everyone. By default a subscription has it off,
    /// and a mirror what its database says, which is on.
    #[arg(long, value_enum)]
    synchronous_commit: Option<SynchronousCommit>,
    /// How subscriptions take large transactions that are not committed yet; by default in parallel.
    #[arg(long, value_enum)]
    streaming: Option<Streaming>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SynchronousCommit {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Streaming {
    Off,
    On,
    Parallel,
}

impl SynchronousCommit {
    fn as_sql(self) -> &'static str {
        match self {
            SynchronousCommit::On => "on",
            SynchronousCommit::Off => "off",
        }
    }
}

impl Streaming {
    fn as_sql(self) -> &'static str {
        match self {
            Streaming::Off => "off",
            Streaming::On => "on",
            Streaming::Parallel => "parallel",
        }
    }
}

impl Settings {
    /// To be run for a destination's database, whose quoted name is given.
    pub fn of_database(self, database: &str) -> Option<String> {
        let setting = self.synchronous_commit?.as_sql();
        Some(format!(
            "ALTER DATABASE {database} SET synchronous_commit = {setting}"
        ))
    }

    /// The end of a CREATE SUBSCRIPTION, whose worker does not ask the database.
    pub fn of_subscription(self) -> String {
        let synchronous_commit = self
            .synchronous_commit
            .map(|setting| format!("synchronous_commit = {}", setting.as_sql()));
        let streaming = self
            .streaming
            .map(|setting| format!("streaming = {}", setting.as_sql()));
        let options: Vec<String> = synchronous_commit.into_iter().chain(streaming).collect();
        if options.is_empty() {
            return String::new();
        }
        format!("WITH ({})", options.join(", "))
    }

    /// What a report says of them.
    pub fn conditions(self) -> BTreeMap<String, String> {
        let default = "everyone's default";
        let synchronous_commit = self.synchronous_commit.map(SynchronousCommit::as_sql);
        let streaming = self.streaming.map(Streaming::as_sql);
        BTreeMap::from([
            (
                "synchronous_commit at the destinations".to_owned(),
                synchronous_commit.unwrap_or(default).to_owned(),
            ),
            (
                "streaming of subscriptions".to_owned(),
                streaming.unwrap_or("the server's default").to_owned(),
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_set() {
        let mut settings = Settings::default();
        assert_eq!(settings.of_database("\"d\""), None);
        assert_eq!(settings.of_subscription(), "");
        settings.streaming = Some(Streaming::Off);
        assert_eq!(settings.of_database("\"d\""), None);
        assert_eq!(settings.of_subscription(), "WITH (streaming = off)");
        settings.synchronous_commit = Some(SynchronousCommit::On);
        assert_eq!(
            settings.of_database("\"d\"").as_deref(),
            Some("ALTER DATABASE \"d\" SET synchronous_commit = on")
        );
        assert_eq!(
            settings.of_subscription(),
            "WITH (synchronous_commit = on, streaming = off)"
        );
    }
}
