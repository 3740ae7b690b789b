//! What is in an adapter, as text of at most 100 columns.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use loralei_adapter::{Comparison, Inspection, LayerName, ModuleMeasures};

const NUM_STRONGEST: usize = 10;
const BAR_WIDTH: usize = 16;
const MAX_VALUE_CHARS: usize = 84;
/// Metadata that people look for.
const SHOWN_METADATA: [(&str, &str); 7] = [
    ("title", "modelspec.title"),
    ("author", "modelspec.author"),
    ("licence", "modelspec.license"),
    ("trained on", "ss_sd_model_name"),
    ("steps", "ss_steps"),
    ("images", "ss_num_train_images"),
    ("comment", "ss_training_comment"),
];

pub(crate) fn inspection(found: &Inspection) -> String {
    let mut parts = vec![head(found)];
    let by_block = |name: &LayerName| format!("{} {}", name.part, name.block).trim_end().to_owned();
    let by_kind = |name: &LayerName| format!("{} {}", name.part, name.kind);
    parts.push(groups("by block", found, by_block));
    parts.push(groups("by kind of layer", found, by_kind));
    parts.push(strongest(found));
    parts.extend(found.against.as_ref().map(comparison));
    parts.join("\n")
}

fn head(found: &Inspection) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let megabytes = found.num_bytes as f64 / 1e6;
    let millions = found.num_parameters as f64 / 1e6;
    rows.push(("file", found.file.clone()));
    rows.push(("format", format!("{}, {}, {megabytes:.2} MB", found.format, found.dtypes.join(" and "))));
    rows.push(("base", found.family.clone()));
    rows.push(("layers", format!("{}, {millions:.2} M numbers", counts(&found.kinds))));
    if !found.ranks.is_empty() {
        rows.push(("rank", counts(&found.ranks)));
        rows.push(("alpha", counts(&found.alphas)));
    }
    if !found.trigger_words.is_empty() {
        rows.push(("words", found.trigger_words.join(", ")));
    }
    for (token, shape) in &found.embeddings {
        rows.push(("token", format!("{token} {shape:?}")));
    }
    for (name, key) in SHOWN_METADATA {
        if let Some(value) = found.metadata.get(key).filter(|value| !value.is_empty() && *value != "None") {
            rows.push((name, value.clone()));
        }
    }
    let hashes = ["autov2", "autov3"].map(|name| found.hashes.get(name).map(|hash| format!("{name} {hash}")));
    let hashes: Vec<String> = hashes.into_iter().flatten().collect();
    let agreement = match found.hashes_match {
        Some(true) => ", as its metadata says",
        Some(false) => "; its metadata has others: the file was changed after it was made",
        None => "",
    };
    if !hashes.is_empty() {
        rows.push(("hashes", hashes.join(", ") + agreement));
    }
    let rows: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<12} {}\n", shown(value))).collect();
    rows.concat()
}

/// `32` where all have the same, otherwise `32 (200), 16 (64)`, the most frequent first.
fn counts<K: Display>(counts: &BTreeMap<K, usize>) -> String {
    let mut sorted: Vec<(&K, &usize)> = counts.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1));
    let texts: Vec<String> = sorted.iter().map(|(key, count)| format!("{key} ({count})")).collect();
    texts.join(", ")
}

/// Text of a stranger's file on one line of a terminal, without what would steer the terminal.
fn shown(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= MAX_VALUE_CHARS {
        return clean;
    }
    clean.chars().take(MAX_VALUE_CHARS - 2).chain("..".chars()).collect()
}

/// A row for each group of layers, in the order of the network as far as names sort so.
fn groups(title: &str, found: &Inspection, group_of: impl Fn(&LayerName) -> String) -> String {
    let mut groups: BTreeMap<String, Vec<&ModuleMeasures>> = BTreeMap::new();
    for module in &found.modules {
        groups.entry(group_of(&LayerName::of(&module.module))).or_default().push(module);
    }
    let whole: f64 = found.modules.iter().map(|module| module.frobenius.powi(2)).sum();
    let has_base = found.modules.iter().any(|module| module.base.is_some());
    let mut text = format!("{title:<32} layers   |dW|_F  largest s  stable  effective");
    text += if has_base { "    of W  part of all\n" } else { "  part of all\n" };
    for (name, modules) in groups {
        let squares: f64 = modules.iter().map(|module| module.frobenius.powi(2)).sum();
        let largest = modules.iter().map(|module| module.spectral).fold(0.0, f64::max);
        let mean = |of: fn(&ModuleMeasures) -> f64| {
            modules.iter().map(|module| of(module)).sum::<f64>() / modules.len() as f64
        };
        let share = if has_base { format!("  {:>6}", share_of_weights(&modules)) } else { String::new() };
        let part = if whole > 0.0 { squares / whole } else { 0.0 };
        let line = format!(
            "{:<32} {:>6} {:>8.3} {largest:>10.3} {:>7.1} {:>10.1}{share}  {:>4.0} % {}",
            short(&name, 32),
            modules.len(),
            squares.sqrt(),
            mean(|module| module.stable_rank),
            mean(|module| module.effective_rank),
            part * 100.0,
            bar(part, if has_base { 8 } else { BAR_WIDTH }),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// ||all dW|| / ||all W|| of those layers that the base has.
fn share_of_weights(modules: &[&ModuleMeasures]) -> String {
    let squares = modules.iter().filter_map(|module| {
        let base = module.base.as_ref()?;
        Some((module.frobenius.powi(2), base.weight_frobenius.powi(2)))
    });
    let (change, weight) = squares.fold((0.0, 0.0), |sum, square| (sum.0 + square.0, sum.1 + square.1));
    if weight > 0.0 { format!("{:.2} %", (change / weight).sqrt() * 100.0) } else { "-".to_owned() }
}

fn strongest(found: &Inspection) -> String {
    let has_base = found.modules.iter().any(|module| module.base.is_some());
    let size = |module: &ModuleMeasures| match &module.base {
        Some(base) => base.share,
        None if has_base => 0.0,
        None => module.spectral,
    };
    let mut modules: Vec<&ModuleMeasures> = found.modules.iter().collect();
    modules.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let figures = if has_base { "   of W  amplifies" } else { "" };
    let mut text = format!("{:<68} |dW|_F  sigma{figures}\n", "strongest layers");
    for module in modules.into_iter().take(NUM_STRONGEST) {
        let base = match &module.base {
            Some(base) => format!(" {:>4.1} % {:>10.1}", base.share * 100.0, base.amplification),
            None => String::new(),
        };
        let name = short(module.module.strip_prefix("lora_").unwrap_or(&module.module), 66);
        let _ = writeln!(text, "{name:<66} {:>8.3} {:>6.3}{base}", module.frobenius, module.spectral);
    }
    text
}

/// phi on the diagonal, averaged over the layers.
fn comparison(found: &Comparison) -> String {
    let layers = &found.modules;
    let mut text = format!("against {}: {} layers in both", shown(&found.file), layers.len());
    for (names, whose) in [(&found.only_here, "here"), (&found.only_there, "there")] {
        if !names.is_empty() {
            let _ = write!(text, ", {} only {whose}", names.len());
        }
    }
    text += "\n";
    if layers.is_empty() {
        return text;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let cosines: Vec<f64> = layers.iter().map(|layer| layer.cosine).collect();
    let largest =
        cosines.iter().copied().fold(0.0, |largest: f64, c| if c.abs() > largest.abs() { c } else { largest });
    let _ = writeln!(text, "cosine of the changes: {:.3} on average, {largest:.3} at most", mean(&cosines));
    text += "phi(i, i): 1 is the same subspace, 0 an orthogonal one        input side   output side\n";
    let diagonal = |table: &[Vec<f64>], i: usize| table.get(i).and_then(|row| row.get(i)).copied();
    let longest = layers.iter().map(|layer| layer.input.len()).max().unwrap_or(0);
    for i in std::iter::successors(Some(1), |i| Some(i * 2)).take_while(|i| *i <= longest) {
        let input: Vec<f64> = layers.iter().filter_map(|layer| diagonal(&layer.input, i - 1)).collect();
        let output: Vec<f64> = layers.iter().filter_map(|layer| diagonal(&layer.output, i - 1)).collect();
        if !input.is_empty() {
            let _ = writeln!(text, "  first {i:<54} {:>10.3} {:>13.3}", mean(&input), mean(&output));
        }
    }
    let random: Vec<f64> = layers.iter().map(|layer| layer.random_input).collect();
    let random_output: Vec<f64> = layers.iter().map(|layer| layer.random_output).collect();
    let what = "random subspaces of all directions";
    let _ = writeln!(text, "  {what:<60} {:>10.3} {:>13.3}", mean(&random), mean(&random_output));
    text
}

/// The end of a long name says more than its start.
fn short(name: &str, width: usize) -> String {
    let clean = shown(name);
    let length = clean.chars().count();
    if length <= width { clean } else { "..".chars().chain(clean.chars().skip(length - width + 2)).collect() }
}

fn bar(part: f64, width: usize) -> String {
    "#".repeat((part * width as f64).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_text_neither_steers_the_terminal_nor_breaks_lines() {
        assert_eq!(shown("a\x1b[31m\nb\u{9b}c"), "a [31m b c");
        assert_eq!(shown(&"ä".repeat(200)).chars().count(), MAX_VALUE_CHARS);
        assert_eq!(short("abcdef", 4), "..ef");
    }

    #[test]
    fn the_most_frequent_comes_first() {
        assert_eq!(counts(&[(4, 2), (8, 9)].into()), "8 (9), 4 (2)");
    }
}
