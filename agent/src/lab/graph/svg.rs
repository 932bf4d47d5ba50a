//! The lab as an SVG: hosts are columns, networks are lanes across them, and every service is a row of its
//! lane with its address on the left and an arrow to each backend.

use super::{Drawing, shapes::Svg};
use crate::{
    api::types::EndpointMode,
    lab::resolve::{HostPlan, ServicePlan},
};

const MARGIN: usize = 24;
const TITLE: usize = 40;
const HOST_HEAD: usize = 48;
const GAP: usize = 12;
/// Between a row's top and its boxes: room for the line that the arrows hang from.
const BUS: usize = 18;
const LINE: usize = 16;
const CHAR: usize = 7;
/// Boxes of one service side by side on one host, before a new line of them begins.
const MAX_ABREAST: usize = 3;
/// Fills of lanes, taken in turn.
const LANES: [(&str, &str); 5] = [
    ("#eaf2fd", "#2f6fc4"),
    ("#eaf7ee", "#2c8a4b"),
    ("#fdf3e3", "#b9770e"),
    ("#f3ecfb", "#7d3cbf"),
    ("#e8f6f6", "#15808a"),
];

pub(super) fn draw(drawing: &Drawing<'_>) -> String {
    let layout = Layout::new(drawing);
    let mut svg = Svg::new(layout.width, layout.height);
    let name = &drawing.topology.name;
    let state = if drawing.live.is_some() {
        "running"
    } else {
        "not running"
    };
    svg.text(MARGIN, MARGIN + 18, "title", &format!("Lab {name} ({state})"));
    layout.lanes(&mut svg);
    layout.hosts(&mut svg);
    layout.rows(&mut svg);
    svg.finish()
}

/// A service's row in its lane.
struct Row<'l> {
    service: &'l ServicePlan,
    top: usize,
    /// Names of replicas: per line, per host, side by side.
    lines: Vec<Vec<Vec<&'l str>>>,
}

struct Lane<'l> {
    network: &'l str,
    top: usize,
    height: usize,
    rows: Vec<Row<'l>>,
}

struct Layout<'d, 'l> {
    drawing: &'d Drawing<'l>,
    lanes: Vec<Lane<'d>>,
    /// Left edge and width of each host's column.
    columns: Vec<(&'d HostPlan, usize, usize)>,
    label_width: usize,
    box_width: usize,
    box_height: usize,
    width: usize,
    height: usize,
}

impl<'d, 'l> Layout<'d, 'l> {
    fn new(drawing: &'d Drawing<'l>) -> Self {
        let topology = drawing.topology;
        let mut label_chars = 12;
        for network in &topology.networks {
            label_chars = lane_lines(drawing, &network.name)
                .iter()
                .map(String::len)
                .fold(label_chars, usize::max);
        }
        for service in &topology.services {
            label_chars = label_chars.max(service.name.len());
            for line in service_lines(drawing, service) {
                label_chars = label_chars.max(line.len());
            }
        }
        let (mut box_chars, mut address_lines) = (8, 0);
        for replica in &topology.replicas {
            box_chars = box_chars.max(replica.name.len());
            for attachment in &replica.attachments {
                let addresses = drawing.addresses(&replica.name, &attachment.network);
                address_lines = address_lines.max(addresses.len());
                box_chars = addresses.iter().map(String::len).fold(box_chars, usize::max);
            }
        }
        let label_width = label_chars * CHAR + 24;
        let box_width = box_chars * CHAR + 20;
        let box_height = LINE * (1 + address_lines) + 20;

        let columns = Self::columns(drawing, MARGIN + label_width + 3 * GAP, box_width);
        let right = columns
            .last()
            .map_or(MARGIN + label_width, |(_, left, width)| left + width);
        let mut layout = Self {
            drawing,
            lanes: Vec::new(),
            columns,
            label_width,
            box_width,
            box_height,
            width: right + GAP + MARGIN,
            height: 0,
        };
        let mut top = MARGIN + TITLE + HOST_HEAD;
        for network in &topology.networks {
            let lane = layout.lane(&network.name, top);
            top += lane.height + GAP;
            layout.lanes.push(lane);
        }
        layout.height = top + MARGIN;
        layout
    }

    fn columns(
        drawing: &'d Drawing<'l>,
        first: usize,
        box_width: usize,
    ) -> Vec<(&'d HostPlan, usize, usize)> {
        let topology = drawing.topology;
        let mut left = first;
        let mut columns = Vec::new();
        for host in &topology.hosts {
            let on_host = |service: &ServicePlan| {
                let here = |name: &&String| {
                    topology
                        .replica(name)
                        .is_some_and(|replica| replica.host == host.name)
                };
                service.replicas.iter().filter(here).count()
            };
            let most = topology.services.iter().map(on_host).max().unwrap_or(0);
            let abreast = most.clamp(1, MAX_ABREAST);
            let head =
                (host.name.len() + "  (down)".len()).max(host.advertise().to_string().len()) * CHAR + 16;
            let width = (abreast * (box_width + GAP) + GAP).max(head);
            columns.push((host, left, width));
            left += width + GAP;
        }
        columns
    }

    fn lane(&self, network: &'d str, top: usize) -> Lane<'d> {
        let topology = self.drawing.topology;
        let mut rows = Vec::new();
        let head = lane_lines(self.drawing, network).len() * LINE + GAP;
        let mut at = top + head;
        for service in topology
            .services
            .iter()
            .filter(|service| service.network == network)
        {
            let mut lines: Vec<Vec<Vec<&str>>> = vec![vec![Vec::new(); self.columns.len()]];
            for name in &service.replicas {
                let host = topology.replica(name).map(|replica| &replica.host);
                let Some(column) = self
                    .columns
                    .iter()
                    .position(|(plan, ..)| Some(&plan.name) == host)
                else {
                    continue;
                };
                let free = lines.iter().position(|line| line[column].len() < MAX_ABREAST);
                let line = free.unwrap_or_else(|| {
                    lines.push(vec![Vec::new(); self.columns.len()]);
                    lines.len() - 1
                });
                lines[line][column].push(name);
            }
            let label = LINE * (1 + service_lines(self.drawing, service).len()) + 14;
            let height = (lines.len() * (BUS + self.box_height)).max(BUS + label) + GAP;
            rows.push(Row {
                service,
                top: at,
                lines,
            });
            at += height;
        }
        Lane {
            network,
            top,
            height: at - top + GAP,
            rows,
        }
    }

    fn lanes(&self, svg: &mut Svg) {
        for (lane, (fill, stroke)) in self.lanes.iter().zip(LANES.iter().cycle()) {
            let width = self.width - 2 * MARGIN;
            svg.rect(
                MARGIN,
                lane.top,
                width,
                lane.height,
                8,
                &format!("fill=\"{fill}\" stroke=\"{stroke}\""),
            );
            for (number, line) in lane_lines(self.drawing, lane.network).iter().enumerate() {
                let class = if number == 0 { "name" } else { "address" };
                svg.text(MARGIN + GAP, lane.top + 20 + number * LINE, class, line);
            }
        }
    }

    fn hosts(&self, svg: &mut Svg) {
        let top = MARGIN + TITLE;
        let bottom = self.height - MARGIN;
        for (host, left, width) in &self.columns {
            let up = self.drawing.host_up(&host.name);
            let class = if up { "host" } else { "host down" };
            svg.rect(*left, top, *width, bottom - top, 8, &format!("class=\"{class}\""));
            let middle = left + width / 2;
            let state = if up { "" } else { " (down)" };
            svg.centred(middle, top + 20, "name", &format!("{}{state}", host.name));
            svg.centred(middle, top + 37, "address", &host.advertise().to_string());
        }
    }

    fn rows(&self, svg: &mut Svg) {
        for (lane, (_, colour)) in self.lanes.iter().zip(LANES.iter().cycle()) {
            for row in &lane.rows {
                self.row(svg, row, colour);
            }
        }
    }

    fn row(&self, svg: &mut Svg, row: &Row<'_>, colour: &str) {
        let left = MARGIN + GAP;
        let lines = service_lines(self.drawing, row.service);
        let height = LINE * (1 + lines.len()) + 14;
        let trunk = left + self.label_width + GAP;
        let dash = match row.service.endpoint_mode {
            EndpointMode::Vip => "",
            // No address in between: the name alone leads to the backends.
            EndpointMode::Dnsrr => " stroke-dasharray=\"5 4\"",
        };
        let stroke = format!("stroke=\"{colour}\"{dash}");
        let mut last_bus = row.top + BUS / 2;
        for (number, line) in row.lines.iter().enumerate() {
            let bus = row.top + number * (BUS + self.box_height) + BUS / 2;
            let mut end = None;
            for ((_, column, _), names) in self.columns.iter().zip(line) {
                for (place, name) in names.iter().enumerate() {
                    let x = column + GAP + place * (self.box_width + GAP);
                    end = Some(x + self.box_width / 2);
                    self.backend(svg, row.service, name, x, bus, colour);
                }
            }
            if let Some(end) = end {
                svg.line((trunk, bus), (end, bus), &stroke);
                last_bus = bus;
            }
        }
        if row.lines.iter().flatten().flatten().next().is_some() {
            svg.line(
                (left + self.label_width, row.top + BUS + 12),
                (trunk, row.top + BUS + 12),
                &stroke,
            );
            svg.line(
                (trunk, row.top + BUS / 2),
                (trunk, last_bus.max(row.top + BUS + 12)),
                &stroke,
            );
        }
        svg.rect(
            left,
            row.top + BUS,
            self.label_width,
            height,
            height / 2,
            &format!("class=\"service\" {stroke}"),
        );
        let middle = left + self.label_width / 2;
        svg.centred(middle, row.top + BUS + 20, "name", &row.service.name);
        for (number, line) in lines.iter().enumerate() {
            svg.centred(middle, row.top + BUS + 20 + LINE * (number + 1), "address", line);
        }
    }

    fn backend(&self, svg: &mut Svg, service: &ServicePlan, name: &str, x: usize, bus: usize, colour: &str) {
        let runs = self.drawing.replica_runs(name);
        let top = bus + BUS / 2 + 4;
        let middle = x + self.box_width / 2;
        let stroke = if runs {
            format!("stroke=\"{colour}\"")
        } else {
            "class=\"gone\"".to_owned()
        };
        svg.arrow(middle, bus, top, &stroke);
        let class = if runs { "replica" } else { "replica down" };
        svg.rect(
            x,
            top,
            self.box_width,
            self.box_height - 8,
            5,
            &format!("class=\"{class}\""),
        );
        svg.centred(middle, top + 18, "name", name);
        for (number, address) in self.drawing.addresses(name, &service.network).iter().enumerate() {
            svg.centred(middle, top + 18 + LINE * (number + 1), "address", address);
        }
    }
}

fn service_lines(drawing: &Drawing<'_>, service: &ServicePlan) -> Vec<String> {
    drawing.service_lines(&service.name, &service.network, service.endpoint_mode, service.lb)
}

/// What stands at the head of a lane: the network with its traits, then its subnets.
fn lane_lines(drawing: &Drawing<'_>, network: &str) -> Vec<String> {
    let mut name = network.to_owned();
    if let Some(traits) = drawing.traits_of(network) {
        name.push_str(&format!(" ({traits})"));
    }
    [vec![name], drawing.subnets(network)].concat()
}
