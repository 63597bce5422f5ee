//! Plots as inline SVG: lines over a grid, with a linear or a logarithmic scale on each axis. Colours come from the
//! page's style sheet, so that they suit a light and a dark page alike.

use std::fmt::Write;

/// The size of a plot in its own units; the page scales it.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
/// Room for the labels.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// How values are mapped to places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// From 0.
    Linear,
    Logarithmic,
    /// Of quantiles: the share that lies above, logarithmic, falls from left to right.
    Quantile,
}

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) scale: Scale,
}

/// A line of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Whether each point gets a mark.
    pub(crate) marks: bool,
}

/// A plot; empty if no line has a point that can be shown.
pub(crate) fn plot(x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let lines: Vec<Line> =
        lines.iter().map(|line| visible(line, x, y)).filter(|line| !line.points.is_empty()).collect();
    let points = || lines.iter().flat_map(|line| &line.points);
    if lines.is_empty() {
        return String::new();
    }
    let across = Mapping::new(x.scale, points().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let up = Mapping::new(y.scale, points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {}\">", y.label, x.label);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for (value, label) in up.ticks() {
        let at = up.place(value);
        _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>");
        _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, at + 4.0);
    }
    for (value, label) in across.ticks() {
        let at = across.place(value);
        _ = write!(svg, "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>");
        // A label in the middle of its line would leave the plot at its edge.
        let anchor = if at + 30.0 > WIDTH { "end" } else { "middle" };
        _ = write!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{label}</text>", bottom + 16.0);
    }
    let middle = (TOP + bottom) / 2.0;
    _ = write!(
        svg,
        "<text class=\"axis\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 8.0,
        x.label
    );
    _ = write!(
        svg,
        "<text class=\"axis\" transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        y.label
    );
    for (number, line) in lines.iter().enumerate() {
        let place = |point: &(f64, f64)| format!("{:.1},{:.1}", across.place(point.0), up.place(point.1));
        let places: Vec<String> = line.points.iter().map(place).collect();
        _ = write!(svg, "<polyline class=\"line c{number}\" points=\"{}\"/>", places.join(" "));
        if line.marks || line.points.len() == 1 {
            for point in &line.points {
                _ = write!(
                    svg,
                    "<circle class=\"mark c{number}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"/>",
                    across.place(point.0),
                    up.place(point.1)
                );
            }
        }
    }
    svg += "</svg>";
    if lines.len() > 1 {
        svg += "<p class=\"legend\">";
        for (number, line) in lines.iter().enumerate() {
            _ = write!(svg, "<span><i class=\"c{number}\"></i>{}</span>", escape(&line.name));
        }
        svg += "</p>";
    }
    svg
}

/// A line without the points that a logarithm has no place for.
fn visible(line: &Line, x: &Axis, y: &Axis) -> Line {
    let shown = |scale: Scale, value: f64| match scale {
        Scale::Linear => value.is_finite(),
        Scale::Logarithmic => value.is_finite() && value > 0.0,
        Scale::Quantile => (0.0..1.0).contains(&value),
    };
    let points = line.points.iter().copied().filter(|point| shown(x.scale, point.0) && shown(y.scale, point.1));
    Line { points: points.collect(), ..line.clone() }
}

/// From values to places along an axis.
struct Mapping {
    scale: Scale,
    /// The ends of the axis, on the scale.
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Mapping {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = values
            .map(|value| on_scale(scale, value))
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        match scale {
            Scale::Linear => (low, high) = (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Logarithmic => {
                (low, high) = (low.floor(), high.ceil());
                high = high.max(low + 1.0);
            }
            Scale::Quantile => (low, high) = (0.0, high.max(1.0)),
        }
        Mapping { scale, low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (on_scale(self.scale, value) - self.low) / (self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    /// Values that get a line of the grid, with their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = round_step(self.high / 6.0);
                (0..)
                    .map(|count| f64::from(count) * step)
                    .take_while(|value| *value <= self.high)
                    .map(|value| (value, number(value)))
                    .collect()
            }
            Scale::Logarithmic => {
                let decades = (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power));
                decades.map(|value| (value, number(value))).collect()
            }
            Scale::Quantile => {
                let quantiles = [
                    (0.0, "0"),
                    (0.9, "90 %"),
                    (0.99, "99 %"),
                    (0.999, "99.9 %"),
                    (0.9999, "99.99 %"),
                    (0.99999, "99.999 %"),
                    (0.999999, "99.9999 %"),
                ];
                let shown = quantiles.into_iter().filter(|(quantile, _)| on_scale(self.scale, *quantile) <= self.high);
                shown.map(|(quantile, label)| (quantile, label.to_owned())).collect()
            }
        }
    }
}

fn on_scale(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Logarithmic => value.log10(),
        Scale::Quantile => -(1.0 - value).log10(),
    }
}

/// The next larger of 1, 2 and 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least * 0.999).unwrap_or(least)
}

/// A number that is easily read: with separators, and no more digits than it takes.
pub(crate) fn number(value: f64) -> String {
    let digits = if value >= 100.0 || value == value.trunc() {
        0
    } else if value >= 1.0 {
        1
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    let text = if value < 1.0 && text.contains('.') { text.trim_end_matches('0') } else { &text };
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        Line { name: "a <b>".into(), points: points.to_vec(), marks: false }
    }

    #[test]
    fn numbers_are_easily_read() {
        let shown = [0.0, 0.5, 1.25, 10.0, 99.96, 999.6, 1234.0, 1_234_567.8].map(number);
        assert_eq!(shown, ["0", "0.5", "1.2", "10", "100.0", "1,000", "1,234", "1,234,568"]);
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0.7, 1.0, 3.0, 60.0, 100.0].map(round_step), [1.0, 1.0, 5.0, 100.0, 100.0]);
    }

    #[test]
    fn places_lie_inside_and_in_order() {
        for (scale, values) in [
            (Scale::Linear, vec![0.0, 3.0, 700.0]),
            (Scale::Logarithmic, vec![0.5, 20.0, 99_999.0]),
            (Scale::Quantile, vec![0.0, 0.5, 0.9999]),
        ] {
            let mapping = Mapping::new(scale, values.iter().copied(), 10.0, 110.0);
            let places: Vec<f64> = values.iter().map(|value| mapping.place(*value)).collect();
            assert!(places.is_sorted() && places[0] >= 10.0 && places[2] <= 110.0, "{scale:?}: {places:?}");
            assert!(mapping.ticks().len() >= 2, "{scale:?}");
            assert!(
                mapping.ticks().iter().all(|(value, _)| (9.9..110.1).contains(&mapping.place(*value))),
                "{scale:?}"
            );
        }
    }

    #[test]
    fn what_has_no_place_is_left_out_and_nothing_makes_no_plot() {
        let axis = |scale| Axis { label: "x", scale };
        let (linear, logarithmic) = (axis(Scale::Linear), axis(Scale::Logarithmic));
        assert_eq!(plot(&linear, &logarithmic, &[line(&[(0.0, 0.0), (1.0, f64::NAN)])]), "");
        let svg = plot(&linear, &logarithmic, &[line(&[(0.0, 0.0), (1.0, 5.0), (2.0, 7.0)]), line(&[(1.0, 1.0)])]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("a &lt;b&gt;") && svg.matches("<polyline").count() == 2, "{svg}");
        // A constant line, and a single point.
        assert!(!plot(&linear, &logarithmic, &[line(&[(0.0, 10.0)])]).contains("NaN"));
        assert!(!plot(&linear, &linear, &[line(&[(0.0, 0.0)])]).contains("NaN"));
    }
}
