//! [`Policy`]: a text that was understood completely, ready to answer.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use bonafide_proto::edge::EdgeCount;
use bonafide_proto::fingerprint::{Digest, Fingerprint};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;
use toml::de::DeTable;

use crate::candidates::Candidates;
use crate::case::{self, Case, CaseResult};
use crate::certified::{self, Certified};
use crate::compile::{Key, Pair, Tables, Which, compile};
use crate::decide::{Subject, Verdict};
use crate::diff::{self, PolicyDiff};
use crate::explain::{Explained, explain};
use crate::fault::{Faults, PolicyError, PolicyErrors, quoted};
use crate::group::{self, Groups};
use crate::identify::{Identified, identify, miss};
use crate::language::{GROUP, GUARD, OUTSIDE, RULE, TEAM, TEST, TOP, WORKLOAD};
use crate::large::{LARGE, Pieces};
use crate::learn::{self, Learned, Lessons};
use crate::lint::{self, Lint};
use crate::names::Names;
use crate::outside::{self, Outsides};
use crate::party::Party;
use crate::prefix::PrefixMap;
use crate::readiness::{self, Readiness};
use crate::releases::{self, Pending, Releases};
use crate::remedy::{self, Remedy};
use crate::responsible::Responsible;
use crate::review::{self, Review};
use crate::rule::{self, Placed, Rule};
use crate::section::{INCLUDE, includes};
use crate::table::Table;
use crate::team::{self, Limits};
use crate::workload::{self, Workload};

/// The longest policy text, in bytes.
pub const POLICY_MAX: usize = 256 << 20;
/// In longer texts the search for syntax errors stops at the first: each one found takes memory.
const ALL_SYNTAX_ERRORS_MAX: usize = 256 << 10;

/// Who does not say what time it is: whatever expires has expired.
pub(crate) const NO_TIME: i64 = i64::MAX;

/// What happens to a flow that no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nobody stands in between: the kernel's events are recorded, with the verdict that enforce mode would come to.
    Observe,
    /// It is captured and let through, and recorded as one that would be refused.
    Shadow,
    /// It is refused.
    Enforce,
}

impl Mode {
    /// As policy and records write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Shadow => "shadow",
            Self::Enforce => "enforce",
        }
    }
}

/// How two programs on one host are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameHost {
    /// The enforcer knows both ends itself; nothing is encrypted that never leaves the host.
    Verified,
    /// Mutual TLS, as between hosts.
    Mtls,
}

/// On which side of the mesh an address lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Inside a `mesh` prefix, or loopback: whoever is there must prove a workload.
    Mesh,
    /// Anywhere else: only rules that name an `[[outside]]` reach it.
    Outside,
}

/// A policy that was understood completely.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(crate) mode: Mode,
    pub(crate) same_host: SameHost,
    pub(crate) digest: Digest,
    pub(crate) mesh: PrefixMap,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) candidates: Candidates,
    pub(crate) by_name: HashMap<WorkloadName, u32, foldhash::quality::RandomState>,
    pub(crate) groups: Groups,
    pub(crate) outsides: Outsides,
    pub(crate) rules: Vec<Placed>,
    /// Positions of the rules, in the order of their names.
    pub(crate) rules_by_name: OnceLock<Vec<u32>>,
    /// What time it was made for, unix seconds: rules that expired by then are not in the tables.
    pub(crate) now: i64,
    pub(crate) tables: Tables,
    /// The tables with the rules that are only tried, where there are such.
    pub(crate) trials: Option<Box<Tables>>,
    pub(crate) cases: Vec<Case>,
}

impl Policy {
    /// Understands a text completely or refuses it. `file` is only for the messages.
    ///
    /// Rules that expire allow nothing yet: see [`Policy::at`].
    ///
    /// # Errors
    /// Every mistake at once, each with its place and what would be right.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyErrors> {
        if text.len() > POLICY_MAX {
            let message = format!("the policy is {} bytes long; the limit is {POLICY_MAX}", text.len());
            return Err(PolicyErrors::one(file, PolicyError { file: None, line: 1, column: 1, message }));
        }
        let mut faults = Faults::in_text(text);
        let digest = || Digest::of(text.as_bytes());
        let policy = if text.len() <= LARGE {
            document(text, &mut faults).and_then(|document| read(&document, None, digest(), &mut faults))
        } else {
            Pieces::of(text, &mut faults).and_then(|pieces| {
                let document = document(&pieces.rest, &mut faults)?;
                read(&document, Some(&pieces), digest(), &mut faults)
            })
        };
        faults.verdict(file, policy)
    }

    /// The policy as it is at this time, unix seconds: rules with a later `expires`, or in their hours, allow what they say, until
    /// [`Policy::next_change`].
    #[must_use]
    pub fn at(mut self, now: i64) -> Self {
        if self.rules.iter().any(|(_, rule)| rule.expires.is_some() || rule.schedule.is_some()) {
            // What could be wrong was found when the text was read.
            let mut none = Faults::in_text("");
            self.tables = compile(Which::InForce, &self.rules, now, &self.groups, &self.outsides, &mut none);
            self.trials = trials(&self.rules, now, &self.groups, &self.outsides);
        }
        self.now = now;
        self
    }

    /// When the next rule expires, or its hours begin or end, or a digest retires, unix seconds; `None` if none does any more.
    #[must_use]
    pub fn next_change(&self) -> Option<i64> {
        let rules = self.rules.iter().filter_map(|(_, rule)| rule.next_change(self.now));
        rules.chain(self.workloads.iter().filter_map(|workload| workload.next_retirement(self.now))).min()
    }

    /// What happens to a flow that no rule allows.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How two programs on one host are connected.
    #[must_use]
    pub fn same_host(&self) -> SameHost {
        self.same_host
    }

    /// The digest of the text.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Which workload this evidence earns.
    pub fn identify(&self, fingerprint: &Fingerprint) -> Identified {
        identify(&self.workloads, &self.candidates, fingerprint, self.now)
    }

    /// The first selector of one workload that this evidence fails; `None` if all hold, or the policy does not know the
    /// workload ([`Policy::knows`]).
    #[must_use]
    pub fn miss_of(&self, name: &WorkloadName, fingerprint: &Fingerprint) -> Option<NearMiss> {
        self.workload_named(name).and_then(|workload| miss(workload, fingerprint, self.now))
    }

    /// Every workload beside this evidence, nearest first: which selectors hold, and what was seen where one does not.
    #[must_use]
    pub fn explain(&self, fingerprint: &Fingerprint) -> Vec<Explained> {
        explain(&self.workloads, fingerprint, self.now)
    }

    /// What a workload says of digests that it does not list, and how many it lists, of the selector that lists most; none if
    /// it says nothing.
    #[must_use]
    pub fn releases(&self, name: &WorkloadName) -> Option<(&Releases, u32)> {
        let workload = self.workload_named(name)?;
        Some((workload.releases.as_ref()?, workload.listed(self.now)))
    }

    /// Whether a workload lists this digest; one that retired is still listed.
    #[must_use]
    pub fn lists(&self, name: &WorkloadName, digest: Digest) -> bool {
        self.workload_named(name).is_some_and(|workload| workload.lists(digest))
    }

    /// Whether some workload lists digests that will be accepted no longer.
    #[must_use]
    pub fn has_retirements(&self) -> bool {
        self.workloads.iter().any(|workload| !workload.retires.is_empty())
    }

    /// The workload that a program would have earned, had the policy listed its digests; none if it earns one, if nothing says
    /// what becomes of new digests, or if it is not clear which.
    #[must_use]
    pub fn pending(&self, fingerprint: &Fingerprint) -> Option<Pending> {
        let might = self.candidates.among(&self.workloads, fingerprint);
        let might = might.unwrap_or_else(|| self.workloads.iter().collect());
        releases::pending(&might, fingerprint, self.now)
    }

    /// Whether what a peer's certificate says about its program is what this policy demands of the workload: its `exe`,
    /// `script`, their digests, `inline_sha256`, `libraries`, `image`, `uid` and `nodes`, and that its taints are allowed. A
    /// node's own policy may demand less than this one.
    ///
    /// # Errors
    /// The first of these selectors that fails, or that the policy does not know the workload.
    pub fn accepts_certified(&self, name: &WorkloadName, certified: &Certified<'_>) -> Result<(), NearMiss> {
        certified::accept(name, self.workload_named(name), certified, self.now)
    }

    /// Whether the policy has a workload of this name.
    #[must_use]
    pub fn knows(&self, name: &WorkloadName) -> bool {
        self.by_name.contains_key(name)
    }

    /// Whether the programs of this workload are given its identity by the SPIFFE Workload API.
    #[must_use]
    pub fn serves_workload_api(&self, name: &WorkloadName) -> bool {
        self.workload_named(name).is_some_and(|workload| workload.workload_api)
    }

    /// On which side of the mesh an address lies. IPv4-mapped IPv6 addresses are IPv4 addresses.
    #[must_use]
    pub fn place(&self, addr: IpAddr) -> Place {
        let addr = addr.to_canonical();
        if addr.is_loopback() || self.mesh.covers(addr) { Place::Mesh } else { Place::Outside }
    }

    /// The first `[[outside]]` that covers the address and the port dialled there, for records.
    #[must_use]
    pub fn outside(&self, addr: SocketAddr) -> Option<&str> {
        let mut covering = self.covering(addr.ip()).into_iter().filter_map(|position| self.outside_at(position));
        covering.find(|o| o.ports.contains(addr.port())).map(|o| o.name.as_str())
    }

    /// Looks up who one end of a flow is to this policy, once for all decisions about it.
    #[must_use]
    pub fn party(&self, subject: &Subject<'_>) -> Party<'_> {
        Party::of(self, subject)
    }

    /// May `from` connect to `to`?
    ///
    /// `port` is the port on which the destination program listens, or the port dialled where `to` is outside;
    /// the ports inside the subjects' addresses are not looked at. The first guard or rule that matches decides, and
    /// nothing matched is deny. An address inside the mesh is never outside, whatever the rules say.
    pub fn decide(&self, from: &Subject<'_>, to: &Subject<'_>, port: u16) -> Verdict {
        crate::decide::decide(self, from, to, port)
    }

    /// Tries every `[[test]]`, in the order of the file. Say first what time it is ([`Policy::at`]).
    #[must_use]
    pub fn try_cases(&self) -> Vec<CaseResult> {
        self.cases.iter().map(|case| case.run(self)).collect()
    }

    /// What would let this pass, and nothing else; `None` if it passes already.
    #[must_use]
    pub fn remedy(&self, from: &Subject<'_>, to: &Subject<'_>, port: u16) -> Option<Remedy> {
        remedy::remedy(self, from, to, port)
    }

    /// What is allowed in it and yet hardly meant; `text` is what it was read from. Say first what time it is
    /// ([`Policy::at`]).
    #[must_use]
    pub fn lint(&self, text: &str) -> Vec<Lint> {
        lint::lint(self, text)
    }

    /// The rules that decide something and decided none of these flows; `text` is what this policy was read from.
    #[must_use]
    pub fn never_hit(&self, text: &str, edges: &[EdgeCount]) -> Vec<Lint> {
        lint::never_hit(self, text, edges)
    }

    /// What `new` would change for the flows of these edges. Say first to both what time it is ([`Policy::at`]).
    #[must_use]
    pub fn diff(&self, new: &Self, edges: &[EdgeCount]) -> PolicyDiff {
        diff::diff(self, new, edges)
    }

    /// How far each application is from being enforced, by the flows of these edges; in the order of their names.
    #[must_use]
    pub fn readiness(&self, edges: &[EdgeCount]) -> Vec<Readiness> {
        readiness::readiness(self, edges)
    }

    /// A label of a workload.
    pub(crate) fn label(&self, name: &WorkloadName, key: &str) -> Option<&str> {
        self.workload_named(name)?.labels.get(key).map(String::as_str)
    }

    /// What this policy says of the flow of each edge; flows that both ends recorded may be told of once.
    #[must_use]
    pub fn review(&self, edges: &[EdgeCount]) -> Vec<Review> {
        review::review(self, edges)
    }

    /// What the policy of this text lacks at this time, unix seconds, for the flows of these edges.
    ///
    /// # Errors
    /// The text's mistakes.
    pub fn learn(
        file: &str,
        text: &str,
        now: i64,
        edges: &[EdgeCount],
        lessons: Lessons,
    ) -> Result<Learned, PolicyErrors> {
        learn::learn(file, text, now, edges, lessons)
    }

    /// Every name that rules may use.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let workloads = self.workloads.iter().map(|workload| workload.name.to_string());
        let outsides = self.outsides.list.iter().map(|outside| outside.name.clone());
        workloads.chain(outsides).chain(self.groups.names().iter().cloned()).collect()
    }

    /// True if some rule could allow the workload to reach some workload on some port.
    #[must_use]
    pub fn may_reach_mesh(&self, name: &WorkloadName) -> bool {
        self.keys_of(name).any(|key| self.tables.reach_mesh.contains(&key))
    }

    /// True if some rule allows `from` to reach `to` on some port; a denying rule before it may still decide.
    #[must_use]
    pub fn may_reach(&self, from: &WorkloadName, to: &WorkloadName) -> bool {
        let allows = |pair: Pair| self.tables.pairs.allowing(&pair).is_some();
        self.keys_of(from).any(|from| self.keys_of(to).any(|to| allows(Pair::of(from, to))))
    }

    /// True if some rule allows the workload to reach somebody on that port.
    #[must_use]
    pub fn expects_on(&self, from: &WorkloadName, port: u16) -> bool {
        let allows = |key: Key| self.tables.allowed_from.at(&key, port).is_some();
        self.keys_of(from).any(allows)
    }

    /// The first `[[outside]]` whose prefixes cover an address that connects from there, for records.
    #[must_use]
    pub fn outside_source(&self, addr: IpAddr) -> Option<&str> {
        let covering = self.covering(addr).into_iter().next()?;
        self.outside_at(covering).map(|o| o.name.as_str())
    }

    /// The names of the workloads, in the order of the file.
    pub fn workloads(&self) -> impl Iterator<Item = &WorkloadName> {
        self.workloads.iter().map(|workload| &workload.name)
    }

    /// True if the policy names no workload, so that nothing is ever allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }

    /// Where the tables speak of this workload; nowhere if the policy does not know it.
    pub(crate) fn keys_of(&self, name: &WorkloadName) -> impl Iterator<Item = Key> {
        self.by_name.get(name).into_iter().flat_map(|position| Key::of_workload(*position, &self.groups))
    }

    /// The outsides that cover an address, by position; none for addresses in the mesh.
    pub(crate) fn covering(&self, addr: IpAddr) -> Vec<u32> {
        match self.place(addr) {
            Place::Mesh => Vec::new(),
            Place::Outside => self.outsides.by_address.covering(addr),
        }
    }

    /// The rule at a position.
    pub(crate) fn rule_at(&self, position: u32) -> Option<&Rule> {
        self.rules.get(usize::try_from(position).ok()?).map(|(_, rule)| rule)
    }

    /// Who answers for the guard or rule of this name.
    #[must_use]
    pub fn responsible(&self, rule: &str) -> Option<&Responsible> {
        self.rule_named(rule).map(|rule| &rule.responsible).filter(|responsible| !responsible.is_unknown())
    }

    /// Who answers for a workload.
    #[must_use]
    pub fn owner(&self, name: &WorkloadName) -> Option<&str> {
        self.workload_named(name)?.owner.as_deref()
    }

    fn workload_named(&self, name: &WorkloadName) -> Option<&Workload> {
        self.workloads.get(usize::try_from(*self.by_name.get(name)?).ok()?)
    }

    /// The guard or rule of this name.
    pub(crate) fn rule_named(&self, name: &str) -> Option<&Rule> {
        let called = |position: &u32| self.rule_at(*position).map_or("", |rule| rule.name.as_str());
        // Sorted when it is first asked for: most policies of a node never are, and positions are small.
        let by_name = self.rules_by_name.get_or_init(|| {
            let mut positions: Vec<u32> = (0..).zip(&self.rules).map(|(position, _)| position).collect();
            positions.sort_unstable_by(|a, b| called(a).cmp(called(b)));
            positions
        });
        let found = by_name.binary_search_by(|position| called(position).cmp(name)).ok()?;
        self.rule_at(*by_name.get(found)?)
    }

    /// The outside at a position.
    pub(crate) fn outside_at(&self, position: u32) -> Option<&outside::Outside> {
        self.outsides.list.get(usize::try_from(position).ok()?)
    }
}

/// None if there is nothing to read.
fn document<'t>(text: &'t str, faults: &mut Faults<'_>) -> Option<DeTable<'t>> {
    let (document, errors) = if text.len() > ALL_SYNTAX_ERRORS_MAX {
        match DeTable::parse(text) {
            Ok(document) => (Some(document), Vec::new()),
            Err(error) => (None, vec![error]),
        }
    } else {
        let (document, errors) = DeTable::parse_recoverable(text);
        (Some(document), errors)
    };
    for error in errors {
        faults.syntax(error.span().map_or(0, |span| span.start), format!("not TOML: {}", error.message()));
    }
    document.map(toml::Spanned::into_inner)
}

/// None if a part is missing without which there is no policy; whatever is wrong was reported. More rules are in the pieces.
fn read(
    document: &DeTable<'_>,
    pieces: Option<&Pieces<'_>>,
    digest: Digest,
    faults: &mut Faults<'_>,
) -> Option<Policy> {
    let top = Table::open(TOP, 0, document, faults);
    let mode = read_mode(&top, faults);
    let same_host = read_same_host(&top, faults);
    let mesh = outside::read_mesh(&top, faults);
    check_included(&top, faults);
    let teams = team::read(&top.tables(TEAM, "team", faults), faults);
    let sections = faults.sections().to_vec();
    let limits = Limits::of(&teams, &sections, faults);
    let mut names = Names::default();
    let tables = top.tables(WORKLOAD, "workload", faults);
    limits.declared(&tables, "workload", faults);
    let mut workloads = workload::read(&tables, &mut names, faults);
    for workload in workloads.iter_mut().filter(|workload| workload.owner.is_none()) {
        let team = teams.iter().find(|team| team.covers(workload.name.as_str()));
        workload.owner = team.map(|team| team.name.clone());
    }
    let groups = top.tables(GROUP, "group", faults);
    limits.declared(&groups, "group", faults);
    let declared = group::declare(&groups, &mut names, faults);
    let tables = top.tables(OUTSIDE, "outside", faults);
    limits.declared(&tables, "outside", faults);
    let outsides = outside::read(&tables, &mesh, &mut names, faults);
    let groups = group::read(&groups, declared, &workloads, &names, faults);
    let (guards, rules) = (top.tables(GUARD, "guard", faults), top.tables(RULE, "rule", faults));
    limits.no_guards(&guards, faults);
    let rules = rule::read(&guards, &rules, pieces, &names, &outsides, faults);
    limits.rules(&rules, &workloads, &groups, &outsides, faults);
    let cases = case::read(&top.tables(TEST, "test", faults), &names, &workloads, &rules, faults);
    let tables = compile(Which::InForce, &rules, NO_TIME, &groups, &outsides, faults);
    let mut mesh_map = PrefixMap::default();
    mesh.into_iter().for_each(|net| mesh_map.insert(net, 0));
    Some(Policy {
        mode: mode?,
        same_host: same_host?,
        digest,
        mesh: mesh_map,
        by_name: (0..).zip(&workloads).map(|(position, w)| (w.name.clone(), position)).collect(),
        candidates: Candidates::of(&workloads),
        workloads,
        trials: trials(&rules, NO_TIME, &groups, &outsides),
        groups,
        outsides,
        rules,
        rules_by_name: OnceLock::new(),
        now: NO_TIME,
        tables,
        cases,
    })
}

/// What is included must be there: a policy of which a part is missing is another policy.
fn check_included(top: &Table<'_>, faults: &mut Faults<'_>) {
    let there: Vec<String> = faults.sections().iter().map(|section| section.name.clone()).collect();
    let named = if top.get(INCLUDE).is_some() { top.texts(INCLUDE, faults).unwrap_or_default() } else { Vec::new() };
    for text in &named {
        if !there.iter().any(|name| includes(text.value, name)) {
            let how = "policies of several files are put together by `bonafide policy assemble`";
            faults.wrong(text.at, format!("{} is included and not here; {how}", quoted(text.value)));
        }
    }
    if let Some(stray) =
        faults.sections().iter().find(|section| !named.iter().any(|text| includes(text.value, &section.name)))
    {
        let (at, name) = (stray.at, stray.name.clone());
        faults.wrong(at, format!("{} is here and not included", quoted(&name)));
    }
}

/// None if no rule is only tried.
fn trials(rules: &[Placed], now: i64, groups: &Groups, outsides: &Outsides) -> Option<Box<Tables>> {
    // What could be wrong was found when the tables of all others were built.
    let mut none = Faults::in_text("");
    let any = rules.iter().any(|(_, rule)| rule.tried);
    any.then(|| Box::new(compile(Which::Tried, rules, now, groups, outsides, &mut none)))
}

fn read_mode(top: &Table<'_>, faults: &mut Faults<'_>) -> Option<Mode> {
    let text = top.required_text("mode", faults)?;
    match text.value {
        "observe" => Some(Mode::Observe),
        "shadow" => Some(Mode::Shadow),
        "enforce" => Some(Mode::Enforce),
        other => {
            faults.wrong(
                text.at,
                format!("the mode {} is not known; write \"observe\", \"shadow\" or \"enforce\"", quoted(other)),
            );
            None
        }
    }
}

fn read_same_host(top: &Table<'_>, faults: &mut Faults<'_>) -> Option<SameHost> {
    if top.get("same_host").is_none() {
        return Some(SameHost::Verified);
    }
    let text = top.text("same_host", faults)?;
    match text.value {
        "verified" => Some(SameHost::Verified),
        "mtls" => Some(SameHost::Mtls),
        other => {
            let seen = quoted(other);
            faults.wrong(text.at, format!("same_host = {seen} is not known; write \"verified\" or \"mtls\""));
            None
        }
    }
}
