//! Checks of how mappings and mirrors lie to each other: a table is fed from one place only, and no
//! change comes back to where it came from.

use std::collections::{BTreeMap, BTreeSet};

use bunny_postgres::TableName;

use super::Findings;
use super::facts::{Facts, Place};
use crate::mirrors::request::CreateRequest;

/// A table in a certain database of a certain server.
type Node = (Place, TableName);

/// One table mapping of a mirror that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) mirror: String,
    pub(crate) source: (Place, TableName),
    pub(crate) destination: (Place, TableName),
}

/// No table appears twice in a request, on either side.
pub(super) fn no_table_twice(request: &CreateRequest, findings: &mut Findings) {
    let mut sources: BTreeSet<&TableName> = BTreeSet::new();
    let mut destinations: BTreeMap<&TableName, &TableName> = BTreeMap::new();
    for mapping in &request.tables {
        if !sources.insert(&mapping.source) {
            findings.refuse(
                "table_twice",
                format!(
                    "source table {} is mapped twice; map it once",
                    mapping.source
                ),
            );
            continue;
        }
        if let Some(other) = destinations.insert(&mapping.destination, &mapping.source) {
            findings.refuse(
                "two_sources_into_one",
                format!(
                    "{other} and {} are both mapped to {}; give each its own destination_table",
                    mapping.source, mapping.destination
                ),
            );
        }
    }
}

/// Against the mirrors that exist: no second mirror into one table, and no way from a destination
/// back to its source. Gives the mappings that lead where they must not, by their place.
pub(super) fn check(
    request: &CreateRequest,
    facts: &Facts,
    others: &[Edge],
    findings: &mut Findings,
) -> BTreeSet<usize> {
    let mut astray = BTreeSet::new();
    let from = &facts.source.server.place;
    let to = &facts.destination.server.place;
    let mut ways: BTreeMap<Node, Vec<(Node, &str)>> = BTreeMap::new();
    for edge in others {
        ways.entry(edge.source.clone())
            .or_default()
            .push((edge.destination.clone(), &edge.mirror));
    }
    for mapping in &request.tables {
        ways.entry((from.clone(), mapping.source.clone()))
            .or_default()
            .push(((to.clone(), mapping.destination.clone()), &request.name));
    }
    for (index, mapping) in request.tables.iter().enumerate() {
        let source: Node = (from.clone(), mapping.source.clone());
        let destination: Node = (to.clone(), mapping.destination.clone());
        if let Some(edge) = others.iter().find(|edge| edge.destination == destination) {
            astray.insert(index);
            findings.conflict(
                "two_mirrors_into_one",
                format!(
                    "mirror '{}' already writes into {} on destination peer '{}'; give another destination_table or delete that mirror",
                    edge.mirror, mapping.destination, facts.destination.server.peer
                ),
            );
        }
        if source == destination {
            astray.insert(index);
            findings.refuse(
                "loop",
                format!(
                    "{} is mapped to itself: source and destination are the same database; give another destination",
                    mapping.source
                ),
            );
            continue;
        }
        if let Some(mirrors) = way_back(&ways, &destination, &source) {
            astray.insert(index);
            findings.conflict(
                "loop",
                format!(
                    "{} would receive its own changes back: it is fed by {} from {}; leave the table out, or delete the mirror that leads back",
                    mapping.source,
                    quoted_list(&mirrors),
                    mapping.destination
                ),
            );
        }
    }
    astray
}

/// The mirrors on a way from one table to another, if there is a way.
fn way_back<'a>(
    ways: &BTreeMap<Node, Vec<(Node, &'a str)>>,
    from: &Node,
    to: &Node,
) -> Option<Vec<&'a str>> {
    let mut seen: BTreeSet<&Node> = BTreeSet::from([from]);
    let mut open: Vec<(&Node, Vec<&'a str>)> = vec![(from, Vec::new())];
    while let Some((node, mirrors)) = open.pop() {
        for (next, mirror) in ways.get(node).map(Vec::as_slice).unwrap_or_default() {
            let mut path = mirrors.clone();
            if path.last() != Some(mirror) {
                path.push(*mirror);
            }
            if next == to {
                return Some(path);
            }
            if seen.insert(next) {
                open.push((next, path));
            }
        }
    }
    None
}

fn quoted_list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    let mirrors = if quoted.len() == 1 {
        "mirror"
    } else {
        "mirrors"
    };
    format!("{mirrors} {}", quoted.join(", "))
}
