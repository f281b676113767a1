//! An exporter with an idle timeout forgets the metrics of a peer that is gone, and keeps those of the others.

#![cfg(feature = "metrics")]
#![allow(clippy::disallowed_methods, reason = "scrapes are some time apart")]

use std::time::{Duration, Instant};

use diesel_peers::PeerConfig;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_util::MetricKindMask;
use support::backend::{PATIENCE, pool_of};
use support::scripted::Servers;
use support::wait_until;

/// Several times the interval of reports.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

#[test]
fn exporter_forgets_a_peer_that_is_gone() {
    let recorder = PrometheusBuilder::new()
        .idle_timeout(MetricKindMask::ALL, Some(IDLE_TIMEOUT))
        .build_recorder();
    let scrapes = recorder.handle();
    metrics::set_global_recorder(recorder).expect("this process has no other recorder");
    let servers = Servers::start(2);
    let (pool, peers) = pool_of(servers.builder(), 2);
    let lines_of = |peer: &str| {
        let (scrape, label) = (scrapes.render(), format!("peer=\"{peer}\""));
        scrape.lines().filter(|line| line.contains(&label)).count()
    };
    wait_until("both peers are shown", PATIENCE, || lines_of("peer0") > 0 && lines_of("peer1") > 0);

    let removed = Instant::now();
    let drain = peers.remove("peer1").expect("the peer exists");
    wait_until("its connections are closed", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    wait_until("the removed peer is forgotten", PATIENCE, || lines_of("peer1") == 0);
    assert!(removed.elapsed() >= IDLE_TIMEOUT, "its last values are shown for a while");
    for name in ["up", "weight", "checkouts_total", "connects_total"] {
        let line = format!("diesel_peers_{name}{{pool=\"default\",peer=\"peer0\"}}");
        let scrape = scrapes.render();
        assert!(scrape.contains(&line), "{line} stays, although it did not change: {scrape}");
    }
    peers.add(PeerConfig::new("peer1", servers[1].url())).expect("the name is free");
    wait_until("the peer is shown again", PATIENCE, || lines_of("peer1") > 0);
}
