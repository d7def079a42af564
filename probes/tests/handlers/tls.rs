//! `httpGet` over HTTPS: any certificate passes, and a TLS peer is as limited as any other.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use vm_watchdog_probes::{Outcome, Scheme};

use crate::support::{Server, assert_fails, assert_fails_by_itself, response};

/// Shows this certificate, whatever it is.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn config(certificate: Vec<u8>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).expect("a key");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_ref().to_vec()));
    let key = provider.key_provider.load_private_key(key).expect("a key");
    let shown = CertifiedKey::new(vec![CertificateDer::from(certificate)], key);
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
    Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(Shows(Arc::new(shown)))))
}

/// A self-signed certificate that has expired, and is for another name and another key.
fn expired() -> Vec<u8> {
    CertificateDer::from_pem_slice(include_bytes!("expired.pem")).expect("a certificate").to_vec()
}

fn accept(stream: TcpStream, config: &Arc<ServerConfig>) -> BufReader<StreamOwned<ServerConnection, TcpStream>> {
    let connection = ServerConnection::new(config.clone()).expect("a connection");
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if !reader.read_line(&mut line).is_ok_and(|count| count > 0) {
            break;
        }
    }
    reader
}

/// Answers once, and closes the connection with or without the alert of TLS.
fn server(config: Arc<ServerConfig>, answer: String, with_alert: bool) -> Server {
    Server::new(move |stream| {
        let mut stream = accept(stream, &config).into_inner();
        let _ = stream.write_all(answer.as_bytes());
        if with_alert {
            stream.conn.send_close_notify();
        }
        let _ = stream.flush();
    })
}

fn get(server: &Server) -> Outcome {
    server.prober(Scheme::Https, "/", &[]).attempt()
}

#[test]
fn any_certificate_passes_with_tls_1_2_and_1_3() {
    let garbage = vec![0x30, 0x03, 0x02, 0x01, 0x01];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for certificate in [expired(), garbage.clone()] {
            let server = server(config(certificate, &[version]), response("200 OK", "ok"), true);
            assert_eq!(get(&server), Outcome::Success, "{:?}", version.version);
        }
    }
}

#[test]
fn the_status_counts_as_over_http() {
    let config = config(expired(), rustls::ALL_VERSIONS);
    let answers = server(config, response("500 Internal Server Error", ""), true);
    assert_eq!(get(&answers), Outcome::Failure("HTTP probe failed with statuscode: 500".to_owned()));
}

#[test]
fn a_server_may_close_without_the_alert_of_tls_after_a_whole_body() {
    let config = config(expired(), rustls::ALL_VERSIONS);
    let answer = "HTTP/1.1 200 OK\r\n\r\nuntil the end".to_owned();
    assert_eq!(get(&server(config.clone(), answer, false)), Outcome::Success);
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ntoo short".to_owned();
    assert_fails(&get(&server(config, answer, false)), "the connection has ended before the body");
}

#[test]
fn a_redirect_may_change_the_scheme() {
    let config = config(expired(), rustls::ALL_VERSIONS);
    let server = Server::new(move |stream| {
        let mut first = [0];
        stream.peek(&mut first).expect("a request");
        let port = stream.local_addr().expect("an address").port();
        let redirect = format!("HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:{port}/\r\n\r\n");
        // The first byte of a TLS handshake.
        if first == [0x16] {
            let mut stream = accept(stream, &config).into_inner();
            let _ = stream.write_all(response("204 No Content", "").as_bytes()).and_then(|()| stream.flush());
        } else {
            let mut stream = stream;
            std::io::Read::read(&mut stream, &mut [0; 1024]).expect("a request");
            let _ = stream.write_all(redirect.as_bytes());
        }
    });
    assert_eq!(server.get("/"), Outcome::Success);
}

#[test]
fn a_server_without_tls_fails() {
    let server = Server::http(|_| response("200 OK", ""));
    let outcome = get(&server);
    assert_fails(&outcome, "HTTP probe failed: GET https://127.0.0.1:");
}

#[test]
fn a_handshake_that_never_ends_times_out() {
    let silent = Server::new(|_stream| thread::sleep(Duration::from_secs(60)));
    silent.times_out(Scheme::Https, &[]);
    // The header of a record of 16 KiB, whose bytes come one by one.
    let slow = Server::new(|mut stream| {
        let _ = stream.write_all(&[0x16, 3, 3, 0x40, 0]);
        while stream.write_all(&[2]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    slow.times_out(Scheme::Https, &[]);
}

#[test]
fn floods_below_http_are_limited() {
    let garbage = Server::new(|mut stream| while stream.write_all(&[0x41; 4096]).is_ok() {});
    assert_fails_by_itself(&get(&garbage));
    // Fragments of a certificate that is 16 MiB long.
    let endless = Server::new(|mut stream| {
        let mut fragment = vec![0x16, 3, 3, 0x40, 0, 11, 0xff, 0xff, 0xff];
        fragment.resize(5 + 0x4000, 0);
        while stream.write_all(&fragment).is_ok() {}
    });
    assert_fails_by_itself(&get(&endless));
    // A TLS server whose header has no end.
    let config = config(expired(), rustls::ALL_VERSIONS);
    let headers = Server::new(move |stream| {
        let mut stream = accept(stream, &config).into_inner();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X: y\r\n").is_ok() {}
    });
    assert_fails(&get(&headers), "the head of the response is longer than 65536 bytes");
}
