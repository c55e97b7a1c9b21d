//! Gathering COPY rows into parts of about a mebibyte.

/// A part is closed at the first row that ends at or after this many bytes.
pub(super) const PART_BYTES: usize = 1024 * 1024;

/// The largest row that can be sent, in bytes of COPY text: the limit of any event (see
/// docs/events.md), which leaves room for headers below the topic's `max.message.bytes`.
pub(super) const ROW_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whole COPY rows, to be sent as one record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// From 0, without gaps, within the chunk.
    pub(super) number: i32,
    pub(super) rows: u64,
    pub(super) data: Vec<u8>,
    /// Nothing of the chunk follows.
    pub(super) last: bool,
}

/// A row beyond [`ROW_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RowTooLarge {
    pub(super) bytes: usize,
}

/// Cuts the rows of one chunk into parts. A full part is held back until it is known
/// whether another follows, because the last one says so.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    gathered: Part,
    rows_total: u64,
}

impl Gatherer {
    /// Comes before each [`Gatherer::push`] of the same row, its newline included; returns a
    /// part that is complete and not last.
    pub(super) fn make_room(&mut self, row: &[u8]) -> Result<Option<Part>, RowTooLarge> {
        if row.len() > ROW_BYTES_MAX {
            return Err(RowTooLarge { bytes: row.len() });
        }
        let full = self.gathered.rows > 0
            && (self.gathered.data.len() >= PART_BYTES
                // A large row travels alone, so that a part never exceeds the larger of
                // twice PART_BYTES and one row.
                || self.gathered.data.len() + row.len() > 2 * PART_BYTES);
        Ok(full.then(|| self.close()))
    }

    /// Takes one row.
    pub(super) fn push(&mut self, row: &[u8]) {
        self.gathered.data.extend_from_slice(row);
        self.gathered.rows += 1;
        self.rows_total += 1;
    }

    /// The last part, which may be empty, and the rows of the whole chunk.
    pub(super) fn finish(mut self) -> (Part, u64) {
        self.gathered.last = true;
        (self.gathered, self.rows_total)
    }

    fn close(&mut self) -> Part {
        let next = Part {
            number: self.gathered.number + 1,
            data: Vec::with_capacity(PART_BYTES + PART_BYTES / 16),
            ..Part::default()
        };
        std::mem::replace(&mut self.gathered, next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gather(rows: &[Vec<u8>]) -> (Vec<Part>, u64) {
        let mut gatherer = Gatherer::default();
        let mut parts = Vec::new();
        for row in rows {
            parts.extend(gatherer.make_room(row).expect("small rows"));
            gatherer.push(row);
        }
        let (last, rows_total) = gatherer.finish();
        parts.push(last);
        (parts, rows_total)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn parts_hold_all_rows_in_order(
            lengths in proptest::collection::vec(
                prop_oneof![1_usize..200, 100_000_usize..400_000, Just(3 * PART_BYTES)], 0..12)
        ) {
            let rows: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(index, length)| vec![index as u8; *length])
                .collect();
            let (parts, rows_total) = gather(&rows);

            prop_assert_eq!(rows_total, rows.len() as u64);
            prop_assert_eq!(parts.iter().map(|part| part.rows).sum::<u64>(), rows_total);
            let joined: Vec<u8> = parts.iter().flat_map(|part| part.data.clone()).collect();
            prop_assert_eq!(joined, rows.concat());
            for (index, part) in parts.iter().enumerate() {
                prop_assert_eq!(part.number as usize, index);
                prop_assert_eq!(part.last, index + 1 == parts.len());
                prop_assert!(part.data.len() <= 2 * PART_BYTES || part.rows == 1);
                prop_assert!(part.rows > 0 || parts.len() == 1);
            }
        }
    }

    #[test]
    fn a_chunk_without_rows_is_one_empty_part() {
        let (parts, rows_total) = gather(&[]);
        assert_eq!(rows_total, 0);
        assert_eq!(
            parts,
            [Part {
                last: true,
                ..Part::default()
            }]
        );
    }

    #[test]
    fn refuses_a_row_that_no_record_can_hold() {
        let row = vec![b'x'; ROW_BYTES_MAX + 1];
        let refused = Gatherer::default().make_room(&row);
        assert_eq!(
            refused,
            Err(RowTooLarge {
                bytes: ROW_BYTES_MAX + 1
            })
        );
    }
}
