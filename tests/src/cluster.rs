//! A Kafka cluster of three, each a broker and a controller, whose nodes can be killed one by one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::clients::{self, Program, output_of};
use crate::ports::free_port;
use crate::services::Services;

/// How many there are. Every topic is kept by all, and takes writes while two of them are in step.
pub const NODES: usize = 3;

const READY_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);

/// The cluster; its nodes are killed when it is dropped.
pub struct Cluster {
    services: Arc<Services>,
    directory: PathBuf,
    ports: Vec<u16>,
    /// `None` where a node was killed.
    nodes: Vec<Option<Program>>,
}

impl Cluster {
    /// Makes one anew in `directory`, and waits until it can be used.
    pub async fn start(services: &Arc<Services>, directory: &Path) -> anyhow::Result<Cluster> {
        let ports: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let controllers: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let voters = (1..).zip(&controllers);
        let voters: Vec<String> = voters
            .map(|(node, port)| format!("{node}@127.0.0.1:{port}"))
            .collect();
        let id = output_of(java("kafka.tools.StorageTool")?.arg("random-uuid"))?;
        for (index, (port, controller)) in ports.iter().zip(&controllers).enumerate() {
            let home = directory.join(format!("node-{index}"));
            std::fs::create_dir_all(&home)?;
            let settings = format!(
                "process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={NODES}
min.insync.replicas=2
offsets.topic.replication.factor={NODES}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={NODES}
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
replica.lag.time.max.ms=5000
log.cleaner.dedupe.buffer.size=33554432
",
                node = index + 1,
                voters = voters.join(","),
                data = home.join("data").display(),
            );
            let file = home.join("server.properties");
            std::fs::write(&file, settings)?;
            let mut format = java("kafka.tools.StorageTool")?;
            format.args(["format", "-t", id.trim(), "-c"]).arg(file);
            output_of(&mut format)?;
        }
        let mut cluster = Cluster {
            services: services.clone(),
            directory: directory.to_owned(),
            ports,
            nodes: (0..NODES).map(|_| None).collect(),
        };
        for node in 0..NODES {
            cluster.start_again(node)?;
        }
        cluster.wait_in_step().await?;
        Ok(cluster)
    }

    /// `host:port` of all, with commas.
    pub fn brokers(&self) -> String {
        let addresses = self.ports.iter().map(|port| format!("127.0.0.1:{port}"));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// `kill -9` of one node.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    /// Starts one node, where it was.
    pub fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        let mut command = java("kafka.Kafka")?;
        command.arg(
            self.directory
                .join(format!("node-{node}/server.properties")),
        );
        let name = format!("kafka-{node}");
        let program = Program::start(&self.services, command, &self.directory, &name)?;
        self.nodes[node] = Some(program);
        Ok(())
    }

    /// Waits until all nodes are there and every partition is the same on all of them.
    pub async fn wait_in_step(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let brokers = self.brokers();
            let looked = tokio::task::spawn_blocking(move || out_of_step(&brokers)).await?;
            let left = match looked {
                Ok(left) if left.is_empty() => return Ok(()),
                Ok(left) => left.join(", "),
                Err(error) => error.to_string(),
            };
            for node in self.nodes.iter_mut().flatten() {
                ensure!(node.is_running()?, "a node ended: {}", node.errors());
            }
            ensure!(Instant::now() < deadline, "Kafka is not in step: {left}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The node that leads the first partition of a topic.
    pub async fn leader_of(&self, topic: &str) -> anyhow::Result<usize> {
        let (brokers, topic) = (self.brokers(), topic.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let metadata = consumer(&brokers)?.fetch_metadata(Some(&topic), READY_MAX)?;
            let topic = metadata.topics().first().context("no topic")?;
            let partition = topic.partitions().first().context("no partition")?;
            anyhow::Ok(partition.leader())
        });
        let leader = usize::try_from(found.await??).context("no leader")?;
        leader.checked_sub(1).context("no such node")
    }
}

/// What is missing, in words.
fn out_of_step(brokers: &str) -> anyhow::Result<Vec<String>> {
    let metadata = consumer(brokers)?.fetch_metadata(None, Duration::from_secs(10))?;
    let mut left = Vec::new();
    if metadata.brokers().len() < NODES {
        left.push(format!("{} nodes", metadata.brokers().len()));
    }
    for topic in metadata.topics() {
        let lacking = topic.partitions().iter().filter(|partition| {
            partition.leader() < 0 || partition.isr().len() < partition.replicas().len()
        });
        left.extend(lacking.map(|partition| format!("{}/{}", topic.name(), partition.id())));
    }
    Ok(left)
}

fn consumer(brokers: &str) -> anyhow::Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?)
}

/// A class of Kafka's, to be given its arguments.
fn java(class: &str) -> anyhow::Result<Command> {
    // The program itself and not a link to it: by that the servers' reaper knows it.
    let java = output_of(Command::new("sh").args(["-c", "readlink -f \"$(command -v java)\""]))?;
    let mut command = Command::new(java.trim());
    command
        .args([
            "-Xms64m",
            "-Xmx384m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
        ])
        .arg(clients::kafka_libraries()?)
        .arg(class);
    Ok(command)
}
