//! `loralei doctor`: what this program and this machine can do.

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use serde::Serialize;

use crate::args::DoctorArguments;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    platform: String,
    /// Devices to compute on: `cpu`, and the cards.
    devices: Vec<String>,
    /// Why no card can be used.
    no_card: Option<String>,
    processor: Option<String>,
    /// Threads that the run will use.
    num_cores: usize,
    memory_bytes: Option<u64>,
    available_memory_bytes: Option<u64>,
    /// Vector instructions that matter to speed, and whether the processor has them.
    simd: BTreeMap<&'static str, bool>,
}

pub(crate) fn run(arguments: &DoctorArguments) -> anyhow::Result<()> {
    let findings = Findings::new();
    let text = if arguments.json { serde_json::to_string(&findings)? + "\n" } else { findings.to_text() };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

impl Findings {
    fn new() -> Self {
        let (cards, no_card) = cards();
        let meminfo = proc_file("meminfo");
        let kib = |name: &str| field(&meminfo, name)?.strip_suffix("kB")?.trim().parse::<u64>().ok();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            devices: std::iter::once("cpu".to_owned()).chain(cards).collect(),
            no_card,
            processor: field(&proc_file("cpuinfo"), "model name").map(str::to_string),
            num_cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: kib("MemTotal").map(|kib| kib * 1024),
            available_memory_bytes: kib("MemAvailable").map(|kib| kib * 1024),
            simd: simd(),
        }
    }

    fn to_text(&self) -> String {
        let gib = |bytes: Option<u64>| {
            bytes.map_or("unknown".to_string(), |b| format!("{:.1} GiB", b as f64 / f64::powi(2.0, 30)))
        };
        let names = |wanted: bool| {
            let names: Vec<_> = self.simd.iter().filter(|(_, has)| **has == wanted).map(|(name, _)| *name).collect();
            if names.is_empty() { "none".to_string() } else { names.join(" ") }
        };
        let lines = [
            ("loralei", self.version.to_string()),
            ("platform", self.platform.clone()),
            ("devices", self.devices.join("; ")),
            ("cards", self.no_card.clone().unwrap_or_else(|| "as above".to_owned())),
            ("processor", self.processor.clone().unwrap_or("unknown".to_string())),
            ("cores", self.num_cores.to_string()),
            ("memory", format!("{}, {} available", gib(self.memory_bytes), gib(self.available_memory_bytes))),
            ("simd", names(true)),
            ("missing", names(false)),
        ];
        lines.map(|(name, value)| format!("{name:<10} {value}\n")).concat()
    }
}

/// The cards that can be used, or why there is none.
#[cfg(feature = "cuda")]
fn cards() -> (Vec<String>, Option<String>) {
    match loralei_model::cuda_runtime::cards() {
        Ok(cards) => {
            let gib = |bytes: u64| bytes as f64 / f64::powi(2.0, 30);
            let line = |(number, card): (usize, &loralei_model::cuda_runtime::Card)| {
                let ((major, minor), free, total) =
                    (card.compute_capability, gib(card.free_bytes), gib(card.total_bytes));
                format!("cuda:{number} {} ({major}.{minor}), {free:.1} of {total:.1} GiB free", card.name)
            };
            (cards.iter().enumerate().map(line).collect(), None)
        }
        Err(error) => (Vec::new(), Some(format!("none: {error}; hint: {}", error.hint()))),
    }
}

/// The cards that can be used, or why there is none.
#[cfg(not(feature = "cuda"))]
fn cards() -> (Vec<String>, Option<String>) {
    if cfg!(feature = "metal") {
        return (vec!["metal".to_owned()], None);
    }
    (Vec::new(), Some("none: this program was built without CUDA and Metal".to_owned()))
}

/// A file of Linux's `/proc`; empty elsewhere.
pub(crate) fn proc_file(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default()
}

/// The value of the first line `name : value`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
        .map(|(_, value)| value.trim())
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn simd() -> BTreeMap<&'static str, bool> {
    BTreeMap::from([
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512_bf16", std::is_x86_feature_detected!("avx512bf16")),
        ("avx512_fp16", std::is_x86_feature_detected!("avx512fp16")),
    ])
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn simd() -> BTreeMap<&'static str, bool> {
    BTreeMap::from([
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ])
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn simd() -> BTreeMap<&'static str, bool> {
    BTreeMap::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_whatever_surrounds_its_colon() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: fast\nmodel name\t: Other\nMemTotal:   24 kB\n";
        assert_eq!(field(text, "model name"), Some("Some CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("24 kB"));
        assert_eq!(field(text, "Mem"), None);
    }
}
