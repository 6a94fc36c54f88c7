//! The picture of a comparison: smoothed losses above, and below how far each run is from the first.

use std::ops::Range;

use anyhow::anyhow;
use plotters::prelude::*;

use super::differences;

const SIZE: (u32, u32) = (960, 640);
const UPPER_HEIGHT: u32 = 380;

/// Colours that differ for people who see red and green alike (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// What the DeepSeek-V3 report holds FP8 to, in percent (section 3.3).
const BAND: f64 = 0.25;

/// Steps at the start that do not decide the scale of the upper half: a tenth, where losses fall.
const FALLING: usize = 10;

type Curve<'a> = (&'a str, &'a [(u64, f64)]);

/// An SVG of the curves; the first is the baseline.
pub(super) fn draw(curves: &[Curve<'_>]) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let (upper, lower) = area.split_vertically(UPPER_HEIGHT);
        let losses: Vec<Curve<'_>> = curves.to_vec();
        panel(&upper, "smoothed training loss, nats per token", &losses, None)?;
        let base = curves[0].1;
        let of = |(name, curve): &Curve<'_>| ((*name).to_owned(), differences(base, curve));
        let away: Vec<(String, Vec<(u64, f64)>)> = curves.iter().map(of).collect();
        let away: Vec<Curve<'_>> =
            away.iter().map(|(name, curve)| (&name[..], &curve[..])).collect();
        let title = format!("difference from {}, percent", curves[0].0);
        panel(&lower, &title, &away, Some(BAND))?;
        area.present().map_err(failed)?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(
    area: &Area<'_>,
    title: &str,
    curves: &[Curve<'_>],
    band: Option<f64>,
) -> anyhow::Result<()> {
    let last = curves.iter().filter_map(|(_, curve)| curve.last()).map(|(step, _)| *step).max();
    let last = last.unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, heights(curves, band))
        .map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT.stroke_width(0))
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"));
    mesh.draw().map_err(failed)?;
    if let Some(band) = band {
        let corners = [(0.0, -band), (last, band)];
        let grey = Rectangle::new(corners, BLACK.mix(0.08).filled());
        chart.draw_series([grey]).map_err(failed)?;
    }
    for ((name, curve), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let points = curve.iter().map(|(step, value)| (*step as f64, *value));
        let series = chart.draw_series(LineSeries::new(points, colour)).map_err(failed)?;
        series
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], *colour));
    }
    if band.is_some() {
        // The panel above names the colours.
        return Ok(());
    }
    let mut labels = chart.configure_series_labels();
    labels.background_style(WHITE.mix(0.85)).border_style(BLACK.mix(0.3));
    labels.draw().map_err(failed)
}

/// From the lowest to the highest value that matters, with a little room.
fn heights(curves: &[Curve<'_>], band: Option<f64>) -> Range<f64> {
    let late = |curve: &[(u64, f64)]| curve[curve.len() / FALLING..].to_vec();
    let values = curves.iter().flat_map(|(_, curve)| late(curve)).map(|(_, value)| value);
    let edges = band.iter().flat_map(|band| [-1.5 * band, 1.5 * band]);
    let finite = values.chain(edges).filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.0..1.0;
    }
    let room = 0.05 * (high - low).max(1e-9);
    low - room..high + room
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_drawn_and_named_and_its_difference_too() {
        let (a, b) = ([(1, 3.0), (2, 2.0), (3, 1.5)], [(1, 3.0), (2, 2.1), (3, 1.5)]);
        let svg = draw(&[("bf16", &a), ("fp8", &b)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for word in ["bf16", "fp8", "difference from bf16, percent", "smoothed training loss"] {
            assert!(svg.contains(word), "{word}");
        }
        assert_eq!(svg.matches("<polyline").count() % 2, 0);
    }

    #[test]
    fn a_run_without_a_step_does_not_break_the_picture() {
        assert!(draw(&[("a", &[(1, 2.0)]), ("b", &[])]).is_ok());
        assert!(draw(&[("a", &[(1, f64::NAN)])]).is_ok());
    }
}
