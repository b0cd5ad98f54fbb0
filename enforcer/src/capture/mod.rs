//! Makes every TCP connection of the network namespace pass through the enforcer, and stops doing so without a trace.
//!
//! | module | |
//! |---|---|
//! | [`exemption`] | whose connections are not captured |
//! | `nft`, `iptables` | the rules, for either engine |
//! | `routes` | where a steered packet goes |
//! | `footprint` | whether somebody else took the rules away |
//! | [`guard`](guard()) | removes them all when an observing enforcer dies |
//!
//! **Enforce** fails closed: rules and routes outlive the enforcer, and a connection is refused until it is back.
//! **Observe** fails open: rules and routes go when the enforcer goes, however it goes.
//!
//! The table, chains, marks, routing table and rule preferences are fixed: one capture per network namespace.

mod error;
pub mod exemption;
mod footprint;
mod guard;
mod iptables;
mod mark;
mod nft;
mod routes;
#[cfg(test)]
mod text;
mod tool;
mod turn;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bonafide_policy::Mode;
use bonafide_proto::flow::canonical;

pub use error::CaptureError;
pub use exemption::Exemption;
pub use guard::guard;

use exemption::{Cgroup, Holder};
use footprint::{Footprint, Ground};
use guard::Guard;
use routes::{Mender, Watch};
use turn::Turn;

/// Which engine holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nftables: the better one where there is a choice.
    Nft,
    /// iptables over nf_tables, where nobody DNATs incoming connections.
    Iptables,
}

impl Backend {
    /// As the configuration spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Nft => Self::Iptables,
            Self::Iptables => Self::Nft,
        }
    }

    async fn load(self, rules: &Rules<'_>) -> Result<(), CaptureError> {
        match self {
            Self::Nft => nft::load(rules).await,
            Self::Iptables => iptables::load(rules).await,
        }
    }

    async fn remove(self) -> Result<(), CaptureError> {
        match self {
            Self::Nft => nft::remove().await,
            Self::Iptables => iptables::remove().await,
        }
    }

    fn grounds(self) -> Vec<Ground> {
        match self {
            Self::Nft => nft::grounds(),
            Self::Iptables => iptables::grounds(),
        }
    }

    async fn is_present(self) -> Result<bool, CaptureError> {
        match self {
            Self::Nft => nft::present().await,
            Self::Iptables => iptables::present().await,
        }
    }

    /// The rules that an enforcer left which ran with this engine. One that is not installed has left none.
    async fn remove_if_present(self) -> Result<(), CaptureError> {
        match self.is_present().await {
            Ok(true) => self.remove().await,
            Ok(false) | Err(CaptureError::ToolMissing { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nft" => Ok(Self::Nft),
            "iptables" => Ok(Self::Iptables),
            _ => Err(format!("unknown capture backend {text:?}: use \"nft\" or \"iptables\"")),
        }
    }
}

/// What somebody other than the enforcer may reach uncaptured: the CA its authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Directory of the cgroup2 cgroup in which the socket was made. While there is none, nothing is exempt.
    pub cgroup: PathBuf,
    /// Whose socket.
    pub uid: u32,
    /// The one destination.
    pub to: SocketAddr,
}

/// What to install.
#[derive(Debug, Clone)]
pub struct Plan {
    /// By which engine.
    pub backend: Backend,
    /// What happens to what cannot be captured, and when the enforcer dies.
    pub mode: Mode,
    /// Port of the listeners on 127.0.0.1 and `::1` for connections of local programs.
    pub outbound_port: u16,
    /// Port of the listeners on 127.0.0.1 and `::1` for connections from elsewhere.
    pub inbound_port: u16,
    /// The enforcer itself.
    pub exempt: Exemption,
    /// Who else.
    pub control: Vec<Control>,
}

/// Rules and routes in force. Dropped without [`Capture::remove`], they stay in enforce mode and go in observe mode.
#[derive(Debug)]
pub struct Capture {
    plan: Plan,
    loaded: Loaded,
    /// Present in observe mode.
    guard: Option<Guard>,
    routes: Mender,
    _watch: Watch,
}

/// What the loaded rules are to the kernel.
#[derive(Debug)]
struct Loaded {
    /// The cgroups they hold, in the order of [`Plan::objects`].
    objects: Vec<Option<u64>>,
    /// `None` where they were gone before they could be looked at.
    footprint: Option<Footprint>,
}

impl Capture {
    /// Installs rules and routes, replacing an earlier instance's without a gap. Listeners should be bound before.
    ///
    /// # Errors
    /// Nothing is left behind then, except the rules of an earlier enforcing instance.
    pub async fn install(plan: Plan) -> Result<Self, CaptureError> {
        plan.check()?;
        drop(Turn::take().await);
        let guard = match plan.mode {
            Mode::Observe => Some(Guard::arm(plan.backend).await?),
            Mode::Enforce => None,
        };
        match Self::install_guarded(&plan).await {
            Ok((loaded, watch)) => Ok(Self { plan, loaded, guard, routes: Mender::default(), _watch: watch }),
            Err(e) => {
                undo(plan.backend, guard).await;
                Err(e)
            }
        }
    }

    /// Routes before rules: a steered packet must find its way. Devices that come meanwhile are in both.
    async fn install_guarded(plan: &Plan) -> Result<(Loaded, Watch), CaptureError> {
        let watch = Watch::start()?;
        routes::install()?;
        let loaded = plan.load().await?;
        plan.backend.other().remove_if_present().await?;
        Ok((loaded, watch))
    }

    /// What is in force.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.plan.mode
    }

    /// Replaces the rules by those of `mode`, without a gap. Until this returns, an enforcer that dies leaves the host
    /// open if either mode is observe.
    ///
    /// # Errors
    /// The mode is unchanged then. Rules and mode can differ only where iptables replaced one family and not the other.
    pub async fn switch(&mut self, mode: Mode) -> Result<(), CaptureError> {
        if mode == self.plan.mode {
            return Ok(());
        }
        match mode {
            Mode::Observe => self.start_observing().await,
            Mode::Enforce => self.start_enforcing().await,
        }
    }

    async fn start_observing(&mut self) -> Result<(), CaptureError> {
        let guard = Guard::arm(self.plan.backend).await?;
        if let Err(e) = self.load_as(Mode::Observe).await {
            guard.disarm().await?;
            return Err(e);
        }
        self.guard = Some(guard);
        Ok(())
    }

    async fn start_enforcing(&mut self) -> Result<(), CaptureError> {
        self.load_as(Mode::Enforce).await?;
        match self.guard.take() {
            Some(guard) => guard.disarm().await,
            None => Ok(()),
        }
    }

    async fn load_as(&mut self, mode: Mode) -> Result<(), CaptureError> {
        let before = std::mem::replace(&mut self.plan.mode, mode);
        match self.plan.load().await {
            Ok(loaded) => self.loaded = loaded,
            Err(e) => {
                self.plan.mode = before;
                return Err(e);
            }
        }
        Ok(())
    }

    /// To be called every second or so: puts right what changed outside. Returns whether anything had to be.
    ///
    /// * A service manager makes a new cgroup for each start of a unit, and rules hold the old one: without this, a CA
    ///   that was restarted could not reach its authority.
    /// * Other software flushes everybody's rules (`systemctl restart nftables`) or deletes routing rules.
    /// * A guard that was killed is replaced.
    ///
    /// # Errors
    /// As [`Capture::install`]; what was in force stays.
    pub async fn refresh(&mut self) -> Result<bool, CaptureError> {
        let guard = self.replace_guard().await?;
        let routes = self.routes.mend();
        // Rules without routes refuse; routes without rules let pass. So the rules do not wait for the routes.
        let rules = self.reload_if_changed().await?;
        Ok(guard || rules || routes?)
    }

    async fn replace_guard(&mut self) -> Result<bool, CaptureError> {
        let gone = self.guard.as_mut().is_some_and(Guard::is_gone);
        if gone {
            self.guard = Some(Guard::arm(self.plan.backend).await?);
        }
        Ok(gone)
    }

    async fn reload_if_changed(&mut self) -> Result<bool, CaptureError> {
        let intact = match &mut self.loaded.footprint {
            Some(footprint) => footprint.is_intact()?,
            None => false,
        };
        let changed = !intact || self.plan.objects() != self.loaded.objects;
        if changed {
            self.loaded.footprint = None;
            self.loaded = self.plan.load().await?;
        }
        Ok(changed)
    }

    /// Removes rules and routes. End the captured connections first: a live one would go on in plaintext.
    ///
    /// # Errors
    /// Where either cannot be removed. In observe mode the guard goes on trying when this process ends.
    pub async fn remove(self) -> Result<(), CaptureError> {
        let Self { plan, guard, _watch: watch, .. } = self;
        drop(watch);
        remove_leftovers(plan.backend).await?;
        match guard {
            Some(guard) => guard.disarm().await,
            None => Ok(()),
        }
    }
}

/// Removes the rules and routes of an enforcer that is gone. Succeeds where there are none.
///
/// # Errors
/// Where they cannot be removed.
pub async fn remove_leftovers(backend: Backend) -> Result<(), CaptureError> {
    backend.remove().await?;
    routes::remove()
}

/// After a failed installation. An enforcing predecessor's rules are still whole, and stay.
async fn undo(backend: Backend, guard: Option<Guard>) {
    let undone = match guard {
        Some(guard) => match remove_leftovers(backend).await {
            Ok(()) => guard.disarm().await,
            Err(e) => Err(e),
        },
        None => remove_unused_routes(backend).await,
    };
    if let Err(e) = undone {
        tracing::error!("cannot undo a failed installation of the capture rules: {e}");
    }
}

async fn remove_unused_routes(backend: Backend) -> Result<(), CaptureError> {
    if backend.is_present().await? { Ok(()) } else { routes::remove() }
}

/// A [`Control`] whose cgroup exists.
#[derive(Debug)]
struct Exempted {
    cgroup: Cgroup,
    uid: u32,
    to: SocketAddr,
}

impl Exempted {
    fn holder(&self) -> Holder<'_> {
        Holder { cgroup: &self.cgroup, uid: self.uid }
    }
}

/// What an engine turns into text.
#[derive(Debug)]
struct Rules<'a> {
    mode: Mode,
    outbound_port: u16,
    inbound_port: u16,
    own: Holder<'a>,
    controls: &'a [Exempted],
}

impl Plan {
    fn check(&self) -> Result<(), CaptureError> {
        let (outbound, inbound) = (self.outbound_port, self.inbound_port);
        if outbound == inbound || outbound == 0 || inbound == 0 {
            return Err(CaptureError::Ports { outbound, inbound });
        }
        Ok(())
    }

    /// Returns the cgroups as they were before loading: one replaced meanwhile shows as a difference.
    async fn load(&self) -> Result<Loaded, CaptureError> {
        let objects = self.objects();
        let controls = self.existing_controls()?;
        let rules = Rules {
            mode: self.mode,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            own: self.exempt.holder(),
            controls: &controls,
        };
        self.backend.load(&rules).await?;
        Ok(Loaded { objects, footprint: Footprint::take(self.backend.grounds())? })
    }

    /// One path that does not exist would make the whole load fail.
    fn existing_controls(&self) -> Result<Vec<Exempted>, CaptureError> {
        let existing = self.control.iter().filter(|control| control.cgroup.is_dir());
        existing.map(|c| Ok(Exempted { cgroup: Cgroup::at(&c.cgroup)?, uid: c.uid, to: canonical(c.to) })).collect()
    }

    fn objects(&self) -> Vec<Option<u64>> {
        let controls = self.control.iter().map(|control| exemption::object(&control.cgroup));
        std::iter::once(exemption::object(self.exempt.directory())).chain(controls).collect()
    }
}
