#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};

use bunny_postgres::TableName;
use bunny_schemas::Position;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::board::{Outcome, Wanted};
use super::*;

fn id(table: u128, attempt: i32) -> SyncId {
    SyncId {
        request_id: Uuid::from_u128(table),
        attempt,
    }
}

fn part(sync: SyncId, chunk: i32, part: i32, last: bool) -> Head {
    Head::Part(PartHead {
        sync,
        chunk,
        part,
        last,
        rows: 10,
        chunk_rows: if last { 10 * i64::from(part + 1) } else { 0 },
    })
}

fn table(number: u128, loading: Option<i32>) -> Wanted {
    Wanted {
        request_id: Uuid::from_u128(number),
        table: TableName {
            schema: "public".into(),
            name: format!("t{number}"),
        },
        loading: loading.map(|attempt| (attempt, BTreeMap::new())),
    }
}

#[test]
fn parts_become_one_chunk() {
    let mut board = SyncBoard::new([table(1, Some(1))]);
    let mut lane = Lane::new(2);
    let first = part(id(1, 1), 7, 0, false);
    assert_eq!(lane.decide(&mut board, &first), Action::Begin);
    assert_eq!(lane.open_chunk(), Some((id(1, 1), 7)));
    assert_eq!(lane.decide(&mut board, &first), Action::Append);
    assert_eq!(
        lane.decide(&mut board, &part(id(1, 1), 7, 1, true)),
        Action::Complete { rows: 20 }
    );
    assert_eq!(lane.committed(&mut board, 20), None);
    assert_eq!(lane.decide(&mut board, &first), Action::Skip);
}

#[test]
fn a_void_part_in_between_disturbs_nothing() {
    let mut board = SyncBoard::new([table(1, Some(2)), table(2, Some(1))]);
    let mut lane = Lane::new(0);
    let first = part(id(1, 2), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    let void = part(id(1, 1), 0, 1, true);
    assert_eq!(lane.decide(&mut board, &void), Action::Skip);
    let unwanted = part(id(9, 1), 0, 0, false);
    assert_eq!(lane.decide(&mut board, &unwanted), Action::Skip);
    assert_eq!(
        lane.decide(&mut board, &part(id(1, 2), 0, 1, true)),
        Action::Complete { rows: 20 }
    );
}

#[test]
fn another_chunk_that_counts_displaces_the_open_one() {
    let mut board = SyncBoard::new([table(1, Some(1)), table(2, Some(1))]);
    let mut lane = Lane::new(0);
    let first = part(id(1, 1), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    let other = part(id(2, 1), 0, 0, true);
    assert_eq!(lane.decide(&mut board, &other), Action::RollBack);
    lane.abandon(&mut board);
    assert_eq!(lane.decide(&mut board, &other), Action::Begin);
    // The rest of the displaced chunk finds nothing to continue.
    lane.decide(&mut board, &other);
    lane.committed(&mut board, 10);
    let rest = part(id(1, 1), 0, 1, true);
    assert_eq!(lane.decide(&mut board, &rest), Action::Skip);
}

#[test]
fn a_chunk_displaced_by_a_void_one_is_read_again() {
    let mut board = SyncBoard::new([table(1, Some(2)), table(2, Some(1))]);
    let mut lane = Lane::new(3);
    let first = part(id(1, 2), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    // A thawed capture still writes table 2's attempt 1.
    let rest = part(id(2, 1), 4, 1, false);
    assert_eq!(lane.decide(&mut board, &rest), Action::Skip);
    let zombie = part(id(2, 1), 5, 0, false);
    assert_eq!(lane.decide(&mut board, &zombie), Action::RollBack);
    lane.abandon(&mut board);
    assert!(!lane.must_reread(&board));
    // Only a committed start lets the next reading take another turn.
    board.announce(&id(2, 2), true);
    assert!(!lane.must_reread(&board));
    board.prepared(&id(2, 2));
    assert_eq!(lane.decide(&mut board, &zombie), Action::Reread);
}

#[test]
fn a_chunk_written_again_starts_over() {
    let mut board = SyncBoard::new([table(1, Some(1))]);
    let mut lane = Lane::new(1);
    let first = part(id(1, 1), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    assert_eq!(lane.decide(&mut board, &first), Action::RollBack);
    lane.abandon(&mut board);
    assert_eq!(lane.decide(&mut board, &first), Action::Begin);
}

#[test]
fn a_missing_part_is_no_chunk() {
    let mut board = SyncBoard::new([table(1, Some(1))]);
    let mut lane = Lane::new(1);
    let first = part(id(1, 1), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    let third = part(id(1, 1), 0, 2, true);
    assert_eq!(lane.decide(&mut board, &third), Action::RollBack);
    lane.abandon(&mut board);
    assert_eq!(lane.decide(&mut board, &third), Action::Skip);
}

#[test]
fn an_unknown_sync_is_waited_for_except_where_starts_are() {
    let mut board = SyncBoard::new([table(1, None)]);
    let first = part(id(1, 1), 0, 0, true);
    assert_eq!(Lane::new(3).decide(&mut board, &first), Action::Wait);
    assert_eq!(Lane::new(0).decide(&mut board, &first), Action::Skip);
}

#[test]
fn an_unknown_part_does_not_displace_the_open_chunk() {
    let mut board = SyncBoard::new([table(1, Some(1)), table(2, None)]);
    let mut lane = Lane::new(3);
    let first = part(id(1, 1), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    let unknown = part(id(2, 1), 0, 0, true);
    assert_eq!(lane.decide(&mut board, &unknown), Action::Wait);
    board.announce(&id(2, 1), false);
    assert_eq!(lane.decide(&mut board, &unknown), Action::Skip);
    assert_eq!(
        lane.decide(&mut board, &part(id(1, 1), 0, 1, true)),
        Action::Complete { rows: 20 }
    );
}

#[test]
fn a_higher_start_rolls_back_what_its_own_lane_has_open() {
    let mut board = SyncBoard::new([table(1, Some(1))]);
    let mut lane = Lane::new(0);
    let first = part(id(1, 1), 0, 0, false);
    lane.decide(&mut board, &first);
    lane.decide(&mut board, &first);
    let start = Head::Started {
        sync: id(1, 2),
        usable: true,
    };
    assert_eq!(lane.decide(&mut board, &start), Action::RollBack);
    lane.abandon(&mut board);
    assert_eq!(lane.decide(&mut board, &start), Action::Prepare);
}

#[test]
fn rows_that_do_not_add_up_break_the_chunk() {
    let mut board = SyncBoard::new([table(1, Some(1))]);
    let mut lane = Lane::new(0);
    let wrong = Head::Part(PartHead {
        sync: id(1, 1),
        chunk: 0,
        part: 0,
        last: true,
        rows: 3,
        chunk_rows: 4,
    });
    lane.decide(&mut board, &wrong);
    assert!(matches!(lane.decide(&mut board, &wrong), Action::Broken(_)));
}

// --- A whole loader against a whole capture, both as models. ---

/// A small generator, so that one seed makes a whole scenario.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below.max(1)
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

/// The snapshot topic as captures that die, freeze and thaw leave it.
struct Topic {
    partitions: Vec<Vec<Head>>,
    /// Chunks and rows of every sync that was written whole.
    whole: BTreeMap<SyncId, Announced>,
}

/// What one run of capture writes to each partition, in order.
fn write_run(
    dice: &mut Dice,
    syncs: &[SyncId],
    partitions: usize,
) -> (Vec<Vec<Head>>, BTreeMap<SyncId, Announced>) {
    let mut lanes: Vec<Vec<Head>> = vec![Vec::new(); partitions];
    let mut ends = BTreeMap::new();
    for sync in syncs {
        lanes[0].push(Head::Started {
            sync: *sync,
            usable: true,
        });
        let chunks = dice.roll(4) as i32;
        let mut rows_total = 0;
        for chunk in 0..chunks {
            let lane = dice.roll(partitions);
            let parts = 1 + dice.roll(3) as i32;
            let mut rows_chunk = 0;
            for part in 0..parts {
                let rows = dice.roll(50) as i64;
                rows_chunk += rows;
                lanes[lane].push(Head::Part(PartHead {
                    sync: *sync,
                    chunk,
                    part,
                    last: part + 1 == parts,
                    rows,
                    chunk_rows: rows_chunk,
                }));
            }
            rows_total += rows_chunk;
        }
        let announced = Announced {
            chunks,
            rows: rows_total,
            live: Position::default(),
        };
        lanes[0].push(Head::Finished {
            sync: *sync,
            announced,
        });
        ends.insert(*sync, announced);
    }
    (lanes, ends)
}

/// Merges what a thawed capture still writes into what its successor writes.
fn interleave(dice: &mut Dice, live: Vec<Head>, zombie: Vec<Head>) -> Vec<Head> {
    let (mut live, mut zombie) = (live.into_iter().peekable(), zombie.into_iter().peekable());
    let mut merged = Vec::new();
    loop {
        let from_zombie = match (live.peek(), zombie.peek()) {
            (None, None) => return merged,
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some(_), Some(_)) => dice.one_in(2),
        };
        merged.extend(if from_zombie {
            zombie.next()
        } else {
            live.next()
        });
    }
}

fn topic(dice: &mut Dice, tables: u128, partitions: usize) -> Topic {
    let mut log = Topic {
        partitions: vec![Vec::new(); partitions],
        whole: BTreeMap::new(),
    };
    let mut attempts: BTreeMap<u128, i32> = (1..=tables).map(|table| (table, 0)).collect();
    let mut finished: BTreeSet<u128> = BTreeSet::new();
    let runs = 1 + dice.roll(4);
    let mut leftovers: Vec<Vec<Head>> = vec![Vec::new(); partitions];
    for run in 0..runs {
        let dies = run + 1 < runs;
        let mut syncs = Vec::new();
        for (table, attempt) in &mut attempts {
            if !finished.contains(table) {
                *attempt += 1;
                let at = dice.roll(syncs.len() + 1);
                syncs.insert(at, id(*table, *attempt));
            }
        }
        let (lanes, ends) = write_run(dice, &syncs, partitions);
        let cuts: Vec<usize> = lanes
            .iter()
            .map(|lane| {
                if dies {
                    dice.roll(lane.len() + 1)
                } else {
                    lane.len()
                }
            })
            .collect();
        let mut written = Vec::new();
        let mut unwritten = Vec::new();
        for (lane, cut) in lanes.iter().zip(&cuts) {
            written.push(lane[..*cut].to_vec());
            unwritten.push(lane[*cut..].to_vec());
        }
        // A start is acknowledged before its chunks are sent, and these before the end.
        let started: BTreeSet<SyncId> = written[0]
            .iter()
            .filter_map(|head| match head {
                Head::Started { sync, .. } => Some(*sync),
                _ => None,
            })
            .collect();
        let complete: BTreeSet<SyncId> = syncs
            .iter()
            .filter(|sync| {
                !unwritten
                    .iter()
                    .flatten()
                    .any(|head| matches!(head, Head::Part(part) if part.sync == **sync))
            })
            .copied()
            .collect();
        for lane in &mut written {
            lane.retain(|head| match head {
                Head::Started { .. } => true,
                Head::Part(part) => started.contains(&part.sync),
                Head::Finished { sync, .. } => complete.contains(sync),
            });
        }
        for head in &written[0] {
            if let Head::Finished { sync, .. } = head {
                log.whole.insert(*sync, ends[sync]);
                // The note that it is finished may be lost with its writer.
                if !dies || dice.one_in(2) {
                    finished.insert(sync.request_id.as_u128());
                }
            }
        }
        for (number, lane) in written.into_iter().enumerate() {
            let zombie = std::mem::take(&mut leftovers[number]);
            let merged = interleave(dice, lane, zombie);
            log.partitions[number].extend(merged);
        }
        // A thawed writer goes on with parts only: its start and end need acknowledged
        // transactions of the main publisher, which is fenced by then.
        if dies && dice.one_in(2) {
            for (number, lane) in unwritten.into_iter().enumerate() {
                leftovers[number] = lane
                    .into_iter()
                    .filter(|head| matches!(head, Head::Part(part) if started.contains(&part.sync)))
                    .collect();
            }
        }
    }
    log
}

/// The destination: what is committed there for each request.
#[derive(Default)]
struct Destination {
    /// Attempt and the rows of each committed chunk, every load of it counted.
    tables: BTreeMap<Uuid, (i32, BTreeMap<i32, Vec<i64>>)>,
    loaded: BTreeMap<Uuid, (i32, Outcome)>,
}

impl Destination {
    fn wanted(&self, tables: u128) -> Vec<Wanted> {
        (1..=tables)
            .filter(|number| !self.loaded.contains_key(&Uuid::from_u128(*number)))
            .map(|number| {
                let mut wanted = table(number, None);
                if let Some((attempt, chunks)) = self.tables.get(&wanted.request_id) {
                    let rows = chunks.iter().map(|(chunk, loads)| (*chunk, loads[0]));
                    wanted.loading = Some((*attempt, rows.collect()));
                }
                wanted
            })
            .collect()
    }

    fn settle(&mut self, board: &mut SyncBoard, sync: SyncId, outcome: Outcome) {
        let former = self.loaded.insert(sync.request_id, (sync.attempt, outcome));
        assert!(former.is_none(), "a table settles once");
        board.settled(sync.request_id);
    }
}

/// Runs the loader over the topic with random scheduling and crashes; the last life has none.
fn run_loader(dice: &mut Dice, topic: &Topic, tables: u128) -> Destination {
    let mut destination = Destination::default();
    let mut crashes_left = dice.roll(4);
    // One more for each time that the topic has to be read again.
    for _life in 0..20 {
        let mut board = SyncBoard::new(destination.wanted(tables));
        let mut lanes: Vec<(Lane, usize, Option<SyncId>)> = (0..topic.partitions.len())
            .map(|number| (Lane::new(number as i32), 0, None))
            .collect();
        let mut steps_left = if crashes_left == 0 {
            usize::MAX
        } else {
            crashes_left -= 1;
            dice.roll(60)
        };
        let mut idle = 0;
        let mut reread = false;
        while steps_left > 0 && !board.all_settled() && idle < 500 {
            steps_left -= 1;
            let number = dice.roll(lanes.len());
            let (lane, offset, preparing) = &mut lanes[number];
            idle += 1;
            if let Some(sync) = *preparing {
                if !board.has_open_chunks(sync.request_id) {
                    destination
                        .tables
                        .insert(sync.request_id, (sync.attempt, BTreeMap::new()));
                    board.prepared(&sync);
                    *preparing = None;
                    *offset += 1;
                    idle = 0;
                }
                continue;
            }
            let Some(head) = topic.partitions[number].get(*offset) else {
                if lane.must_reread(&board) {
                    reread = true;
                    break;
                }
                if lane.is_revoked(&board) {
                    lane.abandon(&mut board);
                    idle = 0;
                }
                continue;
            };
            match lane.decide(&mut board, head) {
                Action::Wait => continue,
                Action::Skip | Action::Append => *offset += 1,
                Action::Begin => {}
                Action::RollBack => lane.abandon(&mut board),
                Action::Reread => {
                    reread = true;
                    break;
                }
                Action::Broken(reason) => panic!("{reason}"),
                Action::Complete { rows } => {
                    let (sync, chunk) = lane.open_chunk().unwrap();
                    let (attempt, chunks) = destination.tables.get_mut(&sync.request_id).unwrap();
                    assert_eq!(*attempt, sync.attempt, "a chunk goes into its own attempt");
                    chunks.entry(chunk).or_default().push(rows);
                    if let Some((sync, outcome)) = lane.committed(&mut board, rows) {
                        destination.settle(&mut board, sync, outcome);
                    }
                    *offset += 1;
                }
                Action::Prepare => {
                    let Head::Started { sync, .. } = head else {
                        panic!("only a start is prepared");
                    };
                    *preparing = Some(*sync);
                }
                Action::Finish => {
                    let Head::Finished { sync, announced } = head else {
                        panic!("only an end finishes");
                    };
                    if let Some(outcome) = board.finish(sync, *announced) {
                        destination.settle(&mut board, *sync, outcome);
                    }
                    *offset += 1;
                }
            }
            idle = 0;
        }
        let is_over = board.all_settled() || (!reread && idle >= 500);
        if is_over {
            break;
        }
    }
    destination
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn every_table_is_loaded_exactly_once_whatever_dies(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let tables = 1 + dice.roll(3) as u128;
        let partitions = 1 + dice.roll(4);
        let topic = topic(&mut dice, tables, partitions);
        let destination = run_loader(&mut dice, &topic, tables);
        for number in 1..=tables {
            let request = Uuid::from_u128(number);
            let Some((attempt, outcome)) = destination.loaded.get(&request) else {
                return Err(TestCaseError::fail(format!("table {number} was never loaded")));
            };
            let (stored_attempt, chunks) = &destination.tables[&request];
            prop_assert_eq!(stored_attempt, attempt);
            prop_assert!(chunks.values().all(|loads| loads.len() == 1));
            let written = topic.whole[&id(number, *attempt)];
            prop_assert_eq!(outcome, &Outcome::Loaded(written));
            prop_assert_eq!(chunks.len() as i32, written.chunks);
        }
    }
}
