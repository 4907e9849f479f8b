//! A web server of files below a folder, over HTTP: it counts what it is asked for, and what can go wrong with a download does so
//! where a test wants it to.
//!
//! Written on a bare socket: what breaks off in the middle of a body is not to be had from a library that keeps to the protocol.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use percent_encoding::percent_decode_str;

use super::DEADLINE;

/// What goes wrong with a file that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The answer is this status.
    Answers(u16),
    /// The body breaks off in its middle, where the connection is closed.
    BreaksOff,
    /// A byte in the middle of the body is another one.
    IsCorrupted,
    /// Only who gives this login (as the header `Authorization` has it) gets an answer.
    WantsLogin(&'static str),
    /// No byte is answered.
    IsSilent,
    /// Half of the body comes, and no more.
    Stalls,
    /// The body comes in so many pieces, with this pause before each.
    Trickles(u32, Duration),
}

/// A server of files; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Web {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    folder: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Of the path, the part that says which files it is about, and what is wrong with them.
    troubles: Vec<(String, Trouble)>,
    /// Method and path of each request.
    requests: Vec<(String, String)>,
    /// The paths whose bodies are held back at this moment.
    held: Vec<String>,
    /// How often everything was mended.
    mended: usize,
    connections: Vec<TcpStream>,
    is_closed: bool,
}

impl Web {
    /// Serves the files below a folder, on loopback. A file that is put (`PUT`) is written there.
    pub(crate) fn serve(folder: impl Into<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            folder: folder.into(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let here = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for connection in listener.incoming() {
                    let connection = connection.unwrap();
                    let mut state = here.state.lock().unwrap();
                    if state.is_closed {
                        break;
                    }
                    state.connections.push(connection.try_clone().unwrap());
                    drop(state);
                    let here = &here;
                    scope.spawn(move || {
                        // A client that is gone wants no answer.
                        let _ = here.answer(&connection);
                        // It is still open elsewhere.
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

    /// The address of the folder, without a slash at its end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// From now on something is wrong with each file whose path has this part.
    pub(crate) fn spoil(&self, part: &str, trouble: Trouble) {
        let mut state = self.shared.state.lock().unwrap();
        state.troubles.push((part.to_owned(), trouble));
    }

    /// From now on nothing is wrong with any file; what is held back breaks off.
    pub(crate) fn mend(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.troubles.clear();
        state.mended += 1;
        self.shared.changed.notify_all();
    }

    /// How often a file was asked for whose path has this part.
    pub(crate) fn downloads(&self, part: &str) -> usize {
        let state = self.shared.state.lock().unwrap();
        let is_it = |(method, path): &&(String, String)| method == "GET" && path.contains(part);
        state.requests.iter().filter(is_it).count()
    }

    /// Waits until the body of a file is held back whose path has this part.
    pub(crate) fn until_held(&self, part: &str) {
        let state = self.shared.state.lock().unwrap();
        let is_not_held = |state: &mut State| !state.held.iter().any(|path| path.contains(part));
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, DEADLINE, is_not_held);
        let (state, timeout) = waited.unwrap();
        assert!(
            !timeout.timed_out(),
            "{part} is not held back: {:?}",
            state.requests
        );
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        state.is_closed = true;
        for connection in &state.connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.shared.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Answers one request and closes the connection.
    fn answer(&self, connection: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let (mut length, mut is_awaited, mut login) = (0, false, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap_or_default(),
                "expect" => is_awaited = true,
                "authorization" => value.clone_into(&mut login),
                _ => {}
            }
        }
        let trouble = {
            let mut state = self.state.lock().unwrap();
            state.requests.push((method.clone(), path.clone()));
            let mut troubles = state.troubles.iter();
            let trouble = troubles.find(|(part, _)| path.contains(part));
            trouble.map(|(_, trouble)| *trouble)
        };
        let mut writer = connection;
        if is_awaited {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut sent = vec![0; length];
        reader.read_exact(&mut sent)?;
        if let Some(Trouble::Answers(status)) = trouble {
            return head(writer, status, 0);
        }
        if let Some(Trouble::WantsLogin(wanted)) = trouble
            && wanted != login
        {
            return write!(
                writer,
                "HTTP/1.1 401 Status\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"
            );
        }
        if trouble == Some(Trouble::IsSilent) {
            self.hold(&path);
            return Ok(());
        }
        let Some(file) = self.file(&path) else {
            return head(writer, 400, 0);
        };
        match method.as_str() {
            "PUT" => {
                fs::create_dir_all(file.parent().unwrap())?;
                fs::write(file, sent)?;
                head(writer, 201, 0)
            }
            "GET" | "HEAD" => match fs::read(file) {
                Ok(mut body) => {
                    if trouble == Some(Trouble::IsCorrupted) {
                        let middle = body.len() / 2;
                        body[middle] ^= 0x55;
                    }
                    head(writer, 200, body.len())?;
                    if method == "GET" {
                        self.body(writer, &path, &body, trouble)?;
                    }
                    Ok(())
                }
                Err(_) => head(writer, 404, 0),
            },
            _ => head(writer, 405, 0),
        }
    }

    fn body(
        &self,
        mut writer: &TcpStream,
        path: &str,
        body: &[u8],
        trouble: Option<Trouble>,
    ) -> std::io::Result<()> {
        let half = &body[..body.len() / 2];
        match trouble {
            Some(Trouble::BreaksOff) => writer.write_all(half),
            Some(Trouble::Stalls) => {
                writer.write_all(half)?;
                self.hold(path);
                Ok(())
            }
            Some(Trouble::Trickles(pieces, pause)) => {
                let size = body.len().div_ceil(pieces as usize).max(1);
                for piece in body.chunks(size) {
                    thread::sleep(pause);
                    writer.write_all(piece)?;
                }
                Ok(())
            }
            _ => writer.write_all(body),
        }
    }

    /// Waits until everything is mended, or the server ends.
    fn hold(&self, path: &str) {
        let mut state = self.state.lock().unwrap();
        let before = state.mended;
        state.held.push(path.to_owned());
        self.changed.notify_all();
        let is_held = |state: &mut State| state.mended == before && !state.is_closed;
        let mut state = self.changed.wait_while(state, is_held).unwrap();
        let at = state.held.iter().position(|held| held == path).unwrap();
        state.held.remove(at);
    }

    /// The file of this path; none where that would be outside the folder.
    fn file(&self, path: &str) -> Option<PathBuf> {
        let path = Path::new(path.trim_start_matches('/'));
        let is_plain = |part| matches!(part, std::path::Component::Normal(_));
        path.components()
            .all(is_plain)
            .then(|| self.folder.join(path))
    }
}

fn head(mut writer: &TcpStream, status: u16, length: usize) -> std::io::Result<()> {
    // Of the words behind a status nobody reads any.
    write!(
        writer,
        "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}
