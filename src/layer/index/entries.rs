//! The entries of a layer as somebody else has listed them.

use super::{MAX_NOTES, Note, Table, TableError, table::TableBuilder};
use crate::layer::{
    Limits,
    tar::{Refusal, TarEntry},
};

/// Files are not larger than that.
const MAX_FILE_BYTES: u64 = 1 << 62;

/// Why there can be no index of what was listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::layer) enum AssemblyError {
    /// What is wrong with the last entry.
    #[error("{0}")]
    Entry(&'static str),
    /// What is wrong with another one, whose path this is.
    #[error("{1}")]
    Path(Vec<u8>, &'static str),
    /// What is wrong with the span of this number.
    #[error("{1}")]
    Span(u32, &'static str),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("there are more than {limit} entries")]
    TooManyEntries { limit: u32 },
    #[error("the files have more than {limit} bytes")]
    TooLarge { limit: u64 },
}

/// Takes entries.
pub(in crate::layer) struct Entries {
    pub(super) table: TableBuilder,
    limit: u32,
    /// Entries so far, with those that were refused.
    count: u64,
    pub(super) notes: Vec<Note>,
    pub(super) more_notes: u64,
}

impl Entries {
    pub(in crate::layer) fn new(limits: &Limits) -> Self {
        Self {
            table: TableBuilder::new(limits),
            limit: limits.max_entries,
            count: 0,
            notes: Vec::new(),
            more_notes: 0,
        }
    }

    /// Takes the next entry, or what of it is refused. Gives its number in the table.
    pub(in crate::layer) fn push(
        &mut self,
        raw_name: &[u8],
        entry: Result<&TarEntry, &Refusal>,
    ) -> Result<Option<u32>, AssemblyError> {
        self.pass_over()?;
        match entry {
            Ok(entry) if entry.size > MAX_FILE_BYTES => {
                Err(AssemblyError::Entry("it is too large"))
            }
            Ok(entry) => {
                let number = self.table.table().len();
                self.table.push(entry)?;
                Ok(Some(number))
            }
            Err(why) => {
                self.refuse(raw_name, why);
                Ok(None)
            }
        }
    }

    /// Takes the next entry, which is not to be shown.
    pub(in crate::layer) fn pass_over(&mut self) -> Result<(), AssemblyError> {
        if self.count >= u64::from(self.limit) {
            return Err(AssemblyError::TooManyEntries { limit: self.limit });
        }
        self.count += 1;
        Ok(())
    }

    /// Notes that the last entry, or something of it, is not shown.
    pub(in crate::layer) fn refuse(&mut self, raw_name: &[u8], why: &Refusal) {
        if self.notes.len() < MAX_NOTES {
            let number = self.count.saturating_sub(1);
            self.notes.push(Note::refused(number, raw_name.to_vec(), why));
        } else {
            self.more_notes += 1;
        }
    }

    pub(super) fn table(&self) -> &Table {
        self.table.table()
    }
}
