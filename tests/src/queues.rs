//! Packets that are lost because nobody had time for them.

use std::fs;

/// How many packets found a queue full in this thread's network namespace so far: of a socket, or of a device that a process
/// reads. Whoever was to empty it got no processor, whatever else was going on.
///
/// # Panics
///
/// If the kernel does not say.
pub fn overflows() -> u64 {
    let [devices, protocols] =
        ["dev", "snmp"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap());
    let devices = devices.lines().filter_map(|line| line.split_once(':'));
    // The twelfth column: dropped on the way out.
    let devices = devices.filter_map(|(_, line)| line.split_whitespace().nth(11)?.parse::<u64>().ok());
    let mut udp = protocols.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, numbers) = (udp.next().unwrap(), udp.next().unwrap());
    let mut udp = names.split_whitespace().zip(numbers.split_whitespace());
    let full = udp.find(|(name, _)| *name == "RcvbufErrors").unwrap().1;
    devices.sum::<u64>() + full.parse::<u64>().unwrap()
}
