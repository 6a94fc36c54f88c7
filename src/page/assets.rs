//! The files of the page, in the binary as they are written: there is no build step.

pub(super) struct Asset {
    pub(super) path: &'static str,
    pub(super) kind: &'static str,
    pub(super) text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! asset {
    ($path:literal, $kind:ident, $file:literal) => {
        Asset { path: $path, kind: $kind, text: include_str!(concat!("assets/", $file)) }
    };
}

pub(super) const ASSETS: [Asset; 12] = [
    asset!("/", HTML, "index.html"),
    asset!("/icon.svg", SVG, "icon.svg"),
    asset!("/page.css", CSS, "page.css"),
    asset!("/page.js", SCRIPT, "page.js"),
    asset!("/live.js", SCRIPT, "live.js"),
    asset!("/draw.js", SCRIPT, "draw.js"),
    asset!("/figures.js", SCRIPT, "figures.js"),
    asset!("/loss.js", SCRIPT, "loss.js"),
    asset!("/cells.js", SCRIPT, "cells.js"),
    asset!("/timeline.js", SCRIPT, "timeline.js"),
    asset!("/experts.js", SCRIPT, "experts.js"),
    asset!("/tables.js", SCRIPT, "tables.js"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        for Asset { path, text, .. } in ASSETS {
            // What SVG is called, and nothing that is fetched.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in
                ["http:", "https:", "//cdn", "style=", "onclick", "onload", "<script>", "<style"]
            {
                assert!(!text.contains(word), "{path} has {word}");
            }
            // Names are text, whatever is in them.
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{path} has {word}");
            }
            assert!(text.lines().count() <= 300, "{path} is too long to be read in one go");
        }
    }
}
