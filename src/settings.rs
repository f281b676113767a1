//! The settings of a manager: defaults, validation and the times that follow from them.

pub(crate) mod policy;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::error::BuildErrorKind;
use crate::fault::Classifier;
use crate::settings::policy::{AllDown, Recovery, Requirements, Strategy};
use crate::socket::Tuning;

/// The random part of intervals. A check comes later than its interval by up to this fraction, so that a
/// thousand processes that saw the same failure do not return at once. A link is closed earlier than its
/// maximum age by up to this fraction, so that links that were opened together are not closed together.
const JITTER: f64 = 0.1;

/// The maximum of all durations: practically unlimited. `Instant` cannot represent much longer times.
const MAX_DURATION: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// From django-proxysql.
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The minimum time between two checks: each login takes a server some milliseconds.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The minimum age at which a running query triggers a check: twice the time that the checker takes to
/// notice a query.
const MIN_STALL_AFTER: Duration = Duration::from_millis(100);

/// The default timeout of one login: many times the duration of a login over a slow network, and a sixth
/// of r2d2's default `connection_timeout`.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The default timeout of `connect()` with all its logins: a third of r2d2's default
/// `connection_timeout`.
const DEFAULT_CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The default interval of checks while all peers are down: short enough that the pool serves again within
/// half a second of a peer's return. Refusing a connection costs a host almost nothing.
const DEFAULT_ALL_DOWN_INTERVAL: Duration = Duration::from_millis(250);

/// The default time for which one `connect()` waits while all peers are down: longer than r2d2 lets a slot
/// sleep after a failed connect, which is up to half of its `connection_timeout`.
const DEFAULT_ALL_DOWN_WAIT: Duration = Duration::from_secs(20);

/// The default timeout of a check that is made because queries hang. A small server with 64 busy sessions
/// was observed to delay a login by 0.9 s.
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// The default timeout of a ping. Other pools give the validation of a connection 5 s, which is long for
/// a user who waits for a page.
const DEFAULT_PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The default idle time after which a connection is pinged at checkout: by then a firewall may have
/// dropped the connection.
const DEFAULT_PING_IDLE: Duration = Duration::from_secs(30);

/// The default age at which a running query triggers a check of its peer.
const DEFAULT_STALL_AFTER: Duration = Duration::from_secs(2);

/// The default time without received data after which the kernel sends keepalive probes. The connection is
/// closed after three unanswered probes, a third of this time apart. The kernel's own default is two
/// hours.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(9);

/// The default time for which sent data may remain unacknowledged. The kernel's own default amounts to a
/// quarter of an hour.
const DEFAULT_TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// The default limits of `connect_deadline` and `connect_timeout`, as fractions of the pool's timeout.
/// The pool can report the reasons of failed logins only if these end before its own timeout.
const MAX_DEADLINE_FRACTION: f64 = 0.8;
const MAX_TIMEOUT_FRACTION: f64 = 0.4;

/// The default minimum of `all_down_wait`, as a fraction of the pool's timeout: r2d2 lets a slot sleep
/// after a failed connect for up to half of the pool's timeout.
const MIN_WAIT_FRACTION: f64 = 0.6;

/// The default minimum time between two connections that are closed for rebalancing.
const DEFAULT_REBALANCE_INTERVAL: Duration = Duration::from_millis(200);

/// The default maximum age of a connection: that of r2d2's `max_lifetime`, which applies to its slots.
const DEFAULT_CONNECTION_MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// The minimum time between two lookups of a host name.
const MIN_RESOLVE_INTERVAL: Duration = Duration::from_millis(10);

/// The name of a pool that was given none.
const DEFAULT_NAME: &str = "default";

/// The settings. The builder's methods document each of them.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) pool_name: String,
    pub(crate) check_interval: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) connect_deadline: Duration,
    pub(crate) check_timeout: Duration,
    pub(crate) ping_timeout: Duration,
    pub(crate) ping_idle: Duration,
    pub(crate) stall_after: Option<Duration>,
    pub(crate) tuning: Tuning,
    pub(crate) recovery: Recovery,
    pub(crate) requirements: Requirements,
    pub(crate) classifier: Classifier,
    pub(crate) all_down: AllDown,
    pub(crate) all_down_interval: Duration,
    pub(crate) all_down_wait: Duration,
    pub(crate) strategy: Strategy,
    pub(crate) rebalance_interval: Duration,
    pub(crate) connection_max_age: Duration,
    pub(crate) resolve_interval: Option<Duration>,
    /// The `connection_timeout` of the pool, if it is known.
    pub(crate) pool_timeout: Option<Duration>,
    /// The name of that setting where it was set, for errors.
    pub(crate) pool_timeout_name: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool_name: DEFAULT_NAME.to_owned(),
            check_interval: DEFAULT_CHECK_INTERVAL,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            connect_deadline: DEFAULT_CONNECT_DEADLINE,
            check_timeout: DEFAULT_CHECK_TIMEOUT,
            ping_timeout: DEFAULT_PING_TIMEOUT,
            ping_idle: DEFAULT_PING_IDLE,
            stall_after: Some(DEFAULT_STALL_AFTER),
            tuning: Tuning {
                keepalive: Some(DEFAULT_KEEPALIVE),
                user_timeout: Some(DEFAULT_TCP_USER_TIMEOUT),
            },
            recovery: Recovery::default(),
            requirements: Requirements::default(),
            classifier: Classifier::default(),
            all_down: AllDown::default(),
            all_down_interval: DEFAULT_ALL_DOWN_INTERVAL,
            all_down_wait: DEFAULT_ALL_DOWN_WAIT,
            strategy: Strategy::default(),
            rebalance_interval: DEFAULT_REBALANCE_INTERVAL,
            connection_max_age: DEFAULT_CONNECTION_MAX_AGE,
            resolve_interval: None,
            pool_timeout: None,
            pool_timeout_name: "pool_timeout",
        }
    }
}

/// The names of the settings that were set explicitly.
pub(crate) type ExplicitSettings = BTreeSet<&'static str>;

/// The times at which a peer is checked next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckTimes {
    /// The time of the next check while any peer is available.
    pub(crate) regular: Instant,
    /// The time of the next check while no peer is available.
    pub(crate) all_down: Instant,
}

impl Settings {
    /// Rejects durations below their minimum and conflicting settings. Adjusts defaults that conflict with
    /// explicit settings.
    pub(crate) fn validate(mut self, explicit: &ExplicitSettings) -> Result<Self, BuildErrorKind> {
        self.check_minimums()?;
        self.check_conflicts(explicit)?;
        self = self.capped();
        let has_deadline = explicit.contains("connect_deadline");
        if let Some(pool_timeout) = self.pool_timeout {
            if !has_deadline {
                let at_most = pool_timeout.mul_f64(MAX_DEADLINE_FRACTION);
                self.connect_deadline = self.connect_deadline.min(at_most);
            }
            if !explicit.contains("connect_timeout") {
                let at_most = pool_timeout.mul_f64(MAX_TIMEOUT_FRACTION);
                self.connect_timeout = self.connect_timeout.min(at_most);
            }
            if !explicit.contains("all_down_wait") {
                let at_least = pool_timeout.mul_f64(MIN_WAIT_FRACTION);
                self.all_down_wait = self.all_down_wait.max(at_least);
            }
        }
        if explicit.contains("connect_timeout") && !has_deadline {
            self.connect_deadline = self.connect_deadline.max(self.connect_timeout);
        }
        Ok(self)
    }

    /// Rejects an explicit timeout that could never end, because another explicit setting ends earlier.
    fn check_conflicts(&self, explicit: &ExplicitSettings) -> Result<(), BuildErrorKind> {
        let check_interval = ("check_interval", self.check_interval);
        let connect_timeout = ("connect_timeout", self.connect_timeout);
        let connect_deadline = ("connect_deadline", self.connect_deadline);
        let check_timeout = ("check_timeout", self.check_timeout);
        let ping_timeout = ("ping_timeout", self.ping_timeout);
        let pool_timeout = (self.pool_timeout_name, self.pool_timeout.unwrap_or(MAX_DURATION));
        for (shorter, longer) in [
            (check_timeout, check_interval),
            (check_timeout, connect_timeout),
            (connect_timeout, connect_deadline),
            (connect_timeout, pool_timeout),
            (connect_deadline, pool_timeout),
            (ping_timeout, pool_timeout),
        ] {
            let are_both_explicit = explicit.contains(shorter.0) && explicit.contains(longer.0);
            if are_both_explicit && shorter.1 > longer.1 {
                return Err(BuildErrorKind::Conflict { shorter, longer });
            }
        }
        Ok(())
    }

    fn check_minimums(&self) -> Result<(), BuildErrorKind> {
        let millisecond = Duration::from_millis(1);
        let Tuning { keepalive, user_timeout } = self.tuning;
        for (setting, duration, least) in [
            ("check_interval", Some(self.check_interval), MIN_CHECK_INTERVAL),
            ("all_down_interval", Some(self.all_down_interval), MIN_CHECK_INTERVAL),
            ("connect_timeout", Some(self.connect_timeout), millisecond),
            ("connect_deadline", Some(self.connect_deadline), millisecond),
            ("check_timeout", Some(self.check_timeout), millisecond),
            ("ping_timeout", Some(self.ping_timeout), millisecond),
            ("stall_after", self.stall_after, MIN_STALL_AFTER),
            ("connection_max_age", Some(self.connection_max_age), millisecond),
            ("resolve_interval", self.resolve_interval, MIN_RESOLVE_INTERVAL),
            ("pool_timeout", self.pool_timeout, millisecond),
            ("tcp_keepalive", keepalive, Duration::from_secs(3)),
            ("tcp_user_timeout", user_timeout, millisecond),
        ] {
            if let Some(duration) = duration.filter(|duration| *duration < least) {
                return Err(BuildErrorKind::TooShort { setting, duration, least });
            }
        }
        Ok(())
    }

    /// Limits durations to what `Instant` can represent.
    fn capped(mut self) -> Self {
        for duration in [
            &mut self.check_interval,
            &mut self.connect_timeout,
            &mut self.connect_deadline,
            &mut self.check_timeout,
            &mut self.ping_timeout,
            &mut self.all_down_interval,
            &mut self.all_down_wait,
            &mut self.connection_max_age,
        ]
        .into_iter()
        .chain(&mut self.pool_timeout)
        .chain(&mut self.resolve_interval)
        {
            *duration = MAX_DURATION.min(*duration);
        }
        self
    }

    /// Disables all checks and lookups that are not requested explicitly.
    #[cfg(feature = "doctor")]
    pub(crate) fn without_checks(self) -> Self {
        Self {
            check_interval: MAX_DURATION,
            all_down_interval: MAX_DURATION,
            stall_after: None,
            resolve_interval: self.resolve_interval.map(|_| MAX_DURATION),
            ..self
        }
    }

    /// Returns the time at which a link that is opened at `now` reaches its maximum age.
    pub(crate) fn expiry(&self, now: Instant, rng: &mut SmallRng) -> Instant {
        now + self.connection_max_age.mul_f64(1.0 - JITTER * rng.random::<f64>())
    }

    /// Returns the times of the next check, counted from `now`.
    pub(crate) fn check_times(&self, now: Instant, rng: &mut SmallRng) -> CheckTimes {
        CheckTimes {
            regular: jittered(now, self.check_interval, rng),
            all_down: jittered(now, self.all_down_interval, rng),
        }
    }

    /// Returns the time of the next lookup of host names.
    pub(crate) fn next_resolve(&self, now: Instant, rng: &mut SmallRng) -> Option<Instant> {
        self.resolve_interval.map(|interval| jittered(now, interval, rng))
    }
}

/// Returns the time one interval after `now`, plus a random part of up to [`JITTER`] of the interval.
fn jittered(now: Instant, interval: Duration, rng: &mut SmallRng) -> Instant {
    now + interval + interval.mul_f64(JITTER * rng.random::<f64>())
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::SeedableRng;

    use super::*;

    pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
    pub(crate) const PACE: Duration = Duration::from_millis(200);

    /// Settings for tests.
    pub(crate) fn settings() -> Settings {
        Settings {
            pool_name: DEFAULT_NAME.to_owned(),
            check_interval: INTERVAL,
            connect_timeout: Duration::from_secs(5),
            connect_deadline: Duration::from_secs(10),
            check_timeout: Duration::from_secs(1),
            ping_timeout: Duration::from_secs(1),
            ping_idle: INTERVAL,
            stall_after: Some(Duration::from_secs(2)),
            tuning: Tuning { keepalive: None, user_timeout: None },
            recovery: Recovery::AfterCheck,
            requirements: Requirements::default(),
            classifier: Classifier::default(),
            all_down: AllDown::Try,
            all_down_interval: Duration::from_millis(250),
            all_down_wait: Duration::from_secs(20),
            strategy: Strategy::LeastConnections,
            rebalance_interval: PACE,
            connection_max_age: INTERVAL,
            resolve_interval: None,
            pool_timeout: None,
            pool_timeout_name: "pool_timeout",
        }
    }

    #[test]
    fn defaults_adapt_to_explicit_settings() {
        let s = Duration::from_secs;
        // The pool's timeout; the explicit values of `connect_timeout`, `connect_deadline` and
        // `all_down_wait`; and the resulting values of these three.
        for (pool_timeout, explicit, expected) in [
            (None, [None; 3], [s(5), s(10), s(20)]),
            (Some(s(5)), [None; 3], [s(2), s(4), s(20)]),
            (Some(s(60)), [None; 3], [s(5), s(10), s(36)]),
            (Some(Duration::MAX), [None; 3], [s(5), s(10), MAX_DURATION.mul_f64(0.6)]),
            (Some(s(5)), [Some(s(4)), Some(s(5)), Some(s(1))], [s(4), s(5), s(1)]),
            (Some(s(5)), [Some(s(5)), None, None], [s(5), s(5), s(20)]),
            (None, [Some(s(30)), None, None], [s(30), s(30), s(20)]),
            (None, [None, Some(s(3)), None], [s(5), s(3), s(20)]),
        ] {
            let mut given = Settings { pool_timeout, ..Settings::default() };
            let mut names = ExplicitSettings::new();
            for (name, setting, explicit) in [
                ("connect_timeout", &mut given.connect_timeout, explicit[0]),
                ("connect_deadline", &mut given.connect_deadline, explicit[1]),
                ("all_down_wait", &mut given.all_down_wait, explicit[2]),
            ] {
                if let Some(explicit) = explicit {
                    *setting = explicit;
                    names.insert(name);
                }
            }
            names.extend(pool_timeout.map(|_| "pool_timeout"));
            let settings = given.validate(&names).expect("the settings do not conflict");
            let actual =
                [settings.connect_timeout, settings.connect_deadline, settings.all_down_wait];
            assert_eq!(actual, expected, "{pool_timeout:?} {explicit:?}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn checks_are_delayed_by_up_to_a_tenth_of_the_interval() {
        let mut rng = SmallRng::seed_from_u64(1);
        let start = Instant::now();
        let delays: Vec<Duration> =
            (0..1000).map(|_| settings().check_times(start, &mut rng).regular - start).collect();
        assert!(delays.iter().all(|delay| (INTERVAL..INTERVAL.mul_f64(1.1)).contains(delay)));
        let (shortest, longest) = (delays.iter().min(), delays.iter().max());
        assert!(
            shortest < Some(&INTERVAL.mul_f64(1.01)),
            "the shortest of many delays is near the interval"
        );
        assert!(
            longest > Some(&INTERVAL.mul_f64(1.09)),
            "the longest of many delays is near the maximum"
        );
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn lookups_are_delayed_by_up_to_a_tenth_of_the_interval() {
        let mut rng = SmallRng::seed_from_u64(1);
        let start = Instant::now();
        assert_eq!(
            settings().next_resolve(start, &mut rng),
            None,
            "host names are not resolved by default"
        );
        let settings = Settings { resolve_interval: Some(INTERVAL), ..settings() };
        for _ in 0..1000 {
            let next = settings.next_resolve(start, &mut rng).expect("lookups are enabled") - start;
            assert!((INTERVAL..INTERVAL.mul_f64(1.1)).contains(&next), "{next:?}");
        }
    }
}
