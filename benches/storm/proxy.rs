//! What stands between an agent and Buildkite: it counts the requests, and does with some of them what a network does.
//!
//! The contents of artifacts pass it too, up and down: in Buildkite's answers its own address stands in the place of the servers'.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
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

impl Mishap {
    /// Whether there is no answer, and no end of the connection either.
    pub(crate) fn is_endless(self) -> bool {
        matches!(self, Self::Hangs | Self::HangsAfter)
    }
}

/// What has come by, and what is still to happen.
struct Course {
    /// The number of requests since the last mishap.
    requests: usize,
    /// Each happens to the request of that number, from 1, after the mishap before it.
    mishaps: VecDeque<(usize, Mishap)>,
    /// Whether this does not happen to a request with this first line, but to the next one.
    spares: fn(Mishap, &str) -> bool,
    /// The requests' first lines.
    lines: Vec<String>,
    /// The lines of those to which something has happened.
    hit: Vec<String>,
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
    /// Where Buildkite keeps the artifacts.
    files: String,
    course: Mutex<Course>,
    /// Ends the job that sent it.
    kill: Box<dyn Fn() + Send + Sync>,
    is_closed: Mutex<bool>,
    closed: Condvar,
}

impl Proxy {
    /// One in which these happen, one after the other: to the `nth` request, from 1, after the one before, or to the first one after
    /// that which nothing `spares`. `kill` ends the job, and returns when it is gone. Buildkite keeps the artifacts at `files`: `HOST:PORT`.
    pub(crate) fn start(
        mishaps: &[(usize, Mishap)],
        files: &str,
        spares: fn(Mishap, &str) -> bool,
        kill: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            server: Mutex::default(),
            files: files.to_owned(),
            course: Mutex::new(Course {
                requests: 0,
                mishaps: mishaps.iter().copied().collect(),
                spares,
                lines: Vec::new(),
                hit: Vec::new(),
            }),
            kill: Box::new(kill),
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

    /// How many requests there were since the last mishap.
    pub(crate) fn requests(&self) -> usize {
        self.shared.course.lock().unwrap().requests
    }

    /// The first lines of the requests to which something has happened.
    pub(crate) fn hit(&self) -> Vec<String> {
        self.shared.course.lock().unwrap().hit.clone()
    }

    /// The requests' first lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.shared.course.lock().unwrap().lines.clone()
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
        let mishap = self.course.lock().unwrap().next(&line);
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
        let answer = self.forward(&line, &request)?;
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
    fn forward(&self, line: &str, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let buildkite = self.server.lock().unwrap().clone().unwrap_or_default();
        let is_file = line.starts_with("GET /") && !line.starts_with("GET /v3/");
        let mut server = TcpStream::connect(if is_file { &self.files } else { &buildkite })?;
        server.write_all(request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        if !is_file {
            let here = self.address.to_string();
            for address in [&buildkite, &self.files] {
                replace(&mut answer, address.as_bytes(), here.as_bytes());
            }
        }
        Ok(answer)
    }

    fn wait_for_the_end(&self) {
        let closed = self.is_closed.lock().unwrap();
        drop(self.closed.wait_while(closed, |closed| !*closed).unwrap());
    }
}

impl Course {
    /// Counts a request, and gives what happens to it.
    fn next(&mut self, line: &str) -> Option<Mishap> {
        self.requests += 1;
        let number = self.requests;
        let is_due = self
            .mishaps
            .front()
            .is_some_and(|(nth, it)| *nth <= number && !(self.spares)(*it, line));
        let due = is_due.then(|| self.mishaps.pop_front()).flatten();
        let mishap = due.map(|(_, mishap)| mishap);
        let noted = mishap.map(|it| format!(" <- {it:?}")).unwrap_or_default();
        self.lines.push(format!("{number} {line}{noted}"));
        if mishap.is_some() {
            self.hit.push(line.to_owned());
            self.requests = 0;
        }
        mishap
    }
}

/// Puts one address in the place of another in an answer, whose length stays.
fn replace(answer: &mut [u8], address: &[u8], by: &[u8]) {
    assert_eq!(address.len(), by.len(), "the ports have as many digits");
    for at in 0..(answer.len() + 1).saturating_sub(address.len()) {
        let part = &mut answer[at..at + address.len()];
        if *part == *address {
            part.copy_from_slice(by);
        }
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
