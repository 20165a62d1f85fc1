//! A dashboard's panels as one SVG, from what Prometheus holds: for the docs, where Grafana is not to be had.

use std::fmt::Write;

use backstamp_tests::prometheus::Prometheus;
use serde_json::Value;

use super::dashboards::Panel;

/// How much of the past is drawn.
const SECONDS: i64 = 120;
const COLUMNS: usize = 3;
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 220.0;
const HEAD: f64 = 40.0;
// Where the plot is in its panel.
const LEFT: f64 = 56.0;
const TOP: f64 = 30.0;
const PLOT_WIDTH: f64 = 332.0;
const PLOT_HEIGHT: f64 = 120.0;
const LEGEND_MAX: usize = 6;
const COLORS: [&str; 8] =
    ["#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#0aa1a1", "#b7950b", "#7f8c8d"];

/// A series by its name.
type Series = (String, Vec<(f64, f64)>);

/// Draws a dashboard.
pub(super) async fn draw(title: &str, panels: &[Panel], prometheus: &Prometheus) -> String {
    let rows = panels.len().div_ceil(COLUMNS) as f64;
    let (width, height) = (WIDTH * COLUMNS as f64, HEAD + HEIGHT * rows);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#333\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#f4f5f5\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"18\">{}</text>\n",
        escaped(title)
    );
    for (at, panel) in panels.iter().enumerate() {
        let mut series = Vec::new();
        for (query, legend) in &panel.queries {
            for (labels, points) in prometheus.query_range(query, SECONDS).await.unwrap() {
                let points: Vec<_> = points.into_iter().filter(|(_, value)| value.is_finite()).collect();
                series.push((named(legend, &labels), points));
            }
        }
        let (x, y) = ((at % COLUMNS) as f64 * WIDTH, HEAD + (at / COLUMNS) as f64 * HEIGHT);
        draw_panel(&mut svg, x, y, panel, &series);
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, x: f64, y: f64, panel: &Panel, series: &[Series]) {
    let points = || series.iter().flat_map(|(_, points)| points);
    let highest = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.05 } else { 1.0 };
    let last = points().map(|(at, _)| *at).fold(0.0, f64::max);
    let across = |at: f64| LEFT + (1.0 - (last - at) / SECONDS as f64) * PLOT_WIDTH;
    let up = |value: f64| TOP + (1.0 - value.max(0.0) / top) * PLOT_HEIGHT;
    writeln!(
        svg,
        "<g transform=\"translate({x} {y})\"><rect x=\"4\" y=\"4\" width=\"{}\" height=\"{}\" fill=\"#fff\" stroke=\"#ddd\"/>\
         <text x=\"12\" y=\"21\" font-weight=\"bold\">{}</text>",
        WIDTH - 8.0,
        HEIGHT - 8.0,
        escaped(&panel.title)
    )
    .unwrap();
    for value in [0.0, top / 2.0, top] {
        let (at, text) = (up(value), shown(value, &panel.unit));
        writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}h{PLOT_WIDTH}\" stroke=\"#eee\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" \
             fill=\"#888\">{text}</text>",
            LEFT - 4.0,
            at + 4.0
        )
        .unwrap();
    }
    for (n, (name, points)) in series.iter().enumerate() {
        let color = COLORS[n % COLORS.len()];
        let line: Vec<String> =
            points.iter().map(|(at, value)| format!("{:.1},{:.1}", across(*at), up(*value))).collect();
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>", line.join(" ")).unwrap();
        if n < LEGEND_MAX {
            let (left, at) = (12.0 + (n % 2) as f64 * 192.0, 168.0 + (n / 2) as f64 * 15.0);
            let short: String = name.chars().take(34).collect();
            writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{}\" width=\"8\" height=\"3\" fill=\"{color}\"/><text x=\"{}\" y=\"{at}\" \
                 font-size=\"9\">{}</text>",
                at - 4.0,
                left + 12.0,
                escaped(&short)
            )
            .unwrap();
        }
    }
    svg.push_str("</g>\n");
}

/// A series' name as Grafana makes it: `{{label}}` is the label's value.
fn named(legend: &str, labels: &Value) -> String {
    let empty = serde_json::Map::new();
    labels.as_object().unwrap_or(&empty).iter().fold(legend.to_owned(), |name, (label, value)| {
        name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default())
    })
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "percentunit" => format!("{:.2} %", value * 100.0),
        "s" if value < 1.0 => format!("{:.1} ms", value * 1000.0),
        "s" => format!("{value:.1} s"),
        _ if value >= 1000.0 => format!("{:.1} k", value / 1000.0),
        _ => format!("{value:.2}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
