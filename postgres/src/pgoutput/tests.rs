//! Messages written by hand from the manual, generated ones, and damaged ones.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A value with its own bytes, from which tuples are written.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

/// A message with its own bytes: what [`Message`] borrows.
#[derive(Clone, Debug)]
enum Sent {
    Begin(u64, i64, u32),
    Commit(u64, u64, i64),
    Origin(u64, String),
    Relation(Relation),
    Type(u32, String, String),
    Insert(u32, Vec<Value>),
    Update(u32, Option<(bool, Vec<Value>)>, Vec<Value>),
    Delete(u32, bool, Vec<Value>),
    Truncate(Vec<u32>, bool, bool),
    Message(bool, u64, String, Vec<u8>),
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn put_tuple(out: &mut Vec<u8>, values: &[Value]) {
    out.extend_from_slice(&(values.len() as i16).to_be_bytes());
    for value in values {
        let (kind, bytes) = match value {
            Value::Null => {
                out.push(b'n');
                continue;
            }
            Value::Unchanged => {
                out.push(b'u');
                continue;
            }
            Value::Text(bytes) => (b't', bytes),
            Value::Binary(bytes) => (b'b', bytes),
        };
        out.push(kind);
        out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        out.extend_from_slice(bytes);
    }
}

fn write(message: &Sent) -> Vec<u8> {
    let mut out = Vec::new();
    match message {
        Sent::Begin(lsn, ts, xid) => {
            out.push(b'B');
            out.extend_from_slice(&lsn.to_be_bytes());
            out.extend_from_slice(&ts.to_be_bytes());
            out.extend_from_slice(&xid.to_be_bytes());
        }
        Sent::Commit(lsn, end, ts) => {
            out.extend_from_slice(b"C\0");
            out.extend_from_slice(&lsn.to_be_bytes());
            out.extend_from_slice(&end.to_be_bytes());
            out.extend_from_slice(&ts.to_be_bytes());
        }
        Sent::Origin(lsn, name) => {
            out.push(b'O');
            out.extend_from_slice(&lsn.to_be_bytes());
            put_string(&mut out, name);
        }
        Sent::Relation(relation) => {
            out.push(b'R');
            out.extend_from_slice(&relation.oid.to_be_bytes());
            put_string(&mut out, &relation.schema);
            put_string(&mut out, &relation.name);
            out.push(relation.replica_identity);
            out.extend_from_slice(&(relation.columns.len() as i16).to_be_bytes());
            for column in &relation.columns {
                out.push(u8::from(column.key));
                put_string(&mut out, &column.name);
                out.extend_from_slice(&column.type_oid.to_be_bytes());
                out.extend_from_slice(&column.typmod.to_be_bytes());
            }
        }
        Sent::Type(oid, schema, name) => {
            out.push(b'Y');
            out.extend_from_slice(&oid.to_be_bytes());
            put_string(&mut out, schema);
            put_string(&mut out, name);
        }
        Sent::Insert(relation, new) => {
            out.push(b'I');
            out.extend_from_slice(&relation.to_be_bytes());
            out.push(b'N');
            put_tuple(&mut out, new);
        }
        Sent::Update(relation, old, new) => {
            out.push(b'U');
            out.extend_from_slice(&relation.to_be_bytes());
            if let Some((whole, values)) = old {
                out.push(if *whole { b'O' } else { b'K' });
                put_tuple(&mut out, values);
            }
            out.push(b'N');
            put_tuple(&mut out, new);
        }
        Sent::Delete(relation, whole, old) => {
            out.push(b'D');
            out.extend_from_slice(&relation.to_be_bytes());
            out.push(if *whole { b'O' } else { b'K' });
            put_tuple(&mut out, old);
        }
        Sent::Truncate(relations, cascade, restart_identity) => {
            out.push(b'T');
            out.extend_from_slice(&(relations.len() as i32).to_be_bytes());
            out.push(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            for relation in relations {
                out.extend_from_slice(&relation.to_be_bytes());
            }
        }
        Sent::Message(transactional, lsn, prefix, content) => {
            out.push(b'M');
            out.push(u8::from(*transactional));
            out.extend_from_slice(&lsn.to_be_bytes());
            put_string(&mut out, prefix);
            out.extend_from_slice(&(content.len() as i32).to_be_bytes());
            out.extend_from_slice(content);
        }
    }
    out
}

fn values_of(tuple: Tuple<'_>) -> Vec<Value> {
    assert_eq!(tuple.iter().count(), tuple.len());
    tuple
        .iter()
        .map(|value| match value {
            TupleValue::Null => Value::Null,
            TupleValue::Unchanged => Value::Unchanged,
            TupleValue::Text(bytes) => Value::Text(bytes.to_vec()),
            TupleValue::Binary(bytes) => Value::Binary(bytes.to_vec()),
        })
        .collect()
}

fn old_values_of(old: OldTuple<'_>) -> (bool, Vec<Value>) {
    (matches!(old, OldTuple::Row(_)), values_of(old.tuple()))
}

/// What was decoded, as it was sent; times back on Postgres' clock.
fn owned(message: Message<'_>) -> Sent {
    let sent_time = |unix_us: i64| unix_us - 946_684_800_000_000;
    match message {
        Message::Begin {
            final_lsn,
            commit_ts_us,
            xid,
        } => Sent::Begin(final_lsn.0, sent_time(commit_ts_us), xid),
        Message::Commit {
            commit_lsn,
            end_lsn,
            commit_ts_us,
        } => Sent::Commit(commit_lsn.0, end_lsn.0, sent_time(commit_ts_us)),
        Message::Origin { commit_lsn, name } => Sent::Origin(commit_lsn.0, name.to_owned()),
        Message::Relation(relation) => Sent::Relation(relation),
        Message::Type { oid, schema, name } => Sent::Type(oid, schema.to_owned(), name.to_owned()),
        Message::Insert { relation, new } => Sent::Insert(relation, values_of(new)),
        Message::Update { relation, old, new } => {
            Sent::Update(relation, old.map(old_values_of), values_of(new))
        }
        Message::Delete { relation, old } => {
            let (whole, values) = old_values_of(old);
            Sent::Delete(relation, whole, values)
        }
        Message::Truncate {
            relations,
            cascade,
            restart_identity,
        } => Sent::Truncate(relations, cascade, restart_identity),
        Message::Message {
            transactional,
            lsn,
            prefix,
            content,
        } => Sent::Message(transactional, lsn.0, prefix.to_owned(), content.to_vec()),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        vec(any::<u8>(), 0..20).prop_map(Value::Text),
        vec(any::<u8>(), 0..20).prop_map(Value::Binary),
    ]
}

fn any_tuple() -> impl Strategy<Value = Vec<Value>> {
    vec(any_value(), 0..6)
}

fn any_name() -> impl Strategy<Value = String> {
    "[a-zA-Zü. \"]{1,12}"
}

/// Times that fit both clocks.
fn any_time() -> impl Strategy<Value = i64> {
    -1_000_000_000_000_000..1_000_000_000_000_000_i64
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let column = (any_name(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, typmod, key)| RelationColumn {
            name,
            type_oid,
            typmod,
            key,
        },
    );
    (
        any::<u32>(),
        any_name(),
        any_name(),
        any::<u8>(),
        vec(column, 0..5),
    )
        .prop_map(|(oid, schema, name, replica_identity, columns)| Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
        })
}

fn any_message() -> impl Strategy<Value = Sent> {
    let old = || (any::<bool>(), any_tuple());
    prop_oneof![
        (any::<u64>(), any_time(), any::<u32>()).prop_map(|(l, t, x)| Sent::Begin(l, t, x)),
        (any::<u64>(), any::<u64>(), any_time()).prop_map(|(l, e, t)| Sent::Commit(l, e, t)),
        (any::<u64>(), any_name()).prop_map(|(l, n)| Sent::Origin(l, n)),
        any_relation().prop_map(Sent::Relation),
        (any::<u32>(), any_name(), any_name()).prop_map(|(o, s, n)| Sent::Type(o, s, n)),
        (any::<u32>(), any_tuple()).prop_map(|(r, t)| Sent::Insert(r, t)),
        (any::<u32>(), proptest::option::of(old()), any_tuple())
            .prop_map(|(r, o, t)| Sent::Update(r, o, t)),
        (any::<u32>(), old()).prop_map(|(r, (whole, t))| Sent::Delete(r, whole, t)),
        (vec(any::<u32>(), 0..5), any::<bool>(), any::<bool>())
            .prop_map(|(r, c, i)| Sent::Truncate(r, c, i)),
        (
            any::<bool>(),
            any::<u64>(),
            any_name(),
            vec(any::<u8>(), 0..20)
        )
            .prop_map(|(t, l, p, c)| Sent::Message(t, l, p, c)),
    ]
}

#[test]
fn a_begin_is_read_byte_by_byte() {
    let bytes = [
        b'B', 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 3, 0xE8,
    ];
    assert_eq!(
        decode(&bytes),
        Ok(Message::Begin {
            final_lsn: Lsn(0x1_0000_0002),
            commit_ts_us: 946_684_800_000_005,
            xid: 1000,
        })
    );
}

#[test]
fn an_update_with_an_old_key_is_read_byte_by_byte() {
    let bytes = b"U\0\0\x40\x05K\0\x02t\0\0\0\x017nN\0\x03t\0\0\0\x018nu";
    let Ok(Message::Update {
        relation,
        old: Some(OldTuple::Key(old)),
        new,
    }) = decode(bytes)
    else {
        panic!("{:?}", decode(bytes));
    };
    assert_eq!(relation, 0x4005);
    assert_eq!(
        old.iter().collect::<Vec<_>>(),
        [TupleValue::Text(b"7"), TupleValue::Null]
    );
    assert_eq!(
        new.iter().collect::<Vec<_>>(),
        [
            TupleValue::Text(b"8"),
            TupleValue::Null,
            TupleValue::Unchanged
        ]
    );
    assert_eq!((new.len(), new.iter().len()), (3, 3));
}

#[test]
fn an_empty_schema_is_pg_catalog() {
    let relation = decode(b"R\0\0\0\x01\0t\0d\0\0").unwrap();
    assert!(matches!(relation, Message::Relation(r) if r.schema == "pg_catalog" && r.name == "t"));
    let kind = decode(b"Y\0\0\0\x17\0int4\0").unwrap();
    assert_eq!(
        kind,
        Message::Type {
            oid: 23,
            schema: "pg_catalog",
            name: "int4"
        }
    );
}

#[test]
fn what_is_no_message_says_why() {
    assert_eq!(decode(b""), Err(DecodeError::Empty));
    assert_eq!(
        decode(b"Z"),
        Err(DecodeError::Unknown {
            what: "message type",
            value: b'Z'
        })
    );
    assert_eq!(decode(b"B\0"), Err(DecodeError::Truncated("a begin")));
    assert_eq!(
        decode(b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFF"),
        Err(DecodeError::NegativeLength("a value"))
    );
    assert_eq!(
        decode(b"I\0\0\0\x01N\xFF\xFF"),
        Err(DecodeError::NegativeLength("a row's columns"))
    );
    assert_eq!(
        decode(b"I\0\0\0\x01N\0\x01x"),
        Err(DecodeError::Unknown {
            what: "kind of value",
            value: b'x'
        })
    );
    assert_eq!(
        decode(b"I\0\0\0\x01N\0\0!"),
        Err(DecodeError::TrailingBytes(1))
    );
    assert_eq!(
        decode(b"Y\0\0\0\x17\0\xFF\0"),
        Err(DecodeError::NotUtf8("a type's name"))
    );
    // A count that no message could hold, and whose byte length overflows 32 bits.
    assert_eq!(
        decode(b"T\x7F\xFF\xFF\xFF\0"),
        Err(DecodeError::Truncated("a truncate's tables"))
    );
}

#[test]
fn the_clock_does_not_overflow() {
    assert_eq!(unix_from_postgres_us(0), 946_684_800_000_000);
    assert_eq!(unix_from_postgres_us(i64::MAX), i64::MAX);
}

proptest! {
    #[test]
    fn what_was_sent_is_what_is_read(sent in any_message()) {
        let bytes = write(&sent);
        let decoded = decode(&bytes).map(owned);
        prop_assert_eq!(format!("{:?}", decoded), format!("{:?}", Ok::<_, DecodeError>(sent)));
    }

    #[test]
    fn no_part_of_a_message_is_a_message(sent in any_message(), cut: prop::sample::Index) {
        let bytes = write(&sent);
        let cut = cut.index(bytes.len());
        prop_assert!(decode(&bytes[..cut]).is_err());
    }

    #[test]
    fn damage_never_panics(
        sent in any_message(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
    ) {
        let mut bytes = write(&sent);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // Reading a damaged message to its last value is part of the promise.
        let _ = decode(&bytes).map(owned_quietly);
        let cut = cut.index(bytes.len());
        let _ = decode(&bytes[..cut]).map(owned_quietly);
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes).map(owned_quietly);
    }
}

/// Walks over every value, without turning times back (they may be out of range).
fn owned_quietly(message: Message<'_>) {
    match message {
        Message::Insert { new, .. } => drop(values_of(new)),
        Message::Update { old, new, .. } => {
            drop(old.map(old_values_of));
            drop(values_of(new));
        }
        Message::Delete { old, .. } => drop(old_values_of(old)),
        _ => {}
    }
}
