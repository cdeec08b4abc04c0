//! Draws what `cargo xtask bench --growth` measured.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use burn_lti_benches::plot::Growth;
use clap::Parser;

/// Draws how a step grows, as SVG.
#[derive(Debug, Parser)]
struct Arguments {
    /// What was measured.
    json: PathBuf,
    /// The drawing.
    svg: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { json, svg } = Arguments::parse();
    let text =
        fs::read_to_string(&json).with_context(|| format!("cannot read {}", json.display()))?;
    let growth: Growth =
        serde_json::from_str(&text).with_context(|| format!("{} is no growth", json.display()))?;
    fs::write(&svg, growth.to_svg()?).with_context(|| format!("cannot write {}", svg.display()))
}
