//! The parts that the test program plays inside a namespace.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bonafide_enforcer::capture::{Backend, Capture, Control, Exemption, Plan, guard, remove_leftovers};
use bonafide_enforcer::sys::dial::{Reserved, connect_from};
use bonafide_enforcer::sys::locality::Locality;
use bonafide_enforcer::sys::{captured, listen, netns, reset};
use bonafide_policy::Mode;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Where the relay listens for local programs, and for others.
const OUTBOUND: u16 = 15_001;
const INBOUND: u16 = 15_006;
/// Where the servers listen.
pub const PORT: u16 = 7000;
const SOON: Duration = Duration::from_secs(3);

type Role = fn(&[String]) -> ExitCode;

pub fn find(name: &str) -> Option<Role> {
    match name {
        "guard" => Some(|args| block_on(guard(args[1].parse().unwrap()))),
        "remove-capture" => Some(|args| block_on(remove_leftovers(args[0].parse().unwrap()))),
        "enforcer" => Some(|args| block_on(enforcer(args.to_vec()))),
        "deliver" => Some(|args| block_on(deliver(args.to_vec()))),
        "server" => Some(|_| block_on(server())),
        "client" => Some(client),
        "holder" => Some(|args| block_on(holder(args[0].clone()))),
        _ => None,
    }
}

fn block_on<E: std::fmt::Display>(role: impl Future<Output = Result<(), E>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    match runtime.block_on(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// `enforcer BACKEND MODE [CGROUP UID TO]`: relays what it captures and obeys a line at a time.
async fn enforcer(args: Vec<String>) -> Result<(), Box<dyn std::error::Error>> {
    // As a daemon that holds keys would be: its guard must start all the same.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    for (port, direction) in [(OUTBOUND, "out"), (INBOUND, "in")] {
        for host in ["127.0.0.1", "::1"] {
            let listener = listen::transparent(SocketAddr::new(host.parse()?, port))?;
            tokio::spawn(accept(listener, direction));
        }
    }
    let control = match &args[2..] {
        [cgroup, uid, to] => vec![Control { cgroup: cgroup.into(), uid: uid.parse()?, to: to.parse()? }],
        _ => Vec::new(),
    };
    let plan = Plan {
        backend: args[0].parse::<Backend>()?,
        mode: mode(&args[1]),
        outbound_port: OUTBOUND,
        inbound_port: INBOUND,
        exempt: Exemption::of_this_process()?,
        control,
    };
    let mut capture = Capture::install(plan).await?;
    say(&format!("ready {}", netns::own()?.0));
    let (send, mut orders) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || std::io::stdin().lock().lines().try_for_each(|line| send.blocking_send(line.unwrap())));
    while let Some(order) = orders.recv().await {
        match order.split_once(' ').unwrap_or((&order, "")) {
            ("switch", to) => capture.switch(mode(to)).await?,
            ("refresh", _) => {
                say(&format!("refreshed {}", capture.refresh().await?));
                continue;
            }
            _ => {
                capture.remove().await?;
                say("done");
                return Ok(());
            }
        }
        say("done");
    }
    // The harness is gone: nothing more to do.
    std::future::pending().await
}

fn mode(text: &str) -> Mode {
    match text {
        "enforce" => Mode::Enforce,
        "shadow" => Mode::Shadow,
        "observe" => Mode::Observe,
        other => panic!("{other:?} is no mode"),
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}

async fn accept(listener: TcpListener, direction: &'static str) {
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            if let Err(e) = relay(stream, peer, direction).await {
                eprintln!("{direction} {peer}: {e}");
            }
        });
    }
}

/// Tells the client what it saw, then stands between it and the server.
async fn relay(mut client: TcpStream, peer: SocketAddr, direction: &str) -> std::io::Result<()> {
    let dialled = client.local_addr()?;
    let original = captured::original_dst(&client)?.map_or("-".to_owned(), |addr| addr.to_string());
    client.write_all(format!("{direction} {dialled} {peer} {original}\n").as_bytes()).await?;
    match dial(peer, dialled).await {
        Ok(mut server) => copy_bidirectional(&mut client, &mut server).await.map(drop),
        Err(e) => {
            reset::reset(client);
            Err(e)
        }
    }
}

async fn dial(peer: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    if to.port() == OUTBOUND || to.port() == INBOUND {
        return Err(std::io::Error::other("that is me"));
    }
    if !Locality.is_local(to.ip())? {
        return connect_from(peer.ip(), to, SOON).await;
    }
    let scope = if let SocketAddr::V6(v6) = peer { v6.scope_id() } else { 0 };
    let reserved = Reserved::bind(peer.ip(), scope)?;
    let local = reserved.local();
    let stream = reserved.connect(to, SOON).await?;
    assert_eq!(stream.local_addr()?, local);
    Ok(stream)
}

/// `deliver SOURCE TO COUNT`: as many deliveries, one after the other, each closed by this side first, so that each
/// leaves its port in TIME-WAIT.
async fn deliver(args: Vec<String>) -> std::io::Result<()> {
    let (source, to) = (args[0].parse().unwrap(), args[1].parse().unwrap());
    for n in 0..args[2].parse().unwrap() {
        let (one, two) = (Reserved::bind(source, 0)?, Reserved::bind(source, 0)?);
        assert_ne!(one.local(), two.local(), "two reservations share a port");
        let mut stream =
            loop_until_free(one, source, to).await.map_err(|e| std::io::Error::other(format!("{n}: {e}")))?;
        stream.shutdown().await?;
        stream.read_to_end(&mut Vec::new()).await?;
    }
    say("done");
    Ok(())
}

async fn loop_until_free(first: Reserved, source: std::net::IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut outcome = first.connect(to, SOON).await;
    for _ in 0..20 {
        match outcome {
            Err(e) if e.kind() == std::io::ErrorKind::AddrNotAvailable => {
                outcome = Reserved::bind(source, 0)?.connect(to, SOON).await;
            }
            other => return other,
        }
    }
    outcome
}

/// Tells each client who it seems to be, then echoes.
async fn server() -> std::io::Result<()> {
    for port in [PORT, PORT + 1] {
        for host in ["0.0.0.0", "::"] {
            let socket =
                Socket::new(Domain::for_address(SocketAddr::new(host.parse().unwrap(), port)), Type::STREAM, None)?;
            if host == "::" {
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(host.parse().unwrap(), port).into())?;
            socket.listen(128)?;
            socket.set_nonblocking(true)?;
            tokio::spawn(serve(TcpListener::from_std(socket.into())?));
        }
    }
    say("ready");
    std::future::pending().await
}

async fn serve(listener: TcpListener) {
    loop {
        let (mut stream, peer) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let _ = stream.write_all(format!("peer {peer}\n").as_bytes()).await;
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

/// `holder TO`: prints what it hears, and says what it is told to.
async fn holder(to: String) -> std::io::Result<()> {
    let stream = TcpStream::connect(&to).await?;
    let (read, mut write) = stream.into_split();
    let (send, mut orders) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || std::io::stdin().lock().lines().try_for_each(|line| send.blocking_send(line.unwrap())));
    let mut heard = tokio::io::BufReader::new(read).lines();
    let said = |line: std::io::Result<Option<String>>| match line {
        Ok(Some(line)) => say(&line),
        Ok(None) => say("closed"),
        Err(e) => say(&format!("error {:?}", e.kind())),
    };
    loop {
        tokio::select! {
            line = heard.next_line() => said(line),
            order = orders.recv() => match order.as_deref().map(|order| order.split_once(' ').unwrap_or((order, ""))) {
                Some(("say", text)) => write.write_all(format!("{text}\n").as_bytes()).await?,
                Some(("try", text)) => {
                    write.write_all(format!("{text}\n").as_bytes()).await?;
                    match tokio::time::timeout(SOON, heard.next_line()).await {
                        Ok(line) => said(line),
                        Err(_) => say("silent"),
                    }
                }
                Some(_) => write.shutdown().await?,
                None => return Ok(()),
            },
        }
    }
}

/// `client TO [mark=N] [device=D] [from=IP]`: says `hello`, prints its own address and all it hears.
fn client(args: &[String]) -> ExitCode {
    let began = Instant::now();
    match talk(args) {
        Ok(heard) => say(heard.trim_end()),
        Err(e) => say(&format!("error {:?} {}", e.kind(), began.elapsed().as_millis())),
    }
    ExitCode::SUCCESS
}

fn talk(args: &[String]) -> std::io::Result<String> {
    let to: SocketAddr = args[0].parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    for option in &args[1..] {
        match option.split_once('=').unwrap() {
            ("mark", mark) => socket.set_mark(mark.parse().unwrap())?,
            ("device", device) => socket.bind_device(Some(device.as_bytes()))?,
            ("from", ip) => socket.bind(&SocketAddr::new(ip.parse().unwrap(), 0).into())?,
            other => panic!("{other:?}"),
        }
    }
    socket.connect_timeout(&to.into(), SOON)?;
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = TcpStream::from_std(socket.into())?;
        let mut heard = format!("local {}\n", stream.local_addr()?);
        stream.write_all(b"hello\n").await?;
        stream.shutdown().await?;
        let mut rest = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut rest)).await??;
        heard += &rest;
        Ok(heard)
    })
}
