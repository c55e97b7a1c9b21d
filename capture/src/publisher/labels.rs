//! The labels of an enum that a version knows, to notice when a row brings another.

use std::collections::HashSet;

use bunny_schemas::envelope::ColumnFacts;
use foldhash::fast::RandomState;

/// Labels of one column's type.
pub(super) struct Labels(HashSet<Vec<u8>, RandomState>);

impl Labels {
    /// Of a column whose type is made of an enum.
    pub(super) fn of(facts: Option<&ColumnFacts>) -> Option<Labels> {
        let labels = facts?.labels.as_ref()?;
        Some(Labels(
            labels
                .labels
                .iter()
                .map(|label| label.label.clone().into_bytes())
                .collect(),
        ))
    }

    /// Whether a value (a label, or the text of an array of them) holds nothing unknown.
    pub(super) fn know(&self, text: &[u8]) -> bool {
        if self.0.contains(text) {
            return true;
        }
        // A label may look like an array; one that is known was met above.
        let is_array = matches!(text.first(), Some(b'{' | b'['));
        is_array && elements(text).all(|element| self.0.contains(&element))
    }
}

/// The elements of an array's text that are not NULL, whatever its dimensions. An element
/// that holds structure is quoted, with `"` and `\` behind a backslash (PostgreSQL manual,
/// "Array Input and Output Syntax").
fn elements(text: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    // Lower bounds that are not 1 stand in front: `[0:1]={a,b}`.
    let start = text.iter().position(|&byte| byte == b'{');
    let mut rest = &text[start.unwrap_or(text.len())..];
    std::iter::from_fn(move || {
        loop {
            let (&first, after) = rest.split_first()?;
            match first {
                b'{' | b'}' | b',' => rest = after,
                b'"' => {
                    let (element, after) = quoted(after);
                    rest = after;
                    return Some(element);
                }
                _ => {
                    let end = rest.iter().position(|byte| matches!(byte, b',' | b'}'));
                    let (element, after) = rest.split_at(end.unwrap_or(rest.len()));
                    rest = after;
                    if element != b"NULL" {
                        return Some(element.to_vec());
                    }
                }
            }
        }
    })
}

fn quoted(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut element = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => return (element, &text[at..]),
            b'\\' => {
                element.extend(text.get(at));
                at += 1;
            }
            _ => element.push(byte),
        }
    }
    (element, &[])
}

#[cfg(test)]
mod tests {
    use bunny_schemas::envelope::{EnumLabels, Label};

    use super::*;

    fn labels(labels: &[&str]) -> Labels {
        let labels = labels.iter().map(|&label| Label {
            oid: 1,
            label: label.to_owned(),
        });
        let facts = ColumnFacts {
            labels: Some(EnumLabels {
                schema: "public".into(),
                name: "mood".into(),
                labels: labels.collect(),
            }),
            ..ColumnFacts::default()
        };
        Labels::of(Some(&facts)).unwrap()
    }

    #[test]
    fn labels_are_met_alone_and_in_arrays() {
        let moods = labels(&["sad", "so so", "a\"b\\c", "{odd}"]);
        let known = [
            "sad",
            "so so",
            "{odd}",
            "{}",
            "{sad}",
            "{sad,NULL,\"so so\"}",
            "{{sad,sad},{\"a\\\"b\\\\c\",\"{odd}\"}}",
            "[0:1]={sad,sad}",
        ];
        for text in known {
            assert!(moods.know(text.as_bytes()), "{text}");
        }
        let unknown = ["glad", "", "{glad}", "{sad,glad}", "{\"so\"}", "[0:0]={x}"];
        for text in unknown {
            assert!(!moods.know(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn broken_text_is_answered() {
        let moods = labels(&["sad"]);
        for text in ["{", "{\"", "{\"\\", "[", "{sad"] {
            let _ = moods.know(text.as_bytes());
        }
    }
}
