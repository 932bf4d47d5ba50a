use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode};

use clap::Args;

use crate::{
    api::types::{DoctorCheck, DoctorRequest, DoctorResponse, DoctorTopic, DoctorVerdict},
    cli::{failure::Failure, format::FormatArgs, session::Session},
};

/// What `weft doctor` takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{LOOKS_AT}"))]
pub(in crate::cli) struct DoctorArgs {
    /// Put right what differs in this host's kernel
    #[arg(long)]
    fix: bool,
    /// Only compare what is known: send no packet to hosts and endpoints
    #[arg(long)]
    passive: bool,
    /// Show what is as it should be one by one too
    #[arg(long, conflicts_with = "format")]
    all: bool,
    #[command(flatten)]
    format: FormatArgs,
}

const EXAMPLES: &str = "\
Examples:
  weft doctor
  weft doctor --all
  weft doctor --fix
  weft doctor --format json | jq -r '.checks[] | select(.verdict == \"wrong\") | .sentence'

Exit codes: 0 if nothing is wrong (any more), 1 if something is";

const LOOKS_AT: &str = "\
What is looked at, from this host:
  records    what the cluster remembers, and whether it contradicts itself
  peers      whether each node answers and remembers the same; what it says is wrong there
  clock      the clocks of the others (they decide when join tokens expire, nothing else)
  kernel     links, addresses, routes, forwarding and neighbour entries and rules, read anew
  underlay   whether each host answers, and packets as long as the networks make them pass
  tunnel     whether each endpoint answers one of this host, in short packets and in the longest
  names      whether this host answers names as the records say
  services   whether each service, and each backend that counts as ready, takes a connection

Packets go to the other endpoints of networks that this host has endpoints on: echo requests, and TCP connections to the
first port of services that are closed without a word. Run it on the other host too to tell directions apart.";

pub(in crate::cli) fn doctor(session: &Session, args: DoctorArgs) -> Result<ExitCode, Failure> {
    let request = DoctorRequest {
        fix: args.fix,
        passive: args.passive,
    };
    let found = session.ask("looking at records, peers, kernel and packets", async |client| {
        client.doctor(&request).await
    })?;
    args.format.print(&found, |found| show(found, args.all))?;
    let wrong = found
        .checks
        .iter()
        .any(|check| check.verdict == DoctorVerdict::Wrong);
    Ok(ExitCode::from(u8::from(wrong)))
}

fn show(found: &DoctorResponse, all: bool) -> String {
    let mut text = String::new();
    let mut counts: BTreeMap<DoctorVerdict, usize> = BTreeMap::new();
    let mut fine: BTreeMap<DoctorTopic, usize> = BTreeMap::new();
    for check in &found.checks {
        *counts.entry(check.verdict).or_default() += 1;
        if check.verdict == DoctorVerdict::Ok && !all {
            *fine.entry(check.topic).or_default() += 1;
        } else {
            show_check(&mut text, check);
        }
    }
    // A String takes every write.
    if !fine.is_empty() {
        let topics = fine.iter().map(|(topic, count)| format!("{topic} {count}"));
        let topics: Vec<_> = topics.collect();
        let _ = writeln!(text, "as it should be: {}", topics.join(", "));
    }
    let count = |verdict| counts.get(&verdict).copied().unwrap_or(0);
    let words = [
        (DoctorVerdict::Wrong, "wrong"),
        (DoctorVerdict::Unknown, "unknown"),
        (DoctorVerdict::Fixed, "fixed"),
        (DoctorVerdict::Ok, "ok"),
    ];
    let words = words.into_iter().filter(|(verdict, _)| count(*verdict) > 0);
    let words: Vec<_> = words
        .map(|(verdict, word)| format!("{} {word}", count(verdict)))
        .collect();
    let _ = writeln!(text, "{}: {}", found.node_name, words.join(", "));
    text
}

fn show_check(text: &mut String, check: &DoctorCheck) {
    let sign = match check.verdict {
        DoctorVerdict::Wrong => "!",
        DoctorVerdict::Unknown => "?",
        DoctorVerdict::Fixed => "+",
        DoctorVerdict::Ok => " ",
    };
    let _ = writeln!(text, "{sign} {:<8}  {}", check.topic.to_string(), check.subject);
    let _ = writeln!(text, "    {}", check.sentence);
    if let Some(cause) = &check.cause {
        let _ = writeln!(text, "    likely: {cause}");
    }
    if let Some(help) = &check.help {
        let _ = writeln!(text, "    help: {help}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_shown_in_full_and_what_is_right_is_counted() {
        let check = |topic, verdict, sentence: &str| DoctorCheck::ok(topic, "h2", sentence).judged(verdict);
        let found = DoctorResponse {
            node_name: "h1".to_owned(),
            checks: vec![
                check(DoctorTopic::Peers, DoctorVerdict::Ok, "h2 agrees"),
                check(DoctorTopic::Kernel, DoctorVerdict::Fixed, "an entry was missing"),
                check(DoctorTopic::Underlay, DoctorVerdict::Wrong, "h2 is silent")
                    .because("it is off")
                    .with_help("turn it on"),
            ],
        };
        let wanted = "\
+ kernel    h2
    an entry was missing
! underlay  h2
    h2 is silent
    likely: it is off
    help: turn it on
as it should be: peers 1
h1: 1 wrong, 1 fixed, 1 ok
";
        assert_eq!(show(&found, false), wanted);
        assert!(show(&found, true).contains("  peers     h2\n    h2 agrees\n"));
    }
}
