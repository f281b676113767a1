//! Parser for URLs of the form `scheme://user:password@host0:1,host1:2/database?key=value&key=value`,
//! the form with several hosts that libpq, JDBC and MongoDB use.
//!
//! The parser checks the syntax only. Its errors show nothing of a malformed URL, because any part of the
//! URL could be a part of a password that is not escaped.

use std::fmt;
use std::net::Ipv6Addr;

use crate::error::Flaw;
use crate::redact::REDACTED;

/// The correction for special characters that are not escaped.
const ESCAPES: &str = "percent-encode special characters in a user, a password or a name (`@` is %40, \
                       `:` %3A, `/` %2F, `?` %3F, `#` %23, `%` %25)";

/// A parsed URL. Every part is as written: escapes are not decoded.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Uri {
    pub(crate) scheme: String,
    /// The part before the last `@`.
    pub(crate) userinfo: Option<String>,
    /// The hosts, each with its port if there is one. Only a single host may be empty.
    pub(crate) hosts: Vec<String>,
    /// The path with its leading `/`, or an empty string.
    pub(crate) path: String,
    pub(crate) parameters: Vec<Parameter>,
}

/// A parameter `key=value`, or `key` without a value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

impl Uri {
    pub(crate) fn parse(text: &str) -> Result<Self, Flaw> {
        let (scheme, rest) =
            text.split_once("://").ok_or("is not a URL, because it has no `://`")?;
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(is_scheme)
        {
            return Err("is not a URL, because the text before `://` is not a scheme".into());
        }
        if rest.contains(|c: char| c.is_control() || c.is_whitespace() || c == '#') {
            return Err(Flaw::new("contains a space, a `#` or a control character", ESCAPES));
        }
        if !escapes_are_valid(rest) {
            return Err(Flaw::new("contains a `%` that does not begin an escape", ESCAPES));
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if rest.split('?').next().is_some_and(|path| path.contains("://")) {
            let correction = "list several hosts in one URL, such as `mysql://db0,db1/shop`";
            return Err(Flaw::new("contains a second `://`", correction));
        }
        if rest.contains('@') {
            return Err(Flaw::new("contains an `@` after the host", ESCAPES));
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (userinfo, hosts) = match authority.rsplit_once('@') {
            Some((userinfo, hosts)) => (Some(userinfo.to_owned()), hosts),
            None => (None, authority),
        };
        let hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        for (index, host) in hosts.iter().enumerate() {
            check_host(host, hosts.len() == 1).map_err(|flaw| Flaw {
                what: format!("{} (host number {})", flaw.what, index + 1).into(),
                ..flaw
            })?;
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            userinfo,
            hosts,
            path: path.to_owned(),
            parameters: parameters(query),
        })
    }

    /// Returns one URL per host, equal in all other parts.
    pub(crate) fn each_host(&self) -> impl Iterator<Item = Self> {
        self.hosts.iter().map(|host| Self { hosts: vec![host.clone()], ..self.clone() })
    }

    pub(crate) fn parameter(&self, key: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.key == key)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, userinfo, hosts, path, parameters } = self;
        write!(f, "{scheme}://")?;
        if let Some(userinfo) = userinfo {
            write!(f, "{userinfo}@")?;
        }
        write!(f, "{}{path}{}", hosts.join(","), Query(parameters))
    }
}

impl Parameter {
    /// Returns the key if it looks like one, else a placeholder. In a URL with a `password` parameter,
    /// every key could be the end of the password, after a `&` that is not escaped.
    pub(crate) fn shown(&self, has_password: bool) -> &str {
        let is_key = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let is_shown = !has_password && self.value.is_some() && self.key.bytes().all(is_key);
        if is_shown { &self.key } else { REDACTED }
    }
}

/// Splits `key=value&key` into parameters.
pub(crate) fn parameters(query: &str) -> Vec<Parameter> {
    let parameter = |text: &str| match text.split_once('=') {
        Some((key, value)) => Parameter { key: key.to_owned(), value: Some(value.to_owned()) },
        None => Parameter { key: text.to_owned(), value: None },
    };
    query.split('&').filter(|text| !text.is_empty()).map(parameter).collect()
}

/// Displays parameters as `?key=value&key`, or as nothing if there are none.
pub(crate) struct Query<'a>(pub(crate) &'a [Parameter]);

impl fmt::Display for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Parameter { key, value }) in self.0.iter().enumerate() {
            write!(f, "{}{key}", if index == 0 { '?' } else { '&' })?;
            if let Some(value) = value {
                write!(f, "={value}")?;
            }
        }
        Ok(())
    }
}

/// Checks a host: a name, an IPv4 address, or an IPv6 address in brackets; and its port, if there is one.
fn check_host(host: &str, is_only_host: bool) -> Result<(), Flaw> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("has a `[` without a `]`")?;
            // libpq accepts a zone: `fe80::1%25eth0`.
            let address = address.split('%').next().unwrap_or(address);
            address.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address between `[` and `]`")?;
            (address, port)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    if name.is_empty() && !(is_only_host && port.is_empty()) {
        return Err("has an empty host".into());
    }
    // The `@` before the host must not be escaped. (The name of an abstract Unix socket begins with `@`.)
    if percent_decoded(name).trim_start_matches('@').contains('@') {
        let correction = "do not escape the `@` before the host";
        return Err(Flaw::new("has an escaped `@` in a host", correction));
    }
    if name.contains(['[', ']']) {
        return Err("has a `[` or `]` in a host that is not an IPv6 address".into());
    }
    let Some(port) = port.strip_prefix(':') else {
        let flaw = "has characters after `]` that are not a port";
        return if port.is_empty() { Ok(()) } else { Err(flaw.into()) };
    };
    if port.contains(':') {
        let correction = "write an IPv6 address in brackets, such as [::1]:3306, and write a `:` in a \
                          user or a password as %3A";
        return Err(Flaw::new("has several `:` in a host", correction));
    }
    let is_port = port.bytes().all(|digit| digit.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    if !is_port {
        let correction = format!("correct the port or, if it is a part of the password, {ESCAPES}");
        return Err(Flaw::new("has a port that is not a number from 1 to 65535", correction));
    }
    Ok(())
}

fn escapes_are_valid(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|after| after.len() >= 2 && after.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit))
}

/// Decodes escapes such as `%41` (`A`). Leaves invalid escapes unchanged.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Escapes every character that could be special anywhere in a URL.
pub(crate) fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use rand::RngExt;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::cases::{LOWERCASE, any_text, for_each_case, maybe, several, text_of};

    #[test]
    fn url_is_split_into_its_parts() {
        let uri = Uri::parse("mysql://app:p%40ss@db0,db1:3307,[::1]:3308/shop?a=1&b&c=%20");
        let uri = uri.expect("the URL is well-formed");
        assert_eq!((&*uri.scheme, uri.userinfo.as_deref()), ("mysql", Some("app:p%40ss")));
        assert_eq!(uri.hosts, ["db0", "db1:3307", "[::1]:3308"]);
        assert_eq!(uri.path, "/shop");
        let parameters: Vec<_> = uri
            .parameters
            .iter()
            .map(|parameter| (&*parameter.key, parameter.value.as_deref()))
            .collect();
        assert_eq!(parameters, [("a", Some("1")), ("b", None), ("c", Some("%20"))]);
        let each: Vec<String> = uri.each_host().map(|uri| uri.to_string()).collect();
        let rest = "/shop?a=1&b&c=%20";
        assert_eq!(each[1], format!("mysql://app:p%40ss@db1:3307{rest}"), "only the host differs");
        let empty = Uri::parse("postgres://").expect("libpq has defaults for all parts");
        assert_eq!((&empty.hosts[..], &*empty.path), (&[String::new()][..], ""));
    }

    #[test]
    fn errors_name_the_flaw_and_show_nothing_of_the_url() {
        let cases = [
            ("s3cret", "is not a URL, because it has no `://`"),
            ("1s3cret://db", "is not a URL, because the text before"),
            ("s3cret%20://db", "is not a URL, because the text before"),
            ("mysql://app:s3 cret@db", "contains a space"),
            ("mysql://app:s3cret#@db", "contains a space, a `#`"),
            ("mysql://app:s3cret%@db", "contains a `%` that does not begin an escape"),
            ("mysql://app:s3cret%4x@db", "contains a `%` that does not begin an escape"),
            ("mysql://app:x/s3cret@db", "contains an `@` after the host"),
            ("mysql://app:1/s3cret@db", "contains an `@` after the host"),
            ("mysql://app:1?s3cret@db", "contains an `@` after the host"),
            ("mysql://app:s3cret@a/?x=y@db", "contains an `@` after the host"),
            ("mysql://app:s3cret/db", "has a port that is not a number from 1 to 65535"),
            ("mysql://db:0", "has a port that is not a number from 1 to 65535"),
            ("mysql://db:65536", "has a port that is not a number from 1 to 65535"),
            ("mysql://db:+1", "has a port that is not a number from 1 to 65535"),
            ("mysql://db:", "has a port that is not a number from 1 to 65535"),
            ("mysql://::1/shop", "has an empty host"),
            ("mysql://fe80::1/shop", "has several `:` in a host"),
            ("mysql://[::1/shop", "has a `[` without a `]`"),
            ("mysql://[s3cret]/shop", "has no IPv6 address"),
            ("mysql://[::1]s3cret/shop", "has characters after `]` that are not a port"),
            ("mysql://s3cret]/shop", "has a `[` or `]`"),
            ("mysql://app%3As3cret%40db0/shop", "has an escaped `@` in a host"),
            ("mysql://db0/s3cret,mysql://db1/shop", "contains a second `://`"),
            ("mysql://db0,,db1/shop", "has an empty host (host number 2)"),
            ("mysql://db0,db1,/shop", "has an empty host (host number 3)"),
            ("mysql://db0,:3306/shop", "has an empty host (host number 2)"),
            ("mysql://:3306/shop", "has an empty host (host number 1)"),
        ];
        for (text, expected) in cases {
            let flaw = Uri::parse(text).map(|uri| uri.to_string()).expect_err(text).to_string();
            assert!(flaw.starts_with(expected) || flaw.contains(expected), "{text}: {flaw}");
            assert!(!flaw.contains("s3cret"), "{text}: {flaw}");
        }
    }

    fn word(rng: &mut SmallRng) -> String {
        percent_encoded(&text_of(rng, &format!("{LOWERCASE}0123456789._~%-"), 1..=8))
    }

    fn host(rng: &mut SmallRng) -> String {
        let name = if rng.random_bool(0.5) {
            let more = format!("{LOWERCASE}0123456789.-");
            text_of(rng, LOWERCASE, 1..=1) + &text_of(rng, &more, 0..=8)
        } else {
            format!("[{}]", Ipv6Addr::from_bits(rng.random()))
        };
        match maybe(rng, |rng| rng.random_range(1..=u16::MAX)) {
            Some(port) => format!("{name}:{port}"),
            None => name,
        }
    }

    fn userinfo(rng: &mut SmallRng) -> String {
        let user = percent_encoded(&any_text(rng, 0..=8));
        match maybe(rng, |rng| percent_encoded(&any_text(rng, 0..=8))) {
            Some(password) => format!("{user}:{password}"),
            None => user,
        }
    }

    fn any_uri(rng: &mut SmallRng) -> Uri {
        let more = format!("{LOWERCASE}0123456789+.-");
        Uri {
            scheme: text_of(rng, LOWERCASE, 1..=1) + &text_of(rng, &more, 0..=8),
            userinfo: maybe(rng, userinfo),
            hosts: several(rng, 1..=4, host),
            path: maybe(rng, |rng| format!("/{}", word(rng))).unwrap_or_default(),
            parameters: several(rng, 0..=3, |rng| Parameter {
                key: word(rng),
                value: maybe(rng, word),
            }),
        }
    }

    impl fmt::Debug for Parameter {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}={:?}", self.key, self.value)
        }
    }

    impl fmt::Debug for Uri {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    #[test]
    fn displayed_urls_parse_to_the_same_parts() {
        for_each_case(any_uri, |uri| {
            assert_eq!(Uri::parse(&uri.to_string()).as_ref(), Ok(uri));
        });
    }

    #[test]
    fn parsed_urls_are_displayed_without_loss() {
        let alphabet = format!("{LOWERCASE}@:,./?&=%0123456789[]-");
        let any_url = |rng: &mut SmallRng| {
            format!("{}://{}", text_of(rng, LOWERCASE, 1..=4), text_of(rng, &alphabet, 0..=20))
        };
        for_each_case(any_url, |text| {
            if let Ok(uri) = Uri::parse(text) {
                let written = uri.to_string();
                // The text can differ: empty parameters (`?a&&b`) and an empty query are dropped.
                assert_eq!(Uri::parse(&written), Ok(uri));
            }
        });
    }

    #[test]
    fn decoding_reverses_encoding() {
        let any = |rng: &mut SmallRng| any_text(rng, 0..=32);
        for_each_case(any, |text| assert_eq!(percent_decoded(&percent_encoded(text)), *text));
    }
}
