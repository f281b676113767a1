//! A real Galera cluster: `MariaDB` servers that all have the same data and all accept writes.

use std::fs;
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::account::Account;
use super::mariadb::{self, MariaDb};
use super::port::{Port, free_port};
use super::process::{is_missing, run};
use super::{template, within};

/// The number of nodes of a cluster: the fewest that have a majority without one of them.
const NODES: usize = 3;

/// Longer than any step of a node takes, even on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(90);

/// The folders in which distributions install the Galera library.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/galera",
    "/usr/lib/galera-4",
    "/usr/lib64/galera-4",
    "/usr/lib64/galera",
    "/usr/local/lib/galera",
    "/usr/local/lib",
];

/// The file in which a node records its position in the replication when it stops in good order.
const SAVED: &str = "grastate.dat";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, named `peer0`, `peer1` and so on, as in the pool.
    pub nodes: Vec<Node>,
    /// The lock that allows one cluster at a time: on an overloaded machine nodes suspect each other. The
    /// last field is dropped last, after the nodes have ended.
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts a cluster with new data, and waits until all nodes are synced.
    pub fn start() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let ports: Vec<Ports> = (0..NODES).map(|_| Ports::claim()).collect();
        let group: Vec<u16> = ports.iter().map(|ports| ports.group.number()).collect();
        let nodes = ports.into_iter().enumerate();
        let nodes = nodes.map(|(index, ports)| {
            let account = Account::of("mysql");
            let folder = account.folder();
            unpack_data(&account, folder.path());
            let name = format!("peer{index}");
            Node::prepare(folder, Setup { name, account, ports, group: group.clone() })
        });
        let mut cluster = Self { nodes: nodes.collect(), _turn: turn };
        let (first, others) = cluster.nodes.split_first_mut().expect("the cluster has nodes");
        first.found_group();
        for node in others.iter_mut() {
            node.db.begin_restart();
        }
        for node in others {
            node.db.await_ready();
        }
        cluster.wait_synced();
        cluster
    }

    /// Starts a cluster with a table `t` of one row on all nodes.
    pub fn with_table() -> Self {
        let cluster = Self::start();
        cluster.nodes[0].sql(
            "CREATE TABLE app.t (id INT PRIMARY KEY, v BIGINT NOT NULL);
             INSERT INTO app.t VALUES (1, 0)",
        );
        let arrived =
            |node: &Node| node.try_sql("SELECT * FROM app.t").is_some_and(|row| row == "1\t0\n");
        let everywhere = within(PATIENCE, || cluster.nodes.iter().all(arrived));
        assert!(everywhere, "every node has the row");
        cluster
    }

    /// Returns the URL of the application's database on each node.
    pub fn urls(&self) -> impl Iterator<Item = String> {
        self.nodes.iter().map(|node| node.url())
    }

    /// Waits until every node has all the data and is connected to all other nodes.
    #[track_caller]
    pub fn wait_synced(&self) {
        let size = self.nodes.len().to_string();
        for node in &self.nodes {
            node.wait_synced();
            let knows_all = || node.status("wsrep_cluster_size").as_ref() == Some(&size);
            assert!(
                within(PATIENCE, knows_all),
                "every node is connected to the others\n{}",
                node.log()
            );
        }
    }
}

/// A node of a cluster, with all methods of [`MariaDb`].
#[derive(Debug)]
pub struct Node {
    db: MariaDb,
    setup: Setup,
}

/// The ports of a node's replication.
#[derive(Debug)]
struct Ports {
    /// The port for the messages of the group.
    group: Port,
    /// The port for the writes that a node has missed (incremental state transfer, IST).
    missed: Port,
    /// The port for all the data (state snapshot transfer, SST).
    all: Port,
}

impl Ports {
    fn claim() -> Self {
        Self { group: free_port(), missed: free_port(), all: free_port() }
    }
}

/// The values from which a node's configuration is written.
#[derive(Debug)]
struct Setup {
    name: String,
    account: Account,
    ports: Ports,
    /// The ports of all nodes of the group.
    group: Vec<u16>,
}

impl Node {
    /// Prepares a node without starting it.
    fn prepare(folder: TempDir, setup: Setup) -> Self {
        setup.configure(folder.path(), &setup.group, None);
        let db = MariaDb::prepare_in(&setup.account, folder, free_port(), &[]);
        Self { db, setup }
    }

    /// Starts the node as the first of its group, without other nodes to join.
    fn found_group(&mut self) {
        self.setup.configure(self.folder(), &[], None);
        self.db.restart();
        self.wait_synced();
        // On a restart it joins the others.
        self.setup.configure(self.folder(), &self.setup.group, None);
    }

    /// Starts the node again, and waits until it accepts logins, which is before it has all the data. At
    /// least one other node must be running to send what the node has missed.
    pub fn restart(&mut self) {
        self.begin_restart();
        self.db.await_ready();
    }

    /// Starts the node again without waiting.
    pub fn begin_restart(&mut self) {
        self.kill();
        let position = self.setup.recovered(self.folder());
        self.setup.configure(self.folder(), &self.setup.group, position.as_deref());
        self.db.begin_restart();
    }

    /// Starts the node again without data, and does not wait. Another node sends all the data; until then
    /// the node refuses connections.
    pub fn begin_restart_from_nothing(&mut self) {
        self.kill();
        fs::remove_file(self.folder().join(SAVED)).expect("each node has this file");
        self.setup.configure(self.folder(), &self.setup.group, None);
        self.db.begin_restart();
    }

    /// Returns a status variable of the server, or `None` when the server does not answer.
    pub fn status(&self, name: &str) -> Option<String> {
        let answer = self.try_sql(&format!("SHOW GLOBAL STATUS LIKE '{name}'"))?;
        answer.split_whitespace().nth(1).map(str::to_owned)
    }

    /// Returns the node's state, such as `Synced`. Empty when the server does not answer.
    pub fn state(&self) -> String {
        self.status("wsrep_local_state_comment").unwrap_or_default()
    }

    /// Returns whether the node reports that it is ready for queries.
    pub fn is_ready(&self) -> bool {
        self.status("wsrep_ready").as_deref() == Some("ON")
    }

    /// Waits until the node has all the data and is ready for queries.
    #[track_caller]
    pub fn wait_synced(&self) {
        let synced = within(PATIENCE, || {
            if self.state() == "Synced" && self.is_ready() {
                return true;
            }
            if self.status("wsrep_cluster_status").as_deref() == Some("Disconnected") {
                // On a busy machine a node may give up joining for good.
                let address = self.sql("SELECT @@wsrep_cluster_address");
                self.try_sql(&format!("SET GLOBAL wsrep_cluster_address = '{}'", address.trim()));
            }
            thread::sleep(Duration::from_millis(20));
            false
        });
        assert!(synced, "{} is {:?}\n{}", self.setup.name, self.state(), self.log());
    }

    /// Isolates the node from the others. It refuses queries after it has detected that, about two seconds
    /// later.
    pub fn partition(&self) {
        self.sql("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'");
    }

    /// Connects the node with the others again.
    pub fn heal(&self) {
        self.sql("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'");
    }

    /// Lets the node fall behind without slowing down the others, as a node does while it sends its data to
    /// another one.
    pub fn desync(&self) {
        self.sql("SET GLOBAL wsrep_desync = ON");
    }

    /// Makes the node keep up with the others again.
    pub fn resync(&self) {
        self.sql("SET GLOBAL wsrep_desync = OFF");
    }

    /// Sets whether the node refuses all queries of clients, as an administrator can.
    pub fn reject_queries(&self, rejected: bool) {
        let which = if rejected { "ALL" } else { "NONE" };
        self.sql(&format!("SET GLOBAL wsrep_reject_queries = {which}"));
    }
}

impl Deref for Node {
    type Target = MariaDb;

    fn deref(&self) -> &MariaDb {
        &self.db
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut MariaDb {
        &mut self.db
    }
}

impl Setup {
    /// Writes the configuration file of the node in `folder`, with the position of its data when the node
    /// has not recorded it.
    fn configure(&self, folder: &Path, others: &[u16], position: Option<&str>) {
        let host = Ipv4Addr::LOCALHOST;
        let Ports { group, missed, all } = &self.ports;
        let others: Vec<String> = others.iter().map(|port| format!("{host}:{port}")).collect();
        let provider_options = [
            format!("base_host={host}"),
            format!("base_port={}", group.number()),
            format!("gmcast.listen_addr=tcp://{host}:{}", group.number()),
            format!("ist.recv_addr={host}:{}", missed.number()),
            "gcache.size=16M".to_owned(),
            // A node that was killed can also send what others have missed.
            "gcache.recover=yes".to_owned(),
            // A node that restarts does not wait for the nodes that it knew before.
            "pc.recovery=FALSE".to_owned(),
            "pc.announce_timeout=PT1S".to_owned(),
            // A silent node counts as failed after two seconds, not five.
            "evs.keepalive_period=PT0.3S".to_owned(),
            "evs.inactive_check_period=PT0.2S".to_owned(),
            "evs.suspect_timeout=PT2S".to_owned(),
            "evs.inactive_timeout=PT4S".to_owned(),
            "evs.install_timeout=PT4S".to_owned(),
            "evs.join_retrans_period=PT0.3S".to_owned(),
            "gmcast.peer_timeout=PT1S".to_owned(),
            "gmcast.time_wait=PT1S".to_owned(),
            // A node does not give up joining on a busy machine.
            "evs.max_install_timeouts=10".to_owned(),
        ];
        let mut lines = vec![
            "[mariadbd]".to_owned(),
            "wsrep_on=ON".to_owned(),
            format!("wsrep_provider={}", library().display()),
            "wsrep_cluster_name=diesel-peers".to_owned(),
            format!("wsrep_cluster_address=gcomm://{}", others.join(",")),
            format!("wsrep_node_name={}", self.name),
            format!("wsrep_node_address={host}"),
            // An rsync daemon that runs as root would change to `nobody`; here no server runs as root.
            "wsrep_sst_method=rsync".to_owned(),
            format!("wsrep_sst_receive_address={host}:{}", all.number()),
            "wsrep_slave_threads=2".to_owned(),
            format!("wsrep_provider_options={}", provider_options.join(";")),
            "binlog_format=ROW".to_owned(),
            "innodb_autoinc_lock_mode=2".to_owned(),
        ];
        lines.extend(position.map(|position| format!("wsrep_start_position={position}")));
        let file = mariadb::configuration(folder);
        fs::write(&file, lines.join("\n") + "\n").expect("the test owns the folder");
        self.account.take(&file);
    }

    /// Determines the position of the data in `folder`, when the node crashed before it could record it.
    fn recovered(&self, folder: &Path) -> Option<String> {
        let saved = fs::read_to_string(folder.join(SAVED)).expect("each node has this file");
        let number = saved.lines().find_map(|line| line.strip_prefix("seqno:"));
        if number.map(str::trim) != Some("-1") {
            return None;
        }
        let mut recover = mariadb::mariadbd(&self.account, folder);
        recover.args(["--wsrep-recover", "--skip-networking"]);
        recover.arg(format!("--socket={}", folder.join("recovering").display()));
        recover.arg(format!("--pid-file={}", folder.join("recovering.pid").display()));
        let output = recover.current_dir(folder).output().expect("`setpriv` is installed");
        let log = String::from_utf8_lossy(&output.stderr);
        let position = log.lines().rev().find_map(|line| line.split_once("Recovered position: "));
        let (_, position) = position.unwrap_or_else(|| panic!("{recover:?} failed: {log}"));
        Some(position.trim().to_owned())
    }
}

/// Fills an empty folder with the data of a node of a new group.
fn unpack_data(account: &Account, folder: &Path) {
    let recipe = mariadb::recipe() + include_str!("galera.rs");
    template::unpack("galera", &recipe, account, folder, |data| make_data(account, data));
}

/// Makes the data of an existing group. Nodes that start from copies of these data belong to the same group,
/// and send each other only what is new.
fn make_data(account: &Account, data: &Path) {
    let folder = account.folder();
    mariadb::unpack_data(account, folder.path());
    let name = "template".to_owned();
    let setup = Setup { name, account: account.clone(), ports: Ports::claim(), group: Vec::new() };
    let mut node = Node::prepare(folder, setup);
    node.found_group();
    node.stop();
    // The cache of writes for other nodes is large, and belongs to one node.
    fs::remove_file(node.folder().join("galera.cache")).expect("each node has this file");
    let mut copy = Command::new("cp");
    copy.args(["-a", "--sparse=always"]).arg(node.folder().join(".")).arg(data);
    run(&mut copy);
}

/// Returns the path of the Galera library.
fn library() -> PathBuf {
    let library = |folder| Path::new(folder).join("libgalera_smm.so");
    let found = LIBRARY_FOLDERS.into_iter().map(library).find(|library| library.is_file());
    found.unwrap_or_else(|| is_missing("libgalera_smm.so"))
}
