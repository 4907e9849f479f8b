//! A real server for S3 that keeps one bucket in a folder and lets anybody read and write it.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Stdio},
};

use serde_json::json;
use tempfile::TempDir;

use super::{loudly, program::Program, skip, store::Store, until};

/// The bucket's name.
const BUCKET: &str = "bucket";

/// A server that runs; it ends with this value.
#[derive(Debug)]
pub(crate) struct S3 {
    child: Child,
    port: u16,
    /// The buckets, and what is known of them.
    _folder: TempDir,
}

impl S3 {
    /// Starts one; `None`, said loudly, where it is not installed, or where this Nix has no S3.
    pub(crate) fn start(store: &Store) -> Option<Self> {
        let asked = store
            .program("nix-store")
            .args(["--option", "download-attempts", "1", "--store"])
            .args(["s3://bucket?endpoint=127.0.0.1:9&scheme=http", "--realise"])
            .run();
        if asked.stderr.contains("don't know how to open Nix store") {
            // Debian's up to trixie: with CI=true or without.
            loudly("this Nix has no S3");
            return None;
        }
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        let program = cache?.join("eval-once/bin/versitygw");
        if !program.is_file() {
            skip("versitygw is missing; script/bootstrap installs it");
            return None;
        }
        let folder = TempDir::with_prefix("s3").unwrap();
        let (data, known) = (folder.path().join("data"), folder.path().join("known"));
        fs::create_dir_all(data.join(BUCKET)).unwrap();
        fs::create_dir_all(known.join(BUCKET).join("meta")).unwrap();
        let of = |rest: &str| format!("arn:aws:s3:::{BUCKET}{rest}");
        let policy = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": [of(""), of("/*")],
        }] });
        fs::write(known.join(BUCKET).join("meta/policy"), policy.to_string()).unwrap();
        // Any port that is free now may be taken when the server starts: then by the next.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = port.local_addr().unwrap().port();
            let mut child = Program::new(&program)
                .args(["--quiet", "--access", "access", "--secret", "secret"])
                .args(["--port", &format!("127.0.0.1:{port}"), "posix"])
                .args(["--sidecar".as_ref(), known.as_os_str(), data.as_os_str()])
                .command()
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut ended = false;
            until("versitygw answers or has ended", || {
                ended = child.try_wait().unwrap().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Some(Self {
                    child,
                    port,
                    _folder: folder,
                });
            }
        }
        panic!("versitygw does not start");
    }

    /// The bucket as a store.
    pub(crate) fn url(&self) -> String {
        format!(
            "s3://{BUCKET}?endpoint=127.0.0.1:{}&scheme=http&region=us-east-1",
            self.port
        )
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
