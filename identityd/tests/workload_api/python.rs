//! The Python libraries `spiffe` and `spiffe-tls`, which nobody here wrote.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::endpoint::{ENTITLED, Endpoint, PATIENCE};
use crate::others::{installed, python};

/// A node on which this script is `shop/py`, and where the script is.
pub(crate) async fn with_script(text: &str) -> (Endpoint, PathBuf) {
    let dir = tempfile::tempdir().unwrap().keep();
    let script = dir.join("asks.py");
    std::fs::write(&script, text).unwrap();
    let (python, path) = (python().display().to_string(), script.display().to_string());
    let policy = format!(
        "mode = \"observe\"\n[[workload]]\nname = \"shop/py\"\nexe = \"{python}\"\nscript = \"{path}\"\n{ENTITLED}\n"
    );
    (Endpoint::with(&policy).await, script)
}

fn script(endpoint: &Endpoint, script: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(installed().join("bin/python"));
    command.arg(script).args(arguments).kill_on_drop(true);
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", endpoint.socket().display()));
    command
}

pub(crate) async fn output(endpoint: &Endpoint, path: &Path) -> String {
    let run = script(endpoint, path, &[]).output();
    let Output { status, stdout, stderr } = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

const FETCHES: &str = "
from spiffe import WorkloadApiClient, TrustDomain

with WorkloadApiClient() as client:
    svid = client.fetch_x509_svid(timeout=20)
    print(svid.spiffe_id, len(svid.cert_chain))
    bundles = client.fetch_x509_bundles(timeout=20)
    bundle = bundles.get_bundle_for_trust_domain(TrustDomain('example.org'))
    print(len(bundles.bundles), len(bundle.x509_authorities))
    context = client.fetch_x509_context(timeout=20)
    print(context.default_svid.spiffe_id)
";

#[tokio::test(flavor = "multi_thread")]
async fn spiffe_fetches_its_svid_and_bundles() {
    let (endpoint, script) = with_script(FETCHES).await;
    let said = output(&endpoint, &script).await;
    assert_eq!(said, "spiffe://example.org/shop/py 2\n1 1\nspiffe://example.org/shop/py\n");
}

const TOKENS: &str = "
from spiffe import TrustDomain, WorkloadApiClient

with WorkloadApiClient() as client:
    bundles = client.fetch_jwt_bundles(timeout=20)
    bundle = bundles.get_bundle_for_trust_domain(TrustDomain('example.org'))
    svid = client.fetch_jwt_svid(audience={'db', 'api'}, timeout=20)
    print(svid.spiffe_id, sorted(svid.audience))
    print(bundle.get_jwt_authority(__import__('jwt').get_unverified_header(svid.token)['kid']) is not None)
    print(client.validate_jwt_svid(svid.token, 'db', timeout=20).spiffe_id)
    try:
        client.validate_jwt_svid(svid.token, 'other', timeout=20)
    except Exception as refused:
        print('refused')
";

#[tokio::test(flavor = "multi_thread")]
async fn spiffe_fetches_a_token_that_it_accepts_itself() {
    let (endpoint, script) = with_script(TOKENS).await;
    crate::jwt::keys_are_known(&endpoint).await;
    let said = output(&endpoint, &script).await;
    let expected = "spiffe://example.org/shop/py ['api', 'db']\nTrue\nspiffe://example.org/shop/py\nrefused\n";
    assert_eq!(said, expected);
}

/// Serves one connection by mutual TLS, or makes one.
const MEETS: &str = "
import sys
from spiffe import SpiffeId, X509Source
from spiffetls import ClientTlsMode, ListenOptions, ServerTlsMode, dial, listen
from spiffetls.tlsconfig.authorize import authorize_id

peer = authorize_id(SpiffeId('spiffe://example.org/shop/py'))
with X509Source() as source:
    if sys.argv[1] == 'serve':
        listener = listen('127.0.0.1:0', source, ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=peer))
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        connection.do_handshake()
        connection.sendall(b'met ' + connection.recv(100))
        connection.shutdown()
    else:
        connection = dial('127.0.0.1:' + sys.argv[2], source, ClientTlsMode.TLS, peer)
        connection.sendall(b'hello')
        print(connection.recv(100).decode(), flush=True)
";

#[tokio::test(flavor = "multi_thread")]
async fn spiffe_tls_makes_mutual_tls_of_it() {
    let (endpoint, path) = with_script(MEETS).await;
    let mut server = script(&endpoint, &path, &["serve"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let port = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let client = script(&endpoint, &path, &["dial", &port]).output();
    let client = tokio::time::timeout(PATIENCE, client).await.unwrap().unwrap();
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let (said, why) = (String::from_utf8_lossy(&client.stdout), String::from_utf8_lossy(&client.stderr));
    assert_eq!(said, "met hello\n", "{why}");
    assert_eq!(endpoint.issued().await, 1, "both are the same program");
}
