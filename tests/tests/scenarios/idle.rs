//! A connection over which nothing is said stays as long as its programs want it.

use std::time::Duration;

use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::programs::{echo_server, hold, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

/// The longest timers that a flow meets in the enforcer: 20 s for opening it, and 60 s until the first keepalive
/// probe, which the other end has to answer.
const LONGER_THAN_ANY_TIMER: Duration = Duration::from_secs(75);

#[test]
fn an_idle_connection_outlives_every_timer_on_each_backend() {
    // Side by side: time passes for both at once.
    let mut waiting = [Backend::Nft, Backend::Iptables].map(|backend| {
        let bare = BareWorld::create();
        let policy = Policy::enforce()
            .script("test/client", &script(&bare, "hold.py"))
            .script("test/server", &script(&bare, "echo_server.py"))
            .allow("client to server", "test/client", "test/server");
        let mut world = World::start(bare, &policy, backend);
        let server = echo_server(world.bare(), world.netns(Site::B), 7);
        let holders = Family::BOTH.map(|family| hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7)));
        world.only_waits();
        (world, server, holders)
    });
    // The one wait for time itself: that nothing happens cannot be waited for otherwise.
    std::thread::sleep(LONGER_THAN_ANY_TIMER);
    for (world, _, holders) in &mut waiting {
        for holder in holders {
            assert!(holder.is_running(), "an idle connection was ended: {}", holder.output());
            holder.signal(Signal::USR1);
            holder.wait_for_output("echoed");
            holder.kill();
            let ends = world.next_flow();
            ends.assert_allowed("client to server", "test/client", "test/server").assert_closed();
            assert_eq!((ends.source.bytes_sent, ends.source.bytes_received), (2, 2));
        }
    }
    for (world, ..) in waiting {
        world.finish();
    }
}
