//! TensorBoard's event file: records of scalars and pictures, appended one by one.
//!
//! A record is the length of its data (u64, little-endian), the masked CRC-32C of these eight bytes, the data, and the
//! masked CRC-32C of the data (`tensorflow/core/lib/io/record_writer.cc`). What was written stays written.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ReportError;
use crate::event_message::{Event, encode};

/// Appends to one event file. Each start of a run makes a file of its own beside the earlier ones.
///
/// Records wait in memory until [`EventWriter::flush`] or until 64 KiB of them have come together; dropping the writer writes
/// them too, but cannot report what fails.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventWriter {
    /// Begins `events.out.tfevents.<seconds since 1970>.<host>` in `folder`, which is made if missing.
    ///
    /// `first_step` is the first step that will be reported: 0, or where a resumed run goes on. TensorBoard forgets what
    /// earlier files of the folder say about that step and later ones.
    ///
    /// # Errors
    /// [`ReportError::Append`].
    pub fn create(folder: &Path, first_step: u64) -> Result<Self, ReportError> {
        create_dir_all(folder).map_err(|source| ReportError::Append { path: folder.to_owned(), source })?;
        let (path, file) = new_file(folder, now_s() as u64)?;
        let mut writer = Self { path, out: BufWriter::with_capacity(1 << 16, file) };
        writer.append(&encode(&Event::FileVersion, now_s(), 0))?;
        writer.append(&encode(&Event::SessionStart, now_s(), first_step))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One number. TensorBoard groups tags by what stands before their first `/`: `loss/train`. It keeps f32.
    ///
    /// # Errors
    /// [`ReportError::Append`].
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<(), ReportError> {
        self.append(&encode(&Event::Scalar { tag, value: value as f32 }, now_s(), step))
    }

    /// One picture: the bytes of a PNG file, RGB, of the given size.
    ///
    /// # Errors
    /// [`ReportError::Append`].
    pub fn image(
        &mut self,
        tag: &str,
        step: u64,
        png: &[u8],
        width_px: u32,
        height_px: u32,
    ) -> Result<(), ReportError> {
        self.append(&encode(&Event::Image { tag, png, width_px, height_px }, now_s(), step))
    }

    /// Hands all records to the system, so that readers see them.
    ///
    /// # Errors
    /// [`ReportError::Append`].
    pub fn flush(&mut self) -> Result<(), ReportError> {
        self.out.flush().map_err(|source| ReportError::Append { path: self.path.clone(), source })
    }

    fn append(&mut self, data: &[u8]) -> Result<(), ReportError> {
        write_record(&mut self.out, data).map_err(|source| ReportError::Append { path: self.path.clone(), source })
    }
}

fn write_record(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked_crc(&length).to_le_bytes())?;
    out.write_all(data)?;
    out.write_all(&masked_crc(data).to_le_bytes())
}

/// CRC-32C, rotated and shifted, so that a checksum of data that hold checksums stays one (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A file that did not exist. Two starts within a second, and starts after the clock was set back, get a later name: readers
/// take files in the order of their names.
fn new_file(folder: &Path, now_s: u64) -> Result<(PathBuf, File), ReportError> {
    let newest_s = event_files(folder).into_iter().max();
    let mut second = newest_s.map_or(now_s, |newest_s| now_s.max(newest_s + 1));
    loop {
        // Ten digits, as readers compare names as text.
        let path = folder.join(format!("events.out.tfevents.{second:010}.{}", host_name()));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => second += 1,
            Err(source) => return Err(ReportError::Append { path, source }),
        }
    }
}

/// The seconds in the names of the folder's event files.
fn event_files(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let seconds = |name: String| name.strip_prefix("events.out.tfevents.")?.split('.').next()?.parse().ok();
    names.filter_map(seconds).collect()
}

/// The machine's name as far as a file name can carry it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("COMPUTERNAME").ok());
    let name: String =
        name.unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// Seconds since 1970; 0 on a machine whose clock is before that.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by Python without TensorBoard:
    ///
    /// ```python
    /// import struct
    /// def crc32c(data):  # bit by bit, Castagnoli's polynomial, reflected
    ///     crc = 0xFFFFFFFF
    ///     for byte in data:
    ///         crc ^= byte
    ///         for _ in range(8):
    ///             crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    ///     return crc ^ 0xFFFFFFFF
    /// def masked(data):
    ///     crc = crc32c(data)
    ///     return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    /// def varint(n):
    ///     out = b""
    ///     while n > 127:
    ///         out, n = out + bytes([n & 127 | 128]), n >> 7
    ///     return out + bytes([n])
    /// def field(number, data):
    ///     return varint(number << 3 | 2) + varint(len(data)) + data
    /// def event(step, rest, time=1700000000.25):
    ///     return b"\x09" + struct.pack("<d", time) + (b"\x10" + varint(step) if step else b"") + rest
    /// def record(data):
    ///     length = struct.pack("<Q", len(data))
    ///     return (length + masked(length) + data + masked(data)).hex()
    /// scalar = field(1, b"loss/train") + b"\x15" + struct.pack("<f", 0.125)
    /// image = field(1, b"a") + field(4, b"\x08\x60\x10\x40\x18\x03" + field(4, b"PNG"))
    /// print(record(event(0, field(3, b"brain.Event:2"))))
    /// print(record(event(300, field(7, b"\x08\x01"))))
    /// print(record(event(300, field(5, field(1, scalar)))))
    /// print(record(event(1, field(5, field(1, image)))))
    /// ```
    const GOLDEN: [&str; 4] = [
        "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9",
        "100000000000000095fbfe180900001040fc54d94110ac023a0208016b3b88f1",
        "2100000000000000017becf60900001040fc54d94110ac022a130a110a0a6c6f73732f747261696e150000003e526e065a",
        "1f00000000000000514b44180900001040fc54d94110012a120a100a0161220b0860104018032203504e47827b468a",
    ];

    #[test]
    fn records_are_the_bytes_that_an_independent_writer_makes() {
        let events = [
            (Event::FileVersion, 0),
            (Event::SessionStart, 300),
            (Event::Scalar { tag: "loss/train", value: 0.125 }, 300),
            (Event::Image { tag: "a", png: b"PNG", width_px: 64, height_px: 96 }, 1),
        ];
        for ((event, step), golden) in events.iter().zip(GOLDEN) {
            let mut record = Vec::new();
            write_record(&mut record, &encode(event, 1700000000.25, *step)).unwrap();
            let hex: Vec<String> = record.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex.concat(), golden);
        }
    }

    #[test]
    fn a_start_never_touches_an_earlier_file_and_comes_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("tensorboard");
        let mut paths = Vec::new();
        for first_step in [0, 10, 20] {
            let mut writer = EventWriter::create(&place, first_step).unwrap();
            writer.scalar("loss", first_step, 0.5).unwrap();
            writer.flush().unwrap();
            paths.push((writer.path().to_owned(), std::fs::read(writer.path()).unwrap()));
        }
        assert!(paths.is_sorted_by(|(a, _), (b, _)| a < b), "{paths:?}");
        for (path, bytes) in &paths {
            assert_eq!(std::fs::read(path).unwrap(), *bytes);
        }
    }
}
