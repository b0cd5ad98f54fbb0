//! A flow that is over, and how it ended: pure.

use std::net::SocketAddr;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::observed::{Ending, Protocol};

use super::layout::{Half, StepEvent, Tally};
use super::talks::Ends;

/// States of TCP (`include/net/tcp_states.h`).
const SYN_SENT: u8 = 2;
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// Errors as errno(3) has them.
mod errno {
    use rustix::io::Errno;

    pub(super) const ABORTED: i32 = Errno::CONNABORTED.raw_os_error();
    pub(super) const NOBODY_THERE: [i32; 7] = [
        Errno::CONNREFUSED.raw_os_error(),
        Errno::HOSTUNREACH.raw_os_error(),
        Errno::NETUNREACH.raw_os_error(),
        Errno::NOPROTOOPT.raw_os_error(),
        Errno::ACCESS.raw_os_error(),
        Errno::HOSTDOWN.raw_os_error(),
        Errno::NONET.raw_os_error(),
    ];
}

/// Whether a flow is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It is not: only the other end's node shall hear of it.
    Lives,
    /// By itself: so is the other end's half.
    Over,
    /// Because the other end's half is: nothing follows from it. Otherwise one flow's end could end any number of others,
    /// one after the other.
    Followed,
}

/// A flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    pub(super) cookie: u64,
    pub(super) source: bool,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Nanoseconds since boot.
    pub(super) began_ns: u64,
    pub(super) ended_ns: u64,
    /// By the program here.
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) who: Option<Execution>,
    pub(super) ending: Ending,
    pub(super) life: Life,
}

impl Flow {
    /// Of a connection's last event.
    pub(super) fn closed(event: &StepEvent) -> Self {
        Self {
            protocol: Protocol::Tcp,
            cookie: event.cookie,
            source: event.source,
            local: event.local,
            remote: event.remote,
            began_ns: event.began_ns,
            ended_ns: event.at_ns,
            sent: if event.established { event.sent } else { 0 },
            received: if event.established { event.received } else { 0 },
            who: event.who,
            ending: ending(event),
            life: Life::Over,
        }
    }

    /// Of a connection that is established, or used for the first time.
    pub(super) fn established(event: &StepEvent) -> Self {
        Self { ending: Ending::Closed, life: Life::Lives, ..Self::closed(event) }
    }

    /// Of a connection that was asked for at this end, long enough ago to have been answered.
    pub(super) fn unanswered(event: &StepEvent) -> Self {
        Self { ending: Ending::Unanswered, ..Self::established(event) }
    }

    /// Of an attempt that came to this end, where nobody listens.
    pub(super) fn knocked(event: &StepEvent) -> Self {
        Self { ending: Ending::Refused, ..Self::closed(event) }
    }

    /// Of an attempt that came to this end, and whose handshake is not done.
    pub(super) fn unfinished(event: &StepEvent) -> Self {
        Self { ending: Ending::Unanswered, life: Life::Lives, ..Self::closed(event) }
    }

    /// Of one whose handshake was never done.
    pub(super) fn half_open(half: &Half) -> Self {
        Self {
            protocol: Protocol::Tcp,
            cookie: half.cookie,
            source: false,
            local: half.local,
            remote: half.remote,
            began_ns: half.began_ns,
            ended_ns: half.last_ns,
            sent: 0,
            received: 0,
            who: half.who,
            ending: Ending::Unanswered,
            life: Life::Over,
        }
    }

    /// Whether there is no program at this end, as nobody listens.
    pub(super) fn is_to_nobody(&self) -> bool {
        self.protocol == Protocol::Tcp && !self.source && self.ending == Ending::Refused
    }

    /// Of what was counted of datagrams.
    pub(super) fn silent(cookie: u64, tally: &Tally, ends: Ends, life: Life) -> Self {
        Self {
            protocol: Protocol::Udp,
            cookie,
            source: tally.source,
            local: ends.local,
            remote: ends.remote,
            began_ns: tally.began_ns,
            ended_ns: tally.last_ns,
            sent: tally.sent,
            received: tally.received,
            who: tally.who,
            ending: if tally.refused { Ending::Refused } else { Ending::Closed },
            life,
        }
    }

    /// Of the first datagram.
    pub(super) fn begun(event: &StepEvent, ends: Ends) -> Self {
        let tally = Tally {
            began_ns: event.began_ns,
            last_ns: event.at_ns,
            sent: 0,
            received: 0,
            who: event.who,
            local: event.local,
            source: event.source,
            refused: false,
        };
        Self::silent(event.cookie, &tally, ends, Life::Lives)
    }
}

fn ending(event: &StepEvent) -> Ending {
    let error = i32::try_from(event.error).unwrap_or_default();
    if !event.established || event.state == SYN_SENT {
        return if errno::NOBODY_THERE.contains(&error) { Ending::Refused } else { Ending::Unanswered };
    }
    match (error, event.state) {
        (errno::ABORTED, _) => Ending::ResetHere,
        // Closed with data unread, or told not to linger: nobody said goodbye.
        (0, ESTABLISHED | CLOSE_WAIT) => Ending::ResetHere,
        (0, _) => Ending::Closed,
        // By the other end, or it has fallen silent.
        _ => Ending::ResetThere,
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Step;
    use super::*;

    fn closed(established: bool, state: u8, error: u32) -> Ending {
        let addr = "10.0.0.1:1".parse().unwrap();
        let flow = Flow::closed(&StepEvent {
            at_ns: 2,
            began_ns: 1,
            cookie: 3,
            sent: 4,
            received: 5,
            who: None,
            local: addr,
            remote: addr,
            step: Step::Closed,
            error,
            datagrams: false,
            source: true,
            state,
            established,
            talk: [0; 32],
        });
        assert_eq!((flow.sent, flow.received), if established { (4, 5) } else { (0, 0) });
        flow.ending
    }

    #[test]
    fn the_last_state_and_the_error_say_how_it_ended() {
        assert_eq!(closed(false, SYN_SENT, 111), Ending::Refused);
        assert_eq!(closed(false, SYN_SENT, 113), Ending::Refused);
        assert_eq!(closed(false, SYN_SENT, 110), Ending::Unanswered);
        assert_eq!(closed(false, SYN_SENT, 0), Ending::Unanswered);
        assert_eq!(closed(true, ESTABLISHED, 104), Ending::ResetThere);
        assert_eq!(closed(true, CLOSE_WAIT, 32), Ending::ResetThere);
        assert_eq!(closed(true, ESTABLISHED, 0), Ending::ResetHere);
        assert_eq!(closed(true, ESTABLISHED, 110), Ending::ResetThere);
        // LAST_ACK, FIN_WAIT2, CLOSING.
        for state in [9, 5, 11] {
            assert_eq!(closed(true, state, 0), Ending::Closed);
        }
    }
}
