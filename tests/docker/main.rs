//! Real dockerds with Weft as their driver, each on a host of its own. Needs root, `docker.io` and `busybox-static`; the units, systemd.

mod cluster;
mod compose;
mod crashes;
mod door;
mod driver;
mod firewall;
mod five;
mod moby;
mod names;
mod proxy;
mod reboot;
mod site;
mod stopping;
mod units;
mod waits;
