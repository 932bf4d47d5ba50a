//! Services are looked at again before anything is said against them: a backend may come or go between what the records say and what
//! is tried, and the kernel is told of it a moment later.

use std::collections::BTreeSet;

use super::TRIES;
use crate::{
    api::{
        ApiError,
        types::{DoctorCheck, DoctorVerdict},
    },
    control::doctor::{NetworkView, ServiceView},
};

/// What was found of each service of a network, in their order.
pub(super) type Found = Vec<Vec<DoctorCheck>>;

/// What becomes of something that was said against a service.
#[derive(Debug, PartialEq, Eq)]
enum Weighed {
    /// There is no such service any more, or nobody here who would call it.
    Gone,
    /// It is tried again.
    Again,
    Believed,
    /// It was another one each time.
    Doubted,
}

/// `was` is what it was tried as, in the look of that number, and `is` what it is after that.
fn weigh(was: &ServiceView, is: Option<&ServiceView>, look: usize) -> Weighed {
    match is {
        None => Weighed::Gone,
        Some(is) if is == was && look > 1 => Weighed::Believed,
        Some(_) if look < TRIES => Weighed::Again,
        Some(_) => Weighed::Doubted,
    }
}

/// Has the services of networks tried until it is known what to say of each. `try_all` hands the networks back, `views` says how they
/// are a moment later.
pub(super) async fn settle<Tried, Views>(
    mut networks: Vec<NetworkView>,
    mut try_all: impl FnMut(Vec<NetworkView>) -> Tried,
    mut views: impl FnMut() -> Views,
) -> Result<Vec<DoctorCheck>, ApiError>
where
    Tried: Future<Output = Result<(Vec<NetworkView>, Vec<Found>), ApiError>>,
    Views: Future<Output = Result<Vec<NetworkView>, ApiError>>,
{
    let mut settled = Vec::new();
    for look in 1.. {
        let (tried, found) = try_all(networks).await?;
        let mut accused = Vec::new();
        for (network, found) in tried.into_iter().zip(found) {
            for (service, checks) in network.services.into_iter().zip(found) {
                if checks.iter().any(|check| check.verdict == DoctorVerdict::Wrong) {
                    accused.push((network.name.clone(), service, checks));
                } else {
                    settled.extend(checks);
                }
            }
        }
        if accused.is_empty() {
            break;
        }
        networks = views().await?;
        let mut again = BTreeSet::new();
        for (network, was, checks) in accused {
            let mut services = networks
                .iter()
                .filter(|view| view.name == network)
                .flat_map(|view| &view.services);
            let is = services.find(|service| service.name == was.name);
            match weigh(&was, is, look) {
                Weighed::Gone => {}
                Weighed::Again => drop(again.insert((network, was.name))),
                Weighed::Believed => settled.extend(checks),
                Weighed::Doubted => settled.extend(checks.into_iter().map(doubted)),
            }
        }
        for network in &mut networks {
            let name = &network.name;
            let is_due = |service: &ServiceView| again.contains(&(name.clone(), service.name.clone()));
            network.services.retain(is_due);
        }
        networks.retain(|network| !network.services.is_empty());
        if networks.is_empty() {
            break;
        }
    }
    Ok(settled)
}

fn doubted(check: DoctorCheck) -> DoctorCheck {
    let sentence = "its backends changed each time that it was tried";
    check.judged(DoctorVerdict::Unknown).because(sentence)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        future::ready,
    };

    use super::*;
    use crate::{api::types::DoctorTopic, control::doctor::BackendView, daemon::doctor::fixtures};

    type Ready = std::future::Ready<Result<(Vec<NetworkView>, Vec<Found>), ApiError>>;

    fn service(name: &str, ready: usize) -> ServiceView {
        let backend = |n| BackendView {
            name: format!("{name}-{n}"),
            node: "h1".to_owned(),
            addresses: Vec::new(),
        };
        ServiceView {
            name: name.to_owned(),
            vips: Vec::new(),
            port: 80,
            target: 80,
            ready: (0..ready).map(backend).collect(),
            backends: ready,
        }
    }

    fn network(services: Vec<ServiceView>) -> NetworkView {
        NetworkView {
            services,
            ..fixtures::network()
        }
    }

    /// As what the services of networks are found, each by itself.
    fn found(networks: Vec<NetworkView>, judge: impl Fn(&ServiceView) -> DoctorCheck) -> Ready {
        let each = networks.iter().map(|network| {
            let services = network.services.iter();
            services.map(|service| vec![judge(service)]).collect()
        });
        let found = each.collect();
        ready(Ok((networks, found)))
    }

    fn finish<T>(settled: impl Future<Output = Result<T, ApiError>>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(settled).unwrap()
    }

    /// What is said of `web` when it has so many backends in each view, the first of which the first look begins with, and is wrong in
    /// so many looks; and how many looks there were.
    fn settled(views: &[Option<usize>], wrong: usize) -> (Vec<DoctorVerdict>, usize) {
        let looks = Cell::new(0);
        let asked = RefCell::new(views.iter());
        let view = || {
            let ready = asked.borrow_mut().next().expect("so many views");
            vec![network(
                ready.map(|ready| service("web", ready)).into_iter().collect(),
            )]
        };
        let try_all = |networks: Vec<NetworkView>| {
            looks.set(looks.get() + 1);
            found(networks, |_| match looks.get() <= wrong {
                true => DoctorCheck::wrong(DoctorTopic::Services, "web", "refused"),
                false => DoctorCheck::ok(DoctorTopic::Services, "web", "fine"),
            })
        };
        let checks = finish(settle(view(), try_all, || ready(Ok(view()))));
        (
            checks.into_iter().map(|check| check.verdict).collect(),
            looks.get(),
        )
    }

    #[test]
    fn only_what_is_wrong_twice_while_nothing_changes_is_said_to_be() {
        use DoctorVerdict::{Ok, Unknown, Wrong};
        let two = Some(2);
        for (views, wrong, said) in [
            (&[two][..], 0, (vec![Ok], 1)),
            // The kernel was told a moment later.
            (&[two, two], 1, (vec![Ok], 2)),
            (&[two, two, two], 9, (vec![Wrong], 2)),
            // A backend went meanwhile, and then nothing more.
            (&[two, Some(1)], 1, (vec![Ok], 2)),
            (&[two, Some(1), Some(1)], 9, (vec![Wrong], 2)),
            (&[two, two, Some(1), Some(1)], 9, (vec![Wrong], 3)),
            // It changes all the time.
            (&[two, Some(1), two, Some(1), two], 9, (vec![Unknown], 4)),
            (&[two, None], 9, (vec![], 1)),
        ] {
            assert_eq!(settled(views, wrong), said, "{views:?}, wrong {wrong} times");
        }
    }

    #[test]
    fn what_nothing_is_said_against_is_not_tried_again() {
        let tried = RefCell::new(Vec::new());
        let try_all = |networks: Vec<NetworkView>| {
            let services = networks.iter().flat_map(|network| &network.services);
            let names: Vec<String> = services.map(|service| service.name.clone()).collect();
            tried.borrow_mut().push(names);
            found(networks, |service| match service.name.as_str() {
                "web" => DoctorCheck::wrong(DoctorTopic::Services, "web", "refused"),
                _ => DoctorCheck::ok(DoctorTopic::Services, "api", "fine"),
            })
        };
        let view = || {
            vec![
                network(vec![service("api", 1), service("web", 1)]),
                network(Vec::new()),
            ]
        };
        let checks = finish(settle(view(), try_all, || ready(Ok(view()))));
        assert_eq!(checks.len(), 2);
        assert_eq!(tried.into_inner(), [vec!["api", "web"], vec!["web"]]);
    }
}
