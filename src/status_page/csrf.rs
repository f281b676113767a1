//! Protection against cross-site request forgery (CSRF): accepts only forms of the page itself, and none
//! that another site sends through an operator's browser.

use std::collections::BTreeMap;

use subtle::ConstantTimeEq;

use super::error::PageError;

/// The fields of a form.
pub(super) type Form = BTreeMap<String, String>;

/// The limit of a form's size. A form of the page with long names is shorter.
pub(crate) const MAX_FORM_BYTES: usize = 65_536;

/// Parses the form if the page itself has sent it.
pub(super) fn check<'h>(
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    token: &str,
) -> Result<Form, PageError> {
    // Browsers send `none` for requests that a user has started, such as a bookmark.
    if header("Sec-Fetch-Site").is_some_and(|site| !["same-origin", "none"].contains(&site)) {
        return Err(PageError::CrossSite);
    }
    if header("Origin").is_some_and(|origin| !has_host(origin, header("Host"))) {
        return Err(PageError::CrossSite);
    }
    if body.len() > MAX_FORM_BYTES {
        return Err(PageError::InvalidForm);
    }
    let form = parse(body);
    // The token is read from the body only, because addresses are logged.
    let given = form.get("token").map(String::as_bytes).unwrap_or_default();
    if !bool::from(given.ct_eq(token.as_bytes())) {
        return Err(PageError::WrongToken);
    }
    Ok(form)
}

/// Whether an origin, such as `https://db.example:8443`, has this host. The origin `null` has no host.
fn has_host(origin: &str, host: Option<&str>) -> bool {
    let of_origin = origin.split_once("://").map(|(_, host)| host);
    of_origin.zip(host).is_some_and(|(one, other)| one.eq_ignore_ascii_case(other))
}

/// Parses the fields of a form. Of several fields of one name the last one counts.
fn parse(body: &[u8]) -> Form {
    form_urlencoded::parse(body).into_owned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";
    const BODY: &str = "token=0123456789abcdef&pool=shop&peer=db0&action=drain";

    fn checked(headers: &[(&str, &'static str)], body: &str) -> Result<Form, PageError> {
        let header = |name: &str| {
            headers
                .iter()
                .find(|(given, _)| given.eq_ignore_ascii_case(name))
                .map(|(_, value)| *value)
        };
        check(header, body.as_bytes(), TOKEN)
    }

    #[test]
    fn form_of_the_own_page_is_accepted() {
        let host = ("Host", "db.example:8000");
        for headers in [
            [].as_slice(),
            &[host],
            &[host, ("Origin", "http://db.example:8000"), ("Sec-Fetch-Site", "same-origin")],
            &[host, ("Origin", "https://DB.example:8000")],
            &[("Sec-Fetch-Site", "none")],
        ] {
            let form =
                checked(headers, BODY).unwrap_or_else(|_| panic!("{headers:?} are accepted"));
            assert_eq!(form["peer"], "db0");
        }
    }

    #[test]
    fn form_of_another_site_is_rejected_even_with_the_token() {
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
            let error = checked(headers, BODY).expect_err("another site is rejected");
            assert_eq!(error, PageError::CrossSite, "{headers:?}");
        }
    }

    #[test]
    fn form_without_the_token_of_this_page_is_rejected() {
        for token in ["", "0", "0123456789abcdeF", "0123456789abcdef0", "123456789abcdef"] {
            let body = BODY.replace(TOKEN, token);
            assert_eq!(checked(&[], &body), Err(PageError::WrongToken), "{token}");
        }
        for body in ["", "&", "token", "pool=shop&peer=db0&action=drain"] {
            assert_eq!(checked(&[], body), Err(PageError::WrongToken), "{body}");
        }
        let long = format!("{BODY}&more={}", "x".repeat(MAX_FORM_BYTES));
        assert_eq!(checked(&[], &long), Err(PageError::InvalidForm));
    }

    #[test]
    fn fields_are_decoded_and_the_last_of_a_name_counts() {
        let form = parse("a+b=%3Cscript%3E%26+%E2%80%A8&=&c=d=e&c=f".as_bytes());
        assert_eq!(form["a b"], "<script>& \u{2028}");
        assert_eq!(form["c"], "f");
    }
}
