//! Network namespaces, route netlink in batches, nf_tables and conntrack: the kernel's words for Weft's edges
