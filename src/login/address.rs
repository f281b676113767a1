//! The address of a name with which a login begins.
//!
//! A client library tries the addresses of a name one after the other, and a first address that does not
//! answer uses up `connect_timeout` alone. So after a login that was not answered, the next one goes to another
//! address, and the logins stay there until one of them fails. Until then the name is not resolved here.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use crate::url::PeerUrl;
use crate::url::dialect::Dialect;

/// Returns the URL for a login, after this number of failed ones: with the name of the host, or with one of its
/// addresses. The name stays where the login depends on it.
pub(super) fn url_for_turn(url: &Arc<PeerUrl>, dialect: Dialect, turn: usize) -> Arc<PeerUrl> {
    const ANY_PORT: u16 = 0;
    let has_known_form = matches!(dialect, Dialect::MySql | Dialect::Postgres);
    if turn == 0 || !has_known_form || url.check_address_allowed(dialect).is_err() {
        return url.clone();
    }
    let Some(host) = url.host_name(dialect) else { return url.clone() };
    let mut addresses = Vec::new();
    for address in (host, ANY_PORT).to_socket_addrs().into_iter().flatten() {
        let address = address.ip();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match address_for_turn(&addresses, turn) {
        Some(address) => Arc::new(url.at_address(dialect, address)),
        None => url.clone(),
    }
}

/// Returns the address for this turn. The client library gets its own turn, with the name: it begins with the
/// first address, and tries the others if that is refused.
fn address_for_turn(addresses: &[IpAddr], turn: usize) -> Option<IpAddr> {
    let turn = turn % addresses.len().max(1);
    addresses.get(turn).copied().filter(|_| turn > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_the_name_have_their_turns() {
        let addresses =
            ["::1", "10.0.0.1", "10.0.0.2"].map(|text| text.parse().expect("an address"));
        for (count, expected) in [
            (0, [None; 5]),
            (1, [None; 5]),
            (2, [None, Some(1), None, Some(1), None]),
            (3, [None, Some(1), Some(2), None, Some(1)]),
        ] {
            let of_turn = |turn| address_for_turn(&addresses[..count], turn);
            let expected = expected.map(|index: Option<usize>| index.map(|index| addresses[index]));
            assert_eq!([0, 1, 2, 3, 4].map(of_turn), expected, "{count} addresses");
        }
    }
}
