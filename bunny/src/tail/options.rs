//! What `bunny tail` is asked for.

use std::fmt;

use bunny_postgres::Lsn;
use bunny_schemas::follow::{Event, Start};
use chrono::{DateTime, Utc};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::exit::Exit;

/// How many events are shown first, as `tail` does with lines.
const LAST_DEFAULT: usize = 10;

/// How events look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A line for people; long values are cut.
    Text,
    /// A JSON object a line, whole.
    Json,
}

/// A table as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableFilter {
    /// Any schema when none is given.
    schema: Option<String>,
    table: String,
}

impl TableFilter {
    /// Split at the first dot. Pure.
    fn read(text: &str) -> TableFilter {
        match text.split_once('.') {
            Some((schema, table)) => TableFilter {
                schema: Some(schema.to_owned()),
                table: table.to_owned(),
            },
            None => TableFilter {
                schema: None,
                table: text.to_owned(),
            },
        }
    }

    /// Schema, if given, and table.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.schema
            .as_deref()
            .into_iter()
            .chain(std::iter::once(self.table.as_str()))
    }

    fn is(&self, schema: &str, table: &str) -> bool {
        self.schema.as_deref().is_none_or(|own| own == schema) && self.table == table
    }
}

impl fmt::Display for TableFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names().collect();
        f.write_str(&names.join("."))
    }
}

/// What to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Name or slug of the mirror.
    pub(crate) mirror: String,
    /// Where to begin.
    pub(crate) start: Start,
    /// Only these, or all if empty.
    pub(crate) tables: Vec<TableFilter>,
    /// How events look.
    pub(crate) format: Format,
    /// Whether to wait for more at the end.
    pub(crate) follow: bool,
}

/// The arguments of `bunny tail`.
pub(crate) fn arguments(command: Command) -> Command {
    command
        .arg(
            Arg::new("mirror")
                .required(true)
                .value_name("MIRROR")
                .help("Name of the mirror, or of its topics: <slug>, <prefix>.<slug> or <prefix>.<slug>.changes"),
        )
        .arg(
            Arg::new("from")
                .long("from")
                .value_name("PLACE")
                .conflicts_with("last")
                .help(
                    "Where to begin: earliest, latest, an LSN (0/1A2B3C4), an offset (1234), a time \
                     (2026-01-24T10:30:00Z) or an age (90s, 15m, 2h, 1d)",
                ),
        )
        .arg(
            Arg::new("last")
                .long("last")
                .short('n')
                .value_name("EVENTS")
                .value_parser(clap::value_parser!(usize))
                .help("Begin with the last so many events [default: 10, without --from]"),
        )
        .arg(
            Arg::new("table")
                .long("table")
                .value_name("SCHEMA.TABLE")
                .action(ArgAction::Append)
                .help("Only events of this table, by its name at the source; may be repeated"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("One JSON object a line, values whole"),
        )
        .arg(
            Arg::new("no-follow")
                .long("no-follow")
                .action(ArgAction::SetTrue)
                .help("Stop at the end instead of waiting for more"),
        )
}

impl Options {
    /// Reads the arguments.
    pub(crate) fn read(matches: &ArgMatches) -> Result<Options, Exit> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let mirror = text("mirror").ok_or_else(|| Exit::setting("which mirror?"))?;
        let last = matches.get_one::<usize>("last").copied();
        let start = match (text("from"), last) {
            (Some(place), _) => read_start(&place, Utc::now()).map_err(Exit::setting)?,
            (None, last) => Start::Last(last.unwrap_or(LAST_DEFAULT)),
        };
        let tables = matches.get_many::<String>("table").into_iter().flatten();
        Ok(Options {
            mirror,
            start,
            tables: tables.map(|table| TableFilter::read(table)).collect(),
            format: if matches.get_flag("json") {
                Format::Json
            } else {
                Format::Text
            },
            follow: !matches.get_flag("no-follow"),
        })
    }

    /// Whether an event is to be shown. A new history concerns every table.
    pub(crate) fn wants(&self, event: &Event<'_>) -> bool {
        if self.tables.is_empty() {
            return true;
        }
        let is_wanted =
            |schema: &str, table: &str| self.tables.iter().any(|wanted| wanted.is(schema, table));
        match event {
            Event::Generation(_) => true,
            Event::Gap(gap) => is_wanted(gap.source.schema, gap.source.table),
            Event::Change(change, _) => match &change.truncate {
                Some(truncate) => truncate
                    .tables
                    .iter()
                    .any(|table| is_wanted(&table.schema, &table.name)),
                None => is_wanted(change.source.schema, change.source.table),
            },
        }
    }
}

/// Reads `--from`. Pure.
fn read_start(place: &str, now: DateTime<Utc>) -> Result<Start, String> {
    match place {
        "earliest" => return Ok(Start::Earliest),
        "latest" => return Ok(Start::Latest),
        _ => {}
    }
    if let Ok(offset) = place.parse::<i64>()
        && offset >= 0
    {
        return Ok(Start::Offset(offset));
    }
    if let Ok(lsn) = place.parse::<Lsn>() {
        return Ok(Start::Lsn(lsn));
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(place) {
        return Ok(Start::Time(time.timestamp_micros()));
    }
    if let Some(seconds) = age_seconds(place) {
        return Ok(Start::Time(
            now.timestamp_micros()
                .saturating_sub(seconds.saturating_mul(1_000_000)),
        ));
    }
    Err(format!(
        "--from must be earliest, latest, an LSN such as 0/1A2B3C4, an offset, a time such as \
         2026-01-24T10:30:00Z or an age such as 15m, not \"{place}\""
    ))
}

/// `90s`, `15m`, `2h`, `1d` in seconds.
fn age_seconds(text: &str) -> Option<i64> {
    let (last, _) = text.char_indices().last()?;
    let (number, unit) = text.split_at(last);
    let unit_seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(i64::from(number) * unit_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let read = |place: &str| read_start(place, now);
        assert_eq!(read("earliest"), Ok(Start::Earliest));
        assert_eq!(read("latest"), Ok(Start::Latest));
        assert_eq!(read("16/B374D848"), Ok(Start::Lsn(Lsn(0x16_B374_D848))));
        assert_eq!(read("1234"), Ok(Start::Offset(1234)));
        assert_eq!(
            read("1970-01-01T01:00:01.5+01:00"),
            Ok(Start::Time(1_500_000))
        );
        assert_eq!(read("15m"), Ok(Start::Time((1_000_000 - 900) * 1_000_000)));
        assert_eq!(
            read("1d"),
            Ok(Start::Time((1_000_000 - 86_400) * 1_000_000))
        );
        for wrong in ["", "-1", "yesterday", "m", "15 m", "-5m", "0x/1", "é"] {
            let problem = read(wrong).unwrap_err();
            assert!(problem.contains("--from"), "{problem}");
        }
    }

    #[test]
    fn tables_with_and_without_a_schema() {
        let named = TableFilter::read("public.users");
        assert!(named.is("public", "users") && !named.is("other", "users"));
        let any = TableFilter::read("users");
        assert!(any.is("public", "users") && any.is("other", "users"));
        assert!(!any.is("public", "user"));
        assert!(TableFilter::read("s.a.b").is("s", "a.b"));
    }
}
