//! Where a server's log ends.

use crate::{Error, Lsn, Result, ResultExt, Session};

/// The end of the last record of WAL, written out or not: what a session has seen of other
/// transactions was logged before it, and a walsender that has sent all there is says that it has
/// come as far.
pub async fn end_of_wal(session: &Session) -> Result<Lsn> {
    let row = session
        .query_one(
            "SELECT pg_current_wal_insert_lsn()::text, pg_size_bytes(current_setting('wal_segment_size'))",
            &[],
        )
        .await
        .doing("asking for the end of WAL")?;
    let text: String = row.get(0);
    let lsn = text
        .parse()
        .map_err(|error| Error::Invalid(format!("the end of WAL: {error}")))?;
    Ok(without_page_header(
        lsn,
        row.get::<_, i64>(1).unsigned_abs(),
    ))
}

/// On a page that holds nothing yet the insert position stands behind the page's header, where no
/// record ends: an idle server would never report having sent that much. The first page of a
/// segment has the longer header (`SizeOfXLogShortPHD`, `SizeOfXLogLongPHD` in
/// `access/xlog_internal.h`).
fn without_page_header(lsn: Lsn, segment_bytes: u64) -> Lsn {
    const PAGE: u64 = 8192;
    const HEADER: u64 = 24;
    const FIRST_HEADER: u64 = 40;
    let in_page = lsn.0 % PAGE;
    let is_first = segment_bytes > 0 && (lsn.0 - in_page).is_multiple_of(segment_bytes);
    let header = if is_first { FIRST_HEADER } else { HEADER };
    if in_page == header {
        Lsn(lsn.0 - header)
    } else {
        lsn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_page_ends_where_it_begins() {
        let at = |lsn| without_page_header(Lsn(lsn), 16 << 20).0;
        assert_eq!(at(0x2_0018), 0x2_0000);
        assert_eq!(at(0x2_0020), 0x2_0020);
        assert_eq!(at(0x2_0000), 0x2_0000);
    }

    #[test]
    fn the_first_page_of_a_segment_has_a_longer_header() {
        let at = |lsn| without_page_header(Lsn(lsn), 16 << 20).0;
        assert_eq!(at(0x300_0028), 0x300_0000);
        assert_eq!(at(0x300_0018), 0x300_0018);
        assert_eq!(at(0x300_2028), 0x300_2028);
        // Segments are larger elsewhere.
        assert_eq!(without_page_header(Lsn(0x300_0028), 64 << 20).0, 0x300_0028);
    }
}
