//! Figures as a table for people and as lines of JSON for programs.

use serde_json::{Map, Value};

/// One bench's figures, in their order.
pub(crate) struct Report {
    bench: &'static str,
    figures: Vec<(String, Value, &'static str)>,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self { bench, figures: Vec::new() }
    }

    /// A figure by its key in the JSON line, rounded as it is shown, with its unit for the table.
    pub(crate) fn figure(mut self, key: impl Into<String>, value: f64, digits: i32, unit: &'static str) -> Self {
        let scale = 10_f64.powi(digits);
        let rounded = (value * scale).round() / scale;
        let value = if digits == 0 { Value::from(rounded as i64) } else { Value::from(rounded) };
        self.figures.push((key.into(), value, unit));
        self
    }

    pub(crate) fn text(mut self, key: &str, value: &str) -> Self {
        self.figures.push((key.to_owned(), value.into(), ""));
        self
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.bench);
        for (key, value, unit) in &self.figures {
            println!("  {key:<34} {value:>12} {unit}");
        }
        let named = self.figures.iter().map(|(key, value, _)| (key.clone(), value.clone()));
        let line: Map<_, _> = std::iter::once(("bench".to_owned(), self.bench.into())).chain(named).collect();
        println!("{}", Value::from(line));
    }
}

/// The middle of them, the lower one of two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// Returns the value that this many of a hundred do not exceed.
pub(crate) fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * percent / 100.0).ceil() as usize;
    values[place.clamp(1, values.len()) - 1]
}
