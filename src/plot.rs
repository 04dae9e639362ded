//! Layer 0: plots as SVG, written by hand.

use std::fmt::Write as _;

/// Width of a panel's drawing area, and its height.
const AREA: [f64; 2] = [420.0, 300.0];
/// Room around it: left, top, right (for the names), bottom.
const ROOM: [f64; 4] = [64.0, 40.0, 130.0, 52.0];
/// Most points of a line; longer ones are means.
const MOST: usize = 500;
/// Colours that people with the usual kinds of colour blindness tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444"];

/// A point, and how far it may be off along y.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// Where.
    pub y: f64,
    /// Half the bar through it; 0 for none.
    pub spread: f64,
}

/// Points of one colour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// What stands beside its mark; empty: it is a line alone.
    pub name: String,
    /// Where.
    pub points: Vec<Point>,
    /// Whether a line goes through them.
    pub line: bool,
}

/// Points over two axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// What the axes are.
    pub axes: [String; 2],
    /// What is drawn.
    pub series: Vec<Series>,
}

/// How often each true label (row) was answered as each (column).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grid {
    /// Above it.
    pub title: String,
    /// Names of rows and columns.
    pub labels: Vec<String>,
    /// Row by row.
    pub counts: Vec<Vec<u64>>,
}

/// A part of a picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Panel {
    /// Points over two axes.
    Chart(Chart),
    /// A table of counts.
    Grid(Grid),
}

/// The panels, one under another, as an SVG document.
pub fn svg(panels: &[Panel]) -> String {
    let width = ROOM[0] + AREA[0] + ROOM[2];
    let (mut body, mut top) = (String::new(), 0.0);
    for panel in panels {
        let (text, height) = match panel {
            Panel::Chart(chart) => (chart.draw(), ROOM[1] + AREA[1] + ROOM[3]),
            Panel::Grid(grid) => grid.draw(),
        };
        // Writing to a string does not fail.
        let _ = writeln!(body, "<g transform=\"translate(0 {top})\">\n{text}</g>");
        top += height;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" \
         height=\"{top}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{top}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// The least and the greatest of finite values, apart where they are one.
fn range(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let finite = values.filter(|v| v.is_finite());
    let [least, most] = finite
        .fold([f64::INFINITY, f64::NEG_INFINITY], |[least, most], v| [least.min(v), most.max(v)]);
    if least > most {
        return [0.0, 1.0];
    }
    if most - least < 1e-9 {
        let aside = (least.abs() * 0.1).max(1e-3);
        return [least - aside, most + aside];
    }
    [least, most]
}

/// About five round numbers within the range, and the digits behind the point that they need.
fn ticks([least, most]: [f64; 2]) -> (Vec<f64>, usize) {
    let rough = (most - least) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough);
    let step = step.unwrap_or(power * 10.0);
    let first = (least / step).ceil() as i64;
    let ticks = (0..12).map(|i| (first + i) as f64 * step);
    let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    (ticks.take_while(|t| *t <= most + step * 1e-6).collect(), digits)
}

impl Chart {
    fn draw(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let wide = |[least, most]: [f64; 2]| {
            let aside = (most - least) * 0.06;
            [least - aside, most + aside]
        };
        let x = wide(range(points().map(|p| p.x)));
        let y = wide(range(points().flat_map(|p| [p.y - p.spread, p.y + p.spread])));
        let at_x = |v: f64| ROOM[0] + (v - x[0]) / (x[1] - x[0]) * AREA[0];
        let at_y = |v: f64| ROOM[1] + (y[1] - v) / (y[1] - y[0]) * AREA[1];
        let mut out = title(&self.title);
        let [left, right] = [ROOM[0], ROOM[0] + AREA[0]];
        let [top, bottom] = [ROOM[1], ROOM[1] + AREA[1]];
        let (xs, digits) = ticks(x);
        for v in xs {
            let at = at_x(v);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#dddddd\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{v:.digits$}</text>",
                bottom + 16.0
            );
        }
        let (ys, digits) = ticks(y);
        for v in ys {
            let at = at_y(v);
            let _ = writeln!(
                out,
                "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#dddddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{v:.digits$}</text>",
                left - 6.0,
                at + 4.0
            );
        }
        let _ = writeln!(
            out,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#444444\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            AREA[0],
            AREA[1],
            (left + right) / 2.0,
            bottom + 38.0,
            escaped(&self.axes[0]),
            (top + bottom) / 2.0,
            escaped(&self.axes[1])
        );
        let mut named = 0;
        for (at, series) in self.series.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let points: Vec<Point> = thinned(&series.points);
            if series.line && points.len() > 1 {
                let path: Vec<String> =
                    points.iter().map(|p| format!("{:.1} {:.1}", at_x(p.x), at_y(p.y))).collect();
                let path = path.join("L");
                let _ = writeln!(out, "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\"/>");
            }
            if series.name.is_empty() {
                continue;
            }
            for p in points.iter().filter(|_| !series.line || points.len() <= 20) {
                if p.spread > 0.0 {
                    let [low, high] = [at_y(p.y - p.spread), at_y(p.y + p.spread)];
                    let _ = writeln!(
                        out,
                        "<path d=\"M{:.1} {low:.1}V{high:.1}\" stroke=\"{colour}\"/>",
                        at_x(p.x)
                    );
                }
                out += &mark(
                    at,
                    at_x(p.x),
                    at_y(p.y),
                    &format!("{}: {}", series.name, coordinates(p)),
                );
            }
            let row = top + 8.0 + 18.0 * named as f64;
            named += 1;
            out += &mark(at, right + 14.0, row, &series.name);
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                right + 24.0,
                row + 4.0,
                escaped(&series.name)
            );
        }
        out
    }
}

fn coordinates(p: &Point) -> String {
    format!("{:.4}, {:.4}", p.x, p.y)
}

/// A mark of the series at place `series`: another colour for each, another form for each seven.
fn mark(series: usize, x: f64, y: f64, tip: &str) -> String {
    let colour = COLOURS[series % COLOURS.len()];
    let tip = escaped(tip);
    match series / COLOURS.len() % 2 {
        0 => format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"><title>{tip}</title></circle>\n"
        ),
        _ => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\" fill=\"{colour}\"><title>{tip}</title></rect>\n",
            x - 4.0,
            y - 4.0
        ),
    }
}

/// Means of as many points as make at most [`MOST`].
fn thinned(points: &[Point]) -> Vec<Point> {
    let finite: Vec<Point> =
        points.iter().copied().filter(|p| p.x.is_finite() && p.y.is_finite()).collect();
    let each = finite.len().div_ceil(MOST).max(1);
    let mean = |of: &[Point]| {
        let count = of.len() as f64;
        let sum = |f: fn(&Point) -> f64| of.iter().map(f).sum::<f64>() / count;
        Point { x: sum(|p| p.x), y: sum(|p| p.y), spread: sum(|p| p.spread) }
    };
    finite.chunks(each).map(mean).collect()
}

impl Grid {
    fn draw(&self) -> (String, f64) {
        let count = self.labels.len().max(1) as f64;
        let side = (AREA[0] / count).clamp(4.0, 36.0);
        // Names and numbers that would lie over each other are left to what shows under the pointer.
        let readable = side >= 12.0;
        let left = ROOM[0] + 40.0;
        let mut out = title(&self.title);
        for (row, counts) in self.counts.iter().enumerate() {
            let all: u64 = counts.iter().sum();
            let y = ROOM[1] + side * row as f64;
            let truth = self.labels.get(row).map_or("", String::as_str);
            if readable {
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    left - 6.0,
                    y + side / 2.0 + 4.0,
                    escaped(&cut(truth))
                );
            }
            for (column, &n) in counts.iter().enumerate() {
                let x = left + side * column as f64;
                let share = n as f64 / all.max(1) as f64;
                let answered = self.labels.get(column).map_or("", String::as_str);
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" \
                     fill=\"#0072b2\" fill-opacity=\"{share:.3}\" stroke=\"#cccccc\">\
                     <title>{} answered as {}: {n} of {all}</title></rect>",
                    escaped(truth),
                    escaped(answered)
                );
                if readable && n > 0 {
                    let colour = if share > 0.5 { "#ffffff" } else { "#222222" };
                    let _ = writeln!(
                        out,
                        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\" \
                         fill=\"{colour}\">{n}</text>",
                        x + side / 2.0,
                        y + side / 2.0 + 4.0
                    );
                }
            }
        }
        let bottom = ROOM[1] + side * count;
        for (column, label) in self.labels.iter().enumerate().filter(|_| readable) {
            let x = left + side * (column as f64 + 0.5);
            let _ = writeln!(
                out,
                "<text transform=\"translate({x:.1} {:.1}) rotate(-45)\" text-anchor=\"end\">{}</text>",
                bottom + 14.0,
                escaped(&cut(label))
            );
        }
        (out, bottom + 90.0)
    }
}

fn title(text: &str) -> String {
    format!("<text x=\"{}\" y=\"24\" font-size=\"14\">{}</text>\n", ROOM[0], escaped(text))
}

/// A label that has room beside a table.
fn cut(label: &str) -> String {
    match label.chars().count() {
        0..=14 => label.into(),
        _ => label.chars().take(13).chain(['…']).collect(),
    }
}

/// Names come from files: nothing of them is markup, and what XML has no form for is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: f64, y: f64) -> Point {
        Point { x, y, spread: 0.0 }
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks([0.0, 1.0]), (vec![0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0], 1));
        assert_eq!(ticks([97.0, 1480.0]).0, [500.0, 1000.0]);
        let (small, digits) = ticks([0.9931, 0.9987]);
        assert!(small.len() > 2 && digits == 3, "{small:?}");
        assert_eq!(range([3.0, f64::NAN, 1.0].into_iter()), [1.0, 3.0]);
        assert_eq!(range(std::iter::empty()), [0.0, 1.0]);
        let one = range(std::iter::once(2.0));
        assert!(one[0] < 2.0 && one[1] > 2.0);
    }

    #[test]
    fn a_chart_has_its_points_and_nothing_of_a_name_is_markup() {
        let series = Series {
            name: "<script>&\u{1}".into(),
            points: vec![at(0.0, 0.0), at(1.0, 1.0), at(f64::NAN, 1.0)],
            line: true,
        };
        let axes = ["kept".into(), "accuracy".into()];
        let chart = Chart { title: "gain".into(), axes, series: vec![series] };
        let text = svg(&[Panel::Chart(chart)]);
        assert!(text.contains("&lt;script&gt;&amp; ") && !text.contains("<script"));
        // Two points and the mark beside the name; the least lies left and below.
        assert_eq!(text.matches("<circle").count(), 3);
        assert!(text.contains("0.0000, 0.0000") && !text.contains("NaN"));
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn long_lines_are_thinned_and_keep_their_mean() {
        let points: Vec<Point> = (0..5000).map(|i| at(i as f64, 2.0)).collect();
        let few = thinned(&points);
        assert!(few.len() <= MOST && few.iter().all(|p| p.y == 2.0));
        let mean = few.iter().map(|p| p.x).sum::<f64>() / few.len() as f64;
        assert!((mean - 2499.5).abs() < 1e-6);
    }

    #[test]
    fn a_grid_shows_counts() {
        let labels = vec!["on".to_string(), "off".into()];
        let grid = Grid { title: "confusion".into(), labels, counts: vec![vec![3, 1], vec![0, 4]] };
        let text = svg(&[Panel::Grid(grid)]);
        assert!(text.contains("<title>on answered as off: 1 of 4</title>"));
        assert!(text.contains("fill-opacity=\"0.750\""));
    }
}
