//! Whether services take connections, at their addresses and at those of their backends.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread,
};

use socket2::Socket;
use weft_netlink::{broker::SocketKind, netns::Netns};

use super::PATIENCE;
use crate::{
    api::types::{DoctorCheck, DoctorTopic, DoctorVerdict},
    control::doctor::{Local, NetworkView, ServiceView},
    daemon::host::sentence,
};

/// Connections that are tried at once.
const AT_ONCE: usize = 16;
/// Backends of a service that are tried at most.
const MAX_BACKENDS: usize = 32;

/// What came of trying a service: at each of its own addresses, and at each of its backends'.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tried {
    vips: Vec<(SocketAddr, Result<(), String>)>,
    backends: Vec<(String, String, SocketAddr, Result<(), String>)>,
}

/// Opens a connection to each, and closes it without a word.
pub(super) fn probe(network: &NetworkView, here: &Local, netns: &Netns) -> Vec<Tried> {
    let speaks = |address: &&IpAddr| {
        here.addresses
            .iter()
            .any(|own| own.is_ipv4() == address.is_ipv4())
    };
    let mut all = Vec::new();
    for service in &network.services {
        let mut tried = Tried::default();
        if !service.ready.is_empty() {
            let vips = service.vips.iter().filter(speaks);
            tried.vips = vips
                .map(|vip| (SocketAddr::new(*vip, service.port), Ok(())))
                .collect();
        }
        for backend in service.ready.iter().take(MAX_BACKENDS) {
            let addresses = backend.addresses.iter().filter(speaks);
            tried.backends.extend(addresses.map(|address| {
                let address = SocketAddr::new(*address, service.target);
                (backend.name.clone(), backend.node.clone(), address, Ok(()))
            }));
        }
        all.push(tried);
    }
    let places = all.iter_mut().flat_map(|tried| {
        let vips = tried
            .vips
            .iter_mut()
            .map(|(address, outcome)| (*address, outcome));
        let backends = tried.backends.iter_mut();
        vips.chain(backends.map(|(_, _, address, outcome)| (*address, outcome)))
    });
    let mut places: Vec<(SocketAddr, &mut Result<(), String>)> = places.collect();
    for some in places.chunks_mut(AT_ONCE) {
        thread::scope(|scope| {
            for (address, outcome) in some {
                scope.spawn(|| **outcome = connect(netns, *address));
            }
        });
    }
    all
}

pub(in crate::daemon) fn connect(netns: &Netns, address: SocketAddr) -> Result<(), String> {
    let ipv4 = address.is_ipv4();
    let socket = netns
        .socket(SocketKind::Tcp { ipv4 })
        .map_err(|error| sentence(&error))?;
    match Socket::from(socket).connect_timeout(&address.into(), PATIENCE) {
        Ok(()) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            io::ErrorKind::TimedOut => format!("no answer within {} s", PATIENCE.as_secs()),
            _ => error.to_string(),
        }),
    }
}

/// What is to be said of each service.
pub(super) fn judge(network: &NetworkView, here: &Local, found: &[Tried]) -> Vec<Vec<DoctorCheck>> {
    let services = network.services.iter().zip(found);
    services
        .map(|(service, tried)| judge_service(network, here, service, tried))
        .collect()
}

fn judge_service(
    network: &NetworkView,
    here: &Local,
    service: &ServiceView,
    tried: &Tried,
) -> Vec<DoctorCheck> {
    let name = &service.name;
    let subject = format!("{}: {name}", network.name);
    let wrong = |sentence: String| DoctorCheck::wrong(DoctorTopic::Services, &subject, sentence);
    if service.ready.is_empty() {
        let check = match service.backends {
            0 => wrong(format!("`{name}` has no backends, and refuses connections"))
                .judged(DoctorVerdict::Unknown),
            all => wrong(format!(
                "none of the {all} backend(s) of `{name}` is ready, so it refuses connections"
            ))
            .with_help(format!(
                "`weft service inspect --network {} {name}` says why",
                network.name
            )),
        };
        return vec![check];
    }
    let mut checks = Vec::new();
    for (backend, node, address, outcome) in &tried.backends {
        let Err(reason) = outcome else { continue };
        checks.push(
            wrong(format!(
                "backend `{backend}` on {node} counts as ready and takes no connection at {address}: {reason}"
            ))
            .because("nothing listens there, or something drops packets within the endpoint or on the way")
            .with_help(format!(
                "a health check keeps callers away from it: `weft service update --health tcp {name}`"
            )),
        );
    }
    let some_backend = tried.backends.iter().any(|(.., outcome)| outcome.is_ok());
    for (address, outcome) in &tried.vips {
        let Err(reason) = outcome else { continue };
        let check = wrong(format!(
            "`{name}` takes no connection at {address} from `{}`: {reason}",
            here.name
        ));
        checks.push(match some_backend {
            true => check
                .because("its address is not translated there, or it went to a backend that takes none")
                .with_help("`weft doctor --fix` writes the translation anew"),
            false => check.because("none of the backends that were tried takes any"),
        });
    }
    if checks.is_empty() {
        let backends = tried.backends.len();
        let sentence = match &tried.vips[..] {
            [] => format!("`{name}` takes connections at {backends} address(es) of backends"),
            [(address, _), ..] => {
                format!("`{name}` takes connections at {address} and at {backends} address(es) of backends")
            }
        };
        checks.push(DoctorCheck::ok(DoctorTopic::Services, subject, sentence));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::doctor::BackendView, daemon::doctor::fixtures};

    fn judged(ready: usize, vip: Result<(), String>, backend: Result<(), String>) -> Vec<DoctorCheck> {
        let view = BackendView {
            name: "web-1".to_owned(),
            node: "h1".to_owned(),
            addresses: vec![[10, 9, 0, 1].into()],
        };
        let service = ServiceView {
            name: "web".to_owned(),
            vips: vec![[10, 9, 0, 100].into()],
            port: 80,
            target: 8000,
            ready: vec![view; ready],
            backends: 1,
        };
        let network = NetworkView {
            services: vec![service],
            ..fixtures::network()
        };
        let tried = Tried {
            vips: vec![(([10, 9, 0, 100], 80).into(), vip)],
            backends: vec![(
                "web-1".to_owned(),
                "h1".to_owned(),
                ([10, 9, 0, 1], 8000).into(),
                backend,
            )],
        };
        judge(&network, &fixtures::local(), &[tried]).remove(0)
    }

    #[test]
    fn an_address_and_its_backends_are_told_apart() {
        let refused = || Err("refused".to_owned());
        let sentences = |checks: Vec<DoctorCheck>| -> Vec<String> {
            checks.into_iter().map(|check| check.sentence).collect()
        };
        assert_eq!(
            sentences(judged(1, Ok(()), Ok(()))),
            ["`web` takes connections at 10.9.0.100:80 and at 1 address(es) of backends"]
        );
        let checks = judged(1, refused(), Ok(()));
        assert!(checks[0].cause.as_ref().unwrap().contains("not translated"));
        let checks = judged(1, refused(), refused());
        assert_eq!(checks.len(), 2);
        assert!(
            checks[0]
                .sentence
                .contains("counts as ready and takes no connection")
        );
        assert!(checks[1].cause.as_ref().unwrap().contains("none of the backends"));
        let checks = judged(0, Ok(()), Ok(()));
        assert_eq!(
            sentences(checks),
            ["none of the 1 backend(s) of `web` is ready, so it refuses connections"]
        );
    }
}
