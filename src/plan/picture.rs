//! One step of a pipeline as a picture: a row for each stage, a bar for each slot of arithmetic.

use std::fmt::Write;

use shoal_plan::planner::advice::seconds;
use shoal_plan::schedule::Slot;
use shoal_plan::schedule::timeline::Timeline;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 26.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 34.0;

/// The picture as SVG.
pub(super) fn svg(timeline: &Timeline) -> String {
    let scale = WIDTH / timeline.end.max(f64::MIN_POSITIVE);
    let height = TOP + ROW * timeline.bars.len() as f64 + 10.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"20\">one step, {}: \
         forward blue, input half green, weight half orange, waiting white</text>\n",
        LEFT + WIDTH + 10.0,
        seconds(timeline.end)
    );
    for (stage, bars) in timeline.bars.iter().enumerate() {
        let y = TOP + ROW * stage as f64;
        let _ = writeln!(text, "<text x=\"4\" y=\"{}\">stage {stage}</text>", y + 15.0);
        for bar in bars {
            let fill = match bar.slot {
                Slot::Forward(_) => "#4c78a8",
                Slot::BackwardInput(_) => "#54a24b",
                Slot::BackwardWeight(_) => "#f58518",
                Slot::RecvForward(_)
                | Slot::SendForward(_)
                | Slot::RecvBackward(_)
                | Slot::SendBackward(_) => continue,
            };
            let (x, width) = (LEFT + bar.start * scale, (bar.end - bar.start) * scale);
            let _ = writeln!(
                text,
                "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"20\" fill=\"{fill}\" stroke=\"white\" \
                 stroke-width=\"0.3\"><title>{}: {} to {}</title></rect>",
                bar.slot,
                seconds(bar.start),
                seconds(bar.end)
            );
        }
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use shoal_plan::schedule::timeline::{Wire, run};
    use shoal_plan::schedule::{Pipeline, Schedule};

    use super::*;

    #[test]
    fn every_slot_has_a_bar_within_the_picture() {
        let pipeline = Pipeline { schedule: Schedule::ZbH1, stages: 3, chunks: 1 };
        let timeline = run(pipeline, 4, |_, _| 0.5, |_, _, _| Wire::default());
        let text = svg(&timeline);
        assert_eq!(text.matches("<rect x=").count(), 3 * 4 * 3);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n") && !text.contains("NaN"));
    }
}
