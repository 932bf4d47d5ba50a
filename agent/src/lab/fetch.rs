//! `weft lab fetch`: what `weft lab call` runs inside a sandbox. A small HTTP client, so that a lab needs no
//! other program; names go through the system's resolver and the sandbox's own resolv.conf.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::api::ApiError;

/// Of an answer, this much is read at most.
const MAX_ANSWER: u64 = 64 << 10;

/// What `weft lab fetch` takes.
#[derive(Debug, clap::Args)]
pub struct FetchArgs {
    /// `http://NAME[:PORT][/PATH]`, or a name alone, which is only resolved
    url: String,
    /// How often
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    times: u32,
    /// What one call may take, in milliseconds
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: u64,
    /// Print nothing
    #[arg(long)]
    quiet: bool,
}

/// A URL in parts.
#[derive(Debug, PartialEq, Eq)]
struct Target<'u> {
    /// What the Host header says.
    authority: &'u str,
    host: &'u str,
    port: u16,
    path: &'u str,
}

pub(super) fn run(args: &FetchArgs) -> Result<ExitCode> {
    let say = |line: String| {
        if !args.quiet {
            println!("{line}");
        }
    };
    let timeout = Duration::from_millis(args.timeout_ms);
    let Some(rest) = args.url.strip_prefix("http://") else {
        if args.url.contains("://") {
            return Err(ApiError::invalid(format!("`{}` cannot be called", args.url))
                .with_help("only http:// can; for the rest there is `weft lab exec`")
                .into());
        }
        let addresses = resolve(&args.url, 0)?;
        say(addresses
            .iter()
            .map(|address| address.ip().to_string())
            .collect::<Vec<_>>()
            .join(" "));
        return Ok(ExitCode::SUCCESS);
    };
    let target = parse(rest).ok_or_else(|| {
        ApiError::invalid(format!(
            "`{}` is not a URL such as http://web/ or http://web:8080/path",
            args.url
        ))
    })?;
    let mut answered: BTreeMap<String, u32> = BTreeMap::new();
    let mut failed = 0;
    for number in 1..=args.times {
        let begun = Instant::now();
        match call(&target, timeout) {
            Ok(answer) => {
                let took = begun.elapsed().as_secs_f64() * 1000.0;
                say(format!(
                    "{number:>4}  {:<16} at {:<22} {took:>8.1} ms",
                    answer.who,
                    answer.peer.to_string()
                ));
                *answered.entry(answer.who).or_default() += 1;
            }
            Err(error) => {
                say(format!("{number:>4}  no answer: {error:#}"));
                failed += 1;
            }
        }
    }
    if args.times > 1 {
        let mut tally: Vec<_> = answered
            .iter()
            .map(|(who, count)| format!("{who} {count}"))
            .collect();
        if failed > 0 {
            tally.push(format!("no answer {failed}"));
        }
        say(format!("answered: {}", tally.join(", ")));
    }
    if failed > 0 {
        return Err(ApiError::unavailable(format!(
            "{failed} of {} calls to {} had no answer",
            args.times, args.url
        ))
        .into());
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(rest: &str) -> Option<Target<'_>> {
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
        let (host, after) = inner.split_once(']')?;
        (host, after.strip_prefix(':'))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = port.map_or(Ok(80), str::parse).ok()?;
    // What stands here goes into a request line.
    let clean = !rest.bytes().any(|byte| byte.is_ascii_control() || byte == b' ');
    (clean && !host.is_empty()).then_some(Target {
        authority,
        host,
        port,
        path,
    })
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let unknown = |reason: String| ApiError::not_found(format!("`{host}` does not resolve: {reason}"));
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?;
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        Err(unknown("no address".to_owned()).into())
    } else {
        Ok(found)
    }
}

struct Answer {
    who: String,
    peer: SocketAddr,
}

/// One request on a connection of its own, so that each one is balanced.
fn call(target: &Target<'_>, timeout: Duration) -> Result<Answer> {
    let peer = *resolve(target.host, target.port)?
        .first()
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let stream = TcpStream::connect_timeout(&peer, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        target.path, target.authority
    );
    (&stream).write_all(request.as_bytes())?;

    let mut reader = BufReader::new(stream.take(MAX_ANSWER));
    let mut status = String::new();
    reader.read_line(&mut status)?;
    if !status.starts_with("HTTP/1.") || status.split(' ').nth(1) != Some("200") {
        return Err(ApiError::unavailable(format!("{peer} answered `{}`", status.trim())).into());
    }
    let mut who = None;
    for line in reader.lines() {
        // `weft whoami` names itself in a line of its body; any other server is known by its address.
        if let Some(name) = line?.strip_prefix("name: ") {
            who = Some(name.to_owned());
            break;
        }
    }
    Ok(Answer {
        who: who.unwrap_or_else(|| peer.ip().to_string()),
        peer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_apart() {
        let target = |authority, host, port, path| {
            Some(Target {
                authority,
                host,
                port,
                path,
            })
        };
        assert_eq!(parse("web"), target("web", "web", 80, "/"));
        assert_eq!(parse("web:8080/x?y=1"), target("web:8080", "web", 8080, "/x?y=1"));
        assert_eq!(parse("[fd00::1]:81/"), target("[fd00::1]:81", "fd00::1", 81, "/"));
        for wrong in [
            "",
            ":80",
            "web:http",
            "web:70000",
            "[fd00::1",
            "a b/",
            "web/\r\nX: y",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_call_learns_who_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for body in ["name: web-7\nhostname: x\n", "hello\n"] {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                (&stream).write_all((head + body).as_bytes()).unwrap();
            }
        });
        let text = format!("127.0.0.1:{port}/");
        let target = parse(&text).unwrap();
        let timeout = Duration::from_secs(5);
        assert_eq!(call(&target, timeout).unwrap().who, "web-7");
        assert_eq!(call(&target, timeout).unwrap().who, "127.0.0.1");
        server.join().unwrap();
        assert!(call(&target, timeout).is_err());
    }
}
