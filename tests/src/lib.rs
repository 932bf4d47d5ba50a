//! Tests and benchmarks across crates
