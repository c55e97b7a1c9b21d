//! The bookkeeping of ids, without Kafka.

use proptest::prelude::*;

use super::state::{State, parse};
use crate::tail::Record;

fn wanted(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(subject, schema)| ((*subject).to_owned(), (*schema).to_owned()))
        .collect()
}

/// Gives ids as an allocator does.
fn allocate(state: &mut State, pairs: &[(String, String)]) -> Vec<u32> {
    for record in state.missing(pairs, 1).unwrap() {
        state.insert(record).unwrap();
    }
    state.ids(pairs).unwrap()
}

#[test]
fn ids_count_up_over_all_subjects_and_versions_per_subject() {
    let mut state = State::default();
    let first = wanted(&[("a", "1"), ("b", "1"), ("a", "2"), ("a", "1")]);
    assert_eq!(state.ids(&first), None);
    assert_eq!(allocate(&mut state, &first), [1, 2, 3, 1]);
    assert_eq!(
        allocate(&mut state, &wanted(&[("b", "2"), ("b", "1")])),
        [4, 2]
    );
    assert_eq!(state.subjects(), ["a", "b"]);
    let versions: Vec<(u32, u32)> = state
        .versions("a")
        .into_iter()
        .map(|(version, id, _)| (version, id))
        .collect();
    assert_eq!(versions, [(1, 1), (2, 3)]);
    assert_eq!(state.schema(3).as_deref(), Some("2"));
    assert_eq!(state.subject_version(4), Some(("b".into(), 2)));
    assert!(state.versions("c").is_empty());
    assert_eq!(state.schema(9), None);
}

#[test]
fn a_new_topic_counts_from_where_it_is_told() {
    let mut state = State::default();
    let first = state
        .missing(&wanted(&[("a", "1"), ("b", "1")]), 700)
        .unwrap();
    assert_eq!(
        first.iter().map(|record| record.id).collect::<Vec<_>>(),
        [700, 701]
    );
    for record in first {
        state.insert(record).unwrap();
    }
    // Once it holds any, its own are followed, whatever another would begin with.
    let next = state.missing(&wanted(&[("c", "1")]), 5).unwrap();
    assert_eq!(next[0].id, 702);
}

#[test]
fn an_id_with_two_meanings_is_refused() {
    let mut state = State::default();
    let record = state.missing(&wanted(&[("a", "1")]), 1).unwrap().remove(0);
    state.insert(record.clone()).unwrap();
    state.insert(record.clone()).unwrap();
    let mut other = record;
    other.schema = "2".into();
    assert!(!state.insert(other).unwrap_err().is_transient());
}

#[test]
fn damaged_records_are_refused() {
    let record = |key: &'static [u8], value: &'static [u8]| Record {
        offset: 3,
        timestamp_ms: None,
        key: Some(key),
        value: Some(value),
    };
    let good = br#"{"subject":"a","version":1,"schema":"\"string\""}"#;
    assert_eq!(
        &*parse("t", &record(b"7", good)).unwrap().schema,
        "\"string\""
    );
    assert!(parse("t", &record(b"x", good)).is_err());
    assert!(parse("t", &record(b"7", b"{}")).is_err());
    assert!(
        parse(
            "t",
            &Record {
                offset: 3,
                timestamp_ms: None,
                key: None,
                value: None
            }
        )
        .is_err()
    );
}

proptest! {
    #[test]
    fn records_read_back(pairs in prop::collection::vec(("[ab]", ".{0,9}"), 1..9)) {
        let pairs: Vec<(String, String)> = pairs;
        let mut written = State::default();
        let mut read = State::default();
        let ids: Vec<u32> = pairs.iter().map(|pair| {
            for record in written.missing(std::slice::from_ref(pair), 1).unwrap() {
                let (key, value) = (record.key(), record.value().unwrap());
                let message = Record { offset: 0, timestamp_ms: None, key: Some(key.as_bytes()), value: Some(value.as_bytes()) };
                read.insert(parse("t", &message).unwrap()).unwrap();
                written.insert(record).unwrap();
            }
            written.ids(std::slice::from_ref(pair)).unwrap()[0]
        }).collect();
        prop_assert_eq!(read.ids(&pairs), Some(ids));
    }
}
