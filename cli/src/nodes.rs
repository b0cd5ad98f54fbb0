//! The histories of other nodes, asked for over SSH: by whom, and whether they may, is decided by what the operator has already.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use bonafide_proto::edge::EdgeCount;

use crate::exit::Failure;
use crate::flows::Tail;
use crate::printable::printable;

/// The most nodes that are asked at once.
const NODES_MAX: usize = 256;
/// The longest name of a host, in bytes: a user, and a DNS name.
const HOST_MAX: usize = 320;

/// Which other nodes are asked, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct NodesArgs {
    /// The history of the node on this host, as `ssh` knows it (repeatable)
    #[arg(long = "node", value_name = "HOST", value_parser = host)]
    pub nodes: Vec<String>,
    /// How to get there: the host's name and a command are put behind it
    #[arg(long, value_name = "COMMAND", default_value = SSH)]
    pub ssh: String,
    /// What `bonafide` is called there, with --dir if it is not the usual one
    #[arg(long, value_name = "COMMAND", default_value = BONAFIDE)]
    pub remote: String,
}

/// Nobody is there to type a password, and a host that is away is said to be so.
const SSH: &str = "ssh -o BatchMode=yes -o ConnectTimeout=10";
const BONAFIDE: &str = "bonafide";

impl Default for NodesArgs {
    fn default() -> Self {
        Self { nodes: Vec::new(), ssh: SSH.to_owned(), remote: BONAFIDE.to_owned() }
    }
}

/// No option of `ssh`, and nothing that a terminal would obey.
fn host(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "@.-_:[]%".contains(c));
    match plain && !text.is_empty() && text.len() <= HOST_MAX && !text.starts_with('-') {
        true => Ok(text.to_owned()),
        false => Err("no name of a host, like host-a or root@10.0.0.7".to_owned()),
    }
}

impl NodesArgs {
    /// Asks all of them at once for their history, with these options of `bonafide history`; each edge that one tells is handed
    /// on.
    ///
    /// # Errors
    /// One of them did not tell all of it: a history of which a part is missing looks like one in which less happened.
    pub(crate) fn told(
        &self,
        options: &str,
        mut each: impl FnMut(EdgeCount) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.nodes.len() > NODES_MAX {
            return Err(Failure::BadInput(format!("at most {NODES_MAX} nodes are asked at once")));
        }
        let asked: Vec<Asked> = self.nodes.iter().map(|node| self.ask(node, options)).collect::<Result<_, _>>()?;
        asked.into_iter().try_for_each(|node| node.tells(&mut each))
    }

    fn ask(&self, node: &str, options: &str) -> Result<Asked, Failure> {
        let mut words = self.ssh.split_whitespace();
        let program = words.next().ok_or_else(|| Failure::BadInput("--ssh names no command".to_owned()))?;
        let mut command = Command::new(program);
        command.args(words).arg(node).arg(format!("{} history --format jsonl{options}", self.remote));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let child = command.spawn();
        let child = child.map_err(|e| Failure::Failed(printable(&format!("{program}: {e}")).into_owned()))?;
        Ok(Asked { node: node.to_owned(), child })
    }
}

/// A node that was asked.
#[derive(Debug)]
struct Asked {
    node: String,
    child: Child,
}

impl Asked {
    fn tells(mut self, each: &mut impl FnMut(EdgeCount) -> Result<(), Failure>) -> Result<(), Failure> {
        let node = self.node.clone();
        let failed = |why: &str| Failure::Failed(printable(&format!("{node}: {why}")).into_owned());
        let out = self.child.stdout.take().ok_or_else(|| failed("it has no output"))?;
        let mut told = Tail::of(File::from(OwnedFd::from(out)));
        loop {
            let lines = told.read().map_err(|e| failed(&e.to_string()))?;
            if lines.is_empty() {
                break;
            }
            for line in lines {
                let edge = line.bytes.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
                each(edge.ok_or_else(|| failed(&format!("line {} of its history is no edge", line.number)))?)?;
            }
        }
        let status = self.child.wait().map_err(|e| failed(&e.to_string()))?;
        match status.success() && told.rest().is_none() {
            true => Ok(()),
            false => Err(failed(&format!("its history was not told whole ({status}); leave it out, or see why"))),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended by itself; who is not read any more is not waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::{allowed, refused};
    use crate::node::Layout;
    use crate::seen::{SeenArgs, counted, edges};
    use bonafide_proto::record::FlowRecord;

    /// By a program in the place of ssh, which tells what is in a file of the host's name.
    fn asked(hosts: &[(&str, &str)], since: Option<&str>) -> Result<usize, String> {
        let dir = tempfile::tempdir().unwrap();
        let ssh = dir.path().join("ssh");
        for (host, told) in hosts {
            std::fs::write(dir.path().join(host), told).unwrap();
        }
        let script = format!("cd {}; echo \"$2\" >> said; cat $1; exec test \"$1\" != broken\n", dir.path().display());
        std::fs::write(&ssh, script).unwrap();
        let nodes = NodesArgs {
            nodes: hosts.iter().map(|(host, _)| (*host).to_owned()).collect(),
            ssh: format!("/bin/sh {}", ssh.display()),
            remote: "/opt/bonafide --dir /x".to_owned(),
        };
        let args = SeenArgs { nodes, since: since.map(|since| since.parse().unwrap()), ..SeenArgs::default() };
        assert!(!args.is_own() && SeenArgs::default().is_own());
        let edges = edges(&args, &Layout::new(dir.path())).map_err(|e| e.to_string())?;
        let said = std::fs::read_to_string(dir.path().join("said")).unwrap();
        let since = since.map(|since| format!(" --since {since}")).unwrap_or_default();
        assert_eq!(said, format!("/opt/bonafide --dir /x history --format jsonl{since}\n").repeat(hosts.len()));
        Ok(edges.len())
    }

    fn edge(of: &FlowRecord) -> String {
        format!("{}\n", serde_json::to_string(&counted(of).unwrap()).unwrap())
    }

    #[test]
    fn the_histories_of_several_nodes_are_one() {
        let [one, two] = [edge(&allowed()), edge(&refused())];
        assert_eq!(asked(&[("a", &one), ("root@b", &format!("{one}{two}"))], None), Ok(2));
        assert_eq!(asked(&[("a", &one)], Some("2100-01-01T00:00:00Z")), Ok(0));
    }

    #[test]
    fn a_node_that_does_not_tell_all_is_a_failure_by_name() {
        let one = edge(&allowed());
        for (told, said) in [
            (("broken", &*one), "broken: its history was not told whole (exit status: 1)"),
            (("a", "rubbish\n"), "a: line 1 of its history is no edge"),
            (("a", one.trim_end()), "a: its history was not told whole"),
        ] {
            let refused = asked(&[("fine", &one), told], None).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn what_is_no_host_is_not_handed_to_ssh() {
        for wrong in ["", "-oProxyCommand=x", "a b", "a;b", "a\u{1b}"] {
            host(wrong).unwrap_err();
        }
        for right in ["host-a", "root@10.0.0.7", "[fd77::1]", "fe80::1%eth0"] {
            assert_eq!(host(right).as_deref(), Ok(right));
        }
    }
}
