//! `weft lab graph`.

use std::fs;

use crate::bed::{User, path, shop_yaml};

#[test]
fn the_picture_of_a_live_lab_shows_addresses_and_what_is_dead() {
    let me = User::me();
    let shop = me.shop();
    shop.lab("kill", &["h3"]).good();
    let live = shop.inspect();
    let mermaid = shop.lab("graph", &[]).good();
    assert!(mermaid.starts_with("flowchart"), "{mermaid}");
    let dead = mermaid.lines().find(|line| line.contains("h3 ")).unwrap();
    assert!(dead.contains("(down)"), "{mermaid}");
    let alive = mermaid.lines().find(|line| line.contains("h2 ")).unwrap();
    assert!(!alive.contains("(down)"), "{mermaid}");

    let file = me.dir.path().join("shop.svg");
    shop.lab("graph", &["--format", "svg", "-o", path(&file)]).good();
    let svg = fs::read_to_string(file).unwrap();
    well_formed(&svg);
    for address in [live.vips("web", "front"), live.addresses("web-2", "front")].concat() {
        assert!(
            mermaid.contains(&address.to_string()) && svg.contains(&address.to_string()),
            "{address}"
        );
    }
    shop.down();
}

#[test]
fn a_lab_file_is_drawn_without_a_lab() {
    let me = User::me();
    let file = shop_yaml();
    let mermaid = me.run(&["lab", "graph", path(&file)]).good();
    assert!(mermaid.contains("web-3") && mermaid.contains("back"), "{mermaid}");
    well_formed(&me.run(&["lab", "graph", path(&file), "--format", "svg"]).good());
}

/// Every element is closed by its own name, attributes are quoted, and nothing is left unescaped.
fn well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml.trim();
    let mut elements = 0;
    while let Some(start) = rest.find('<') {
        text_is_escaped(&rest[..start]);
        let end = rest[start..].find('>').expect("a tag ends") + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with('?') || tag.starts_with('!') {
            continue;
        }
        assert!(!tag.contains('<'), "< in a tag: {tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name.trim()), "closed in the wrong order");
        } else {
            elements += 1;
            let inner = tag.strip_suffix('/').unwrap_or(tag);
            let (name, attributes) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
            attributes_are_quoted(attributes);
            assert!(!open.is_empty() || elements == 1, "a second root: {name}");
            if inner.len() == tag.len() {
                open.push(name);
            }
        }
    }
    assert!(
        open.is_empty() && elements > 10 && rest.trim().is_empty(),
        "{open:?} are not closed"
    );
}

fn attributes_are_quoted(attributes: &str) {
    let mut rest = attributes.trim();
    while !rest.is_empty() {
        let (name, after) = rest
            .split_once("=\"")
            .unwrap_or_else(|| panic!("no value: {rest}"));
        assert!(
            name.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-:_".contains(c)),
            "{name}"
        );
        let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("no end: {after}"));
        text_is_escaped(value);
        rest = after.trim_start();
    }
}

fn text_is_escaped(text: &str) {
    for (at, _) in text.match_indices('&') {
        let entity = text[at..].split(';').next().unwrap_or_default();
        assert!(
            ["&amp", "&lt", "&gt", "&quot", "&apos"].contains(&entity) || entity.starts_with("&#"),
            "{text}"
        );
    }
}
