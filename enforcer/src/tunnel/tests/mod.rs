//! Both ends of the tunnel against each other, and each end against peers that break the rules.

mod flows;
mod handshakes;
mod leaves;
mod renewals;
mod sniffing;

use tokio::io::{DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::frame::{Accept, FlowId, Open};
use super::testing::Mesh;
use super::{Tunnel, client, server};

fn wire() -> (DuplexStream, DuplexStream) {
    duplex(256 * 1024)
}

async fn loopback(host: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn open() -> Open {
    Open { id: FlowId::random(), client: "[fd77::5]:40000".parse().unwrap(), asked: "[fd77::9]:5432".parse().unwrap() }
}

async fn shake<S>(mesh: &Mesh, near: S, far: S) -> (client::Client<S>, server::Server<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let (web, db, trust) = (mesh.leaf("shop/web"), mesh.leaf("shop/db"), mesh.trust());
    let (c, s) = tokio::join!(client::handshake(near, &web, &trust), server::handshake(far, &db, &trust));
    (c.unwrap(), s.unwrap())
}

/// An open flow over the two ends of a connection: the client's tunnel and the server's.
async fn tunnels<S>(near: S, far: S) -> (Tunnel<S>, Tunnel<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    opened(shake(&Mesh::new("example.org"), near, far).await).await
}

/// The same of a mesh that is known, in memory.
async fn tunnels_in(mesh: &Mesh) -> (Tunnel<DuplexStream>, Tunnel<DuplexStream>) {
    let (near, far) = wire();
    opened(shake(mesh, near, far).await).await
}

async fn opened<S>((c, s): (client::Client<S>, server::Server<S>)) -> (Tunnel<S>, Tunnel<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let accept = async {
        let (_, pending) = s.await_open().await.unwrap();
        pending.accept(Accept { port: 5432 }).await.unwrap()
    };
    let (c, s) = tokio::join!(c.open(open()), accept);
    (c.unwrap().1, s)
}
