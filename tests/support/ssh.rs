//! A real `sshd` on loopback that lets its client into one host: with keys, a port and a configuration of its own.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use tempfile::TempDir;
use unix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User, geteuid},
};

use super::{program::Program, skip, stand_in::write_program, store::Store, tool, until};

/// Where distributions put it, which is on no ordinary user's `PATH`.
const SSHD: &str = "/usr/sbin/sshd";

/// A server that runs; it ends with this value.
#[derive(Debug)]
pub(crate) struct Sshd {
    child: Child,
    folder: TempDir,
}

impl Sshd {
    /// Starts one on this host, whose Nix it runs; `None`, said loudly, where there is none.
    pub(crate) fn start(host: &Store) -> Option<Self> {
        if !Path::new(SSHD).is_file() {
            skip("sshd is missing; script/bootstrap installs it");
            return None;
        }
        let keygen = tool("ssh-keygen")?;
        let folder = TempDir::with_prefix("ssh").unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["host_key", "key"] {
            Program::new(&keygen)
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(name))
                .run()
                .exits(0);
        }
        fs::copy(at("key.pub"), at("authorized_keys")).unwrap();
        // What a client runs, with the environment of the host and not of the user's own shell.
        let mut script = "#!/bin/sh\n".to_owned();
        for (name, value) in host.env() {
            let (name, value) = (name.into_string().unwrap(), value.into_string().unwrap());
            let _ = writeln!(script, "export {name}='{value}'");
        }
        // The namespace is entered here: where it is not root's, sshd itself could be nobody in it.
        let before = host.before().iter().map(|word| word.to_str().unwrap());
        let before: Vec<String> = before
            .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
            .collect();
        let before = before.join(" ");
        let _ = writeln!(script, "exec {before} sh -c \"$SSH_ORIGINAL_COMMAND\"");
        write_program(&at("host"), &script);
        if geteuid().is_root() {
            // It refuses to start without, and systemd makes it only where it runs.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        // Any port that is free now may be taken when the server starts: then by the next.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = port.local_addr().unwrap().port();
            if let Some(child) = Self::try_start(folder.path(), port) {
                return Some(Self { child, folder });
            }
        }
        let log = fs::read_to_string(at("log")).unwrap_or_default();
        panic!("sshd does not start: {log}");
    }

    fn try_start(folder: &Path, port: u16) -> Option<Child> {
        let at = |name: &str| folder.join(name).display().to_string();
        let configuration = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nForceCommand {}\n\
             PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n",
            at("host_key"),
            at("authorized_keys"),
            at("host")
        );
        fs::write(folder.join("sshd_config"), configuration).unwrap();
        let user = User::from_uid(geteuid()).unwrap().unwrap().name;
        let client = format!(
            "Host *\nHostName 127.0.0.1\nPort {port}\nUser {user}\nIdentityFile {}\nIdentitiesOnly yes\n\
             BatchMode yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
            at("key")
        );
        fs::write(folder.join("ssh_config"), client).unwrap();
        let mut child = Program::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(folder.join("sshd_config"))
            .command()
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut ended = false;
        until("sshd answers or has ended", || {
            ended = child.try_wait().unwrap().is_some();
            ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        (!ended).then_some(child)
    }

    /// What a client's environment has beside its host's own: with it, every host's name leads here.
    pub(crate) fn env(&self) -> [(&'static str, String); 1] {
        let configuration: PathBuf = self.folder.path().join("ssh_config");
        [("NIX_SSHOPTS", format!("-F {}", configuration.display()))]
    }

    /// From now on nothing of it runs until its end: connections are made, and nothing is answered.
    pub(crate) fn freeze(&self) {
        let _ = killpg(self.group(), Signal::SIGSTOP);
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
