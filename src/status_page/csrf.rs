//! Whether a form was sent from our own page, and not by another site through an operator's browser.

use std::collections::BTreeMap;
use std::hint::black_box;

use super::error::PageError;
use crate::url::percent_decoded;

/// The fields of a form.
pub(super) type Form = BTreeMap<String, String>;

/// Longer than a form of ours with a long name.
pub(crate) const LONGEST: usize = 65_536;

/// Reads the form if nothing speaks against it.
pub(super) fn check<'h>(
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    token: &str,
) -> Result<Form, PageError> {
    // A user's own doing is `none`.
    if header("Sec-Fetch-Site").is_some_and(|site| !["same-origin", "none"].contains(&site)) {
        return Err(PageError::OtherSite);
    }
    if header("Origin").is_some_and(|origin| !is_of(origin, header("Host"))) {
        return Err(PageError::OtherSite);
    }
    if body.len() > LONGEST {
        return Err(PageError::NoForm);
    }
    let form = form(body);
    // In the body: a token in an address would be logged.
    let given = form.get("token").map(String::as_str).unwrap_or_default();
    if !is_same(given, token) {
        return Err(PageError::OtherPage);
    }
    Ok(form)
}

/// Whether an origin, as `https://db.example:8443`, is that of this host. `null` is nobody's.
fn is_of(origin: &str, host: Option<&str>) -> bool {
    let of = origin.split_once("://").map(|(_, host)| host);
    of.zip(host).is_some_and(|(of, host)| of.eq_ignore_ascii_case(host))
}

/// Compares in a time that tells nothing of where two texts differ.
fn is_same(given: &str, token: &str) -> bool {
    let pairs = given.bytes().zip(token.bytes());
    let differs = pairs.fold(0, |differs, (one, other)| black_box(differs | (one ^ other)));
    given.len() == token.len() && differs == 0
}

/// The fields of a form as browsers send it. Of two by one name the last counts.
fn form(body: &[u8]) -> Form {
    let text = String::from_utf8_lossy(body);
    let decoded = |text: &str| percent_decoded(&text.replace('+', " "));
    let fields = text.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";
    const BODY: &str = "token=0123456789abcdef&pool=shop&peer=db0&action=drain";

    fn checked(headers: &[(&str, &'static str)], body: &str) -> Result<Form, PageError> {
        let header = |name: &str| {
            headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, it)| *it)
        };
        check(header, body.as_bytes(), TOKEN)
    }

    #[test]
    fn our_own_page_may() {
        let host = ("Host", "db.example:8000");
        for headers in [
            [].as_slice(),
            &[host],
            &[host, ("Origin", "http://db.example:8000"), ("Sec-Fetch-Site", "same-origin")],
            &[host, ("Origin", "https://DB.example:8000")],
            &[("Sec-Fetch-Site", "none")],
        ] {
            let form = checked(headers, BODY).unwrap_or_else(|_| panic!("{headers:?} may"));
            assert_eq!(form["peer"], "db0");
        }
    }

    #[test]
    fn other_sites_may_not_even_with_the_token() {
        let host = ("Host", "db.example");
        for headers in [
            [("Sec-Fetch-Site", "cross-site")].as_slice(),
            &[("Sec-Fetch-Site", "same-site")],
            &[("Sec-Fetch-Site", "")],
            &[host, ("Origin", "http://elsewhere.example"), ("Sec-Fetch-Site", "same-origin")],
            &[host, ("Origin", "http://db.example:81")],
            &[host, ("Origin", "http://db.example.elsewhere.example")],
            &[host, ("Origin", "null")],
            &[host, ("Origin", "db.example")],
            &[host, ("Origin", "")],
            &[("Origin", "http://db.example")],
        ] {
            let refused = checked(headers, BODY).expect_err("it comes from elsewhere");
            assert_eq!(refused, PageError::OtherSite, "{headers:?}");
        }
    }

    #[test]
    fn other_pages_may_not() {
        for token in ["", "0", "0123456789abcdeF", "0123456789abcdef0", "123456789abcdef"] {
            let body = BODY.replace(TOKEN, token);
            assert_eq!(checked(&[], &body), Err(PageError::OtherPage), "{token}");
        }
        for body in ["", "&", "token", "pool=shop&peer=db0&action=drain"] {
            assert_eq!(checked(&[], body), Err(PageError::OtherPage), "{body}");
        }
        let long = format!("{BODY}&more={}", "x".repeat(LONGEST));
        assert_eq!(checked(&[], &long), Err(PageError::NoForm));
    }

    #[test]
    fn names_are_decoded() {
        let form = form("a+b=%3Cscript%3E%26+%E2%80%A8&=&c=d=e&c=f".as_bytes());
        assert_eq!(form["a b"], "<script>& \u{2028}");
        assert_eq!(form["c"], "f");
    }
}
