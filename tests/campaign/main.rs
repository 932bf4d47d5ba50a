//! The fault campaign: a cluster of real agents carries traffic all the time, while one thing after the other breaks.
//!
//! What breaks is drawn from a seed. After each fault everything must be well again by itself, and what was lost meanwhile
//! must have been the fault's to take; `docs/campaign.md` says what is promised, and how to run a long one.

#[path = "../cluster/bed.rs"]
#[allow(dead_code, reason = "other tests do more with it")]
mod bed;
mod calls;
mod checkers;
mod churn;
mod damage;
mod faults;
mod flows;
mod heard;
#[path = "../cluster/http.rs"]
#[allow(dead_code, reason = "other tests do more with it")]
mod http;
#[path = "../cluster/node.rs"]
#[allow(dead_code, reason = "other tests do more with it")]
mod node;
mod report;
#[path = "../cluster/secret.rs"]
#[allow(dead_code, reason = "other tests do more with it")]
mod secret;
#[path = "../cluster/state.rs"]
#[allow(dead_code, reason = "other tests do more with it")]
mod state;
#[path = "../cluster/traffic.rs"]
#[allow(dead_code, reason = "other tests do more with it")]
mod traffic;
mod world;

use std::time::Instant;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use weft_tests::setting;

use faults::Fault;
use report::Report;
use world::World;

#[test]
fn nothing_is_lost_that_was_promised_whatever_breaks() {
    netns_harness::isolated(|| {
        let seed = setting("WEFT_CAMPAIGN_SEED", rand::random());
        let faults = setting("WEFT_CAMPAIGN_FAULTS", 15);
        let hosts = setting("WEFT_CAMPAIGN_HOSTS", if faults > 100 { 8 } else { 4 }) as usize;
        // Every other seed, so that each run of CI has one or the other.
        let is_encrypted = setting("WEFT_CAMPAIGN_ENCRYPTED", seed % 2) == 1;
        let only = std::env::var("WEFT_CAMPAIGN_ONLY").unwrap_or_default();
        let mut report = Report::new();
        report.say(&format!(
            "WEFT_CAMPAIGN_SEED={seed} WEFT_CAMPAIGN_FAULTS={faults} WEFT_CAMPAIGN_HOSTS={hosts} \
             WEFT_CAMPAIGN_ENCRYPTED={}",
            u8::from(is_encrypted)
        ));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new(hosts, is_encrypted);
        checkers::settles(&world);
        checkers::goes_on(&world);
        forget(&world);
        report.say("all is well, and now it begins");
        for number in 1..=faults {
            let fault = loop {
                let fault = Fault::draw(&mut rng, hosts, is_encrypted);
                if fault.to_string().contains(&only) {
                    break fault;
                }
            };
            suffer(&mut world, &fault, number, &mut report);
        }
        report.tell(&world);
        world.close();
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
    });
}

/// What went wrong while hosts and endpoints came one after the other.
fn forget(world: &World) {
    world.ledger.strays();
    world.tracks.iter().for_each(|track| drop(track.take()));
}

fn suffer(world: &mut World, fault: &Fault, number: u64, report: &mut Report) {
    let line = format!("{number}: {fault}");
    report.say(&line);
    let begin = world.ledger.mark();
    let effect = fault.befall(world);
    let healed = Instant::now();
    for slow in checkers::settles(world) {
        report.say(&format!("    {slow}"));
    }
    let end = checkers::goes_on(world);
    report.fault(fault.kind, healed.elapsed());
    checkers::is_well(world.node(fault.other));
    state::numbers(world.node(fault.host));
    for lost in world.ledger.lost_between(&begin, &end) {
        report.loss(fault.kind, lost.datagrams, lost.longest);
        if let Some(violation) = checkers::explain_loss(world, &effect, &lost) {
            report.violation(&line, violation);
        }
    }
    for stray in world.ledger.strays() {
        report.violation(&line, stray);
    }
    for track in &world.tracks {
        let (failures, longest, wrong) = track.take();
        report.client(fault.kind, track.kind, failures.len(), longest);
        for failure in failures {
            if let Some(violation) = checkers::explain_failure(&effect, track, &failure) {
                report.violation(&line, violation);
            }
        }
        for wrong in wrong {
            report.violation(&line, wrong);
        }
    }
}
