//! Plots, as SVG: lines over sizes, and bars.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::show;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 44.0;
const PLOT_HEIGHT: f64 = 260.0;
const BAR_HEIGHT: f64 = 26.0;
const BAR_LEFT: f64 = 230.0;
const COLORS: [&str; 8] =
    ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4"];

/// A plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plot {
    /// What its file is named after.
    pub(crate) name: String,
    pub(crate) title: String,
    kind: PlotKind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PlotKind {
    Lines { x_label: String, y_label: String, series: Vec<Series> },
    Bars { unit: String, bars: Vec<(String, f64)> },
}

/// A line: points of a size and a figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    /// Lines over sizes that grow by powers of ten; figures from zero on.
    pub(crate) fn lines(name: &str, title: &str, x_label: &str, y_label: &str, series: Vec<Series>) -> Plot {
        let kind = PlotKind::Lines { x_label: x_label.to_owned(), y_label: y_label.to_owned(), series };
        Plot { name: name.to_owned(), title: title.to_owned(), kind }
    }

    /// Bars, one below the other.
    pub(crate) fn bars(name: &str, title: &str, unit: &str, bars: Vec<(String, f64)>) -> Plot {
        let kind = PlotKind::Bars { unit: unit.to_owned(), bars };
        Plot { name: name.to_owned(), title: title.to_owned(), kind }
    }

    /// The plot as a file's text.
    pub(crate) fn svg(&self) -> String {
        let (height, body) = match &self.kind {
            PlotKind::Lines { x_label, y_label, series } => {
                (TOP + PLOT_HEIGHT + 56.0, lines_svg(x_label, y_label, series))
            }
            PlotKind::Bars { unit, bars } => {
                (TOP + BAR_HEIGHT * bars.len() as f64 + 16.0, bars_svg(unit, bars))
            }
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}{body}</svg>\n",
            text(16.0, 24.0, "start", &format!("{} ", self.title)),
        )
    }
}

fn lines_svg(x_label: &str, y_label: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let (x_min, x_max) = points().fold((f64::MAX, f64::MIN), |(min, max), (x, _)| (min.min(*x), max.max(*x)));
    let y_top = top_of(points().fold(0.0, |max: f64, (_, y)| max.max(*y)));
    let (x_min, x_max) = (x_min.max(1.0).log10().floor(), x_max.max(10.0).log10().ceil());
    let width = WIDTH - LEFT - RIGHT;
    let x_at = |x: f64| LEFT + width * (x.max(1.0).log10() - x_min) / (x_max - x_min).max(1.0);
    let y_at = |y: f64| TOP + PLOT_HEIGHT * (1.0 - y / y_top);
    let mut out = String::new();
    for step in 0..=4 {
        let y = y_top * f64::from(step) / 4.0;
        out += &line(LEFT, y_at(y), LEFT + width, y_at(y), "#d0d7de");
        out += &text(LEFT - 6.0, y_at(y) + 4.0, "end", &show(y));
    }
    let mut power = x_min;
    while power <= x_max {
        let x = 10_f64.powf(power);
        out += &line(x_at(x), TOP, x_at(x), TOP + PLOT_HEIGHT, "#eaeef2");
        out += &text(x_at(x), TOP + PLOT_HEIGHT + 18.0, "middle", &super::thousands(x));
        power += 1.0;
    }
    out += &text(LEFT + width / 2.0, TOP + PLOT_HEIGHT + 40.0, "middle", x_label);
    out += &text(LEFT - 6.0, TOP - 6.0, "end", y_label);
    for (at, Series { name, points }) in series.iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>",
                x_at(*x),
                y_at(*y)
            );
        }
        let legend = TOP + 8.0 + 18.0 * at as f64;
        out += &rect(LEFT + width + 16.0, legend - 9.0, 10.0, 10.0, color);
        out += &text(LEFT + width + 32.0, legend, "start", name);
    }
    out
}

fn bars_svg(unit: &str, bars: &[(String, f64)]) -> String {
    let most = bars.iter().fold(f64::MIN_POSITIVE, |most, (_, value)| most.max(*value));
    let width = WIDTH - BAR_LEFT - 130.0;
    let mut out = String::new();
    for (at, (name, value)) in bars.iter().enumerate() {
        let y = TOP + BAR_HEIGHT * at as f64;
        let length = width * (value / most).max(0.0);
        out += &text(BAR_LEFT - 8.0, y + 16.0, "end", name);
        out += &rect(BAR_LEFT, y + 4.0, length.max(1.0), BAR_HEIGHT - 10.0, COLORS[at % COLORS.len()]);
        let shown = if *value >= 1000.0 { super::thousands(*value) } else { show(*value) };
        out += &text(BAR_LEFT + length + 8.0, y + 16.0, "start", &format!("{shown} {unit}"));
    }
    out
}

/// The next figure above that is one, two or five of its power of ten.
fn top_of(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|top| *top >= most).unwrap_or(most)
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#1f2328\">{}</text>\n",
        text.trim()
    )
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64, color: &str) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\"/>\n")
}

fn rect(x: f64, y: f64, width: f64, height: f64, color: &str) -> String {
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\"/>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_above_the_greatest_figure() {
        assert_eq!([0.0, 0.7, 1.0, 1.1, 23.0, 60.0].map(top_of), [1.0, 1.0, 1.0, 2.0, 50.0, 100.0]);
    }

    #[test]
    fn lines_and_bars_are_drawn() {
        let points = vec![(10_000.0, 1.0), (1_000_000.0, 1.5)];
        let series = vec![Series { name: "last".to_owned(), points }];
        let svg = Plot::lines("n", "Median <by size>", "events", "ms", series).svg();
        assert!(
            svg.contains("Median &lt;by size>") && svg.contains("<polyline") && svg.contains(">1,000,000<")
        );
        let svg = Plot::bars("n", "Rates", "a second", vec![("ours".to_owned(), 12_345.0)]).svg();
        assert!(svg.contains("12,345 a second"));
    }
}
