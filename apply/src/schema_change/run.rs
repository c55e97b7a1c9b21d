//! Runs alterations inside the open transaction, each attempt under a savepoint.

use bunny_postgres::TableName;
use tokio_postgres::Client;

use super::Word;
use super::plan::{Alteration, Otherwise};
use crate::error::Error;

/// Why the alterations could not be run.
pub(crate) enum Failed {
    /// The destination accepted no attempt of one that the table cannot do without.
    Refused(String),
    Other(Error),
}

impl Failed {
    /// As the error of `table`.
    pub(crate) fn of(self, table: &TableName) -> Error {
        match self {
            Failed::Refused(reason) => Error::Table {
                table: table.clone(),
                reason,
                restart_offset: None,
            },
            Failed::Other(error) => error,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Other(error)
    }
}

/// Runs them in order, and tells which statements succeeded and what else is to be said.
pub(crate) async fn alterations(
    client: &Client,
    alterations: &[Alteration],
) -> Result<Vec<Word>, Failed> {
    let mut words = Vec::new();
    for alteration in alterations {
        let mut refused = None;
        let mut is_done = false;
        for attempt in &alteration.attempts {
            let Some(error) = try_one(client, &attempt.sql).await? else {
                words.push(Word::Ran(attempt.sql.clone()));
                words.extend(attempt.notice.clone().map(Word::Notice));
                is_done = true;
                break;
            };
            // What came first says most about the cause.
            refused.get_or_insert(error);
        }
        if is_done {
            continue;
        }
        let cause = refused
            .map(|error| format!(" ({error})"))
            .unwrap_or_default();
        match &alteration.otherwise {
            Otherwise::Refuse(reason) => return Err(Failed::Refused(format!("{reason}{cause}"))),
            Otherwise::Say(notice) => words.push(Word::Notice(format!("{notice}{cause}"))),
        }
    }
    Ok(words)
}

/// None: it succeeded. Otherwise the destination's refusal, after which the transaction is
/// as before.
async fn try_one(client: &Client, sql: &str) -> Result<Option<Error>, Failed> {
    client
        .batch_execute("SAVEPOINT alteration")
        .await
        .map_err(Error::sql("altering a destination table"))?;
    let ran = client
        .batch_execute(sql)
        .await
        .map_err(Error::sql(format!("running {sql}")));
    let end = match &ran {
        Ok(()) => "RELEASE SAVEPOINT alteration",
        Err(_) => "ROLLBACK TO SAVEPOINT alteration; RELEASE SAVEPOINT alteration",
    };
    if let Err(error) = &ran
        && error.is_transient()
    {
        return ran.map(|()| None).map_err(Failed::Other);
    }
    client
        .batch_execute(end)
        .await
        .map_err(Error::sql("altering a destination table"))?;
    Ok(ran.err())
}
