//! What is known of the pool's customizer. r2d2 tells nobody whether there is one, and it calls `on_acquire` with
//! each new slot, in the thread that has just created the slot's link. So the slots show what it does.

/// Whether the pool's customizer uses the connections of new slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Customizer {
    /// No slot has shown anything yet.
    Unknown,
    /// It has used the connection of each slot that has shown anything, or has to be assumed to use them.
    UsesAll,
    /// It has used no connection: the slots that have shown anything had not taken their links before they were
    /// checked out or returned.
    UsesNone,
    /// It has used some connections and not others.
    UsesSome,
}

impl Customizer {
    /// Whether it has to see each new link, so that a link that the checker has opened may not take the place of
    /// another one.
    pub(crate) fn must_see_new_links(self) -> bool {
        matches!(self, Self::UsesAll | Self::UsesSome)
    }

    /// Whether it may leave a connection unused, so that a new link is reserved for it for a moment only.
    pub(crate) fn may_ignore_connections(self) -> bool {
        matches!(self, Self::UsesNone | Self::UsesSome)
    }

    /// Records that it has used the connection of a new slot.
    pub(crate) fn record_used_connection(&mut self) {
        *self = match *self {
            Self::Unknown | Self::UsesAll => Self::UsesAll,
            Self::UsesNone | Self::UsesSome => Self::UsesSome,
        }
    }

    /// Records that it has not used the connection of a new slot.
    pub(crate) fn record_ignored_connection(&mut self) {
        *self = match *self {
            Self::Unknown | Self::UsesNone => Self::UsesNone,
            Self::UsesAll | Self::UsesSome => Self::UsesSome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customizer_may_use_some_connections_and_not_others() {
        let mut customizer = Customizer::Unknown;
        assert!(!customizer.must_see_new_links() && !customizer.may_ignore_connections());
        customizer.record_used_connection();
        assert_eq!(customizer, Customizer::UsesAll);
        assert!(customizer.must_see_new_links() && !customizer.may_ignore_connections());
        customizer.record_ignored_connection();
        assert_eq!(customizer, Customizer::UsesSome);
        assert!(customizer.must_see_new_links() && customizer.may_ignore_connections());

        let mut customizer = Customizer::Unknown;
        customizer.record_ignored_connection();
        assert_eq!(customizer, Customizer::UsesNone);
        assert!(!customizer.must_see_new_links() && customizer.may_ignore_connections());
        customizer.record_used_connection();
        assert_eq!(customizer, Customizer::UsesSome);
    }
}
