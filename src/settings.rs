//! The settings of a manager: one table of names, defaults and minimums, and the times that follow from them.

pub(crate) mod ledger;
pub(crate) mod policy;
pub(crate) mod retry;

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::error::{BuildErrorKind, Flaw};
use crate::fault::Classifier;
use crate::settings::ledger::Ledger;
use crate::settings::policy::{
    AllDown, Balance, Recovery, Requirements, SlowPeers, StatementCache, Strategy,
};
use crate::settings::retry::{DEFAULT_RETRY_ATTEMPTS, DEFAULT_RETRY_DEADLINE};
use crate::socket::Tuning;

/// The random part of intervals. A check comes later than its interval by up to this fraction, so that a
/// thousand processes that saw the same failure do not return at once. A link is closed earlier than its
/// maximum age by up to this fraction, so that links that were opened together are not closed together.
const JITTER: f64 = 0.1;

/// The maximum of all durations: practically unlimited. `Instant` cannot represent much longer times.
const MAX_DURATION: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The default limits of `connect_deadline` and `connect_timeout`, as fractions of the pool's timeout.
/// The pool can report the reasons of failed logins only if these end before its own timeout.
const MAX_DEADLINE_FRACTION: f64 = 0.8;
const MAX_TIMEOUT_FRACTION: f64 = 0.4;

/// The default minimum of `all_down_wait`, as a fraction of the pool's timeout: r2d2 lets a slot sleep
/// after a failed connect for up to half of the pool's timeout.
const MIN_WAIT_FRACTION: f64 = 0.6;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Declares the settings, as [`Given`] and as [`Settings`], and the defaults and minimums in between.
macro_rules! settings {
    (
        durations {$(
            $duration:ident: $duration_type:ty = $duration_default:expr, at least $least:expr;
        )*}
        others {$(
            $other:ident: $other_type:ty = $other_default:expr;
        )*}
    ) => {
        /// The settings that were given explicitly. One that was given as disabled is `Some(None)`.
        #[derive(Debug, Default)]
        pub(crate) struct Given {
            $(pub(crate) $duration: Option<$duration_type>,)*
            $(pub(crate) $other: Option<$other_type>,)*
        }

        /// All settings. The builder's methods document each of them.
        #[derive(Debug, Clone)]
        pub(crate) struct Settings {
            $(pub(crate) $duration: $duration_type,)*
            $(pub(crate) $other: $other_type,)*
        }

        impl Given {
            /// Returns the given settings and the defaults of all others. Rejects durations below their
            /// minimum.
            fn with_defaults(&self) -> Result<Settings, BuildErrorKind> {
                Ok(Settings {
                    $($duration: self
                        .$duration
                        .unwrap_or($duration_default)
                        .limited(stringify!($duration), $least)?,)*
                    $($other: self.$other.clone().unwrap_or($other_default),)*
                })
            }
        }
    };
}

// A comment says where a default or a minimum comes from. Durations are validated in this order.
settings! {
    durations {
        // The default is that of django-proxysql. Each login takes a server some milliseconds.
        check_interval: Duration = 30 * SECOND, at least 10 * MILLISECOND;
        // Short enough that the pool serves again within half a second of a peer's return. Refusing a
        // connection costs a host almost nothing.
        all_down_interval: Duration = 250 * MILLISECOND, at least 10 * MILLISECOND;
        // Many times the duration of a login over a slow network, and a sixth of r2d2's default
        // `connection_timeout`.
        connect_timeout: Duration = 5 * SECOND, at least MILLISECOND;
        // A third of r2d2's default `connection_timeout`.
        connect_deadline: Duration = 10 * SECOND, at least MILLISECOND;
        // A small server with 64 busy sessions was observed to delay a login by 0.9 s.
        check_timeout: Duration = SECOND, at least MILLISECOND;
        // Other pools give the validation of a connection 5 s, which is long for a user who waits for a
        // page.
        ping_timeout: Duration = SECOND, at least MILLISECOND;
        // After this idle time a firewall may have dropped the connection.
        ping_idle: Duration = 30 * SECOND, at least Duration::ZERO;
        // The minimum is twice the time that the checker takes to notice a query.
        stall_after: Option<Duration> = Some(2 * SECOND), at least 100 * MILLISECOND;
        // A pooler that is paused for maintenance goes on with the queries that it holds.
        pooler_wait: Option<Duration> = None, at least 100 * MILLISECOND;
        // Longer than r2d2 lets a slot sleep after a failed connect, which is up to half of its
        // `connection_timeout`.
        all_down_wait: Duration = 20 * SECOND, at least Duration::ZERO;
        rebalance_interval: Duration = 200 * MILLISECOND, at least Duration::ZERO;
        // That of r2d2's `max_lifetime`, which applies to its slots.
        connection_max_age: Duration = 30 * 60 * SECOND, at least MILLISECOND;
        slow_start: Duration = Duration::ZERO, at least Duration::ZERO;
        // Differences of a fast network and of a fast disk are smaller.
        slow_difference: Duration = MILLISECOND, at least Duration::ZERO;
        // The default has a reason in `RetryPolicy`.
        retry_deadline: Duration = DEFAULT_RETRY_DEADLINE, at least MILLISECOND;
        resolve_interval: Option<Duration> = None, at least 10 * MILLISECOND;
        // The `connection_timeout` of the pool, if it is known.
        pool_timeout: Option<Duration> = None, at least MILLISECOND;
        // The connection is closed after three unanswered probes, a third of this time apart. The kernel's
        // own default is two hours.
        tcp_keepalive: Option<Duration> = Some(9 * SECOND), at least 3 * SECOND;
        // The kernel's own default amounts to a quarter of an hour.
        tcp_user_timeout: Option<Duration> = Some(20 * SECOND), at least MILLISECOND;
    }
    others {
        // Whether these settings were not given.
        tcp_keepalive_is_default: bool = true;
        tcp_user_timeout_is_default: bool = true;
        // The name of `pool_timeout` where it was given, for errors.
        pool_timeout_name: &'static str = "pool_timeout";
        pool_name: String = "default".to_owned();
        strategy: Strategy = Strategy::default();
        balance: Balance = Balance::default();
        recovery: Recovery = Recovery::default();
        requirements: Requirements = Requirements::default();
        statement_cache: StatementCache = StatementCache::default();
        all_down: AllDown = AllDown::default();
        retry_attempts: u32 = DEFAULT_RETRY_ATTEMPTS;
        ledger: Option<Ledger> = None;
        // The default of each peer.
        max_connections: Option<u32> = None;
        slow_peers: SlowPeers = SlowPeers::default();
        slow_factor: f64 = 3.0;
        classifier: Classifier = Classifier::default();
    }
}

/// A duration, or one that may be disabled.
trait Limited: Sized {
    /// Rejects a duration below the minimum of its setting, and limits it to [`MAX_DURATION`].
    fn limited(self, setting: &'static str, least: Duration) -> Result<Self, BuildErrorKind>;
}

impl Limited for Duration {
    fn limited(self, setting: &'static str, least: Duration) -> Result<Self, BuildErrorKind> {
        if self < least {
            return Err(BuildErrorKind::TooShort { setting, duration: self, least });
        }
        Ok(self.min(MAX_DURATION))
    }
}

impl Limited for Option<Duration> {
    fn limited(self, setting: &'static str, least: Duration) -> Result<Self, BuildErrorKind> {
        self.map(|duration| duration.limited(setting, least)).transpose()
    }
}

impl Given {
    /// Returns all settings. Rejects durations below their minimum and conflicting settings, and adjusts
    /// defaults that conflict with given settings.
    pub(crate) fn resolve(&self) -> Result<Settings, BuildErrorKind> {
        let mut settings = self.with_defaults()?;
        settings.tcp_keepalive_is_default = self.tcp_keepalive.is_none();
        settings.tcp_user_timeout_is_default = self.tcp_user_timeout.is_none();
        self.check_conflicts(settings.pool_timeout_name)?;
        for (setting, is_zero, correction) in [
            ("max_connections", settings.max_connections == Some(0), "; leave it out for no limit"),
            ("retry_attempts", settings.retry_attempts == 0, ", which runs nothing again"),
        ] {
            if is_zero {
                let flaw = Flaw::new("is 0", format!("the minimum is 1{correction}"));
                let (setting, key) = (Some(setting), format!("`{setting}`"));
                return Err(BuildErrorKind::Setting { setting, key, flaw });
            }
        }
        let Settings { pool_timeout, connect_timeout, connect_deadline, all_down_wait, .. } =
            &mut settings;
        if let Some(pool_timeout) = pool_timeout {
            if self.connect_deadline.is_none() {
                *connect_deadline =
                    pool_timeout.mul_f64(MAX_DEADLINE_FRACTION).min(*connect_deadline);
            }
            if self.connect_timeout.is_none() {
                *connect_timeout = pool_timeout.mul_f64(MAX_TIMEOUT_FRACTION).min(*connect_timeout);
            }
            if self.all_down_wait.is_none() {
                *all_down_wait = pool_timeout.mul_f64(MIN_WAIT_FRACTION).max(*all_down_wait);
            }
        }
        if self.connect_timeout.is_some() && self.connect_deadline.is_none() {
            *connect_deadline = (*connect_timeout).max(*connect_deadline);
        }
        Ok(settings)
    }

    /// Rejects a given timeout that could never end, because another given setting ends earlier.
    fn check_conflicts(&self, pool_timeout: &'static str) -> Result<(), BuildErrorKind> {
        let check_interval = ("check_interval", self.check_interval);
        let connect_timeout = ("connect_timeout", self.connect_timeout);
        let connect_deadline = ("connect_deadline", self.connect_deadline);
        let check_timeout = ("check_timeout", self.check_timeout);
        let ping_timeout = ("ping_timeout", self.ping_timeout);
        let stall_after = ("stall_after", self.stall_after.flatten());
        let pooler_wait = ("pooler_wait", self.pooler_wait.flatten());
        let pool_timeout = (pool_timeout, self.pool_timeout.flatten());
        for (shorter, longer) in [
            (check_timeout, check_interval),
            (check_timeout, connect_timeout),
            (connect_timeout, connect_deadline),
            (connect_timeout, pool_timeout),
            (connect_deadline, pool_timeout),
            (ping_timeout, pool_timeout),
            (stall_after, pooler_wait),
        ] {
            let ((name, Some(time)), (limit_name, Some(limit))) = (shorter, longer) else {
                continue;
            };
            if time > limit {
                let (shorter, longer) = ((name, time), (limit_name, limit));
                return Err(BuildErrorKind::Conflict { shorter, longer });
            }
        }
        Ok(())
    }
}

/// The times at which a peer is checked next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckTimes {
    /// The time of the next check while any peer is available.
    pub(crate) regular: Instant,
    /// The time of the next check while no peer is available.
    pub(crate) all_down: Instant,
}

impl Settings {
    /// Returns the settings that decide what a peer gets that works, as they are given in text.
    #[cfg(feature = "doctor")]
    pub(crate) fn shares_in_text(&self) -> Vec<(String, String)> {
        let duration = |duration: Duration| match duration {
            Duration::ZERO => "0".to_owned(),
            duration => format!("{duration:?}"),
        };
        let settings = [
            ("slow_peers", self.slow_peers.to_string()),
            ("slow_factor", self.slow_factor.to_string()),
            ("slow_difference", duration(self.slow_difference)),
            ("slow_start", duration(self.slow_start)),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).into()
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

    /// Returns the TCP settings for a connection whose URL asks for these. A default does not shorten the
    /// time of the URL.
    pub(crate) fn tuning(&self, of_url: Tuning) -> Tuning {
        let choose = |setting: Option<Duration>, is_default: bool, of_url: Option<Duration>| {
            setting.filter(|_| !is_default || of_url <= setting)
        };
        Tuning {
            keepalive: choose(self.tcp_keepalive, self.tcp_keepalive_is_default, of_url.keepalive),
            user_timeout: choose(
                self.tcp_user_timeout,
                self.tcp_user_timeout_is_default,
                of_url.user_timeout,
            ),
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
        let given = Given {
            check_interval: Some(INTERVAL),
            ping_idle: Some(INTERVAL),
            tcp_keepalive: Some(None),
            tcp_user_timeout: Some(None),
            rebalance_interval: Some(PACE),
            connection_max_age: Some(INTERVAL),
            ..Given::default()
        };
        given.resolve().expect("the settings do not conflict")
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
            let [connect_timeout, connect_deadline, all_down_wait] = explicit;
            let pool_timeout = pool_timeout.map(Some);
            let given = Given {
                connect_timeout,
                connect_deadline,
                all_down_wait,
                pool_timeout,
                ..Given::default()
            };
            let settings = given.resolve().expect("the settings do not conflict");
            let actual =
                [settings.connect_timeout, settings.connect_deadline, settings.all_down_wait];
            assert_eq!(actual, expected, "{pool_timeout:?} {explicit:?}");
        }
    }

    #[test]
    fn default_tcp_settings_do_not_shorten_those_of_the_url() {
        let s = Duration::from_secs;
        let default = [Some(s(9)), Some(s(20))];
        // The explicit settings, the times of the URL, and the times that are set.
        for (explicit, of_url, expected) in [
            ([None, None], [None, None], default),
            ([None, None], [Some(s(5)), Some(s(5))], default),
            ([None, None], [Some(s(60)), None], [None, Some(s(20))]),
            ([None, None], [None, Some(s(60))], [Some(s(9)), None]),
            ([Some(s(9)), Some(s(20))], [Some(s(60)), Some(s(60))], default),
            ([Some(s(30)), None], [Some(s(60)), Some(s(60))], [Some(s(30)), None]),
        ] {
            let [tcp_keepalive, tcp_user_timeout] = explicit.map(|time| time.map(Some));
            let given = Given { tcp_keepalive, tcp_user_timeout, ..Given::default() };
            let settings = given.resolve().expect("the settings do not conflict");
            let tuning = |[keepalive, user_timeout]: [_; 2]| Tuning { keepalive, user_timeout };
            let set = settings.tuning(tuning(of_url));
            assert_eq!(set, tuning(expected), "{explicit:?} {of_url:?}");
        }
        let untouched = Tuning { keepalive: None, user_timeout: None };
        assert_eq!(settings().tuning(untouched), untouched, "`None` sets nothing");
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
