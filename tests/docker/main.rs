//! Real dockerds with Weft as their driver, each on a host of its own. Needs root, `docker.io` and `busybox-static`.

mod cluster;
mod driver;
mod proxy;
mod site;
