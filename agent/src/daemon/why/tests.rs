use weft_types::{Mac, NetworkId};

use super::*;
use crate::control::{doctor::Local, records::SandboxSpec};

const VIP: [u8; 4] = [10, 9, 0, 100];
const END: [u8; 4] = [10, 9, 0, 2];
const VTEP: [u8; 4] = [10, 0, 0, 2];

fn mac() -> Mac {
    "02:00:00:00:00:02".parse().unwrap()
}

fn story() -> Story {
    let sandbox = SandboxSpec {
        target: "a".to_owned(),
        path: "/a".to_owned(),
        device: 1,
        inode: 1,
    };
    let end = End {
        name: "web-2".to_owned(),
        aliases: Vec::new(),
        node: "h2".to_owned(),
        node_state: NodeState::Alive,
        is_here: false,
        vtep: Some(VTEP.into()),
        mac: mac(),
        addresses: vec![END.into()],
        state: BackendState::Ready,
        weight: 1,
        reason: None,
        version: 3,
    };
    let service = ServiceStory {
        name: "web".to_owned(),
        created_by: "h1".to_owned(),
        vips: vec![VIP.into()],
        has_vip: true,
        scheduler: "rr".to_owned(),
        ports: vec!["80:8000".to_owned()],
        tcp: Some((80, 8000)),
    };
    Story {
        node: "h1".to_owned(),
        asker: Some(Local {
            mac: weft_types::Mac([2, 0, 0, 0, 0, 1]),
            name: "client".to_owned(),
            addresses: vec![[10, 9, 0, 1].into()],
            sandbox,
        }),
        networks: vec!["app".to_owned()],
        found: Some(Found {
            network: NetworkId([1; 16]),
            network_name: "app".to_owned(),
            question: "web.app.weft.internal".to_owned(),
            expected: [VIP.into()].into(),
            encrypted: false,
            dns: vec![[169, 254, 53, 53].into()],
            service: Some(service),
            ends: vec![end],
        }),
        elsewhere: Vec::new(),
        similar: Vec::new(),
    }
}

fn kernel() -> ObservedNetwork {
    ObservedNetwork {
        fdb: [(mac(), Some(Far::Vtep(VTEP.into())))].into(),
        neighbours: [(END.into(), mac())].into(),
        ..ObservedNetwork::default()
    }
}

fn tried() -> Tried {
    Tried {
        answers: [([169, 254, 53, 53].into(), Some([VIP.into()].into()))].into(),
        vips: vec![((VIP, 80).into(), Ok(()))],
        echoes: [(END.into(), Ok(Duration::from_micros(250)))].into(),
    }
}

fn text(steps: &[WhyStep]) -> String {
    let lines = steps
        .iter()
        .map(|step| format!("{} {} {}\n", step.stage, step.verdict, step.sentence));
    lines.collect()
}

#[test]
fn a_question_is_followed_to_its_end() {
    let wanted = "\
asker ok `client` on h1 asks, on `app`
record ok service `web` on `app`, made on h1: rr, port 80:8000, 1 backend(s)
answer ok 169.254.53.53 says web.app.weft.internal is 10.9.0.100, as the records do
service ok 10.9.0.100:80 takes a connection; 1 of 1 backend(s) may get it
backend ok `web-2` on h2 gets connections, with weight 1
way ok `web-2` at 10.9.0.2 answers an echo in 0.25 ms; its neighbour entry says 02:00:00:00:00:02, which is behind h2 (10.0.0.2)
";
    assert_eq!(text(&tell(&story(), Some(&kernel()), &tried())), wanted);
}

/// Changes one thing, and expects this to be what is wrong.
fn wrong(change: impl FnOnce(&mut Story, &mut ObservedNetwork, &mut Tried), wanted: &[&str]) {
    let (mut story, mut kernel, mut tried) = (story(), kernel(), tried());
    change(&mut story, &mut kernel, &mut tried);
    let steps = tell(&story, Some(&kernel), &tried);
    let wrong = steps.iter().filter(|step| step.verdict == DoctorVerdict::Wrong);
    let wrong: Vec<&str> = wrong.map(|step| step.sentence.as_str()).collect();
    assert_eq!(wrong.len(), wanted.len(), "{wrong:#?}");
    for (sentence, wanted) in wrong.iter().zip(wanted) {
        assert!(sentence.contains(wanted), "{sentence}\n{wanted}");
    }
}

#[test]
fn what_is_wrong_is_said_at_its_step() {
    wrong(|_, _, _| {}, &[]);
    wrong(
        |_, kernel, _| {
            kernel
                .fdb
                .insert(mac(), Some(Far::Vtep([10, 0, 0, 9].into())))
                .map_or((), drop)
        },
        &["its forwarding entry leads 10.0.0.9 and not to h2 (10.0.0.2)"],
    );
    wrong(
        |_, kernel, _| kernel.neighbours.clear(),
        &["its neighbour entry says none and not 02:00:00:00:00:02"],
    );
    wrong(
        |_, _, tried| tried.answers.values_mut().for_each(|told| *told = None),
        &["does not answer; the records say web.app.weft.internal is 10.9.0.100"],
    );
    wrong(
        |_, _, tried| tried.vips[0].1 = Err("refused".to_owned()),
        &["10.9.0.100:80 takes no connection: refused"],
    );
    wrong(
        |story, _, tried| {
            let end = &mut story.found.as_mut().unwrap().ends[0];
            (end.state, end.reason) = (BackendState::Unhealthy, Some("connection refused".to_owned()));
            tried.vips[0].1 = Err("refused".to_owned());
        },
        &[
            "none of 1 backend(s) gets connections",
            "it is unhealthy: connection refused",
        ],
    );
    wrong(
        |story, _, _| {
            story.found = None;
            story.similar = vec!["webb".to_owned()];
        },
        &["no service, endpoint or alias is called so on `app`"],
    );
}
