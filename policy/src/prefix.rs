//! Address prefixes: parsed strictly, looked up in a time that does not grow with their number.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::fault::{Faults, quoted};
use crate::table::Text;

/// Parses a prefix such as `10.77.0.0/16`.
pub(crate) fn parse(text: Text<'_>, faults: &mut Faults<'_>) -> Option<IpNet> {
    match check(text.value) {
        Ok(net) => Some(net),
        Err(problem) => {
            faults.wrong(text.at, format!("the prefix {} {problem}", quoted(text.value)));
            None
        }
    }
}

fn check(text: &str) -> Result<IpNet, String> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Err(format!("has no length; write \"{}\"", IpNet::from(addr)));
    }
    let Some(net) = text.split_once('/').and_then(|(addr, length)| strict(addr, length)) else {
        return Err("is no address and length; write it like \"10.77.0.0/16\" or \"fd77::/16\"".to_owned());
    };
    if net.trunc() != net {
        return Err(format!("has host bits set; write \"{}\"", net.trunc()));
    }
    match mapped(net) {
        Some(v4) => Err(format!("is an IPv4-mapped one, which is treated as IPv4; write \"{v4}\"")),
        None => Ok(net),
    }
}

/// Not by ipnet's own parser: it takes `010.0.0.0` for `10.0.0.0`, which other programs read as octal.
fn strict(addr: &str, length: &str) -> Option<IpNet> {
    let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    if plain { IpNet::new(addr.parse().ok()?, length.parse().ok()?).ok() } else { None }
}

/// The IPv4 prefix inside an IPv4-mapped IPv6 prefix (RFC 4291 §2.5.5.2).
fn mapped(net: IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = net else { return None };
    let (v4, length) = (v6.addr().to_ipv4_mapped()?, v6.prefix_len().checked_sub(96)?);
    IpNet::new(IpAddr::V4(v4), length).ok()
}

/// True if some address is in both.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// True for prefixes inside `127.0.0.0/8` or `::1/128`.
pub(crate) fn is_loopback(net: &IpNet) -> bool {
    net.prefix_len() >= 8 && net.addr().is_loopback()
}

/// Which of the values an address has, by prefix. One hash look-up for each length in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixMap {
    lengths: BTreeSet<u8>,
    values: HashMap<IpNet, Vec<u32>>,
}

impl PrefixMap {
    pub(crate) fn insert(&mut self, net: IpNet, value: u32) {
        self.lengths.insert(net.prefix_len());
        self.values.entry(net).or_default().push(value);
    }

    /// The values of every prefix that covers the address, in ascending order, each once.
    /// IPv4-mapped IPv6 addresses are IPv4 addresses.
    pub(crate) fn covering(&self, addr: IpAddr) -> Vec<u32> {
        let addr = addr.to_canonical();
        let nets = self.lengths.iter().filter_map(|length| IpNet::new(addr, *length).ok());
        let mut found: Vec<u32> = nets.filter_map(|net| self.values.get(&net.trunc())).flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// True if some prefix covers the address.
    pub(crate) fn covers(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        let mut nets = self.lengths.iter().filter_map(|length| IpNet::new(addr, *length).ok());
        nets.any(|net| self.values.contains_key(&net.trunc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(prefixes: &[&str]) -> PrefixMap {
        let mut map = PrefixMap::default();
        for (value, net) in (0..).zip(prefixes) {
            map.insert(net.parse().unwrap(), value);
        }
        map
    }

    #[test]
    fn every_covering_prefix_is_found_in_order() {
        let map = map(&["10.1.0.0/16", "0.0.0.0/0", "10.0.0.0/8", "::/0", "fd00::/8", "10.1.0.0/16"]);
        assert_eq!(map.covering("10.1.2.3".parse().unwrap()), [0, 1, 2, 5]);
        assert_eq!(map.covering("192.0.2.1".parse().unwrap()), [1]);
        assert_eq!(map.covering("fd00::1".parse().unwrap()), [3, 4]);
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let map = map(&["10.0.0.0/8", "::/0"]);
        assert_eq!(map.covering("::ffff:10.1.2.3".parse().unwrap()), [0]);
        assert!(!map.covers("::ffff:11.1.2.3".parse().unwrap()));
    }

    #[test]
    fn the_right_prefix_is_named() {
        assert_eq!(check("10.77.1.0/16").unwrap_err(), "has host bits set; write \"10.77.0.0/16\"");
        assert_eq!(check("fd77::1/16").unwrap_err(), "has host bits set; write \"fd77::/16\"");
        assert_eq!(check("fd77::1").unwrap_err(), "has no length; write \"fd77::1/128\"");
        assert!(check("::ffff:10.0.0.0/104").unwrap_err().ends_with("write \"10.0.0.0/8\""));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/8 ",
            "010.0.0.0/8",
            "fe80::%eth0/64",
            "/8",
            "10.0.0.0/+8",
            "10.0.0.0/08",
        ] {
            assert!(check(bad).is_err(), "{bad} was accepted");
        }
        for good in ["0.0.0.0/0", "::/0", "192.0.2.1/32", "2001:db8::/32"] {
            assert_eq!(check(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn loopback_prefixes() {
        for (net, is) in [("127.0.0.0/8", true), ("127.0.0.53/32", true), ("::1/128", true), ("0.0.0.0/0", false)] {
            assert_eq!(is_loopback(&net.parse().unwrap()), is, "{net}");
        }
    }
}
