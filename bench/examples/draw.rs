// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Draws a file of `bench/results` as an SVG picture: each row's ratio on a logarithmic axis, from
//! 1, where both are equal, with its goal and the side of it that is good. The rows of a measure
//! (P1, P2 ...) share an axis.

use std::error::Error;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Deserialize;

/// What `make bench` wrote, as far as the picture needs it.
#[derive(Deserialize)]
struct Results {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    what: String,
    ratio: Option<f64>,
    goal: Option<f64>,
    goal_met: bool,
}

impl Row {
    fn measure(&self) -> &str {
        self.id.split('-').next().unwrap_or(&self.id)
    }

    /// The goal, and whether less is good. The file does not say the latter, but whether the goal
    /// is met; where both directions would be, less is.
    fn goal(&self) -> Option<(f64, bool)> {
        let goal = self.goal?;
        let below = self.ratio.is_some_and(|ratio| ratio <= goal);
        Some((goal, below == self.goal_met))
    }

    fn label(&self) -> String {
        let ratio = self.ratio.map_or("no ratio".into(), short);
        match self.goal() {
            Some((goal, true)) => format!("{ratio} (≤ {goal})"),
            Some((goal, false)) => format!("{ratio} (≥ {goal})"),
            None => ratio,
        }
    }

    fn color(&self) -> RGBColor {
        match self.goal {
            None => NEITHER.0,
            Some(_) if self.goal_met => MET.0,
            Some(_) => MISSED.0,
        }
    }
}

/// What a measure compares with; docs/testing.md says more.
fn baseline(measure: &str) -> &'static str {
    match measure {
        "P1" => "against pin_user_pages_fast + unpin; -fixed: an empty job's round trip",
        "P2" => "against two copies through a guest blob",
        "P3" => "against a registration of 4 KiB",
        "P4" => "against memory that is pinned each time; -rate: that stays pinned",
        "P5" => "against an empty job's round trip",
        "P6" => "against the fewest entries that the physical pages allow",
        "P7" => "against 1 byte",
        "P8" => "against Linux's own driver on the same device",
        "P9" => "against what the row says",
        "P10" => "against Linux's own driver, or what the row says; instructions",
        _ => "",
    }
}

/// A color on light and on dark ground. The first is drawn; the style sheet has the other.
type Shade = (RGBColor, RGBColor);

const GROUND: Shade = (RGBColor(255, 255, 255), RGBColor(13, 17, 23));
const INK: Shade = (RGBColor(31, 35, 40), RGBColor(230, 237, 243));
const FAINT: Shade = (RGBColor(89, 99, 110), RGBColor(145, 152, 161));
const GRID: Shade = (RGBColor(209, 217, 224), RGBColor(61, 68, 77));
const MET: Shade = (RGBColor(26, 127, 55), RGBColor(63, 185, 80));
const MISSED: Shade = (RGBColor(188, 76, 0), RGBColor(240, 136, 62));
const NEITHER: Shade = (RGBColor(9, 105, 218), RGBColor(88, 166, 255));
const COLORS: [Shade; 7] = [GROUND, INK, FAINT, GRID, MET, MISSED, NEITHER];

// In pixels.
const WIDTH: u32 = 1000;
const MARGIN: i32 = 12;
const ROW: i32 = 36;
const HEADING: i32 = 34;
const AXIS: i32 = 30;
const LEGEND: i32 = 30;
/// Where the axis begins and ends.
const LEFT: i32 = 520;
const RIGHT: i32 = 870;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 4.0) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// The axis: from below what is smallest to above what is largest, and at least from half to twice.
fn axis(rows: &[Row]) -> Range<f64> {
    let values = rows.iter().flat_map(|row| [row.ratio, row.goal]).flatten();
    let (mut least, mut most) = (0.5_f64, 2.0_f64);
    // What is not above 0 has no place on the axis: plotters draws its bar to the end.
    for value in values.filter(|value| *value > 0.0) {
        least = least.min(value);
        most = most.max(value);
    }
    least / 1.2..most * 1.2
}

fn write(area: &Area, text: &str, at: (i32, i32), size: u32, color: Shade) -> Result {
    area.draw(&Text::new(
        text.to_owned(),
        at,
        ("sans-serif", size).into_font().color(&color.0),
    ))?;
    Ok(())
}

/// One measure, from the row of pixels `top` on; returns where it ends.
fn group(area: &Area, rows: &[Row], top: i32) -> Result<i32> {
    let measure = rows[0].measure();
    write(area, measure, (MARGIN, top + 8), 20, INK)?;
    write(area, baseline(measure), (MARGIN + 36, top + 10), 17, FAINT)?;
    let top = top + HEADING;
    let height = ROW * rows.len() as i32;
    let range = axis(rows);
    let mut chart = ChartBuilder::on(
        &area
            .clone()
            .shrink((LEFT, top), ((RIGHT - LEFT) as u32, (height + AXIS) as u32)),
    )
    .x_label_area_size(AXIS)
    .build_cartesian_2d(range.clone().log_scale().base(2.0), 0..height)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(8)
        .x_label_formatter(&|value| short(*value))
        .x_label_style(("sans-serif", 14).into_font().color(&FAINT.0))
        .axis_style(GRID.0)
        .bold_line_style(GRID.0)
        .light_line_style(TRANSPARENT)
        .draw()?;
    let line = |x: f64, [from, to]: [i32; 2], color: Shade, width| {
        PathElement::new(vec![(x, from), (x, to)], color.0.stroke_width(width))
    };
    for (index, row) in rows.iter().enumerate() {
        let at = top + ROW * index as i32;
        write(area, &row.id, (MARGIN, at + 3), 16, INK)?;
        write(area, &row.what, (MARGIN, at + 19), 14, FAINT)?;
        write(area, &row.label(), (RIGHT + 10, at + 11), 16, INK)?;
        // The chart's rows count from below.
        let [above, below] = [
            height - ROW * index as i32,
            height - ROW * (index as i32 + 1),
        ];
        if let Some((goal, at_most)) = row.goal() {
            let good = if at_most {
                range.start..goal
            } else {
                goal..range.end
            };
            chart.draw_series([Rectangle::new(
                [(good.start, above), (good.end, below)],
                MET.0.mix(0.12).filled(),
            )])?;
            chart.draw_series([line(goal, [above, below], MET, 2)])?;
        }
        if let Some(ratio) = row.ratio {
            let middle = (above + below) / 2;
            let color = row.color();
            chart.draw_series([PathElement::new(
                vec![(1.0, middle), (ratio, middle)],
                color.stroke_width(3),
            )])?;
            chart.draw_series([Circle::new((ratio, middle), 5, color.filled())])?;
        }
    }
    chart.draw_series([line(1.0, [0, height], INK, 1)])?;
    Ok(top + height + AXIS)
}

/// The picture of the file `json`.
fn draw(json: &str) -> Result<String> {
    let results: Results = serde_json::from_str(json)?;
    let groups: Vec<_> = results
        .rows
        .chunk_by(|one, other| one.measure() == other.measure())
        .collect();
    let height = 2 * MARGIN
        + LEGEND
        + groups
            .iter()
            .map(|rows| HEADING + ROW * rows.len() as i32 + AXIS)
            .sum::<i32>();
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        area.fill(&GROUND.0)?;
        let mut x = MARGIN;
        for (color, text) in [
            (MET, "goal met (on the green side of its line)"),
            (MISSED, "goal missed"),
            (NEITHER, "no goal"),
        ] {
            area.draw(&Circle::new((x + 5, MARGIN + 9), 5, color.0.filled()))?;
            write(&area, text, (x + 16, MARGIN + 2), 15, INK)?;
            x += 40 + 7 * text.len() as i32;
        }
        write(
            &area,
            "ratio to the baseline, logarithmic",
            (LEFT + 100, MARGIN + 2),
            15,
            INK,
        )?;
        let mut top = MARGIN + LEGEND;
        for rows in groups {
            top = group(&area, rows, top)?;
        }
        area.present()?;
    }
    Ok(with_dark_colors(&svg))
}

/// Adds a style sheet, which goes before the colors of the drawing.
fn with_dark_colors(svg: &str) -> String {
    let mut style = String::from("<style>@media (prefers-color-scheme: dark) {");
    for (light, dark) in COLORS {
        let [light, dark] = [light, dark]
            .map(|RGBColor(red, green, blue)| format!("#{red:02X}{green:02X}{blue:02X}"));
        for property in ["fill", "stroke"] {
            style += &format!("\n[{property}=\"{light}\"] {{ {property}: {dark}; }}");
        }
    }
    style += "\n}</style>\n";
    let start = svg.find("<rect").unwrap_or(svg.len());
    format!("{}{style}{}", &svg[..start], &svg[start..])
}

fn main() -> Result {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [json, svg] = arguments.as_slice() else {
        return Err("usage: draw RESULT.json PICTURE.svg".into());
    };
    std::fs::write(svg, draw(&std::fs::read_to_string(json)?)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const P8: &str = include_str!("../results/7.3.4-virtgpu-release-20261121-153650.json");
    /// Has ratios of thousands, and one below 0.
    const P7: &str = include_str!("../results/7.3.4-virtgpu-release-20261121-113628.json");

    fn circles(svg: &str, color: Shade) -> usize {
        let RGBColor(red, green, blue) = color.0;
        let color = format!("fill=\"#{red:02X}{green:02X}{blue:02X}\"");
        svg.lines()
            .filter(|line| line.starts_with("<circle") && line.contains(&color))
            .count()
    }

    fn row(ratio: f64, goal: f64, goal_met: bool) -> Row {
        Row {
            id: "P0-test".into(),
            what: String::new(),
            ratio: Some(ratio),
            goal: Some(goal),
            goal_met,
        }
    }

    #[test]
    fn three_digits() {
        for (value, text) in [
            (0.0150, "0.015"),
            (1.0596, "1.06"),
            (9.999, "10"),
            (50.94, "50.9"),
            (3985.6, "3986"),
            (1024.0, "1024"),
            (-0.00586, "-0.0059"),
            (0.0, "0"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn goals_have_a_direction() {
        assert_eq!(row(1.0, 1.05, true).label(), "1 (≤ 1.05)");
        assert_eq!(row(1.1, 1.05, false).label(), "1.1 (≤ 1.05)");
        assert_eq!(row(5.5, 1.3, true).label(), "5.5 (≥ 1.3)");
        assert_eq!(row(0.8, 1.3, false).label(), "0.8 (≥ 1.3)");
        assert_eq!(row(1.0, 1.0, true).label(), "1 (≤ 1)");
    }

    #[test]
    fn each_row_is_there() -> Result {
        for json in [P7, P8] {
            let svg = draw(json)?;
            let rows = serde_json::from_str::<Results>(json)?.rows;
            for row in &rows {
                for text in [&row.id, &row.label()] {
                    assert!(svg.contains(&format!("\n{text}\n</text>")), "{text}");
                }
            }
            // One more of each is in the legend.
            let count = |met| rows.iter().filter(|row| row.goal_met == met).count() + 1;
            assert_eq!(
                [circles(&svg, MET), circles(&svg, MISSED)],
                [true, false].map(count)
            );
            assert_eq!(circles(&svg, NEITHER), 1);
        }
        Ok(())
    }

    #[test]
    fn measures_are_grouped() -> Result {
        let svg = draw(P7)?;
        let heading = |text: &str| svg.matches(&format!("\n{text}\n</text>")).count();
        assert_eq!(["P5", "P6", "P7", "P8"].map(heading), [0, 1, 1, 0]);
        Ok(())
    }

    #[test]
    fn nothing_is_beside_the_axis() -> Result {
        let svg = draw(P7)?;
        let circles = svg.lines().filter_map(|line| {
            let (x, _) = line.strip_prefix("<circle cx=\"")?.split_once('"')?;
            x.parse::<i32>().ok()
        });
        // The legend's are first.
        let mut on_axis = circles.skip(3).peekable();
        assert!(on_axis.peek().is_some());
        assert!(on_axis.all(|x| (LEFT..=RIGHT).contains(&x)));
        Ok(())
    }

    #[test]
    fn text_is_escaped() -> Result {
        let json =
            r#"{"rows":[{"id":"P0","what":"a < b & c","ratio":null,"goal":2,"goal_met":false}]}"#;
        let svg = draw(json)?;
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("no ratio"));
        Ok(())
    }

    /// Colors that the style sheet does not know would be unreadable on dark ground.
    #[test]
    fn all_colors_have_a_dark_one() -> Result {
        let svg = draw(P8)?;
        let (style, drawing) = svg.split_once("</style>").ok_or("no style sheet")?;
        for part in drawing.split("=\"#").skip(1) {
            let color = &part[..6];
            assert!(style.contains(&format!("[fill=\"#{color}\"]")), "{color}");
        }
        Ok(())
    }

    /// The pictures that are kept are drawn by this program.
    #[test]
    fn pictures_are_of_their_results() -> Result {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results");
        let mut pictures = 0;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "svg") {
                let json = std::fs::read_to_string(path.with_extension("json"))?;
                assert!(std::fs::read_to_string(&path)? == draw(&json)?, "{path:?}");
                pictures += 1;
            }
        }
        assert!(pictures > 0);
        Ok(())
    }
}
