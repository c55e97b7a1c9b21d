#![allow(clippy::unwrap_used)]
use super::*;

fn sync(attempt: i32) -> SyncId {
    SyncId {
        request_id: Uuid::from_u128(1),
        attempt,
    }
}

fn wanted(loading: Option<(i32, BTreeMap<i32, i64>)>) -> Wanted {
    Wanted {
        request_id: Uuid::from_u128(1),
        table: TableName {
            schema: "public".into(),
            name: "t".into(),
        },
        loading,
    }
}

fn announced(chunks: i32, rows: i64) -> Announced {
    Announced {
        chunks,
        rows,
        live: Position::default(),
    }
}

#[test]
fn a_sync_counts_only_once_its_start_is_prepared() {
    let mut board = SyncBoard::new([wanted(None)]);
    assert_eq!(board.standing(&sync(1)), Standing::Unknown);
    assert_eq!(board.claim(sync(1), 0, 3), Claim::Wait);
    assert_eq!(board.announce(&sync(1), true), Announcement::Prepare);
    assert_eq!(board.claim(sync(1), 0, 3), Claim::Wait);
    board.prepared(&sync(1));
    assert_eq!(board.claim(sync(1), 0, 3), Claim::Granted);
}

#[test]
fn a_request_of_another_destination_is_unwanted() {
    let mut board = SyncBoard::new([wanted(None)]);
    let other = SyncId {
        request_id: Uuid::from_u128(2),
        attempt: 1,
    };
    assert_eq!(board.standing(&other), Standing::Unwanted);
    assert_eq!(board.announce(&other, true), Announcement::Ignore);
    assert_eq!(board.claim(other, 0, 0), Claim::Skip);
    assert_eq!(board.finish(&other, announced(0, 0)), None);
}

#[test]
fn a_higher_attempt_voids_chunks_and_open_work_of_the_lower() {
    let mut board = SyncBoard::new([wanted(Some((1, BTreeMap::from([(0, 10)]))))]);
    assert_eq!(board.claim(sync(1), 1, 2), Claim::Granted);
    assert!(board.holds(&sync(1), 1, 2));
    assert_eq!(board.announce(&sync(2), true), Announcement::Prepare);
    assert!(!board.holds(&sync(1), 1, 2));
    assert!(board.has_open_chunks(sync(1).request_id));
    board.release(2);
    assert!(!board.has_open_chunks(sync(1).request_id));
    board.prepared(&sync(2));
    assert_eq!(board.standing(&sync(1)), Standing::Void);
    assert_eq!(board.record(&sync(1), 1, 5), None);
    assert_eq!(board.finish(&sync(2), announced(1, 7)), None);
    assert!(!board.is_recorded(&sync(2), 0));
    assert_eq!(
        board.record(&sync(2), 0, 7),
        Some(Outcome::Loaded(announced(1, 7)))
    );
}

#[test]
fn a_lower_attempt_met_late_is_void() {
    let mut board = SyncBoard::new([wanted(Some((3, BTreeMap::new())))]);
    assert_eq!(board.announce(&sync(2), true), Announcement::Ignore);
    assert_eq!(board.announce(&sync(3), true), Announcement::Ignore);
    assert_eq!(board.standing(&sync(3)), Standing::Loading);
}

#[test]
fn a_start_of_another_generation_is_not_waited_for() {
    let mut board = SyncBoard::new([wanted(None)]);
    assert_eq!(board.announce(&sync(1), false), Announcement::Ignore);
    assert_eq!(board.standing(&sync(1)), Standing::Void);
    assert_eq!(board.announce(&sync(2), true), Announcement::Prepare);
}

#[test]
fn the_end_may_come_before_or_after_the_last_chunk() {
    let mut end_first = SyncBoard::new([wanted(Some((1, BTreeMap::new())))]);
    assert_eq!(end_first.finish(&sync(1), announced(2, 3)), None);
    assert_eq!(end_first.record(&sync(1), 1, 1), None);
    let loaded = Outcome::Loaded(announced(2, 3));
    assert_eq!(end_first.record(&sync(1), 0, 2), Some(loaded.clone()));
    assert!(!end_first.all_settled());
    end_first.settled(sync(1).request_id);
    assert!(end_first.all_settled());

    let done = BTreeMap::from([(0, 2), (1, 1)]);
    let mut end_last = SyncBoard::new([wanted(Some((1, done)))]);
    assert_eq!(end_last.finish(&sync(1), announced(2, 3)), Some(loaded));
}

#[test]
fn an_empty_table_has_no_chunks() {
    let mut board = SyncBoard::new([wanted(Some((1, BTreeMap::new())))]);
    assert_eq!(
        board.finish(&sync(1), announced(0, 0)),
        Some(Outcome::Loaded(announced(0, 0)))
    );
}

#[test]
fn rows_that_do_not_add_up_fail_the_table() {
    let done = BTreeMap::from([(0, 2)]);
    let mut board = SyncBoard::new([wanted(Some((1, done)))]);
    let outcome = board.finish(&sync(1), announced(1, 3)).unwrap();
    assert!(matches!(outcome, Outcome::Failed(reason) if reason.contains("does not add up")));
}

#[test]
fn a_chunk_is_open_in_one_partition_only() {
    let mut board = SyncBoard::new([wanted(Some((1, BTreeMap::new())))]);
    assert_eq!(board.claim(sync(1), 0, 1), Claim::Granted);
    assert_eq!(board.claim(sync(1), 0, 2), Claim::Wait);
    assert!(!board.holds(&sync(1), 0, 1));
    board.release(1);
    assert_eq!(board.claim(sync(1), 0, 2), Claim::Granted);
    board.record(&sync(1), 0, 4);
    board.release(2);
    assert_eq!(board.claim(sync(1), 0, 1), Claim::Skip);
}

#[test]
fn the_first_failure_is_the_one_that_stays() {
    let mut board = SyncBoard::new([wanted(Some((1, BTreeMap::new())))]);
    assert_eq!(board.claim(sync(1), 0, 1), Claim::Granted);
    assert!(!board.fail(&sync(0), "of a void attempt"));
    assert!(board.fail(&sync(1), "first"));
    assert!(!board.fail(&sync(1), "second"));
    assert!(!board.holds(&sync(1), 0, 1));
    assert_eq!(board.announce(&sync(2), true), Announcement::Ignore);
    board.settled(sync(1).request_id);
    let outcome = board.progress().remove(0).outcome;
    assert_eq!(outcome, Some(Outcome::Failed("first".into())));
}

#[test]
fn progress_counts_chunks_and_rows() {
    let done = BTreeMap::from([(0, 2), (4, 5)]);
    let mut board = SyncBoard::new([wanted(Some((1, done)))]);
    let progress = board.progress().remove(0);
    assert_eq!((progress.chunks_done, progress.rows_done), (2, 7));
    assert_eq!((progress.chunks_total, progress.outcome), (None, None));
    board.finish(&sync(1), announced(9, 100));
    assert_eq!(board.progress().remove(0).chunks_total, Some(9));
}

#[test]
fn a_table_that_the_source_refuses_is_given_up_unless_its_start_is_being_stored() {
    let mut board = SyncBoard::new([wanted(None)]);
    assert_eq!(board.announce(&sync(1), true), Announcement::Prepare);
    assert!(!board.refuse(Uuid::from_u128(1), "why"));
    board.prepared(&sync(1));
    assert_eq!(board.claim(sync(1), 0, 3), Claim::Granted);
    assert!(board.refuse(Uuid::from_u128(1), "why"));
    assert!(
        !board.holds(&sync(1), 0, 3),
        "its open chunk counts no more"
    );
    assert!(!board.refuse(Uuid::from_u128(1), "why"), "it is said once");
    board.settled(Uuid::from_u128(1));
    assert!(board.all_settled());
    let mut waiting = SyncBoard::new([wanted(None)]);
    assert!(waiting.refuse(Uuid::from_u128(1), "why"));
    assert!(!waiting.refuse(Uuid::from_u128(2), "another mirror's"));
}
