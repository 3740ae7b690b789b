//! What to draw: one picture for each prompt and count, or one for each cell of a grid.

use loralei_model::SamplerKind;

use crate::args::GenerateArguments;
use crate::usage::UsageError;

/// One picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    /// Which prompt.
    pub(super) prompt: usize,
    pub(super) seed: u64,
    pub(super) steps: usize,
    pub(super) guidance_scale: f64,
    pub(super) sampler: SamplerKind,
    /// Multiplies the scales of all adapters.
    pub(super) strength: f32,
}

/// All pictures in reading order, and the labels of the grid they make.
pub(super) struct Cells {
    pub(super) cells: Vec<Cell>,
    pub(super) grid: Option<Labels>,
}

/// What stands over the columns and beside the rows.
#[derive(Debug, PartialEq)]
pub(super) struct Labels {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<String>,
}

/// One side of a grid.
enum Axis {
    Prompt(Vec<String>),
    Scale(Vec<f32>),
    Seed(Vec<u64>),
    Steps(Vec<usize>),
    Guidance(Vec<f64>),
    Sampler(Vec<SamplerKind>),
}

impl Cells {
    pub(super) fn new(arguments: &GenerateArguments) -> Result<Self, UsageError> {
        let first = Cell {
            prompt: 0,
            seed: arguments.seed,
            steps: usize::from(arguments.steps),
            guidance_scale: arguments.guidance,
            sampler: arguments.sampler,
            strength: 1.0,
        };
        if arguments.grid.is_empty() {
            return Ok(Self { cells: in_a_row(&first, arguments), grid: None });
        }
        let (columns, rows) = axes(arguments)?;
        let mut cells = Vec::new();
        for row in 0..rows.as_ref().map_or(1, Axis::len) {
            for column in 0..columns.len() {
                let mut cell = first.clone();
                columns.apply(column, &mut cell);
                if let Some(rows) = &rows {
                    rows.apply(row, &mut cell);
                }
                cells.push(cell);
            }
        }
        let labels = Labels { columns: columns.labels(), rows: rows.map_or_else(Vec::new, |rows| rows.labels()) };
        Ok(Self { cells, grid: Some(labels) })
    }
}

/// Every prompt as often as asked, each picture with the next seed.
fn in_a_row(first: &Cell, arguments: &GenerateArguments) -> Vec<Cell> {
    let count = usize::from(arguments.count);
    let numbers = 0..arguments.prompt.len() * count;
    let cell = |i: usize| Cell { prompt: i / count, seed: first.seed.wrapping_add(i as u64), ..first.clone() };
    numbers.map(cell).collect()
}

fn axes(arguments: &GenerateArguments) -> Result<(Axis, Option<Axis>), UsageError> {
    if arguments.count > 1 {
        return Err(UsageError::new(
            "--count and --grid do not go together",
            "write --grid seed=1,2,3 for several seeds",
        ));
    }
    let mut axes = arguments.grid.iter().map(|text| Axis::parse(text)).collect::<Result<Vec<_>, _>>()?;
    if arguments.prompt.len() > 1 {
        axes.push(Axis::Prompt(arguments.prompt.clone()));
    }
    let is_merged_scale = arguments.merge && axes.iter().any(|axis| matches!(axis, Axis::Scale(_)));
    if is_merged_scale {
        return Err(UsageError::new("a merged adapter has one scale", "leave out --merge, or the axis `scale`"));
    }
    if axes.iter().any(|axis| matches!(axis, Axis::Scale(_))) && arguments.adapter.is_empty() {
        return Err(UsageError::new("there is no adapter to scale", "name one with --adapter FILE"));
    }
    let mut axes = axes.into_iter();
    match (axes.next(), axes.next(), axes.next()) {
        (Some(columns), rows, None) => Ok((columns, rows)),
        _ => Err(UsageError::new("a grid has two sides", "give --grid at most twice, or once with several prompts")),
    }
}

/// Every value, or the first that is none.
fn all<T>(values: &[&str], parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    values.iter().map(|value| parse(value).ok_or_else(|| (*value).to_owned())).collect()
}

impl Axis {
    fn parse(text: &str) -> Result<Self, UsageError> {
        let example =
            "for example --grid scale=-1,0,0.5,1 or --grid seed=1,2,3; axes: scale, seed, steps, guidance, sampler";
        let wrong = |message: String| UsageError::new(message, example);
        let (name, values) = text.split_once('=').ok_or_else(|| wrong(format!("--grid `{text}` names no values")))?;
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        let steps = |value: &str| value.parse().ok().filter(|steps| (1..=1000).contains(steps));
        let axis = match name.trim() {
            "scale" => all(&values, |value| value.parse().ok().filter(|v: &f32| v.is_finite())).map(Self::Scale),
            "seed" => all(&values, |value| value.parse().ok()).map(Self::Seed),
            "steps" => all(&values, steps).map(Self::Steps),
            "guidance" => all(&values, |value| value.parse().ok().filter(|v: &f64| v.is_finite())).map(Self::Guidance),
            "sampler" => all(&values, SamplerKind::from_name).map(Self::Sampler),
            other => return Err(wrong(format!("--grid has no axis `{other}`"))),
        };
        axis.map_err(|value| wrong(format!("--grid {}: `{value}` is no value of this axis", name.trim())))
    }

    fn len(&self) -> usize {
        self.labels().len()
    }

    fn labels(&self) -> Vec<String> {
        match self {
            Self::Prompt(prompts) => prompts.clone(),
            Self::Scale(values) => values.iter().map(|value| format!("scale {value}")).collect(),
            Self::Seed(values) => values.iter().map(|value| format!("seed {value}")).collect(),
            Self::Steps(values) => values.iter().map(|value| format!("{value} steps")).collect(),
            Self::Guidance(values) => values.iter().map(|value| format!("guidance {value}")).collect(),
            Self::Sampler(values) => values.iter().map(|value| value.title().to_owned()).collect(),
        }
    }

    fn apply(&self, i: usize, cell: &mut Cell) {
        match self {
            Self::Prompt(_) => cell.prompt = i,
            Self::Scale(values) => cell.strength = values[i],
            Self::Seed(values) => cell.seed = values[i],
            Self::Steps(values) => cell.steps = values[i],
            Self::Guidance(values) => cell.guidance_scale = values[i],
            Self::Sampler(values) => cell.sampler = values[i],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    fn cells(more: &[&str]) -> Result<Cells, UsageError> {
        let start = ["loralei", "generate", "--base", "emoji", "--output", "a.png", "--seed", "7", "--prompt", "a fox"];
        let arguments = Arguments::try_parse_from(start.iter().chain(more)).unwrap();
        let Command::Generate(arguments) = arguments.command else { panic!("another command") };
        Cells::new(&arguments)
    }

    #[test]
    fn pictures_in_a_row_have_one_seed_after_the_other() {
        let made = cells(&["--prompt", "a dog", "--count", "2"]).unwrap().cells;
        let places: Vec<_> = made.iter().map(|cell| (cell.prompt, cell.seed)).collect();
        assert_eq!(places, [(0, 7), (0, 8), (1, 9), (1, 10)]);
    }

    #[test]
    fn the_first_axis_is_columns_and_the_second_rows() {
        let made = cells(&["--adapter", "x", "--grid", "scale=-1,0.5", "--grid", "seed=3,4,5"]).unwrap();
        assert_eq!(made.grid.unwrap().columns, ["scale -1", "scale 0.5"]);
        let places: Vec<_> = made.cells.iter().map(|cell| (cell.strength, cell.seed)).collect();
        assert_eq!(places, [(-1.0, 3), (0.5, 3), (-1.0, 4), (0.5, 4), (-1.0, 5), (0.5, 5)]);
        let made = cells(&["--prompt", "a dog", "--grid", "sampler=ddim,unipc"]).unwrap();
        assert_eq!(
            made.grid,
            Some(Labels { columns: vec!["DDIM".into(), "UniPC".into()], rows: vec!["a fox".into(), "a dog".into()] })
        );
        assert_eq!((made.cells[2].prompt, made.cells[2].seed), (1, 7));
    }

    #[test]
    fn grids_that_make_no_sense_are_refused() {
        for more in [
            &["--grid", "scale=1"][..],
            &["--adapter", "x", "--merge", "--grid", "scale=1,2"],
            &["--grid", "seed=1", "--grid", "seed=2", "--grid", "steps=3"],
            &["--grid", "seed=1", "--count", "2"],
            &["--grid", "steps=0"],
            &["--grid", "sampler=heun"],
            &["--grid", "strength=1"],
            &["--grid", "seed"],
        ] {
            assert!(cells(more).is_err(), "{more:?}");
        }
    }
}
