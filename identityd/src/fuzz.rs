//! Fuzz targets for everything that reads what a process or a runtime may have chosen: no panic, no endless loop, and what
//! each parser promises. `cargo test` gives each two seconds; ARCHITECTURE.md says how to give one longer.

use std::os::unix::ffi::OsStrExt as _;

use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::taint::Taint;

use crate::container::rootless;
use crate::parse::cgroup::{Placement, Tree, seats};
use crate::parse::cmdline::arguments;
use crate::parse::container_id::candidates;
use crate::parse::environ;
use crate::parse::grammar::Grammar;
use crate::parse::interpreter::{Named, interpreter};
use crate::parse::layout::{Layout, Signs};
use crate::parse::maps::Mapping;
use crate::parse::stat::Stat;
use crate::parse::status::{Owner, may_rewrite_exe, traced};
use crate::parse::{cgroup_mounts, mountinfo};
use crate::refuse::shown;
use crate::script::printable;
use crate::sys::glance::pids;
use crate::sys::lines::{self, Stopped};
use crate::sys::regular::inside;
use crate::sys::walk::socket_inode;

/// Seeds are slices here.
macro_rules! fuzz {
    ($seeds:expr, $property:expr) => {{
        let seeds: &[&[u8]] = $seeds;
        bonafide_fuzz::fuzz!(seeds, $property);
    }};
}

mod kernel;
mod runtimes;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const CGROUPS: &[&[u8]] = &[
    b"0::/system.slice/nginx.service\n",
    b"0::/system.slice/system-getty.slice/getty@tty1.service/sub\n",
    b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service (deleted)\n",
    b"12:cpu,cpuacct:/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n1:name=systemd:/system.slice/docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n0::/\n",
    b"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n",
    b"0::/system.slice:docker:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n",
    b"0::/../../x.service\n1:name=systemd:/a.service\n0::/b.service\n",
    b"0::/default/my-container\n",
];

#[test]
fn cgroups() {
    fuzz!(CGROUPS, |file| {
        let Placement { cgroup, unit } = Placement::parse(file);
        if let Evidence::Known(path) = &cgroup {
            assert!(path.starts_with('/') && !path.bytes().any(|b| b.is_ascii_control()), "{path:?}");
            assert!(path.split('/').all(|part| part != ".."), "{path:?}");
        }
        if let Evidence::Known(unit) = unit {
            assert!(!unit.name.contains('/') && unit.name.contains('.'), "{unit:?}");
            assert!(unit.seat.path.ends_with(&unit.name), "{unit:?}");
            let lines = std::str::from_utf8(file).unwrap();
            assert!(lines.contains(&unit.name), "{unit:?} is not in the file");
        }
    });
}

#[test]
fn container_ids() {
    fuzz!(CGROUPS, |file| {
        let Ok(found) = candidates(file, &["default", "k8s.io"]) else { return };
        assert!(found.len() <= 4);
        for candidate in found {
            assert!(candidate.id.len() <= 76 && !candidate.id.contains('/'), "{candidate:?}");
            assert!(!candidate.seats.is_empty(), "{candidate:?}");
            for seat in &candidate.seats {
                assert!(seat.path.starts_with('/') && seat.path.contains(&candidate.id), "{candidate:?}");
            }
        }
    });
}

/// What is read of a tree of version 1 is what stands there.
#[test]
fn cgroup_seats() {
    fuzz!(CGROUPS, |file| {
        let Ok(seats) = seats(file) else { return };
        let text = std::str::from_utf8(file).unwrap();
        for seat in seats {
            let tree = match &seat.tree {
                Tree::V2 => "",
                Tree::V1(controllers) => controllers,
            };
            assert!(text.contains(&format!(":{tree}:{}", seat.path)), "{seat:?}");
        }
    });
}

const MOUNTS: &[&[u8]] = &[
    b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
    b"67 44 0:39 / /x\\040y rw,relatime shared:1 master:2 - overlay overlay rw,lowerdir=/l\n",
    b"32 31 0:28 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n",
    b"33 31 0:29 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpu\n",
    b"34 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
];

#[test]
fn mounts() {
    fuzz!(MOUNTS, |text| {
        let lines = text.split(|b| *b == b'\n').count();
        assert!(mountinfo::devices(text, "overlay").count() <= lines);
        for point in mountinfo::whole(text, "overlay") {
            assert!(point.as_os_str().as_bytes().len() <= text.len());
        }
        for mount in cgroup_mounts::cgroups(text) {
            assert!(!mount.root.contains('\\') && !mount.point.contains('\\'), "{mount:?}");
            let written = std::str::from_utf8(mount.point.as_bytes()).unwrap();
            assert!(text.windows(written.len().max(1)).any(|part| part == written.as_bytes()) || written.is_empty());
        }
    });
}

const STAT_TAIL: &[u8] = b") S 1 2 3 0 -1 4194560 8 9 10 11 12 13 14 15 20 0 1 0 987654 1000 77 18446744073709551615\n";

#[test]
fn stat() {
    fuzz!(
        &[
            b"42 (bash) S 1 2 3 0 -1 4194560 8 9 10 11 12 13 14 15 20 0 1 0 987654 1000 77 18446744073709551615\n",
            b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 2 0 0\n",
            b"7 (a) Z 1 (b\n) X 1 2 3 0 -1 4 8 9 10 11 12 13 14 15 20 0 1 0 5 6 7\n",
        ],
        |line| {
            let read = Stat::parse(line);
            assert!(read.is_none() || line.contains(&b')'));
            let _ = Layout::parse(line);
            // Whatever a process calls itself, it moves nothing.
            let named = Stat::parse(&[b"42 (".as_slice(), line, STAT_TAIL].concat());
            assert_eq!(named, Some(Stat { state: b'S', kernel_thread: false, start_ticks: 987_654 }));
        }
    );
}

#[test]
fn status() {
    fuzz!(
        &[
            b"Name:\tnginx\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n",
            b"Name:\tCapEff:\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000200000\n",
            b"Name:\tUid:\t0\t0\t0\t0\nUid:\t1\t4294967295\t3\t4\nGid:\t5\t6\t7\t8\n",
            b"Name:\tTracerPid:\t0\nTracerPid:\t4711\nUid:\t0\t0\t0\t0\nVmExe:\t       8 kB\nVmLib:\t    1640 kB\n",
        ],
        |status| {
            let _ = (Signs::parse(status), may_rewrite_exe(status));
            if let (Some(uids), Some(owner)) = (rootless::uids(status), Owner::parse(status)) {
                assert!(uids.len() == 4 && uids[1] == owner.uid, "{uids:?}");
            }
            if let (Some(traced), Some(signs)) = (traced(status), Signs::parse(status)) {
                assert_eq!(traced, signs.tracer != 0);
            }
            // The kernel escapes newlines in a name.
            let name: Vec<u8> = status.iter().copied().filter(|b| *b != b'\n').collect();
            let file = [b"Name:\t".as_slice(), &name, b"\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"].concat();
            assert_eq!(Owner::parse(&file), Some(Owner { uid: 2, gid: 6 }));
            assert_eq!(rootless::uids(&file), Some(vec![1, 2, 3, 4]));
            let file = [b"Name:\t".as_slice(), &name, b"\nTracerPid:\t7\nVmExe:\t    12 kB\n"].concat();
            assert_eq!(Signs::parse(&file), Some(Signs { tracer: 7, code: [Some(12), None] }));
            assert_eq!(traced(&file), Some(true));
            let file = [b"Name:\t".as_slice(), &name, b"\nCapEff:\t0000010000000000\n"].concat();
            assert_eq!(may_rewrite_exe(&file), Some(true));
        }
    );
}

const CMDLINES: &[&[u8]] = &[
    b"/usr/bin/python3\0-u\0-X\0dev\0/srv/app.py\0--port\08080\0",
    b"python3\0-c\0import os\0x\0",
    b"python3\0-m\0http.server\0",
    b"java\0-cp\0/a.jar:/b.jar\0-Dx=y\0-jar\0app.jar\0",
    b"node\0--require\0./x.js\0server.js\0",
    b"bash\0-euo\0pipefail\0run.sh\0",
    b"perl\0-Ilib\0-e\0print 1\0",
    b"ruby\0--\0-x\0",
    b"ruby\0-W0\0-Ku\0--disable=gems\0-e\0p 1\0",
    b"zsh\0-eo\0pipefail\0-c\0exit\0x\0",
    b"lua5.4\0-W\0app.lua\0-l\0",
    b"lua\0-e\0x=1\0",
    b"tclsh\0-encoding\0utf-8\0app.tcl\0x\0",
    b"busybox\0sh\0-c\0--\0exit\0",
    b"deno\0run\0-A\0app.ts\0",
    b"php8.2\0-d\0a=1\0-f\0app.php\0",
    b"gawk\0-v\0a=b\0--file=app.awk\0",
    b"\0\0\0",
    b"no end",
];

const INTERPRETERS: [&str; 14] =
    ["python3", "bash", "zsh", "sh", "perl", "ruby", "node", "java", "awk", "busybox", "deno", "php", "lua", "tclsh"];

#[test]
fn command_lines() {
    fuzz!(CMDLINES, |bytes| {
        let whole = arguments(bytes, true);
        let joined = whole.join(&0);
        assert!(joined == bytes || [joined.as_slice(), b"\0"].concat() == bytes, "{whole:?}");
        assert!(whole.iter().all(|argument| !argument.contains(&0)));
        let cut = arguments(bytes, false);
        assert!(whole.starts_with(&cut) && whole.len() - cut.len() <= 1, "{whole:?} cut to {cut:?}");
        for program in INTERPRETERS {
            let program = program.as_bytes();
            let known = interpreter(program, &whole, true).map(|i| i.code);
            if let Some(Named::Script(code) | Named::Inline(code)) = &known {
                assert!(whole.iter().any(|argument| argument.ends_with(code)), "{known:?}");
            }
            // What is told of a part of it is what is told of all of it.
            if let Some(Named::Script(_) | Named::Inline(_) | Named::Stdin) =
                interpreter(program, &cut, false).map(|i| i.code)
            {
                assert_eq!(interpreter(program, &cut, false).map(|i| i.code), known);
            }
        }
    });
}

/// Names that links below `fd` have, and a list of children.
const NUMBERS: &[&[u8]] = &[
    b"socket:[4026531840]",
    b"socket:[18446744073709551615]",
    b"socket:[18446744073709551616]",
    b"/tmp/socket:[7] (deleted)",
    b"4711 4712 4194304 ",
    b"4711 4712 41943",
];

/// A number that was read stands there, in the one spelling that the kernel has.
#[test]
fn numbers() {
    fuzz!(NUMBERS, |text| {
        if let Some(inode) = socket_inode(text) {
            let digits = text[b"socket:[".len()..].trim_ascii_start();
            assert!(digits.ends_with(format!("{inode}]").as_bytes()), "{inode}");
            assert!(digits[..digits.len() - 1].iter().all(u8::is_ascii_digit), "{inode}");
        }
        let children: Vec<u32> = pids(text).collect();
        let listed: Vec<&[u8]> = text.split(|b| *b == b' ').collect();
        assert!(children.len() < listed.len(), "{children:?}");
        // What comes behind the last space changes nothing.
        let more = [text, b"7".as_slice()].concat();
        assert_eq!(pids(&more).collect::<Vec<_>>(), children);
        let written: String = children.iter().map(|pid| format!("{pid} ")).collect();
        assert_eq!(pids(written.as_bytes()).collect::<Vec<_>>(), children);
    });
}

const LINES: &[&[u8]] = &[b"one\ntwo\n\nthree\n", b"\n\n\n\n", b"0123456789abcdef\n", b"no end", b""];

#[test]
fn bounded_lines() {
    const LINE_MAX: usize = 16;
    fuzz!(LINES, |file| {
        for max in [0, 8, 17, 64, 1 << 20] {
            let mut seen = Vec::new();
            let answer = lines::each(file, max, LINE_MAX, |line| {
                assert!(line.len() < LINE_MAX && !line.contains(&b'\n'), "{line:?}");
                seen.extend_from_slice(&[line, b"\n"].concat());
                Ok::<_, ()>(())
            });
            assert!(file.starts_with(&seen) && seen.len() as u64 <= max, "{seen:?}");
            match answer {
                Ok(true) => assert_eq!(seen, file),
                Ok(false) => assert!(file.len() as u64 >= max),
                Err(Stopped::Endless) => assert!(file[seen.len()..].iter().take(LINE_MAX).all(|b| *b != b'\n')),
                Err(Stopped::Unread(_) | Stopped::By(())) => unreachable!("nothing refuses here"),
            }
        }
        let refused = lines::each(file, 1 << 20, LINE_MAX, |_| Err("no"));
        let begins = file.iter().take(LINE_MAX).any(|b| *b == b'\n');
        assert_eq!(begins, matches!(refused, Err(Stopped::By("no"))));
    });
}

const ACCOUNTS: &[&[u8]] = &[
    b"root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n",
    b"ann:100000:65536\nbob:165536:65536\n1000:300000:5\nann:broken\n",
    b"1000:4294967295:4294967295\n1000::\n1000:1:2:3\n",
    b":x:1000:\nann:x:01000:\n",
];

/// `/etc/passwd` and `/etc/subuid`: nobody is given what no line of theirs gives.
#[test]
fn users() {
    fuzz!(ACCOUNTS, |file| {
        let Ok(text) = std::str::from_utf8(file) else { return };
        if let Some(name) = rootless::name(text, 1000) {
            assert!(text.lines().any(|line| line.split(':').next() == Some(name.as_str())), "{name:?}");
        }
        let ranges = rootless::ranges(text, 1000, Some("ann"));
        let owned = |line: &&str| ["ann", "1000"].contains(&line.split(':').next().unwrap());
        assert!(ranges.len() <= text.lines().filter(owned).count(), "{ranges:?}");
        for (first, count) in ranges {
            let (from, end) = (u64::from(first), u64::from(first) + u64::from(count));
            for uid in [0, first.saturating_sub(1), first, first.saturating_add(count), u32::MAX] {
                assert_eq!(rootless::within(uid, first, count), (from..end).contains(&u64::from(uid)));
            }
        }
        assert_eq!(rootless::ranges(text, 7777, None), rootless::ranges(text, 7777, Some("\n")));
    });
}

const MAPS: &[&[u8]] = &[
    b"55aa00d0b000-55aa00d10000 r-xp 00002000 fe:00 247030                     /usr/bin/cat",
    b"7ffd-7ffe r-xp 00000000 00:00 0                          [vdso]",
    b"00400000-00401000 rwxs 00000000 00:01 1024 /memfd:x\\012y (deleted)",
    b"1-2 ---p 0 0:0 18446744073709551615 /",
];

#[test]
fn mappings() {
    fuzz!(MAPS, |line| {
        if let Some(mapping) = Mapping::parse(line) {
            assert!(line.ends_with(mapping.path), "{mapping:?}");
            assert!(mapping.file.is_none_or(|file| file.ino != 0), "{mapping:?}");
        }
    });
}

const ENVIRONS: &[&[u8]] = &[
    b"PATH=/bin\0LD_PRELOAD=/x.so\0HOME=/\0",
    b"LD_AUDIT=/x.so\0",
    b"NODE_OPTIONS=--require=/x.js --no-warnings\0",
    b"RUBYOPT=-w -r/x\0PERL5OPT=-Mx\0BASH_ENV=x\0",
    b"JAVA_TOOL_OPTIONS=-javaagent:/x.jar @y\0",
];

#[test]
fn environments() {
    fuzz!(ENVIRONS, |bytes| {
        for program in [b"node".as_slice(), b"ruby", b"perl", b"java", b"bash", b"nginx"] {
            let grammar = Grammar::of(program, &[]).map(|(grammar, _)| grammar);
            let found = environ::taints(bytes, grammar);
            assert!(found.is_subset(&[Taint::Preload, Taint::Audit].into()), "{found:?}");
            let names = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
            assert!(!found.contains(&Taint::Audit) || names(b"LD_AUDIT="));
        }
    });
}

const PATHS: &[&[u8]] =
    &[b"/srv/app.py", b"/jail/srv/../x", b"/", b"", b"(unreachable)/x", "/srv/\u{9b}ä".as_bytes(), b"/a\xff\n"];

#[test]
fn paths() {
    fuzz!(PATHS, |path| {
        if let Ok(text) = printable(path, "a path") {
            assert!(text.as_bytes() == path && text.len() <= 4096 && !text.chars().any(char::is_control));
        }
        for root in [b"/".as_slice(), b"/jail", b""] {
            if let Some(below) = inside(path, root) {
                assert!(below.starts_with(b"/") && (path.ends_with(below) || below == b"/"), "{path:?}");
            }
        }
        let shown = shown(path);
        assert!(shown.chars().count() <= 201 && !shown.chars().any(char::is_control), "{shown:?}");
    });
}
