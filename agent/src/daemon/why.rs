//! `weft why`: follows one question from who asks to who answers, and says at each step what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{Json, extract::State};
use weft_netlink::{
    icmp::{Echo, Unanswered, ping},
    netns::Netns,
};
use weft_overlay::plan::{Carrier, Far, ObservedNetwork, Tunnel};

use super::{
    doctor::{PATIENCE, names, services},
    server::{Answer, Body, Context, Request},
    target,
};
use crate::{
    api::{ApiError, types::*},
    control::{
        Command,
        why::{End, Found, ServiceStory, Story},
    },
};

/// Endpoints behind a name whose ways are followed at most.
const MAX_ENDS: usize = 32;

/// What packets said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tried {
    /// What each server gave for the name; nothing where it gave no answer.
    answers: BTreeMap<IpAddr, Option<BTreeSet<IpAddr>>>,
    /// Whether the service's addresses take a connection.
    vips: Vec<(SocketAddr, Result<(), String>)>,
    /// How long an echo to each address of an endpoint took.
    echoes: BTreeMap<IpAddr, Result<Duration, Unanswered>>,
}

pub(super) async fn why(
    State(context): State<Context>,
    Body(request): Body<WhyRequest>,
) -> Answer<WhyResponse> {
    let name = request.name.clone();
    let story = context
        .ask(|to| Request::Command(Command::Why(request, to)))
        .await?;
    let kernel = match &story.found {
        Some(found) => {
            let network = found.network;
            context.ask(|to| Request::Ways(network, to)).await?
        }
        None => None,
    };
    let ended = |error| ApiError::internal(format!("what was tried ended early: {error}"));
    let (story, tried) = tokio::task::spawn_blocking(move || {
        let tried = attempt(&story);
        (story, tried)
    })
    .await
    .map_err(ended)?;
    Ok(Json(WhyResponse {
        name,
        from: story.asker.as_ref().map(|asker| asker.name.clone()),
        node_name: story.node.clone(),
        steps: tell(&story, kernel.as_ref(), &tried),
    }))
}

/// Tries what can be tried from the asker's namespace.
fn attempt(story: &Story) -> Tried {
    let mut tried = Tried::default();
    let (Some(asker), Some(found)) = (&story.asker, &story.found) else {
        return tried;
    };
    let here = target::still_there(&asker.sandbox).then(|| Netns::open(&asker.sandbox.path));
    let Some(Ok(netns)) = here else { return tried };
    let speaks = |address: &&IpAddr| {
        asker
            .addresses
            .iter()
            .any(|own| own.is_ipv4() == address.is_ipv4())
    };
    for server in &found.dns {
        let asked = names::ask(&netns, *server, std::iter::once(&found.question));
        let told = asked
            .ok()
            .and_then(|mut told| told.remove(&found.question).flatten());
        tried.answers.insert(*server, told);
    }
    if let Some(ServiceStory {
        vips,
        tcp: Some((port, _)),
        ..
    }) = &found.service
    {
        let vips = vips.iter().filter(speaks);
        tried.vips = vips
            .map(|vip| {
                let address = SocketAddr::new(*vip, *port);
                (address, services::connect(&netns, address))
            })
            .collect();
    }
    let ends = found.ends.iter().take(MAX_ENDS);
    let echoes = ends.flat_map(|end| end.addresses.iter().filter(speaks));
    let echoes: Vec<Echo> = echoes.map(|address| Echo::short(*address)).collect();
    if let Ok(answers) = ping(&netns, &echoes, PATIENCE) {
        let echoes = echoes.into_iter().map(|echo| echo.to);
        tried.echoes = echoes.zip(answers).collect();
    }
    tried
}

struct Steps(Vec<WhyStep>);

impl Steps {
    fn add(&mut self, stage: WhyStage, verdict: DoctorVerdict, sentence: impl Into<String>) -> &mut WhyStep {
        let sentence = sentence.into();
        self.0.push(WhyStep {
            stage,
            verdict,
            sentence,
            help: None,
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }
}

impl WhyStep {
    fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// Puts what is known into words.
fn tell(story: &Story, kernel: Option<&ObservedNetwork>, tried: &Tried) -> Vec<WhyStep> {
    use DoctorVerdict::{Ok as Fine, Unknown, Wrong};
    let mut steps = Steps(Vec::new());
    let networks = list(&story.networks);
    match &story.asker {
        Some(asker) => steps.add(
            WhyStage::Asker,
            Fine,
            format!("`{}` on {} asks, on {networks}", asker.name, story.node),
        ),
        None => steps.add(
            WhyStage::Asker,
            Unknown,
            format!("{} has no endpoint there, so nothing is tried", story.node),
        ),
    };
    let Some(found) = &story.found else {
        let nobody = steps.add(
            WhyStage::Record,
            Wrong,
            format!("no service, endpoint or alias is called so on {networks}"),
        );
        match (&story.similar[..], &story.elsewhere[..]) {
            (_, [_, ..]) => nobody.help(format!(
                "there is one on {}: connect the asker there too",
                list(&story.elsewhere)
            )),
            ([_, ..], _) => nobody.help(format!("there is {}", list(&story.similar))),
            ([], []) => {
                nobody.help("`weft service ls` and `weft network inspect NETWORK` list what there is")
            }
        }
        return steps.0;
    };
    tell_record(&mut steps, found);
    tell_answer(&mut steps, found, tried);
    if let Some(service) = &found.service {
        tell_service(&mut steps, service, found, tried);
    }
    for end in found.ends.iter().take(MAX_ENDS) {
        if found.service.is_some() {
            tell_backend(&mut steps, end);
        }
        tell_way(&mut steps, end, found.encrypted, kernel, tried);
    }
    let rest = found.ends.len().saturating_sub(MAX_ENDS);
    if rest > 0 {
        steps.add(
            WhyStage::Way,
            Unknown,
            format!("{rest} more endpoint(s) were not followed"),
        );
    }
    steps.0
}

fn tell_record(steps: &mut Steps, found: &Found) {
    let network = &found.network_name;
    if let Some(service) = &found.service {
        let ports = match &service.ports[..] {
            [] => "all ports".to_owned(),
            ports => format!("port {}", ports.join(", ")),
        };
        steps.add(
            WhyStage::Record,
            DoctorVerdict::Ok,
            format!(
                "service `{}` on `{network}`, made on {}: {}, {ports}, {} backend(s)",
                service.name,
                service.created_by,
                service.scheduler,
                found.ends.len()
            ),
        );
        return;
    }
    for end in &found.ends {
        let aliases = match &end.aliases[..] {
            [] => String::new(),
            aliases => format!(", also called {}", list(aliases)),
        };
        steps.add(
            WhyStage::Record,
            DoctorVerdict::Ok,
            format!(
                "endpoint `{}` on `{network}`, said by {} (version {}){aliases}",
                end.name, end.node, end.version
            ),
        );
    }
}

fn tell_answer(steps: &mut Steps, found: &Found, tried: &Tried) {
    let expected = addresses(&found.expected);
    if tried.answers.is_empty() {
        let sentence = format!("{} is {expected} by the records", found.question);
        steps.add(WhyStage::Answer, DoctorVerdict::Unknown, sentence);
    }
    for (server, told) in &tried.answers {
        let name = &found.question;
        match told {
            Some(told) if *told == found.expected && told.is_empty() => {
                let sentence = format!("{server} knows {name} and has no address for it");
                steps
                    .add(WhyStage::Answer, DoctorVerdict::Wrong, sentence)
                    .help("a name has the addresses of endpoints on hosts that are there, and of services that are ready");
            }
            Some(told) if *told == found.expected => {
                let sentence = format!("{server} says {name} is {expected}, as the records do");
                steps.add(WhyStage::Answer, DoctorVerdict::Ok, sentence);
            }
            Some(told) => {
                let sentence = format!(
                    "{server} says {name} is {}; the records say {expected}",
                    addresses(told)
                );
                steps.add(WhyStage::Answer, DoctorVerdict::Wrong, sentence).help(
                    "it is out of date for a moment after a change; if it stays so, see the agent's log",
                );
            }
            None => {
                let sentence = format!("{server} does not answer; the records say {name} is {expected}");
                steps
                    .add(WhyStage::Answer, DoctorVerdict::Wrong, sentence)
                    .help("see whether rules within the endpoint drop UDP port 53, and the agent's log");
            }
        }
    }
}

fn tell_service(steps: &mut Steps, service: &ServiceStory, found: &Found, tried: &Tried) {
    let is_ready = |end: &&End| end.state == BackendState::Ready && end.weight > 0;
    let ready = found.ends.iter().filter(is_ready).count();
    let all = found.ends.len();
    if ready == 0 {
        let sentence = format!("none of {all} backend(s) gets connections, so they are refused");
        steps
            .add(WhyStage::Service, DoctorVerdict::Wrong, sentence)
            .help("the steps below say why each does not");
    }
    if !service.has_vip {
        let sentence = "it has no address of its own: its name leads to its backends";
        steps.add(WhyStage::Service, DoctorVerdict::Ok, sentence);
    }
    for (address, outcome) in &tried.vips {
        match outcome {
            Ok(()) => {
                let sentence =
                    format!("{address} takes a connection; {ready} of {all} backend(s) may get it");
                steps.add(WhyStage::Service, DoctorVerdict::Ok, sentence);
            }
            // Said already.
            Err(_) if ready == 0 => {}
            Err(reason) => {
                let sentence = format!("{address} takes no connection: {reason}");
                steps
                    .add(WhyStage::Service, DoctorVerdict::Wrong, sentence)
                    .help("either a backend takes none, or the address is not translated: `weft doctor` tells which");
            }
        }
    }
}

fn tell_backend(steps: &mut Steps, end: &End) {
    let (name, node) = (&end.name, &end.node);
    let reason = end.reason.as_ref().map(|reason| format!(": {reason}"));
    let reason = reason.unwrap_or_default();
    match (end.state, end.weight) {
        (BackendState::Ready, 0) => {
            let sentence = format!("`{name}` on {node} has no weight, so no new connection goes there");
            steps
                .add(WhyStage::Backend, DoctorVerdict::Wrong, sentence)
                .help("connect it again with a weight of 1 or more");
        }
        (BackendState::Ready, weight) => {
            let sentence = format!("`{name}` on {node} gets connections, with weight {weight}");
            steps.add(WhyStage::Backend, DoctorVerdict::Ok, sentence);
        }
        (state, _) => {
            let sentence = format!("`{name}` on {node} gets no new connections, it is {state}{reason}");
            let step = steps.add(WhyStage::Backend, DoctorVerdict::Wrong, sentence);
            if matches!(state, BackendState::Draining | BackendState::Drained) {
                step.help(format!(
                    "`weft service activate {name}` or `weft node activate {node}` ends a drain"
                ));
            }
        }
    }
}

fn tell_way(steps: &mut Steps, end: &End, encrypted: bool, kernel: Option<&ObservedNetwork>, tried: &Tried) {
    for address in &end.addresses {
        let (path, mut verdict) = match (end.is_here, kernel) {
            (true, Some(_)) => ("through the bridge of this host".to_owned(), DoctorVerdict::Ok),
            (false, Some(kernel)) => path(end, encrypted, *address, kernel),
            (_, None) => (
                "the network is not on this host".to_owned(),
                DoctorVerdict::Unknown,
            ),
        };
        let echo = match tried.echoes.get(address) {
            Some(Ok(time)) => format!("answers an echo in {:.2} ms", time.as_secs_f64() * 1000.0),
            Some(Err(reason)) => {
                verdict = DoctorVerdict::Wrong;
                format!("does not answer an echo: {reason}")
            }
            None => "was not tried".to_owned(),
        };
        let sentence = format!("`{}` at {address} {echo}; {path}", end.name);
        let step = steps.add(WhyStage::Way, verdict, sentence);
        match (verdict, end.node_state) {
            (DoctorVerdict::Wrong, NodeState::Down | NodeState::Left) => {
                step.help(format!("{} does not answer: start it again", end.node));
            }
            (DoctorVerdict::Wrong, _) => step.help("`weft doctor` tries the underlay and the tunnel"),
            _ => {}
        }
    }
}

/// What leads to an endpoint of another host.
fn path(end: &End, encrypted: bool, address: IpAddr, kernel: &ObservedNetwork) -> (String, DoctorVerdict) {
    let mac = kernel.neighbours.get(&address);
    let behind = kernel.fdb.get(&end.mac).copied().flatten();
    let node = &end.node;
    let shown = |far: Option<Far>| match far {
        None => "nowhere".to_owned(),
        Some(Far::Vtep(vtep)) => vtep.to_string(),
        Some(Far::Process) => "the encrypted tunnels".to_owned(),
    };
    let is_sealed = |tunnel: Tunnel| matches!(tunnel.carrier, Carrier::Vxlan { sealed: true, .. });
    let wanted = match encrypted && !kernel.tunnel.is_some_and(is_sealed) {
        true => Some(Far::Process),
        false => end.vtep.map(Far::Vtep),
    };
    if mac != Some(&end.mac) {
        let mac = mac.map_or("none".to_owned(), ToString::to_string);
        let text = format!("its neighbour entry says {mac} and not {}", end.mac);
        return (text, DoctorVerdict::Wrong);
    }
    if behind != wanted {
        let text = format!(
            "its forwarding entry leads {} and not to {node} ({})",
            shown(behind),
            shown(wanted)
        );
        return (text, DoctorVerdict::Wrong);
    }
    let text = format!(
        "its neighbour entry says {}, which is behind {node} ({})",
        end.mac,
        shown(wanted)
    );
    (text, DoctorVerdict::Ok)
}

fn list(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.is_empty() {
        true => "no network".to_owned(),
        false => names.join(", "),
    }
}

fn addresses(addresses: &BTreeSet<IpAddr>) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match addresses.is_empty() {
        true => "no address".to_owned(),
        false => addresses.join(", "),
    }
}

#[cfg(test)]
mod tests;
