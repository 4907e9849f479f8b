//! Asking Buildkite's REST API: which builds a branch has, and which artifacts a build. Each question once; it does not know what
//! the answers are for.
//!
//! The token is in a header of requests to the API itself, and nowhere else: not in a URL, an argument, a message or a request that a
//! redirection leads elsewhere. No thread is started: a time limit for looking up a name would start one, so that has none.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use crate::exit::{Class, Failure};
use crate::keys::refuse;

/// The API of Buildkite itself.
pub const API: &str = "https://api.buildkite.com/v2";

/// How many entries a page has at most.
const PAGE: usize = 100;

/// How many pages of artifacts are read at most: 10,000 artifacts.
const PAGES: usize = 100;

/// The largest answer that is read, in bytes: an `eval-once.json` of 10,000 targets takes some 10 MB.
const ANSWER_AT_MOST: u64 = 256 << 20;

/// How long a server may take to be reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an answer may take to arrive.
const TRANSFER: Duration = Duration::from_secs(120);

/// The most redirections of one request.
const REDIRECTIONS: u32 = 5;

/// A token of the API. It is shown nowhere.
#[derive(Clone)]
pub struct ApiToken(String);

impl ApiToken {
    /// The token with this text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken")
    }
}

/// How this host reaches servers by https, as curl and Nix do.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The address of a proxy. It may hold a password.
    pub proxy: Option<String>,
    /// The hosts that are reached without it, with commas between them.
    pub no_proxy: Option<String>,
    /// A file with the certificates of the authorities that are trusted, instead of Mozilla's, which this program has.
    pub authorities: Option<PathBuf>,
}

impl Network {
    fn proxy(&self) -> Result<Option<Proxy>, Failure> {
        let Some(address) = &self.proxy else {
            return Ok(None);
        };
        let proxy = || -> Result<Proxy, ureq::Error> {
            let proxy = Proxy::new(address)?;
            let mut same = Proxy::builder(proxy.protocol())
                .host(proxy.host())
                .port(proxy.port());
            if let Some(user) = proxy.username() {
                same = same.username(user);
            }
            if let Some(password) = proxy.password() {
                same = same.password(password);
            }
            for host in self.no_proxy.as_deref().unwrap_or_default().split(',') {
                same = same.no_proxy(host.trim());
            }
            same.build()
        };
        // The address may hold a password, so it is not named.
        let proxy =
            proxy().map_err(|_| refuse("the address of the proxy for https makes no sense"))?;
        Ok(Some(proxy))
    }

    fn authorities(&self) -> Result<RootCerts, Failure> {
        let Some(file) = &self.authorities else {
            return Ok(RootCerts::WebPki);
        };
        let wrong = |why: &dyn fmt::Display| {
            refuse(format_args!(
                "cannot read certificates from {}: {why}",
                file.display()
            ))
            .hint("correct NIX_SSL_CERT_FILE or SSL_CERT_FILE, or unset it")
        };
        let text = std::fs::read(file).map_err(|error| wrong(&error))?;
        let certificates: Vec<Certificate<'static>> = parse_pem(&text)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(wrong(&"it has none"));
        }
        Ok(RootCerts::from(certificates))
    }
}

/// A pipeline of Buildkite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineName {
    /// The slug of the organization.
    pub organization: String,
    /// Its own slug.
    pub pipeline: String,
}

/// A build, as the API lists it.
#[derive(Debug, Clone, Deserialize)]
pub struct RestBuild {
    /// Its id.
    pub id: String,
    /// Its number in the pipeline.
    pub number: u64,
    /// Its state: `passed`, `running`, …
    pub state: String,
    /// The pull request that it is of: maybe one of a fork, whose branch may have any name.
    #[serde(default)]
    pub pull_request: Option<IgnoredAny>,
}

/// An artifact of a build, as the API lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct RestArtifact {
    /// Its id: a UUID that begins with the time, so a later one is greater.
    pub id: String,
    /// The job that has uploaded it.
    pub job_id: String,
    /// Its path.
    pub path: String,
    /// `finished` once it can be downloaded.
    #[serde(default)]
    pub state: String,
}

/// The API, as one token reaches it.
#[derive(Debug)]
pub struct Rest {
    agent: Agent,
    api: String,
    token: ApiToken,
}

impl Rest {
    /// The API at this address, as this host reaches it.
    ///
    /// # Errors
    /// The token would be sent unencrypted, the proxy's address makes no sense, or the file has no certificates (64).
    pub fn new(api: &str, token: ApiToken, network: &Network) -> Result<Self, Failure> {
        let api = api.trim_end_matches('/').to_owned();
        // A server on this host is none that somebody listens to on the way.
        let is_here = |rest: &str| {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
                let port = authority
                    .strip_prefix(host)
                    .and_then(|it| it.strip_prefix(':'));
                port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
            })
        };
        let is_here = api.strip_prefix("http://").is_some_and(is_here);
        if !is_here && !api.starts_with("https://") {
            return Err(refuse(
                "the address of Buildkite's REST API must begin with https://",
            ));
        }
        let tls = TlsConfig::builder().root_certs(network.authorities()?);
        let proxy = if is_here { None } else { network.proxy()? };
        let config = Agent::config_builder()
            .proxy(proxy)
            .tls_config(tls.build())
            .user_agent(concat!("eval-once/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .max_redirects(REDIRECTIONS)
            .timeout_connect(Some(PATIENCE))
            .timeout_send_request(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_recv_body(Some(TRANSFER));
        Ok(Self {
            agent: config.build().into(),
            api,
            token,
        })
    }

    /// The newest builds of a branch, the newest first.
    ///
    /// # Errors
    /// Buildkite does not say (75), or refuses to (64).
    pub fn builds(
        &self,
        pipeline: &PipelineName,
        branch: &str,
        count: usize,
    ) -> Result<Vec<RestBuild>, Failure> {
        let builds = builds_of(pipeline);
        let branch = encoded(branch);
        self.json(&format!(
            "{builds}?branch={branch}&per_page={count}&exclude_jobs=true&exclude_pipeline=true"
        ))
    }

    /// The artifacts of a build with one of these paths, the newest first.
    ///
    /// # Errors
    /// As [`builds`](Self::builds).
    pub fn artifacts(
        &self,
        pipeline: &PipelineName,
        build: u64,
        paths: &[&str],
    ) -> Result<Vec<RestArtifact>, Failure> {
        let builds = builds_of(pipeline);
        let mut found: Vec<RestArtifact> = Vec::new();
        for page in 1..=PAGES {
            let listed: Vec<RestArtifact> = self.json(&format!(
                "{builds}/{build}/artifacts?per_page={PAGE}&page={page}"
            ))?;
            let is_last = listed.len() < PAGE;
            found.extend(
                listed
                    .into_iter()
                    .filter(|it| paths.contains(&it.path.as_str()) && it.state == "finished"),
            );
            if is_last {
                break;
            }
        }
        found.sort_unstable();
        found.reverse();
        Ok(found)
    }

    /// The text of an artifact.
    ///
    /// # Errors
    /// As [`builds`](Self::builds).
    pub fn download(
        &self,
        pipeline: &PipelineName,
        build: u64,
        artifact: &RestArtifact,
    ) -> Result<String, Failure> {
        let builds = builds_of(pipeline);
        let (job, id) = (encoded(&artifact.job_id), encoded(&artifact.id));
        self.text(&format!(
            "{builds}/{build}/jobs/{job}/artifacts/{id}/download"
        ))
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let text = self.text(path)?;
        serde_json::from_str(&text).map_err(|error| {
            // The error repeats values, and a server that answers oddly may repeat the token.
            let message = format_args!(
                "Buildkite's answer to GET {path} is not as expected, at line {} column {}",
                error.line(),
                error.column()
            );
            Failure::new(Class::Infrastructure, message)
        })
    }

    fn text(&self, path: &str) -> Result<String, Failure> {
        let request = self.agent.get(format!("{}{path}", self.api));
        let request = request.header("Authorization", format!("Bearer {}", self.token.0));
        let answer = request.call().and_then(|mut response| {
            let body = response.body_mut().with_config().limit(ANSWER_AT_MOST);
            body.read_to_string()
        });
        answer.map_err(|error| failure(path, &error))
    }
}

/// What is wrong, and what to do about it.
fn failure(path: &str, error: &ureq::Error) -> Failure {
    let path = path.split('?').next().unwrap_or(path);
    let status = match error {
        ureq::Error::StatusCode(status) => *status,
        error => {
            let message = format_args!("GET {path} of Buildkite's REST API failed: {error}");
            return Failure::new(Class::Infrastructure, message)
                .hint("check that this host can reach Buildkite");
        }
    };
    let message = format!("Buildkite answers {status} to GET {path}");
    match status {
        401 | 403 => refuse(message).hint(
            "give BUILDKITE_API_TOKEN a token of this organization with the scopes read_builds and read_artifacts",
        ),
        404 => refuse(message).hint("check the names of the organization and of the pipeline"),
        _ => Failure::new(Class::Infrastructure, message),
    }
}

fn builds_of(name: &PipelineName) -> String {
    format!(
        "/organizations/{}/pipelines/{}/builds",
        encoded(&name.organization),
        encoded(&name.pipeline)
    )
}

fn encoded(part: &str) -> String {
    // `-` and `_`, as in slugs and ids, could be left as they are, which reads better in a message.
    const RESERVED: percent_encoding::AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_');
    utf8_percent_encode(part, &RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_never_sent_unencrypted_over_a_network() {
        let new = |api: &str| Rest::new(api, ApiToken::new("bkua_x".into()), &Network::default());
        for good in [API, "http://127.0.0.1:80/v2", "http://localhost:1"] {
            assert!(new(good).is_ok(), "{good}");
        }
        for bad in [
            "http://api.buildkite.com/v2",
            "http://127.0.0.1.example.com/",
            "http://localhost@example.com",
            "http://127.0.0.1:1@example.com:80/v2",
            "ftp://x",
            "",
        ] {
            let failure = new(bad).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{bad}");
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let rest = Rest::new(
            API,
            ApiToken::new("bkua_secret".into()),
            &Network::default(),
        )
        .unwrap();
        assert!(!format!("{rest:?}").contains("bkua_secret"));
        let odd = Rest::new(
            API,
            ApiToken::new("bkua_\u{1}\n".into()),
            &Network::default(),
        )
        .unwrap();
        let failure = odd.text("/x").unwrap_err();
        assert!(!failure.to_string().contains("bkua_"), "{failure}");
    }

    #[test]
    fn a_proxy_and_authorities_that_make_no_sense_are_refused_without_the_address() {
        let proxy = |address: &str| Network {
            proxy: Some(address.into()),
            no_proxy: Some("localhost, .example.com,".into()),
            authorities: None,
        };
        for good in ["http://proxy:3128", "http://me:word@proxy", "proxy:80"] {
            let proxy = proxy(good).proxy().unwrap().unwrap();
            assert_eq!(proxy.password(), good.contains("word").then_some("word"));
            let is_direct = |host: &str| proxy.is_no_proxy(&host.parse().unwrap());
            assert!(is_direct("https://a.example.com/"), "{good}");
            assert!(!is_direct("https://api.buildkite.com/"), "{good}");
        }
        let failure = proxy("nonsense://me:word@x").proxy().unwrap_err();
        assert!(!failure.to_string().contains("word"), "{failure}");

        let file = tempfile::Builder::new().tempfile_in("/tmp").unwrap();
        let network = Network {
            authorities: Some(file.path().to_owned()),
            ..Network::default()
        };
        let failure = network.authorities().unwrap_err();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.to_string().ends_with("it has none"), "{failure}");
    }

    #[test]
    fn names_stay_one_part_of_a_path() {
        let name = PipelineName {
            organization: "../x".into(),
            pipeline: "a_b-c?d#e/f".into(),
        };
        assert_eq!(
            builds_of(&name),
            "/organizations/%2E%2E%2Fx/pipelines/a_b-c%3Fd%23e%2Ff/builds"
        );
    }
}
