//! Starts Kafka: one node, broker and controller.

use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::java::Java;
use super::server::{self, Node, Recipe};
use super::{Extras, Kafka, Profile, jars};
use crate::scratch;

const POM: &str = include_str!("../../servers/kafka.pom.xml");
const SETTINGS: &str = include_str!("../../servers/server.properties");

const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts a node with no data.
pub(super) fn start(profile: Profile, extras: &Extras) -> Result<Kafka> {
    let java = Java::find()?;
    let jars = jars::fetch("kafka", POM)?;
    let classpath = format!("{}/*", jars.display());
    server::on_free_ports(|[port, second_port, controller_port]| {
        let directory = scratch::directory("kafka");
        let log = directory.join("server.log");
        let settings = server::write_settings(
            &directory.join("server.properties"),
            &format!("{SETTINGS}\n{}\n", extras.settings),
            &[
                ("@DIR@", &directory.display().to_string()),
                ("@PORT@", &port.to_string()),
                ("@SECOND_PORT@", &second_port.to_string()),
                ("@ADVERTISED_PORT@", &extras.advertised_port.unwrap_or(second_port).to_string()),
                ("@CONTROLLER_PORT@", &controller_port.to_string()),
            ],
        )?;
        let cluster = cluster_id();

        // It runs for a moment, whatever the node is for.
        let mut format = java.command(Profile::Tests, &directory, &classpath);
        format.args(["kafka.tools.StorageTool", "format", "-t", &cluster, "-c"]).arg(&settings);
        let formatted = server::run_to_end(format, &log, FORMAT_TIMEOUT)?;
        if !formatted.success() {
            return Err(server::failure("its storage cannot be formatted", &log));
        }

        let bootstrap = format!("127.0.0.1:{port}");
        let command = {
            let (java, classpath, extras) = (java.clone(), classpath.clone(), extras.clone());
            move || {
                let mut node = java.command(profile, &directory, &classpath);
                node.envs(extras.environment.iter().cloned());
                node.args(match profile {
                    Profile::Tests => ["-Xms128m", "-Xmx512m"],
                    Profile::Benchmark => ["-Xms1g", "-Xmx1g"],
                });
                node.arg("kafka.Kafka").arg(&settings);
                node
            }
        };
        let answers = {
            let bootstrap = bootstrap.clone();
            move || server::accepts(port) && answers(&bootstrap, &cluster)
        };
        let node = Node::start(log, Recipe { command: Box::new(command), answers: Box::new(answers) })?;
        Ok(Kafka { bootstrap, second_bootstrap: format!("127.0.0.1:{second_port}"), node: Some(node) })
    })
}

/// Kafka's form of an id: 16 bytes in 22 characters.
fn cluster_id() -> String {
    // A digit at the end leaves the last character's four spare bits empty.
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}A", &random[..21])
}

/// Whether a metadata request is answered, and by this node, not by one that took the port before it.
fn answers(bootstrap: &str, cluster: &str) -> bool {
    // A new client each time: an old one would wait before it connects again.
    let client: Result<BaseConsumer, _> = ClientConfig::new().set("bootstrap.servers", bootstrap).create();
    client.is_ok_and(|client| {
        let metadata = client.fetch_metadata(None, ANSWER_TIMEOUT);
        metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
            && client.client().fetch_cluster_id(ANSWER_TIMEOUT).as_deref() == Some(cluster)
    })
}
