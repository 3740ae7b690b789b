//! A composition as text.

use std::path::Path;

use loralei_adapter::compose::{MethodMeasures, PairOverlap};

/// One row for each method, then the layer in which the first one is strongest.
pub(super) fn methods(methods: &[MethodMeasures]) -> String {
    let has_base = methods.iter().any(|measures| measures.base.is_some());
    let mut head = vec!["method", "rho max", "rho mean", "norm", "off sum", "rank", "MB in f16"];
    if has_base {
        head.extend(["additivity", "x0 spread", "clipped", "passes"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
    rows.extend(methods.iter().map(|measures| method_row(measures, has_base)));
    let worst = methods.first().map(|first| format!("strongest layer of {}: {}\n", first.method, first.worst_module));
    let legend = "rho: spectral norm of a layer to that of its strongest member\n\
                  norm: Frobenius norm, 1 for a sum of orthogonal members\n";
    [aligned(&rows, &[0]), legend.to_owned(), worst.unwrap_or_default()].concat()
}

fn method_row(measures: &MethodMeasures, has_base: bool) -> Vec<String> {
    let mut row = vec![
        measures.method.clone(),
        format!("{:.3}", measures.rho_max),
        format!("{:.3}", measures.rho_mean),
        format!("{:.3}", measures.norm_ratio),
        percent(measures.difference),
        measures.rank.to_string(),
        format!("{:.1}", measures.num_bytes as f64 / 1e6),
    ];
    match &measures.base {
        Some(base) => row.extend([
            percent(base.additivity_error),
            format!("{:.3}", base.clean_std_ratio),
            ratio(base.clipped_ratio),
            if base.passes { "yes" } else { "NO" }.to_owned(),
        ]),
        None if has_base => row.extend(["-"; 4].map(str::to_owned)),
        None => {}
    }
    row
}

/// How far each pair of members shares directions, beside what chance would give. `names` are those of the members.
pub(super) fn pairs(pairs: &[PairOverlap], names: &[String]) -> String {
    let head = ["input phi", "(random)", "output phi", "(random)", "cosine", "layers", "members"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for pair in pairs {
        let [first, second] = pair.members.map(|member| names.get(member).map_or("", String::as_str));
        rows.push(vec![
            ratio(pair.input),
            ratio(pair.random_input),
            ratio(pair.output),
            ratio(pair.random_output),
            ratio(pair.cosine),
            pair.layers.len().to_string(),
            format!("{first}, {second}"),
        ]);
    }
    let legend = "phi: share of the smaller subspace that lies in the larger; 0 where members do not meet\n";
    [aligned(&rows, &[6]), legend.to_owned()].concat()
}

/// What was written.
pub(super) fn result(path: &Path, num_bytes: u64, made: &MethodMeasures) -> String {
    let MethodMeasures { method, rho_max, rho_mean, layers, rank, .. } = made;
    let (path, megabytes, layers) = (path.display(), num_bytes as f64 / 1e6, layers.len());
    let off = made.difference.map_or_else(String::new, |share| format!(", {:.1} % off the plain sum", 100.0 * share));
    format!(
        "{path}: {megabytes:.1} MB\n{method} over {layers} layers, rank {rank}: rho at most {rho_max:.3}, mean {rho_mean:.3}{off}\n"
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// Columns side by side: those of `left` begin at one place, all others end at one.
fn aligned(rows: &[Vec<String>], left: &[usize]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| match width(column) {
            width if left.contains(&column) => format!("{cell:<width$}"),
            width => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_adapter::compose::BaseFigures;

    fn measures(method: &str) -> MethodMeasures {
        MethodMeasures {
            method: method.to_owned(),
            rho_max: 1.25,
            rho_mean: 1.0625,
            worst_module: "lora_unet_mid".to_owned(),
            norm_ratio: 0.5,
            difference: Some(0.125),
            rank: 64,
            num_bytes: 2_500_000,
            base: None,
            layers: Vec::new(),
        }
    }

    #[test]
    fn figures_of_a_base_are_columns_only_where_a_method_has_them() {
        let plain = methods(&[measures("sum"), measures("budget")]);
        let lines: Vec<&str> = plain.lines().collect();
        assert!(lines[1].starts_with("sum ") && lines[1].ends_with("12.5 %    64        2.5"), "{plain}");
        assert!(!plain.contains("clipped") && plain.contains("strongest layer of sum: lora_unet_mid"), "{plain}");

        let mut with = measures("budget");
        let clipped_ratio = None;
        with.base =
            Some(BaseFigures { additivity_error: Some(0.25), clean_std_ratio: 1.5, clipped_ratio, passes: false });
        let text = methods(&[measures("sum"), with]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("-          -        -       -"), "{text}");
        assert!(lines[2].ends_with("25.0 %      1.500        -      NO"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn pairs_are_named_as_the_command_names_their_members() {
        let pair = PairOverlap {
            members: [0, 2],
            input: Some(0.5),
            output: None,
            random_input: Some(0.01),
            random_output: None,
            cosine: Some(-0.25),
            layers: Vec::new(),
        };
        let text = pairs(&[pair], &["a at 1", "b at 1", "c at -0.5"].map(str::to_owned));
        assert!(text.lines().nth(1).unwrap().ends_with("-0.250       0  a at 1, c at -0.5"), "{text}");
    }
}
