//! The one detector of credentials: what in a text is secret, and on the agents' side of a pipeline where it belongs instead.
//!
//! What is written into steps is visible to every reader of a build, and is refused with [`SecretHome::advice`]; what is printed passes
//! [`redacted`]. Both go by the same rules. A rule looks at how a secret is written (a URL, a setting of Nix, a header, an
//! assignment, a token with the prefix of its service), and lets pass what only stands for one: `$TOKEN`, `<token>`, `***`.
//!
//! Not known here: which keys there are. A reader of keys knows which of them are names and values, as those of `env`, and asks
//! [`is_secret_value`].

#[cfg(test)]
mod corpus;
pub mod netrc;

use std::borrow::Cow;
use std::ops::Range;

use crate::text::without_escapes;

/// Where a secret belongs that is in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretHome {
    /// A URL that Nix downloads from.
    Netrc,
    /// The URL of a git repository.
    Git,
    /// The URL of a bucket.
    Aws,
    /// An SSH address.
    Ssh,
    /// A code host's token.
    AccessTokens,
    /// A key that signs.
    SigningKey,
    /// A variable, or a part of a command.
    Environment,
    /// An argument of the user's expression.
    Argument,
}

impl SecretHome {
    /// What to do with the secret, as the end of a sentence.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Netrc => "put it into the file that `netrc-file` names in the agents' nix.conf",
            Self::Git => "give it to git on the agents, by a credential helper",
            Self::Aws => "put it into the AWS credentials file of the agents' user",
            Self::Ssh => "give the agents' user an SSH key",
            Self::AccessTokens => {
                "put it into `access-tokens` in the agents' nix.conf, or into NIX_CONFIG in their `environment` hook"
            }
            Self::SigningKey => {
                "put it into a file on the agents, and name that in `secret-key-files` in their nix.conf"
            }
            Self::Environment => "export it in the agents' `environment` hook",
            Self::Argument => "let the expression read it from a file on the agents",
        }
    }
}

/// What stands for a secret where it is printed.
pub const HIDDEN: &str = "***";

/// How many bytes a URL or a value is looked for in, so that a line which begins a thousand of them takes no longer than others.
const AT_MOST: usize = 2048;

/// A secret in a text.
struct Secret {
    range: Range<usize>,
    home: SecretHome,
}

/// The text as it may be printed: without its secrets. Where colours stand within them, it loses all of its colours.
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    let shown = redacted_as_written(text);
    if !text.contains('\u{1b}') {
        return shown;
    }
    match redacted_as_written(&without_escapes(&shown)) {
        Cow::Owned(plain) => Cow::Owned(plain),
        Cow::Borrowed(_) => shown,
    }
}

/// The beginning of `text`, at most so many characters; where there is more, an ellipsis ends it. Its secrets are hidden first: of a URL that is
/// cut in its password, nothing would be recognised.
#[must_use]
pub fn shortened(text: &str, at_most: usize) -> String {
    // A builder's line may have a megabyte, which is not searched for a thousand characters. In the end of a window, a secret may be cut.
    let window = window(text, 4 * at_most + 2 * AT_MOST);
    let shown = redacted(window);
    let is_window = window.len() < text.len();
    let uncertain = if is_window { AT_MOST } else { 0 };
    if is_window || shown.char_indices().nth(at_most).is_some() {
        let certain = self::window(&shown, shown.len().saturating_sub(uncertain));
        return certain.chars().take(at_most - 1).chain(['…']).collect();
    }
    shown.into_owned()
}

/// As [`redacted`], of a text without colours. What stands beside a secret may be a part of a longer one, which is seen only without it.
fn redacted_as_written(text: &str) -> Cow<'_, str> {
    let Cow::Owned(mut shown) = redacted_once(text) else {
        return Cow::Borrowed(text);
    };
    for _ in 1..PASSES {
        let Cow::Owned(again) = redacted_once(&shown) else {
            break;
        };
        shown = again;
    }
    Cow::Owned(shown)
}

/// How often a text is looked at that has secrets.
const PASSES: usize = 3;

fn redacted_once(text: &str) -> Cow<'_, str> {
    let secrets = secrets(text);
    if secrets.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut end = 0;
    for Secret { range, .. } in secrets {
        // One rule may find what is part of another's.
        if range.start >= end {
            shown.push_str(&text[end..range.start]);
            shown.push_str(HIDDEN);
        }
        end = end.max(range.end);
    }
    shown.push_str(&text[end..]);
    Cow::Owned(shown)
}

/// Where the first secret of the text belongs, if it has one.
#[must_use]
pub fn find(text: &str) -> Option<SecretHome> {
    secrets(&without_escapes(text))
        .first()
        .map(|secret| secret.home)
}

/// Whether this is the value of something secret, going by its name: a variable, an argument, a setting. Not if it is what a secret
/// is usually read from (a path, a name such as `github-token`, a URL), or a usual word of tests. Buildkite hides no value of less
/// than six bytes either.
#[must_use]
pub fn is_secret_value(name: &str, value: &str) -> bool {
    names_a_secret(name) && value.len() >= 6 && is_literal(value) && !stands_for_another(value)
}

/// Whether something of this name is secret: Buildkite's own `redacted-vars` (`*_TOKEN`, `*_PASSWORD`, `*_SECRET_KEY`, …), however its
/// words are joined. The last words count: `token-file` and `tokenizer` are no secrets.
#[must_use]
pub fn names_a_secret(name: &str) -> bool {
    let words = words(name);
    let (last, before) = match words.as_slice() {
        [.., before, last] => (last.as_str(), before.as_str()),
        [last] => (last.as_str(), ""),
        [] => return false,
    };
    match last {
        "token" | "password" | "passwd" | "passphrase" | "secret" => {
            // Where a list goes on, and what a page of a form has.
            ![
                "page",
                "next",
                "continuation",
                "cursor",
                "sync",
                "csrf",
                "public",
                "pagination",
            ]
            .contains(&before)
        }
        "key" => [
            "private", "ssh", "access", "secret", "api", "account", "auth",
        ]
        .contains(&before),
        "pass" | "pw" => !["first", "second", "one", "two", "single", "multi"].contains(&before),
        // `PGPASSWORD`
        joined if joined.ends_with("password") => true,
        "string" => before == "connection",
        "apitoken" | "authtoken" | "accesstoken" | "apikey" | "accesskey" | "privatekey"
        | "secretkey" => true,
        _ => false,
    }
}

/// The words of a name, in lower case: `githubToken` and `GITHUB_TOKEN` are two.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in name.split(|c: char| !c.is_ascii_alphanumeric()) {
        let mut word = String::new();
        let mut was_lower = false;
        for c in part.chars() {
            if was_lower && c.is_ascii_uppercase() {
                words.push(std::mem::take(&mut word));
            }
            was_lower = !c.is_ascii_uppercase();
            word.push(c.to_ascii_lowercase());
        }
        if !word.is_empty() {
            words.push(word);
        }
    }
    words
}

/// Whether this is a secret itself, where a secret is expected: no reference to one, and nothing that a reader or a program has to
/// replace.
#[must_use]
pub fn is_literal(value: &str) -> bool {
    let stands_for_one = ["$", "{", "<", "%(", "%s", "[REDACTED", "…", "..."];
    let is_masked = value.len() <= 40
        && (value.bytes().all(|letter| letter == b'*')
            || value.len() > 2 && value.bytes().all(|letter| b"xX".contains(&letter)));
    !value.is_empty() && !is_masked && !stands_for_one.iter().any(|begin| value.starts_with(begin))
}

/// Whether a value is what a secret is read from, or a usual word of tests.
fn stands_for_another(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let is_location = ["/", "./", "../", "~/", "file:"]
        .iter()
        .any(|begin| value.starts_with(begin))
        || value.contains("://");
    let is_number = value.parse::<f64>().is_ok() || ["true", "false"].contains(&lower.as_str());
    let is_name = value.contains(['-', '_', '.', '/', ' '])
        && !value.contains(|c: char| c.is_ascii_digit())
        && words(value).iter().any(|word| {
            ["token", "secret", "password", "key", "credentials"].contains(&word.as_str())
        });
    let is_word_of_tests = [
        "test",
        "dummy",
        "fake",
        "example",
        "insecure",
        "placeholder",
        "unused",
        "not-a",
        "your-",
    ]
    .iter()
    .any(|begin| lower.starts_with(begin))
        || [
            "postgres",
            "password",
            "passwd",
            "secret",
            "changeme",
            "change-me",
            "rabbitmq",
            "mariadb",
            "minioadmin",
        ]
        .contains(&lower.as_str());
    is_location || is_number || is_name || is_word_of_tests
}

/// The secrets of a text, in the order in which they begin.
fn secrets(text: &str) -> Vec<Secret> {
    let mut found = Vec::new();
    find_all(text, &mut found);
    if let Some(Decoded { text, origins }) = decoded(text) {
        let mut more = Vec::new();
        find_all(&text, &mut more);
        found.extend(more.into_iter().map(|Secret { range, home }| Secret {
            range: origins[range.start]..origins[range.end],
            home,
        }));
    }
    found.sort_by_key(|secret| (secret.range.start, secret.range.end));
    found
}

fn find_all(text: &str, found: &mut Vec<Secret>) {
    let mut add = |range: Range<usize>, home| found.push(Secret { range, home });
    // Most lines of a log have no secret, and there are many: what a rule needs is looked for first.
    let has = |byte: u8| text.as_bytes().contains(&byte);
    if has(b'@') {
        find_in_authorities(text, &mut add);
    }
    if has(b'=') {
        find_in_parameters(text, &mut add);
        find_in_settings(text, &mut add);
        find_in_assignments(text, &mut add);
        find_in_flags(text, &mut add);
    }
    if has(b':') {
        find_in_headers(text, &mut add);
        find_in_curl(text, &mut add);
    }
    find_tokens(text, &mut add);
    find_keys(text, &mut add);
    for range in netrc::passwords(text) {
        if is_literal(&text[range.clone()]) {
            add(range, SecretHome::Netrc);
        }
    }
}

/// A text without its percent-encoding, as far as that is of visible ASCII characters.
struct Decoded {
    text: String,
    /// For each place of the text, and for its end, where that is in the encoded one.
    origins: Vec<usize>,
}

/// The text without its percent-encoding; none where it has none.
fn decoded(text: &str) -> Option<Decoded> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let bytes = text.as_bytes();
    let mut plain = Vec::new();
    let mut origins = Vec::new();
    let mut end = 0;
    for (at, _) in text.match_indices('%') {
        let (Some(high), Some(low)) = (digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) else {
            continue;
        };
        let Some(byte) = u8::try_from(high * 16 + low)
            .ok()
            .filter(u8::is_ascii_graphic)
        else {
            continue;
        };
        plain.extend(&bytes[end..at]);
        plain.push(byte);
        origins.extend(end..=at);
        end = at + 3;
    }
    if end == 0 {
        return None;
    }
    plain.extend(&bytes[end..]);
    origins.extend(end..=bytes.len());
    let text = String::from_utf8(plain).ok()?;
    Some(Decoded { text, origins })
}

/// What follows this place, as far as it is looked at.
fn after(text: &str, begin: usize) -> &str {
    window(&text[begin..], AT_MOST)
}

/// The beginning of a text, of so many bytes at most.
fn window(text: &str, at_most: usize) -> &str {
    let mut ends = (0..=at_most.min(text.len())).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// What precedes this place, as far as it is looked at.
fn before(text: &str, end: usize) -> &str {
    let rest = &text[..end];
    let begin = (end.saturating_sub(AT_MOST)..=end).find(|begin| rest.is_char_boundary(*begin));
    &rest[begin.unwrap_or(end)..]
}

fn is_in_scheme(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+.-".contains(c)
}

/// The scheme that ends this text, where one does.
fn scheme_before(text: &str) -> &str {
    let begin = text.trim_end_matches(is_in_scheme).len();
    &text[begin..]
}

/// How a URL is fetched: the last part of its scheme, in lower case.
fn transport(scheme: &str) -> String {
    scheme
        .rsplit('+')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// Where the credentials of a URL belong.
fn home_of_url(url: &str) -> SecretHome {
    let scheme = url.split(':').next().unwrap_or_default();
    let transport = transport(scheme);
    let path = url.split(['?', '#']).next().unwrap_or_default();
    match transport.as_str() {
        "s3" => SecretHome::Aws,
        "github" | "gitlab" | "sourcehut" => SecretHome::AccessTokens,
        _ if transport.starts_with("ssh") => SecretHome::Ssh,
        "git" => SecretHome::Git,
        _ if scheme.to_ascii_lowercase().starts_with("git+")
            || path.to_ascii_lowercase().ends_with(".git") =>
        {
            SecretHome::Git
        }
        _ => SecretHome::Netrc,
    }
}

/// The beginning of this text that can be a URL.
fn word(text: &str) -> &str {
    let text = after(text, 0);
    &text[..text.find(ends_url).unwrap_or(text.len())]
}

/// Whether this ends a URL in a text.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"`<>\\".contains(c)
}

/// Users of URLs: `https://user:password@host`, `https://token@host`. To SSH, a user alone is only a name (`ssh://git@host`).
fn find_in_authorities(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    for (at, _) in text.match_indices(':') {
        // In JSON, a slash may stand behind a backslash.
        let rest = after(text, at + 1);
        let mark = rest.len() - rest.trim_start_matches(['/', '\\']).len();
        let slashes = rest[..mark].matches('/').count();
        if slashes == 0 {
            continue;
        }
        let scheme = scheme_before(before(text, at));
        let transport = transport(scheme);
        // curl takes one slash, and three, for two; elsewhere a path begins there (`file:///a:b@c`).
        if slashes != 2 && !is_web(&transport) {
            continue;
        }
        let begin = at + 1 + mark;
        if let Some(user) = secret_user(&transport, after(text, begin)) {
            let home = home_of_url(word(after(text, at - scheme.len())));
            add(begin..begin + user, home);
        }
    }
}

/// Whether curl fetches URLs of this scheme. Nix's own colour may stand before it (`ESC [35;1mhttps://…`).
fn is_web(transport: &str) -> bool {
    ["http", "https", "ftp", "ftps", "s3"]
        .iter()
        .any(|it| transport.ends_with(it))
}

/// The length of the user in what follows the `//` of a URL, if it is secret.
fn secret_user(transport: &str, url: &str) -> Option<usize> {
    let is_http = is_web(transport);
    // A quote may end a URL, and may be part of a password.
    let ends = |at: usize, c: char| match c {
        '/' | '?' | '#' => true,
        '\'' => !url[at + 1..].starts_with(|next: char| next.is_ascii_alphanumeric()),
        _ => ends_url(c),
    };
    let end = url.char_indices().find(|(at, c)| ends(*at, *c));
    let authority = &url[..end.map_or(url.len(), |(at, _)| at)];
    let Some(user) = authority.rfind('@').map(|at| &authority[..at]) else {
        // A password with a slash in it is taken for a port; no program takes such a URL, but some repeat it.
        let (_, port) = authority
            .split_once(':')
            .filter(|(host, _)| is_http && !host.starts_with('['))?;
        let url = word(url);
        let at = url.rfind('@').filter(|_| is_literal(port))?;
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        return (!is_port && url[..at].find('\'').is_none()).then_some(at);
    };
    match user.split_once(':') {
        Some((_, password)) if !password.is_empty() => is_literal(password).then_some(user.len()),
        with_colon => {
            let name = with_colon.map_or(user, |(name, _)| name);
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._~%+=-".contains(c);
            let may_be_token = is_http && is_literal(name) && name.chars().all(is_name);
            (may_be_token && !is_public_user(name, &url[user.len() + 1..])).then_some(user.len())
        }
    }
}

/// Whether a code host itself writes this user into the URLs that it shows.
fn is_public_user(name: &str, after: &str) -> bool {
    let (host, path) = after.split_once('/').unwrap_or((after, ""));
    let first = path.split('/').next().unwrap_or_default();
    match host.to_ascii_lowercase().as_str() {
        "bitbucket.org" => name.len() < 20,
        "dev.azure.com" => name == first,
        _ => name == "git",
    }
}

/// Parameters of URLs: `?token=…`, `&X-Amz-Signature=…`; also those of connection strings (`;AccountKey=…`).
fn find_in_parameters(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    let mut end = 0;
    for (at, _) in text.match_indices(['?', '&', ';', '#']) {
        if at < end {
            continue;
        }
        let rest = after(text, at + 1);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        let Some(value) = rest[name.len()..].strip_prefix('=') else {
            continue;
        };
        let ends = |c: char| ends_url(c) || "&#;,')]}".contains(c);
        let value = &value[..value.find(ends).unwrap_or(value.len())];
        if is_secret_parameter(name, value) {
            let begin = at + 1 + name.len() + 1;
            let ends = |c: char| ends_url(c) || "'([{".contains(c);
            let url = before(text, at).rsplit(ends).next().unwrap_or_default();
            end = begin + value.len();
            add(begin..end, home_of_url(url));
        }
    }
}

/// Whether a parameter of a URL is a secret. (`region`, `profile`, `narHash`, `rev`, `ref`, `dir`, `publicKey`, … are none.)
fn is_secret_parameter(name: &str, value: &str) -> bool {
    if !is_literal(value) {
        return false;
    }
    let plain = name.to_ascii_lowercase().replace(['-', '_', '.'], "");
    let is_file = value.starts_with(['/', '~', '.']);
    match plain.as_str() {
        // To a store of Nix's, and to SSH, a key is a file.
        "secretkey" | "secretkeys" | "sshkey" | "privatekey" => !is_file,
        // `?pass=2` counts something.
        "pass" | "pw" => !stands_for_another(value),
        "key" | "sig" | "auth" | "session" | "code" => {
            value.len() >= 16 && !is_file && value.contains(|c: char| c.is_ascii_digit())
        }
        "xamzsignature"
        | "xamzsecuritytoken"
        | "xamzcredential"
        | "xgoogsignature"
        | "xgoogcredential"
        | "signature"
        | "sharedaccesssignature"
        | "accountkey"
        | "pwd"
        | "passwd"
        | "passphrase"
        | "jwt"
        | "apikey"
        | "accesskey"
        | "authorization"
        | "secretaccesskey"
        | "authkey" => true,
        _ => {
            names_a_secret(name) || ["token", "password", "secret"].contains(&plain.as_str()) || {
                let ends = [
                    "accesstoken",
                    "authtoken",
                    "privatetoken",
                    "jobtoken",
                    "apitoken",
                    "clientsecret",
                ];
                ends.iter().any(|end| plain.ends_with(end))
            }
        }
    }
}

/// Settings of Nix that are secrets: `access-tokens = github.com=…`, as a file, a command line or JSON has it; and those variables in
/// `impure-env` that are.
fn find_in_settings(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    for (setting, home) in [
        ("access-tokens", SecretHome::AccessTokens),
        ("impure-env", SecretHome::Environment),
    ] {
        for (at, _) in text.match_indices(setting) {
            let between = |c: char| " \t\"'=:,{[\\".contains(c);
            let mut rest = after(text, at + setting.len());
            let end = at + setting.len() + rest.len();
            rest = rest.trim_start_matches(between);
            loop {
                let ends = |c: char| c.is_whitespace() || "\"'\\,}".contains(c);
                let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
                let Some((name, value)) = word.split_once('=') else {
                    break;
                };
                let begin = end - rest.len();
                let is_secret = match home {
                    SecretHome::AccessTokens => is_literal(value),
                    _ => is_secret_value(name, value),
                };
                if is_secret {
                    add(begin + name.len() + 1..begin + word.len(), home);
                }
                rest = rest[word.len()..].trim_start_matches([' ', '\t']);
            }
        }
    }
}

/// Headers: `Authorization: Bearer …`, `X-Vault-Token: …`.
fn find_in_headers(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    let headers = [
        "authorization",
        "proxy-authorization",
        "private-token",
        "job-token",
        "x-api-key",
        "x-auth-token",
    ];
    for (at, _) in text.match_indices(':') {
        let until = before(text, at);
        let name = scheme_before(until);
        let is_known = headers
            .iter()
            .any(|header| name.eq_ignore_ascii_case(header));
        let begin_of_name = name.get(..2).unwrap_or_default();
        // A `token:` may be any text, and a `github-token:` a key of a file; `https://x-access-token:…` is a user.
        let is_header = begin_of_name.eq_ignore_ascii_case("x-")
            && names_a_secret(name)
            && !until[..until.len() - name.len()].ends_with('/');
        if !is_known && !is_header {
            continue;
        }
        let rest = after(text, at + 1);
        let end = at + 1 + rest.len();
        let mut value = rest.trim_start_matches([' ', '\t']);
        let scheme = value.split(' ').next().unwrap_or_default();
        if ["basic", "bearer", "token", "digest"]
            .iter()
            .any(|it| scheme.eq_ignore_ascii_case(it))
        {
            value = value[scheme.len()..].trim_start_matches(' ');
        }
        let begin = end - value.len();
        let value = &value[..value
            .find(|c| ends_url(c) || c == '\'')
            .unwrap_or(value.len())];
        let is_secret = if is_known {
            value.len() >= 6 && is_literal(value)
        } else {
            is_secret_value(name, value)
        };
        if is_secret {
            add(begin..begin + value.len(), SecretHome::Environment);
        }
    }
}

/// Flags of a command: `--token=…`.
fn find_in_flags(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    let mut end = 0;
    for (at, _) in text.match_indices('=') {
        if at < end {
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let until = before(text, at);
        let flag = &until[until.trim_end_matches(is_name).len()..];
        let name = flag.trim_start_matches('-');
        if name.len() == flag.len() || !names_a_secret(name) {
            continue;
        }
        let (begin, value) = value_in_command(text, at + 1);
        // `docker build --secret=id=npm,src=.npmrc`
        let is_list = value.split(',').all(|part| {
            part.split_once('=')
                .is_some_and(|(_, value)| !value.trim_matches('=').is_empty())
        });
        if is_secret_value(name, value) && !is_list {
            end = begin + value.len();
            add(begin..end, SecretHome::Environment);
        }
    }
}

/// What stands here in a command, without its quotes, and where that begins.
fn value_in_command(text: &str, at: usize) -> (usize, &str) {
    let rest = after(text, at);
    let value = rest.trim_start_matches(['\\', '"', '\'']);
    let begin = at + rest.len() - value.len();
    let ends = |c: char| ends_url(c) || "';&|)".contains(c);
    (begin, &value[..value.find(ends).unwrap_or(value.len())])
}

/// The password that curl is given: `curl -u user:…`. To other programs, the same flag is a user and a group.
fn find_in_curl(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    if !text.contains("curl") {
        return;
    }
    for flag in ["-u", "--user", "-U", "--proxy-user"] {
        for (at, _) in text.match_indices(flag) {
            let until = before(text, at);
            if !until.ends_with(char::is_whitespace) {
                continue;
            }
            // A line break behind a backslash ends no command.
            let ends = |(at, c): &(usize, char)| {
                ";|&".contains(*c) || *c == '\n' && !until[..*at].ends_with('\\')
            };
            let end = until.char_indices().rev().find(ends);
            let command = &until[end.map_or(0, |(at, _)| at + 1)..];
            let mut words = command.split(|c: char| c.is_whitespace() || "\"'(`$".contains(c));
            if !words.any(|word| word.rsplit('/').next() == Some("curl")) {
                continue;
            }
            let rest = after(text, at + flag.len());
            let pair = rest.trim_start_matches([' ', '=']);
            let is_other_flag = flag.starts_with("--") && pair.len() == rest.len();
            let (begin, pair) = value_in_command(text, at + flag.len() + rest.len() - pair.len());
            let Some((name, password)) = pair.split_once(':').filter(|_| !is_other_flag) else {
                continue;
            };
            if is_literal(password) {
                let begin = begin + name.len() + 1;
                add(begin..begin + password.len(), SecretHome::Environment);
            }
        }
    }
}

/// How many letters of a value decide whether it is a word.
const LOOKED_AT: usize = 256;

/// Variables that are set in a command or a file (`GITHUB_TOKEN=…`), where the value looks like no word.
fn find_in_assignments(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    let mut end = 0;
    for (at, _) in text.match_indices('=') {
        if at < end {
            continue;
        }
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let until = before(text, at);
        let name = &until[until.trim_end_matches(is_name).len()..];
        if name.is_empty() || !names_a_secret(name) {
            continue;
        }
        let (begin, value) = value_in_command(text, at + 1);
        let letters = || value.bytes().take(LOOKED_AT);
        let looks_random = value.len() >= 12
            && letters().any(|byte| byte.is_ascii_digit())
            && letters().any(|byte| byte.is_ascii_alphabetic());
        if looks_random && is_literal(value) && !stands_for_another(value) {
            end = begin + value.len();
            add(begin..end, SecretHome::Environment);
        }
    }
}

/// The beginnings of tokens whose services mark them, and how many more letters one has at least.
const TOKENS: [(&str, usize); 21] = [
    ("ghp_", 30),
    ("gho_", 30),
    ("ghu_", 30),
    ("ghs_", 30),
    ("ghr_", 30),
    ("github_pat_", 20),
    ("glpat-", 20),
    ("gldt-", 20),
    ("glrt-", 20),
    ("glcbt-", 20),
    ("bkua_", 30),
    ("bkaj_", 30),
    ("bkct_", 30),
    ("npm_", 36),
    ("dckr_pat_", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("sk_live_", 20),
    ("hf_", 34),
    ("pypi-AgE", 40),
    ("AGE-SECRET-KEY-1", 40),
];

/// Tokens that can be known by their form, and JSON Web Tokens.
fn find_tokens(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    let is_in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let mut next = 0;
    for word in text.as_bytes().split(|byte| !is_in_token(byte)) {
        let at = next;
        next += word.len() + 1;
        if word.len() < 20 {
            continue;
        }
        let word = &text[at..at + word.len()];
        // One name of an attribute path may be a token.
        let mut part_at = at;
        for part in word.split('.') {
            let is_marked = TOKENS.iter().any(|(begin, more)| {
                let rest = part.strip_prefix(begin);
                rest.is_some_and(|rest| rest.len() >= *more)
            });
            if is_marked {
                add(part_at..part_at + part.len(), SecretHome::Environment);
            }
            part_at += part.len() + 1;
        }
        let mut parts = word.split('.');
        let is_jwt = word.starts_with("eyJ")
            && parts
                .by_ref()
                .take(2)
                .filter(|part| part.starts_with("eyJ"))
                .count()
                == 2
            && parts.count() == 1;
        if is_jwt {
            add(at..at + word.len(), SecretHome::Environment);
        }
    }
}

/// Keys that sign or open: Nix's own (`name:` and 64 bytes in base64, where a public key has 32), and those of OpenSSL and OpenSSH.
fn find_keys(text: &str, add: &mut impl FnMut(Range<usize>, SecretHome)) {
    const LENGTH: usize = 86;
    for (at, _) in text.match_indices("==") {
        let is_in_key = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
        let until = before(text, at);
        let name = until.trim_end_matches(is_in_key);
        // A hash of 64 bytes looks the same.
        let is_key = name.ends_with(':') && !name.ends_with("sha512:");
        if until.len() - name.len() == LENGTH && is_key {
            add(at - LENGTH..at + 2, SecretHome::SigningKey);
        }
    }
    for (at, mark) in text.match_indices("PRIVATE KEY-----") {
        let begin = at + mark.len();
        let key = after(text, begin);
        let key = &key[..key.find("-----END ").unwrap_or(key.len())];
        let is_begin = before(text, at)
            .rsplit("-----")
            .next()
            .is_some_and(|mark| mark.starts_with("BEGIN "));
        let mut words = key.split(|c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c));
        if is_begin && words.any(|word| word.len() >= 16) {
            add(begin..begin + key.len(), SecretHome::SigningKey);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::corpus::{PLAIN, SECRETS};
    use super::*;

    #[test]
    fn a_secret_is_found_and_only_the_secret_is_hidden() {
        for (before, secret, after, home) in SECRETS {
            let text = [*before, *secret, *after].concat();
            assert_eq!(
                redacted(&text),
                [*before, HIDDEN, *after].concat(),
                "{text}"
            );
            assert_eq!(find(&text), Some(*home), "{text}");
            // As Nix repeats it.
            let message = format!("error: unable to download '{text}': HTTP error 404");
            let shown = redacted(&message);
            assert!(
                !shown.contains(&text) && shown.starts_with("error: unable"),
                "{shown}"
            );
        }
    }

    #[test]
    fn shortened_text_has_at_most_so_many_characters_and_no_half_of_a_secret() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöüß", 3), "äö…");
        assert_eq!(shortened(&"検".repeat(6000), 3), "検検…");
        for at_most in 10..40 {
            let text = shortened("at https://user:hunter2hunter2@host/x now", at_most);
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.chars().count() <= at_most);
        }
    }

    #[test]
    fn where_a_long_text_is_cut_before_it_is_searched_no_half_of_a_secret_is_shown() {
        let hidden = format!("?token={} ", "a1".repeat(1000));
        for count in 1..5 {
            for padding in (0..2100).step_by(7) {
                let text = [
                    &hidden.repeat(count),
                    &"x".repeat(padding),
                    " https://user:hunter2hunter2@host/x ",
                    &"y".repeat(9000),
                ]
                .concat();
                let shown = shortened(&text, 1000);
                assert!(!shown.contains("unter2"), "{count} {padding}: {shown}");
                assert!(shown.ends_with('…') && shown.chars().count() <= 1000);
            }
        }
    }

    #[test]
    fn of_two_secrets_that_overlap_nothing_is_shown() {
        let token = format!("ghp_{}", "a1B2".repeat(9));
        let text = format!("https://u:{token}tail-of-it@h");
        assert_eq!(redacted(&text), "https://***@h");
    }

    #[test]
    fn a_colour_within_a_secret_hides_it_from_nobody() {
        let text = "https://user:pass\u{1b}[0mword@h/x";
        assert_eq!(find(text), Some(SecretHome::Netrc));
    }

    #[test]
    fn each_secret_of_a_text_is_hidden() {
        for (text, shown) in [
            (
                "https://a:b@c@host and s3://k:s@b?x=a@b&token=c, ssh://git:p@h",
                "https://***@host and s3://***@b?x=a@b&token=***, ssh://***@h",
            ),
            (
                "ssh: https://token@host?token=%41%4",
                "ssh: https://***@host?token=***",
            ),
            (
                "\u{1b}[35;1mhttps://t@h\u{1b}[0m",
                "\u{1b}[35;1mhttps://***@h\u{1b}[0m",
            ),
            (
                "\u{1b}[1mhttps://a:\u{1b}[31mb\u{1b}[0m@h GITHUB_\u{1b}[1mTOKEN\u{1b}[m=abcdef0123456789",
                "https://***@h GITHUB_TOKEN=***",
            ),
            (
                "access-tokens = a.b=c d.e=f g",
                "access-tokens = a.b=*** d.e=*** g",
            ),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }

    #[test]
    fn a_text_without_a_secret_is_shown_as_it_is() {
        for text in PLAIN {
            assert_eq!(redacted(text), *text);
            assert_eq!(find(text), None, "{text}");
            let message = format!("error: unable to download '{text}': HTTP error 404");
            assert_eq!(redacted(&message), message);
        }
    }

    #[test]
    fn a_variable_or_an_argument_is_secret_by_its_name_and_its_value() {
        for (name, value) in [
            ("GITHUB_TOKEN", "abcdef"),
            ("token", "hunter2"),
            ("githubToken", "t0p-s3cret"),
            ("db-password", "topsecret"),
            ("AWS_SECRET_ACCESS_KEY", "x+abcd"),
            ("apiKey", "0123456789abcdef"),
            ("DB_CONNECTION_STRING", "Server=x;User=y"),
            ("DB_PASS", "hunter2"),
            ("pw", "hunter2"),
        ] {
            assert!(is_secret_value(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("tokenizer", "abcdefgh0"),
            ("tokenFile", "abcdefgh0"),
            ("TOKEN", ""),
            ("TOKEN", "short"),
            ("TOKEN", "$OTHER_TOKEN"),
            ("TOKEN", "/run/keys/token"),
            ("TOKEN", "https://host/token"),
            ("secret", "github-token"),
            ("deploySecret", "ci/deploy-key"),
            ("POSTGRES_PASSWORD", "postgres"),
            ("CI_TOKEN", "dummy-token-1"),
            ("token", "123456"),
            ("AWS_ACCESS_KEY_ID", "AKIA0123456789"),
            ("publicKey", "AAAAB3NzaC1yc2E0"),
            ("key", "drv-0123456789"),
            ("passwordless", "certainly"),
            ("secrets", "certainly"),
            ("FIRST_PASS", "enabled"),
            ("bypass", "certainly"),
        ] {
            assert!(!is_secret_value(name, value), "{name}={value}");
        }
    }

    #[test]
    fn a_line_of_nothing_but_beginnings_takes_no_longer() {
        for part in [
            "://",
            "?token=",
            "access-tokens=",
            "--token=",
            "curl -u ",
            " -ua:",
            "curl -u a",
            "x-token: ",
            "https:/",
            "PRIVATE KEY-----",
            "A_TOKEN=",
            " password ",
            "%3a",
        ] {
            let line = part.repeat(20_000 / part.len());
            let begin = std::time::Instant::now();
            let _ = redacted(&line);
            assert!(
                begin.elapsed().as_secs() < 30,
                "{part}: {:?}",
                begin.elapsed()
            );
        }
    }

    #[test]
    fn what_was_redacted_is_looked_at_again() {
        assert_eq!(redacted("?token=://:&@"), "?token=***");
    }

    proptest! {
        #[test]
        fn what_was_redacted_has_no_secret(text in "[a-c:/@?&=%'\" 0-9Tt*.$\u{e4}-]{0,60}") {
            let text = text.replace('t', "://").replace('T', "?token=");
            let shown = redacted(&text).into_owned();
            prop_assert_eq!(redacted(&shown), shown.as_str());
        }

        #[test]
        fn a_secret_is_found_whatever_surrounds_it(
            before in "([a-z \u{e4}]{0,20} )?", secret in 0..SECRETS.len(), after in "( [a-z \u{e4}]{0,20})?"
        ) {
            let (begin, secret, end, _) = SECRETS[secret];
            let shown = redacted(&[&before, begin, secret, end, &after].concat()).into_owned();
            prop_assert_eq!(shown, [&before, begin, HIDDEN, end, &after].concat());
        }

        #[test]
        fn a_generated_password_is_never_shown(
            user in "[a-z]{1,8}", password in "[A-Za-z0-9!._~%@-]{4,20}", scheme in "(git\\+)?https?"
        ) {
            let text = format!("error: cannot fetch {scheme}://{user}:x{password}y@example.org/r: no");
            let expected = format!("error: cannot fetch {scheme}://***@example.org/r: no");
            prop_assert_eq!(redacted(&text), expected);
        }
    }
}
