//! The few shapes of SVG that a picture of a lab needs.

use std::fmt::Write as _;

/// A picture in the making.
pub(super) struct Svg {
    out: String,
}

const STYLE: &str = "\
text{font-family:system-ui,sans-serif;font-size:13px;fill:#1c2733}\
.title{font-size:18px;font-weight:600}\
.name{font-weight:600}\
.address{font-family:ui-monospace,monospace;font-size:11px;fill:#44525f}\
.host{fill:#ffffff;fill-opacity:.5;stroke:#66737f}\
.replica,.service{fill:#ffffff;stroke-width:1.3}\
.replica{stroke:#66737f}\
.host.down,.replica.down{fill:#fde8e8;stroke:#c0392b}\
.gone{stroke:#c0392b;stroke-dasharray:2 3}\
line,path{stroke-width:1.6;fill:none}";

impl Svg {
    pub(super) fn new(width: usize, height: usize) -> Self {
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
        );
        let _ = writeln!(out, "<style>{STYLE}</style>");
        // A ground of its own, so that the picture can be read on dark pages too.
        let _ = writeln!(
            out,
            "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
        );
        Self { out }
    }

    pub(super) fn rect(
        &mut self,
        x: usize,
        y: usize,
        width: usize,
        height: usize,
        radius: usize,
        attributes: &str,
    ) {
        let _ = writeln!(
            self.out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" {attributes}/>"
        );
    }

    pub(super) fn line(&mut self, (x1, y1): (usize, usize), (x2, y2): (usize, usize), attributes: &str) {
        let _ = writeln!(
            self.out,
            "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" {attributes}/>"
        );
    }

    /// A line downwards that ends in a tip.
    pub(super) fn arrow(&mut self, x: usize, from: usize, to: usize, attributes: &str) {
        let (left, right, tip) = (x - 4, x + 4, to - 5);
        let _ = writeln!(
            self.out,
            "<path d=\"M{x} {from}V{to}M{left} {tip}L{x} {to}L{right} {tip}\" {attributes}/>"
        );
    }

    pub(super) fn text(&mut self, x: usize, y: usize, class: &str, text: &str) {
        let _ = writeln!(
            self.out,
            "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>",
            escape(text)
        );
    }

    pub(super) fn centred(&mut self, x: usize, y: usize, class: &str, text: &str) {
        let _ = writeln!(
            self.out,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" class=\"{class}\">{}</text>",
            escape(text)
        );
    }

    pub(super) fn finish(mut self) -> String {
        self.out.push_str("</svg>\n");
        self.out
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
