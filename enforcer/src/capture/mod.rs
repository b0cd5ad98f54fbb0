//! Makes every TCP connection of the network namespace pass through the enforcer, and stops doing so without a trace.
//!
//! | module | |
//! |---|---|
//! | [`exemption`] | whose connections are not captured |
//! | `nft`, `iptables` | the rules, for either engine |
//! | `routes` | where a steered packet goes |
//! | `footprint` | whether somebody else took the rules away |
//! | `older` | connections that were there before the rules |
//! | [`guard`](guard()) | removes them all when an enforcer dies that does not enforce |
//!
//! **Enforce** fails closed: rules and routes outlive the enforcer, and a connection is refused until it is back.
//! **Shadow** fails open: rules and routes go when the enforcer goes, however it goes.
//! **Observe** captures nothing: there are neither rules nor routes.
//!
//! Changing the mode leaves established connections alone. One that is captured needs the rules that steer it as long
//! as it lives, so they stay until the last of them has ended, and capture no new one. One that is not captured is
//! marked as [`older`] than the rules. An enforcer that *starts* in enforce mode knows of no promise, and resets what
//! was there before it.
//!
//! The table, chains, marks, routing table and rule preferences are fixed: one capture per network namespace.

mod error;
pub mod exemption;
mod footprint;
mod guard;
mod iptables;
mod mark;
mod nft;
mod older;
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
use older::Older;
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

/// What is in force. Dropped without [`Capture::remove`], rules and routes stay in enforce mode, and go otherwise.
#[derive(Debug)]
pub struct Capture {
    plan: Plan,
    /// `None` where nothing is captured.
    installed: Option<Installed>,
    older: Older,
}

/// Rules and routes.
#[derive(Debug)]
struct Installed {
    loaded: Loaded,
    /// Present unless it enforces.
    guard: Option<Guard>,
    routes: Mender,
    /// Rounds without a captured connection, once no new ones are captured.
    idle: u32,
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

/// Rounds without a captured connection after which the rules go: one that was captured last has been accepted by then.
const IDLE_ROUNDS: u32 = 2;

impl Capture {
    /// Installs what the mode needs, replacing an earlier instance's without a gap. Listeners should be bound before.
    ///
    /// # Errors
    /// Nothing is left behind then, except the rules of an earlier enforcing instance.
    pub async fn install(plan: Plan) -> Result<Self, CaptureError> {
        plan.check()?;
        drop(Turn::take().await);
        forget_older().await;
        let installed = match plan.mode {
            Mode::Observe => {
                remove_if_present(plan.backend).await?;
                None
            }
            Mode::Shadow | Mode::Enforce => Some(Installed::install(&plan).await?),
        };
        Ok(Self { plan, installed, older: Older::default() })
    }

    /// What is in force.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.plan.mode
    }

    /// Whether there are rules: in observe mode only as long as connections live that were captured before.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.installed.is_some()
    }

    /// Replaces the rules by those of `mode`, without a gap, and leaves established connections alone. Until this
    /// returns, an enforcer that dies leaves the host open if either mode is not enforce.
    ///
    /// # Errors
    /// The mode is unchanged, or on its way to enforce it is shadow. Rules and mode can differ only where iptables
    /// replaced one family and not the other.
    pub async fn switch(&mut self, mode: Mode) -> Result<(), CaptureError> {
        if mode == self.plan.mode {
            return Ok(());
        }
        match mode {
            Mode::Observe => self.load_guarded(Mode::Observe).await,
            Mode::Shadow => self.start_shadowing().await,
            Mode::Enforce => self.start_enforcing().await,
        }
    }

    /// Captures what is new, and lets be what is older.
    async fn start_shadowing(&mut self) -> Result<(), CaptureError> {
        if self.installed.is_some() {
            return self.load_guarded(Mode::Shadow).await;
        }
        let plan = Plan { mode: Mode::Shadow, ..self.plan.clone() };
        self.installed = Some(Installed::install(&plan).await?);
        self.plan = plan;
        Ok(())
    }

    /// From observe by way of shadow: see [`older`].
    async fn start_enforcing(&mut self) -> Result<(), CaptureError> {
        if self.plan.mode == Mode::Observe {
            self.start_shadowing().await?;
        }
        match Older::spare().await {
            Ok(older) => self.older = older,
            // To enforce is what was asked for; it does not wait for the sake of what is older.
            Err(e) => tracing::error!("connections older than the capture rules cannot be spared, and are reset: {e}"),
        }
        self.load_as(Mode::Enforce).await?;
        tracing::info!(spared = self.older.len(), "what was established goes on as it was");
        match self.installed.as_mut().and_then(|installed| installed.guard.take()) {
            Some(guard) => guard.disarm().await,
            None => Ok(()),
        }
    }

    /// Loads rules that must not outlive the enforcer.
    async fn load_guarded(&mut self, mode: Mode) -> Result<(), CaptureError> {
        let Some(installed) = &mut self.installed else { return Ok(()) };
        let new = match installed.guard {
            Some(_) => None,
            None => Some(Guard::arm(self.plan.backend).await?),
        };
        match (self.load_as(mode).await, new, &mut self.installed) {
            (Ok(()), Some(new), Some(installed)) => installed.guard = Some(new),
            (Err(e), Some(new), _) => {
                new.disarm().await?;
                return Err(e);
            }
            (loaded, ..) => loaded?,
        }
        forget_older().await;
        self.older = Older::default();
        Ok(())
    }

    async fn load_as(&mut self, mode: Mode) -> Result<(), CaptureError> {
        let Some(installed) = &mut self.installed else { return Ok(()) };
        let plan = Plan { mode, ..self.plan.clone() };
        installed.loaded = plan.load().await?;
        installed.idle = 0;
        self.plan = plan;
        Ok(())
    }

    /// To be called every second or so: puts right what changed outside. Returns whether anything had to be.
    ///
    /// * A service manager makes a new cgroup for each start of a unit, and rules hold the old one: without this, a CA
    ///   that was restarted could not reach its authority.
    /// * Other software flushes everybody's rules (`systemctl restart nftables`) or deletes routing rules.
    /// * A guard that was killed is replaced.
    /// * In observe mode the rules go with the last connection that was captured before.
    ///
    /// # Errors
    /// As [`Capture::install`]; what was in force stays.
    pub async fn refresh(&mut self) -> Result<bool, CaptureError> {
        if self.plan.mode == Mode::Observe && self.is_idle().await {
            return self.uninstall().await.map(|()| true);
        }
        if let Err(e) = self.older.forget_ended().await {
            tracing::warn!("connections older than the capture rules cannot be looked at: {e}");
        }
        match &mut self.installed {
            Some(installed) => installed.refresh(&self.plan).await,
            None => Ok(false),
        }
    }

    /// Has the last captured connection ended?
    async fn is_idle(&mut self) -> bool {
        let Some(installed) = &mut self.installed else { return false };
        let none = match tokio::task::spawn_blocking(none_captured).await {
            Ok(Ok(none)) => none,
            // They do no harm while they stay.
            Ok(Err(_)) | Err(_) => false,
        };
        installed.idle = if none { installed.idle.saturating_add(1) } else { 0 };
        installed.idle >= IDLE_ROUNDS
    }

    async fn uninstall(&mut self) -> Result<(), CaptureError> {
        remove_leftovers(self.plan.backend).await?;
        match self.installed.take().and_then(|installed| installed.guard) {
            Some(guard) => guard.disarm().await,
            None => Ok(()),
        }
    }

    /// Removes rules and routes. End the captured connections first: a live one would go on in plaintext.
    ///
    /// # Errors
    /// Where either cannot be removed. The guard goes on trying when this process ends, unless it enforced.
    pub async fn remove(mut self) -> Result<(), CaptureError> {
        match self.installed {
            Some(_) => self.uninstall().await,
            None => Ok(()),
        }
    }
}

impl Installed {
    async fn install(plan: &Plan) -> Result<Self, CaptureError> {
        let guard = match plan.mode {
            Mode::Observe | Mode::Shadow => Some(Guard::arm(plan.backend).await?),
            Mode::Enforce => None,
        };
        match Self::install_guarded(plan).await {
            Ok((loaded, watch)) => Ok(Self { loaded, guard, routes: Mender::default(), idle: 0, _watch: watch }),
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

    async fn refresh(&mut self, plan: &Plan) -> Result<bool, CaptureError> {
        let guard = self.replace_guard(plan.backend).await?;
        let routes = self.routes.mend();
        // Rules without routes refuse; routes without rules let pass. So the rules do not wait for the routes.
        let rules = self.reload_if_changed(plan).await?;
        Ok(guard || rules || routes?)
    }

    async fn replace_guard(&mut self, backend: Backend) -> Result<bool, CaptureError> {
        let gone = self.guard.as_mut().is_some_and(Guard::is_gone);
        if gone {
            self.guard = Some(Guard::arm(backend).await?);
        }
        Ok(gone)
    }

    async fn reload_if_changed(&mut self, plan: &Plan) -> Result<bool, CaptureError> {
        let intact = match &mut self.loaded.footprint {
            Some(footprint) => footprint.is_intact()?,
            None => false,
        };
        let changed = !intact || plan.objects() != self.loaded.objects;
        if changed {
            self.loaded.footprint = None;
            self.loaded = plan.load().await?;
        }
        Ok(changed)
    }
}

/// Is there no end left of ours that may have others' addresses, also of those that only wait for their last FIN?
fn none_captured() -> std::io::Result<bool> {
    let own = rustix::process::geteuid().as_raw();
    let all = crate::sys::connections::list()?;
    Ok(!all.iter().any(|one| one.transparent && one.uid.is_none_or(|uid| uid == own)))
}

/// Marks that nobody looks after any more.
async fn forget_older() {
    if let Err(e) = older::forget().await {
        tracing::warn!("the marks of connections older than earlier capture rules cannot be taken back: {e}");
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

/// The rules and routes of an earlier instance, whichever engine it used.
async fn remove_if_present(backend: Backend) -> Result<(), CaptureError> {
    for engine in [backend, backend.other()] {
        engine.remove_if_present().await?;
    }
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
