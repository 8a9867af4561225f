//! rpm's own database (`lib/backend/ndb/rpmpkg.c` in its sources). All numbers are little-endian.
//!
//! A number of pages of slots begins the file, of which the first two slots are its header. A slot says
//! where in the file, in blocks of 16 bytes, the record of a package is.

use super::{Damage, Result, le32, slice};

const PAGE: usize = 4096;
const SLOT: usize = 16;
const BLOCK: usize = 16;
const RECORD_HEAD: usize = 16;

const WHAT: &str = "the table of packages";
const RECORD: &str = "the record of a package";

pub(super) fn is_one(file: &[u8]) -> bool {
    file.starts_with(b"RpmP")
}

pub(super) fn headers(file: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    if le32(file, 4, WHAT)? != 0 {
        return Err(Damage::Unsupported("its version"));
    }
    let pages = le32(file, 12, WHAT)? as usize;
    let size = pages.checked_mul(PAGE).ok_or(Damage::Damaged(WHAT))?;
    let slots = slice(file, 0, size, WHAT)?;
    for slot in slots.chunks_exact(SLOT).skip(2) {
        if !slot.starts_with(b"Slot") {
            return Err(Damage::Damaged(WHAT));
        }
        let (package, block) = (le32(slot, 4, WHAT)?, le32(slot, 8, WHAT)? as usize);
        if package == 0 {
            continue;
        }
        let at = block.checked_mul(BLOCK).ok_or(Damage::Damaged(WHAT))?;
        let head = slice(file, at, RECORD_HEAD, RECORD)?;
        if !head.starts_with(b"BlbS") || le32(head, 4, RECORD)? != package {
            return Err(Damage::Damaged(RECORD));
        }
        each(slice(file, at + RECORD_HEAD, le32(head, 12, RECORD)? as usize, RECORD)?)?;
    }
    Ok(())
}
