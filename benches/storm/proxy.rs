//! What stands between an agent and Buildkite: it counts the requests, and does with one of them what a network does.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// The job is killed before Buildkite has heard of it.
    KilledBefore,
    /// Buildkite has done it, and the job is killed before it hears of that.
    KilledAfter,
    /// Buildkite has done it, and the connection ends without an answer.
    AnswerLost,
    /// Buildkite does nothing, and answers with 500.
    Answers500,
    /// Buildkite does nothing, and never answers.
    Hangs,
    /// Buildkite has done it, and never answers.
    HangsAfter,
}

/// A running proxy; it ends when this is dropped.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    /// Where Buildkite is, once it is known.
    server: Mutex<Option<String>>,
    requests: AtomicUsize,
    mishap: Option<(usize, Mishap)>,
    /// Ends the job that sent it.
    kill: Box<dyn Fn() + Send + Sync>,
    has_happened: AtomicBool,
    lines: Mutex<Vec<String>>,
    is_closed: Mutex<bool>,
    closed: Condvar,
}

impl Proxy {
    /// One in which this happens to the `nth` request, from 1. `kill` ends the job, and returns when it is gone.
    pub(crate) fn start(
        mishap: Option<(usize, Mishap)>,
        kill: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            server: Mutex::default(),
            requests: AtomicUsize::new(0),
            mishap,
            kill: Box::new(kill),
            has_happened: AtomicBool::new(false),
            lines: Mutex::default(),
            is_closed: Mutex::new(false),
            closed: Condvar::new(),
        });
        let here = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for connection in listener.incoming().flatten() {
                    if *here.is_closed.lock().unwrap() {
                        break;
                    }
                    let here = &here;
                    scope.spawn(move || {
                        // A client that was killed wants no answer.
                        let _ = here.serve(&connection);
                        let _ = connection.shutdown(Shutdown::Both);
                    });
                }
            });
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The endpoint for an agent.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v3", self.shared.address)
    }

    /// Where Buildkite is: `HOST:PORT`.
    pub(crate) fn set_server(&self, server: &str) {
        *self.shared.server.lock().unwrap() = Some(server.to_owned());
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Whether there was such a request.
    pub(crate) fn has_happened(&self) -> bool {
        self.shared.has_happened.load(Ordering::SeqCst)
    }

    /// The requests' first lines.
    pub(crate) fn log(&self) -> String {
        self.shared.lines.lock().unwrap().join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.is_closed.lock().unwrap() = true;
        self.shared.closed.notify_all();
        let _ = TcpStream::connect(self.shared.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Answers one request and closes the connection.
    fn serve(&self, connection: &TcpStream) -> std::io::Result<()> {
        let Some((line, request)) = read_request(connection)? else {
            return Ok(());
        };
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let mishap = match self.mishap {
            Some((nth, mishap)) if nth == number => Some(mishap),
            _ => None,
        };
        let noted = mishap.map(|it| format!(" <- {it:?}")).unwrap_or_default();
        self.lines
            .lock()
            .unwrap()
            .push(format!("{number} {line}{noted}"));
        self.has_happened
            .fetch_or(mishap.is_some(), Ordering::SeqCst);
        match mishap {
            Some(Mishap::KilledBefore) => {
                (self.kill)();
                return Ok(());
            }
            Some(Mishap::Answers500) => {
                let mut client = connection;
                return client.write_all(
                    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
                );
            }
            Some(Mishap::Hangs) => {
                self.wait_for_the_end();
                return Ok(());
            }
            _ => {}
        }
        let answer = self.forward(&request)?;
        match mishap {
            Some(Mishap::KilledAfter) => (self.kill)(),
            Some(Mishap::AnswerLost) => {}
            Some(Mishap::HangsAfter) => self.wait_for_the_end(),
            _ => {
                let mut client = connection;
                client.write_all(&answer)?;
            }
        }
        Ok(())
    }

    /// Buildkite's whole answer.
    fn forward(&self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let server = self.server.lock().unwrap().clone();
        let mut server = TcpStream::connect(server.unwrap_or_default())?;
        server.write_all(request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }

    fn wait_for_the_end(&self) {
        let closed = self.is_closed.lock().unwrap();
        drop(self.closed.wait_while(closed, |closed| !*closed).unwrap());
    }
}

/// Reads a request; gives its first line, and the whole as it is sent on: on a connection that is closed afterwards.
fn read_request(connection: &TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut reader = BufReader::new(connection);
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut head = first.clone();
    let (mut length, mut is_chunked) = (0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or_default();
        }
        is_chunked |= lower.starts_with("transfer-encoding:");
        if line.trim_end().is_empty() {
            break;
        }
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    assert!(
        !is_chunked,
        "{first}: the length of the request is not said"
    );
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    head.push_str("Connection: close\r\n\r\n");
    let mut request = head.into_bytes();
    request.append(&mut body);
    Ok(Some((first.trim_end().to_owned(), request)))
}
