//! Which events of the stream are written, and where. Fixed for a reader and its writer:
//! whatever changes a route ends them, and the next ones read it anew.

use std::collections::HashMap;

use bunny_postgres::{Lsn, TableName};
use serde_json::Value;

use crate::bookkeeping::TableState;

/// Where the changes of one table in main go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: TableName,
    /// L: what committed before is in the table already.
    pub lsn: Lsn,
    /// What stands before this offset of the change topic is in the table already.
    pub from_offset: i64,
    /// Of the source's table when it was synced; empty if unknown, none, or DEFERRABLE.
    pub primary_key: Vec<String>,
    /// A sync has created or checked the destination table.
    pub is_synced: bool,
}

impl Route {
    /// Whether an event of the table is to be applied.
    pub fn applies(&self, commit_lsn: Lsn, offset: i64) -> bool {
        commit_lsn >= self.lsn && offset >= self.from_offset
    }
}

/// The tables that one reader serves, by source name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(HashMap<TableName, Route>);

impl Routes {
    /// Main's: the tables in it.
    pub fn of(tables: &[TableState]) -> Routes {
        let in_main = tables.iter().filter(|table| table.in_main);
        Routes(
            in_main
                .map(|table| (table.source.clone(), route(table, 0)))
                .collect(),
        )
    }

    /// A catch-up reader's: these tables, each from its own offset on.
    pub fn behind<'a>(tables: impl IntoIterator<Item = &'a TableState>) -> Routes {
        let from = |table: &TableState| table.restart_offset.unwrap_or_default();
        Routes(
            tables
                .into_iter()
                .map(|table| (table.source.clone(), route(table, from(table))))
                .collect(),
        )
    }

    /// None: the table's changes are not written here.
    pub fn get(&self, source: &TableName) -> Option<&Route> {
        self.0.get(source)
    }

    /// Whether the event at `offset` that committed at `commit_lsn` is to be applied.
    pub fn applies(&self, source: &TableName, commit_lsn: Lsn, offset: i64) -> bool {
        self.get(source)
            .is_some_and(|route| route.applies(commit_lsn, offset))
    }

    pub fn source_of(&self, destination: &TableName) -> Option<&TableName> {
        let mut routes = self.0.iter();
        routes
            .find(|(_, route)| route.destination == *destination)
            .map(|(source, _)| source)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TableName, &Route)> {
        self.0.iter()
    }
}

fn route(table: &TableState, from_offset: i64) -> Route {
    let primary_key = table
        .definition
        .as_ref()
        .filter(|definition| definition.get("key_is_deferrable") != Some(&Value::Bool(true)))
        .and_then(|definition| definition.get("primary_key"))
        .and_then(|names| serde_json::from_value(names.clone()).ok())
        .unwrap_or_default();
    Route {
        destination: table.destination.clone(),
        lsn: table.lsn.unwrap_or_default(),
        from_offset,
        primary_key,
        is_synced: table.definition.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bookkeeping::State;

    fn name(name: &str) -> TableName {
        TableName {
            schema: "public".into(),
            name: name.into(),
        }
    }

    fn table(source: &str, in_main: bool) -> TableState {
        TableState {
            state: State::Live,
            lsn: Some(Lsn(100)),
            in_main,
            definition: Some(serde_json::json!({"primary_key": ["id"]})),
            ..TableState::wanted(name(source), name("copy"), None)
        }
    }

    #[test]
    fn only_tables_in_main_and_only_from_their_sync_on() {
        let routes = Routes::of(&[table("a", true), table("b", false)]);
        assert!(routes.applies(&name("a"), Lsn(100), 0));
        assert!(!routes.applies(&name("a"), Lsn(99), 0));
        assert!(!routes.applies(&name("b"), Lsn(200), 0));
        assert!(!routes.applies(&name("unmapped"), Lsn(200), 0));
        assert_eq!(routes.get(&name("a")).unwrap().primary_key, ["id"]);
        assert_eq!(routes.source_of(&name("copy")), Some(&name("a")));
    }

    #[test]
    fn a_deferrable_key_names_no_row() {
        let mut deferred = table("a", true);
        deferred.definition =
            Some(serde_json::json!({"primary_key": ["id"], "key_is_deferrable": true}));
        let routes = Routes::of(&[deferred]);
        assert!(routes.get(&name("a")).unwrap().primary_key.is_empty());
    }

    #[test]
    fn a_table_behind_begins_at_its_own_offset() {
        let behind = TableState {
            restart_offset: Some(7),
            ..table("a", false)
        };
        let routes = Routes::behind([&behind]);
        assert!(routes.applies(&name("a"), Lsn(100), 7));
        assert!(!routes.applies(&name("a"), Lsn(100), 6));
        assert!(!routes.applies(&name("a"), Lsn(99), 7));
    }
}
