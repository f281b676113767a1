//! A real Galera cluster: `MariaDB` servers each of which has all the data and takes writes.

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

/// How many nodes a cluster has: as many as it takes to lose one and have a majority left.
const NODES: usize = 3;

/// Longer than a node takes for anything, even on a machine busy with other tests.
const PATIENCE: Duration = Duration::from_secs(90);

/// The folders in which distributions put the library that makes a server a node.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/galera",
    "/usr/lib/galera-4",
    "/usr/lib64/galera-4",
    "/usr/lib64/galera",
    "/usr/local/lib/galera",
    "/usr/local/lib",
];

/// Where a node that stops in good order writes how far it has come.
const SAVED: &str = "grastate.dat";

/// A cluster whose nodes have each other's data.
#[derive(Debug)]
pub struct Cluster {
    /// They are called `peer0` and so on, as in the pool.
    pub nodes: Vec<Node>,
    /// One cluster at a time: nodes that wait for a processor take each other for dead. It ends last.
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts a cluster with new data, and waits until all of it can work.
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
        let (first, others) = cluster.nodes.split_first_mut().expect("there are some");
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

    /// As [`start`](Self::start), with a table `t` of one row on all nodes.
    pub fn with_table() -> Self {
        let cluster = Self::start();
        cluster.nodes[0].sql(
            "CREATE TABLE app.t (id INT PRIMARY KEY, v BIGINT NOT NULL);
             INSERT INTO app.t VALUES (1, 0)",
        );
        let arrived =
            |node: &Node| node.try_sql("SELECT * FROM app.t").is_some_and(|row| row == "1\t0\n");
        let everywhere = within(PATIENCE, || cluster.nodes.iter().all(arrived));
        assert!(everywhere, "the row is not everywhere");
        cluster
    }

    /// Where the application finds each node.
    pub fn urls(&self) -> impl Iterator<Item = String> {
        self.nodes.iter().map(|node| node.url())
    }

    /// Waits until every node has all the data, and they all know of each other.
    #[track_caller]
    pub fn wait_synced(&self) {
        let size = self.nodes.len().to_string();
        for node in &self.nodes {
            node.wait_synced();
            let knows_all = || node.status("wsrep_cluster_size").as_ref() == Some(&size);
            assert!(within(PATIENCE, knows_all), "a node is alone\n{}", node.log());
        }
    }
}

/// One node. See [`MariaDb`] for what it does besides.
#[derive(Debug)]
pub struct Node {
    db: MariaDb,
    setup: Setup,
}

/// What the nodes talk over.
#[derive(Debug)]
struct Ports {
    /// The group's messages.
    group: Port,
    /// The writes that a node has missed (an IST).
    missed: Port,
    /// All the data (an SST).
    all: Port,
}

impl Ports {
    fn claim() -> Self {
        Self { group: free_port(), missed: free_port(), all: free_port() }
    }
}

/// What its configuration is made from.
#[derive(Debug)]
struct Setup {
    name: String,
    account: Account,
    ports: Ports,
    /// The ports of all nodes of the group.
    group: Vec<u16>,
}

impl Node {
    /// One that is not started yet.
    fn prepare(folder: TempDir, setup: Setup) -> Self {
        setup.configure(folder.path(), &setup.group, None);
        let db = MariaDb::prepare_in(&setup.account, folder, free_port(), &[]);
        Self { db, setup }
    }

    /// Starts it as the first of its group, with nobody to ask what is new.
    fn found_group(&mut self) {
        self.setup.configure(self.folder(), &[], None);
        self.db.restart();
        self.wait_synced();
        // When it comes back it asks the others.
        self.setup.configure(self.folder(), &self.setup.group, None);
    }

    /// Starts it again, and waits until it lets clients in, which is before it has all the data. At
    /// least one other node must live, and send it what it has missed.
    pub fn restart(&mut self) {
        self.begin_restart();
        self.db.await_ready();
    }

    /// As [`restart`](Self::restart), and does not wait.
    pub fn begin_restart(&mut self) {
        self.kill();
        let position = self.setup.recovered(self.folder());
        self.setup.configure(self.folder(), &self.setup.group, position.as_deref());
        self.db.begin_restart();
    }

    /// Starts it again as one that has no data, and does not wait. Another node sends it all of
    /// them; until then it refuses connections.
    pub fn begin_restart_from_nothing(&mut self) {
        self.kill();
        fs::remove_file(self.folder().join(SAVED)).expect("a node has one");
        self.setup.configure(self.folder(), &self.setup.group, None);
        self.db.begin_restart();
    }

    /// One of the server's status variables. `None` if it does not tell.
    pub fn status(&self, name: &str) -> Option<String> {
        let answer = self.try_sql(&format!("SHOW GLOBAL STATUS LIKE '{name}'"))?;
        answer.split_whitespace().nth(1).map(str::to_owned)
    }

    /// What it does in its group, as `Synced`. Empty if it does not tell.
    pub fn state(&self) -> String {
        self.status("wsrep_local_state_comment").unwrap_or_default()
    }

    /// Whether it says that it takes work.
    pub fn is_ready(&self) -> bool {
        self.status("wsrep_ready").as_deref() == Some("ON")
    }

    /// Waits until it has all the data and takes work.
    #[track_caller]
    pub fn wait_synced(&self) {
        let synced = within(PATIENCE, || {
            if self.state() == "Synced" && self.is_ready() {
                return true;
            }
            if self.status("wsrep_cluster_status").as_deref() == Some("Disconnected") {
                // On a busy machine it may give up joining, for good.
                let address = self.sql("SELECT @@wsrep_cluster_address");
                self.try_sql(&format!("SET GLOBAL wsrep_cluster_address = '{}'", address.trim()));
            }
            thread::sleep(Duration::from_millis(20));
            false
        });
        assert!(synced, "{} is {:?}\n{}", self.setup.name, self.state(), self.log());
    }

    /// Cuts it off from the others. It takes no more work once it has noticed, some two seconds later.
    pub fn partition(&self) {
        self.sql("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'");
    }

    /// Joins it with the others again.
    pub fn heal(&self) {
        self.sql("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'");
    }

    /// Has it fall behind without slowing the others down, as while it sends its data to another.
    pub fn desync(&self) {
        self.sql("SET GLOBAL wsrep_desync = ON");
    }

    /// Has it keep up with the others again.
    pub fn resync(&self) {
        self.sql("SET GLOBAL wsrep_desync = OFF");
    }

    /// Whether it refuses all queries of clients, as an administrator may order.
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
    /// Writes the configuration file of the node in `folder`, with how far its data have come where
    /// it does not know itself.
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
            // One that was killed can send what others have missed, too.
            "gcache.recover=yes".to_owned(),
            // One that comes back does not wait for those it knew.
            "pc.recovery=FALSE".to_owned(),
            "pc.announce_timeout=PT1S".to_owned(),
            // A node that says nothing is dead after two seconds, not five.
            "evs.keepalive_period=PT0.3S".to_owned(),
            "evs.inactive_check_period=PT0.2S".to_owned(),
            "evs.suspect_timeout=PT2S".to_owned(),
            "evs.inactive_timeout=PT4S".to_owned(),
            "evs.install_timeout=PT4S".to_owned(),
            "evs.join_retrans_period=PT0.3S".to_owned(),
            "gmcast.peer_timeout=PT1S".to_owned(),
            "gmcast.time_wait=PT1S".to_owned(),
            // It does not give up joining, on a busy machine either.
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
            // An rsync daemon of root's would become `nobody`; servers are never root's here.
            "wsrep_sst_method=rsync".to_owned(),
            format!("wsrep_sst_receive_address={host}:{}", all.number()),
            "wsrep_slave_threads=2".to_owned(),
            format!("wsrep_provider_options={}", provider_options.join(";")),
            "binlog_format=ROW".to_owned(),
            "innodb_autoinc_lock_mode=2".to_owned(),
        ];
        lines.extend(position.map(|position| format!("wsrep_start_position={position}")));
        let file = mariadb::configuration(folder);
        fs::write(&file, lines.join("\n") + "\n").expect("our own folder");
        self.account.take(&file);
    }

    /// How far the data have come in `folder`, where a node crashed before it could write it down.
    fn recovered(&self, folder: &Path) -> Option<String> {
        let saved = fs::read_to_string(folder.join(SAVED)).expect("a node has one");
        let number = saved.lines().find_map(|line| line.strip_prefix("seqno:"));
        if number.map(str::trim) != Some("-1") {
            return None;
        }
        let mut recover = mariadb::mariadbd(&self.account, folder);
        recover.args(["--wsrep-recover", "--skip-networking"]);
        recover.arg(format!("--socket={}", folder.join("recovering").display()));
        recover.arg(format!("--pid-file={}", folder.join("recovering.pid").display()));
        let output = recover.current_dir(folder).output().expect("`setpriv` starts");
        let log = String::from_utf8_lossy(&output.stderr);
        let position = log.lines().rev().find_map(|line| line.split_once("Recovered position: "));
        let (_, position) = position.unwrap_or_else(|| panic!("{recover:?} failed: {log}"));
        Some(position.trim().to_owned())
    }
}

/// Fills an empty folder with the data of a new group's node.
fn unpack_data(account: &Account, folder: &Path) {
    let recipe = mariadb::recipe() + include_str!("galera.rs");
    template::unpack("galera", &recipe, account, folder, |data| make_data(account, data));
}

/// Makes the data of a group that has met once. Nodes that start from copies of them know that they
/// are of one group, and send each other no more than what is new.
fn make_data(account: &Account, data: &Path) {
    let folder = account.folder();
    mariadb::unpack_data(account, folder.path());
    let name = "template".to_owned();
    let setup = Setup { name, account: account.clone(), ports: Ports::claim(), group: Vec::new() };
    let mut node = Node::prepare(folder, setup);
    node.found_group();
    node.stop();
    // What it keeps for others is large, and its own.
    fs::remove_file(node.folder().join("galera.cache")).expect("a node has one");
    let mut copy = Command::new("cp");
    copy.args(["-a", "--sparse=always"]).arg(node.folder().join(".")).arg(data);
    run(&mut copy);
}

/// The library that makes a server a node.
fn library() -> PathBuf {
    let library = |folder| Path::new(folder).join("libgalera_smm.so");
    let found = LIBRARY_FOLDERS.into_iter().map(library).find(|library| library.is_file());
    found.unwrap_or_else(|| is_missing("libgalera_smm.so"))
}
