use super::*;
use crate::api::ErrorKind;

#[test]
fn a_name_is_one_label_of_a_dns_name() {
    for name in ["a", "web", "shop_web-1", "1", "A9", &"x".repeat(63)] {
        assert_eq!(check_name("a network", name), Ok(()), "{name}");
    }
    for name in [
        "",
        "-a",
        "a-",
        "_a",
        "a.b",
        "a b",
        "a/b",
        "ä",
        "a~1",
        &"x".repeat(64),
    ] {
        let error = check_name("a network", name).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(error.message, format!("`{name}` cannot be the name of a network"));
    }
}

fn with_option(key: &str, value: &str) -> Result<NetworkOptions, ApiError> {
    let mut request = NetworkCreateRequest::new("app");
    request.options.insert(key.to_owned(), value.to_owned());
    request.check()
}

#[test]
fn options_that_there_are_not_are_refused() {
    assert_eq!(
        NetworkCreateRequest::new("app").check(),
        Ok(NetworkOptions::default())
    );
    let options = NetworkOptions {
        mtu: Some(1400),
        encrypted: None,
    };
    assert_eq!(with_option("mtu", "1400"), Ok(options));
    for bad in ["", "1279", "65536", "big"] {
        let error = with_option("mtu", bad).unwrap_err();
        assert_eq!(
            error.message,
            format!("network `app` cannot have an MTU of `{bad}` bytes")
        );
    }
    assert_eq!(
        with_option("color", "red").unwrap_err().help.as_deref(),
        Some("the options there are: `encrypted` and `mtu=BYTES`")
    );
}

#[test]
fn a_network_that_asks_unclearly_to_be_encrypted_is_refused_not_made_in_clear() {
    for (value, encrypted) in [
        ("", true),
        ("true", true),
        ("1", true),
        ("false", false),
        ("0", false),
    ] {
        let options = with_option("encrypted", value).unwrap();
        assert_eq!(options.encrypted, Some(encrypted), "{value}");
    }
    for unclear in ["yes", "no", "False ", "aes"] {
        let error = with_option("encrypted", unclear).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("was not created"), "{error}");
    }
}

#[test]
fn another_driver_is_refused_by_name() {
    let request = NetworkCreateRequest {
        driver: "bridge".to_owned(),
        ..NetworkCreateRequest::new("app")
    };
    assert_eq!(
        request.check().unwrap_err().message,
        "network `app` asks for driver `bridge`, which Weft does not have"
    );
}

#[test]
fn what_is_left_out_of_a_request_has_its_default() {
    let network: NetworkCreateRequest = serde_json::from_str(r#"{"name":"app"}"#).unwrap();
    assert_eq!(network, NetworkCreateRequest::new("app"));
    let connect: ConnectRequest = serde_json::from_str(r#"{"target":"blue"}"#).unwrap();
    assert_eq!(connect, ConnectRequest::new("blue"));
    assert_eq!(
        serde_json::from_str::<TokenCreateRequest>("{}").unwrap(),
        TokenCreateRequest::default()
    );
    let service: ServiceCreateRequest = serde_json::from_str(r#"{"network":"app","name":"web"}"#).unwrap();
    assert_eq!(
        (service.scheduler, service.endpoint_mode),
        (Scheduler::Rr, EndpointMode::Vip)
    );
}
