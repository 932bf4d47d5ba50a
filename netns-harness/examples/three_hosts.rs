//! A tour: three hosts on a LAN, a service on one of them, a partition, a crash, and a clean end.
//! Run it as anybody: `cargo run -p netns-harness --example three_hosts`

use std::error::Error;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use netns_harness::{CaptureOptions, Inside, Isolate, Lab, Output, SwitchOptions, isolate};

const SECOND: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    isolate(&Isolate::new())?;
    let lab = Lab::new("tour")?;
    let options = SwitchOptions::new()
        .subnet("10.1.0.0/24".parse::<ipnet::IpNet>()?)
        .subnet("fd00:1::/64".parse::<ipnet::IpNet>()?);
    let lan = lab.switch("lan", options)?;
    let hosts = lab.hosts(&["h1", "h2", "h3"])?;
    for interface in lab.plug(&lan, &hosts)? {
        println!(
            "{} {} has {:?}",
            interface.host().name(),
            interface.name(),
            interface.addresses()?
        );
    }
    let [h1, h2, h3] = &hosts[..] else {
        unreachable!("three names make three hosts")
    };
    let [v4, v6]: [IpAddr; 2] = ["10.1.0.2".parse()?, "fd00:1::2".parse()?];
    println!(
        "h1 pings h2: {:?} by IPv4, {:?} by IPv6",
        h1.ping(v4, SECOND)?,
        h1.ping(v6, SECOND)?
    );

    // A socket opened inside a host stays there, wherever it is used.
    let listener = h2.run(|| TcpListener::bind("0.0.0.0:80"))??;
    let capture = h2.capture("eth0", CaptureOptions::new().containing("hello from h1"))?;
    let mut client = h1.run(|| TcpStream::connect((v4, 80)))??;
    client.write_all(b"hello from h1")?;
    drop(client);
    let mut text = String::new();
    listener.accept()?.0.read_to_string(&mut text)?;
    println!(
        "h2 hears {text:?}, and its wire carried it in {} frame",
        capture.wait_for(1, SECOND)?.matched
    );
    drop(listener);

    lab.partition(&[&[h1, h3], &[h2]])?;
    println!("partitioned: {}", h1.ping(v4, SECOND / 4).unwrap_err());
    lab.heal()?;
    println!("healed: {:?}", h1.ping(v4, SECOND)?);

    let sandbox = h3.sandbox("web-1")?;
    sandbox.set_resolv_conf("nameserver 169.254.53.53\n")?;
    let finished = sandbox
        .exec(Command::new("cat").arg("/etc/resolv.conf"), SECOND)?
        .success()?;
    println!("{} on h3 reads {:?}", sandbox.name(), finished.stdout);

    let sleeper = h2.spawn(Command::new("sleep").arg("1000"), Output::Discard)?;
    h2.crash()?;
    println!("h2 crashed; its process ended with {}", sleeper.wait(SECOND)?);
    h2.restart()?;
    println!("h2 is back: {:?}", h1.ping(v4, SECOND)?);

    lab.close()?;
    println!("nothing is left");
    Ok(())
}
