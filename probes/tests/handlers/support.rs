//! Servers on threads, and attempts with their time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_watchdog_probes::handlers::{Guest, GuestAgent, Prober};
use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind, Scheme};

/// `timeoutSeconds` of attempts that end by themselves, also on a loaded machine.
const PATIENT_S: u32 = 120;
/// `timeoutSeconds` of attempts that end by their timeout.
const BRIEF_S: u32 = 1;
/// How late such an attempt may end on a loaded machine.
const LATE: Duration = Duration::from_secs(10);

/// A TCP server on the loopback interface.
pub struct Server {
    pub address: SocketAddr,
    /// What the clients have sent, if the server reads requests.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Calls `serve` with each connection, on a thread of its own.
    pub fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::on(IpAddr::from(Ipv4Addr::LOCALHOST), serve)
    }

    pub fn on(ip: IpAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a free port");
        let address = listener.local_addr().expect("the address of the listener");
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        Self { address, requests: Arc::default() }
    }

    /// Reads a request, answers with what `answer` makes of its target, and closes the connection.
    pub fn http(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = requests.clone();
        let server = Self::new(move |mut stream| {
            let request = read_request(&mut stream);
            let target = request.split(' ').nth(1).expect("a target").to_owned();
            log.lock().expect("no panic").push(request);
            // A client that does not need the whole answer may be gone.
            let _ = stream.write_all(answer(&target).as_bytes());
        });
        Self { requests, ..server }
    }

    /// Reads a request and calls `answer` until it fails, which it does when the client is gone.
    pub fn hostile(answer: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::new(move |mut stream| {
            read_request(&mut stream);
            while answer(&mut stream).is_ok() {}
        })
    }

    pub fn last_request(&self) -> String {
        self.requests.lock().expect("no panic").last().expect("a request").clone()
    }

    pub fn get(&self, path: &str) -> Outcome {
        self.get_with(path, &[])
    }

    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Outcome {
        self.prober(Scheme::Http, path, headers).attempt()
    }

    pub fn prober(&self, scheme: Scheme, path: &str, headers: &[(&str, &str)]) -> Prober {
        let (handler, guest) = self.http_get(scheme, path, headers);
        prober(handler, &guest)
    }

    /// A GET request that times out.
    #[track_caller]
    pub fn times_out(&self, scheme: Scheme, headers: &[(&str, &str)]) {
        let (handler, guest) = self.http_get(scheme, "/", headers);
        times_out(&mut brief(handler, &guest));
    }

    fn http_get(&self, scheme: Scheme, path: &str, headers: &[(&str, &str)]) -> (Handler, Guest) {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let handler =
            Handler::HttpGet { scheme, host: None, port: self.address.port(), path: path.to_owned(), headers };
        (handler, Guest { address: Some(self.address.ip().into()), agent: None })
    }
}

fn read_request(stream: &mut impl Read) -> String {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).is_ok_and(|count| count > 0) {}
    request
}

/// A prober whose attempts end by themselves.
pub fn prober(handler: Handler, guest: &Guest) -> Prober {
    within(PATIENT_S, handler, guest)
}

/// A prober whose attempts time out.
pub fn brief(handler: Handler, guest: &Guest) -> Prober {
    within(BRIEF_S, handler, guest)
}

fn within(timeout_s: u32, handler: Handler, guest: &Guest) -> Prober {
    let probe = Probe { timeout_s, ..Probe::new(handler) };
    Prober::new(ProbeKind::Readiness, &probe, guest).expect("a valid probe")
}

/// A response with this status and body.
pub fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A guest agent, or what pretends to be one, on a Unix socket. Serves one client at a time, as QEMU does.
pub struct Agent {
    _folder: TempDir,
    pub agent: Arc<GuestAgent>,
}

impl Agent {
    pub fn new(mut serve: impl FnMut(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("qga.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(&mut serve));
        Self { _folder: folder, agent: Arc::new(GuestAgent::new(path)) }
    }

    /// An agent that answers to each command line with what `answer` returns, after the usual synchronization.
    pub fn answering(answer: impl FnMut(&str) -> String + Send + 'static) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        Self::new(move |stream| serve_commands(stream, b"", &mut *answer.lock().expect("no panic")))
    }

    pub fn guest(&self) -> Guest {
        Guest { address: None, agent: Some(self.agent.clone()) }
    }

    pub fn ping(&self) -> Outcome {
        prober(Handler::GuestAgentPing, &self.guest()).attempt()
    }

    pub fn exec(&self, command: &[&str]) -> Outcome {
        prober(command_of(command), &self.guest()).attempt()
    }

    #[track_caller]
    pub fn ping_times_out(&self) {
        times_out(&mut brief(Handler::GuestAgentPing, &self.guest()));
    }

    #[track_caller]
    pub fn exec_times_out(&self, command: &[&str]) {
        times_out(&mut brief(command_of(command), &self.guest()));
    }
}

pub fn command_of(words: &[&str]) -> Handler {
    Handler::Exec { command: words.iter().map(|word| word.to_string()).collect() }
}

/// Serves a client until it is gone. Sends `first` before anything else.
pub fn serve_commands(mut stream: UnixStream, first: &[u8], answer: &mut dyn FnMut(&str) -> String) {
    let _ = stream.write_all(first);
    let mut reader = BufReader::new(stream.try_clone().expect("a second descriptor"));
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let command = line.strip_prefix(b"\xff").unwrap_or(&line);
        let value: serde_json::Value = serde_json::from_slice(command).expect("a command is JSON");
        let reply = match value["execute"].as_str() {
            Some("guest-sync-delimited") => {
                assert_eq!(line[0], 0xff, "the delimiter comes first");
                [b"\xff".as_slice(), format!("{{\"return\": {}}}\n", value["arguments"]["id"]).as_bytes()].concat()
            }
            _ => (answer(std::str::from_utf8(command).expect("UTF-8").trim_end()) + "\n").into_bytes(),
        };
        if stream.write_all(&reply).is_err() {
            break;
        }
        line.clear();
    }
}

/// Runs an attempt that times out: never early, and not much later.
#[track_caller]
pub fn times_out(prober: &mut Prober) {
    let start = Instant::now();
    let outcome = prober.attempt();
    let took = start.elapsed();
    assert_fails(&outcome, "timed out after 1s");
    assert!(took >= prober.timeout(), "{outcome:?} came after {took:?}");
    assert!(took <= prober.timeout() + LATE, "{outcome:?} took {took:?}");
}

#[track_caller]
pub fn assert_fails(outcome: &Outcome, message: &str) {
    assert!(matches!(outcome, Outcome::Failure(text) if text.contains(message)), "{outcome:?}, not {message:?}");
    assert!(outcome.to_string().chars().count() < 1000, "a guest has written most of it: {outcome:?}");
}

/// A failure that is not a timeout: the attempt ended by a limit, or at an answer.
#[track_caller]
pub fn assert_fails_by_itself(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Failure(text) if !text.contains("timed out")), "{outcome:?}");
}
