//! Bytes taken one after the other, with an end that is an answer and not a panic.

/// A position in some bytes. Every method gives `None` where the bytes end too early.
#[derive(Debug)]
pub(crate) struct ByteCursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> ByteCursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// How many bytes have been taken.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn take(&mut self, num_bytes: usize) -> Option<&'a [u8]> {
        let part = self.bytes.get(self.position..)?.get(..num_bytes)?;
        self.position += num_bytes;
        Some(part)
    }

    /// A line without its newline.
    pub(crate) fn line(&mut self) -> Option<&'a [u8]> {
        let length = self.bytes.get(self.position..)?.iter().position(|byte| *byte == b'\n')?;
        let line = self.take(length)?;
        self.take(1)?;
        Some(line)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    /// Little-endian, as are the longer ones.
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
