//! What is parsed, what is refused, and what help says; the golden texts are in `snapshots/`.

use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("weft").chain(line.split_whitespace()))
}

/// The debug form without the blanks that only lay it out.
fn parsed(line: &str) -> String {
    let cli = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    format!("{:?}", cli.command)
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_is_read() {
    let lines = [
        "init --format json",
        "join --token T h1:7946 --format json",
        "leave",
        "token create --ttl 1h --reusable --format json",
        "token ls -q",
        "token rotate-key --format json",
        "node ls --format json",
        "node inspect h1 --format json",
        "node drain --grace 5m h1",
        "node activate",
        "node rotate-key",
        "node rm --force h1 h2",
        "network create -d overlay --subnet 10.7.0.0/16 --subnet fd00:7::/64 --ip-range 10.7.1.0/24 \
         --gateway 10.7.0.1 --aux-address printer=10.7.0.9 --ipv6 --internal -o mtu=1400 --label a=b=c \
         --allow-overlap app",
        "network ls --quiet",
        "network inspect app --format table",
        "network rm app back",
        "network connect --name a --alias x --alias y --ip 10.7.0.2 --ip6 fd00:7::2 --mac 02:42:0a:07:00:02 \
         --service web --weight 3 --format json app pid:7",
        "network disconnect --grace 1s app /run/netns/blue",
        "service create --network app --lb lc --endpoint-mode dnsrr --port http=80:8080 --port 53/udp web",
        "service ls --network app -q",
        "service inspect --network app web --format json",
        "service create --network app --health http=:8080/ready --interval 2s --timeout 500ms --retries 5 \
         --start-period 1m web",
        "service update --network app --lb wrr --endpoint-mode vip --port 80 web",
        "service update --health none web",
        "service update --interval 1s web",
        "service create --network app --idle-timeout 1h web",
        "service update --idle-timeout none web",
        "service create --network app --lb lc --slow-start 30s web",
        "service create --network app --port 5000-5001:6000-6001/udp --publish 7000-7001:5000-5001/udp web",
        "service drain --network app --grace 1m web-1",
        "service activate --network app web-1",
        "service rm --network app web api",
        "status --format json",
        "doctor --fix --passive --all",
        "doctor --format json",
        "why web",
        "why --network app web from client-1 --format json",
        "events --since 2026-11-21T12:15:47Z --no-follow",
        "version --format json",
        "whoami --listen :80 --listen 127.0.0.1:81 --name a --delay 5",
        "whoami --hold",
        "agent --data-dir /d --run-dir /r --socket /s --socket-group g --read-group 7 --node-name n --advertise 192.0.2.1 --vxlan-port 4790 \
         --encrypt --wireguard-port 51821 --wireguard kernel --tunnels service --no-sandbox --docker-plugin off --docker-socket /k --datapath nft --health-commands --metrics 127.0.0.1:9105 \
         --log-format json",
        "agent --dns-forward corp.example=10.0.0.53,[fd00::53]:5353 --dns-forward 10.0.0.0/8=10.0.0.53 \
         --dns-host 127.53.53.53 --dns-host-network app --dns-host-network back",
        "completion fish",
        "lab up shop.yaml --name shop2",
        "lab down shop",
        "lab ls --format json",
        "lab inspect shop --format json",
        "lab exec shop client-1 -- ping -c 1 web",
        "lab call shop client-1 http://web/ --times 12",
        "lab kill shop h3",
        "lab graph shop --format svg -o shop.svg",
    ];
    let text: String = lines
        .map(|line| format!("{}\n  {}\n", line, parsed(line)))
        .concat();
    insta::assert_snapshot!("flags", text);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (line, kind, says) in [
        (
            "",
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            "Usage: weft",
        ),
        (
            "network",
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            "Usage: weft network",
        ),
        ("netwrok ls", ErrorKind::InvalidSubcommand, "network"),
        ("network create", ErrorKind::MissingRequiredArgument, "<NAME>"),
        ("network create -d bridge a", ErrorKind::InvalidValue, "overlay"),
        (
            "network create --subnet 10.7.0.5/16 a",
            ErrorKind::ValueValidation,
            "in the subnet 10.7.0.0/16",
        ),
        (
            "network create --subnet ten a",
            ErrorKind::ValueValidation,
            "expected a subnet such as",
        ),
        (
            "network create --gateway ten a",
            ErrorKind::ValueValidation,
            "invalid IP address",
        ),
        (
            "network create --aux-address 10.7.0.9 a",
            ErrorKind::ValueValidation,
            "expected NAME=IP",
        ),
        (
            "network create --opt mtu a",
            ErrorKind::ValueValidation,
            "expected KEY=VALUE",
        ),
        (
            "network create --attachable a",
            ErrorKind::UnknownArgument,
            "--attachable",
        ),
        (
            "agent --dns-forward corp.example",
            ErrorKind::ValueValidation,
            "expected DOMAIN=SERVER",
        ),
        (
            "agent --dns-forward app.weft.internal=10.0.0.53",
            ErrorKind::ValueValidation,
            "Weft's own",
        ),
        (
            "agent --dns-host 192.0.2.1",
            ErrorKind::ValueValidation,
            "expected a loopback address",
        ),
        (
            "agent --dns-host-network app",
            ErrorKind::MissingRequiredArgument,
            "--dns-host",
        ),
        ("network rm", ErrorKind::MissingRequiredArgument, "<NETWORK>"),
        (
            "network ls -q --format json",
            ErrorKind::ArgumentConflict,
            "--format",
        ),
        (
            "network connect a b --weight 2",
            ErrorKind::MissingRequiredArgument,
            "--service",
        ),
        (
            "network connect a b --service s --weight 0",
            ErrorKind::ValueValidation,
            "0 is not in 1..=65535",
        ),
        (
            "network connect a b --mac 01:00:5e:00:00:01",
            ErrorKind::ValueValidation,
            "group address",
        ),
        (
            "network connect a b --ip fd00::1",
            ErrorKind::ValueValidation,
            "invalid IPv4",
        ),
        (
            "service create web",
            ErrorKind::MissingRequiredArgument,
            "--network",
        ),
        (
            "service create --network a --lb random web",
            ErrorKind::InvalidValue,
            "rr, wrr, lc, maglev",
        ),
        (
            "service create --network a --port 80/sctp web",
            ErrorKind::ValueValidation,
            "SCTP has no ports of its own",
        ),
        ("service update web", ErrorKind::MissingRequiredArgument, "--lb"),
        (
            "service create --network a --health none web",
            ErrorKind::ValueValidation,
            "it is none of tcp, http and cmd",
        ),
        (
            "service update --interval 5 web",
            ErrorKind::ValueValidation,
            "expected a time such as",
        ),
        (
            "join --token T h1",
            ErrorKind::ValueValidation,
            "expected HOST:PORT",
        ),
        (
            "join --token T 2001:db8::1:7946",
            ErrorKind::ValueValidation,
            "expected HOST:PORT",
        ),
        ("join h1:7946", ErrorKind::MissingRequiredArgument, "--token"),
        (
            "token create --ttl 0s",
            ErrorKind::ValueValidation,
            "a second at least",
        ),
        (
            "token create --ttl soon",
            ErrorKind::ValueValidation,
            "expected a time",
        ),
        (
            "events --no-follow",
            ErrorKind::MissingRequiredArgument,
            "--since",
        ),
        ("whoami --hold --delay 5", ErrorKind::ArgumentConflict, "--delay"),
        (
            "agent --advertise 0.0.0.0",
            ErrorKind::ValueValidation,
            "cannot reach that",
        ),
        (
            "agent --advertise h1",
            ErrorKind::ValueValidation,
            "expected an address such as",
        ),
        (
            "agent --vxlan-port 0",
            ErrorKind::ValueValidation,
            "0 is not in 1..=65535",
        ),
        (
            "--host tcp://h1:1 status",
            ErrorKind::ValueValidation,
            "expected unix:///PATH",
        ),
        ("completion tcsh", ErrorKind::InvalidValue, "bash"),
    ] {
        let Err(error) = parse(line) else {
            panic!("`{line}` is accepted")
        };
        assert_eq!(error.kind(), kind, "{line}: {error}");
        assert!(error.to_string().contains(says), "{line}: {error}");
    }
}

#[test]
fn an_advertised_address_may_leave_out_the_port() {
    for (text, address) in [
        ("192.0.2.1", "192.0.2.1:7946"),
        ("192.0.2.1:7000", "192.0.2.1:7000"),
        ("2001:db8::1", "[2001:db8::1]:7946"),
        ("[2001:db8::1]", "[2001:db8::1]:7946"),
        ("[2001:db8::1]:7000", "[2001:db8::1]:7000"),
    ] {
        assert_eq!(parse_advertise(text), Ok(address.parse().unwrap()), "{text}");
    }
}

#[test]
fn the_socket_follows_the_run_directory() {
    let Command::Agent(args) = parse("agent --run-dir /r").unwrap().command else {
        panic!()
    };
    assert_eq!(args.options().socket, PathBuf::from("/r/weft.sock"));
    let Command::Agent(args) = parse("agent").unwrap().command else {
        panic!()
    };
    assert_eq!(args.options(), AgentOptions::default());
}

#[test]
fn every_noun_explains_itself() {
    for noun in [
        "",
        "agent",
        "init",
        "join",
        "leave",
        "status",
        "events",
        "version",
        "whoami",
        "completion",
    ] {
        help(noun, noun);
    }
    for (noun, verbs) in [
        ("token", &["create", "ls", "rotate-key"][..]),
        ("docker", &["proxy", "setup"]),
        (
            "node",
            &["ls", "inspect", "drain", "activate", "rotate-key", "rm"],
        ),
        (
            "network",
            &["create", "ls", "inspect", "rm", "connect", "disconnect"],
        ),
        (
            "service",
            &["create", "ls", "inspect", "update", "drain", "activate", "rm"],
        ),
    ] {
        help(noun, noun);
        verbs
            .iter()
            .for_each(|verb| help(&format!("{noun}-{verb}"), &format!("{noun} {verb}")));
    }
}

#[test]
fn every_noun_shows_examples() {
    for noun in Cli::command()
        .get_subcommands()
        .filter(|noun| !noun.is_hide_set())
    {
        let help = noun.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:\n"), "{}", noun.get_name());
    }
}

fn help(name: &str, line: &str) {
    let words = std::iter::once("weft")
        .chain(line.split_whitespace())
        .chain(["--help"]);
    let error = Cli::command()
        .term_width(100)
        .try_get_matches_from(words)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{line}");
    let text = error.to_string();
    // The verbs of a noun share its examples.
    assert!(
        text.contains("Examples:") || line.contains(' '),
        "{line} has no examples"
    );
    insta::assert_snapshot!(
        format!("help-{}", if name.is_empty() { "weft" } else { name }),
        text
    );
}
