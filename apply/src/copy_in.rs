//! Rows into a COPY, gathered to writes of a decent size: in binary while the binary form of every
//! value is known here, as text from the first row on of which one is not.

use std::pin::Pin;
use std::sync::Arc;

use bunny_postgres::copy_binary::{self, Encoding, NotKnown};
use bunny_postgres::quote_ident;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Client, CopyInSink, Statement};

use crate::error::{Error, Result};

/// Smaller writes cost a wake-up of the connection's task each.
const WRITE_BYTES: usize = 128 * 1024;

/// What a COPY goes into.
pub(crate) struct Into<'a> {
    /// Quoted.
    pub(crate) table: &'a str,
    /// Quoted, with commas between them; None: all that there are.
    pub(crate) columns: Option<&'a str>,
    /// So many of the first are not the rows' own: their form is known without asking.
    pub(crate) own_columns: usize,
    /// Quoted names of the columns that are called c0, c1, … here; empty where each has its own name.
    pub(crate) staged: Vec<String>,
}

impl Into<'_> {
    fn copy(&self) -> String {
        match self.columns {
            Some(columns) => format!("COPY {} ({columns}) FROM STDIN", self.table),
            None => format!("COPY {} FROM STDIN", self.table),
        }
    }

    fn look(&self) -> String {
        format!(
            "SELECT {} FROM {} LIMIT 0",
            self.columns.unwrap_or("*"),
            self.table
        )
    }
}

/// The way into a table.
#[derive(Clone)]
pub(crate) struct Inlet {
    /// Without options.
    sql: String,
    statement: Statement,
    binary: Option<Binary>,
    /// As [`Into::staged`].
    staged: Arc<[String]>,
}

/// Rows go in binary.
#[derive(Clone)]
struct Binary {
    encodings: Arc<[Encoding]>,
    /// Gives no row of the columns. Its answer cannot change: if the table's columns are of other types by now,
    /// the server refuses it. If not, they stay as they are until the transaction ends.
    look: Statement,
}

impl Inlet {
    /// For text.
    pub(crate) async fn text(client: &Client, into: &Into<'_>, doing: &str) -> Result<Inlet> {
        let sql = into.copy();
        let statement = client.prepare(&sql).await.map_err(Error::sql(doing))?;
        Ok(Inlet {
            sql,
            statement,
            binary: None,
            staged: into.staged.as_slice().into(),
        })
    }

    /// For binary, if the form of every column is known here; else for text.
    pub(crate) async fn prepare(client: &Client, into: &Into<'_>, doing: &str) -> Result<Inlet> {
        let look = client
            .prepare(&into.look())
            .await
            .map_err(Error::sql(doing))?;
        let columns = look.columns().iter().skip(into.own_columns);
        let encodings: Option<Arc<[Encoding]>> =
            columns.map(|column| encoding_of(column.type_())).collect();
        // A row of no columns is not told from one of an empty column.
        let Some(encodings) = encodings.filter(|encodings| !encodings.is_empty()) else {
            return Inlet::text(client, into, doing).await;
        };
        let sql = into.copy();
        let statement = client
            .prepare(&format!("{sql} (FORMAT binary)"))
            .await
            .map_err(Error::sql(doing))?;
        Ok(Inlet {
            sql,
            statement,
            binary: Some(Binary { encodings, look }),
            staged: into.staged.as_slice().into(),
        })
    }

    pub(crate) fn is_binary(&self) -> bool {
        self.binary.is_some()
    }

    /// For rows that will go this way.
    pub(crate) fn gatherer(&self) -> Gatherer {
        let binary = self.binary.as_ref();
        Gatherer::new(binary.map(|binary| binary.encodings.clone()))
    }
}

/// A domain comes as what it stands for.
fn encoding_of(column: &Type) -> Option<Encoding> {
    Encoding::of(column.oid(), matches!(column.kind(), Kind::Enum(_)))
}

/// A row on its way into a COPY.
pub(crate) trait CopyRow {
    /// Appends its line of COPY text, without the line end.
    fn text(&self, out: &mut Vec<u8>);

    /// Appends it in binary.
    fn binary(
        &self,
        out: &mut Vec<u8>,
        encodings: &[Encoding],
    ) -> std::result::Result<(), NotKnown>;
}

/// Whole rows, all in one form.
pub(crate) struct Piece {
    bytes: Bytes,
    is_binary: bool,
}

impl Piece {
    /// Whole lines of COPY text.
    pub(crate) fn text(lines: Bytes) -> Piece {
        Piece {
            bytes: lines,
            is_binary: false,
        }
    }
}

/// Puts rows together to pieces, of which none in binary comes after one of text.
pub(crate) struct Gatherer {
    encodings: Option<Arc<[Encoding]>>,
    gathered: Vec<u8>,
}

impl Gatherer {
    /// Whether what comes next is a piece of text, whatever it holds.
    pub(crate) fn is_text(&self) -> bool {
        self.encodings.is_none() && self.gathered.is_empty()
    }

    pub(crate) fn new(encodings: Option<Arc<[Encoding]>>) -> Gatherer {
        Gatherer {
            encodings,
            gathered: Vec::new(),
        }
    }

    /// Takes a row, and gives a piece if one is complete.
    pub(crate) fn push(&mut self, row: &impl CopyRow) -> Option<Piece> {
        if let Some(encodings) = &self.encodings {
            let start = self.gathered.len();
            if row.binary(&mut self.gathered, encodings).is_ok() {
                return self.take_if_large();
            }
            self.gathered.truncate(start);
            let before = self.take();
            self.encodings = None;
            self.push_text(row);
            return before;
        }
        self.push_text(row);
        self.take_if_large()
    }

    /// What is left.
    pub(crate) fn rest(&mut self) -> Option<Piece> {
        self.take()
    }

    fn push_text(&mut self, row: &impl CopyRow) {
        row.text(&mut self.gathered);
        self.gathered.push(b'\n');
    }

    fn take_if_large(&mut self) -> Option<Piece> {
        match self.gathered.len() < WRITE_BYTES {
            true => None,
            false => self.take(),
        }
    }

    fn take(&mut self) -> Option<Piece> {
        let gathered = std::mem::take(&mut self.gathered);
        (!gathered.is_empty()).then(|| Piece {
            bytes: gathered.into(),
            is_binary: self.encodings.is_some(),
        })
    }
}

/// In which form the last rows of a COPY went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Went {
    AsPrepared,
    /// As text, though prepared for binary: a row had no binary form.
    AsText,
}

/// Copies rows.
pub(crate) async fn copy_rows<R: CopyRow>(
    client: &Client,
    inlet: Inlet,
    rows: impl Iterator<Item = R>,
    doing: String,
) -> Result<Went> {
    let mut gatherer = inlet.gatherer();
    let mut copy = CopyIn::begin(client, inlet, doing).await?;
    for row in rows {
        if let Some(piece) = gatherer.push(&row) {
            copy.send(client, piece).await?;
        }
    }
    if let Some(piece) = gatherer.rest() {
        copy.send(client, piece).await?;
    }
    copy.end_telling().await
}

/// Copies rows that were put together before.
pub(crate) async fn copy_pieces(
    client: &Client,
    inlet: Inlet,
    pieces: Vec<Piece>,
    doing: String,
) -> Result<Went> {
    let mut copy = CopyIn::begin(client, inlet, doing).await?;
    for piece in pieces {
        copy.send(client, piece).await?;
    }
    copy.end_telling().await
}

/// One flight: the look goes first, and if it is refused, so is the COPY.
async fn open(client: &Client, inlet: &Inlet, doing: &str) -> Result<CopyInSink<Bytes>> {
    let Some(binary) = &inlet.binary else {
        let sink = client.copy_in(&inlet.statement).await;
        return sink.map_err(Error::sql(doing));
    };
    let (seen, sink) = tokio::join!(
        biased;
        client.query(&binary.look, &[]),
        client.copy_in(&inlet.statement),
    );
    match seen {
        Ok(_) => sink.map_err(Error::sql(doing)),
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => Err(Error::NotYet(
            format!("{doing}: the types of its columns were changed meanwhile; beginning anew"),
        )),
        Err(error) => Err(Error::sql(doing)(error)),
    }
}

/// An open COPY … FROM STDIN. Dropped unfinished, it fails on the server.
pub(crate) struct CopyIn {
    inlet: Inlet,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    is_binary: bool,
    /// Taken by the server before the COPY that is open.
    rows: u64,
    doing: String,
}

impl CopyIn {
    pub(crate) async fn begin(client: &Client, inlet: Inlet, doing: String) -> Result<CopyIn> {
        let sink = open(client, &inlet, &doing).await?;
        let mut copy = CopyIn {
            is_binary: inlet.is_binary(),
            inlet,
            sink: Box::pin(sink),
            rows: 0,
            doing,
        };
        if copy.is_binary {
            copy.frame(copy_binary::begin).await?;
        }
        Ok(copy)
    }

    /// Waits while the server is busy.
    pub(crate) async fn send(&mut self, client: &Client, piece: Piece) -> Result<()> {
        match (self.is_binary, piece.is_binary) {
            (true, false) => self.go_on_as_text(client).await?,
            (false, true) => {
                return Err(Error::Inconsistent(format!(
                    "{}: rows in binary on their way into a COPY of text",
                    self.doing
                )));
            }
            _ => {}
        }
        self.send_bytes(piece.bytes).await
    }

    /// What was sent stays in the transaction; what comes is a COPY of its own.
    async fn go_on_as_text(&mut self, client: &Client) -> Result<()> {
        self.end().await?;
        let sink = client
            .copy_in(self.inlet.sql.as_str())
            .await
            .map_err(Error::sql(self.doing.as_str()))?;
        self.sink = Box::pin(sink);
        self.is_binary = false;
        Ok(())
    }

    /// Ends it and gives the rows that the server took. What it has against one of them is said here,
    /// not while sending.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        self.end().await?;
        Ok(self.rows)
    }

    async fn end_telling(mut self) -> Result<Went> {
        self.end().await?;
        match self.is_binary == self.inlet.is_binary() {
            true => Ok(Went::AsPrepared),
            false => Ok(Went::AsText),
        }
    }

    async fn end(&mut self) -> Result<()> {
        if self.is_binary {
            self.frame(copy_binary::end).await?;
        }
        let ended = self.sink.as_mut().finish().await;
        self.rows += ended.map_err(|error| self.refused(error))?;
        Ok(())
    }

    async fn frame(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.send_bytes(bytes.into()).await
    }

    async fn send_bytes(&mut self, bytes: Bytes) -> Result<()> {
        let sent = self.sink.send(bytes).await;
        sent.map_err(|error| self.refused(error))
    }

    /// With the column whose value the server did not take: its message names the value only.
    fn refused(&self, error: tokio_postgres::Error) -> Error {
        let context = error.as_db_error().and_then(|error| error.where_());
        let column = context.and_then(column_at).map(|column| {
            let own = column
                .strip_prefix('c')
                .and_then(|index| index.parse::<usize>().ok())
                .and_then(|index| self.inlet.staged.get(index));
            own.cloned().unwrap_or_else(|| quote_ident(column))
        });
        match column {
            Some(column) => Error::sql(format!("{}, column {column}", self.doing))(error),
            None => Error::sql(self.doing.as_str())(error),
        }
    }
}

/// The column that the context of a COPY's error names: `COPY t, line 3, column v: "…"`, in binary
/// without the value.
fn column_at(context: &str) -> Option<&str> {
    let (_, line) = context.lines().find_map(|line| {
        let line = line.strip_prefix("COPY ")?;
        line.split_once(", line ")
    })?;
    let (number, column) = line.split_once(", column ")?;
    number.parse::<u64>().ok()?;
    let column = column.split_once(": ").map_or(column, |(name, _)| name);
    Some(column)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte, of which none above 9 has a binary form.
    struct Digit(u8);

    impl CopyRow for Digit {
        fn text(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.to_string().as_bytes());
        }

        fn binary(
            &self,
            out: &mut Vec<u8>,
            _encodings: &[Encoding],
        ) -> std::result::Result<(), NotKnown> {
            out.push(self.0);
            match self.0 {
                ..=9 => Ok(()),
                _ => Err(NotKnown),
            }
        }
    }

    fn gathered(digits: &[u8], encodings: Option<Arc<[Encoding]>>) -> Vec<(bool, Vec<u8>)> {
        let mut gatherer = Gatherer::new(encodings);
        let mut pieces: Vec<Piece> = digits
            .iter()
            .filter_map(|&digit| gatherer.push(&Digit(digit)))
            .collect();
        pieces.extend(gatherer.rest());
        pieces
            .into_iter()
            .map(|piece| (piece.is_binary, piece.bytes.to_vec()))
            .collect()
    }

    #[test]
    fn from_a_row_without_a_binary_form_on_all_is_text() {
        let binary = || Some(Arc::from([]));
        assert_eq!(gathered(&[1, 2], binary()), [(true, vec![1, 2])]);
        assert_eq!(
            gathered(&[1, 10, 2], binary()),
            [(true, vec![1]), (false, b"10\n2\n".to_vec())]
        );
        assert_eq!(gathered(&[11], binary()), [(false, b"11\n".to_vec())]);
        assert_eq!(gathered(&[1], None), [(false, b"1\n".to_vec())]);
        assert_eq!(gathered(&[], binary()), []);
    }

    #[test]
    fn a_refused_value_is_one_of_a_column() {
        for (context, column) in [
            ("COPY t, line 3, column v: \"infinity\"", Some("v")),
            ("COPY t, line 3, column the column", Some("the column")),
            ("COPY t, line 1, column v: null input", Some("v")),
            ("COPY t, line 1: \"1\tx, column y: z\"", None),
            (
                "SQL function \"f\"\nCOPY t, line 12, column c1: \", line 1, column x\"",
                Some("c1"),
            ),
            ("PL/pgSQL function f() line 3 at RAISE", None),
        ] {
            assert_eq!(column_at(context), column, "{context}");
        }
    }

    #[test]
    fn pieces_are_large() {
        let pieces = gathered(&vec![7; 2 * WRITE_BYTES + 1], Some(Arc::from([])));
        let sizes: Vec<usize> = pieces.iter().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(sizes, [WRITE_BYTES, WRITE_BYTES, 1]);
    }
}
