//! Two hosts, an authority and the wire between them.
//!
//! ```text
//!    host a                     router                     host b
//!  eth0 10.77.1.2 ───── to-a 10.77.1.1   10.77.2.1 to-b ───── 10.77.2.2 eth0
//!       fd77:1::2            fd77:1::1     fd77:2::1            fd77:2::2
//!                         10.77.9.1 to-authority fd77:9::1
//!                                      │
//!                         10.77.9.2 eth0 fd77:9::2
//!                                 authority
//! ```
//! The router forwards, may translate addresses, and is where the wire is watched. Nothing of
//! Bonafide runs on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netns::Netns;

/// IPv4 or IPv6: every scenario runs on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The loopback address.
    #[must_use]
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// The prefixes inside which everything is mesh, as a policy writes them.
pub const MESH: &str = r#"["10.77.0.0/16", "fd77::/16"]"#;

/// A place in the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The host on which clients run.
    A,
    /// The host on which servers run.
    B,
    /// The host of the trust domain's authority.
    Authority,
}

impl Site {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::Authority];

    /// Its name, in file names and as a node.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Authority => "authority",
        }
    }

    fn subnet(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::Authority => 9,
        }
    }

    /// Its address.
    #[must_use]
    pub fn ip(self, family: Family) -> IpAddr {
        self.nth_ip(family, 2)
    }

    /// The address that the router has on its wire.
    #[must_use]
    pub fn gateway(self, family: Family) -> IpAddr {
        self.nth_ip(family, 1)
    }

    /// Some address on its wire.
    #[must_use]
    pub fn nth_ip(self, family: Family, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 77, self.subnet(), n).into(),
            Family::V6 => {
                let subnet = u16::from(self.subnet());
                Ipv6Addr::new(0xfd77, subnet, 0, 0, 0, 0, 0, u16::from(n)).into()
            }
        }
    }

    /// Its address with a port.
    #[must_use]
    pub fn at(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// The router's device on its wire.
    #[must_use]
    pub fn wire(self) -> String {
        format!("to-{}", self.label())
    }
}

/// The namespaces, joined.
#[derive(Debug)]
pub struct Topology {
    /// Host a.
    pub a: Netns,
    /// Host b.
    pub b: Netns,
    /// The authority's host.
    pub authority: Netns,
    /// The router.
    pub router: Netns,
}

impl Topology {
    /// Creates and joins the namespaces; their names begin with `instance`.
    #[must_use]
    pub fn create(instance: &str) -> Self {
        let netns = |label: &str| Netns::create(&format!("{instance}-{label}"));
        let topology = Self { a: netns("a"), b: netns("b"), authority: netns("authority"), router: netns("router") };
        topology.router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        for netns in [&topology.a, &topology.b, &topology.authority, &topology.router] {
            // Addresses are there at once and stay: nothing changes while a scenario looks.
            netns.run(&["sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]);
        }
        for site in Site::ALL {
            topology.join(topology.netns(site), &site.wire(), |family, n| site.nth_ip(family, n));
        }
        topology
    }

    /// The namespace of a site.
    #[must_use]
    pub fn netns(&self, site: Site) -> &Netns {
        match site {
            Site::A => &self.a,
            Site::B => &self.b,
            Site::Authority => &self.authority,
        }
    }

    /// One more host behind the router, with addresses outside the mesh and nothing of Bonafide on it.
    #[must_use]
    pub fn join_outside(&self) -> Netns {
        let host = Netns::create(&self.router.name().replace("-router", "-outside"));
        host.run(&["sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]);
        self.join(&host, "to-outside", outside_ip);
        host
    }

    /// Joins a host by this device of the router's; `nth_ip` gives the addresses, 1 the router's and 2 its own.
    fn join(&self, host: &Netns, wire: &str, nth_ip: impl Fn(Family, u8) -> IpAddr) {
        let router = &self.router;
        host.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", wire, "netns", router.name()]);
        for family in Family::BOTH {
            let length = if family == Family::V4 { 24 } else { 64 };
            let (own, gateway) = (nth_ip(family, 2), nth_ip(family, 1));
            router.run(&["ip", "addr", "add", &format!("{gateway}/{length}"), "dev", wire, "nodad"]);
            host.run(&["ip", "addr", "add", &format!("{own}/{length}"), "dev", "eth0", "nodad"]);
        }
        router.run(&["ip", "link", "set", wire, "up"]);
        host.run(&["ip", "link", "set", "eth0", "up"]);
        for family in Family::BOTH {
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let gateway = nth_ip(family, 1).to_string();
            host.run(&["ip", flag, "route", "add", "default", "via", &gateway, "dev", "eth0"]);
        }
    }
}

/// An address outside the mesh: 2 is the host's that [`Topology::join_outside`] adds.
#[must_use]
pub fn outside_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)).into(),
    }
}

/// An address that no host has and every host takes to the router: the public one of a moved service.
#[must_use]
pub fn virtual_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 77, 100, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, 100, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Lets the router forward a port: what goes `from` there goes `to` there. Replaces the one before of its family.
pub fn forward(router: &Netns, from: SocketAddr, to: SocketAddr) {
    let ip = if from.is_ipv4() { "ip" } else { "ip6" };
    let (address, port, table) = (from.ip(), from.port(), format!("table {ip} forward"));
    let chain = "type nat hook prerouting priority -100;";
    let rule = format!("{ip} daddr {address} tcp dport {port} dnat to {to};");
    router.run(&["nft", &format!("{table}; delete {table}; {table} {{ chain pre {{ {chain} {rule} }}; }}")]);
}
