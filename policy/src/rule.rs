//! A rule: who may, or may not, reach whom on which ports.

use std::collections::HashMap;

use crate::expiry::{self, Expiry};
use crate::fault::{Faults, quoted};
use crate::large::Pieces;
use crate::names::{End, Names};
use crate::outside::Outsides;
use crate::policy::NO_TIME;
use crate::ports::Ports;
use crate::responsible::{self, Responsible};
use crate::schedule::{self, Schedule};
use crate::table::{Table, Text, all_different};

/// The longest name of a rule, in bytes.
const RULE_NAME_MAX: usize = 128;

/// What a rule says about the flows it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Allow,
    Deny,
}

impl Action {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// One rule.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// Shown with each verdict.
    pub(crate) name: String,
    /// Who connects.
    pub(crate) from: Vec<End>,
    /// Who listens.
    pub(crate) to: Vec<End>,
    /// Where.
    pub(crate) ports: Ports,
    /// And then.
    pub(crate) action: Action,
    /// It stands before all that are none.
    pub(crate) guard: bool,
    /// It decides nothing yet: what it would decide is recorded beside what is decided.
    pub(crate) tried: bool,
    /// From this moment on it allows nothing any more.
    pub(crate) expires: Option<Expiry>,
    /// It allows in these hours only.
    pub(crate) schedule: Option<Schedule>,
    /// Who answers for it.
    pub(crate) responsible: Responsible,
}

impl Rule {
    /// Whether its time is now, unix seconds.
    pub(crate) fn is_in_time(&self, now: i64) -> bool {
        let in_hours = self.schedule.as_ref().is_none_or(|schedule| now != NO_TIME && schedule.covers(now));
        in_hours && self.expires.is_none_or(|expiry| now < expiry.0)
    }

    /// When that changes next, unix seconds, if it does.
    pub(crate) fn next_change(&self, now: i64) -> Option<i64> {
        let expires = self.expires.map(|expiry| expiry.0);
        if expires.is_some_and(|expires| expires <= now) {
            return None;
        }
        let hours = self.schedule.as_ref().map(|schedule| schedule.next_change(now));
        [expires, hours].into_iter().flatten().min()
    }
}

/// A rule with the place where it is written.
pub(crate) type Placed = (usize, Rule);

/// Reads every `[[guard]]` and every `[[rule]]`: the guards stand before all rules, wherever they are written, so that no
/// rule can open what a guard closed.
pub(crate) fn read<'t>(
    guards: &[Table<'t>],
    rules: &[Table<'t>],
    pieces: Option<&Pieces<'_>>,
    names: &Names<'t>,
    outsides: &Outsides,
    faults: &mut Faults<'_>,
) -> Vec<Placed> {
    let mut earlier = HashMap::new();
    let guards = guards.iter().map(|table| (table, Some(Action::Deny)));
    let all = guards.chain(rules.iter().map(|table| (table, None)));
    let mut read: Vec<Placed> = all
        .filter_map(|(table, action)| {
            Some((table.at, read_one(table, action, names, outsides, Some(&mut earlier), faults)?))
        })
        .collect();
    if let Some(pieces) = pieces {
        read.extend(pieces.rules(names, outsides, faults));
        // Some may stand outside of pieces.
        read.sort_by_key(|(at, rule)| (!rule.guard, *at));
        all_named_differently(&read, faults);
    }
    read
}

/// Reads rules of a piece of the text that begins there; whether others have their names is not looked at.
pub(crate) fn read_alone<'t>(
    rules: &[Table<'t>],
    begins: usize,
    names: &Names<'t>,
    outsides: &Outsides,
    faults: &mut Faults<'_>,
) -> Vec<Placed> {
    let place = |table: &Table<'_>| begins.saturating_add(table.at);
    rules
        .iter()
        .filter_map(|table| Some((place(table), read_one(table, None, names, outsides, None, faults)?)))
        .collect()
}

fn all_named_differently(rules: &[Placed], faults: &mut Faults<'_>) {
    let mut earlier = HashMap::with_capacity_and_hasher(rules.len(), foldhash::quality::RandomState::default());
    for (at, rule) in rules {
        if let Some(before) = earlier.insert(rule.name.as_str(), *at) {
            let problem = taken("rule", before, faults);
            faults.wrong(*at, format!("the rule name {} {problem}", quoted(&rule.name)));
        }
    }
}

fn taken(of: &str, before: usize, faults: &Faults<'_>) -> String {
    let other = if of == "rule" { "guard or rule" } else { of };
    format!("is already the name of the {other} on {}; choose another name", faults.place(before))
}

/// Guards have a fixed action, rules say theirs.
fn read_one<'t>(
    table: &Table<'t>,
    fixed: Option<Action>,
    names: &Names<'t>,
    outsides: &Outsides,
    earlier: Option<&mut HashMap<&'t str, usize>>,
    faults: &mut Faults<'_>,
) -> Option<Rule> {
    let name = table.required_text("name", faults).and_then(|text| checked_name("rule", text, earlier, faults));
    let from = ends(table, "from", names, faults);
    let to = ends(table, "to", names, faults);
    refuse_outside_to_outside(&from, &to, faults);
    refuse_source_ports(&from, outsides, faults);
    let ports = Ports::read(table, faults);
    let guard = fixed.is_some();
    let action = fixed.or_else(|| action(table, faults));
    let expires = expiry::read(table, action, faults);
    let schedule = schedule::read(table, action, faults);
    let tried = tried(table, faults);
    let responsible = responsible::read(table, faults);
    let only_ends = |placed: Vec<(usize, End)>| placed.into_iter().map(|(_, end)| end).collect();
    Some(Rule {
        name: name?,
        from: only_ends(from),
        to: only_ends(to),
        ports,
        action: action?,
        guard,
        tried: tried?,
        expires: expires?,
        schedule: schedule?,
        responsible,
    })
}

/// A name in words; `of` is what it is the name of.
pub(crate) fn checked_name<'t>(
    of: &str,
    text: Text<'t>,
    earlier: Option<&mut HashMap<&'t str, usize>>,
    faults: &mut Faults<'_>,
) -> Option<String> {
    let name = text.value;
    let problem = if name.is_empty() {
        "is empty; say in a few words what it permits".to_owned()
    } else if name.len() > RULE_NAME_MAX {
        format!("is longer than {RULE_NAME_MAX} bytes")
    } else if let Some(c) = name.chars().find(|c| !matches!(c, ' '..='~')) {
        format!("contains '{}'; a {of}'s name is printable ASCII", c.escape_default())
    } else if name.trim() != name {
        "begins or ends with a space; remove it".to_owned()
    } else if let Some(before) = earlier.and_then(|earlier| earlier.insert(name, text.at)) {
        taken(of, before, faults)
    } else {
        return Some(name.to_owned());
    };
    faults.wrong(text.at, format!("the {of} name {} {problem}", quoted(name)));
    None
}

fn ends<'t>(table: &Table<'t>, field: &str, names: &Names<'t>, faults: &mut Faults<'_>) -> Vec<(usize, End)> {
    let texts = table.required_texts(field, faults).unwrap_or_default();
    let ends: Vec<(usize, End)> =
        texts.into_iter().filter_map(|text| Some((text.at, names.resolve(text, faults)?))).collect();
    all_different(field, &ends, faults);
    ends
}

fn action(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<Action> {
    table.required_text("action", faults).and_then(|text| action_of(text, "action", faults))
}

/// `"allow"` or `"deny"`; `what` is what it is called.
pub(crate) fn action_of(text: Text<'_>, what: &str, faults: &mut Faults<'_>) -> Option<Action> {
    match text.value {
        "allow" => Some(Action::Allow),
        "deny" => Some(Action::Deny),
        other => {
            faults.wrong(text.at, format!("the {what} {} is not known; write \"allow\" or \"deny\"", quoted(other)));
            None
        }
    }
}

/// Whether it is only tried; none if that was not understood, which was reported. Where capture stands is the policy's
/// `mode`, so to a rule "observe" and "shadow" are the same.
fn tried(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<bool> {
    if table.get("mode").is_none() {
        return Some(false);
    }
    let text = table.text("mode", faults)?;
    match text.value {
        "enforce" => Some(false),
        "shadow" | "observe" => Some(true),
        other => {
            let right = "write \"shadow\" (it is only tried) or \"enforce\" (it decides)";
            faults.wrong(text.at, format!("the mode {} is not known; {right}", quoted(other)));
            None
        }
    }
}

/// Flows between two outsides never pass an enforcer, so such a rule is a misunderstanding.
fn refuse_outside_to_outside(from: &[(usize, End)], to: &[(usize, End)], faults: &mut Faults<'_>) {
    let is_outside = |(_, end): &&(usize, End)| matches!(end, End::Outside(_));
    if let (Some((at, _)), Some(_)) = (from.iter().find(is_outside), to.iter().find(is_outside)) {
        let remedy = "one end must be a [[workload]]: split the rule";
        faults.wrong(*at, format!("this rule goes from an [[outside]] to an [[outside]]; {remedy}"));
    }
}

/// `ports` of an outside are those dialled there; for whoever dials in they would be its random source ports.
fn refuse_source_ports(from: &[(usize, End)], outsides: &Outsides, faults: &mut Faults<'_>) {
    for (at, end) in from {
        let End::Outside(position) = end else { continue };
        let outside = usize::try_from(*position).ok().and_then(|i| outsides.list.get(i));
        if let Some(outside) = outside.filter(|o| !o.ports.is_all()) {
            let limited = format!("\"{}\" is limited to ports dialled there, so it cannot dial in", outside.name);
            faults.wrong(*at, format!("{limited}; name an [[outside]] without ports, and give the rule ports"));
        }
    }
}
