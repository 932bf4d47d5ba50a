//! Speaks the API over its Unix socket.
