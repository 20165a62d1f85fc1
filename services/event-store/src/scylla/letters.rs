//! What an operator did with dead letters: each is retried or dropped once, whoever else is at it.

use std::collections::HashMap;

use ::scylla::response::query_result::QueryRowsResult;
use timeline::Timestamp;
use uuid::Uuid;

use super::ScyllaStore;
use super::results::{Cause, was_applied};
use crate::StoreError;

/// What was done with a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterState {
    /// A run is about to send it again, or was when it ended.
    Retrying,
    /// It was sent again.
    Retried,
    /// It is to be left alone.
    Dropped,
}

impl LetterState {
    /// The state as it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            LetterState::Retrying => "retrying",
            LetterState::Retried => "retried",
            LetterState::Dropped => "dropped",
        }
    }

    fn parse(name: &str) -> Option<LetterState> {
        [LetterState::Retrying, LetterState::Retried, LetterState::Dropped]
            .into_iter()
            .find(|state| state.name() == name)
    }
}

/// A letter that was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterMark {
    /// What was done.
    pub state: LetterState,
    /// By which run.
    pub run: Uuid,
    /// When.
    pub at: Timestamp,
}

impl ScyllaStore {
    /// Every letter that was dealt with, by the place of its message.
    pub async fn letter_marks(&self) -> Result<HashMap<String, LetterMark>, StoreError> {
        let marks = self.read(&self.statements.list_letters, (), decode_marks).await?;
        Ok(marks.into_iter().collect())
    }

    /// Marks a letter that nobody has marked; `None` where that was done, else the mark that is there.
    pub async fn mark_letter(&self, place: &str, mark: LetterMark) -> Result<Option<LetterMark>, StoreError> {
        let statement = &self.statements.insert_letter;
        let answer = self.execute(statement, (place, mark.state.name(), mark.run, mark.at.0)).await?;
        if was_applied(statement.name, answer)? {
            return Ok(None);
        }
        match self.read_letter(place).await? {
            // An answer that was lost, and asked for again.
            Some(there) if there == mark => Ok(None),
            Some(there) => Ok(Some(there)),
            None => Err(StoreError::new(statement.name, "a letter was marked, and has no mark")),
        }
    }

    /// Puts `mark` in the place of the one that was `seen`; `false` where another was quicker.
    pub async fn change_letter(
        &self,
        place: &str,
        seen: LetterMark,
        mark: LetterMark,
    ) -> Result<bool, StoreError> {
        let statement = &self.statements.update_letter;
        let values = (mark.state.name(), mark.run, mark.at.0, place, seen.state.name(), seen.run, seen.at.0);
        if was_applied(statement.name, self.execute(statement, values).await?)? {
            return Ok(true);
        }
        Ok(self.read_letter(place).await? == Some(mark))
    }

    async fn read_letter(&self, place: &str) -> Result<Option<LetterMark>, StoreError> {
        let there = self.read(&self.statements.read_letter, (place,), decode_marks).await?.pop();
        Ok(there.map(|(_, mark)| mark))
    }
}

fn decode_marks(page: &QueryRowsResult, marks: &mut Vec<(String, LetterMark)>) -> Result<(), Cause> {
    for row in page.rows::<(String, &str, Uuid, i64)>()? {
        let (place, state, run, at) = row?;
        let state =
            LetterState::parse(state).ok_or_else(|| format!("a letter is in the unknown state '{state}'"))?;
        marks.push((place, LetterMark { state, run, at: Timestamp(at) }));
    }
    Ok(())
}
