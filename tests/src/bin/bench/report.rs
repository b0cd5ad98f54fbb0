//! Figures, beside what is claimed of them.

use std::fmt;
use std::path::Path;

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    part: String,
    figures: Vec<Figure>,
}

#[derive(Debug)]
struct Figure {
    part: String,
    name: String,
    value: f64,
    unit: &'static str,
    claim: Claim,
}

/// What a figure shall be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Claim {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Nothing is claimed; it stands beside another.
    Nothing,
}

impl Claim {
    fn holds(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::Nothing => None,
        }
    }

    fn verdict(self, value: f64) -> &'static str {
        match self.holds(value) {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::Nothing => Ok(()),
        }
    }
}

impl Report {
    /// What the next figures are of; prints it, so that whoever waits sees how far it is.
    pub(crate) fn part(&mut self, heading: &str) {
        println!("{heading} ...");
        heading.clone_into(&mut self.part);
    }

    /// Keeps a figure.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, claim: Claim) {
        self.figures.push(Figure { part: self.part.clone(), name: name.into(), value, unit, claim });
    }

    /// Keeps a number of things.
    pub(crate) fn count(&mut self, name: impl Into<String>, count: usize, claim: Claim) {
        self.add(name, f64::from(u32::try_from(count).unwrap_or(u32::MAX)), "", claim);
    }

    /// Prints everything: what, measured, target, verdict.
    pub(crate) fn print(&self) {
        println!("\n{:<64} {:>14} {:<6} {:<12} verdict", "what", "measured", "", "target");
        let mut part = "";
        for figure in &self.figures {
            if figure.part != part {
                part = &figure.part;
                println!("\n{part}");
            }
            let Figure { name, value, unit, claim, .. } = figure;
            println!("  {name:<62} {value:>14.2} {unit:<6} {:<12} {}", claim.to_string(), claim.verdict(*value));
        }
        let missed = self.figures.iter().filter(|figure| figure.claim.holds(figure.value) == Some(false)).count();
        println!("\n{missed} targets missed");
    }

    /// Writes all figures to a file, as JSON.
    pub(crate) fn write(&self, file: &Path) -> Result<(), String> {
        let figures: Vec<_> = self.figures.iter().map(Figure::json).collect();
        let text = serde_json::json!({ "figures": figures }).to_string();
        std::fs::write(file, text + "\n").map_err(|e| format!("{} cannot be written: {e}", file.display()))
    }
}

impl Figure {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "part": self.part,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "claim": self.claim.to_string(),
            "holds": self.claim.holds(self.value),
        })
    }
}

/// The middle one of them; NaN of none.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value below which so many of a hundred lie; NaN of none.
pub(crate) fn percentile(mut of: Vec<f64>, hundredths: usize) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() * hundredths / 100).copied().unwrap_or(f64::NAN)
}
