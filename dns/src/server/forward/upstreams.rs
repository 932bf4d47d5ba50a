//! The host's resolvers, and what happened to them lately.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use nix::net::if_::if_nametoindex;

/// How long a resolver that did not answer is asked last.
const PENALTY: Duration = Duration::from_secs(10);
/// How often the file with the resolvers is looked at.
const RELOAD: Duration = Duration::from_secs(2);

/// Where the resolvers are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These, the preferred one first.
    List(Vec<SocketAddr>),
    /// The `nameserver` lines of a file, which is read again when it changes.
    ResolvConf(PathBuf),
}

/// The resolvers as they are known now.
#[derive(Debug)]
pub(crate) struct Resolvers {
    source: Upstreams,
    exclude: Vec<IpAddr>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    list: Vec<(SocketAddr, Option<Instant>)>,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
}

impl Resolvers {
    /// Nothing is read before the first question.
    pub(crate) fn new(source: Upstreams, exclude: Vec<IpAddr>) -> Self {
        Self {
            source,
            exclude,
            known: Mutex::default(),
        }
    }

    /// The resolvers as listed, but those that failed lately last.
    pub(crate) fn in_order(&self, now: Instant) -> Vec<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known
            .looked
            .is_none_or(|looked| now.duration_since(looked) >= RELOAD)
        {
            known.looked = Some(now);
            self.reload(&mut known);
        }
        let is_bad = |until: &Option<Instant>| until.is_some_and(|until| now < until);
        let (bad, good): (Vec<_>, Vec<_>) = known.list.iter().partition(|(_, until)| is_bad(until));
        good.into_iter()
            .chain(bad)
            .map(|(upstream, _)| upstream)
            .collect()
    }

    fn reload(&self, known: &mut Known) {
        let list = match &self.source {
            Upstreams::List(list) => list.clone(),
            Upstreams::ResolvConf(path) => {
                let modified = std::fs::metadata(path)
                    .and_then(|metadata| metadata.modified())
                    .ok();
                if modified.is_some() && modified == known.modified {
                    return;
                }
                match std::fs::read_to_string(path) {
                    Ok(text) => {
                        known.modified = modified;
                        nameservers(&text)
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "the host's resolvers cannot be read");
                        return;
                    }
                }
            }
        };
        let is_ours = |upstream: &SocketAddr| self.exclude.contains(&upstream.ip().to_canonical());
        let old = std::mem::take(&mut known.list);
        let until = |upstream| {
            old.iter()
                .find(|(known, _)| *known == upstream)
                .and_then(|(_, until)| *until)
        };
        known.list = list
            .into_iter()
            .filter(|upstream| !is_ours(upstream))
            .map(|upstream| (upstream, until(upstream)))
            .collect();
    }

    /// Notes how a resolver did.
    pub(crate) fn note(&self, upstream: SocketAddr, answered: bool, now: Instant) {
        let bad_until = (!answered).then_some(now + PENALTY);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, until)) = known.list.iter_mut().find(|(known, _)| *known == upstream) {
            *until = bad_until;
        }
    }
}

/// The servers that resolv.conf(5) lists.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|keyword| *keyword == "nameserver")?;
            server(words.next()?)
        })
        .collect()
}

/// An address, which is on one link alone when it ends in an interface (`fe80::1%eth0`).
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, 53));
    };
    let index = interface
        .parse()
        .ok()
        .or_else(|| if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_like_the_c_library_does() {
        let text = "# comment\nsearch example.com\nnameserver 127.0.0.53\n  nameserver\t::1 # trailing\n\
                    nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%nosuch0\nnameserver\nnameservers 1.1.1.1\noptions edns0\n;nameserver 9.9.9.9\n";
        assert_eq!(
            nameservers(text),
            ["127.0.0.53:53", "[::1]:53", "[fe80::1%1]:53", "[fe80::2%7]:53"]
                .map(|address| address.parse().unwrap())
        );
    }

    #[test]
    fn our_own_addresses_are_never_asked_and_failed_resolvers_last() {
        let list: Vec<SocketAddr> = ["169.254.53.53:53", "10.0.0.1:53", "10.0.0.2:53"]
            .map(|a| a.parse().unwrap())
            .into();
        let resolvers = Resolvers::new(Upstreams::List(list.clone()), vec![[169, 254, 53, 53].into()]);
        let now = Instant::now();
        assert_eq!(resolvers.in_order(now), [list[1], list[2]]);
        resolvers.note(list[1], false, now);
        assert_eq!(resolvers.in_order(now), [list[2], list[1]]);
        assert_eq!(resolvers.in_order(now + PENALTY), [list[1], list[2]]);
    }

    #[test]
    fn the_list_follows_its_file() {
        let path = std::env::temp_dir().join(format!("weft-dns-resolv-{}.conf", std::process::id()));
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let resolvers = Resolvers::new(Upstreams::ResolvConf(path.clone()), Vec::new());
        let now = Instant::now();
        assert_eq!(resolvers.in_order(now), ["10.0.0.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 10.0.0.2\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(resolvers.in_order(now + RELOAD), ["10.0.0.2:53".parse().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            resolvers.in_order(now + 2 * RELOAD),
            ["10.0.0.2:53".parse().unwrap()]
        );
    }
}
