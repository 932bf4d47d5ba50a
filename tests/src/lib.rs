//! What tests across crates share.

pub mod flow;
pub mod keys;
pub mod queues;
pub mod speaker;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use cargo_metadata::Message;

/// The program `weft`, built from this workspace in the profile of the running test.
///
/// Cargo tells only the tests of the package `weft` where its program is; the others ask for it here. `WEFT_BINARY`
/// names another one to test instead: an installed one, say.
///
/// # Panics
///
/// If it cannot be built; the compiler has said why on standard error.
pub fn weft_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| env::var_os("WEFT_BINARY").map_or_else(build, PathBuf::from))
}

/// A number that the environment may give.
///
/// # Panics
///
/// If what it gives is no number.
pub fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = env::var(name) else {
        return default;
    };
    text.parse()
        .unwrap_or_else(|error| panic!("{name}={text} is not a number: {error}"))
}

/// How many times as long as elsewhere anything may take here: `WEFT_SLOWER`, which `.ci/guest` sets in its machine.
///
/// # Panics
///
/// If that is no number of at least 1.
pub fn slowness() -> u32 {
    let slowness = u32::try_from(setting("WEFT_SLOWER", 1)).unwrap_or(0);
    assert!(slowness > 0, "WEFT_SLOWER is a factor of at least 1");
    slowness
}

/// A deadline of this machine's: the time itself, but on one that is slow.
pub fn slower(time: Duration) -> Duration {
    time * slowness()
}

fn build() -> PathBuf {
    // TARGET/PROFILE/deps/TEST
    let test = env::current_exe().expect("a test knows its own path");
    let profile_dir = test
        .ancestors()
        .nth(2)
        .expect("a test lies in its profile's directory");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With a test of the whole workspace beside it, cargo resolves the same features as for `cargo test
    // --workspace`, and finds the program there already.
    command
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bin",
            "weft",
            "--test",
            "layering",
        ])
        .args(["--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        // The test may run with another one than the configured.
        .arg("--target-dir")
        .arg(
            profile_dir
                .parent()
                .expect("a profile's directory lies in a target directory"),
        )
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", output.status);
    Message::parse_stream(output.stdout.as_slice())
        .filter_map(|message| match message.expect("cargo writes JSON") {
            Message::CompilerArtifact(artifact) if artifact.target.name == "weft" => artifact.executable,
            _ => None,
        })
        .last()
        .expect("cargo says where it put the program")
        .into_std_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_there_and_says_its_name() {
        let output = Command::new(weft_binary())
            .arg("version")
            .output()
            .expect("the program runs");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("weft"),
            "{output:?}"
        );
    }
}
