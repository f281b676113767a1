//! What a manager was told to do: the settings, checked and with their defaults.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::error::Kind;
use crate::fault::Classifier;
use crate::policy::{AllDown, Recovery, Requirements, Strategy};

/// A check is due up to this much later than its interval, so that a thousand processes that saw
/// the same failure do not return at once; and a link ends up to this much earlier than told, so
/// that links that were made together do not end together.
const JITTER: f64 = 0.1;

/// As good as for ever: the clock cannot tell much longer times.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How long a failure mark holds when nothing else is said. From django-proxysql.
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The least time between two checks: a login each takes a server some milliseconds.
const LEAST_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The least time after which a query is suspected: twice as long as the checker takes to see one.
const LEAST_STALL: Duration = Duration::from_millis(100);

/// How long one login may take when nothing else is said: many times what one over a slow network
/// takes, and a sixth of the time for which r2d2 has its callers wait.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long `connect()` may take with all the logins that it makes: a third of the time for which r2d2
/// has its callers wait.
const DEFAULT_CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How often peers are checked while all are down. An answer within half a second of a peer's return
/// takes no more than that, and refusing a connection costs a host next to nothing.
const DEFAULT_ALL_DOWN_INTERVAL: Duration = Duration::from_millis(250);

/// For how long one connection that is wanted waits while all peers are down: longer than r2d2 lets any
/// slot sleep that could not connect, half its `connection_timeout`.
const DEFAULT_ALL_DOWN_WAIT: Duration = Duration::from_secs(20);

/// How long an answer is waited for while queries hang. A small server with 64 busy sessions was seen
/// to keep a login waiting for 0.9 s.
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a ping may take. Others' pools give the test of a connection 5 s, which is long for
/// somebody who waits for a page.
const DEFAULT_PING_TIMEOUT: Duration = Duration::from_secs(1);

/// After how long at rest a connection is pinged: by then a firewall may have forgotten it.
const DEFAULT_PING_IDLE: Duration = Duration::from_secs(30);

/// After how long a query that is still running makes its peer be checked.
const DEFAULT_STALL_AFTER: Duration = Duration::from_secs(2);

/// After how long without a byte the kernel asks whether the peer is there; three questions a third
/// of that apart have to go unanswered. With the kernel's own setting it is two hours.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(9);

/// For how long what was sent may go unacknowledged. With the kernel's own setting it is a quarter of
/// an hour.
const DEFAULT_TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// The parts of the pool's timeout that a connection and one login may take by default, where they
/// would be no shorter than it: so that the pool fails with their story, and not without any.
const DEADLINE_OF_POOL_TIMEOUT: f64 = 0.8;
const LOGIN_OF_POOL_TIMEOUT: f64 = 0.4;

/// The part of it for which one connection waits at least while all peers are down: r2d2 lets a slot
/// sleep that could not connect for up to a half.
const WAIT_OF_POOL_TIMEOUT: f64 = 0.6;

/// The least time between two connections that are closed to even out their number.
const DEFAULT_REBALANCE_INTERVAL: Duration = Duration::from_millis(200);

/// How old a connection gets. As r2d2's `max_lifetime`, which counts for its slots.
const DEFAULT_CONNECTION_MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// The least time between two lookups of a name.
const LEAST_RESOLVE_INTERVAL: Duration = Duration::from_millis(10);

/// What a pool is called that is the only one.
const DEFAULT_NAME: &str = "default";

/// The settings; each is explained where it is set, in the builder.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What the pool is called.
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
    /// How often the names of hosts are resolved.
    pub(crate) resolve_interval: Option<Duration>,
    /// What the pool was given, as far as that was told.
    pub(crate) pool_timeout: Option<Duration>,
    /// How that is called where it was told.
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

/// The names of the settings that were not left at their defaults.
pub(crate) type Asked = BTreeSet<&'static str>;

/// How the kernel finds out that the other machine has vanished.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// After how long without a byte the kernel asks whether the other end is there.
    pub(crate) keepalive: Option<Duration>,
    /// For how long what was sent may go unacknowledged.
    pub(crate) user_timeout: Option<Duration>,
}

/// When a peer is to be checked next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(crate) next: Instant,
    /// While every peer is down.
    pub(crate) soon: Instant,
}

impl Settings {
    /// Nothing takes no time at all, and what was asked for can be had together. What was not asked
    /// for gives way.
    pub(crate) fn check(mut self, asked: &Asked) -> Result<Self, Kind> {
        self.check_least()?;
        self.check_together(asked)?;
        self = self.within_the_clock();
        let asked_deadline = asked.contains("connect_deadline");
        if let Some(pool_timeout) = self.pool_timeout {
            if !asked_deadline {
                let at_most = pool_timeout.mul_f64(DEADLINE_OF_POOL_TIMEOUT);
                self.connect_deadline = self.connect_deadline.min(at_most);
            }
            if !asked.contains("connect_timeout") {
                let at_most = pool_timeout.mul_f64(LOGIN_OF_POOL_TIMEOUT);
                self.connect_timeout = self.connect_timeout.min(at_most);
            }
            if !asked.contains("all_down_wait") {
                let at_least = pool_timeout.mul_f64(WAIT_OF_POOL_TIMEOUT);
                self.all_down_wait = self.all_down_wait.max(at_least);
            }
        }
        if asked.contains("connect_timeout") && !asked_deadline {
            self.connect_deadline = self.connect_deadline.max(self.connect_timeout);
        }
        Ok(self)
    }

    /// What would never happen if the other was so much shorter.
    fn check_together(&self, asked: &Asked) -> Result<(), Kind> {
        let check_interval = ("check_interval", self.check_interval);
        let connect_timeout = ("connect_timeout", self.connect_timeout);
        let connect_deadline = ("connect_deadline", self.connect_deadline);
        let check_timeout = ("check_timeout", self.check_timeout);
        let ping_timeout = ("ping_timeout", self.ping_timeout);
        let pool_timeout = (self.pool_timeout_name, self.pool_timeout.unwrap_or(FOREVER));
        for (shorter, longer) in [
            (check_timeout, check_interval),
            (check_timeout, connect_timeout),
            (connect_timeout, connect_deadline),
            (connect_timeout, pool_timeout),
            (connect_deadline, pool_timeout),
            (ping_timeout, pool_timeout),
        ] {
            let both_asked = asked.contains(shorter.0) && asked.contains(longer.0);
            if both_asked && shorter.1 > longer.1 {
                return Err(Kind::Conflict { shorter, longer });
            }
        }
        Ok(())
    }

    fn check_least(&self) -> Result<(), Kind> {
        let millisecond = Duration::from_millis(1);
        let Tuning { keepalive, user_timeout } = self.tuning;
        for (setting, duration, least) in [
            ("check_interval", Some(self.check_interval), LEAST_CHECK_INTERVAL),
            ("all_down_interval", Some(self.all_down_interval), LEAST_CHECK_INTERVAL),
            ("connect_timeout", Some(self.connect_timeout), millisecond),
            ("connect_deadline", Some(self.connect_deadline), millisecond),
            ("check_timeout", Some(self.check_timeout), millisecond),
            ("ping_timeout", Some(self.ping_timeout), millisecond),
            ("stall_after", self.stall_after, LEAST_STALL),
            ("connection_max_age", Some(self.connection_max_age), millisecond),
            ("resolve_interval", self.resolve_interval, LEAST_RESOLVE_INTERVAL),
            ("pool_timeout", self.pool_timeout, millisecond),
            ("tcp_keepalive", keepalive, Duration::from_secs(3)),
            ("tcp_user_timeout", user_timeout, millisecond),
        ] {
            if let Some(duration) = duration.filter(|duration| *duration < least) {
                return Err(Kind::TooShort { setting, duration, least });
            }
        }
        Ok(())
    }

    /// What is to take longer than the clock can tell is to take as long as it can.
    fn within_the_clock(mut self) -> Self {
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
            *duration = FOREVER.min(*duration);
        }
        self
    }

    /// Nobody looks at the peers unasked.
    #[cfg(feature = "doctor")]
    pub(crate) fn without_checks(self) -> Self {
        Self {
            check_interval: FOREVER,
            all_down_interval: FOREVER,
            stall_after: None,
            resolve_interval: self.resolve_interval.map(|_| FOREVER),
            ..self
        }
    }

    /// When a link that is born at `now` is too old.
    pub(crate) fn expiry(&self, now: Instant, rng: &mut SmallRng) -> Instant {
        now + self.connection_max_age.mul_f64(1.0 - JITTER * rng.random::<f64>())
    }

    /// When something is due that happens at intervals.
    pub(crate) fn due(&self, now: Instant, rng: &mut SmallRng) -> Due {
        Due {
            next: jittered(now, self.check_interval, rng),
            soon: jittered(now, self.all_down_interval, rng),
        }
    }

    /// When names are resolved next.
    pub(crate) fn next_resolve(&self, now: Instant, rng: &mut SmallRng) -> Option<Instant> {
        self.resolve_interval.map(|interval| jittered(now, interval, rng))
    }
}

/// One interval from `now`, and up to [`JITTER`] of it more.
fn jittered(now: Instant, interval: Duration, rng: &mut SmallRng) -> Instant {
    now + interval + interval.mul_f64(JITTER * rng.random::<f64>())
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::SeedableRng;

    use super::*;

    pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
    pub(crate) const PACE: Duration = Duration::from_millis(200);

    /// Rules to test with.
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
    fn what_was_not_asked_for_gives_way() {
        let s = Duration::from_secs;
        // What the pool has, `connect_timeout`, `connect_deadline` and `all_down_wait` where they are
        // asked for; and the last three as they become.
        for (pool_timeout, asked, expected) in [
            (None, [None; 3], [s(5), s(10), s(20)]),
            (Some(s(5)), [None; 3], [s(2), s(4), s(20)]),
            (Some(s(60)), [None; 3], [s(5), s(10), s(36)]),
            (Some(Duration::MAX), [None; 3], [s(5), s(10), FOREVER.mul_f64(0.6)]),
            (Some(s(5)), [Some(s(4)), Some(s(5)), Some(s(1))], [s(4), s(5), s(1)]),
            (Some(s(5)), [Some(s(5)), None, None], [s(5), s(5), s(20)]),
            (None, [Some(s(30)), None, None], [s(30), s(30), s(20)]),
            (None, [None, Some(s(3)), None], [s(5), s(3), s(20)]),
        ] {
            let mut given = Settings { pool_timeout, ..Settings::default() };
            let mut names = Asked::new();
            for (name, setting, asked) in [
                ("connect_timeout", &mut given.connect_timeout, asked[0]),
                ("connect_deadline", &mut given.connect_deadline, asked[1]),
                ("all_down_wait", &mut given.all_down_wait, asked[2]),
            ] {
                if let Some(asked) = asked {
                    *setting = asked;
                    names.insert(name);
                }
            }
            names.extend(pool_timeout.map(|_| "pool_timeout"));
            let settings = given.check(&names).expect("they go together");
            let got = [settings.connect_timeout, settings.connect_deadline, settings.all_down_wait];
            assert_eq!(got, expected, "{pool_timeout:?} {asked:?}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn checks_are_due_after_the_interval_and_up_to_a_tenth_of_it() {
        let mut rng = SmallRng::seed_from_u64(1);
        let start = Instant::now();
        let delays: Vec<Duration> =
            (0..1000).map(|_| settings().due(start, &mut rng).next - start).collect();
        assert!(delays.iter().all(|delay| (INTERVAL..INTERVAL.mul_f64(1.1)).contains(delay)));
        let (least, most) = (delays.iter().min(), delays.iter().max());
        assert!(least < Some(&INTERVAL.mul_f64(1.01)), "the least of many is near the interval");
        assert!(most > Some(&INTERVAL.mul_f64(1.09)), "the most of many is near its end");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn so_are_lookups() {
        let mut rng = SmallRng::seed_from_u64(1);
        let start = Instant::now();
        assert_eq!(settings().next_resolve(start, &mut rng), None, "by default there are none");
        let settings = Settings { resolve_interval: Some(INTERVAL), ..settings() };
        for _ in 0..1000 {
            let next = settings.next_resolve(start, &mut rng).expect("they are asked for") - start;
            assert!((INTERVAL..INTERVAL.mul_f64(1.1)).contains(&next), "{next:?}");
        }
    }
}
