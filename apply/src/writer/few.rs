//! Few rows, as parameters of the statements that merge them: one flight, and no staging table
//! (docs/adr/0062).
//!
//! A batch over many tables brings few rows to each. Staged, each table costs several flights
//! whatever it gets, and every commit empties all staging tables that the session has.

use bytes::BytesMut;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::array_literal::ArrayLiteral;
use super::keyed::Done;
use super::set::Staged;
use super::target::Target;
use crate::error::{Error, Result};
use crate::event::Row;

/// What is more is staged: parameters are text, and every statement reads all of them anew.
const ROWS_MAX: usize = 40;
const BYTES_MAX: usize = 64 * 1024;
/// Each different set of unchanged columns is a statement more.
pub(super) const MASKS_MAX: usize = 4;

/// Whether so many rows with so many bytes of text can be, and are better, parameters.
pub(super) fn are_few(target: &Target, rows: usize, bytes: impl FnOnce() -> usize) -> bool {
    target.few_sql.is_some() && rows <= ROWS_MAX && bytes() <= BYTES_MAX && !are_all_staged()
}

/// Tests of this program stage every row, where the environment asks for it.
pub(super) fn are_all_staged() -> bool {
    #[cfg(feature = "failpoints")]
    {
        static ASKED: std::sync::LazyLock<bool> =
            std::sync::LazyLock::new(|| std::env::var_os("TEST_STAGES_ALL_ROWS").is_some());
        *ASKED
    }
    #[cfg(not(feature = "failpoints"))]
    false
}

/// One array for each column that staged rows have, or the one of their keys.
#[derive(Debug)]
pub(super) struct Few(Vec<Array>);

impl Few {
    pub(super) fn of(target: &Target, rows: &[Staged<'_>]) -> Few {
        let mut own = [',', ',', ','].map(ArrayLiteral::new);
        for row in rows {
            let [n, op, mask] = &mut own;
            n.push_plain(&row.n.to_string());
            op.push_plain(row.op.letter().encode_utf8(&mut [0; 4]));
            mask.push_plain(&row.mask.to_string());
        }
        let columns = target.written.iter().zip(target.sql.elements());
        let columns = columns.map(|(&index, element)| {
            let mut values = ArrayLiteral::new(element.delimiter());
            for row in rows {
                values.push(row.row.cell(index));
            }
            values
        });
        let arrays = own.into_iter().chain(columns);
        Few(arrays.map(|array| Array(array.finish())).collect())
    }

    /// Only the keys of rows, where they have one column.
    pub(super) fn of_keys(target: &Target, rows: &[&Row]) -> Option<Few> {
        let (column, element) = target.sql.only_key()?;
        let index = target.written[column];
        let mut values = ArrayLiteral::new(element.delimiter());
        for row in rows {
            values.push(row.cell(index));
        }
        Some(Few(vec![Array(values.finish())]))
    }

    /// Of all arrays.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|array| array.0.len()).sum()
    }

    /// Runs statements over them, one after the other, in one flight, and gives what each gave.
    pub(super) async fn run(
        &self,
        client: &Client,
        target: &Target,
        statements: &[String],
    ) -> Result<Vec<Done>> {
        // They are sent in the order in which they are polled first, which is theirs. What fails at
        // the server lets the next ones fail, so the first error is the one.
        let done = join_all(statements.iter().map(|sql| self.run_one(client, sql))).await;
        let done: std::result::Result<Vec<Done>, _> = done.into_iter().collect();
        done.map_err(Error::sql(format!(
            "writing rows of {}",
            target.destination
        )))
    }

    async fn run_one(
        &self,
        client: &Client,
        sql: &str,
    ) -> std::result::Result<Done, tokio_postgres::Error> {
        // Each statement casts them to what they are.
        let arrays = self.0.iter().map(|array| (array, Type::UNKNOWN));
        let stream = client.query_typed_raw(sql, arrays).await?;
        let mut stream = std::pin::pin!(stream);
        let mut rows = Vec::new();
        while let Some(row) = stream.try_next().await? {
            let cells = (0..row.len()).map(|column| match row.columns()[column].type_() {
                &Type::INT8 => row
                    .try_get::<_, Option<i64>>(column)
                    .map(|number| number.map(|number| number.to_string())),
                _ => row.try_get(column),
            });
            rows.push(cells.collect::<std::result::Result<_, _>>()?);
        }
        Ok(Done::new(stream.rows_affected().unwrap_or_default(), rows))
    }
}

/// The literal of an array.
#[derive(Debug)]
struct Array(Vec<u8>);

impl ToSql for Array {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}
