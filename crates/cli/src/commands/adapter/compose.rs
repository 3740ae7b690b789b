//! `loralei adapter compose`.

mod over_base;
mod page;
mod tables;

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use loralei_adapter::compose::{
    ComposeSettings, Composition, LayerGram, Member, MemberOrigin, Method, MethodMeasures, PairOverlap, Yardstick,
    compose, describe,
};
use loralei_adapter::{Adapter, SaveDtype};
use loralei_trainer::{CompositionMeasures, Dtype, Event, TrainError};
use serde::Serialize;

use crate::args::adapter::ComposeArguments;
use crate::commands::adapter::save_dtype;
use crate::commands::adapters::{read as read_file, split, stem};
use crate::commands::new_file::refuse_existing;
use crate::report::Reporter;
use crate::usage::UsageError;
use over_base::OverBase;

/// An adapter of the command line.
struct MemberFile {
    path: PathBuf,
    /// Stem of the path.
    name: String,
    scale: f32,
    adapter: Adapter,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    members: Vec<MemberText>,
    settings: ComposeSettings,
    output: Option<Output>,
    /// The method of the result; with `--report` every method.
    methods: Vec<MethodMeasures>,
    pairs: Vec<PairOverlap>,
    /// What the base draws with and without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    over_base: Option<CompositionMeasures>,
}

#[derive(Serialize)]
struct MemberText {
    name: String,
    path: PathBuf,
    scale: f32,
}

#[derive(Serialize)]
struct Output {
    path: PathBuf,
    num_bytes: u64,
}

pub(crate) fn run(arguments: &ComposeArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    check(arguments)?;
    let files = read(arguments, reporter)?;
    let members: Vec<Member> = files.iter().map(MemberFile::member).collect();
    let settings = settings(arguments, arguments.method);
    let origins: Vec<MemberOrigin> = files.iter().map(MemberFile::origin).collect();
    let title = arguments.output.as_deref().map(stem).unwrap_or_default();
    // Members of different bases are refused before anything is composed.
    describe(&origins, &settings, &Adapter::default(), &title).map_err(TrainError::from)?;

    let over_base = OverBase::open(arguments, &files, reporter)?;
    let recorded = match &over_base {
        Some(over_base) if arguments.report || settings.method == Method::Fusion => over_base.record(reporter)?,
        _ => BTreeMap::new(),
    };
    let methods = methods(arguments, &recorded);
    reporter.show(&Event::PhaseStarted { name: "composing".into(), total: Some(methods.len() as u64 + 1) });
    let yardstick = Yardstick::of(&members).map_err(TrainError::from)?;
    reporter.show(&Event::PhaseProgress { done: 1 });
    let (mut measured, mut composed) = (Vec::with_capacity(methods.len()), Vec::new());
    let mut output = None;
    for (done, method) in methods.into_iter().enumerate() {
        let settings = self::settings(arguments, method);
        let Composition { adapter, summed_plainly } =
            compose(&members, &settings, &recorded).map_err(TrainError::from)?;
        if let (Some(first), num_plain) = (summed_plainly.first(), summed_plainly.len()) {
            let message = format!("fusion has no inputs of {num_plain} layers ({first}, ..): they are summed");
            reporter.show(&Event::Warning { message });
        }
        measured.push(yardstick.measure(method.name(), &adapter).map_err(TrainError::from)?);
        if let (Some(path), true) = (&arguments.output, method == arguments.method) {
            let metadata = describe(&origins, &settings, &adapter, &title).map_err(TrainError::from)?;
            let adapter = Adapter { modules: adapter.modules.clone(), metadata };
            output = Some(write(path, &adapter, arguments.dtype, reporter)?);
        }
        composed.push((method.name(), adapter));
        reporter.show(&Event::PhaseProgress { done: done as u64 + 2 });
    }
    reporter.finish();
    let drawn = match &over_base {
        Some(over_base) if arguments.report => Some(over_base.measure(&composed, reporter)?),
        _ => None,
    };
    for (figures, measured) in drawn.iter().flat_map(|drawn| &drawn.candidates).zip(&mut measured) {
        measured.base = Some(over_base::figures(&figures.mean));
    }
    let pairs = yardstick.overlaps();
    let names = files.iter().map(MemberFile::text).collect();
    let report = Report { members: names, settings, output, methods: measured, pairs, over_base: drawn };
    if let (Some(path), Some(drawn)) = (&arguments.grid, &report.over_base) {
        over_base::write_grid(drawn, usize::from(arguments.pictures), path)?;
        reporter.show(&Event::Note { message: format!("grid: {}", path.display()) });
    }
    if let Some(path) = &arguments.html {
        page::write(&report, &files, arguments, path)?;
        reporter.show(&Event::Note { message: format!("page: {}", path.display()) });
    }
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.text(arguments.report) };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

impl MemberFile {
    fn member(&self) -> Member<'_> {
        Member { adapter: &self.adapter, scale: self.scale }
    }

    fn origin(&self) -> MemberOrigin<'_> {
        MemberOrigin { name: &self.name, scale: self.scale, adapter: &self.adapter }
    }

    fn text(&self) -> MemberText {
        MemberText { name: self.name.clone(), path: self.path.clone(), scale: self.scale }
    }
}

impl Report {
    fn text(&self, is_long: bool) -> String {
        let mut parts = Vec::new();
        if is_long {
            let name = |member: &MemberText| format!("{} at {}", member.name, member.scale);
            let names: Vec<String> = self.members.iter().map(name).collect();
            parts.push(tables::methods(&self.methods));
            parts.extend((!self.pairs.is_empty()).then(|| tables::pairs(&self.pairs, &names)));
        }
        if let Some(Output { path, num_bytes }) = &self.output {
            let made = self.methods.iter().find(|measures| measures.method == self.settings.method.name());
            parts.extend(made.map(|made| tables::result(path, *num_bytes, made)));
        }
        parts.join("\n")
    }
}

/// What the parser cannot tell. No setting is ignored in silence.
fn check(arguments: &ComposeArguments) -> anyhow::Result<()> {
    let (method, all) = (arguments.method, arguments.report);
    let draws = matches!(method, Method::Ties | Method::Dare);
    let idle = [
        ("--budget", arguments.budget.is_some() && method != Method::Budget, "--method budget"),
        ("--density", arguments.density.is_some() && !method.has_density(), "--method ties, dare or knots"),
        ("--ridge", arguments.ridge.is_some() && method != Method::Fusion, "--method fusion"),
        ("--seed", arguments.seed.is_some() && !draws, "--method ties or dare"),
    ];
    if let Some((flag, _, use_with)) = idle.into_iter().find(|(_, is_idle, _)| *is_idle && !all) {
        let message = format!("{flag} does nothing with --method {}", method.name());
        return Err(
            UsageError::new(message, format!("leave it out, or use it with {use_with}, or with --report")).into()
        );
    }
    if method == Method::Fusion && arguments.base.is_none() {
        let hint = "name the base that the adapters are for with --base";
        return Err(UsageError::new("--method fusion looks at what the layers of a base are given", hint).into());
    }
    if arguments.base.is_some() && method != Method::Fusion && !all {
        let hint = "add --report for measures over the base, or leave --base out";
        return Err(UsageError::new(format!("--base does nothing with --method {}", method.name()), hint).into());
    }
    let schedule = arguments.schedule;
    if arguments.base.is_none() && (schedule.prediction.is_some() || schedule.zero_terminal_snr.is_some()) {
        let hint = "name the base with --base, or leave --prediction and --zero-terminal-snr out";
        return Err(UsageError::new("there is no base that would predict anything", hint).into());
    }
    arguments.output.as_deref().map_or(Ok(()), |path| refuse_existing(path, arguments.force))
}

fn settings(arguments: &ComposeArguments, method: Method) -> ComposeSettings {
    let usual = ComposeSettings::new(method);
    ComposeSettings {
        rank: arguments.rank,
        budget: arguments.budget.unwrap_or(usual.budget),
        density: arguments.density.unwrap_or(usual.density),
        seed: arguments.seed.unwrap_or(usual.seed),
        ridge: arguments.ridge.unwrap_or(usual.ridge),
        ..usual
    }
}

/// The chosen one; for a report all that can be made.
fn methods(arguments: &ComposeArguments, recorded: &BTreeMap<String, LayerGram>) -> Vec<Method> {
    let can_be_made = |method: &Method| *method != Method::Fusion || !recorded.is_empty();
    if arguments.report { Method::ALL.into_iter().filter(can_be_made).collect() } else { vec![arguments.method] }
}

fn read(arguments: &ComposeArguments, reporter: &mut Reporter) -> anyhow::Result<Vec<MemberFile>> {
    let mut files = Vec::with_capacity(arguments.adapters.len());
    for argument in &arguments.adapters {
        let (path, scale) = split(argument);
        let file = read_file(&path, reporter)?;
        if !file.embeddings.is_empty() {
            let words: Vec<&str> = file.embeddings.keys().map(String::as_str).collect();
            let message = format!("{}: its learned words ({}) are left out", path.display(), words.join(", "));
            reporter.show(&Event::Warning { message });
        }
        let adapter = file.to_adapter().map_err(TrainError::from)?;
        files.push(MemberFile { name: stem(&path), path, scale, adapter });
    }
    Ok(files)
}

fn write(path: &Path, adapter: &Adapter, dtype: Option<Dtype>, reporter: &mut Reporter) -> anyhow::Result<Output> {
    for issue in adapter.portability_issues() {
        reporter.show(&Event::Warning { message: issue.to_string() });
    }
    let dtype = dtype.map_or(SaveDtype::F16, save_dtype);
    adapter.write(path, dtype).map_err(TrainError::from)?;
    let num_bytes = path.metadata().map_or(0, |metadata| metadata.len());
    Ok(Output { path: path.to_owned(), num_bytes })
}
