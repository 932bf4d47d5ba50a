//! Names as a container's own `dig` sees them, with the settings that `weft docker setup` writes.

use crate::site::{IMAGE, Site, with_dockerds};

#[test]
fn setup_writes_what_dockerd_starts_with_and_dig_finds_every_name() {
    with_dockerds(&[("dig", "bind9-dnsutils")], written_and_asked);
}

/// An image with the machine's own `dig` and all that it loads.
const IMAGE_WITH_DIG: &str = r#"
    root=$dir/dig; mkdir -p $root/usr/bin $root/etc
    cp /usr/bin/dig $root/usr/bin/
    for file in $(ldd /usr/bin/dig | grep -o '/[^ ]*'); do cp --parents -L $file $root; done
    tar -C $root -cf - . | docker import - dig
"#;

fn written_and_asked() {
    let others = r#"{"log-level": "warn", "dns": ["192.0.2.99"], "labels": ["a=b"]}"#;
    let mut site = Site::with("names", 2, others);
    let [one, two] = &mut site.hosts[..] else {
        unreachable!()
    };
    for host in [&mut *one, two] {
        // Without an answer nothing is written.
        let asked = host
            .shell("if $weft docker setup --write --file $dir/daemon.json </dev/null; then echo written; fi");
        assert!(!asked.contains("written"), "{asked}");
        let file = host.dir.join("daemon.json");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), others);
        host.shell("$weft docker setup --write --yes --file $dir/daemon.json");
        let written: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let wanted = serde_json::json!({
            "log-level": "warn", "dns": ["169.254.53.53", "192.0.2.99"], "labels": ["a=b"]
        });
        assert_eq!(written, wanted);
        host.stop_dockerd();
        host.start_dockerd();
        host.wait_for_dockerd();
        assert_eq!(host.docker("info -f {{.Labels}}").trim(), "[a=b]");
    }
    one.weft("network create app");
    one.weft("network create --internal back");
    for network in ["app", "back"] {
        two.eventually_docker(&format!("network inspect {network}"));
    }
    one.docker(&format!(
        "run -d --name web --network app --label weft.service=pages --label weft.port=80 {IMAGE} httpd -f -h /www"
    ));
    one.docker(&format!(
        "run -d --name inner --network back {IMAGE} sleep 100000"
    ));
    let web = one.address("web", "app");
    two.shell(IMAGE_WITH_DIG);
    let dig = |network: &str, words: &str| {
        // Through Docker's own server, as any program of the container asks.
        let line = format!("run --rm --network {network} dig dig {words}");
        two.docker(&line).trim().to_owned()
    };
    two.eventually("a name on the other host", || {
        let answer = two.try_docker("run --rm --network app dig dig +short web")?;
        Ok(if answer.trim() == web {
            String::new()
        } else {
            format!("`{answer}`")
        })
    });
    let vip: serde_json::Value =
        serde_json::from_str(&two.weft("service inspect --format json pages")).unwrap();
    let vip = vip["vips"][0].as_str().unwrap().to_owned();
    for (words, answer) in [
        ("+short web.app", web.as_str()),
        ("+short web.app.weft.internal", &web),
        ("+short +tcp web", &web),
        ("+short @169.254.53.53 web", &web),
        ("+short pages", &vip),
        ("+short tasks.pages", &web),
        ("+short aaaa web", ""),
        (&format!("+short -x {vip}"), "pages.app.weft.internal."),
    ] {
        assert_eq!(dig("app", words), answer, "dig {words}");
    }
    let srv = dig("app", "+short srv _80._tcp.pages.app.weft.internal");
    assert!(srv.is_empty() || srv.contains(" 80 "), "{srv}");
    let negative = dig("app", "nobody.app.weft.internal");
    assert!(negative.contains("status: NXDOMAIN"), "{negative}");
    let empty = dig("app", "aaaa web.app.weft.internal");
    assert!(
        empty.contains("status: NOERROR") && empty.contains("ANSWER: 0"),
        "{empty}"
    );
    // On an internal network too, and only what is on it.
    assert_eq!(dig("back", "+short inner"), one.address("inner", "back"));
    assert_eq!(dig("back", "+short web.app.weft.internal"), "");
    one.docker("rm -f web inner");
    one.weft("service rm pages");
    one.weft("network rm app back");
    site.close();
}
