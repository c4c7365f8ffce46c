//! Samples, medians, ratios, and how they are printed.

use anyhow::Result;
use serde_json::{Value, json};

use super::rig::Variant;

/// What a benchmark found.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    /// What the goal is, with its id.
    pub(crate) goal: &'static str,
    rows: Vec<(Variant, Vec<f64>)>,
    /// What ratios are taken to, and what that is called.
    against: [(&'static str, Variant); 2],
}

impl Table {
    /// Nothing measured yet.
    pub(crate) fn new(
        name: &'static str,
        title: String,
        unit: &'static str,
        goal: &'static str,
    ) -> Self {
        Self {
            name,
            title,
            unit,
            goal,
            rows: Vec::new(),
            against: [("routing", Variant::Route), ("snat", Variant::Snat)],
        }
    }

    /// The same, with ratios to other variants than routing and snat.
    pub(crate) fn against(self, against: [(&'static str, Variant); 2]) -> Self {
        Self { against, ..self }
    }

    /// Adds a sample; samples of one round have the same place in every row.
    pub(crate) fn add(&mut self, variant: Variant, sample: f64) {
        match self.rows.iter_mut().find(|(known, _)| *known == variant) {
            Some((_, samples)) => samples.push(sample),
            None => self.rows.push((variant, vec![sample])),
        }
    }

    /// The median over the rounds of a variant's ratio to another in the same round.
    fn ratio(&self, variant: Variant, to: Variant) -> Option<f64> {
        let of = |wanted| {
            self.rows
                .iter()
                .find(|(known, _)| *known == wanted)
                .map(|(_, samples)| samples)
        };
        let ratios: Vec<_> = of(variant)?
            .iter()
            .zip(of(to)?)
            .map(|(one, other)| one / other)
            .collect();
        Some(median(&ratios))
    }

    /// Prints the table for people.
    pub(crate) fn print(&self) {
        println!("\n== {}: {}", self.name, self.title);
        println!(
            "{:<18}{:>12}{:>20}{:>12}{:>10}",
            "",
            self.unit,
            "from - to",
            format!("x {}", self.against[0].0),
            format!("x {}", self.against[1].0)
        );
        for (variant, samples) in &self.rows {
            let (low, high) = range(samples);
            let ratio = |to| {
                self.ratio(*variant, to)
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            println!(
                "{variant:<18}{:>12}{:>20}{:>12}{:>10}",
                number(median(samples)),
                format!("{} - {}", number(low), number(high)),
                ratio(self.against[0].1),
                ratio(self.against[1].1)
            );
        }
        println!("goal: {}", self.goal);
    }

    /// The table for programs.
    pub(crate) fn json(&self) -> Result<Value> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(variant, samples)| {
                let (low, high) = range(samples);
                let mut row = json!({
                    "variant": variant.to_string(), "median": median(samples), "min": low, "max": high,
                    "samples": samples,
                });
                for (name, to) in self.against {
                    row[format!("x_{name}")] = json!(self.ratio(*variant, to));
                }
                row
            })
            .collect();
        Ok(
            json!({"name": self.name, "title": self.title, "unit": self.unit, "goal": self.goal, "rows": rows}),
        )
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

fn range(samples: &[f64]) -> (f64, f64) {
    samples
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), sample| {
            (low.min(*sample), high.max(*sample))
        })
}

fn number(value: f64) -> String {
    if value < 10_000.0 {
        format!("{value:.0}")
    } else {
        format!("{:.1} k", value / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut table = Table::new("t", String::new(), "ns", "");
        // The machine got twice as slow in the second round; the ratio did not change.
        for (route, snat) in [(100.0, 150.0), (200.0, 300.0), (100.0, 150.0)] {
            table.add(Variant::Route, route);
            table.add(Variant::Snat, snat);
        }
        assert_eq!(table.ratio(Variant::Snat, Variant::Route), Some(1.5));
        assert_eq!(table.ratio(Variant::Egress, Variant::Route), None);
        assert_eq!(median(&[1.0, 4.0, 2.0, 3.0]), 2.5);
    }
}
