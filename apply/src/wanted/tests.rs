use super::*;

fn name(name: &str) -> TableName {
    TableName {
        schema: "public".into(),
        name: name.into(),
    }
}

/// In the generation of no table.
fn changes(mappings: &[MirrorTable], present: &[TableState]) -> Changes {
    let present = Present {
        tables: present,
        beside: &[],
        oids: &HashMap::new(),
    };
    super::changes(mappings, present, Uuid::from_u128(7))
}

fn mapping(source: &str, destination: &str, request: u128) -> MirrorTable {
    MirrorTable {
        source: name(source),
        destination: name(destination),
        partition_key: None,
        exclude_columns: Vec::new(),
        identity: None,
        request_id: Some(Uuid::from_u128(request)),
        retry_id: None,
        replay: None,
        since_request: None,
        checkpoint_id: None,
        beside: false,
    }
}

fn live(source: &str, destination: &str, request: u128) -> TableState {
    TableState {
        state: State::Live,
        attempt: 1,
        in_main: true,
        ..TableState::wanted(
            name(source),
            name(destination),
            Some(Uuid::from_u128(request)),
        )
    }
}

#[test]
fn what_is_as_wanted_is_left_alone() {
    assert_eq!(
        changes(&[mapping("a", "x", 1)], &[live("a", "x", 1)]),
        Changes::default()
    );
}

#[test]
fn new_tables_come_and_unmapped_ones_go() {
    let found = changes(
        &[mapping("a", "x", 1), mapping("b", "y", 2)],
        &[live("a", "x", 1), live("c", "z", 3)],
    );
    assert_eq!(
        found.put,
        [TableState::wanted(
            name("b"),
            name("y"),
            Some(Uuid::from_u128(2))
        )]
    );
    assert_eq!(found.remove, [name("c")]);
}

#[test]
fn another_request_takes_the_table_out_of_main() {
    let found = changes(&[mapping("a", "x", 2)], &[live("a", "x", 1)]);
    assert_eq!(
        (found.put[0].state, found.put[0].in_main),
        (State::Pending, false)
    );
    assert_eq!(found.put[0].attempt, 1, "its rows are known as ours");
}

#[test]
fn a_retry_brings_back_what_is_set_aside_and_is_carried_out_once() {
    let retried = MirrorTable {
        retry_id: Some(Uuid::from_u128(5)),
        ..mapping("a", "x", 1)
    };
    let brought = |table: &TableState| {
        let found = changes(std::slice::from_ref(&retried), std::slice::from_ref(table));
        assert_eq!(found.put.len(), 1);
        let again = changes(std::slice::from_ref(&retried), &found.put);
        assert_eq!(again, Changes::default());
        found.put[0].clone()
    };
    let errored = TableState {
        state: State::Errored,
        in_main: false,
        live: Some(Position::default()),
        restart_offset: Some(7),
        error: Some("why".into()),
        ..live("a", "x", 1)
    };
    let back = brought(&errored);
    assert_eq!((back.state, back.error), (State::CatchingUp, None));
    assert_eq!(back.restart_offset, Some(7));

    // It failed while it was loaded: the sync goes on.
    let loading = TableState {
        live: None,
        ..errored.clone()
    };
    assert_eq!(brought(&loading).state, State::Syncing);
    let not_begun = TableState {
        attempt: 0,
        restart_offset: None,
        ..loading
    };
    assert_eq!(brought(&not_begun).state, State::Pending);
    assert_eq!(brought(&live("a", "x", 1)).state, State::Live);
}

#[test]
fn a_table_that_stands_is_loaded_beside_itself() {
    let generation = Uuid::from_u128(7);
    let mapping = MirrorTable {
        beside: true,
        ..mapping("a", "x", 2)
    };
    let table = TableState {
        generation: Some(generation),
        live: Some(Position::default()),
        ..live("a", "x", 1)
    };
    let oids = HashMap::from([(name("a"), 9)]);
    let none = HashMap::new();
    let with = |table: &TableState, beside: &[TableState], oids| {
        let present = Present {
            tables: std::slice::from_ref(table),
            beside,
            oids,
        };
        super::changes(std::slice::from_ref(&mapping), present, generation)
    };
    let found = with(&table, &[], &oids);
    assert!(found.put.is_empty(), "the table goes on");
    let beside = found.put_beside;
    assert_eq!(beside[0].destination, name("_bunny_resync_9"));
    assert_eq!(beside[0].request_id, mapping.request_id);
    assert_eq!(with(&table, &beside, &oids), Changes::default());
    // What is let go already is left to be dropped.
    let left = TableState {
        state: State::Removing,
        ..TableState::wanted(name("_bunny_resync_8"), name("_bunny_resync_8"), None)
    };
    let with_left = [beside[0].clone(), left];
    assert_eq!(with(&table, &with_left, &oids), Changes::default());
    // A run ended while the table was out of main.
    let parked = TableState {
        state: State::Parked,
        in_main: false,
        restart_offset: Some(3),
        ..table.clone()
    };
    let back = with(&parked, &beside, &oids).put;
    assert_eq!(back[0].state, State::CatchingUp);
    // Something else is wanted by now, or the swap is done.
    let former = TableState {
        request_id: Some(Uuid::from_u128(5)),
        ..beside[0].clone()
    };
    let other = with(&table, std::slice::from_ref(&former), &oids);
    assert_eq!(
        (&other.remove_beside[0], &other.put_beside),
        (&former, &beside)
    );
    let done = TableState {
        request_id: mapping.request_id,
        ..table.clone()
    };
    assert_eq!(with(&done, &beside, &oids).remove_beside, beside);
    // Nothing can be beside what is not there, or not loaded.
    let gone = with(&table, &[], &none);
    assert_eq!(
        (gone.put[0].state, gone.put_beside.len()),
        (State::Pending, 0)
    );
    let loading = TableState {
        state: State::Syncing,
        ..table
    };
    assert!(with(&loading, &[], &oids).put_beside.is_empty());
}

#[test]
fn a_replay_says_for_itself_whether_it_is_loaded_beside() {
    let generation = Uuid::from_u128(7);
    let of = bunny_catalog::RetainedSync {
        sync: Uuid::from_u128(1),
        attempt: 1,
        lsn: Lsn(10),
        changes_offset: 40,
        rows: 0,
        bytes: 0,
    };
    // As the run sees it: the mapping's request is the one that is wanted.
    let asked = |beside: bool| MirrorTable {
        beside: !beside,
        replay: Some(bunny_catalog::Replay {
            request_id: Uuid::from_u128(2),
            of: of.clone(),
            until: None,
            beside,
            former: None,
        }),
        ..mapping("a", "x", 2)
    };
    let table = TableState {
        generation: Some(generation),
        live: Some(Position::default()),
        ..live("a", "x", 1)
    };
    let oids = HashMap::from([(name("a"), 9)]);
    let with = |mapping: MirrorTable| {
        let present = Present {
            tables: std::slice::from_ref(&table),
            beside: &[],
            oids: &oids,
        };
        super::changes(&[mapping], present, generation)
    };
    let by_swap = with(asked(true));
    assert!(by_swap.put.is_empty(), "the table goes on");
    // What the copy needs of the log is kept from here on.
    assert_eq!(by_swap.put_beside[0].restart_offset, Some(40));
    let in_place = with(asked(false));
    assert!(in_place.put_beside.is_empty());
    assert_eq!(in_place.put[0].state, State::Pending);
}

#[test]
fn a_table_joins_main_only_before_its_changes_begin() {
    let generation = Uuid::from_u128(7);
    let loaded = |offset| TableState {
        state: State::CatchingUp,
        generation: Some(generation),
        in_main: false,
        restart_offset: Some(offset),
        ..live("a", "x", 1)
    };
    let progress = Progress {
        generation,
        position: Position::default(),
        next_offset: 10,
    };
    assert!(joining(&[loaded(10)], &progress)[0].in_main);
    assert!(joining(&[loaded(9)], &progress).is_empty());
    let other = TableState {
        generation: None,
        ..loaded(10)
    };
    assert!(joining(&[other], &progress).is_empty());
}
