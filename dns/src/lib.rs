//! Names on overlay networks: a pure answer over a snapshot, and the server that gives it
