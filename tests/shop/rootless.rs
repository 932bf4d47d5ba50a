//! The same without root.

use std::os::unix::fs::MetadataExt as _;

use crate::{
    bed::{User, each, run, url},
    reach::pings,
};

/// Whom root becomes to be an ordinary user. Nobody where the kernel keeps labs from them, or where the tests run as
/// an ordinary user anyway.
pub fn somebody_else() -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        println!("all these tests run as an ordinary user");
        return None;
    }
    let nobody = User::nobody();
    let probe = run(nobody.command("unshare").args(["--user", "--net", "true"]));
    if probe.code != 0 {
        weft_netlink::testing::skip(format_args!(
            "it needs unprivileged user namespaces: {}",
            probe.stderr
        ));
        return None;
    }
    Some(nobody)
}

/// Root becomes somebody else for it; for anybody else, all the tests are this one.
#[test]
fn an_ordinary_user_has_a_lab_with_all_of_it() {
    let Some(nobody) = somebody_else() else { return };
    let shop = nobody.shop();
    let directory = nobody.dir.path().join("run/weft-labs").join(&shop.name);
    assert_eq!(std::fs::metadata(&directory).unwrap().uid(), 65534);

    let live = shop.inspect();
    for address in live.addresses("web-3", "front") {
        pings(&shop, "client-1", address);
    }
    let own = live.addresses("client-1", "front");
    for (vip, own) in live.vips("web", "front").into_iter().zip(own) {
        assert_eq!(
            shop.calls("client-1", &url(vip), 12),
            each(&["web-1", "web-2", "web-3"], 4)
        );
        let client: std::net::SocketAddr = shop.whoami("client-1", &url(vip))["client"].parse().unwrap();
        assert_eq!(client.ip(), own);
    }
    assert_eq!(shop.calls("api-1", "http://db:5432/", 2), each(&["db-1"], 2));
    assert_eq!(shop.exec("client-1", &["getent", "ahosts", "db"]).code, 2);

    // Root has labs of its own and does not see this one.
    assert!(!User::me().run(&["lab", "ls"]).good().contains(&shop.name));
    shop.lab("kill", &["h3"]).good();
    netns_harness::eventually(
        "answers without h3",
        std::time::Duration::from_secs(10),
        crate::bed::LOOK,
        || {
            let fetch = [
                "weft",
                "lab",
                "fetch",
                "--times",
                "12",
                "--timeout-ms",
                "500",
                "http://web/",
            ];
            let called = shop.exec("client-1", &fetch);
            if called.code == 0 {
                Ok(())
            } else {
                Err(called.stdout)
            }
        },
    )
    .unwrap();
    assert_eq!(
        shop.calls("client-1", "http://web/", 12),
        each(&["web-1", "web-2"], 6)
    );
    shop.down();
    assert!(!directory.exists());
}
