//! Reading answers.

use ::scylla::deserialize::row::DeserializeRow;
use ::scylla::response::query_result::{QueryResult, QueryRowsResult};
use ::scylla::value::{CqlValue, Row};

use crate::StoreError;

/// What a failure can be caused by.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The rows of an answer.
pub(super) fn rows(statement: &'static str, result: QueryResult) -> Result<QueryRowsResult, StoreError> {
    result.into_rows_result().map_err(|error| StoreError::new(statement, error))
}

/// The first row of an answer, or `None` where there is none.
pub(super) fn first_row<R>(statement: &'static str, result: QueryResult) -> Result<Option<R>, StoreError>
where
    R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
{
    let rows = rows(statement, result)?;
    rows.maybe_first_row().map_err(|error| StoreError::new(statement, error))
}

/// Whether a conditional write was applied: the first column says so, and servers differ in what stands after it.
pub(super) fn was_applied(statement: &'static str, result: QueryResult) -> Result<bool, StoreError> {
    let row: Option<Row> = first_row(statement, result)?;
    match row.as_ref().and_then(|row| row.columns.first()) {
        Some(Some(CqlValue::Boolean(applied))) => Ok(*applied),
        _ => Err(StoreError::new(
            statement,
            "the answer to a conditional write does not say whether it was applied",
        )),
    }
}
