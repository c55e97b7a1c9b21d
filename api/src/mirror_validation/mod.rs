//! Everything that can be known to be wrong with a mirror before anything of it is created.
//!
//! [`facts`] asks the two servers, read-only; the checks ([`source`], [`destination`], [`topology`])
//! are pure and look at facts and wishes only. Each check gives a cause and a cure, all of them run,
//! and the caller sees every problem at once.

mod destination;
pub(crate) mod facts;
mod numeric_scale;
mod source;
mod topology;

use axum::http::StatusCode;

use crate::mirrors::request::CreateRequest;
use crate::refusal::Refusal;
pub(crate) use facts::{Facts, SourceFacts};
pub(crate) use topology::Edge;

/// One thing that stands in a mirror's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The check that found it, for tests and logs.
    pub(crate) check: &'static str,
    /// Whether it conflicts with another mirror (409), rather than with a peer or a table (422).
    pub(crate) conflict: bool,
    /// Cause and cure, a sentence or two.
    pub(crate) message: String,
}

/// What the checks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    /// What does not stand in the way but should be known.
    pub(crate) warnings: Vec<String>,
}

impl Findings {
    pub(crate) fn refuse(&mut self, check: &'static str, message: impl Into<String>) {
        self.problems.push(Problem {
            check,
            conflict: false,
            message: message.into(),
        });
    }

    fn conflict(&mut self, check: &'static str, message: impl Into<String>) {
        self.problems.push(Problem {
            check,
            conflict: true,
            message: message.into(),
        });
    }

    fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(message.into());
    }

    /// The refusal, if there is any problem: 409 when only other mirrors stand in the way, else 422.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        if self.problems.is_empty() {
            return None;
        }
        let status = if self.problems.iter().all(|problem| problem.conflict) {
            StatusCode::CONFLICT
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        };
        let messages: Vec<&str> = self
            .problems
            .iter()
            .map(|problem| problem.message.as_str())
            .collect();
        Some(Refusal::new(status, messages.join("; ")))
    }
}

/// The checks that need no server: what the request says of itself.
pub(crate) fn check_request(request: &CreateRequest) -> Findings {
    let mut findings = Findings::default();
    topology::no_table_twice(request, &mut findings);
    findings
}

/// The checks of each table alone at the source, in the order of the request.
pub(crate) fn check_tables(request: &CreateRequest, source: &SourceFacts) -> Vec<Findings> {
    source::check_tables(request, source)
}

/// No root together with one of its partitions, over all tables of a mirror.
pub(crate) fn check_partitions(source: &facts::SourceFacts, findings: &mut Findings) {
    source::partitions(source, findings);
}

/// Every check that needs the servers. `others` are the mappings of the mirrors that exist.
pub(crate) fn check(request: &CreateRequest, facts: &Facts, others: &[Edge]) -> Findings {
    let mut findings = Findings::default();
    let mut ways = Findings::default();
    let astray = topology::check(request, facts, others, &mut ways);
    source::check(request, &facts.source, &mut findings);
    // Of a table that must not be written, no cure is given that would write to it.
    destination::check(request, facts, &astray, &mut findings);
    findings.problems.extend(ways.problems);
    findings
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
