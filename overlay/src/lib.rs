//! What the kernel should hold for the overlay networks of a host, and the difference from what it holds
