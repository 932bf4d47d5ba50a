//! What a broken dockerd might send: requests cut short, of the wrong types, too large, doubled, in the wrong order.
//!
//! `PROPTEST_CASES=20000 cargo test -p weft --lib docker::tests::fuzz` is the long form.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    conformance::{Call, Line, Translation, recorded},
    rig::Rig,
};
use crate::control::{Responder, docker::DockerCommand};

/// A request and what becomes of it on its way.
#[derive(Debug, Clone)]
struct Step {
    /// How far the request to send is from the one whose turn it is.
    off: isize,
    damage: Damage,
}

#[derive(Debug, Clone)]
enum Damage {
    None,
    Lost,
    /// The connection broke and dockerd sends it again.
    Doubled,
    CutAt(prop::sample::Index),
    Is(Vec<u8>),
    /// One of its fields is something else.
    Field(prop::sample::Index, Value),
    Without(prop::sample::Index),
    /// A field that nobody knows.
    Added(String, Value),
    /// The field twice, with different values.
    Twice(prop::sample::Index, Value),
    /// The body of another request.
    BodyOf(prop::sample::Index),
    /// Nothing comes for a long time.
    Pause,
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just(String::new()),
        "[0-9a-f]{64}",
        "\\PC{0,40}",
        "10\\.201\\.0\\.[0-9]{1,3}(/[0-9]{1,3})?",
        "(new|[0-9a-f]{32}),[0-9./]{1,20}",
        Just("x".repeat(100_000)),
        Just("255.255.255.255/0".to_owned()),
        Just("::/0".to_owned()),
        Just("ff:ff:ff:ff:ff:ff".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[A-Za-z.]{0,12}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        30 => Just(Damage::None),
        3 => Just(Damage::Lost),
        3 => Just(Damage::Doubled),
        2 => at().prop_map(Damage::CutAt),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Damage::Is),
        1 => Just(Damage::Is(b"[".repeat(200_000))),
        4 => (at(), value()).prop_map(|(at, value)| Damage::Field(at, value)),
        2 => at().prop_map(Damage::Without),
        2 => ("[A-Za-z]{1,12}", value()).prop_map(|(name, value)| Damage::Added(name, value)),
        2 => (at(), value()).prop_map(|(at, value)| Damage::Twice(at, value)),
        2 => at().prop_map(Damage::BodyOf),
        1 => Just(Damage::Pause),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let off = prop_oneof![6 => Just(0), 1 => -4..=4_isize];
    let step = (off, damage()).prop_map(|(off, damage)| Step { off, damage });
    prop::collection::vec(step, 10..80)
}

/// The fields of a body and of what is in it.
fn fields(body: &Value) -> Vec<String> {
    let Value::Object(fields) = body else {
        return Vec::new();
    };
    let within = |(name, value): (&String, &Value)| {
        let inner = self::fields(value).into_iter();
        let name = name.replace('~', "~0").replace('/', "~1");
        let mut all = vec![format!("/{name}")];
        all.extend(inner.map(|inner| format!("/{name}{inner}")));
        all
    };
    fields.iter().flat_map(within).collect()
}

fn damaged(body: &Value, damage: &Damage, calls: &[Call], translation: &Translation) -> Vec<u8> {
    let mut body = body.clone();
    let all = fields(&body);
    let one = |at: &prop::sample::Index| (!all.is_empty()).then(|| at.get(&all).clone());
    match damage {
        Damage::CutAt(at) => {
            let mut bytes = body.to_string().into_bytes();
            bytes.truncate(at.index(bytes.len()));
            return bytes;
        }
        Damage::Is(bytes) => return bytes.clone(),
        Damage::Field(at, value) => {
            if let Some(at) = one(at) {
                *body.pointer_mut(&at).expect("one of its fields") = value.clone();
            }
        }
        Damage::Without(at) => {
            let names = body
                .as_object()
                .map(|fields| fields.keys().cloned().collect::<Vec<_>>());
            if let (Some(names), Some(fields)) =
                (names.filter(|names| !names.is_empty()), body.as_object_mut())
            {
                fields.remove(at.get(&names));
            }
        }
        Damage::Added(name, value) => {
            if let Some(fields) = body.as_object_mut() {
                fields.insert(name.clone(), value.clone());
            }
        }
        Damage::Twice(at, value) => {
            let names = body
                .as_object()
                .map(|fields| fields.keys().cloned().collect::<Vec<_>>());
            if let Some(names) = names.filter(|names| !names.is_empty()) {
                let (name, text) = (at.get(&names), body.to_string());
                return format!("{{{}:{value},{}", json!(name), &text[1..]).into_bytes();
            }
        }
        Damage::BodyOf(at) => body = translation.body(&at.get(calls).body),
        Damage::None | Damage::Lost | Damage::Doubled | Damage::Pause => {}
    }
    match body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    }
}

/// Ends everything that any request may have begun, and fails if something stays.
fn end(rig: &mut Rig, calls: &[Call]) {
    let each = |field: &str| {
        let all = calls.iter().filter_map(|call| call.body.get(field)?.as_str());
        all.collect::<std::collections::BTreeSet<_>>()
    };
    for endpoint in each("EndpointID") {
        rig.ask_json(
            "NetworkDriver.DeleteEndpoint",
            &json!({"NetworkID": "", "EndpointID": endpoint}),
        );
    }
    // Those that have ids of the test's own making: nobody has them any more, says Docker's API.
    for id in rig.node.endpoints() {
        let (to, _answer) = Responder::new();
        rig.node.handle(DockerCommand::Collect(id, to));
    }
    rig.node.forget();
    rig.node.remove_networks();
    rig.node.forget();
    rig.node.check();
    assert_eq!(rig.node.held(), [0; 4]);
}

/// Few, if nobody says how many.
fn cases() -> ProptestConfig {
    let config = ProptestConfig {
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 48, ..config },
    }
}

proptest! {
    #![proptest_config(cases())]

    /// The rig looks after each answer whether the node is whole.
    #[test]
    fn no_request_breaks_the_node_or_leaves_half_an_endpoint(
        begin in any::<prop::sample::Index>(), steps in steps(),
    ) {
        let calls: Vec<Call> = recorded()
            .filter_map(|line| match line {
                Line::Call(call) => Some(call),
                Line::Session { .. } => None,
            })
            .collect();
        let mut rig = Rig::new();
        let mut translation = Translation::default();
        let begin = begin.index(calls.len());
        for (turn, Step { off, damage }) in steps.iter().enumerate() {
            let at = (begin + turn).saturating_add_signed(*off) % calls.len();
            let Call { call, body, answer } = &calls[at];
            if matches!(damage, Damage::Lost) {
                continue;
            }
            if matches!(damage, Damage::Pause) {
                rig.node.forget();
            }
            let body = translation.body(body);
            let bytes = damaged(&body, damage, &calls, &translation);
            if matches!(damage, Damage::Doubled) {
                rig.ask(call, bytes.clone());
            }
            let before = rig.node.held()[1];
            let ours = rig.ask(call, bytes);
            if ours.error().is_some() {
                prop_assert_eq!(rig.node.held()[1], before, "an endpoint of a request that was refused");
            }
            translation.learn(answer, &ours.body);
        }
        end(&mut rig, &calls);
    }
}
