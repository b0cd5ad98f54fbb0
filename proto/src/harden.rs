//! What a process asks of the kernel for itself, once, before it opens anything.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Leaves no core file and no memory to read for others of the same user (prctl(2), `PR_SET_DUMPABLE`): whoever calls it
/// holds private keys. Takes as many file descriptors as the service manager allows: a relayed connection, a node that follows and
/// a process that is looked at hold several. Returns how many; `u64::MAX` is no limit.
///
/// # Errors
/// What the kernel says.
pub fn harden() -> io::Result<u64> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    Ok(most.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::dumpable_behavior;

    #[test]
    fn the_soft_limit_becomes_the_hard_one_and_memory_is_private() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let lower = Rlimit { current: Some(512), maximum: hard };
        setrlimit(Resource::Nofile, lower).unwrap();
        assert_eq!(harden().unwrap(), hard.unwrap_or(u64::MAX));
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((limit.current, limit.maximum), (hard, hard));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
