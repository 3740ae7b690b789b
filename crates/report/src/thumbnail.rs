//! Small pictures for the page, as they stand in it.
//!
//! They are kept in `.thumbnails/` of the run's folder, not in memory: so a page is rewritten without decoding a picture
//! twice, also by the next process after a resume, and by one that only looks at a finished run.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use loralei_adapter::{atomic_write_bytes, sha256_hex};

/// Longest side in pixels.
const MAX_SIDE_PX: u32 = 256;
/// JPEG quality: a picture of 256 px takes about 15 kB.
const QUALITY: u8 = 85;

/// The thumbnails of a run's folder.
#[derive(Debug)]
pub(crate) struct Thumbnails<'a> {
    run_folder: &'a Path,
    folder: PathBuf,
    used: HashSet<String>,
}

impl<'a> Thumbnails<'a> {
    pub(crate) fn of(run_folder: &'a Path) -> Self {
        Self { run_folder, folder: run_folder.join(".thumbnails"), used: HashSet::new() }
    }

    /// A picture as a `data:` address of a JPEG; `None` if there is no such picture (yet) or it cannot be read, which a
    /// page is no place to fail for.
    ///
    /// `file` is relative to the run's folder and stays within it.
    pub(crate) fn data_uri(&mut self, file: &str) -> Option<String> {
        let path = self.run_folder.join(file);
        let metadata = fs::metadata(&path).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        // A picture that is drawn anew has another time: its thumbnail has another name.
        let identity = format!("{file}\0{}\0{}", metadata.len(), modified.as_nanos());
        let name = format!("{}.jpg", &sha256_hex(identity.as_bytes())[..16]);
        let kept = self.folder.join(&name);
        self.used.insert(name);

        let jpeg = match fs::read(&kept) {
            Ok(jpeg) => jpeg,
            Err(_) => self.make(&path, &kept)?,
        };
        Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
    }

    /// Makes a thumbnail and keeps it. One that cannot be kept is made again the next time.
    fn make(&self, path: &Path, kept: &Path) -> Option<Vec<u8>> {
        let warn = |error: &dyn std::error::Error| {
            tracing::warn!(path = %path.display(), %error, "no thumbnail could be made");
        };
        let picture = loralei_data::decode(path).inspect_err(|error| warn(error)).ok()?;
        let longest_px = picture.width().max(picture.height()).max(1);
        let scaled = |side_px: u32| (side_px * MAX_SIDE_PX / longest_px).max(1);
        let small = if longest_px > MAX_SIDE_PX {
            image::imageops::thumbnail(&picture, scaled(picture.width()), scaled(picture.height()))
        } else {
            picture
        };
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&small).inspect_err(|error| warn(error)).ok()?;

        let written = fs::create_dir_all(&self.folder)
            .map_err(|error| warn(&error))
            .and_then(|()| atomic_write_bytes(kept, &jpeg).map_err(|error| warn(&error)));
        if written.is_err() {
            tracing::debug!("the page has the thumbnail all the same");
        }
        Some(jpeg)
    }

    /// Removes thumbnails that no picture asked for.
    pub(crate) fn remove_unused(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let is_ours = entry.path().extension().is_some_and(|extension| extension == "jpg");
            if is_ours
                && !self.used.contains(entry.file_name().to_string_lossy().as_ref())
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "an old thumbnail could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(picture: &image::RgbImage) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        picture.save(folder.path().join("a.png")).unwrap();
        folder
    }

    fn jpeg_of(uri: &str) -> image::RgbImage {
        let bytes = STANDARD.decode(uri.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        image::ImageReader::with_format(std::io::Cursor::new(bytes), image::ImageFormat::Jpeg)
            .decode()
            .unwrap()
            .into_rgb8()
    }

    #[test]
    fn a_wide_picture_keeps_its_shape_and_its_colours() {
        let picture =
            image::RgbImage::from_fn(640, 320, |x, _| if x < 320 { [200, 30, 60] } else { [20, 90, 160] }.into());
        let folder = folder_with(&picture);
        let jpeg = jpeg_of(&Thumbnails::of(folder.path()).data_uri("a.png").unwrap());
        assert_eq!(jpeg.dimensions(), (256, 128));
        let near = |pixel: &image::Rgb<u8>, colour: [u8; 3]| {
            pixel.0.iter().zip(colour).all(|(found, expected)| found.abs_diff(expected) < 12)
        };
        assert!(near(jpeg.get_pixel(40, 60), [200, 30, 60]) && near(jpeg.get_pixel(220, 60), [20, 90, 160]));
    }

    #[test]
    fn a_picture_is_decoded_once_and_again_when_it_has_changed() {
        let folder = folder_with(&image::RgbImage::from_pixel(64, 96, [10, 200, 30].into()));
        let of = |file: &str| {
            let mut thumbnails = Thumbnails::of(folder.path());
            let uri = thumbnails.data_uri(file);
            thumbnails.remove_unused();
            uri
        };
        let first = of("a.png").unwrap();
        let kept: Vec<_> =
            fs::read_dir(folder.path().join(".thumbnails")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(kept.len(), 1);
        // What lies there is taken as it is: nothing is decoded.
        let marked: &[u8] = b"kept";
        atomic_write_bytes(&kept[0], marked).unwrap();
        assert_eq!(of("a.png").unwrap(), format!("data:image/jpeg;base64,{}", STANDARD.encode(marked)));

        image::RgbImage::from_pixel(64, 97, [250, 20, 30].into()).save(folder.path().join("a.png")).unwrap();
        let second = of("a.png").unwrap();
        assert_eq!(jpeg_of(&second).dimensions(), (64, 97));
        assert_ne!(first, second);
        assert_eq!(fs::read_dir(folder.path().join(".thumbnails")).unwrap().count(), 1, "the old one is gone");
    }

    #[test]
    fn a_missing_or_damaged_picture_has_no_thumbnail() {
        let folder = tempfile::tempdir().unwrap();
        atomic_write_bytes(&folder.path().join("cut.png"), b"\x89PNG\r\n\x1a\n....").unwrap();
        let mut thumbnails = Thumbnails::of(folder.path());
        assert_eq!(thumbnails.data_uri("cut.png"), None);
        assert_eq!(thumbnails.data_uri("missing.png"), None);
    }
}
