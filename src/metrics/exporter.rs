//! The thread that reports the metrics of a pool to the recorder once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, ptr, thread};

use crossbeam_channel::{Receiver, after, select, tick};
use metrics::{Recorder, with_recorder};

use super::catalog;
use super::counters::Counters;
use super::gauges::Gauges;
use super::labeled::LabeledRecorder;
use crate::panics::catch_panic;
use crate::peers::peer::Peer;
use crate::peers::placement::count_available;
use crate::peers::set::PeerSet;
use crate::peers::set::peer_ref::PeerRef;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-metrics";

/// The interval of reports. Scrapes are many seconds apart.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The interval and the maximum number of waits for a dropped pool to close its connections before the
/// last report.
const CLOSE_POLL_INTERVAL: Duration = Duration::from_millis(10);
const MAX_CLOSE_POLLS: usize = 100;

/// Starts the thread. The thread ends after the other end of `stopped` is dropped and everything until
/// then has been reported.
pub(crate) fn start(set: Arc<PeerSet>, stopped: Receiver<Infallible>) -> io::Result<()> {
    let run = move || {
        let mut exporter = Exporter::new(set);
        let ticks = tick(REPORT_INTERVAL);
        loop {
            exporter.export();
            select! {
                recv(ticks) -> _ => {}
                recv(stopped) -> _ => break,
            }
        }
        // The thread that dropped the manager may still be closing connections.
        let waits = (0..MAX_CLOSE_POLLS)
            .map_while(|_| exporter.has_links().then(|| after(CLOSE_POLL_INTERVAL)));
        for wait in waits {
            let _ = wait.recv();
        }
        exporter.export();
    };
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(run).map(drop)
}

/// The metrics of one pool, as last reported.
struct Exporter {
    set: Arc<PeerSet>,
    /// The address of the recorder that has received the descriptions. A recorder may be installed at any
    /// time.
    described: usize,
    /// The counters by the id of the peer, because several peers may have the same name, one after the
    /// other. `None` for a removed peer whose last changes were reported: an exporter forgets metrics that
    /// are reported no more.
    counters: BTreeMap<u64, Option<Counters>>,
    /// The names of the peers whose reported gauges may differ from 0.
    nonzero: BTreeSet<Arc<str>>,
    events_dropped: u64,
}

/// The gauges of a pool and of its peers at one moment. A dropped pool has no peers.
#[derive(Default)]
struct PoolGauges {
    peers: usize,
    available: usize,
    gauges: BTreeMap<Arc<str>, Gauges>,
    /// The ids of the peers in the set, and whether nothing refers to the peer any more.
    peers_vacant: BTreeMap<u64, bool>,
}

impl Exporter {
    fn new(set: Arc<PeerSet>) -> Self {
        Self {
            set,
            described: 0,
            counters: BTreeMap::new(),
            nonzero: BTreeSet::new(),
            events_dropped: 0,
        }
    }

    fn has_links(&self) -> bool {
        self.set.read(|peers| peers.iter().any(|peer| peer.counts.load() > 0))
    }

    /// Reports to the recorder. If the recorder panics, the next report makes up for the missing values.
    fn export(&mut self) {
        let _ = catch_panic(|| with_recorder(|recorder| self.report(recorder)));
    }

    #[expect(clippy::disallowed_methods, reason = "the time of the report")]
    fn report(&mut self, recorder: &dyn Recorder) {
        let address = ptr::from_ref(recorder).addr();
        if self.described != address {
            catalog::describe(recorder);
            self.described = address;
        }
        let PoolGauges { peers, available, gauges, peers_vacant } = self.read_pool();
        let Self { set, counters, events_dropped, nonzero, .. } = self;
        let pool = LabeledRecorder::new(recorder).with("pool", set.settings().pool_name.clone());
        pool.gauge(&catalog::PEERS, peers);
        pool.gauge(&catalog::PEERS_AVAILABLE, available);
        pool.gauge(&catalog::HOST_FAILED, usize::from(set.host_failure().is_some()));
        let retries = if set.is_closed() { 0 } else { set.retry_budget.available(Instant::now()) };
        pool.gauge(&catalog::RETRY_BUDGET, retries);
        pool.counter(&catalog::EVENTS_DROPPED, set.event_log.dropped(), events_dropped);
        for (name, gauges) in gauges {
            gauges.report(&pool.with("peer", name.clone()));
            if gauges.are_zero() {
                // The zeros have been reported and need not be repeated.
                nonzero.remove(&name);
            }
        }
        // Removed peers are included once more, for their last changes.
        for counters in counters.values_mut().flatten() {
            counters.report(&pool);
        }
        counters.retain(|peer_id, counters| {
            let is_vacant = peers_vacant.get(peer_id);
            *counters = counters.take().filter(|_| is_vacant == Some(&false));
            is_vacant.is_some()
        });
    }

    /// Reads the state of the peers. The recorder is not called here, because the peers are locked.
    fn read_pool(&mut self) -> PoolGauges {
        let Self { set, counters, nonzero, .. } = self;
        let is_open = !set.is_closed();
        let zeros = |name| (name, Gauges::default());
        let mut pool = PoolGauges {
            gauges: nonzero.iter().cloned().map(zeros).collect(),
            ..PoolGauges::default()
        };
        set.read(|peers| {
            for (index, peer) in peers.iter().enumerate() {
                pool.peers_vacant.insert(peer.id, peer.is_vacant());
                let new = || Some(Counters::new(PeerRef::new(set.clone(), index, peer)));
                counters.entry(peer.id).or_insert_with(new);
            }
            let mut present: Vec<&Peer> =
                peers.iter().filter(|peer| is_open && !peer.is_removed()).collect();
            present.sort_unstable_by_key(|peer| peer.id);
            for peer in &present {
                let gauges = pool.gauges.entry(peer.name.clone()).or_default();
                *gauges = gauges.merged_with(peer);
                nonzero.insert(peer.name.clone());
            }
            if is_open {
                pool.peers = present.iter().filter(|peer| peer.is_member()).count();
                pool.available = count_available(peers);
            }
        });
        pool
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit, with_local_recorder,
    };

    use super::*;
    use crate::events::CloseReason;
    use crate::health::checker::tests::tick;
    use crate::panics::lock;
    use crate::peers::peer_config::PeerConfig;
    use crate::peers::set::tests::set_of;
    use crate::settings::policy::Recovery;

    /// A recorder that keeps the metrics and renders them as Prometheus does.
    #[derive(Default)]
    struct TextRecorder {
        descriptions: Mutex<BTreeMap<String, String>>,
        counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
        /// The bits of a float.
        gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    }

    impl TextRecorder {
        fn describe(&self, name: &KeyName, description: &SharedString) {
            lock(&self.descriptions).insert(name.as_str().to_owned(), description.to_string());
        }

        fn value(values: &Mutex<BTreeMap<String, Arc<AtomicU64>>>, key: &Key) -> Arc<AtomicU64> {
            let labels = key.labels().map(|label| format!("{}=\"{}\"", label.key(), label.value()));
            let labels = labels.collect::<Vec<_>>().join(",");
            lock(values).entry(format!("{}{{{labels}}}", key.name())).or_default().clone()
        }

        fn render(&self) -> String {
            let mut text = String::new();
            for (name, description) in lock(&self.descriptions).iter() {
                writeln!(text, "# HELP {name} {description}")
                    .expect("writing to a string succeeds");
            }
            for (key, value) in lock(&self.counters).iter() {
                writeln!(text, "{key} {}", value.load(Ordering::Relaxed))
                    .expect("writing to a string succeeds");
            }
            for (key, value) in lock(&self.gauges).iter() {
                let value = f64::from_bits(value.load(Ordering::Relaxed));
                writeln!(text, "{key} {value}").expect("writing to a string succeeds");
            }
            text
        }
    }

    impl Recorder for TextRecorder {
        fn describe_counter(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
            self.describe(&name, &description);
        }

        fn describe_gauge(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
            self.describe(&name, &description);
        }

        fn describe_histogram(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
            self.describe(&name, &description);
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Self::value(&self.counters, key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Self::value(&self.gauges, key))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn recorder_that_is_installed_later_receives_the_descriptions() {
        let (set, _woken, _) = set_of(1, Recovery::AfterCheck);
        let mut exporter = Exporter::new(set);
        exporter.export();
        let recorder = TextRecorder::default();
        with_local_recorder(&recorder, || exporter.export());
        let scrape = recorder.render();
        assert!(scrape.contains("# HELP diesel_peers_up 1 if the peer is up"), "{scrape}");
    }

    /// A recorder that panics: it may be replaced, or work again later.
    struct Panics;

    impl Recorder for Panics {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            panic!("on purpose")
        }

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            panic!("on purpose")
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            panic!("on purpose")
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            panic!("on purpose")
        }
    }

    #[test]
    fn gauges_of_a_peer_that_was_removed_while_the_recorder_panicked_become_zero() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let mut exporter = Exporter::new(set.clone());
        let recorder = TextRecorder::default();
        with_local_recorder(&recorder, || exporter.export());
        let _ = set.remove("peer1", now).expect("the peer exists");
        tick(&set, now);
        with_local_recorder(&Panics, || exporter.export());
        with_local_recorder(&recorder, || exporter.export());
        let scrape = recorder.render();
        let line = r#"diesel_peers_up{pool="default",peer="peer1"} 0"#;
        assert!(scrape.lines().any(|other| other == line), "{scrape}");
        assert_eq!(
            exporter.nonzero.len(),
            1,
            "the gauges of the removed peer are not reported again"
        );
    }

    #[test]
    fn removed_peer_is_reported_once_more_and_then_forgotten() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let mut exporter = Exporter::new(set.clone());
        let activity = set.read(|peers| peers[1].activity.clone());
        let mut lines_of_peer1 = || {
            let recorder = TextRecorder::default();
            with_local_recorder(&recorder, || exporter.export());
            let scrape = recorder.render();
            scrape.lines().filter(|line| line.contains(r#"peer="peer1""#)).count()
        };
        assert!(lines_of_peer1() > 0);
        let _ = set.remove("peer1", now).expect("the peer exists");
        tick(&set, now);
        activity.counters.connect_failures.add_one();
        assert!(lines_of_peer1() > 0, "its last changes are reported");
        assert_eq!(lines_of_peer1(), 0, "nothing is reported although its index is not reused yet");
        assert_eq!(exporter.counters.values().flatten().count(), 1, "its counters are not held");
    }

    #[test]
    fn last_changes_of_a_removed_peer_are_reported_after_another_took_its_index() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let mut exporter = Exporter::new(set.clone());
        let recorder = TextRecorder::default();
        with_local_recorder(&recorder, || exporter.export());
        let activity = set.read(|peers| peers[1].activity.clone());
        let _ = set.remove("peer1", now).expect("the peer exists");
        tick(&set, now);
        activity.counters.closed(CloseReason::Drained).add_one();
        activity.counters.connects.add_one();
        activity.counters.connect_failures.add_one();
        set.add(PeerConfig::new("peer1", "sqlite"), now).expect("the name is free");
        assert_eq!(set.read(<[Peer]>::len), 2, "the new peer has the index of the removed peer");
        for _ in 0..2 {
            with_local_recorder(&recorder, || exporter.export());
        }
        let scrape = recorder.render();
        let labels = r#"{pool="default",peer="peer1""#;
        for (name, labels) in [
            ("connections_closed", format!(r#"{labels},reason="drained"}}"#)),
            ("connects", format!("{labels}}}")),
            ("connect_failures", format!("{labels}}}")),
        ] {
            let line = format!("diesel_peers_{name}_total{labels} 1");
            assert!(scrape.lines().any(|other| other == line), "{line}: {scrape}");
        }
        assert_eq!(
            exporter.counters.len(),
            2,
            "the removed peer's counters are dropped after the last report"
        );
    }
}
