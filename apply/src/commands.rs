//! Ends the commands that wait for tables: a changed list of tables, a resync, a replay.
//!
//! Nothing waits for a command: the table states decide, and this says what came of them.
//! It is asked again and again, and by every run, so a crash leaves nothing undone.

use bunny_catalog::{AwaitedTable, Command, Mirror, SYNC_SCHEMA};

use crate::bookkeeping::{State, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::Result;
use crate::schema_sync;

/// The commands that wait for tables.
const KINDS: [&str; 4] = [
    bunny_catalog::TABLES,
    bunny_catalog::RESYNC,
    bunny_catalog::REPLAY,
    SYNC_SCHEMA,
];

/// Whether a command waits for something that is wanted `now` and was not when the run with
/// `known` began. Pure.
fn is_newer(awaited: &[AwaitedTable], known: &Mirror, now: &Mirror) -> bool {
    let wants = |mirror: &Mirror, awaited: &AwaitedTable| {
        let mut tables = mirror.tables.iter();
        tables.any(|table| {
            table.source == awaited.table && table.wanted_request() == awaited.request_id
        })
    };
    let is_new = |awaited: &AwaitedTable| wants(now, awaited) && !wants(known, awaited);
    awaited.iter().any(is_new)
}

/// What a command has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Open,
    Done,
    Failed(String),
}

/// The open commands of a run. Whatever opens another one starts the run anew.
pub(crate) struct Commands {
    open: Vec<(Command, Vec<AwaitedTable>)>,
}

impl Commands {
    pub(crate) async fn open(run: &MirrorRun) -> Result<Commands> {
        let commands = run.catalog.open_commands(run.mirror_id()).await?;
        // After them: a command of which this run knows nothing is the next one's.
        let now = run.catalog.get_mirror(&run.mirror.name).await?;
        let open = commands
            .into_iter()
            .filter(|command| KINDS.contains(&&*command.kind))
            .map(|command| {
                let awaited = AwaitedTable::of(&command);
                (command, awaited)
            })
            .filter(|(_, awaited)| !is_newer(awaited, &run.mirror, &now));
        Ok(Commands {
            open: open.collect(),
        })
    }

    /// Ends those whose tables have settled.
    pub(crate) async fn settle(&mut self, run: &MirrorRun, tables: &[TableState]) -> Result<()> {
        let mut still_open = Vec::new();
        for (command, awaited) in self.open.drain(..) {
            if command.kind == SYNC_SCHEMA {
                let is_open = run.catalog.get_command(command.id).await?.state.is_open();
                if is_open && !schema_sync::finish(run, &command).await? {
                    still_open.push((command, awaited));
                }
                continue;
            }
            let end = end(&awaited, tables);
            if end != End::Open {
                reached(crash_points::TABLES_SETTLED);
            }
            match end {
                End::Open => still_open.push((command, awaited)),
                End::Done => run.catalog.finish_command(command.id).await?,
                End::Failed(why) => run.catalog.fail_command(command.id, &why).await?,
            }
        }
        self.open = still_open;
        Ok(())
    }
}

/// What the states of the tables make of a command that waits for `awaited`. A table that
/// is gone, or of which another sync is wanted by now, is not waited for. Pure.
fn end(awaited: &[AwaitedTable], tables: &[TableState]) -> End {
    let mut failures = Vec::new();
    for awaited in awaited {
        let found = tables
            .iter()
            .find(|table| table.source == awaited.table && table.request_id == awaited.request_id);
        match found {
            None => {}
            Some(table) if table.state == State::Live => {}
            Some(table) if table.state == State::Errored => failures.push(format!(
                "table {}: {}",
                table.source,
                table.error.as_deref().unwrap_or("no reason is known")
            )),
            Some(_) => return End::Open,
        }
    }
    if failures.is_empty() {
        End::Done
    } else {
        End::Failed(failures.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::TableName;
    use uuid::Uuid;

    use super::*;

    fn table(name: &str, request: u128, state: State) -> TableState {
        let name = TableName::new("public", name);
        TableState {
            state,
            ..TableState::wanted(name.clone(), name, Some(Uuid::from_u128(request)))
        }
    }

    fn awaited(name: &str, request: u128) -> AwaitedTable {
        AwaitedTable {
            table: TableName::new("public", name),
            request_id: Some(Uuid::from_u128(request)),
        }
    }

    #[test]
    fn a_command_ends_when_its_tables_have_settled() {
        let waits = [awaited("a", 1), awaited("b", 2)];
        let live = table("a", 1, State::Live);
        let with = |state| end(&waits, &[live.clone(), table("b", 2, state)]);
        for state in [
            State::Pending,
            State::Syncing,
            State::CatchingUp,
            State::Parked,
        ] {
            assert_eq!(with(state), End::Open);
        }
        assert_eq!(with(State::Live), End::Done);
        assert!(matches!(with(State::Errored), End::Failed(why) if why.contains("public.b")));
    }

    #[test]
    fn what_is_wanted_no_more_is_not_waited_for() {
        let replaced = table("a", 9, State::Syncing);
        assert_eq!(end(&[awaited("a", 1)], &[replaced]), End::Done);
        assert_eq!(end(&[awaited("a", 1)], &[]), End::Done);
    }
}
