use super::*;

#[test]
fn a_place_is_reached_by_the_last_event_before_it_or_shown_by_one_beyond() {
    let at = |commit_lsn, seq| Position {
        commit_lsn: Lsn(commit_lsn),
        seq,
    };
    let stop = StopAt {
        lsn: Lsn(100),
        published: at(90, 3),
    };
    assert!(stop.is_reached(at(90, 3)));
    assert!(!stop.is_reached(at(90, 2)), "inside the last transaction");
    assert!(!stop.is_before(at(99, 7)));
    assert!(stop.is_before(at(100, 1)), "a commit record begins there");
    // Capture was beyond already when it looked: an event beyond is in the log.
    let late = StopAt {
        published: at(120, 1),
        ..stop
    };
    assert!(!late.is_reached(at(90, 3)) && !late.is_reached(at(120, 1)));
    // Nothing was ever published.
    let quiet = StopAt {
        published: Position::default(),
        ..stop
    };
    assert!(quiet.is_reached(Position::default()));
}

#[test]
fn troubles_far_apart_are_not_one() {
    let first = Trouble::at(Instant::now(), None);
    let close = Trouble::at(first.last + Duration::from_secs(9), Some(first));
    assert_eq!(close.lasted(), Duration::from_secs(9));
    let far = Trouble::at(close.last + TROUBLE_FORGOTTEN_AFTER, Some(close));
    assert_eq!(far.lasted(), Duration::ZERO);
}

#[test]
fn one_answer_that_an_offset_is_not_there_decides_nothing() {
    for code in [
        RDKafkaErrorCode::OffsetOutOfRange,
        RDKafkaErrorCode::AutoOffsetReset,
    ] {
        let said = KafkaError::MessageConsumption(code);
        let error = out_of_range("bunny.m.changes", 7, &said).expect("out of range");
        assert!(error.is_transient(), "{error}");
    }
    let away = KafkaError::MessageConsumption(RDKafkaErrorCode::BrokerTransportFailure);
    assert!(out_of_range("bunny.m.changes", 7, &away).is_none());
}
