//! What has happened to a peer: the difference between two states of it. One pure function.

use std::time::{Duration, Instant};

use crate::events::EventKind;
use crate::fault::Fault;
use crate::peers::admin_state::AdminState;
use crate::peers::peer::{HealthState, Peer};

/// Returns the events between two states of a peer. `cannot_connect` is whether no connection can be opened after
/// the change. Changes of a removed peer are no events.
pub(crate) fn events_between(
    before: &Peer,
    after: &Peer,
    cannot_connect: bool,
    now: Instant,
) -> Vec<EventKind> {
    let mut events = Vec::new();
    if before.is_removed() {
        return events;
    }
    match (&before.health.state, &after.health.state) {
        (HealthState::Up { .. }, HealthState::Down { cause, .. }) => events.push(EventKind::Down {
            reason: cause.reason.to_string(),
            fault: cause.fault,
            next_check: after.scheduled_check(cannot_connect).saturating_duration_since(now),
        }),
        (HealthState::Down { since, .. }, HealthState::Up { .. }) => {
            events.push(EventKind::Up { was_down: now.saturating_duration_since(*since) });
        }
        (HealthState::Up { .. }, HealthState::Up { .. }) => {
            events.extend(match (&before.health.full, &after.health.full) {
                (None, Some(reason)) => Some(EventKind::Full { reason: reason.to_string() }),
                (Some(_), None) => Some(EventKind::HasRoom),
                _ => None,
            });
        }
        (HealthState::Down { cause: last, .. }, HealthState::Down { cause, .. }) => {
            if cause.fault == Fault::Misconfigured && last.fault != Fault::Misconfigured {
                events.push(EventKind::Misconfigured { reason: cause.reason.to_string() });
            }
        }
    }
    match (before.is_at_limit(), after.is_at_limit()) {
        (false, true) => {
            let max_connections = after.max_connections.unwrap_or_default();
            events.push(EventKind::AtLimit { max_connections });
        }
        (true, false) if after.is_up() => events.push(EventKind::BelowLimit),
        _ => {}
    }
    match (before.slow, after.slow) {
        (None, Some(slow)) => events.push(EventKind::Slow {
            query_time: slow.time,
            others_query_time: slow.others,
            is_relieved: slow.is_relieved,
        }),
        // A peer that is not available any more has another event.
        (Some(slow), None) if after.is_available() => events
            .push(EventKind::NoLongerSlow { was_slow: now.saturating_duration_since(slow.since) }),
        _ => {}
    }
    let (from, to) = (before.admin_state, after.admin_state);
    match (from == AdminState::InService, to == AdminState::InService) {
        (true, false) => events.push(EventKind::Draining),
        (false, true) => events.push(EventKind::Resumed),
        _ => {}
    }
    let has_ended = |state| matches!(state, AdminState::Drained { .. } | AdminState::Removed);
    if has_ended(to) && !has_ended(from) {
        let took = match from {
            AdminState::Draining { since, .. } => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        events.push(EventKind::Drained { took });
    }
    if to == AdminState::Removed {
        events.push(EventKind::Removed);
    }
    if before.weight != after.weight {
        events.push(EventKind::WeightChanged { from: before.weight, to: after.weight });
    }
    if before.max_connections != after.max_connections {
        let (from, to) = (before.max_connections, after.max_connections);
        events.push(EventKind::LimitChanged { from, to });
    }
    events
}
