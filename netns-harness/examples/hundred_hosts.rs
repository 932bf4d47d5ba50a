//! How fast hosts come up and go: `cargo run -p netns-harness --example hundred_hosts [COUNT]`

use std::error::Error;
use std::time::Instant;

use netns_harness::{Isolate, Lab, SwitchOptions, isolate};

fn main() -> Result<(), Box<dyn Error>> {
    isolate(&Isolate::new())?;
    let count: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let lab = Lab::new("many")?;
    let lan = lab.switch(
        "lan",
        SwitchOptions::new().subnet("10.0.0.0/12".parse::<ipnet::IpNet>()?),
    )?;
    let names: Vec<String> = (1..=count).map(|n| format!("h{n}")).collect();

    let start = Instant::now();
    let hosts = lab.hosts(&names)?;
    let made = start.elapsed();
    lab.plug(&lan, &hosts)?;
    let up = start.elapsed();
    println!("{count} hosts made in {made:.2?}, connected and addressed after {up:.2?}");
    println!("{:.0} hosts/s", count as f64 / up.as_secs_f64());

    let start = Instant::now();
    drop(hosts);
    lab.close()?;
    println!("closed, with nothing left, in {:.2?}", start.elapsed());
    Ok(())
}
