//! The command line.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{Group, Layers, Problem, SETTINGS, Setting};
use crate::tail;

/// What the process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// The source side.
    Capture,
    /// The destination side.
    Apply,
    /// The REST API.
    Api,
    /// All three in one process.
    Up,
    /// Make or update the catalog's schema.
    Migrate,
    /// Print a new encryption key.
    Keygen,
    /// Seal the catalog's secrets with another key.
    RotateKey,
    /// Set another key in place of one that is lost, and give up what that one sealed.
    LoseKey,
    /// Print a mirror's events as they come.
    Tail,
}

const TASKS: [(&str, Task, &str); 8] = [
    (
        "capture",
        Task::Capture,
        "Read sources and write their changes to Kafka",
    ),
    (
        "apply",
        Task::Apply,
        "Read changes from Kafka and write them to destinations",
    ),
    ("api", Task::Api, "Serve the REST API"),
    (
        "up",
        Task::Up,
        "Capture, apply and api in one process, for small installations",
    ),
    (
        "migrate",
        Task::Migrate,
        "Make or update the catalog's schema (api and up do so by themselves)",
    ),
    ("keygen", Task::Keygen, "Print a new BUNNY_ENCRYPTION_KEY"),
    (
        "rotate-key",
        Task::RotateKey,
        "Seal the catalog's secrets with BUNNY_NEW_ENCRYPTION_KEY, which every process is then started with",
    ),
    (
        "tail",
        Task::Tail,
        "Print a mirror's events as they come; needs Kafka only",
    ),
];

/// The flag that makes a change of the key one that gives secrets up.
const LOST: &str = "lost";

const PLACES: &str = "Every option can also be a variable or a key of bunny.toml: --catalog-url is \
BUNNY_CATALOG_URL and catalog_url. A flag wins over a variable, a variable over the file. \
Secrets belong in variables or the file: other users of the machine can read flags.\n\n\
Exit codes: 0 stopped as asked, 1 failed, 2 a setting is missing or wrong.";

/// The command line's shape.
pub(crate) fn command() -> Command {
    let mut command = Command::new("bunny")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Replicates Postgres to Postgres through Kafka, exactly once")
        .after_help(PLACES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(config_file());
    for setting in SETTINGS {
        command = command.arg(flag(setting));
    }
    for (name, task, about) in TASKS {
        let mut subcommand = Command::new(name).about(about);
        match task {
            Task::Keygen => subcommand = subcommand.arg(config_file().hide(true)),
            _ => subcommand = subcommand.after_help(PLACES),
        }
        match task {
            Task::Tail => subcommand = tail::arguments(subcommand),
            Task::RotateKey => subcommand = subcommand.arg(lost()),
            _ => {}
        }
        // All flags are taken everywhere, so that they may stand before the task: what it does
        // not look at is only not shown.
        for setting in SETTINGS.iter().filter(|setting| !uses(task, setting)) {
            subcommand = subcommand.arg(flag(setting).hide(true));
        }
        command = command.subcommand(subcommand);
    }
    command
}

fn config_file() -> Arg {
    Arg::new("config")
        .long("config")
        .global(true)
        .value_name("FILE")
        .help("Settings file, also BUNNY_CONFIG [default: ./bunny.toml if it is there]")
}

fn flag(setting: &'static Setting) -> Arg {
    Arg::new(setting.key)
        .long(setting.flag)
        .global(true)
        .action(ArgAction::Set)
        .value_name(setting.value)
        .help(setting.help)
        .help_heading(setting.group.heading())
}

fn lost() -> Arg {
    Arg::new(LOST).long(LOST).action(ArgAction::SetTrue).help(
        "The present key is lost: set the new one without it, and give up what it sealed. \
         The peers' passwords have to be given again",
    )
}

/// Whether a task looks at a setting.
fn uses(task: Task, setting: &Setting) -> bool {
    let is_role = matches!(task, Task::Capture | Task::Apply | Task::Api | Task::Up);
    match setting.group {
        Group::Catalog => !matches!(task, Task::Keygen | Task::Tail),
        Group::NewKey => matches!(task, Task::RotateKey | Task::LoseKey),
        Group::Kafka => is_role || task == Task::Tail,
        Group::SchemaRegistry => matches!(task, Task::Capture | Task::Up),
        Group::Api => matches!(task, Task::Api | Task::Up),
        Group::Work => is_role && task != Task::Api,
        Group::Metrics => is_role,
        Group::Log => task != Task::Keygen,
    }
}

/// The task that was asked for and the matches that hold its flags.
pub(crate) fn task(matches: &ArgMatches) -> Option<(Task, &ArgMatches)> {
    let (name, matches) = matches.subcommand()?;
    let (_, task, _) = TASKS.iter().find(|(known, _, _)| *known == name)?;
    if *task == Task::RotateKey && matches.get_flag(LOST) {
        return Some((Task::LoseKey, matches));
    }
    Some((*task, matches))
}

/// Reads flags, environment and file.
pub(crate) fn layers(matches: &ArgMatches) -> Result<Layers, Problem> {
    let variable = |name: &str| std::env::var(name).ok();
    let layers = Layers::new(|key| matches.get_one::<String>(key).cloned(), variable);
    let named = matches
        .get_one::<String>("config")
        .cloned()
        .or_else(|| variable("BUNNY_CONFIG").filter(|name| !name.is_empty()));
    let path = PathBuf::from(named.as_deref().unwrap_or("bunny.toml"));
    match std::fs::read_to_string(&path) {
        Ok(text) => layers.with_file(&path, &text),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(layers),
        Err(error) => Err(Problem::new(format!(
            "the settings file {} cannot be read: {error}",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_task() {
        for line in [
            ["bunny", "--listen", "1.1.1.1:1", "api"],
            ["bunny", "api", "--listen", "1.1.1.1:1"],
        ] {
            let matches = command().try_get_matches_from(line).unwrap();
            let (found, matches) = task(&matches).unwrap();
            assert_eq!(found, Task::Api);
            assert_eq!(matches.get_one::<String>("listen").unwrap(), "1.1.1.1:1");
        }
    }

    #[test]
    fn help_shows_what_a_task_looks_at() {
        let help = |name: &str| {
            let mut all = command();
            all.build();
            let task = all.find_subcommand_mut(name).unwrap();
            task.render_help().to_string()
        };
        for (name, shown, hidden) in [
            ("tail", "--kafka-brokers", "--catalog-url"),
            ("migrate", "--catalog-url", "--kafka-brokers"),
            ("keygen", "-h, --help", "--log"),
            ("rotate-key", "--new-encryption-key", "--listen"),
            ("capture", "--schema-registry-url", "--admin-user"),
            ("apply", "--memory-budget", "--schema-registry-url"),
            ("api", "--listen", "--memory-budget"),
            ("up", "--listen", "--new-encryption-key"),
        ] {
            let text = help(name);
            let shows = |flag| text.lines().any(|line| line.contains(&format!("  {flag}")));
            assert!(shows(shown), "{name}: {text}");
            assert!(!shows(hidden), "{name}: {text}");
        }
        let tail = help("tail");
        assert!(
            tail.find("--table") < tail.find("--kafka-brokers"),
            "{tail}"
        );
    }

    #[test]
    fn a_lost_key_has_to_be_said() {
        for (line, expected) in [
            (vec!["bunny", "rotate-key"], Task::RotateKey),
            (vec!["bunny", "rotate-key", "--lost"], Task::LoseKey),
        ] {
            let matches = command().try_get_matches_from(line).unwrap();
            assert_eq!(task(&matches).unwrap().0, expected);
        }
    }

    #[test]
    fn every_task_has_its_name() {
        for (name, expected, _) in TASKS {
            let mirror = (expected == Task::Tail).then_some("shop");
            let line = ["bunny", name].into_iter().chain(mirror);
            let matches = command().try_get_matches_from(line).unwrap();
            assert_eq!(task(&matches).unwrap().0, expected);
        }
    }
}
