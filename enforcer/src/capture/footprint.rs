//! Whether the loaded rules are still there, whoever else changes rules on this host.
//!
//! `systemctl restart nftables` and the like flush the rules of everybody, and nobody is told. Looking is cheap: where
//! nothing changed on the host, it is one number.

use std::collections::BTreeSet;
use std::io;

use super::error::CaptureError;
use crate::sys::nftables::{Family, Nftables, Rule};

/// How often to look again where somebody changes rules meanwhile.
const ATTEMPTS: u32 = 5;

/// A table in which an engine has rules.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) family: Family,
    pub(super) table: &'static str,
    /// Chains that are ours alone.
    pub(super) own: &'static [&'static str],
    /// Chains of others whose first rule is ours.
    pub(super) hooks: Vec<&'static str>,
}

/// The rules that are ours, as the kernel tells them from all others.
#[derive(Debug)]
pub(super) struct Footprint {
    grounds: Vec<Ground>,
    generation: u32,
    own: BTreeSet<Rule>,
    hooks: BTreeSet<Rule>,
}

impl Footprint {
    /// Right after loading. `None` where rules are missing already: somebody was quicker.
    pub(super) fn take(grounds: Vec<Ground>) -> Result<Option<Self>, CaptureError> {
        let Some(seen) = look(&grounds)? else { return Ok(None) };
        let hooks: BTreeSet<Rule> = seen.hooks.into_iter().filter_map(|chain| chain.into_iter().next()).collect();
        let whole = seen.own.iter().all(|chain| !chain.is_empty())
            && hooks.len() == grounds.iter().map(|ground| ground.hooks.len()).sum::<usize>();
        let own = seen.own.into_iter().flatten().collect();
        Ok(whole.then_some(Self { grounds, generation: seen.generation, own, hooks }))
    }

    /// Is all of it there, and nothing else among it? Somebody else's rules before ours are theirs to answer for.
    pub(super) fn is_intact(&mut self) -> Result<bool, CaptureError> {
        if generation()? == self.generation {
            return Ok(true);
        }
        // Rules that change all the time are looked at in the next round.
        let Some(seen) = look(&self.grounds)? else { return Ok(true) };
        self.generation = seen.generation;
        let hooks: BTreeSet<Rule> = seen.hooks.into_iter().flatten().collect();
        let own: BTreeSet<Rule> = seen.own.into_iter().flatten().collect();
        Ok(own == self.own && hooks.is_superset(&self.hooks))
    }
}

/// The rules of each chain, in the order of the grounds, at one moment.
struct Seen {
    generation: u32,
    own: Vec<Vec<Rule>>,
    hooks: Vec<Vec<Rule>>,
}

/// `None` where they changed each time.
fn look(grounds: &[Ground]) -> Result<Option<Seen>, CaptureError> {
    for _ in 0..ATTEMPTS {
        let seen = look_once(grounds).map_err(failed)?;
        if generation()? == seen.generation {
            return Ok(Some(seen));
        }
    }
    Ok(None)
}

fn look_once(grounds: &[Ground]) -> io::Result<Seen> {
    let mut kernel = Nftables::open()?;
    let mut seen = Seen { generation: kernel.generation()?, own: Vec::new(), hooks: Vec::new() };
    for ground in grounds {
        for chain in ground.own {
            seen.own.push(rules(&mut kernel, ground, chain)?);
        }
        for chain in &ground.hooks {
            seen.hooks.push(rules(&mut kernel, ground, chain)?);
        }
    }
    Ok(seen)
}

fn rules(kernel: &mut Nftables, ground: &Ground, chain: &str) -> io::Result<Vec<Rule>> {
    match kernel.table(ground.family, ground.table)? {
        Some(table) => kernel.rules(table, ground.table, chain),
        None => Ok(Vec::new()),
    }
}

fn generation() -> Result<u32, CaptureError> {
    Nftables::open().and_then(|mut kernel| kernel.generation()).map_err(failed)
}

fn failed(source: io::Error) -> CaptureError {
    CaptureError::Route { doing: "look at the loaded rules".to_owned(), source }
}
