//! The maps of an identityd that runs: how full they are.

use std::collections::{BTreeMap, HashSet};
use std::io;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use crate::kernel::Counters;

/// More than any of them holds.
const ENTRIES_MAX: usize = 4 << 20;

/// The maps of one identityd.
#[derive(Debug)]
pub struct Maps(BTreeMap<String, MapHandle>);

impl Maps {
    /// Those that this process has open.
    ///
    /// # Errors
    /// It is gone, or this is not root.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut maps = BTreeMap::new();
        for fd in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // It may have closed one of them meanwhile.
            let Ok(said) = std::fs::read_to_string(fd?.path()) else { continue };
            let Some(id) = said.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
            let map = MapHandle::from_map_id(id.trim().parse().map_err(io::Error::other)?).map_err(io::Error::other)?;
            maps.insert(map.name().to_string_lossy().into_owned(), map);
        }
        Ok(Self(maps))
    }

    /// How many entries the map of this name has.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn entries(&self, name: &str) -> io::Result<usize> {
        // Whoever reads a map while it changes may begin again, and meets entries twice.
        let all: HashSet<Vec<u8>> = self.map(name)?.keys().take(ENTRIES_MAX).collect();
        Ok(all.len())
    }

    /// How many events found no room in the kernel so far.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn lost(&self) -> io::Result<u64> {
        let value = self.map("counters")?.lookup(&[0; 4], MapFlags::ANY).map_err(io::Error::other)?;
        let counters = value.as_deref().and_then(Counters::read);
        counters.map(|counters| counters.lost).ok_or_else(|| io::Error::other("these are no counters"))
    }

    fn map(&self, name: &str) -> io::Result<&MapHandle> {
        self.0.get(name).ok_or_else(|| io::Error::other(format!("there is no map `{name}`")))
    }
}
