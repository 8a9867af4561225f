//! A hash of Berkeley DB (`dbinc/db_page.h` in its sources), in the byte order of the machine that made it.
//!
//! Pages of hash buckets hold offsets of items, keys and values by turns. A value that is too large for
//! a page is a chain of overflow pages. The key is the number of the package; number 0 is no package.

use std::borrow::Cow;

use super::{Damage, Result, be16, be32, slice};

/// The magic number of a hash, and where it is.
const MAGIC: u32 = 0x0006_1561;
const MAGIC_AT: usize = 12;

const PAGE_HEAD: usize = 26;
/// Types of pages.
const UNSORTED_HASH: u8 = 2;
const OVERFLOW: u8 = 7;
const SORTED_HASH: u8 = 13;
/// Types of items.
const IN_PAGE: u8 = 1;
const OFF_PAGE: u8 = 3;

const WHAT: &str = "a page";

pub(super) fn is_one(file: &[u8]) -> bool {
    let magic = be32(file, MAGIC_AT, WHAT);
    magic.is_ok_and(|magic| magic == MAGIC || magic.swap_bytes() == MAGIC)
}

pub(super) fn headers(file: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let is_big_endian = be32(file, MAGIC_AT, WHAT)? == MAGIC;
    let mut database = Database { file, is_big_endian, page_size: 0 };
    let (size, last) = (database.u32(file, 20)? as usize, database.u32(file, 32)? as usize);
    if !(512..=65536).contains(&size) || !size.is_power_of_two() {
        return Err(Damage::Damaged("its head"));
    }
    if file[24] != 0 {
        return Err(Damage::Unsupported("encryption"));
    }
    database.page_size = size;
    for number in 1..=last {
        let page = database.page(number)?;
        if matches!(page[25], UNSORTED_HASH | SORTED_HASH) {
            database.bucket(page, each)?;
        }
    }
    Ok(())
}

struct Database<'a> {
    file: &'a [u8],
    is_big_endian: bool,
    page_size: usize,
}

impl<'a> Database<'a> {
    fn u32(&self, bytes: &[u8], at: usize) -> Result<u32> {
        let number = be32(bytes, at, WHAT)?;
        Ok(if self.is_big_endian { number } else { number.swap_bytes() })
    }

    fn u16(&self, bytes: &[u8], at: usize) -> Result<usize> {
        let number = be16(bytes, at, WHAT)?;
        Ok(usize::from(if self.is_big_endian { number } else { number.swap_bytes() }))
    }

    fn page(&self, number: usize) -> Result<&'a [u8]> {
        let at = number.checked_mul(self.page_size).ok_or(Damage::Damaged(WHAT))?;
        slice(self.file, at, self.page_size, WHAT)
    }

    fn bucket(&self, page: &'a [u8], each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let items = self.u16(page, 20)?;
        let offset = |item: usize| self.u16(page, PAGE_HEAD + 2 * item);
        for key in (0..items.saturating_sub(1)).step_by(2) {
            // Items are laid down from the end of the page: each ends where the one before it begins.
            let key_end = if key == 0 { self.page_size } else { offset(key - 1)? };
            let (key_at, value_at) = (offset(key)?, offset(key + 1)?);
            let item = |at: usize, end: usize| page.get(at..end).ok_or(Damage::Damaged(WHAT));
            let (key, value) = (item(key_at, key_end)?, item(value_at, key_at)?);
            if key.get(1..).is_some_and(|number| number.iter().all(|&byte| byte == 0)) {
                continue;
            }
            each(&self.value(value)?)?;
        }
        Ok(())
    }

    fn value(&self, item: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        match item.split_first() {
            Some((&IN_PAGE, value)) => Ok(Cow::Borrowed(value)),
            Some((&OFF_PAGE, _)) => {
                let (first, size) = (self.u32(item, 4)? as usize, self.u32(item, 8)? as usize);
                if size > self.file.len() {
                    return Err(Damage::Damaged(WHAT));
                }
                self.overflow(first, size).map(Cow::Owned)
            }
            _ => Err(Damage::Unsupported("an item with duplicates")),
        }
    }

    /// The chain of pages that begins with `number`. Each has a part of `size` bytes, so it ends.
    fn overflow(&self, mut number: usize, size: usize) -> Result<Vec<u8>> {
        let mut value = Vec::with_capacity(size);
        while value.len() < size {
            let page = self.page(number)?;
            let part = slice(page, PAGE_HEAD, self.u16(page, 22)?, WHAT)?;
            if page[25] != OVERFLOW || part.is_empty() {
                return Err(Damage::Damaged(WHAT));
            }
            value.extend_from_slice(&part[..part.len().min(size - value.len())]);
            number = self.u32(page, 16)? as usize;
        }
        Ok(value)
    }
}
