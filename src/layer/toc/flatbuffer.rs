//! Reading FlatBuffers, the binary form that SOCI's tables have, as far as those need it.
//!
//! ```text
//! buffer  where the root table is, from its own place: u32
//! table   where its vtable is, backwards from here: i32; then its fields
//! vtable  its bytes: u16; those of the table: u16; where each field is, from the table: u16, 0 for none
//! vector  how many elements: u32; then these. A text is one of bytes
//! ```
//!
//! All numbers are little-endian; what is not a number stands in its place as an offset, u32, from
//! there. Source: the binary format in the documentation of FlatBuffers.

use std::cell::Cell;

use super::TocError;

type Result<T> = std::result::Result<T, TocError>;

/// Several offsets may lead to the same place, so a small buffer could say as much as it liked. What
/// is read of texts and vectors is at most so many times the buffer; nobody repeats much.
const MOST_READ: usize = 4;

/// A buffer, which anybody may have made.
pub(super) struct Buffer<'a> {
    bytes: &'a [u8],
    /// Bytes of texts and vectors that may still be read.
    left: Cell<usize>,
}

/// A table in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: &'a Buffer<'a>,
    at: usize,
    /// Where each field is.
    fields: &'a [u8],
}

fn malformed() -> TocError {
    TocError::Packing("an offset in it leads nowhere")
}

impl<'a> Buffer<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, left: Cell::new(bytes.len().saturating_mul(MOST_READ)) }
    }

    pub(super) fn root(&'a self) -> Result<Table<'a>> {
        self.table(self.follow(0)?)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().ok_or_else(malformed)
    }

    /// Where the offset at `at` leads.
    fn follow(&self, at: usize) -> Result<usize> {
        let offset = u32::from_le_bytes(self.array(at)?) as usize;
        at.checked_add(offset).ok_or_else(malformed)
    }

    fn table(&'a self, at: usize) -> Result<Table<'a>> {
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let vtable = usize::try_from(at as i64 - back).map_err(|_| malformed())?;
        let length = usize::from(u16::from_le_bytes(self.array(vtable)?));
        let fields = vtable.checked_add(length).and_then(|end| self.bytes.get(vtable + 4..end));
        Ok(Table { buffer: self, at, fields: fields.ok_or_else(malformed)? })
    }

    /// The elements of the vector at `at`, of `size` bytes each.
    fn vector(&self, at: usize, size: usize) -> Result<(usize, &'a [u8])> {
        let count = u32::from_le_bytes(self.array(at)?) as usize;
        let begin = at + 4;
        let end = count.checked_mul(size).and_then(|bytes| begin.checked_add(bytes));
        let elements = end.and_then(|end| self.bytes.get(begin..end)).ok_or_else(malformed)?;
        let left = self.left.get().checked_sub(elements.len());
        self.left.set(left.ok_or(TocError::Packing("it says the same again and again"))?);
        Ok((begin, elements))
    }
}

impl<'a> Table<'a> {
    /// Where the field is with this number, counted from 0 as in the schema; `None` if it is left out.
    fn field(&self, number: usize) -> Option<usize> {
        let offset = self.fields.get(number * 2..)?.first_chunk()?;
        let offset = usize::from(u16::from_le_bytes(*offset));
        (offset > 0).then_some(self.at + offset)
    }

    /// A number of `N` bytes, little-endian; `None` if it has its default.
    fn number<const N: usize>(&self, number: usize) -> Result<Option<[u8; N]>> {
        self.field(number).map(|at| self.buffer.array(at)).transpose()
    }

    /// A `byte`, with its default.
    pub(super) fn i8(&self, number: usize, default: i8) -> Result<i8> {
        Ok(self.number(number)?.map_or(default, i8::from_le_bytes))
    }

    /// An `int`.
    pub(super) fn i32(&self, number: usize) -> Result<i32> {
        Ok(self.number(number)?.map_or(0, i32::from_le_bytes))
    }

    /// A `uint32`.
    pub(super) fn u32(&self, number: usize) -> Result<u32> {
        Ok(self.number(number)?.map_or(0, u32::from_le_bytes))
    }

    /// A `long` that counts something.
    pub(super) fn count(&self, number: usize) -> Result<u64> {
        let found = self.number(number)?.map_or(0, i64::from_le_bytes);
        u64::try_from(found).map_err(|_| TocError::Packing("a number in it is negative"))
    }

    /// A `string` or a vector of `ubyte`; empty if it is left out.
    pub(super) fn bytes(&self, number: usize) -> Result<&'a [u8]> {
        let Some(at) = self.field(number) else { return Ok(&[]) };
        self.buffer.vector(self.buffer.follow(at)?, 1).map(|(_, bytes)| bytes)
    }

    /// A table.
    pub(super) fn table(&self, number: usize) -> Result<Table<'a>> {
        let at = self.field(number).ok_or(TocError::Packing("a part of it is missing"))?;
        self.buffer.table(self.buffer.follow(at)?)
    }

    /// Where the elements of a vector are that are no numbers; none if it is left out.
    fn offsets(&self, number: usize) -> Result<impl Iterator<Item = usize> + use<'a>> {
        let (begin, elements) = match self.field(number) {
            Some(at) => self.buffer.vector(self.buffer.follow(at)?, 4)?,
            None => (0, &[][..]),
        };
        Ok((0..elements.len() / 4).map(move |element| begin + element * 4))
    }

    /// A vector of tables.
    pub(super) fn tables(
        &self,
        number: usize,
    ) -> Result<impl Iterator<Item = Result<Table<'a>>> + use<'a>> {
        let buffer = self.buffer;
        Ok(self.offsets(number)?.map(move |at| buffer.table(buffer.follow(at)?)))
    }

    /// A vector of `string`.
    pub(super) fn texts(
        &self,
        number: usize,
    ) -> Result<impl Iterator<Item = Result<&'a [u8]>> + use<'a>> {
        let buffer = self.buffer;
        let text = move |at| buffer.vector(buffer.follow(at)?, 1).map(|(_, text)| text);
        Ok(self.offsets(number)?.map(text))
    }
}
