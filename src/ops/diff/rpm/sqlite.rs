//! One table of an SQLite database ("Database File Format" in its documentation): `Packages`, whose
//! second column is the header. All numbers are big-endian.
//!
//! A table is a tree of pages: those inside lead to others, and leaves have cells, each with one row. What
//! of a row is too large for its page is in a chain of overflow pages.

use std::borrow::Cow;

use super::{Damage, Result, be16, be32, slice};

const MAGIC: &[u8] = b"SQLite format 3\0";
/// The size of the file's head, which the first page begins with.
const HEAD: usize = 100;
/// Types of pages.
const INTERIOR: u8 = 0x05;
const LEAF: u8 = 0x0d;
/// How deep a tree may be: SQLite's own has at most 20 levels.
const MAX_DEPTH: usize = 20;

const WHAT: &str = "a page";
const ROW: &str = "a row";

pub(super) fn is_one(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

pub(super) fn headers(file: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let page_size = match be16(file, 16, "its head")? {
        1 => 65536,
        size => usize::from(size),
    };
    let head = slice(file, 0, HEAD, "its head")?;
    let usable = page_size.checked_sub(usize::from(head[20])).filter(|&usable| usable >= 480);
    let (true, Some(usable)) = (page_size.is_power_of_two() && page_size >= 512, usable) else {
        return Err(Damage::Damaged("its head"));
    };
    if head[19] > 2 || head[18] > 2 {
        return Err(Damage::Unsupported("its version"));
    }
    let mut database = Database { file, page_size, usable, pages_left: file.len() / page_size };

    let mut root = None;
    database.walk(1, 0, &mut |row| {
        let (kind, name) = (column(row, 0)?, column(row, 1)?);
        if (kind, name) == (b"table".as_slice(), b"Packages".as_slice()) {
            let number = column(row, 3)?.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
            root = Some(number);
        }
        Ok(())
    })?;
    // A database that was just made has its tables, too.
    let root = root.ok_or(Damage::Damaged("the list of its tables"))?;
    database.pages_left = file.len() / page_size;
    database.walk(root, 0, &mut |row| each(column(row, 1)?))
}

struct Database<'a> {
    file: &'a [u8],
    page_size: usize,
    /// Bytes of a page that SQLite uses.
    usable: usize,
    /// How many more pages of a tree there can be, if none of them is in it twice.
    pages_left: usize,
}

impl<'a> Database<'a> {
    fn page(&self, number: usize) -> Result<&'a [u8]> {
        let index = number.checked_sub(1).ok_or(Damage::Damaged(WHAT))?;
        let at = index.checked_mul(self.page_size).ok_or(Damage::Damaged(WHAT))?;
        slice(self.file, at, self.page_size, WHAT)
    }

    fn walk(
        &mut self,
        number: usize,
        depth: usize,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let page = self.page(number)?;
        self.pages_left =
            self.pages_left.checked_sub(1).ok_or(Damage::Damaged("a tree of pages"))?;
        let head = if number == 1 { HEAD } else { 0 };
        let cells = usize::from(be16(page, head + 3, WHAT)?);
        let cell = |index: usize, head_size: usize| {
            Ok(usize::from(be16(page, head + head_size + 2 * index, WHAT)?))
        };
        match page[head] {
            LEAF => {
                for index in 0..cells {
                    each(&self.row(page, cell(index, 8)?)?)?;
                }
            }
            INTERIOR if depth < MAX_DEPTH => {
                for index in 0..cells {
                    let child = be32(page, cell(index, 12)?, WHAT)?;
                    self.walk(child as usize, depth + 1, each)?;
                }
                let last = be32(page, head + 8, WHAT)?;
                self.walk(last as usize, depth + 1, each)?;
            }
            _ => return Err(Damage::Damaged(WHAT)),
        }
        Ok(())
    }

    /// The row in the cell at `at`: its size, its number, and what of it is in this page.
    fn row(&self, page: &'a [u8], at: usize) -> Result<Cow<'a, [u8]>> {
        let (size, next) = varint(page, at)?;
        let (_, start) = varint(page, next)?;
        let size = usize::try_from(size).map_err(|_| Damage::Damaged(ROW))?;
        if size > self.file.len() {
            return Err(Damage::Damaged(ROW));
        }
        let most = self.usable - 35;
        if size <= most {
            return slice(page, start, size, ROW).map(Cow::Borrowed);
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let fitting = least + (size - least) % (self.usable - 4);
        let here = if fitting <= most { fitting } else { least };
        let mut row = Vec::with_capacity(size);
        row.extend_from_slice(slice(page, start, here, ROW)?);
        let mut number = be32(page, start + here, ROW)?;
        while row.len() < size {
            let page = self.page(number as usize)?;
            number = be32(page, 0, ROW)?;
            let part = (size - row.len()).min(self.usable - 4);
            row.extend_from_slice(slice(page, 4, part, ROW)?);
        }
        Ok(Cow::Owned(row))
    }
}

/// The bytes of a column: a text, a blob, or an integer as it is stored.
fn column(row: &[u8], wanted: usize) -> Result<&[u8]> {
    let (head, mut next) = varint(row, 0)?;
    let mut at = usize::try_from(head).map_err(|_| Damage::Damaged(ROW))?;
    let head = at;
    for index in 0.. {
        if next >= head {
            break;
        }
        let (kind, after) = varint(row, next)?;
        next = after;
        let size = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return Err(Damage::Damaged(ROW)),
            _ => (kind - 12) / 2,
        };
        let size = usize::try_from(size).map_err(|_| Damage::Damaged(ROW))?;
        if index == wanted {
            return slice(row, at, size, ROW);
        }
        at = at.checked_add(size).ok_or(Damage::Damaged(ROW))?;
    }
    Err(Damage::Damaged(ROW))
}

/// A number of one to nine bytes, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize)> {
    let mut number = 0;
    for index in 0..9 {
        let byte = slice(bytes, at + index, 1, ROW)?[0];
        if index == 8 {
            return Ok((number << 8 | u64::from(byte), at + 9));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Ok((number, at + index + 1));
        }
    }
    Err(Damage::Damaged(ROW))
}
