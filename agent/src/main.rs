//! The `weft` program.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    weft::cli::main()
}
