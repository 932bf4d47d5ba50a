use clap::{ArgGroup, Args, Subcommand};

use super::{
    health::{HealthArgs, HealthUpdateArgs, states},
    tuning::{TuningArgs, eject, idle_timeout, slow_start},
};
use crate::{
    api::types::{
        Backend, EndpointActivateRequest, EndpointDrainRequest, EndpointMode, HealthCheck, ParsePublishError,
        PublishedPort, Scheduler, ServiceCounts, ServiceCreateRequest, ServiceDetail, ServicePort,
        ServiceSummary, ServiceUpdateRequest, check_name,
    },
    cli::{
        failure::Failure,
        format::{FormatArgs, ListArgs, join, print},
        nouns::drain::{GraceArg, await_drain, ended},
        session::Session,
        table::{Facts, Table},
        warning::{warn_unconfirmed, warn_uncounted},
    },
};

/// The verbs of `weft service`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) enum ServiceCommand {
    /// Make a service on a network and print its id
    Create(CreateArgs),
    /// List the services
    Ls(LsArgs),
    /// Show a service and its backends
    Inspect(InspectArgs),
    /// Change a service while it is in use
    Update(UpdateArgs),
    /// Give a backend no new connections, and the open ones time to end
    Drain(DrainArgs),
    /// Give a drained backend new connections again
    Activate(ActivateArgs),
    /// Remove services; their endpoints stay on the network
    Rm(RemoveArgs),
}

const EXAMPLES: &str = "\
Examples:
  weft service create --network app --port http=80:8080 web
  weft service create --network app --lb lc --port 80 --port 53/udp api
  weft network connect app blue --service web         (makes it a backend)
  weft service create --network app --port 80:8080 --publish 8080:80 shop     (http://ANY-HOST:8080/)
  weft service create --network app --port 80 --health http=/ready --interval 2s shop
  weft service update --lb lc --slow-start 30s web    (a new backend is not flooded)
  weft service update --eject 5 web                   (a backend that nobody reaches gets a rest)
  weft service update --publish 53:53/udp --publish 53:53,mode=host dns
  weft service update --idle-timeout 1h web           (a silent connection is reset after an hour)
  weft service update --health tcp web                (--health none: no check any more)
  weft service inspect web
  weft service drain web-1 --grace 1m                 (then stop it: no request is lost)
  weft service rm web

Health checks: tcp connects, http wants a status from 200 to 399, cmd wants exit code 0 of a command that runs
on the backend's host in its network namespace; agents run commands if started with --health-commands.

Schedulers: rr one after the other, wrr each as often as its weight says, lc fewest open connections.";

/// What `weft service create` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// Its name: one label of a DNS name
    name: String,
    /// The network: name, id or beginning of the id
    #[arg(long)]
    network: String,
    /// How the backend of a new connection is chosen
    #[arg(long = "lb", value_name = "SCHEDULER", value_enum, default_value_t)]
    scheduler: Scheduler,
    /// What its name resolves to
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    endpoint_mode: EndpointMode,
    /// A port of the service, or a range such as 5000-5010, and the port its backends listen on [default: every port]
    #[arg(long = "port", value_name = "[NAME=]PORT[:TARGET][/PROTO]")]
    ports: Vec<ServicePort>,
    #[command(flatten)]
    health: HealthArgs,
    /// A port that is open on every host of the cluster, and the port of the service it leads to
    #[arg(long, value_name = "[IP:]HOSTPORT:PORT[/PROTO][,mode=host]", value_parser = published)]
    publish: Vec<PublishedRange>,
    #[command(flatten)]
    tuning: TuningArgs,
}

/// What `weft service ls` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct LsArgs {
    #[command(flatten)]
    which: NetworkArg,
    #[command(flatten)]
    list: ListArgs,
}

/// What `weft service inspect` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// Its name, id or the beginning of its id
    service: String,
    #[command(flatten)]
    which: NetworkArg,
    #[command(flatten)]
    format: FormatArgs,
}

/// What `weft service update` takes.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").args(["scheduler", "endpoint_mode", "ports", "publish", "unpublish", "health", "interval", "timeout", "retries", "start_period", "idle_timeout", "slow_start", "eject"]).required(true).multiple(true)))]
pub(in crate::cli) struct UpdateArgs {
    /// Its name, id or the beginning of its id
    service: String,
    #[command(flatten)]
    which: NetworkArg,
    /// How the backend of a new connection is chosen from now on
    #[arg(long = "lb", value_name = "SCHEDULER", value_enum)]
    scheduler: Option<Scheduler>,
    /// What its name resolves to from now on
    #[arg(long, value_name = "MODE", value_enum)]
    endpoint_mode: Option<EndpointMode>,
    /// Its ports from now on: give all of them
    #[arg(long = "port", value_name = "[NAME=]PORT[:TARGET][/PROTO]")]
    ports: Vec<ServicePort>,
    #[command(flatten)]
    health: HealthUpdateArgs,
    /// Ports of the hosts that lead to it from now on: give all of them
    #[arg(
        long,
        value_name = "[IP:]HOSTPORT:PORT[/PROTO][,mode=host]",
        conflicts_with = "unpublish",
        value_parser = published
    )]
    publish: Vec<PublishedRange>,
    /// Close all ports of the hosts that lead to it
    #[arg(long)]
    unpublish: bool,
    #[command(flatten)]
    tuning: TuningArgs,
}

/// What `weft service rm` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    which: NetworkArg,
}

/// What `weft service drain` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct DrainArgs {
    /// The endpoint: its name, id or the beginning of its id
    backend: String,
    #[command(flatten)]
    grace: GraceArg,
    /// The network; needed where two networks have a backend of the same name
    #[arg(long)]
    network: Option<String>,
}

/// What `weft service activate` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct ActivateArgs {
    /// The endpoint: its name, id or the beginning of its id
    backend: String,
    /// The network; needed where two networks have a backend of the same name
    #[arg(long)]
    network: Option<String>,
}

/// What one `--publish` stands for.
#[derive(Debug, Clone)]
struct PublishedRange(Vec<PublishedPort>);

fn published(text: &str) -> Result<PublishedRange, ParsePublishError> {
    PublishedPort::read_range(text).map(PublishedRange)
}

/// Which network's services are meant.
#[derive(Debug, Args)]
struct NetworkArg {
    /// Only services of this network; needed where two networks have a service of the same name
    #[arg(long)]
    network: Option<String>,
}

pub(in crate::cli) fn run(session: &Session, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Create(args) => {
            check_name("a service", &args.name)?;
            let request = ServiceCreateRequest {
                network: args.network,
                health: args.health.check(&args.name)?,
                name: args.name,
                scheduler: args.scheduler,
                endpoint_mode: args.endpoint_mode,
                ports: args.ports,
                publish: args.publish.into_iter().flat_map(|range| range.0).collect(),
                tuning: args.tuning.change(),
            };
            let doing = format!("making service {}", request.name);
            let answer = session.ask(&doing, async |client| client.service_create(&request).await)?;
            warn_unconfirmed(&answer.unconfirmed);
            print(&format!("{}\n", answer.summary.id))
        }
        ServiceCommand::Ls(args) => {
            let network = args.which.network.as_deref();
            let services = session.ask("listing the services", async |client| {
                client.services(network).await
            })?;
            if let Some(counts) = services.first().and_then(|service| service.counts.as_ref()) {
                warn_uncounted(&counts.uncounted);
            }
            args.list.print(
                &services,
                |service| service.id.to_string(),
                |list| counted_table(list).render(""),
            )
        }
        ServiceCommand::Inspect(args) => {
            let doing = format!("looking at service {}", args.service);
            let network = args.which.network.as_deref();
            let service = session.ask(&doing, async |client| {
                client.service(&args.service, network).await
            })?;
            args.format.print(&service, show)
        }
        ServiceCommand::Update(args) => {
            let request = ServiceUpdateRequest {
                scheduler: args.scheduler,
                endpoint_mode: args.endpoint_mode,
                ports: Some(args.ports).filter(|ports| !ports.is_empty()),
                health: args.health.update(),
                publish: Some(args.publish.into_iter().flat_map(|range| range.0).collect())
                    .filter(|publish: &Vec<_>| args.unpublish || !publish.is_empty()),
                tuning: args.tuning.change(),
            };
            let doing = format!("changing service {}", args.service);
            let network = args.which.network.as_deref();
            let answer = session.ask(&doing, async |client| {
                client.service_update(&args.service, network, &request).await
            })?;
            warn_unconfirmed(&answer.unconfirmed);
            let answer = answer.summary;
            print(&format!(
                "changed service {} on {}: {}, {}, ports {}, health {}{}\n",
                answer.name,
                answer.network_name,
                answer.scheduler,
                answer.endpoint_mode,
                ports(&answer.ports),
                health(answer.health.as_ref()),
                match answer.published.as_slice() {
                    [] => String::new(),
                    published => format!(", published {}", join(published)),
                },
            ))
        }
        ServiceCommand::Drain(args) => drain(session, args),
        ServiceCommand::Activate(args) => activate(session, args),
        ServiceCommand::Rm(args) => session.each(&args.services, |service| {
            let doing = format!("removing service {service}");
            let network = args.which.network.as_deref();
            let answer = session.ask(&doing, async |client| {
                client.service_remove(service, network).await
            })?;
            warn_unconfirmed(&answer.unconfirmed);
            let vips = if answer.vips.is_empty() {
                String::new()
            } else {
                format!(": {} free again", join(&answer.vips))
            };
            print(&format!(
                "removed service {} ({}) from {}{vips}\n",
                answer.name,
                answer.id.short(),
                answer.network_name,
            ))
        }),
    }
}

fn drain(session: &Session, args: DrainArgs) -> Result<(), Failure> {
    let request = EndpointDrainRequest {
        network: args.network,
        grace_ms: args.grace.millis(),
        reset: true,
    };
    let on = request
        .network
        .iter()
        .map(|network| format!(" --network {network}"));
    let undo = format!("weft service activate {}{}", args.backend, on.collect::<String>());
    let answer = await_drain(session, &args.backend, &undo, async |client| {
        client.endpoint_drain(&args.backend, &request).await
    })?;
    warn_unconfirmed(&answer.unconfirmed);
    print(&format!(
        "drained {} on {}, node {}: {}\n",
        answer.backend.endpoint_name,
        answer.backend.network_name,
        answer.backend.node_name,
        ended(answer.left, &answer.uncounted)
    ))
}

fn activate(session: &Session, args: ActivateArgs) -> Result<(), Failure> {
    let request = EndpointActivateRequest {
        network: args.network,
    };
    let doing = format!("activating {}", args.backend);
    let answer = session.ask(&doing, async |client| {
        client.endpoint_activate(&args.backend, &request).await
    })?;
    warn_unconfirmed(&answer.unconfirmed);
    print(&format!(
        "activated {} on {}, node {}\n",
        answer.backend.endpoint_name, answer.backend.network_name, answer.backend.node_name
    ))
}

/// The columns of every list of services.
const COLUMNS: [&str; 9] = [
    "ID",
    "NAME",
    "NETWORK",
    "MODE",
    "SCHEDULER",
    "VIPS",
    "PORTS",
    "PUBLISHED",
    "BACKENDS",
];

pub(in crate::cli) fn service_table(services: &[ServiceSummary]) -> Table<9> {
    let mut table = Table::new(COLUMNS);
    services.iter().for_each(|service| table.row(cells(service)));
    table
}

/// The same with connections.
fn counted_table(services: &[ServiceSummary]) -> Table<12> {
    let mut table = Table::new(with_counts(COLUMNS, ["OPEN", "TOTAL", "FAILED"]));
    for service in services {
        let count = |which: fn(&ServiceCounts) -> u64| {
            let counts = service.counts.as_ref();
            counts.map_or_else(|| "-".to_owned(), |counts| which(counts).to_string())
        };
        let counts = [
            count(|counts| counts.open),
            count(|counts| counts.total),
            count(|counts| counts.failed),
        ];
        table.row(with_counts(cells(service), counts));
    }
    table
}

fn with_counts<T>(of_service: [T; 9], counts: [T; 3]) -> [T; 12] {
    let mut all = of_service.into_iter().chain(counts);
    std::array::from_fn(|_| all.next().expect("nine and three"))
}

fn cells(service: &ServiceSummary) -> [String; 9] {
    [
        service.id.short(),
        service.name.clone(),
        service.network_name.clone(),
        service.endpoint_mode.to_string(),
        service.scheduler.to_string(),
        join(&service.vips),
        ports(&service.ports),
        join(&service.published),
        states(service.backend_count, &service.backend_states),
    ]
}

fn ports(ports: &[ServicePort]) -> String {
    if ports.is_empty() {
        "all".to_owned()
    } else {
        join(ports)
    }
}

fn health(check: Option<&HealthCheck>) -> String {
    check.map_or_else(|| "not checked".to_owned(), HealthCheck::to_string)
}

/// Who has connections to which backend.
fn clients(backends: &[Backend]) -> Option<String> {
    let mut table = Table::new(["ENDPOINT", "FROM", "OPEN", "TOTAL", "FAILED", "EJECTED"]);
    for backend in backends {
        for client in &backend.clients {
            table.row([
                backend.endpoint_name.clone(),
                client.node_name.clone(),
                client.open.to_string(),
                client.total.to_string(),
                client.failed.to_string(),
                client
                    .ejected
                    .map(|ejected| format!("until {}", ejected.until))
                    .unwrap_or_default(),
            ]);
        }
    }
    let is_some = backends.iter().any(|backend| !backend.clients.is_empty());
    is_some.then(|| format!("\nconnections by the clients' hosts\n{}", table.render("  ")))
}

fn show(service: &ServiceDetail) -> String {
    let mut facts = Facts::default();
    facts
        .add("id", service.summary.id)
        .add("name", &service.summary.name)
        .add(
            "network",
            format!(
                "{} ({})",
                service.summary.network_name,
                service.summary.network_id.short()
            ),
        )
        .add("endpoint mode", service.summary.endpoint_mode)
        .add("scheduler", service.summary.scheduler)
        .add("vips", join(&service.summary.vips))
        .add("ports", ports(&service.summary.ports))
        .add("published", join(&service.summary.published))
        .add("health", health(service.summary.health.as_ref()))
        .add("idle time-out", idle_timeout(&service.summary.tuning))
        .add("slow start", slow_start(&service.summary.tuning))
        .add("eject", eject(&service.summary.tuning))
        .add("made", format!("on node {}", service.created_by.short()));
    let mut backends = Table::new([
        "ENDPOINT",
        "NODE",
        "ADDRESSES",
        "WEIGHT",
        "STATE",
        "SINCE",
        "OPEN",
        "TOTAL",
        "FAILED",
        "WHY",
    ]);
    for backend in &service.backends {
        backends.row([
            backend.endpoint_name.clone(),
            backend.node_name.clone(),
            join(&backend.addresses),
            backend.weight.to_string(),
            backend.state.to_string(),
            backend.since.map(|since| since.to_string()).unwrap_or_default(),
            backend.open_connections.to_string(),
            backend.total_connections.to_string(),
            backend.failed_connections.to_string(),
            backend.reason.clone().unwrap_or_default(),
        ]);
    }
    let clients = clients(&service.backends).unwrap_or_default();
    format!("{}\nbackends\n{}{clients}", facts.render(), backends.render("  "))
}
