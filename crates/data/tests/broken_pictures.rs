//! Some hundred broken, hostile and odd pictures: none brings the program down, hangs it or takes its memory. Each is an
//! error that names the file, or the right picture. A test binary of its own, because it measures the process.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::time::Instant;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageBuffer, ImageFormat, LumaA, Rgb};
use loralei_data::{Alpha, DataError, Depth, Note, RgbImage, Size, decode_with, probe, survey};

const MAX_FILE_S: f64 = 10.0;
const MAX_GROWTH_MB: u64 = 300;

const QUADRANTS: [[u8; 3]; 4] = [[200, 30, 30], [30, 180, 40], [30, 40, 190], [240, 240, 240]];
/// What Pillow reads from the pictures with inks; see `pictures/make.py`.
const PILLOW_CMYK: [[u8; 3]; 4] = [[169, 25, 25], [25, 152, 34], [25, 34, 160], [202, 202, 202]];
const PILLOW_YCCK: [[u8; 3]; 4] = [[162, 0, 193], [215, 152, 112], [116, 202, 215], [0, 113, 0]];

/// Red, green / blue, white, no symmetry.
fn quadrants() -> RgbImage {
    RgbImage::from_fn(48, 32, |x, y| Rgb(QUADRANTS[usize::from(x >= 24) + 2 * usize::from(y >= 16)]))
}

/// Noise-like content that no format compresses to nothing.
fn busy(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        [x * x * 7 + y * 3, x * y * 5 + y * y, x * 13 + y * x * 11].map(|v| v as u8).into()
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image).unwrap();
    bytes
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name)).unwrap()
}

/// What must come of a file.
#[derive(Debug, Clone)]
enum Expected {
    Refused,
    /// Quadrants of these colours, with exactly these notes.
    Quadrants([[u8; 3]; 4], Vec<Note>),
    /// Exactly this picture, or an error.
    PictureOrRefused(RgbImage),
    /// Any picture or an error: the format has no checksum.
    Anything,
    Size(u32, u32),
}

struct Case {
    name: String,
    bytes: Vec<u8>,
    expected: Expected,
}

#[derive(Default)]
struct Corpus(Vec<Case>);

impl Corpus {
    fn add(&mut self, name: &str, bytes: Vec<u8>, expected: Expected) {
        let name = format!("{:03}_{name}", self.0.len());
        self.0.push(Case { name, bytes, expected });
    }
}

/// Whole files of every format, small ones.
fn whole_files() -> Vec<(&'static str, Vec<u8>)> {
    let image = busy(40, 30);
    let mut files = vec![("busy.jpg", jpeg(&image))];
    for (name, format) in [
        ("busy.png", ImageFormat::Png),
        ("busy.webp", ImageFormat::WebP),
        ("busy.gif", ImageFormat::Gif),
        ("busy.bmp", ImageFormat::Bmp),
        ("busy.tiff", ImageFormat::Tiff),
    ] {
        files.push((name, encoded(image.clone(), format)));
    }
    for name in [
        "progressive.jpg",
        "cmyk.jpg",
        "lossy.webp",
        "lossy_alpha.webp",
        "animated.webp",
        "animated.png",
        "animated.gif",
        "lzw.tif",
        "deflate.tif",
        "palette.bmp",
    ] {
        files.push((name, fixture(name)));
    }
    files
}

fn add_truncations(corpus: &mut Corpus, dir: &Path) {
    for (name, whole) in whole_files() {
        let path = dir.join(name);
        fs::write(&path, &whole).unwrap();
        let picture = decode_with(&path, Alpha::default()).unwrap().rgb;
        for place in 1..=14 {
            let kept = &whole[..whole.len() * place / 15];
            corpus.add(&format!("cut{place}_{name}"), kept.to_vec(), Expected::PictureOrRefused(picture.clone()));
        }
        corpus.add(
            &format!("cut_1_byte_{name}"),
            whole[..whole.len() - 1].to_vec(),
            Expected::PictureOrRefused(picture),
        );
    }
}

/// Marsaglia's xorshift: the same files in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

fn add_flips(corpus: &mut Corpus) {
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    for (name, whole) in whole_files() {
        for num_flips in [1, 1, 1, 1, 2, 4, 16, 64] {
            let mut bytes = whole.clone();
            for _ in 0..num_flips {
                let at = noise.below(bytes.len());
                bytes[at] ^= 1 << noise.below(8);
            }
            corpus.add(&format!("flip{num_flips}_{name}"), bytes, Expected::Anything);
        }
        // the header alone, where the sizes are
        for _ in 0..6 {
            let mut bytes = whole.clone();
            let at = noise.below(bytes.len().min(64));
            bytes[at] = noise.below(256) as u8;
            corpus.add(&format!("header_{name}"), bytes, Expected::Anything);
        }
    }
}

fn add_nonsense(corpus: &mut Corpus) {
    for extension in ["jpg", "png", "webp", "gif", "bmp", "tiff"] {
        corpus.add(&format!("empty.{extension}"), vec![], Expected::Refused);
        corpus.add(&format!("text.{extension}"), b"not a picture, only text\n".repeat(9), Expected::Refused);
        corpus.add(&format!("zeros.{extension}"), vec![0; 4096], Expected::Refused);
    }
    for (name, whole) in whole_files() {
        let head = whole[..16].to_vec();
        corpus.add(&format!("head_then_zeros_{name}"), [head.clone(), vec![0; 5000]].concat(), Expected::Refused);
        corpus.add(&format!("head_then_ff_{name}"), [head, vec![0xff; 5000]].concat(), Expected::Refused);
    }
    // another extension than the content: the content decides
    for (name, bytes) in [
        ("png.jpg", encoded(quadrants(), ImageFormat::Png)),
        ("bmp.png", encoded(quadrants(), ImageFormat::Bmp)),
        ("tiff.webp", encoded(quadrants(), ImageFormat::Tiff)),
        ("jpeg.gif", jpeg(&quadrants())),
    ] {
        corpus.add(name, bytes, Expected::Quadrants(QUADRANTS, vec![]));
    }
    for name in ["a.txt", "a.heic", "a"] {
        corpus.add(name, encoded(quadrants(), ImageFormat::Png), Expected::Refused);
    }
}

fn add_odd_formats(corpus: &mut Corpus) {
    let plain = |notes: &[Note]| Expected::Quadrants(QUADRANTS, notes.to_vec());
    for (name, notes) in [
        ("progressive.jpg", [].as_slice()),
        ("lossy.webp", &[]),
        ("lossy_alpha.webp", &[Note::Flattened]),
        ("animated.webp", &[Note::FirstFrame]),
        ("animated.png", &[Note::FirstFrame]),
        ("animated.gif", &[Note::FirstFrame]),
        ("lzw.tif", &[]),
        ("deflate.tif", &[]),
        ("pages.tif", &[]),
        ("palette.bmp", &[]),
        ("interlaced.gif", &[]),
    ] {
        corpus.add(name, fixture(name), plain(notes));
    }
    for name in ["cmyk.jpg", "ycck.jpg", "cmyk.tif"] {
        let expected = if name == "ycck.jpg" { PILLOW_YCCK } else { PILLOW_CMYK };
        corpus.add(name, fixture(name), Expected::Quadrants(expected, vec![Note::InksConverted]));
    }
    let mut twelve_bits = jpeg(&quadrants());
    let frame = twelve_bits.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    twelve_bits[frame + 4] = 12;
    corpus.add("twelve_bits.jpg", twelve_bits, Expected::Refused);

    let deep = ImageBuffer::from_fn(48, 32, |x, y| Rgb(quadrants().get_pixel(x, y).0.map(|v| u16::from(v) * 257)));
    corpus.add("deep.png", encoded(deep.clone(), ImageFormat::Png), plain(&[Note::Narrowed]));
    corpus.add("deep.tiff", encoded(deep, ImageFormat::Tiff), plain(&[Note::Narrowed]));
    let float = ImageBuffer::from_fn(48, 32, |x, y| Rgb(quadrants().get_pixel(x, y).0.map(|v| f32::from(v) / 255.0)));
    corpus.add("float.tiff", encoded(float, ImageFormat::Tiff), plain(&[Note::Narrowed]));

    let grey =
        ImageBuffer::from_fn(48, 32, |x, _| LumaA([if x < 24 { 100_u8 } else { 0 }, if x < 24 { 255 } else { 51 }]));
    let greys = [[100; 3], [204; 3], [100; 3], [204; 3]];
    corpus.add("grey_alpha.png", encoded(grey, ImageFormat::Png), Expected::Quadrants(greys, vec![Note::Flattened]));

    // 1 bit a pixel: the left half white
    let row = [0xff, 0xff, 0xff, 0, 0, 0];
    let bits = png(48, 32, 0, 1, false, &row.repeat(32));
    corpus.add("one_bit.png", bits, Expected::Quadrants([[255; 3], [0; 3], [255; 3], [0; 3]], vec![]));
    // a palette whose first colour is transparent
    let indices: Vec<u8> = (0..32).flat_map(|y| [0, 1].map(|x| [x + 2 * u8::from(y >= 16); 24])).flatten().collect();
    let palette = QUADRANTS.concat();
    let extra = [(*b"PLTE", palette), (*b"tRNS", vec![0])];
    let expected = [[255; 3], QUADRANTS[1], QUADRANTS[2], QUADRANTS[3]];
    let bytes = png_of_chunks(48, 32, 3, 8, false, &extra, &zlib_stored(&filtered(&indices, 48)));
    corpus.add("palette.png", bytes, Expected::Quadrants(expected, vec![Note::Flattened]));
    corpus.add("interlaced.png", png(48, 32, 2, 8, true, quadrants().as_raw()), plain(&[]));
}

fn add_bombs(corpus: &mut Corpus) {
    // real bombs: 64 megapixels in some hundred kilobytes, still within the limits
    for (name, color, depth) in [("rgb", png::ColorType::Rgb, 3), ("rgba", png::ColorType::Rgba, 4)] {
        corpus.add(
            &format!("zeros_{name}.png"),
            png_of_zeros(8_000, 8_000, color, depth),
            Expected::Size(8_000, 8_000),
        );
    }
    corpus.add(
        "grey_zeros.png",
        png_of_zeros(8_000, 8_000, png::ColorType::Grayscale, 1),
        Expected::Size(8_000, 8_000),
    );
    let inflates_to_512_mb = {
        let whole = png_of_zeros(16_000, 32_000, png::ColorType::Grayscale, 1);
        let start = whole.windows(4).position(|id| id == b"IDAT").unwrap();
        let length = u32::from_be_bytes(whole[start - 4..start].try_into().unwrap()) as usize;
        whole[start + 4..start + 4 + length].to_vec()
    };
    let pixels = zlib_stored(&filtered(quadrants().as_raw(), 48 * 3));
    for (id, head) in [(*b"iCCP", b"icc\0\0".as_slice()), (*b"zTXt", b"text\0\0"), (*b"iTXt", b"text\0\x01\0\0\0")] {
        let chunk = [head, &inflates_to_512_mb].concat();
        let bytes = png_of_chunks(48, 32, 2, 8, false, &[(id, chunk)], &pixels);
        corpus.add(
            &format!("bomb_in_{}.png", String::from_utf8_lossy(&id)),
            bytes,
            Expected::PictureOrRefused(quadrants()),
        );
    }
    // pixels that inflate to far more than the header says
    let bytes = png_of_chunks(48, 32, 2, 8, false, &[], &inflates_to_512_mb);
    corpus.add("more_than_promised.png", bytes, Expected::Anything);

    // sizes patched into headers
    for (width, height) in [(65_535_u16, 65_535_u16), (16_000, 16_000), (8_000, 8_000), (4_000, 4_000), (60_000, 10)] {
        let [w1, w0] = width.to_be_bytes();
        let [h1, h0] = height.to_be_bytes();
        for name in ["busy.jpg", "progressive.jpg", "cmyk.jpg"] {
            let mut bytes = if name == "busy.jpg" { jpeg(&busy(40, 30)) } else { fixture(name) };
            let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0] || pair == [0xff, 0xc2]).unwrap();
            bytes[frame + 5..frame + 9].copy_from_slice(&[h1, h0, w1, w0]);
            corpus.add(&format!("{width}_{height}_{name}"), bytes, Expected::Refused);
        }
        for name in ["animated.gif", "interlaced.gif"] {
            let mut bytes = fixture(name);
            bytes[6..10].copy_from_slice(&[w0, w1, h0, h1]); // the screen
            corpus.add(&format!("screen_{width}_{height}_{name}"), bytes.clone(), Expected::Anything);
            let frame = bytes.iter().rposition(|&byte| byte == 0x2c).unwrap();
            bytes[frame + 5..frame + 9].copy_from_slice(&[w0, w1, h0, h1]);
            corpus.add(&format!("frame_{width}_{height}_{name}"), bytes, Expected::Anything);
        }
        let mut bytes = encoded(busy(40, 30), ImageFormat::Bmp);
        bytes[18..26].copy_from_slice(&[w0, w1, 0, 0, h0, h1, 0, 0]);
        corpus.add(&format!("{width}_{height}.bmp"), bytes, Expected::Refused);
        let mut bytes = fixture("lossy.webp");
        bytes[26..30].copy_from_slice(&[w0, w1 & 0x3f, h0, h1 & 0x3f]);
        corpus.add(&format!("{width}_{height}_lossy.webp"), bytes, Expected::Refused);
        // a small canvas around a large picture: the decoder believes the picture first
        let mut bytes = fixture("lossy_alpha.webp");
        let frame = bytes.windows(3).position(|code| code == [0x9d, 0x01, 0x2a]).unwrap();
        bytes[frame + 3..frame + 7].copy_from_slice(&[w0, w1 & 0x3f, h0, h1 & 0x3f]);
        corpus.add(&format!("{width}_{height}_inside.webp"), bytes, Expected::Refused);
        for name in ["lzw.tif", "deflate.tif", "pages.tif"] {
            // every entry of the directory that holds 48 or 32: width, height, rows in a strip
            let mut bytes = fixture(name);
            for at in 0..bytes.len() - 12 {
                let value = match bytes[at..at + 4] {
                    [0, 1, 3 | 4, 0] => u32::from(width),
                    [1, 1, 3 | 4, 0] => u32::from(height),
                    _ => continue,
                };
                bytes[at + 2..at + 4].copy_from_slice(&[4, 0]);
                bytes[at + 8..at + 12].copy_from_slice(&value.to_le_bytes());
            }
            corpus.add(&format!("{width}_{height}_{name}"), bytes, Expected::Anything);
        }
    }
    // the last pass of a progressive picture, over and over
    let mut bytes = fixture("progressive.jpg");
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc2]).unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0x0f, 0xa0, 0x0f, 0xa0]); // 4000 x 4000
    let last_scan = bytes.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
    let scan = bytes[last_scan..bytes.len() - 2].to_vec();
    bytes.truncate(last_scan);
    bytes.extend(scan.repeat(4_000));
    bytes.extend([0xff, 0xd9]);
    corpus.add("passes.jpg", bytes, Expected::Refused);
}

#[test]
fn no_picture_brings_it_down_hangs_it_or_takes_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut corpus = Corpus::default();
    add_truncations(&mut corpus, dir.path());
    add_flips(&mut corpus);
    add_nonsense(&mut corpus);
    add_odd_formats(&mut corpus);
    add_bombs(&mut corpus);
    let num_cases = corpus.0.len();
    assert!(num_cases >= 300, "{num_cases}");
    let paths: Vec<_> = corpus.0.iter().map(|case| dir.path().join(&case.name)).collect();
    for (case, path) in corpus.0.iter_mut().zip(&paths) {
        fs::write(path, std::mem::take(&mut case.bytes)).unwrap();
    }

    let start_mb = peak_resident_mb();
    let mut failures = Vec::new();
    let mut slowest = (0.0, String::new());
    for (case, path) in corpus.0.iter().zip(&paths) {
        let started = Instant::now();
        let header = probe(path);
        let decoded = decode_with(path, Alpha::default());
        let elapsed_s = started.elapsed().as_secs_f64();
        if elapsed_s > slowest.0 {
            slowest = (elapsed_s, case.name.clone());
        }
        if elapsed_s > MAX_FILE_S {
            failures.push(format!("{}: took {elapsed_s:.1} s", case.name));
        }
        if let Ok(decoded) = &decoded {
            let size = Size::new(decoded.rgb.width(), decoded.rgb.height());
            if header.as_ref().map(|header| header.size).ok() != Some(size) {
                failures.push(format!("{}: the header says {header:?}, the picture is {size}", case.name));
            }
        }
        if let Err(what) = judged(case, decoded) {
            failures.push(format!("{}: {what}", case.name));
        }
    }
    let alone_mb = peak_resident_mb() - start_mb;

    let surveyed = survey(&paths, Depth::Pixels, |_| {});
    for ((case, path), result) in corpus.0.iter().zip(&paths).zip(&surveyed) {
        let decoded = decode_with(path, Alpha::default());
        if decoded.is_ok() != result.is_ok() {
            failures.push(format!("{}: alone {:?}, surveyed {result:?}", case.name, decoded.is_ok()));
        }
    }
    let growth_mb = peak_resident_mb() - start_mb;
    println!("{num_cases} pictures; peak +{alone_mb} MB one by one, +{growth_mb} MB surveyed; slowest {slowest:?}");
    assert!(failures.is_empty(), "{} of {num_cases}:\n{}", failures.len(), failures.join("\n"));
    assert!(growth_mb <= MAX_GROWTH_MB, "{growth_mb} MB");
}

fn judged(case: &Case, decoded: Result<loralei_data::Decoded, DataError>) -> Result<(), String> {
    let decoded = match decoded {
        Ok(decoded) => decoded,
        Err(error) => {
            let text = error.to_string();
            return match &case.expected {
                Expected::Quadrants(..) | Expected::Size(..) => Err(format!("refused: {text}")),
                _ if !text.contains(&case.name) || text.contains('\n') => {
                    Err(format!("not one line with the name: {text}"))
                }
                _ => Ok(()),
            };
        }
    };
    let dimensions = decoded.rgb.dimensions();
    match &case.expected {
        Expected::Refused => Err(format!("accepted, {dimensions:?}")),
        Expected::Anything => Ok(()),
        Expected::Size(width, height) if dimensions == (*width, *height) => Ok(()),
        Expected::Size(..) => Err(format!("{dimensions:?}")),
        Expected::PictureOrRefused(picture) if decoded.rgb == *picture => Ok(()),
        Expected::PictureOrRefused(_) => Err("another picture, in silence".to_owned()),
        Expected::Quadrants(_, notes) if decoded.notes != *notes => Err(format!("notes {:?}", decoded.notes)),
        Expected::Quadrants(colours, _) => {
            let found = [(12, 8), (36, 8), (12, 24), (36, 24)].map(|(x, y)| decoded.rgb.get_pixel(x, y).0);
            let worst = found.as_flattened().iter().zip(colours.as_flattened()).map(|(a, b)| a.abs_diff(*b)).max();
            if dimensions == (48, 32) && worst <= Some(6) { Ok(()) } else { Err(format!("{dimensions:?} {found:?}")) }
        }
    }
}

/// The most memory that this process has had resident. 0 where the system does not tell.
fn peak_resident_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// A PNG of black, compressed a thousandfold.
fn png_of_zeros(width: u32, height: u32, color: png::ColorType, bytes_per_pixel: usize) -> Vec<u8> {
    use std::io::Write;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_compression(png::Compression::High);
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer_with_size(1 << 25).unwrap();
    let row = vec![0; width as usize * bytes_per_pixel];
    for _ in 0..height {
        stream.write_all(&row).unwrap();
    }
    stream.finish().unwrap();
    writer.finish().unwrap();
    bytes
}

/// A PNG of raw samples by hand, for what `png` does not write.
fn png(width: u32, height: u32, color: u8, depth: u8, is_interlaced: bool, samples: &[u8]) -> Vec<u8> {
    let row_bytes = samples.len() / height as usize;
    let rows = if is_interlaced {
        adam7(samples, width as usize, height as usize, row_bytes / width as usize)
    } else {
        filtered(samples, row_bytes)
    };
    png_of_chunks(width, height, color, depth, is_interlaced, &[], &zlib_stored(&rows))
}

fn png_of_chunks(
    width: u32,
    height: u32,
    color: u8,
    depth: u8,
    is_interlaced: bool,
    extra: &[([u8; 4], Vec<u8>)],
    pixels: &[u8],
) -> Vec<u8> {
    let sizes = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [sizes, vec![depth, color, 0, 0, u8::from(is_interlaced)]].concat();
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend(chunk(*b"IHDR", &header));
    extra.iter().for_each(|(id, data)| bytes.extend(chunk(*id, data)));
    bytes.extend(chunk(*b"IDAT", pixels));
    bytes.extend(chunk(*b"IEND", &[]));
    bytes
}

fn chunk(id: [u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [id.as_slice(), data].concat();
    // the CRC-32 of the PNG specification, annex D
    let crc = !body.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc.to_be_bytes()].concat()
}

/// Every row behind a byte that says "no filter".
fn filtered(samples: &[u8], row_bytes: usize) -> Vec<u8> {
    samples.chunks(row_bytes).flat_map(|row| [&[0], row].concat()).collect()
}

/// The seven passes of the PNG specification, section 8.2.
fn adam7(samples: &[u8], width: usize, height: usize, pixel_bytes: usize) -> Vec<u8> {
    let mut rows = Vec::new();
    for (left, top, right, down) in
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    {
        for y in (top..height).step_by(down) {
            rows.push(0);
            for x in (left..width).step_by(right) {
                rows.extend_from_slice(&samples[(y * width + x) * pixel_bytes..][..pixel_bytes]);
            }
        }
    }
    rows
}

/// A zlib stream (RFC 1950) of one stored block.
fn zlib_stored(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    let (a, b) = data.iter().fold((1_u32, 0_u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    [&[0x78, 0x01, 1][..], &length.to_le_bytes(), &(!length).to_le_bytes(), data, &(b << 16 | a).to_be_bytes()].concat()
}
