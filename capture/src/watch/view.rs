//! What people are told of the tables: in the report, and in the mirror's log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bunny_catalog::{LogLevel, MirrorTable};
use bunny_postgres::TableName;
use bunny_postgres::introspect::Look;
use serde_json::json;
use tokio::sync::watch;

use super::Watch;
use super::facts::Judged;
use super::membership::strangers;
use crate::run::Run;

/// How often a table's drift is put into the log at most.
const DRIFT_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What the report shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) insert_only: Vec<TableName>,
    pub(crate) messages: Vec<String>,
}

impl Watch {
    /// What the report shows, and what goes into the mirror's log: each thing once, drift
    /// now and then.
    pub(super) fn show(
        &mut self,
        run: &Run,
        look: &Look,
        judged: &[(&MirrorTable, Judged)],
        view: &watch::Sender<View>,
    ) {
        let mirror = &run.mirror;
        let mut now = View {
            insert_only: Vec::new(),
            messages: Vec::new(),
        };
        for (table, judged) in judged {
            if judged.insert_only {
                now.insert_only.push(table.source.clone());
            }
            now.messages.extend(judged.problem.clone());
            now.messages.extend(judged.facts.standing.clone());
            now.messages.extend(judged.waiting.clone());
            let Some(drift) = judged.facts.drift.as_ref() else {
                continue;
            };
            let Some(said) = drift.said() else { continue };
            let message = format!("table {} is insert-only: {said}", table.source);
            let before = self.known.get(&table.source);
            let rose = before.and_then(|before| before.drift.as_ref()) != Some(drift);
            let logged = self.drift_logged.get(&table.source);
            if rose && logged.is_none_or(|at| at.elapsed() >= DRIFT_LOGGED_EVERY) {
                self.drift_logged
                    .insert(table.source.clone(), Instant::now());
                let details = json!({"table": table.source.to_string(), "updates": drift.updates, "deletes": drift.deletes});
                run.context
                    .reporter
                    .log(LogLevel::Warn, message.clone(), details);
            }
            now.messages.push(message);
        }
        if !mirror.publication_given {
            now.messages.extend(strangers(mirror, &self.known, look));
        }
        let problems = judged
            .iter()
            .filter_map(|(_, judged)| judged.problem.clone());
        let problems: BTreeSet<String> = problems.collect();
        for problem in problems.difference(&self.said) {
            run.context
                .reporter
                .log(LogLevel::Warn, problem.clone(), json!({}));
        }
        self.said = problems;
        view.send_if_modified(|view| {
            let changed = *view != now;
            *view = now;
            changed
        });
    }
}
