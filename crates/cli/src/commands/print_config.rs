//! `loralei train --print-config`: every setting with where it came from, instead of a run.

use std::io::{Write, stdout};

use loralei_trainer::{Event, ListedSetting, Plan, ResolvedConfig};
use serde::Serialize;

use crate::report::Reporter;

/// What `--json` prints.
#[derive(Serialize)]
struct Listing {
    settings: Vec<ListedSetting>,
    warnings: Vec<String>,
}

/// Settings that a run would refuse are printed as well; then the violations are the error.
pub(crate) fn run(resolved: &ResolvedConfig, is_json: bool, reporter: &mut Reporter) -> anyhow::Result<()> {
    let plan = Plan::new(&resolved.config);
    let known = plan.as_ref().ok();
    let warnings = known.map(|plan| plan.warnings.clone()).unwrap_or_default();
    let text = if is_json {
        serde_json::to_string(&Listing { settings: resolved.listing(known), warnings })? + "\n"
    } else {
        warnings.into_iter().for_each(|message| reporter.show(&Event::Warning { message }));
        resolved.to_listed_toml(known)
    };
    stdout().write_all(text.as_bytes())?;
    plan?;
    Ok(())
}
