//! Hosts in network namespaces, scenarios with real programs, the demo.
