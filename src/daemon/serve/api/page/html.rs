//! Pieces of HTML.

use std::fmt::Write;

/// Text as it stands between tags or in quotes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What turns the writing around could make a label read as another.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Text as a value in an address.
pub fn in_query(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b.is_ascii_alphanumeric() || b"-_.".contains(&b) {
            true => out.push(char::from(b)),
            false => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

/// A whole document.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<link rel=\"stylesheet\" href=\"/page/style.css\">\n\
         <link rel=\"icon\" href=\"/page/icon.svg\">\n\
         <script src=\"/page/keys.js\" defer></script>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        escaped(title)
    )
}

/// How long ago, in words.
pub fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then);
    let several = |n: u64, unit: &str| match n {
        1 => format!("1 {unit} ago"),
        n => format!("{n} {unit}s ago"),
    };
    match seconds {
        0..60 => "just now".into(),
        60..3600 => several(seconds / 60, "minute"),
        3600..86_400 => several(seconds / 3600, "hour"),
        _ => several(seconds / 86_400, "day"),
    }
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// One generation in the curve: its number, what it scored, what it kept, whether it serves, whether it
/// was refused.
pub struct Point {
    /// The generation.
    pub number: u64,
    /// Share of right answers on the hold-out.
    pub accuracy: Option<f64>,
    /// Mean cosine to the base on probe inputs.
    pub retention: Option<f64>,
    /// Whether it serves.
    pub active: bool,
    /// Whether it was refused.
    pub refused: bool,
}

/// Accuracy and retention of generations, oldest first.
pub fn curve(points: &[Point]) -> String {
    const LEFT: f64 = 46.0;
    const RIGHT: f64 = 12.0;
    const TOP: f64 = 10.0;
    const HEIGHT: f64 = 130.0;
    let width = (LEFT + RIGHT + 56.0 * points.len() as f64).clamp(280.0, 640.0);
    let step = (width - LEFT - RIGHT) / points.len().max(1) as f64;
    let x = |i: usize| LEFT + step * (i as f64 + 0.5);
    let y = |v: f64| TOP + (1.0 - v.clamp(0.0, 1.0)) * HEIGHT;
    let told: Vec<String> = points
        .iter()
        .map(|p| {
            let of = |v: Option<f64>| v.map_or("unknown".into(), percent);
            format!("generation {}: right {}, kept {}", p.number, of(p.accuracy), of(p.retention))
        })
        .collect();
    let mut out = format!(
        "<svg class=\"curve\" role=\"img\" width=\"{width:.0}\" height=\"{:.0}\" \
         viewBox=\"0 0 {width:.0} {:.0}\" aria-label=\"{}\">",
        TOP + HEIGHT + 26.0,
        TOP + HEIGHT + 26.0,
        escaped(&told.join("; "))
    );
    for share in [0.0, 0.5, 1.0] {
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
             <text x=\"{2:.0}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
            width - RIGHT,
            y(share),
            LEFT - 6.0,
            y(share) + 4.0,
            percent(share)
        );
    }
    let line = |class: &str, value: &dyn Fn(&Point) -> Option<f64>| {
        let places: Vec<String> = points
            .iter()
            .enumerate()
            .filter_map(|(i, p)| Some(format!("{:.1},{:.1}", x(i), y(value(p)?))))
            .collect();
        format!("<polyline class=\"{class}\" points=\"{}\"/>", places.join(" "))
    };
    out.push_str(&line("kept", &|p| p.retention));
    out.push_str(&line("right", &|p| p.accuracy));
    for (i, p) in points.iter().enumerate() {
        if let Some(accuracy) = p.accuracy {
            let class = if p.refused { "dot refused" } else { "dot" };
            let _ = write!(
                out,
                "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{}\"/>",
                x(i),
                y(accuracy),
                if p.active { 6 } else { 4 }
            );
        }
        let class = if p.active { " class=\"active\"" } else { "" };
        let _ = write!(
            out,
            "<text{class} x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            x(i),
            TOP + HEIGHT + 18.0,
            p.number
        );
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_people_write_becomes_a_tag() {
        assert_eq!(
            escaped("<b a=\"'&'\">\u{202e}\u{7}"),
            "&lt;b a=&quot;&#39;&amp;&#39;&quot;&gt;\u{fffd}\u{fffd}"
        );
        assert_eq!(in_query("a b&c=ü"), "a%20b%26c%3D%C3%BC");
        assert!(document("<i>", "").contains("<title>&lt;i&gt;</title>"));
    }

    #[test]
    fn times_are_told_in_words() {
        let told =
            [(0, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (90_000, "1 day ago")];
        for (seconds, words) in told {
            assert_eq!(ago(1000, 1000 + seconds), words);
        }
        assert_eq!(ago(5, 1), "just now");
    }

    #[test]
    fn a_curve_shows_every_generation() {
        let point = |number, accuracy, active| Point {
            number,
            accuracy,
            retention: Some(0.9),
            active,
            refused: !active,
        };
        let svg =
            curve(&[point(3, Some(0.5), false), point(4, None, false), point(5, Some(1.0), true)]);
        for part in
            ["generation 4: right unknown, kept 90 %", "dot refused", ">5</text>", "r=\"6\""]
        {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!curve(&[]).contains("NaN"));
    }
}
