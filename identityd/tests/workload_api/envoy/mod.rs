//! A real Envoy that has its certificate and its trust from SDS, and demands certificates of its clients.

mod pair;

use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::endpoint::{ENTITLED, Endpoint, LEAF_TTL, until};
use crate::others::envoy;
use crate::program::{Program, bytes, own_exe};
use crate::x509::{certificates, openssl, the_one};

const GREETING: &str = "greetings from envoy";

/// A secret of ours, by its name.
fn secret(name: &str) -> String {
    format!(
        "{{name: \"{name}\", sds_config: {{resource_api_version: V3, api_config_source: {{api_type: GRPC, \
         transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: bonafide}}}}]}}}}}}"
    )
}

/// Greets whoever has a certificate.
fn greeter(port: u16, names: [&str; 2]) -> String {
    let greets = format!(
        r#"
      - name: envoy.filters.network.direct_response
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config
          response: {{inline_string: "{GREETING}"}}"#
    );
    listener(port, names, &greets)
}

/// One listener; `names` are of its certificate and of whom it trusts.
fn listener(port: u16, [certificate, trusted]: [&str; 2], filter: &str) -> String {
    format!(
        r#"
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{}]
            validation_context_sds_secret_config: {}
      filters:{filter}
"#,
        secret(certificate),
        secret(trusted)
    )
}

fn config(socket: &Path, listeners: &str, clusters: &str) -> String {
    format!(
        r#"node: {{id: edge, cluster: edge}}
static_resources:
  listeners:{listeners}
  clusters:{clusters}
  - name: bonafide
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: bonafide
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: "{}"}}}}}}}}]}}]
"#,
        socket.display()
    )
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Its files are called by `name`.
fn start(endpoint: &Endpoint, name: &str, listeners: &str, clusters: &str) -> Child {
    let file = endpoint.dir.path().join(format!("{name}.yaml"));
    std::fs::write(&file, config(&endpoint.socket(), listeners, clusters)).unwrap();
    let log = std::fs::File::create(endpoint.dir.path().join(format!("{name}.log"))).unwrap();
    Command::new(envoy())
        .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "info", "-c"])
        .arg(file)
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What a client that shows these files hears, and the serial of the certificate that it saw.
fn meets(dir: &Path, port: u16, shows: &[&str]) -> (bool, String) {
    let to = format!("127.0.0.1:{port}");
    let mut command = std::process::Command::new("openssl");
    let common =
        ["s_client", "-connect", &to, "-CAfile", "root0.pem", "-verify_return_error", "-no_check_time", "-showcerts"];
    let output =
        command.args(common).args(shows).arg("-ign_eof").current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let certificate = said.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap_or_default();
    (said.contains(GREETING), certificate.split("-----END").next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_terminates_mutual_tls_with_what_sds_gives_it() {
    let policy = format!(
        "mode = \"observe\"\n[[workload]]\nname = \"edge/envoy\"\nexe = \"{}\"\n{ENTITLED}\n\
         [[workload]]\nname = \"shop/web\"\nexe = \"{}\"\n{ENTITLED}\n",
        envoy().display(),
        own_exe()
    );
    let endpoint = Endpoint::with(&policy).await;
    let mut client = Program::start(&endpoint.socket());
    let said = client.asked("svids").await;
    let (svid, files) = (the_one(&said), tempfile::tempdir().unwrap());
    write(files.path(), "chain", &certificates(&bytes(&svid["chain"])));
    write(files.path(), "root", &certificates(&bytes(&svid["bundle"])));
    std::fs::write(files.path().join("key.der"), bytes(&svid["key"])).unwrap();
    openssl(files.path(), &["pkey", "-inform", "der", "-in", "key.der", "-out", "key.pem"]);

    let names =
        [["default", "ROOTCA"], ["spiffe://example.org/edge/envoy", "spiffe://example.org"], ["default", "ALL"]];
    let ports = names.map(|_| free_port());
    let listeners: String = ports.iter().zip(names).map(|(port, names)| greeter(*port, names)).collect();
    let mut envoy = start(&endpoint, "envoy", &listeners, "");
    let shows = ["-cert", "chain0.pem", "-key", "key.pem", "-cert_chain", "chain1.pem"];
    for port in ports {
        until("a client with a certificate is greeted", || {
            assert!(envoy.try_wait().unwrap().is_none(), "envoy ended: {}", log(&endpoint, "envoy"));
            meets(files.path(), port, &shows).0
        })
        .await;
        assert!(!meets(files.path(), port, &[]).0, "a client without one is not");
    }

    let before = meets(files.path(), ports[0], &shows).1;
    endpoint.travel(LEAF_TTL * 3 / 4);
    until("its certificate is renewed under way", || {
        let (greeted, now) = meets(files.path(), ports[0], &shows);
        greeted && now != before && !now.is_empty()
    })
    .await;
    envoy.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_without_workload_api_gets_no_secret_and_one_that_loses_it_none_any_more() {
    let policy = |entitled: &str| {
        format!(
            "mode = \"observe\"\n[[workload]]\nname = \"edge/envoy\"\nexe = \"{}\"\n{entitled}\n",
            envoy().display()
        )
    };
    let endpoint = Endpoint::with(&policy("")).await;
    let port = free_port();
    let mut envoy = start(&endpoint, "envoy", &greeter(port, ["default", "ROOTCA"]), "");
    let refused = || log(&endpoint, "envoy").matches("closed: 7, no%20identity%20issued").count();
    until("it is refused, and comes again", || {
        assert!(envoy.try_wait().unwrap().is_none(), "envoy ended: {}", log(&endpoint, "envoy"));
        refused() >= 2
    })
    .await;
    assert_eq!(endpoint.issued().await, 0);
    assert!(certificate_at(port).is_none(), "it has a certificate all the same");

    endpoint.set_policy(&policy(ENTITLED));
    until("it has what it is entitled to", || certificate_at(port).is_some()).await;
    let before = refused();
    endpoint.set_policy(&policy(""));
    until("its stream ends, and no other is opened", || refused() > before + 1).await;
    assert_eq!(endpoint.issued().await, 1);
    envoy.kill().await.unwrap();
}

/// The certificate that is shown there, if one is.
fn certificate_at(port: u16) -> Option<String> {
    let to = format!("127.0.0.1:{port}");
    let mut command = std::process::Command::new("openssl");
    let output = command.args(["s_client", "-connect", &to]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let certificate = said.split("-----BEGIN CERTIFICATE-----").nth(1)?;
    certificate.split("-----END").next().map(str::to_owned)
}

fn log(endpoint: &Endpoint, name: &str) -> String {
    std::fs::read_to_string(endpoint.dir.path().join(format!("{name}.log"))).unwrap()
}

fn write(dir: &Path, name: &str, ders: &[rustls::pki_types::CertificateDer<'_>]) {
    for (n, der) in ders.iter().enumerate() {
        let (from, to) = (format!("{name}{n}.der"), format!("{name}{n}.pem"));
        std::fs::write(dir.join(&from), der).unwrap();
        openssl(dir, &["x509", "-inform", "der", "-in", &from, "-out", &to]);
    }
}
