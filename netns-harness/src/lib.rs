//! Labs of network namespaces: hosts, links, switches, processes, captures, and an audit that nothing is left
