//! Where the entries of a zip archive are.
//!
//! As much of the format (APPNOTE 6.3.10) as PyTorch's files need: entries stored without compression, the directory at
//! the end, and its 64-bit form for files above 4 GB.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::byte_cursor::ByteCursor;
use crate::byte_source::ByteSource;
use crate::error::AdapterError;

/// The first bytes of an archive that is not empty.
pub(crate) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

const END_BYTES: u64 = 22;
const MAX_COMMENT_BYTES: u64 = u16::MAX as u64;
const LOCATOR_BYTES: u64 = 20;
const END_64_BYTES: u64 = 56;
const LOCAL_HEADER_BYTES: u64 = 30;
/// A tensor is an entry, and no file has more than 100,000 tensors and a handful of other entries.
const MAX_ENTRIES: u64 = 110_000;
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
const IS_ENCRYPTED: u16 = 1;
const STORED: u16 = 0;
const ZIP64_EXTRA: u16 = 1;

/// The entries of an archive by name.
#[derive(Debug)]
pub(crate) struct ZipDirectory {
    entries: BTreeMap<String, ZipEntry>,
}

#[derive(Debug)]
struct ZipEntry {
    header_start: u64,
    num_bytes: u64,
    is_stored: bool,
}

/// Position, size and number of entries of the directory.
struct DirectoryPlace {
    begin: u64,
    num_bytes: u64,
    num_entries: u64,
}

impl ZipDirectory {
    pub(crate) fn read(source: &ByteSource) -> Result<Self, AdapterError> {
        let broken = |problem| AdapterError::BadZip { path: source.path().to_owned(), problem };
        let place = directory_place(source)?;
        let is_inside = place.begin.checked_add(place.num_bytes).is_some_and(|end| end <= source.num_bytes());
        if !is_inside || place.num_bytes > MAX_DIRECTORY_BYTES || place.num_entries > MAX_ENTRIES {
            return Err(broken("its directory is outside the file or too large"));
        }
        let bytes = source.read(place.begin, place.num_bytes)?;
        let mut cursor = ByteCursor::new(&bytes);
        let mut entries = BTreeMap::new();
        for _ in 0..place.num_entries {
            let (name, entry) =
                parse_entry(&mut cursor).ok_or_else(|| broken("an entry of its directory is damaged"))?;
            if entries.insert(name, entry).is_some() {
                return Err(broken("an entry occurs twice"));
            }
        }
        Ok(Self { entries })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where the bytes of an entry are in the file, checked to lie inside; `None` if there is no such entry.
    pub(crate) fn range(&self, source: &ByteSource, name: &str) -> Result<Option<Range<u64>>, AdapterError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let broken = |problem| AdapterError::BadZip { path: source.path().to_owned(), problem };
        if !entry.is_stored {
            return Err(broken("an entry is compressed or encrypted, as PyTorch never writes it"));
        }
        let data = entry.header_start.checked_add(LOCAL_HEADER_BYTES).filter(|end| *end <= source.num_bytes());
        let data = data.ok_or_else(|| broken("an entry lies outside the file"))?;
        let header = source.read(entry.header_start, LOCAL_HEADER_BYTES)?;
        // Name and padding are as long as this header says; the directory's own copy may differ.
        let skipped = parse_local_header(&header).ok_or_else(|| broken("the header of an entry is damaged"))?;
        let begin = data + skipped;
        match begin.checked_add(entry.num_bytes) {
            Some(end) if end <= source.num_bytes() => Ok(Some(begin..end)),
            _ => Err(broken("an entry lies outside the file")),
        }
    }
}

/// Finds the record at the end of the file, behind which only a comment may follow.
fn directory_place(source: &ByteSource) -> Result<DirectoryPlace, AdapterError> {
    let broken = |problem| AdapterError::BadZip { path: source.path().to_owned(), problem };
    let tail_bytes = source.num_bytes().min(END_BYTES + MAX_COMMENT_BYTES);
    let tail_start = source.num_bytes() - tail_bytes;
    let tail = source.read(tail_start, tail_bytes)?;
    let found = (0..=tail.len().saturating_sub(END_BYTES as usize))
        .rev()
        .find_map(|position| Some((position, parse_end(tail.get(position..)?)?)));
    let (position, place) = found.ok_or_else(|| broken("the directory at its end is missing"))?;

    let end_start = tail_start + position as u64;
    let Some(locator_start) = end_start.checked_sub(LOCATOR_BYTES) else { return Ok(place) };
    let locator = source.read(locator_start, LOCATOR_BYTES)?;
    let Some(end_64_start) = parse_locator(&locator) else { return Ok(place) };
    if end_64_start.checked_add(END_64_BYTES).is_none_or(|end| end > locator_start) {
        return Err(broken("its 64-bit directory lies outside the file"));
    }
    parse_end_64(&source.read(end_64_start, END_64_BYTES)?).ok_or_else(|| broken("its 64-bit directory is damaged"))
}

fn parse_end(bytes: &[u8]) -> Option<DirectoryPlace> {
    let mut cursor = ByteCursor::new(bytes);
    (cursor.take(4)? == b"PK\x05\x06").then_some(())?;
    let _disks = cursor.u32()?;
    let _num_entries_here = cursor.u16()?;
    let num_entries = u64::from(cursor.u16()?);
    let num_bytes = u64::from(cursor.u32()?);
    let begin = u64::from(cursor.u32()?);
    let comment_bytes = usize::from(cursor.u16()?);
    (bytes.len() == END_BYTES as usize + comment_bytes).then_some(DirectoryPlace { begin, num_bytes, num_entries })
}

fn parse_locator(bytes: &[u8]) -> Option<u64> {
    let mut cursor = ByteCursor::new(bytes);
    (cursor.take(4)? == b"PK\x06\x07").then_some(())?;
    let _disk = cursor.u32()?;
    cursor.u64()
}

fn parse_end_64(bytes: &[u8]) -> Option<DirectoryPlace> {
    let mut cursor = ByteCursor::new(bytes);
    (cursor.take(4)? == b"PK\x06\x06").then_some(())?;
    let _record_bytes = cursor.u64()?;
    let _versions = cursor.u32()?;
    let _disks = cursor.u64()?;
    let _num_entries_here = cursor.u64()?;
    let num_entries = cursor.u64()?;
    let num_bytes = cursor.u64()?;
    Some(DirectoryPlace { begin: cursor.u64()?, num_bytes, num_entries })
}

fn parse_entry(cursor: &mut ByteCursor) -> Option<(String, ZipEntry)> {
    (cursor.take(4)? == b"PK\x01\x02").then_some(())?;
    let _versions = cursor.u32()?;
    let flags = cursor.u16()?;
    let method = cursor.u16()?;
    let _time_and_checksum = cursor.u64()?;
    let stored_bytes = cursor.u32()?;
    let num_bytes = cursor.u32()?;
    let [name_bytes, extra_bytes, comment_bytes] = [cursor.u16()?, cursor.u16()?, cursor.u16()?];
    let _disk_and_attributes = cursor.u64()?;
    let header_start = cursor.u32()?;
    let name = std::str::from_utf8(cursor.take(name_bytes.into())?).ok()?.to_owned();
    let extra = cursor.take(extra_bytes.into())?;
    cursor.take(comment_bytes.into())?;

    // A number that does not fit 32 bits has all of them set here and stands, in this order, in the 64-bit field.
    let mut wide = zip64_field(extra).map(ByteCursor::new);
    let mut widened = |narrow: u32| match (narrow, &mut wide) {
        (u32::MAX, Some(field)) => field.u64(),
        _ => Some(u64::from(narrow)),
    };
    let num_bytes = widened(num_bytes)?;
    let is_whole = widened(stored_bytes)? == num_bytes;
    let header_start = widened(header_start)?;
    let is_stored = method == STORED && flags & IS_ENCRYPTED == 0 && is_whole;
    Some((name, ZipEntry { header_start, num_bytes, is_stored }))
}

fn zip64_field(extra: &[u8]) -> Option<&[u8]> {
    let mut cursor = ByteCursor::new(extra);
    loop {
        let (kind, num_bytes) = (cursor.u16()?, cursor.u16()?);
        let field = cursor.take(num_bytes.into())?;
        if kind == ZIP64_EXTRA {
            return Some(field);
        }
    }
}

/// How many bytes stand between a local header and its entry's data.
fn parse_local_header(bytes: &[u8]) -> Option<u64> {
    let mut cursor = ByteCursor::new(bytes);
    (cursor.take(4)? == ZIP_MAGIC).then_some(())?;
    cursor.take(22)?; // versions, flags, method, time, checksum, sizes: the directory has them
    Some(u64::from(cursor.u16()?) + u64::from(cursor.u16()?))
}
