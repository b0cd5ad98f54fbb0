//! Real programs on the hosts: how each starts, and what one asks of another.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::netns::Netns;
use crate::process::{Program, must_run};
use crate::wait::wait_until;
use crate::world::BareWorld;

/// Scripts that come with the scenarios: name and text.
const SCRIPTS: [(&str, &str); 14] = [
    ("echo_server.py", include_str!("../programs/echo_server.py")),
    ("forking.py", include_str!("../programs/forking.py")),
    ("say.py", include_str!("../programs/say.py")),
    ("hold.py", include_str!("../programs/hold.py")),
    ("bulk.py", include_str!("../programs/bulk.py")),
    ("reset.py", include_str!("../programs/reset.py")),
    ("reverse_server.py", include_str!("../programs/reverse_server.py")),
    ("crowd.py", include_str!("../programs/crowd.py")),
    ("udp_echo.py", include_str!("../programs/udp_echo.py")),
    ("seen.py", include_str!("../programs/seen.py")),
    ("changeling.py", include_str!("../programs/changeling.py")),
    ("heir.py", include_str!("../programs/heir.py")),
    ("shop_api.py", include_str!("../programs/shop_api.py")),
    ("become.py", include_str!("../programs/become.py")),
];

/// The file that runs when this program is started, symbolic links resolved.
///
/// # Panics
/// If it is not installed.
#[must_use]
pub fn exe(path: &str) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|e| panic!("{path} is not installed: {e}"))
}

/// The Python interpreter of the system.
#[must_use]
pub fn python() -> PathBuf {
    exe("/usr/bin/python3")
}

/// nginx.
#[must_use]
pub fn nginx_exe() -> PathBuf {
    exe("/usr/sbin/nginx")
}

/// curl.
#[must_use]
pub fn curl_exe() -> PathBuf {
    exe("/usr/bin/curl")
}

/// netcat, OpenBSD's.
#[must_use]
pub fn netcat_exe() -> PathBuf {
    exe("/usr/bin/nc")
}

/// `PostgreSQL`'s server, of whichever version is installed.
#[must_use]
pub fn postgres_exe() -> PathBuf {
    postgres_program("postgres")
}

/// `PostgreSQL`'s client itself; `/usr/bin/psql` is a script that picks a version.
#[must_use]
pub fn psql_exe() -> PathBuf {
    postgres_program("psql")
}

fn postgres_program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("postgresql is installed");
    let found = versions.flatten().map(|v| v.path().join("bin").join(name)).find(|program| program.exists());
    found.unwrap_or_else(|| panic!("{name} of postgresql is not installed"))
}

/// One of the scripts that come with the scenarios, in this world's directory.
///
/// # Panics
/// If there is none of that name.
#[must_use]
pub fn script(world: &BareWorld, name: &str) -> PathBuf {
    script_as(world, name, name)
}

/// The same under another name: to the mesh, another script.
///
/// # Panics
/// If there is none of that name.
#[must_use]
pub fn script_as(world: &BareWorld, name: &str, new_name: &str) -> PathBuf {
    let (_, text) = SCRIPTS.iter().find(|(known, _)| *known == name).expect("one of SCRIPTS");
    let path = world.dir().join(new_name);
    // A process may be interpreting it already.
    if path.exists() { path } else { world.file(new_name, text) }
}

/// A command that interprets a script.
#[must_use]
pub fn interpret(netns: &Netns, script: &Path, args: &[&str]) -> Command {
    let mut command = netns.command(&python().to_string_lossy());
    command.arg(script).args(args);
    command
}

/// A server script, listening on this port.
#[must_use]
pub fn script_server(world: &BareWorld, netns: &Netns, script: &Path, args: &[&str], port: u16) -> Program {
    script_server_by(world, netns, &python(), script, args, port)
}

/// The same, by a Python interpreter of its own.
#[must_use]
pub fn script_server_by(
    world: &BareWorld,
    netns: &Netns,
    interpreter: &Path,
    script: &Path,
    args: &[&str],
    port: u16,
) -> Program {
    let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut command = netns.command(&interpreter.to_string_lossy());
    command.arg(script).args(args);
    serving(Program::start(&name, &mut command, &log(world, &name)), port)
}

/// An echo server, listening on this port.
#[must_use]
pub fn echo_server(world: &BareWorld, netns: &Netns, port: u16) -> Program {
    script_server(world, netns, &script(world, "echo_server.py"), &[&port.to_string()], port)
}

/// An echo server for datagrams, listening on this port.
#[must_use]
pub fn udp_echo_server(world: &BareWorld, netns: &Netns, port: u16) -> Program {
    let mut command = interpret(netns, &script(world, "udp_echo.py"), &[&port.to_string()]);
    let mut server = Program::start("udp_echo.py", &mut command, &log(world, &format!("udp-echo-{port}")));
    server.wait_for_output("ready");
    server
}

/// `say.py`: sends a text to an echo server and prints what comes back.
#[must_use]
pub fn say(netns: &Netns, script: &Path, to: SocketAddr, text: &str) -> Command {
    interpret(netns, script, &[&to.ip().to_string(), &to.port().to_string(), text])
}

/// netcat, sending a text and then half-closing (`-N`); it prints what comes back.
#[must_use]
pub fn netcat(netns: &Netns, to: SocketAddr, text: &str) -> Command {
    let mut command = netns.command("/bin/sh");
    // $0 to $2 are the words that follow.
    command.args(["-c", "printf %s \"$0\" | nc -N -w 15 \"$1\" \"$2\"", text]);
    command.args([to.ip().to_string(), to.port().to_string()]);
    command
}

/// A client that holds a connection to an echo server open.
#[must_use]
pub fn hold(world: &BareWorld, netns: &Netns, to: SocketAddr) -> Program {
    let mut command = interpret(netns, &script(world, "hold.py"), &[&to.ip().to_string(), &to.port().to_string()]);
    let log = log(world, &format!("hold-{}-{}", if to.is_ipv4() { 4 } else { 6 }, to.port()));
    let _ = std::fs::remove_file(&log);
    let mut holder = Program::start("hold.py", &mut command, &log);
    holder.wait_for_output("open");
    holder
}

/// `changeling.py`: holds a connection open until `SIGUSR1` makes it change, or let another program have it.
///
/// # Panics
/// If its connection is not let through.
#[must_use]
pub fn changeling(world: &BareWorld, netns: &Netns, to: SocketAddr, how: &[&str]) -> Program {
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let mut holder = unopened(world, netns, &[&[host.as_str(), &port], how].concat());
    holder.wait_for_output("open");
    holder
}

/// The same, listening on this port for one connection.
#[must_use]
pub fn changeling_server(world: &BareWorld, netns: &Netns, port: u16, how: &[&str]) -> Program {
    serving(unopened(world, netns, &[&["serve", &port.to_string()], how].concat()), port)
}

fn unopened(world: &BareWorld, netns: &Netns, args: &[&str]) -> Program {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let log = log(world, &format!("changeling-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    Program::start("changeling.py", &mut interpret(netns, &script(world, "changeling.py"), args), &log)
}

/// An URL.
#[must_use]
pub fn url(to: SocketAddr) -> String {
    format!("http://{to}/")
}

/// curl, or a copy of it, fetching from a web server.
#[must_use]
pub fn curl(netns: &Netns, exe: &Path, to: SocketAddr) -> Command {
    let mut command = netns.command(&exe.to_string_lossy());
    command.args(["--silent", "--show-error", "--max-time", "15", &url(to)]);
    command
}

/// nginx with its usual master and workers, serving one page.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn nginx(world: &BareWorld, netns: &Netns, port: u16, page: &str) -> Program {
    let program = nginx_with(world, netns, port, |dir| {
        std::fs::write(dir.join("index.html"), page).expect("a file can be written");
        format!("root {};", dir.display())
    });
    serving(program, port)
}

/// The same, handing every request on to another server.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn nginx_before(world: &BareWorld, netns: &Netns, port: u16, upstream: SocketAddr) -> Program {
    serving(nginx_with(world, netns, port, |_| format!("location / {{ proxy_pass http://{upstream}; }}")), port)
}

fn nginx_with(world: &BareWorld, netns: &Netns, port: u16, serves: impl FnOnce(&Path) -> String) -> Program {
    let dir = world.dir().join(format!("nginx-{}-{port}", netns.name()));
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let serves = serves(&dir);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};\n", dir.display()))
        .concat();
    let config = format!(
        "daemon off; worker_processes 2; pid {dir}/pid; error_log stderr notice;\n\
         events {{}}\n\
         http {{ access_log off; {temporary}\n\
         server {{ listen {port}; listen [::]:{port}; {serves} }} }}\n",
        dir = dir.display()
    );
    std::fs::write(dir.join("nginx.conf"), config).expect("a file can be written");
    let mut command = netns.command(&nginx_exe().to_string_lossy());
    command.arg("-c").arg(dir.join("nginx.conf"));
    Program::start("nginx", &mut command, &log(world, "nginx"))
}

/// A `PostgreSQL` cluster with nothing in it, open to everybody who reaches it.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn postgres(world: &BareWorld, netns: &Netns, port: u16) -> Program {
    let dir = world.dir().join("postgres");
    std::fs::create_dir(&dir).expect("a directory can be made");
    let passwd = std::fs::read_to_string("/etc/passwd").expect("there are users");
    let ids = passwd.lines().find_map(|line| line.strip_prefix("postgres:x:")).expect("a user postgres");
    let mut ids = ids.split(':').map(|id| id.parse().ok());
    chown(&dir, ids.next().flatten(), ids.next().flatten()).expect("root may");

    let data = dir.join("data");
    let initdb = postgres_program("initdb");
    let mut init = as_postgres(netns, &initdb);
    must_run(init.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", "-D"]).arg(&data));
    let access = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    std::fs::write(data.join("pg_hba.conf"), access).expect("a file can be written");

    let mut command = as_postgres(netns, &postgres_exe());
    command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=*", "-c", "fsync=off", "-k"]);
    let mut server = Program::start("postgres", command.arg(&dir), &log(world, "postgres"));
    // It listens before it can answer.
    server.wait_for_output("ready to accept connections");
    server
}

fn as_postgres(netns: &Netns, program: &Path) -> Command {
    let mut command = netns.command("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]).arg(program).current_dir("/");
    command
}

/// psql, asking one thing.
#[must_use]
pub fn psql(netns: &Netns, to: SocketAddr, query: &str) -> Command {
    psql_by(netns, &psql_exe(), to, query)
}

/// The same, by a copy of psql.
#[must_use]
pub fn psql_by(netns: &Netns, exe: &Path, to: SocketAddr, query: &str) -> Command {
    let mut command = netns.command(&exe.to_string_lossy());
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    command.args(["-h", &host, "-p", &port, "-U", "postgres", "-X", "-A", "-t", "-c", query]).current_dir("/");
    command
}

/// A Redis server that keeps nothing.
#[must_use]
pub fn redis(world: &BareWorld, netns: &Netns, port: u16) -> Program {
    let mut command = netns.command("/usr/bin/redis-server");
    command.args(["--port", &port.to_string(), "--bind", "*", "-::*", "--protected-mode", "no", "--save", ""]);
    command.arg("--dir").arg(world.dir());
    serving(Program::start("redis-server", &mut command, &log(world, "redis")), port)
}

/// redis-cli, with one command.
#[must_use]
pub fn redis_cli(netns: &Netns, to: SocketAddr, words: &[&str]) -> Command {
    let mut command = netns.command("/usr/bin/redis-cli");
    command.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string()]).args(words);
    command
}

/// An SSH server with a key of its own.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn sshd(world: &BareWorld, netns: &Netns, port: u16) -> Program {
    sshd_with(world, netns, port, &[])
}

/// The same, which lets root in by the keys in this file.
#[must_use]
pub fn sshd_for(world: &BareWorld, netns: &Netns, port: u16, keys: &Path) -> Program {
    let keys = format!("AuthorizedKeysFile={}", keys.display());
    sshd_with(world, netns, port, &["-o", &keys, "-o", "StrictModes=no"])
}

fn sshd_with(world: &BareWorld, netns: &Netns, port: u16, more: &[&str]) -> Program {
    // Where Debian's sshd confines its unprivileged half; its service makes it.
    std::fs::create_dir_all("/run/sshd").expect("root may");
    let key = world.dir().join("ssh_host_key");
    must_run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let mut command = netns.command("/usr/sbin/sshd");
    command
        .args(["-D", "-e", "-f", "/dev/null", "-p", &port.to_string(), "-o", "PidFile=none", "-h"])
        .arg(&key)
        .args(more);
    serving(Program::start("sshd", &mut command, &log(world, "sshd")), port)
}

/// ssh-keyscan, which waits for the server to speak first and prints its key.
#[must_use]
pub fn ssh_keyscan(netns: &Netns, to: SocketAddr) -> Command {
    let mut command = netns.command("/usr/bin/ssh-keyscan");
    command.args(["-t", "ed25519", "-p", &to.port().to_string(), &to.ip().to_string()]);
    command
}

/// Changes a program's file by one byte appended, as a rename into place: same path, other program.
///
/// # Panics
/// If it cannot be written.
pub fn append_one_byte(program: &Path) {
    let mut content = std::fs::read(program).expect("a program can be read");
    content.push(0);
    let new = program.with_extension("new");
    std::fs::write(&new, content).expect("a file can be written");
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("root may");
    std::fs::rename(&new, program).expect("a file can be renamed");
}

fn log(world: &BareWorld, name: &str) -> PathBuf {
    world.dir().join(format!("{name}.log"))
}

/// Waits until a server listens on this port, on both families.
fn serving(mut server: Program, port: u16) -> Program {
    let what = format!("{} to listen on port {port}", server.name());
    wait_until(&what, Duration::from_secs(10), || {
        assert!(server.is_running(), "{} ended early; it printed:\n{}", server.name(), server.output());
        ["tcp", "tcp6"].into_iter().any(|table| listens(server.pid(), table, port))
    });
    server
}

/// Whether a socket listens on this port in the namespace of a process (`proc(5)`, net/tcp: state 0A).
fn listens(pid: u32, table: &str, port: u16) -> bool {
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    sockets.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|address| address.rsplit_once(':')).map(|(_, port)| port);
        local == Some(&format!("{port:04X}")) && fields.nth(1) == Some("0A")
    })
}
