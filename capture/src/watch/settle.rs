//! What a look found becomes a record of the log, in the stream's order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bunny_catalog::{LogLevel, Mirror, MirrorTable};
use bunny_postgres::introspect::Look;
use bunny_postgres::{Lsn, TableName};
use bunny_schemas::control::TableRecord;
use serde_json::json;
use tokio::sync::oneshot;

use super::facts::{Judged, TableFacts};
use super::{Links, Pending, Watch};
use crate::error::{Error, Result};
use crate::publisher::Expected;
use crate::run::Run;

/// What a look found that the log must hold, with the line to answer on once it does.
#[derive(Debug)]
pub(crate) struct Finding {
    /// It happened before this: once the stream has passed it, all that was captured well
    /// is in the log.
    pub(crate) at: Lsn,
    /// Tables that must not go on, and why.
    pub(crate) gaps: Vec<(TableName, String)>,
    /// What is known from now on; None forgets the table.
    pub(crate) records: Vec<(TableName, Option<TableRecord>)>,
    /// The tables whose changes are captured from now on.
    pub(crate) expected: HashMap<TableName, Expected>,
    pub(crate) done: oneshot::Sender<()>,
}

impl Watch {
    /// Gives the stream what the log must hold, and waits until it does.
    pub(super) async fn settle(
        &mut self,
        run: &Run,
        look: &Look,
        judged: Vec<(&MirrorTable, Judged)>,
        pending: &Pending,
        held_back: &BTreeSet<TableName>,
        links: &Links<'_>,
    ) -> Result<()> {
        let mirror = &run.mirror;
        let mut known = BTreeMap::new();
        let mut gaps = Vec::new();
        let mut records = Vec::new();
        for (table, mut judged) in judged {
            let name = &table.source;
            let before = self.known.get(name);
            // What is not decided is found again by the next look.
            if let Some(before) = before.filter(|_| held_back.contains(name)) {
                judged.facts.marks = before.marks.clone();
            }
            if before.is_none_or(|before| !before.same(&judged.facts)) {
                records.push((name.clone(), Some(record(mirror, name, &judged.facts))));
            }
            if let Some(reason) = judged.gap.filter(|_| !pending.contains(name)) {
                gaps.push((name.clone(), reason));
            }
            known.insert(name.clone(), judged.facts);
        }
        let forgotten = self.known.keys().filter(|name| !known.contains_key(*name));
        records.extend(forgotten.map(|name| (name.clone(), None)));
        if records.is_empty() && gaps.is_empty() {
            self.known = known;
            return Ok(());
        }
        for (name, reason) in &gaps {
            run.context.reporter.log(
                LogLevel::Error,
                format!("changes of table {name} may be missing: {reason}"),
                json!({"table": name.to_string(), "lsn": look.lsn.to_string()}),
            );
        }
        let (done, settled) = oneshot::channel();
        let finding = Finding {
            at: look.lsn,
            gaps,
            records,
            expected: known
                .iter()
                .map(|(name, facts)| {
                    let expected = Expected {
                        oid: facts.oid,
                        exclusion: facts.exclusion.clone(),
                        record: Some(record(mirror, name, facts)),
                    };
                    (name.clone(), expected)
                })
                .collect(),
            done,
        };
        let gone = || Error::transient("the main stream has ended");
        let sent = links.findings.send(finding).await;
        sent.map_err(|_| gone())?;
        let (settled, moved) = self.meanwhile(run, links.source, settled).await?;
        settled.map_err(|_| gone())?;
        self.taken = self.taken.take().or(moved);
        self.known = known;
        self.knew_nothing = false;
        Ok(())
    }
}

pub(super) fn record(mirror: &Mirror, table: &TableName, facts: &TableFacts) -> TableRecord {
    TableRecord {
        generation: mirror.generation,
        table: table.clone(),
        facts: facts.json(),
    }
}
