//! The thread that tells the recorder, once in a while, what is counted anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use std::{io, ptr, thread};

use crossbeam_channel::{Receiver, after, select, tick};
use metrics::{Recorder, with_recorder};

use super::catalog;
use super::counters::Counters;
use super::gauges::Gauges;
use super::labeled::Labeled;
use crate::panics::catch_panic;
use crate::peers::peer::Peer;
use crate::peers::placement::how_many_take_work;
use crate::peers::set::PeerSet;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const EXPORTER: &str = "peers-metrics";

/// How often the recorder is told. Scrapes are many seconds apart.
const PERIOD: Duration = Duration::from_secs(1);

/// How long, and how many times, a pool that ends is given to close its connections before the recorder
/// is told for the last time.
const FAREWELL: Duration = Duration::from_millis(10);
const FAREWELLS: usize = 100;

/// Starts the thread. It ends when the other end of `stopped` is dropped, once the recorder has been told
/// what had happened by then.
pub(crate) fn start(set: Arc<PeerSet>, stopped: Receiver<Infallible>) -> io::Result<()> {
    let run = move || {
        let mut exporter = Exporter::of(set);
        let periods = tick(PERIOD);
        loop {
            exporter.export();
            select! {
                recv(periods) -> _ => {}
                recv(stopped) -> _ => break,
            }
        }
        // Whoever dropped the manager is closing the connections.
        let farewells = (0..FAREWELLS).map_while(|_| exporter.has_links().then(|| after(FAREWELL)));
        for wait in farewells {
            let _ = wait.recv();
        }
        exporter.export();
    };
    thread::Builder::new().name(EXPORTER.to_owned()).spawn(run).map(drop)
}

/// What the recorder has been told of one pool.
struct Exporter {
    set: Arc<PeerSet>,
    /// Where the recorder is that knows what the metrics mean: one may be installed at any time.
    described: usize,
    /// By the peers' numbers, as several may have one name, one after the other.
    counters: BTreeMap<u64, Counters>,
    /// Whose gauges may be something else than 0.
    shown: BTreeSet<Arc<str>>,
    events_dropped: u64,
}

/// How the peers of one pool are: those of one that is gone are no more.
#[derive(Default)]
struct Look {
    peers: usize,
    serving: usize,
    gauges: BTreeMap<Arc<str>, Gauges>,
    numbers: BTreeSet<u64>,
}

impl Exporter {
    fn of(set: Arc<PeerSet>) -> Self {
        Self {
            set,
            described: 0,
            counters: BTreeMap::new(),
            shown: BTreeSet::new(),
            events_dropped: 0,
        }
    }

    fn has_links(&self) -> bool {
        self.set.read(|peers| peers.iter().any(|peer| peer.counts.load() > 0))
    }

    /// A recorder that panics is told again next time.
    fn export(&mut self) {
        let _ = catch_panic(|| with_recorder(|recorder| self.tell(recorder)));
    }

    fn tell(&mut self, recorder: &dyn Recorder) {
        let address = ptr::from_ref(recorder).addr();
        if self.described != address {
            catalog::describe(recorder);
            self.described = address;
        }
        let Look { peers, serving, gauges, numbers } = self.look();
        let Self { set, counters, events_dropped, shown, .. } = self;
        let pool = Labeled::new(recorder).with("pool", set.settings().pool_name.clone());
        pool.gauge(&catalog::PEERS, peers);
        pool.gauge(&catalog::PEERS_AVAILABLE, serving);
        pool.counter(&catalog::EVENTS_DROPPED, set.journal().dropped(), events_dropped);
        for (name, gauges) in gauges {
            gauges.tell(&pool.with("peer", name.clone()));
            if gauges.is_nothing() {
                // It has been told, so that it need not be again.
                shown.remove(&name);
            }
        }
        // Once more also of those that are gone.
        for counters in counters.values_mut() {
            counters.tell(&pool);
        }
        counters.retain(|number, _| numbers.contains(number));
    }

    /// Looks at the peers, and calls nobody while they are locked.
    fn look(&mut self) -> Look {
        let Self { set, counters, shown, .. } = self;
        let is_open = !set.is_closed();
        let nothing = |name| (name, Gauges::default());
        let mut look =
            Look { gauges: shown.iter().cloned().map(nothing).collect(), ..Look::default() };
        set.read(|peers| {
            for peer in peers {
                look.numbers.insert(peer.number);
                counters.entry(peer.number).or_insert_with(|| Counters::of(peer));
            }
            let mut there: Vec<&Peer> =
                peers.iter().filter(|peer| is_open && !peer.is_gone()).collect();
            there.sort_unstable_by_key(|peer| peer.number);
            for peer in &there {
                let gauges = look.gauges.entry(peer.name.clone()).or_default();
                *gauges = gauges.and(peer);
                shown.insert(peer.name.clone());
            }
            if is_open {
                look.peers = there.iter().filter(|peer| peer.is_member()).count();
                look.serving = how_many_take_work(peers);
            }
        });
        look
    }
}

#[cfg(test)]
mod tests {
    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit, with_local_recorder,
    };
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::event::CloseReason;
    use crate::peers::admission::PeerConfig;
    use crate::peers::set::tests::set_of;
    use crate::policy::Recovery;

    #[test]
    fn a_recorder_that_comes_late_is_told_what_the_metrics_mean() {
        let (set, _woken, _) = set_of(1, Recovery::AfterCheck);
        let mut exporter = Exporter::of(Arc::new(set));
        exporter.export();
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || exporter.export());
        let scrape = recorder.handle().render();
        assert!(scrape.contains("# HELP diesel_peers_up 1 if it works"), "{scrape}");
    }

    /// It may be replaced, or mended.
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
    fn a_peer_that_was_removed_while_the_recorder_panicked_is_shown_as_gone() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let set = Arc::new(set);
        let mut exporter = Exporter::of(set.clone());
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || exporter.export());
        let _ = set.remove("peer1", now).expect("there is one");
        set.take_due(now);
        with_local_recorder(&Panics, || exporter.export());
        with_local_recorder(&recorder, || exporter.export());
        let scrape = recorder.handle().render();
        let line = r#"diesel_peers_up{pool="default",peer="peer1"} 0"#;
        assert!(scrape.lines().any(|other| other == line), "{scrape}");
        assert_eq!(exporter.shown.len(), 1, "and told no more");
    }

    #[test]
    fn what_a_peer_counted_last_is_told_although_another_has_its_place() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let set = Arc::new(set);
        let mut exporter = Exporter::of(set.clone());
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || exporter.export());
        let activity = set.read(|peers| peers[1].activity.clone());
        let _ = set.remove("peer1", now).expect("there is one");
        set.take_due(now);
        activity.counters.retired(CloseReason::Drained).add_one();
        activity.counters.connects.add_one();
        activity.counters.connect_failures.add_one();
        set.add(PeerConfig::new("peer1", "sqlite"), now).expect("there is none");
        assert_eq!(set.read(<[Peer]>::len), 2, "it has the other one's place");
        for _ in 0..2 {
            with_local_recorder(&recorder, || exporter.export());
        }
        let scrape = recorder.handle().render();
        let labels = r#"{pool="default",peer="peer1""#;
        for (name, labels) in [
            ("connections_closed", format!(r#"{labels},reason="drained"}}"#)),
            ("connects", format!("{labels}}}")),
            ("connect_failures", format!("{labels}}}")),
        ] {
            let line = format!("diesel_peers_{name}_total{labels} 1");
            assert!(scrape.lines().any(|other| other == line), "{line}: {scrape}");
        }
        assert_eq!(exporter.counters.len(), 2, "and then forgotten");
    }
}
