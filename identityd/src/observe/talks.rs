//! Flows of datagrams that live, found by their socket and by their two ends, each in constant time. Pure; bounded.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::SocketAddr;

use super::layout::Talk;

/// Flows that are remembered: as many as the kernel counts (`TALKS_MAX` in `bpf/observe.bpf.c`).
const TALKS_MAX: usize = 1 << 16;

/// Between which addresses a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    /// Of a socket that is bound to no address, the one that the kernel would send from.
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl Ends {
    /// As the other end has them.
    pub(super) fn reversed(self) -> Self {
        Self { local: self.remote, remote: self.local }
    }

    /// Numbers of interfaces are no part of it: not both ends have one.
    fn plain(self) -> Self {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        Self { local: plain(self.local), remote: plain(self.remote) }
    }
}

/// Flows of datagrams that live.
#[derive(Debug, Default)]
pub(super) struct Talks {
    ends: HashMap<Talk, Ends>,
    by_socket: HashMap<u64, HashSet<Talk>>,
    by_ends: HashMap<Ends, HashSet<Talk>>,
}

impl Talks {
    /// One more. Without room it ends in silence only.
    pub(super) fn begin(&mut self, talk: Talk, ends: Ends) {
        self.end(&talk);
        if self.ends.len() >= TALKS_MAX {
            return;
        }
        self.ends.insert(talk, ends);
        self.by_socket.entry(cookie_of(&talk)).or_default().insert(talk);
        self.by_ends.entry(ends.plain()).or_default().insert(talk);
    }

    /// One less: where it was.
    pub(super) fn end(&mut self, talk: &Talk) -> Option<Ends> {
        let ends = self.ends.remove(talk)?;
        drop_from(&mut self.by_socket, &cookie_of(talk), talk);
        drop_from(&mut self.by_ends, &ends.plain(), talk);
        Some(ends)
    }

    /// Those of one socket.
    pub(super) fn of_socket(&self, cookie: u64) -> Vec<Talk> {
        self.by_socket.get(&cookie).into_iter().flatten().copied().collect()
    }

    /// Those between exactly these addresses: one, unless several sockets share the local one.
    pub(super) fn between(&self, ends: Ends) -> Vec<Talk> {
        self.by_ends.get(&ends.plain()).into_iter().flatten().copied().collect()
    }
}

/// The socket of a flow.
pub(super) fn cookie_of(talk: &Talk) -> u64 {
    talk.first_chunk().map_or(0, |cookie| u64::from_ne_bytes(*cookie))
}

fn drop_from<K: Eq + Hash>(all: &mut HashMap<K, HashSet<Talk>>, key: &K, talk: &Talk) {
    if let Some(some) = all.get_mut(key) {
        some.remove(talk);
        if some.is_empty() {
            all.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(cookie: u64, number: u8) -> Talk {
        let mut talk = [number; 32];
        talk[..8].copy_from_slice(&cookie.to_ne_bytes());
        talk
    }

    fn ends(local: &str, remote: &str) -> Ends {
        Ends { local: local.parse().unwrap(), remote: remote.parse().unwrap() }
    }

    #[test]
    fn a_partner_has_all_four_numbers_the_other_way_round() {
        for [a, b, c] in [["10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7"], ["[fd00::1]:7", "[fd00::2]:7", "[fd00::3]:7"]] {
            let mut talks = Talks::default();
            talks.begin(talk(1, 1), ends(a, b));
            talks.begin(talk(2, 2), ends(b, a));
            // Its port and its remote fit, its address does not.
            talks.begin(talk(3, 3), ends(c, a));
            assert_eq!(talks.between(ends(a, b).reversed()), [talk(2, 2)]);
            assert_eq!(talks.end(&talk(2, 2)), Some(ends(b, a)));
            assert!(talks.between(ends(b, a)).is_empty());
            assert_eq!(talks.end(&talk(2, 2)), None);
        }
    }

    #[test]
    fn interfaces_have_other_numbers_at_the_other_end() {
        let mut talks = Talks::default();
        talks.begin(talk(1, 1), ends("[fe80::1%2]:7", "[fe80::2%2]:9"));
        assert_eq!(talks.between(ends("[fe80::1%5]:7", "[fe80::2]:9")), [talk(1, 1)]);
    }

    #[test]
    fn sockets_have_their_own_and_share_addresses() {
        let mut talks = Talks::default();
        let same = ends("10.0.0.1:7", "10.0.0.2:9");
        talks.begin(talk(1, 1), same);
        talks.begin(talk(2, 2), same);
        talks.begin(talk(1, 3), ends("10.0.0.1:7", "10.0.0.2:8"));
        assert_eq!((talks.of_socket(1).len(), talks.of_socket(2).len(), talks.of_socket(3).len()), (2, 1, 0));
        assert_eq!(talks.between(same).len(), 2);
        for all in [talk(1, 1), talk(2, 2), talk(1, 3)] {
            talks.end(&all);
        }
        assert!(talks.ends.is_empty() && talks.by_socket.is_empty() && talks.by_ends.is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let mut talks = Talks::default();
        for cookie in 0..=u64::try_from(TALKS_MAX).unwrap() {
            talks.begin(talk(cookie, 0), ends("10.0.0.1:7", "10.0.0.2:9"));
        }
        assert_eq!(talks.between(ends("10.0.0.1:7", "10.0.0.2:9")).len(), TALKS_MAX);
    }
}
